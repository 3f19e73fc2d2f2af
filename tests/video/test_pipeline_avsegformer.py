"""`pipeline("audio-visual-segmentation")`: masks of a video, its own size and rate."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerImageProcessor, AVSegFormerProcessor
from modeling_avsegformer.log_mel import log_mel
from modeling_avsegformer.video.overlay import COLOR, Panels, draw_overlay, draw_transparent

needs_av = pytest.mark.skipif(find_spec("av") is None, reason="needs PyAV, which reads videos: pip install av")


@pytest.fixture
def marking(pipe, monkeypatch):
    """marking(logit of (frame, sound)): the pipeline with a model that answers with one number all over a frame.

    What it was shown is recorded: [(number of frames, number of sounds), …].
    """

    def install(answer):
        shown = []

        def forward(inputs):
            frames, sounds = inputs["pixel_values"][0], inputs["input_features"]
            shown.append((len(frames), len(sounds)))
            logits = [
                [answer(frame, example) for frame, example in zip(frames, sound, strict=True)] for sound in sounds
            ]
            return {"logits": torch.tensor(logits)[..., None, None].expand(-1, -1, 8, 8)}

        monkeypatch.setattr(pipe, "forward", forward)
        return shown

    return install


def blueness(frame) -> float:
    """Which frame of `picture` this is: the blue of its red corner over 10."""
    mean, std = AVSegFormerImageProcessor.image_mean[2], AVSegFormerImageProcessor.image_std[2]
    return float(frame[2, 10, 10] * std + mean) * 25.5


def test_a_clip_gives_the_models_own_masks(pipe, tiny_model):
    """Frames and a waveform as in the data set; the oracle is processor and model by hand."""
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)) for _ in range(5)]
    waveform = rng.uniform(-1, 1, 80000).astype(np.float32)
    model = AVSegFormerForSegmentation.from_pretrained(tiny_model).eval()
    processor = AVSegFormerProcessor.from_pretrained(tiny_model)
    with torch.no_grad():
        outputs = model(**processor(frames=[frames], audio=[waveform], sampling_rate=16000))
    threshold = float(outputs.logits.sigmoid().median())
    expected = processor.post_process_segmentation(outputs, threshold, target_sizes=[(30, 50)])[0].numpy()
    assert 0.2 < expected.mean() < 0.8

    clip = {"frames": frames, "audio": waveform, "sampling_rate": 16000}
    found = pipe(clip, threshold=threshold)
    assert [moment["timestamp"] for moment in found] == [0, 1, 2, 3, 4]
    masks = np.stack([np.asarray(moment["mask"]) for moment in found])
    assert masks.shape == (5, 30, 50) and set(np.unique(masks)) == {0, 255}
    assert np.mean((masks > 0) == expected) > 0.999  # a pixel at the threshold may fall on either side
    similarity = [moment["similarity"] for moment in found]
    np.testing.assert_allclose(similarity, outputs.similarity[0], atol=1e-5)
    assert len(pipe([clip, clip])) == 2
    assert [len(masks) for masks in pipe(iter([clip, clip]), batch_size=2)] == [5, 5]


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_a_clip_may_have_any_number_of_frames(pipe, tiny_model, frames):
    """Frames are independent of each other, so a clip's are those of its beginning, and of clips of one frame."""
    rng = np.random.default_rng(1)
    images = list(rng.integers(0, 256, (7, 20, 30, 3), dtype=np.uint8))
    waveform = rng.uniform(-1, 1, 7 * 16000).astype(np.float32)
    clip = {"frames": images[:frames], "audio": {"array": waveform, "sampling_rate": 16000}}
    found = [np.asarray(moment["mask"]) for moment in pipe(clip)]
    assert len(found) == frames
    for second, mask in enumerate(found):
        sound = waveform[16000 * second : 16000 * (second + 1)]
        (alone,) = pipe({"frames": [images[second]], "audio": sound, "sampling_rate": 16000})
        assert np.mean(mask == np.asarray(alone["mask"])) > 0.95


@needs_av
def test_every_frame_has_a_mask_of_its_own_size(pipe, clip):
    masks = pipe(clip(size=(64, 48), rotation=90), masks_per_second=3)
    assert [round(moment["timestamp"], 3) for moment in masks] == [index / 10 for index in range(10)]
    assert {moment["mask"].size for moment in masks} == {(48, 64)}


@needs_av
def test_at_every_frame_the_masks_are_the_models(pipe, clip, tiny_model, read):
    """With more looks than frames nothing is interpolated; the oracle reads the file without our reader."""
    from modeling_avsegformer.video.sounds import Recording, hear

    path = clip(seconds=0.6)
    times, frames = read(path)
    model = AVSegFormerForSegmentation.from_pretrained(tiny_model).eval()
    processor = AVSegFormerProcessor.from_pretrained(tiny_model)
    inputs = processor(frames=[list(frames)])
    sound = Recording(path)
    inputs["input_features"] = torch.from_numpy(np.stack([log_mel(hear(sound, time)) for time in times])).squeeze(1)[
        None
    ]
    with torch.no_grad():
        outputs = model(**inputs)
    logits = outputs.logits
    threshold = float(logits.sigmoid().median())
    logits = F.interpolate(logits, size=(48, 64), mode="bilinear", align_corners=False)[0]
    expected = (logits.sigmoid() > threshold).numpy()
    moments = list(pipe.stream(path, masks_per_second=100, threshold=threshold))
    np.testing.assert_allclose([moment["similarity"] for moment in moments], outputs.similarity[0], atol=1e-4)
    found = np.stack([moment["mask"] for moment in moments])
    assert found.shape == expected.shape
    assert np.mean(found == expected) > 0.999


@needs_av
def test_several_videos_and_several_kinds(pipe, clip):
    """A list gives a list; what is read one after the other gives its results one after the other."""
    short, long = clip("short.mp4", seconds=0.3), clip("long.mp4", seconds=0.5)
    missing = short.with_name("missing.mp4")
    frames = {"frames": [np.zeros((9, 9, 3), np.uint8)], "audio": np.zeros(16000), "sampling_rate": 16000}
    found = pipe([short, str(long), frames], masks_per_second=2)
    assert [len(masks) for masks in found] == [3, 5, 1]
    results = pipe(path for path in (short, missing))
    assert len(next(results)) == 3
    with pytest.raises(FileNotFoundError, match="missing.mp4"):
        next(results)
    assert pipe([]) == []
    with pytest.raises(ValueError, match="Expected one video with `output`, `masks` or `panels`; call once for each"):
        pipe([short, long], output=missing)


@needs_av
def test_batches_of_looks(pipe, clip, marking):
    shown = marking(lambda frame, example: 1.0)
    path = clip(seconds=1.0)
    list(pipe.stream(path, masks_per_second=10, batch_size=4))
    assert shown == [(4, 1), (4, 1), (2, 1)]
    with pytest.raises(ValueError, match="Expected a `batch_size` of at least 1, got 0"):
        pipe(path, batch_size=0)


@needs_av
def test_between_two_looks_logits_are_interpolated(pipe, clip, marking):
    """The model answers -4.5 at frame 0, -1.5 at 3, 1.5 at 6, … : minus 4.5 plus the frame's number. At 10 frames a
    second and 10/3 looks a second only frames 0, 3, 6 and 9 are shown; a straight line goes through them."""
    shown = marking(lambda frame, example: round(blueness(frame)) - 4.5)
    masks = [bool(moment["mask"].all()) for moment in pipe.stream(clip(), masks_per_second=10 / 3)]
    assert masks == [False] * 5 + [True] * 5
    assert shown == [(4, 1)]


@needs_av
def test_each_frame_hears_its_own_second(pipe, clip, marking):
    """Silence for two seconds, then a tone: a window reaches half a second ahead."""
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(4 * 44100) / 44100) * (np.arange(4 * 44100) >= 2 * 44100)
    marking(lambda frame, example: 1.0 if example.max() > 0 else -1.0)
    found = list(pipe.stream(clip(seconds=4.0, rate=5, waveform=np.stack([tone, tone])), masks_per_second=5))
    heard = [moment["timestamp"] for moment in found if moment["mask"].all()]
    np.testing.assert_allclose(heard, np.arange(8, 20) / 5)  # from 1.6 s on


@needs_av
def test_after_the_last_look_the_mask_stays_and_looks_come_in_fives(pipe, clip, marking):
    shown = marking(lambda frame, example: 1.0 if round(blueness(frame)) >= 9 else -1.0)
    masks = [bool(moment["mask"].all()) for moment in pipe.stream(clip(seconds=1.2), masks_per_second=10 / 9)]
    assert masks == [False] * 5 + [True] * 7  # 0 and 9 are shown, the line crosses zero at 4.5; 10 and 11 stay
    assert shown == [(2, 1)]
    shown = marking(lambda frame, example: 1.0)
    list(pipe.stream(clip(seconds=1.2), masks_per_second=10))
    assert shown == [(5, 1), (5, 1), (2, 1)]


@needs_av
def test_each_condition_hears_its_own_sound(pipe, clip, tmp_path, marking, read, read_sound):
    """A model that marks what is loud: by the mean of the log-mel, tone 0.3, silence, noise, and a louder tone."""
    import soundfile

    levels = []

    def answer(frame, example):
        levels.append(round(float(example.mean()), 2))
        return 1.0 if example.mean() > -4.6 else -1.0

    shown = marking(answer)
    other = tmp_path / "other.wav"
    soundfile.write(other, 0.9 * np.sin(2 * np.pi * 1000 * np.arange(4000) / 16000), 16000)
    source = clip(size=(96, 64))
    written = pipe(source, panels=tmp_path / "panels.mp4", audio=other, masks_per_second=1)
    assert written == {"panels": tmp_path / "panels.mp4"}
    assert shown == [(1, 4)]  # one look, four sounds
    tone, silence, noise, off_screen = levels
    assert silence == pytest.approx(np.log(0.01), abs=0.01)
    assert silence < tone < off_screen < noise

    times, frames = read(tmp_path / "panels.mp4")
    assert len(times) == 10
    height, width = frames.shape[1:3]
    assert width == 4 * 96 and height > 64
    panels = frames[5, height - 64 :].reshape(64, 4, 96, 3).swapaxes(0, 1)
    # The grey part of the picture, covered half by the colour where the mask is.
    marked = [np.abs(panel[40:60, 60:90].mean((0, 1)) - (np.array(COLOR) + 40) / 2).max() < 12 for panel in panels]
    assert marked == [True, False, True, True]
    np.testing.assert_array_equal(read_sound(tmp_path / "panels.mp4")[2], read_sound(source)[2])


@needs_av
@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({}, 0.3 / 2**0.5),
        ({"condition": "silence"}, None),
        ({"condition": "noise"}, 0.1 / 3**0.5),  # a tenth of what the model hears
        ({"condition": "off_screen"}, None),
    ],
)
def test_the_outputs_sound_is_what_the_model_heard(pipe, clip, tmp_path, read_sound, options, level):
    pipe(clip(), output=tmp_path / "out.mp4", masks_per_second=1, **options)
    sound = read_sound(tmp_path / "out.mp4")
    assert (sound is None) == (options == {"condition": "silence"})
    if level is not None:
        assert np.sqrt(np.mean(sound[2][4000:12000] ** 2)) == pytest.approx(level, rel=0.1)


@needs_av
def test_a_sound_that_no_training_uses(pipe, clip, tmp_path, marking, read, read_sound):
    """`unseen` is one condition more; a written sound is the one that the model heard."""
    from avsbench_robust_dataset.timbres import unseen_sound

    expected = unseen_sound("bells", np.random.default_rng(42))
    marking(lambda frame, example: 1.0)
    pipe(clip(), output=tmp_path / "out.mkv", unseen="bells")
    found = read_sound(tmp_path / "out.mkv")[2][:16000]
    assert max(np.corrcoef(found[lag : lag + 12000], expected[:12000])[0, 1] for lag in range(4000)) > 0.95
    pipe(clip(), panels=tmp_path / "panels.mp4", unseen="bells")
    assert read(tmp_path / "panels.mp4")[1].shape[2] == 5 * 64


@needs_av
def test_each_sound_has_a_video_of_its_own(pipe, clip, tmp_path, marking, read):
    """`compare`: where noise is heard the model marks all, else nothing; it has no similarity head."""
    marking(lambda frame, example: 1.0 if example.mean() > 0 else -1.0)
    heard = pipe.compare(clip(size=(65, 49), pix_fmt="yuv444p"), tmp_path / "new", unseen="rain", muted=True)
    assert list(heard) == ["positive", "silence", "noise", "off_screen", "unseen", "muted"]
    assert [sound.area for sound in heard.values()] == [0, 0, 1, 0, 0, 0]
    assert {sound.similarity for sound in heard.values()} == {None}
    assert [sound.label for sound in heard.values()][3:] == [
        "off-screen: siren",
        "unseen: rain",
        "own sound, 3 of 5 s",
    ]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(f"{name}.mp4" for name in heard)
    frames = read(tmp_path / "new" / "noise.mp4")[1]
    assert frames.shape == (10, 48 + 16, 64, 3)  # even, and a bar with the name above
    pipe.compare(clip("large.mp4", size=(1200, 900), rotation=90, seconds=0.2), tmp_path / "large")
    large = read(tmp_path / "large" / "silence.mp4")[1][0]
    assert large.shape == (1200 + 56, 900, 3)
    pipe.compare(clip("wide.mp4", size=(1200, 900), seconds=0.2), tmp_path / "wide")
    wide = read(tmp_path / "wide" / "silence.mp4")[1][0]
    assert wide.shape == (720 + 60, 960, 3)
    np.testing.assert_allclose(wide[[160, -100], [100, -100]], [(200, 30, 0), (40, 40, 40)], atol=12)


@needs_av
def test_overlay_and_masks_agree(pipe, clip, tmp_path, read):
    threshold = 0.5
    path = clip(size=(65, 49), pix_fmt="yuv444p")
    masks = np.stack([moment["mask"] for moment in pipe.stream(path, threshold=threshold)])
    written = pipe(path, output=tmp_path / "out.mp4", masks=tmp_path / "masks.mov", threshold=threshold)
    assert list(written) == ["output", "masks"]
    assert np.array_equal(read(tmp_path / "masks.mov")[1][..., 3] > 0, masks)
    times, frames = read(tmp_path / "out.mp4")
    assert frames.shape == (10, 49, 65, 3)
    pipe(path, masks=tmp_path / "masks", threshold=threshold)
    files = sorted((tmp_path / "masks").iterdir())
    assert np.array_equal(np.stack([np.asarray(Image.open(file))[..., 3] > 0 for file in files]), masks)


@needs_av
def test_a_video_without_sound_is_heard_as_silence(pipe, clip, marking):
    levels = []
    marking(lambda frame, example: levels.append(float(example.mean())) or 1.0)
    assert len(pipe(clip(audio=None, seconds=0.3))) == 3
    np.testing.assert_allclose(levels, np.log(0.01), atol=1e-5)


@needs_av
def test_a_video_that_ends_early_is_reported(pipe, clip, caplog):
    """The second half is lost, as after an interrupted download."""
    path = clip("cut.mkv", seconds=4.0, codec="mjpeg", pix_fmt="yuvj420p")
    pipe(path, masks_per_second=1)
    assert not caplog.records
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    pipe(path, masks_per_second=1)
    (record,) = caplog.records
    assert re.search(r"cut.mkv ends after (1|2)\.\d s but says 4\.0 s: it may be cut off", record.getMessage())


@needs_av
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "clip.mp4"}, "Expected outputs unlike each other and unlike the video"),
        ({"output": "a.mp4", "panels": "a.mp4"}, "Expected outputs unlike each other"),
        ({"output": "a.gif"}, "Expected a video .* as output, got .*a.gif"),
        ({"masks": "a.mp4"}, r"Expected .webm, .mov \(videos with transparency\) or a folder"),
        ({"output": "a.mp4", "audio": "nothing.wav"}, "nothing.wav does not exist"),
        ({"output": "a.mp4", "audio": "mute.mp4"}, "mute.mp4 has no audio track"),
        ({"output": "a.mp4", "masks_per_second": 0}, "Expected `masks_per_second` above 0, got 0"),
        ({"output": "a.mp4", "threshold": 2}, "Expected a `threshold` between 0 and 1, got 2"),
        (
            {"condition": "slience"},
            "Expected one of positive, silence, noise, off_screen, unseen for `condition`, got 'slience'",
        ),
        ({"condition": "unseen"}, "Expected `unseen`, a kind of sound, with condition='unseen'"),
        ({"unseen": "bels"}, "Expected one of alarm, .*bells, guitar as unseen sound, got 'bels'"),
        ({"unseen": "bells", "condition": "noise"}, "Expected condition='unseen', which hears `unseen`"),
        ({"condition": "silence", "audio": "clip.mp4"}, "Expected condition='off_screen', which hears `audio`"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_written(pipe, clip, tmp_path, options, message):
    clip(), clip("mute.mp4", audio=None, seconds=0.2)
    paths = ("output", "masks", "panels", "audio")
    options = {name: tmp_path / value if name in paths else value for name, value in options.items()}
    before = sorted(tmp_path.iterdir())
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pipe(tmp_path / "clip.mp4", **options)
    assert sorted(tmp_path.iterdir()) == before


@needs_av
def test_damage_in_the_middle_leaves_nothing(pipe, clip, tmp_path):
    path = clip("clip.mov", codec="png", pix_fmt="rgb24")
    data = bytearray(path.read_bytes())
    place = -1
    for _ in range(8):
        place = data.index(b"\x89PNG", place + 1)
    data[place : place + 8] = bytes(8)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged after 0.60 s"):
        pipe(path, output=tmp_path / "out.mp4", masks=tmp_path / "masks", panels=tmp_path / "panels.mkv")
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mov"]


@pytest.mark.parametrize("inputs", [3, {"frames": []}])
def test_neither_a_video_nor_a_clip_is_said(pipe, inputs):
    with pytest.raises(
        ValueError, match=r"Expected a video's path or a clip \{'frames': .* got (int|dict with frames)\."
    ):
        pipe(inputs)


def test_a_foreign_processor_is_said(pipe):
    from modeling_avsegformer import AudioVisualSegmentationPipeline

    with pytest.raises(ValueError, match="Expected an AVSegFormerProcessor .* got VGGishFeatureExtractor"):
        AudioVisualSegmentationPipeline(pipe.model, processor=pipe.processor.feature_extractor, device="cpu")


def test_save_pretrained_keeps_model_and_processor(pipe, tmp_path):
    from transformers import pipeline

    pipe.save_pretrained(tmp_path)
    again = pipeline("audio-visual-segmentation", model=str(tmp_path), device="cpu")
    assert again.processor.to_dict() == pipe.processor.to_dict()
    clip = {"frames": [np.full((9, 9, 3), 99, np.uint8)], "audio": np.ones(16000), "sampling_rate": 16000}
    np.testing.assert_array_equal(again(clip)[0]["mask"], pipe(clip)[0]["mask"])


REMOTE = """
import sys
sys.modules["modeling_avsegformer"] = None
import numpy as np
from transformers import pipeline
clip = {"frames": [np.full((9, 9, 3), 99, np.uint8)], "audio": np.ones(16000), "sampling_rate": 16000}
for task in ("audio-visual-segmentation", None):
    segment = pipeline(task, model=sys.argv[1], trust_remote_code=True, device="cpu")
    assert type(segment).__module__.startswith("transformers_modules."), type(segment)
    print(np.asarray(segment(clip)[0]["mask"]).mean())
try:
    segment("clip.mp4")
except ValueError as error:
    print(error, file=sys.stderr)
"""


@pytest.mark.slow
def test_a_checkpoint_carries_its_pipeline_for_clips(pipe, tiny_model, tmp_path):
    """In a process without this package, from the folder alone; for videos the error says what to install."""
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, tiny_model],
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    frames = {"frames": [np.full((9, 9, 3), 99, np.uint8)], "audio": np.ones(16000), "sampling_rate": 16000}
    mean = np.asarray(pipe(frames)[0]["mask"]).mean()
    assert [float(line) for line in done.stdout.split()] == pytest.approx([mean, mean])
    assert "Videos need this project's package with PyAV" in done.stderr and "pip install '.[video]'" in done.stderr


@pytest.mark.slow
def test_without_pyav_the_package_imports_and_says_what_is_missing(tiny_model, tmp_path):
    code = """
import sys
from importlib.util import find_spec
sys.modules["av"] = None
from transformers import pipeline
import modeling_avsegformer
from modeling_avsegformer.video.segment_video import main
open("clip.mp4", "w").close()
sys.exit(main(["clip.mp4", "-o", "out.mp4"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "avs-segment: Expected PyAV, which reads and writes videos: pip install av" in done.stderr


MEMORY = """
import resource, sys
import torch
import modeling_avsegformer
from transformers import pipeline
torch.set_num_threads(1)
model, short, long, out = sys.argv[1:]
segment = pipeline("audio-visual-segmentation", model=model, device="cpu")
for video in (short, long):
    segment(video, output=out, masks_per_second=1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@needs_av
@pytest.mark.slow
def test_memory_does_not_grow_with_length(clip, tiny_model, tmp_path):
    """Forty seconds of 320x240 at 10 frames a second are 92 MB as RGB."""
    short = clip("short.mp4", seconds=8, size=(320, 240))
    long = clip("long.mp4", seconds=48, size=(320, 240))
    arguments = [tiny_model, str(short), str(long), str(tmp_path / "out.mp4")]
    done = subprocess.run([sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (int(line) / 1024 for line in done.stdout.split())  # MB
    assert second - first < 25


def test_a_mask_is_drawn_half_transparent_with_an_outline():
    frame = np.full((9, 11, 3), 100, np.uint8)
    mask = np.zeros((9, 11), bool)
    mask[2:7, 3:9] = True
    drawn = draw_overlay(frame, mask)
    np.testing.assert_array_equal(drawn[~mask], frame[~mask])
    np.testing.assert_array_equal(drawn[2, 3], COLOR)  # the outline, one pixel wide
    np.testing.assert_array_equal(drawn[4, 5], (np.array(COLOR) + 100) // 2)
    top = np.zeros_like(mask)
    top[:4] = True
    drawn = draw_overlay(frame, top)
    np.testing.assert_array_equal(drawn[[0, 3], 5], [(np.array(COLOR) + 100) // 2, COLOR])  # no line at the border
    transparent = draw_transparent(mask)
    np.testing.assert_array_equal(transparent[..., 3] == 255, mask)
    assert not transparent[~mask].any()


def test_panels_are_even_and_not_too_wide():
    panels = Panels(["own sound", "a very long name of a file that does not fit"], (65, 49))
    assert panels.panel_size == (64, 48) and panels.size[0] == 128 and panels.size[1] % 2 == 0
    left, right = np.full((49, 65, 3), 200, np.uint8), np.full((49, 65, 3), 90, np.uint8)
    drawn = panels.draw([left, right])
    assert drawn.shape[1::-1] == panels.size
    assert (drawn[-48:, :64] == 200).all() and (drawn[-48:, 64:] == 90).all()
    bar = drawn[:-48]
    assert bar[:, :64].max() > 150 and not bar[:, [0, -1, 64]].any()  # names stay inside their panel
    large = Panels(["a"], (1920, 1080))
    assert large.panel_size == (960, 540)
    mask = np.zeros((1080, 1920), bool)
    mask[200:600, 400:800] = True
    drawn = large.draw_overlays(np.full((1080, 1920, 3), 100, np.uint8), mask)[-540:]
    np.testing.assert_array_equal(drawn[150, 250], (np.array(COLOR) + 100) // 2)
    np.testing.assert_array_equal(drawn[[100, 99], 250], [COLOR, (100, 100, 100)])
