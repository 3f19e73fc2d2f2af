"""A condition that is added to `CONDITIONS`, and to nothing else, is trained on and evaluated."""

import json
import sys

import numpy as np
import pytest
import torch

from avs_engine.clips import load_splits
from avs_engine.epochs import TrainingClips
from avs_engine.sounds import Sounds
from avs_engine.training_arguments import negative_conditions
from avsbench_robust_dataset.conditions import CONDITIONS, Condition, generator
from evaluate_accelerate import main
from modeling_avsegformer import AVSegFormerProcessor

LOUDNESS = """
import numpy as np

calls = []

def marks(frames, waveform, sampling_rate):
    calls.append(float(np.abs(waveform).mean()))
    return np.full(frames.shape[:3], 0.75)
"""


def hum(own, rng, partner):
    level = rng.bit_generator.random_raw() / 2**64
    return (np.sin(np.arange(80000) / 9) * level).astype(np.float32)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(CONDITIONS, "hum", Condition("hum", hum, is_random=True))


def heard(clip_id, split="test"):
    return hum(None, generator(42, "demo", split, "hum", clip_id), None)


def test_a_new_condition_is_evaluated(demo_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "marking_model.py").write_text(LOUDNESS)
    options = ["--cpu", "--subset", "demo", "--data_dir", demo_tree, "--output_dir", str(tmp_path / "out")]
    main([*options, "--model-fn", "marking_model:marks"])
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert results["settings"]["conditions"] == ["positive", "silence", "noise", "off_screen", "hum"]
    rows = [json.loads(line) for line in (tmp_path / "out/clips.jsonl").read_text(encoding="utf-8").splitlines()]
    calls = np.reshape(sys.modules.pop("marking_model").calls, (5, 5))
    expected = [np.abs(heard(row["clip_id"])).mean() for row in rows]
    np.testing.assert_allclose(calls[:, 4], expected, rtol=1e-6)
    assert results["extra_conditions"]["hum"]["fpr"] == 1 and "g_miou" in results["extra_conditions"]["hum"]


def test_a_new_condition_is_a_negative_in_training(demo_tree):
    negatives = negative_conditions(["hum=2", "silence"])
    assert list(negatives.items()) == [("silence", 1.0), ("hum", 2.0)]
    splits = load_splits("demo", demo_tree, 42, "train", ["positive", *negatives])
    processor = AVSegFormerProcessor()
    sounds = Sounds(processor, splits)
    items = TrainingClips(splits["positive"], sounds.keys, 0.5, negatives, seed=0)
    found = [index for index, (condition, _) in enumerate(items.plan) if condition == "hum"]
    assert found
    for index in found:
        clip_id = items.clip_ids[items.plan[index][1]]
        expected = processor(audio=[heard(clip_id, "train")], sampling_rate=16000).input_features[0]
        torch.testing.assert_close(sounds.stacked([items[index]["sound"]])[0], expected, rtol=0, atol=0)
        assert items[index]["audio_label"] == 0 and not items[index]["masks"].any()
