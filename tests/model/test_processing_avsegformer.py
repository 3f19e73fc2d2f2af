"""Frames and sound to tensors, logits to masks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor

from modeling_avsegformer import AVSegFormerImageProcessor, AVSegFormerProcessor, VGGishFeatureExtractor
from modeling_avsegformer.log_mel import log_mel, resample

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def processor() -> AVSegFormerProcessor:
    return AVSegFormerProcessor(AVSegFormerImageProcessor(), VGGishFeatureExtractor())


def test_parts_that_are_not_given_have_their_defaults(processor):
    assert AVSegFormerProcessor().to_dict() == processor.to_dict()
    small = AVSegFormerProcessor(AVSegFormerImageProcessor(size={"height": 32, "width": 32}))
    assert small(frames=[[photo()]]).pixel_values.shape[-2:] == (32, 32)


def photo(seed: int = 0, width: int = 70, height: int = 50) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def sound(seed: int = 0, samples: int = 80000) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples)


def test_the_call_of_the_interface(processor):
    frame = photo()
    inputs = processor(frames=[[frame] * 5], audio=[sound()], sampling_rate=16000, return_tensors="pt")
    assert set(inputs) == {"pixel_values", "input_features"}
    assert inputs["pixel_values"].shape == (1, 5, 3, 224, 224)
    assert inputs["input_features"].shape == (1, 5, 1, 96, 64)
    np.testing.assert_array_equal(inputs["input_features"][0], log_mel(sound()))


def test_frames_are_resized_as_by_pil(processor):
    for frame in (photo(width=400, height=300), photo(width=70, height=50)):
        expected = np.asarray(frame.resize((224, 224), Image.Resampling.BILINEAR)) / 255.0
        pixels = processor(frames=[[frame]])["pixel_values"][0, 0].permute(1, 2, 0).numpy() * STD + MEAN
        error = np.abs(pixels - expected) * 255
        assert error.max() < 1.01 and error.mean() < 0.2  # grey levels


def test_order_of_clips_and_frames(processor):
    clips = [[photo(10 * clip + frame) for frame in range(3)] for clip in range(2)]
    pixels = processor(frames=clips)["pixel_values"]
    assert pixels.shape == (2, 3, 3, 224, 224)
    torch.testing.assert_close(pixels[1, 2], processor(frames=photo(12))["pixel_values"][0, 0])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_image_modes(processor, mode):
    frame = photo().convert(mode)
    pixels = processor(frames=[[frame, photo()]])["pixel_values"]
    assert pixels.shape == (1, 2, 3, 224, 224)
    torch.testing.assert_close(pixels[0, 0], processor(frames=[[frame.convert("RGB")]])["pixel_values"][0, 0])


def test_other_ways_to_give_frames(processor):
    frames = [photo(seed) for seed in range(2)]
    expected = processor(frames=[frames])["pixel_values"]
    array = np.stack([np.asarray(frame) for frame in frames])  # (frames, height, width, 3)
    for given in (
        {"images": [frames]},
        {"videos": [frames]},
        {"frames": frames},
        {"frames": array},
        {"frames": array[None]},
        {"frames": torch.from_numpy(array).permute(0, 3, 1, 2)[None]},
    ):
        torch.testing.assert_close(processor(**given)["pixel_values"], expected)


def test_size_of_the_call_and_of_the_processor(processor):
    size = {"height": 64, "width": 96}
    masks = [[Image.new("1", (70, 50))]]
    inputs = processor(frames=[[photo()]], masks=masks, size=size)
    assert inputs["pixel_values"].shape[-2:] == inputs["labels"].shape[-2:] == (64, 96)
    small = AVSegFormerProcessor(AVSegFormerImageProcessor(size=size), VGGishFeatureExtractor())
    torch.testing.assert_close(small(frames=[[photo()]])["pixel_values"], inputs["pixel_values"])


def test_numpy_tensors(processor):
    inputs = processor(frames=[[photo()]], audio=sound(), sampling_rate=16000, return_tensors="np")
    assert all(type(value) is np.ndarray for value in inputs.values())


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "array"])
def test_masks_of_any_mode(processor, mode):
    foreground = np.zeros((4, 6), dtype=np.uint8)
    foreground[1:3, 2:5] = 1  # as a palette index or a grey level, 1 belongs to the object
    if mode == "array":
        mask = foreground.astype(bool)
    elif mode.startswith("RGB"):
        mask = Image.fromarray(np.stack([0 * foreground, 0 * foreground, 200 * foreground], -1)).convert(mode)
    elif mode == "1":
        mask = Image.fromarray(foreground * 255).convert("1")
    else:
        mask = Image.fromarray(foreground)
        if mode == "P":
            mask.putpalette([0, 0, 0, 0, 0, 0])  # black on black: the index counts
    labels = processor(frames=[[photo()] * 3], masks=[[mask, mask]], size={"height": 8, "width": 12})["labels"]
    assert labels.shape == (1, 2, 8, 12) and labels.dtype == torch.float32
    expected = np.repeat(np.repeat(foreground, 2, 0), 2, 1)
    np.testing.assert_array_equal(labels[0, 1], expected)


def test_masks_are_shrunk_by_the_nearest_neighbour(processor):
    mask = np.random.default_rng(0).integers(0, 2, (36, 99))
    labels = processor(frames=[[photo()]], masks=[[mask]], size={"height": 12, "width": 33})["labels"]
    np.testing.assert_array_equal(labels[0, 0], mask[1::3, 1::3])  # the middle one of three


def test_masks_as_arrays(processor):
    masks = np.random.default_rng(0).integers(0, 2, (2, 3, 50, 70))
    labels = processor(frames=[[photo()] * 3] * 2, masks=masks, size={"height": 50, "width": 70})["labels"]
    np.testing.assert_array_equal(labels, masks)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "`frames`, `audio` or both, got neither"),
        ({"frames": []}, "at least one image in every clip of `frames`"),
        ({"frames": [[]]}, "at least one image in every clip of `frames`"),
        ({"frames": [[photo()], [photo(), photo()]]}, r"same number of images .* got \[1, 2\]"),
        ({"frames": [[photo()]], "images": [[photo()]]}, "frames once"),
        ({"frames": [[photo()]], "text": "a dog"}, "no `text`"),
        ({"frames": [[photo()]] * 2, "audio": [sound()]}, "2 clips of frames and 1 waveforms"),
        ({"audio": [sound()], "masks": [[photo()]]}, "`frames` with `masks`"),
        ({"frames": [[photo()]], "masks": [[photo()], [photo()]]}, "got 2 clips of 1 masks"),
        ({"frames": [[photo()]], "masks": [[photo(), photo()]]}, "got 1 clips of 2 masks"),
        ({"frames": [[photo()]], "masks": [[]]}, "every clip of `masks`"),
        ({"frames": [[photo()]], "masks": [[np.zeros(5)]]}, r"masks of shape \(height, width\), got one of \(5,\)"),
    ],
)
def test_bad_calls(processor, given, message):
    with pytest.raises(ValueError, match=message):
        processor(sampling_rate=16000, **given)


def test_save_and_load(processor, tmp_path):
    processor.image_processor.size = {"height": 32, "width": 64}
    processor.feature_extractor.num_seconds = 2
    processor.save_pretrained(tmp_path)
    for loaded in (AVSegFormerProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is AVSegFormerProcessor
        assert loaded(frames=[[photo()]])["pixel_values"].shape == (1, 1, 3, 32, 64)
        features = loaded(audio=[sound()], sampling_rate=16000)["input_features"]
        assert features.shape == (1, 2, 1, 96, 64)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is AVSegFormerImageProcessor
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is VGGishFeatureExtractor


def test_post_process_by_hand(processor):
    logits = torch.tensor([[[[1.0, -1.0], [0.0, 2.0]]], [[[0.5, 0.3], [-9.0, 9.0]]]])  # two clips of one frame
    outputs = SimpleNamespace(logits=logits)
    first, second = processor.post_process_segmentation(outputs)
    assert first.dtype == torch.bool
    assert first.tolist() == [[[True, False], [False, True]]]  # a logit of 0 is background
    assert processor.post_process_segmentation(outputs, threshold=0.6)[1].tolist() == [[[True, False], [False, True]]]
    resized = processor.post_process_segmentation(outputs, target_sizes=[(4, 2), (2, 6)])
    assert [mask.shape for mask in resized] == [(1, 4, 2), (1, 2, 6)]
    # halfway between rows, bilinear: 0.75 * 1 + 0.25 * 0, then 0.25 * 1 + 0.75 * 0; right: -0.25, then 1.25
    assert resized[0][0].tolist() == [[True, False], [True, False], [True, True], [False, True]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"threshold": 1.5}, r"in \[0, 1\], got 1.5"), ({"target_sizes": [(4, 4)]}, "got 1 for 2 clips")],
)
def test_bad_post_process(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor.post_process_segmentation(SimpleNamespace(logits=torch.zeros(2, 1, 4, 4)), **arguments)


@pytest.mark.parametrize("form", ["array", "float32", "list", "tensor", "batch", "dict", "stereo"])
def test_forms_of_waveforms(form):
    waveform = sound()
    given = {
        "array": waveform,
        "float32": waveform.astype(np.float32),
        "list": [waveform.tolist()],
        "tensor": [torch.from_numpy(waveform)],
        "batch": waveform[None],
        "dict": {"array": waveform, "sampling_rate": 16000},
        "stereo": [np.stack([waveform * 2, 0 * waveform], 1)],
    }[form]
    features = VGGishFeatureExtractor()(given, sampling_rate=16000, return_tensors="np")["input_features"]
    assert features.shape == (1, 5, 1, 96, 64) and features.dtype == np.float32
    np.testing.assert_allclose(features[0], log_mel(waveform), atol=1e-4)


def test_one_waveform_as_a_list_of_numbers():
    features = VGGishFeatureExtractor()(sound().tolist(), sampling_rate=16000)["input_features"]
    assert features.shape == (1, 5, 1, 96, 64)


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_other_rates_are_resampled(rate):
    waveform = sound(samples=5 * rate)
    features = VGGishFeatureExtractor()(waveform, sampling_rate=rate)["input_features"]
    np.testing.assert_allclose(features[0], log_mel(resample(waveform, rate)), atol=1e-5)
    own_rates = [{"array": waveform, "sampling_rate": rate}, {"array": sound(), "sampling_rate": 16000}]
    np.testing.assert_array_equal(VGGishFeatureExtractor()(own_rates)["input_features"][0], features[0])


def test_long_sounds_are_cut_and_short_ones_repeat_the_last_example():
    extractor = VGGishFeatureExtractor(num_seconds=3)
    waveform = sound(samples=100000)
    np.testing.assert_array_equal(extractor(waveform, sampling_rate=16000)["input_features"][0], log_mel(waveform)[:3])
    short = extractor(waveform[:32000], sampling_rate=16000)["input_features"][0]  # two examples
    np.testing.assert_array_equal(short[:2], log_mel(waveform[:32000]))
    np.testing.assert_array_equal(short[2], short[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one waveform"),
        ([sound(), sound(samples=15599)], "at least 15600 samples .* waveform 1 has 15599"),
        ([sound(samples=0)], "waveform 0 has 0"),
        ([np.zeros((2, 80000))], r"waveform 0 has 2\. .*transpose it"),
        ([sound(), np.array([np.nan] * 80000)], "Waveform 1: .* got 80000 NaN"),
        ([{"array": sound(), "sampling_rate": 8000}], "waveform 0 says 8000 Hz and `sampling_rate` 16000 Hz"),
    ],
)
def test_bad_waveforms(given, message):
    with pytest.raises(ValueError, match=message):
        VGGishFeatureExtractor()(given, sampling_rate=16000)


@pytest.mark.parametrize("arguments", [{"sampling_rate": 44100}, {"feature_size": 80}, {"num_seconds": 0}])
def test_bad_feature_extractor(arguments):
    with pytest.raises(ValueError, match="Expected"):
        VGGishFeatureExtractor(**arguments)


@pytest.mark.parametrize("form", ["float32", "float64", "float16", "list", "ToTensor"])
def test_floats_from_0_to_1_are_the_same_picture(processor, form):
    levels = np.asarray(photo())
    expected = processor(frames=[[levels, levels]])["pixel_values"]
    scaled = levels.astype("float64" if form == "float64" else "float32") / 255
    if form == "ToTensor":
        scaled = torch.from_numpy(scaled).permute(2, 0, 1)
    if form == "float16":
        scaled = scaled.astype("float16")
    for given in (scaled, 255 * scaled):
        given = given.tolist() if form == "list" else given
        found = processor(frames=[[given, given]])["pixel_values"]
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # the resized levels are not rounded
    dark = processor(frames=[[255 * scaled, 0 * scaled + 1]])["pixel_values"][0, 1]  # judged together: nearly black
    torch.testing.assert_close(dark, processor(frames=np.ones((9, 9, 3), np.uint8))["pixel_values"][0, 0])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.full((9, 9, 3), np.nan), "from nan to nan"),
        (np.full((9, 9, 3), 1.02), r"from 1\.02 to 1\.02"),
        (np.full((9, 9, 3), 60_000, np.uint16), "16-bit ones divided by 257"),
        (np.full((9, 9, 3), -3, np.int32), "from -3 to -3"),
    ],
)
def test_frames_of_another_range_are_refused(processor, frame, message):
    with pytest.raises(ValueError, match=message):
        processor(frames=[[frame]])


@pytest.mark.parametrize("form", ["bfloat16", "requires_grad"])
def test_tensors_as_a_model_has_them(processor, form):
    waveform = torch.from_numpy(sound()).float()
    given = waveform.bfloat16() if form == "bfloat16" else waveform.clone().requires_grad_()
    found = processor(audio=[given], sampling_rate=16000)["input_features"]
    expected = processor(audio=[given.detach().float().numpy()], sampling_rate=16000)["input_features"]
    torch.testing.assert_close(found, expected)


def test_normalised_frames_are_refused(processor):
    frame = np.linspace(-2, 2, 300, dtype=np.float32).reshape(10, 10, 3)
    with pytest.raises(ValueError, match=r"floats in \[0, 1\] or \[0, 255\], got values from -2 to 2\. .*do_rescale"):
        processor(frames=[[frame]])
    assert processor(frames=[[frame]], do_rescale=False)["pixel_values"].shape == (1, 1, 3, 224, 224)


def test_floats_of_the_size_of_integers_are_refused(processor):
    waveform = np.round(0.3 * 32768 * sound())
    with pytest.raises(ValueError, match=r"Waveform 0: Expected samples of floats in \[-1, 1\].*Divide them by 32768"):
        processor(audio=[waveform.astype(np.float32)], sampling_rate=16000)
    with pytest.raises(ValueError, match="integers of 64 bits.*dtype=np.int16"):
        processor(audio=[waveform.astype(int).tolist()], sampling_rate=16000)
    with pytest.raises(ValueError, match=r"got one of 30: these are the numbers of integers"):
        processor(audio=[np.round(30 * sound() / np.abs(sound()).max())], sampling_rate=16000)
    features = processor(audio=[waveform.astype(np.int16)], sampling_rate=16000)["input_features"][0]
    np.testing.assert_array_equal(features, log_mel(waveform / 32768))


@pytest.mark.parametrize("count", [1, 3, 10])
def test_as_many_seconds_as_frames(processor, count):
    waveform = sound(samples=16000 * count)
    inputs = processor(frames=[[photo()] * count], audio=[waveform], sampling_rate=16000)
    assert inputs["pixel_values"].shape[1] == inputs["input_features"].shape[1] == count
    examples = log_mel(waveform)
    np.testing.assert_array_equal(inputs["input_features"][0, : len(examples)], examples)
    assert processor(audio=[waveform], sampling_rate=16000)["input_features"].shape[1] == 5
