"""The evaluator against plain loops over the clips, and against itself in two processes."""

import json
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from avs_engine import sounds
from avs_engine.clips import DecodedClip, batches, evenly_spaced, load_splits
from avs_engine.data_facts import find_mute_clips
from avs_engine.models import check_model_path
from avs_engine.predict import AVSegFormerSegmenter, Segmented, predict, save_predictions
from avs_engine.provenance import git_revision
from avs_engine.scoring import evaluate_model, format_scores
from avs_engine.sounds import Sounds
from avsbench_robust_dataset.files import sha256
from evaluate_accelerate import main
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor
from train_accelerate import main as train

CONDITIONS = ("positive", "silence", "noise", "off_screen")


@pytest.fixture(scope="session")
def model_folder(write_model):
    """A model whose masks are neither empty nor full, on frames of another size than the masks."""
    return write_model(size=96)


def plain_probabilities(folder, split):
    """(T, H, W) of each clip of a split: one model call with raw inputs, one resize."""
    model = AVSegFormerForSegmentation.from_pretrained(folder).eval()
    processor = AVSegFormerProcessor.from_pretrained(folder)
    for clip in split:
        inputs = processor(frames=[clip["frames"]], audio=[np.array(clip["audio"]["array"])], sampling_rate=16000)
        with torch.no_grad():
            logits = model(**inputs).logits
        size = clip["masks"][0].size[::-1]
        yield clip, F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].sigmoid().numpy()


def test_scores_of_plain_loops(model_folder, demo_tree, tmp_path, capsys):
    arguments = ["--cpu", "--model", model_folder, "--subset", "demo", "--data_dir", demo_tree, "--batch_size", "2"]
    main([*arguments, "--output_dir", str(tmp_path / "eval"), "--save_predictions"])
    results = json.loads((tmp_path / "eval/results.json").read_text(encoding="utf-8"))
    scores = results["scores"]
    splits = load_splits("demo", demo_tree, 42, "test", CONDITIONS)
    means = {}
    for condition, split in splits.items():
        ious, areas = [], []
        for clip, probabilities in plain_probabilities(model_folder, split):
            name = clip["clip_id"]
            for k, (probability, mask) in enumerate(zip(probabilities, clip["masks"], strict=True), start=1):
                predicted, target = probability > 0.5, np.asarray(mask) > 0
                ious.append((predicted & target).sum() / (predicted | target).sum())
                areas.append(predicted.mean())
                png = Image.open(tmp_path / f"eval/predictions/{condition}/{clip['category']}/{name}/{name}_{k}.png")
                stored = np.asarray(png)
                assert stored.dtype == np.uint8 and stored.shape == (64, 64)
                assert np.abs(stored / 255 - probability).max() <= 0.5 / 255 + 1e-5
        means[condition] = np.mean(ious)
        assert scores[f"miou_{condition}"] == pytest.approx(np.mean(ious), abs=1e-6)
        assert scores[f"fpr_{condition}"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert 0.01 < means["positive"] < 0.99
    assert len({round(mean, 6) for mean in means.values()}) == 4, "the conditions cannot be told apart here"
    rest = 1 - np.mean([means[condition] for condition in CONDITIONS[1:]])
    assert scores["g_miou"] == pytest.approx(2 * means["positive"] * rest / (means["positive"] + rest), abs=1e-6)
    assert (results["model"], results["subset"], results["split"], results["clips"]) == (
        model_folder,
        "demo",
        "test",
        5,
    )
    assert results["settings"]["seed"] == 42 and results["settings"]["conditions"] == list(CONDITIONS)
    assert results["versions"]["torch"] == torch.__version__.split("+")[0]
    assert results["git_revision"] == git_revision()
    assert results["arguments"]["batch_size"] == 2 and results["arguments"]["data_dir"] == demo_tree
    assert "hub_token" not in results["arguments"] and "output_dir" not in results["arguments"]
    assert f"{scores['g_miou']:.4f}" in capsys.readouterr().out


def test_results_name_masks_draw_and_mute_clips(model_folder, demo_tree, tmp_path, capsys):
    """One clip of the test split is mute: it is its own silence twin, and another clip hears it off screen."""
    shutil.copytree(demo_tree, tmp_path / "data")
    wav = sorted((tmp_path / "data").glob("*/*/audio_wav/test/*/*.wav"))[2]
    soundfile.write(wav, np.zeros(80000), 16000)
    arguments = ["--cpu", "--model", model_folder, "--subset", "demo", "--data_dir", str(tmp_path / "data")]
    main([*arguments, "--output_dir", str(tmp_path / "eval")])
    results = json.loads((tmp_path / "eval/results.json").read_text(encoding="utf-8"))
    splits = load_splits("demo", str(tmp_path / "data"), 42, "test", CONDITIONS)
    hears = [clip["clip_id"] for clip in splits["off_screen"] if clip["audio_source"] == wav.stem]
    assert results["mute_clips"] == {"positive": [wav.stem], "off_screen": hears} and len(hears) == 1
    assert results["annotation"] == "object"
    uses = Counter(splits["off_screen"]["audio_source"][:])
    assert results["draw"]["name"] == "matched" and results["draw"]["clips"] == 5
    assert results["draw"]["sounds_unused"] == 5 - len(uses)
    assert results["draw"]["most_uses"] == max(uses.values())
    assert results["weights"]["sha256"] == {"model.safetensors": sha256(Path(model_folder) / "model.safetensors")}
    out = capsys.readouterr().out
    assert f"Mute clips, which hear silence in place of a recorded sound: 1 in their own sound ({wav.stem}), " in out
    assert "Off-screen draw: " in out and "Masks: those that were drawn" in out


def test_mute_recordings_in_unseen_dir_are_named(demo_tree, tmp_path):
    soundfile.write(tmp_path / "mute.wav", np.zeros(80000), 16000)
    splits = load_splits("demo", demo_tree, 42, "test", ["unseen"], folders={"unseen_dir": str(tmp_path)})
    clip_ids = splits["unseen"]["clip_id"][:]
    assert find_mute_clips(splits, tmp_path) == {"unseen": clip_ids} and find_mute_clips(splits) == {}


def test_two_processes_score_every_clip_once(model_folder, demo_tree, tmp_path, launch):
    """Five clips over two processes: shares of three and two; a sampler's padding would count one clip twice."""
    arguments = ["--model", model_folder, "--subset", "demo", "--data_dir", demo_tree, "--batch_size", "2"]
    main(["--cpu", *arguments, "--output_dir", str(tmp_path / "one")])
    launch("evaluate_accelerate.py", *arguments, "--output_dir", tmp_path / "two", processes=2)
    one, two = (json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8")) for name in ("one", "two"))
    assert two["settings"].pop("num_processes") == 2 and one["settings"].pop("num_processes") == 1
    assert two == one and two["scores"]["clips_positive"] == 5
    rows = [(tmp_path / name / "clips.jsonl").read_bytes() for name in ("one", "two")]
    assert rows[0] == rows[1] and len(rows[0].splitlines()) == 5, "not the same to the last digit"
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["clips.jsonl", "results.json"]


def test_sounds_and_batches_do_not_depend_on_the_processes(model_folder, demo_tree, monkeypatch):
    """What is computed together stays together: with two processes, and where two clips are done already."""
    splits = load_splits("demo", demo_tree, 42, "test", CONDITIONS)
    clip_ids = splits["positive"]["clip_id"][:]

    class Process:
        num_processes = 2

        def __init__(self, process_index):
            self.process_index = process_index

    def indices(accelerator, done=()):
        left, loaded = batches(splits["positive"], accelerator, 2, 0, done)
        return left, [[clip.index for clip in batch] for batch in loaded]

    assert indices(Process(0)) == ([0, 1, 2, 3, 4], [[0, 1], [4]])
    assert indices(Process(1)) == ([0, 1, 2, 3, 4], [[2, 3], []])
    assert indices(Process(0), {clip_ids[0], clip_ids[1], clip_ids[2]}) == ([2, 3, 4], [[2, 3]])
    processor = AVSegFormerProcessor.from_pretrained(model_folder)
    monkeypatch.setattr(sounds, "SOUND_BATCH", 3)
    seen = []

    def encoder(features):
        seen.append(features)
        return features.flatten(2)

    Sounds(processor, splits, encoder).prepare()
    whole, seen = seen, []
    Sounds(processor, splits, encoder).prepare([0])
    assert all(any(torch.equal(batch, other) for other in whole) for batch in seen) and len(seen) < len(whole)
    monkeypatch.setattr(sounds, "gather_object", lambda part: part)
    seen = []
    parts = [Sounds(processor, splits, encoder) for _ in range(2)]
    for index, part in enumerate(parts):
        part.prepare(accelerator=Process(index))
    assert not parts[0].features.keys() & parts[1].features.keys() and len(seen) == len(whole)
    assert all(any(torch.equal(batch, other) for other in whole) for batch in seen)


def test_images_once_a_clip_and_sounds_once(model_folder, demo_tree, monkeypatch, tmp_path):
    seen = {"images": 0, "sounds": 0}
    images, sounds = AVSegFormerForSegmentation.get_image_embeddings, AVSegFormerForSegmentation.get_audio_embeddings

    def count_images(self, pixel_values):
        seen["images"] += len(pixel_values)
        return images(self, pixel_values)

    def count_sounds(self, input_features):
        seen["sounds"] += len(input_features)
        return sounds(self, input_features)

    monkeypatch.setattr(AVSegFormerForSegmentation, "get_image_embeddings", count_images)
    monkeypatch.setattr(AVSegFormerForSegmentation, "get_audio_embeddings", count_sounds)
    backbone_calls = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: (
            backbone_calls.append(len(inputs[0])) if type(module).__name__ == "TimmFeatures" else None
        )
    )
    arguments = ["--cpu", "--model", model_folder, "--subset", "demo", "--data_dir", demo_tree]
    main([*arguments, "--output_dir", str(tmp_path)])
    hook.remove()
    assert seen["images"] == 5 and sum(backbone_calls) == 5 * 5
    # five sounds, each also an off-screen one (the draw is one to one), five noises, one silence
    assert seen["sounds"] == 5 + 5 + 1


def test_sounds_are_what_the_model_computes(model_folder, demo_tree):
    splits = load_splits("demo", demo_tree, 42, "test", CONDITIONS)
    model = AVSegFormerForSegmentation.from_pretrained(model_folder).eval()
    processor = AVSegFormerProcessor.from_pretrained(model_folder)
    encoded = Sounds(processor, splits, model.get_audio_embeddings)
    log_mels = Sounds(processor, splits)
    for condition, split in splits.items():
        for key, clip in zip(encoded.keys[condition], split, strict=True):
            inputs = processor(audio=[np.array(clip["audio"]["array"])], sampling_rate=16000)
            assert torch.equal(log_mels[key], inputs.input_features[0])
            with torch.no_grad():
                expected = model.get_audio_embeddings(inputs.input_features)[0]
            torch.testing.assert_close(encoded[key], expected, rtol=1e-5, atol=1e-6)
            assert not encoded[key].requires_grad


def test_the_released_front_end_treats_negatives_otherwise(model_folder, demo_tree):
    """The same waveform has VGGish's features as a positive and the released script's as an off-screen sound."""
    splits = load_splits("demo", demo_tree, 42, "test", CONDITIONS)
    ours = AVSegFormerProcessor.from_pretrained(model_folder)
    released = AVSegFormerProcessor.from_pretrained(model_folder, front_end="released")
    shared, split = (Sounds(processor, splits) for processor in (ours, released))
    for key in shared.keys["off_screen"]:
        torch.testing.assert_close(split[f"positive {key}"], shared[key], rtol=0, atol=0)
        assert (split[f"off_screen {key}"] - shared[key]).abs().max() > 1


def test_fewer_clips_and_conditions(model_folder, demo_tree, tmp_path):
    arguments = ["--cpu", "--model", model_folder, "--subset", "demo", "--data_dir", demo_tree, "--max_clips", "3"]
    main([*arguments, "--conditions", "silence", "positive", "--output_dir", str(tmp_path), "--split", "validation"])
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["clips"] == results["scores"]["clips_silence"] == 3
    assert results["settings"]["conditions"] == ["positive", "silence"]
    assert "miou_noise" not in results["scores"]
    assert results["scores"]["g_miou"] == results["scores"]["g_miou_silence"]


def test_evenly_spaced():
    assert evenly_spaced(4, None) == evenly_spaced(4, 9) == [0, 1, 2, 3]
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3452, 2) == [0, 1726]


def test_stored_masks_keep_the_threshold(tmp_path):
    """Where p > 0.5 decides, the 8-bit file decides the same: also one step above and below a half, and at it."""
    half = np.float32(0.5)
    values = np.array([0, np.nextafter(half, np.float32(0)), half, np.nextafter(half, np.float32(1)), 1], np.float32)
    clip = DecodedClip(0, "c", "dog", None, None)
    batch = [(clip, Segmented(values.reshape(1, 1, 1, 5)))]
    assert list(save_predictions([batch], ["noise"], tmp_path)) == [batch]
    stored = np.asarray(Image.open(tmp_path / "noise/dog/c/c_1.png"))
    assert ((stored / 255 > 0.5) == (values > 0.5)).all()
    assert stored[0, [0, 4]].tolist() == [0, 255]


def test_table():
    table = format_scores({"miou_positive": 0.5, "f_score_positive": 0.25, "fpr_positive": 0.125}, ["positive"])
    assert table.splitlines()[0].split() == ["condition", "mIoU", "pooled", "IoU", "F", "FPR"]
    assert table.splitlines()[1].split() == ["positive", "0.5000", "-", "0.2500", "0.1250"]
    assert len({len(line) for line in table.splitlines()}) == 1
    assert table.splitlines()[-1].split() == ["audio-blind", "floor", "-", "-", "-", "-"]


def test_conditions_of_different_clips(model_folder, demo_tree):
    splits = load_splits("demo", demo_tree, 42, "test", ("positive", "silence"))
    splits["silence"] = splits["silence"].select([1, 0, 2, 3, 4])
    with pytest.raises(ValueError, match="those of 'positive' and 'silence' differ"):
        evaluate_model(None, splits, Accelerator(cpu=True))


def test_nothing_is_written_where_the_data_is_missing(model_folder, tmp_path):
    arguments = ["--cpu", "--model", model_folder, "--subset", "s4", "--data_dir", str(tmp_path / "none")]
    with pytest.raises(FileNotFoundError, match="none"):
        main([*arguments, "--output_dir", str(tmp_path / "eval")])
    assert not (tmp_path / "eval").exists()


def with_garbage_as_pixels(png):
    """The PNG with the checksums of what it holds: only who decodes it finds that it is none."""
    start = png.index(b"IDAT")
    (length,) = struct.unpack(">I", png[start - 4 : start])
    chunk = b"IDAT" + b"\xff" * length
    return png[:start] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[start + 8 + length :]


@pytest.mark.slow
@pytest.mark.parametrize("cache_frames_gb", [0, 2])
def test_a_frame_that_cannot_be_decoded_is_named(cache_frames_gb, model_folder, demo_tree, tmp_path):
    """The build decodes masks, and of frames it looks at the checksums only."""
    shutil.copytree(demo_tree, tmp_path / "data")
    paths = [
        sorted((tmp_path / "data").glob(f"*/*/visual_frames/{split}/*/*/*_1.png"))[1] for split in ("train", "test")
    ]
    for path in paths:
        path.write_bytes(with_garbage_as_pixels(path.read_bytes()))
    common = ["--cpu", "--model", model_folder, "--subset", "demo", "--data_dir", str(tmp_path / "data")]
    with pytest.raises(ValueError, match=f"images that can be decoded, got {paths[1]}: "):
        main([*common, "--output_dir", str(tmp_path / "eval")])
    common += ["--validation_every", "0", "--epochs", "1", "--cache_frames_gb", str(cache_frames_gb)]
    with pytest.raises(ValueError, match=f"images that can be decoded, got {paths[0]}: "):
        train([*common, "--output_dir", str(tmp_path / "run")])


def test_a_model_that_is_not_there(demo_tree, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = ["--cpu", "--subset", "demo", "--data_dir", demo_tree, "--output_dir", str(tmp_path / "eval")]
    for model, said in [(tmp_path / "empty", "holds no config.json"), (tmp_path / "none", "does not exist")]:
        with pytest.raises(FileNotFoundError, match=f"{model}.*{said}"):
            main([*arguments, "--model", str(model)])
    assert not (tmp_path / "eval").exists()
    check_model_path("someone/avsegformer")  # may be on the Hub


def test_unknown_subset_and_condition(model_folder, demo_tree, tmp_path, capsys):
    arguments = ["--cpu", "--model", model_folder, "--data_dir", demo_tree, "--output_dir", str(tmp_path / "eval")]
    with pytest.raises(SystemExit):
        main([*arguments, "--subset", "s5"])
    assert "invalid choice: 's5' (choose from" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--subset", "demo", "--conditions", "slience"])
    assert "slience" in capsys.readouterr().err
    assert not (tmp_path / "eval").exists()
    assert PartialState().num_processes == 1


@pytest.mark.slow
def test_rows_of_another_model_are_not_taken(model_folder, demo_tree, tmp_path, monkeypatch):
    """An evaluation stops, the model is trained on under the same name, and the evaluation is repeated."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    arguments = ["--cpu", "--model", str(folder), "--subset", "demo", "--data_dir", demo_tree, "--batch_size", "1"]
    images, seen = AVSegFormerForSegmentation.get_image_embeddings, []

    def stop_at_the_third(self, pixel_values):
        seen.append(len(pixel_values))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return images(self, pixel_values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AVSegFormerForSegmentation, "get_image_embeddings", stop_at_the_third)
        main([*arguments, "--output_dir", str(tmp_path / "cut")])
    (journal,) = (tmp_path / "cut").glob("*.partial.jsonl")
    assert len(journal.read_text(encoding="utf-8").splitlines()) == 2
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: -tensor if name.startswith("mask_head") else tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    main([*arguments, "--output_dir", str(tmp_path / "cut")])
    main([*arguments, "--output_dir", str(tmp_path / "whole")])
    main([*arguments[:2], model_folder, *arguments[3:], "--output_dir", str(tmp_path / "before")])
    rows = {name: (tmp_path / name / "clips.jsonl").read_bytes() for name in ("cut", "whole", "before")}
    assert rows["cut"] == rows["whole"] != rows["before"]


class Ramp(torch.nn.Module):
    """A model whose logits rise by 1 a column and by 2 a row of a 2 x 2 picture, whatever is seen and heard."""

    def get_image_embeddings(self, pixel_values):
        return pixel_values

    def get_audio_embeddings(self, input_features):
        return input_features.mean((2, 3, 4))

    def forward(self, image_embeddings, audio_embeddings):
        logits = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(*image_embeddings.shape[:2], 2, 2)
        return SimpleNamespace(logits=logits, similarity=None)


def test_logits_are_resized_between_the_centres_of_pixels(model_folder, demo_tree):
    """From 2 x 2 to 64 x 64: the samples lie in the centres of pixels, so that the outer quarters are constant."""
    splits = load_splits("demo", demo_tree, 42, "test", ["positive"])
    segmenter = AVSegFormerSegmenter(Ramp(), AVSegFormerProcessor.from_pretrained(model_folder), batch_size=2)
    (_, prediction), *_ = next(predict(segmenter, splits, Accelerator(cpu=True)))
    place = (np.arange(64) + 0.5) * 2 / 64 - 0.5
    ramp = place.clip(0, 1)
    expected = 1 / (1 + np.exp(-(ramp[None, :] + 2 * ramp[:, None])))
    assert prediction.probabilities.shape == (1, 5, 64, 64)
    np.testing.assert_allclose(prediction.probabilities[0], np.broadcast_to(expected, (5, 64, 64)), atol=1e-6)
