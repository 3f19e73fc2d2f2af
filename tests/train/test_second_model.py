"""A second model needs its own package and one adapter, a `Segmenter`: nothing of ours is touched to score it."""

import json
import sys

import numpy as np
import pytest
from accelerate import Accelerator

from avs_engine.clips import load_splits
from avs_engine.predict import Segmenter, load_segmenter
from avs_engine.scoring import evaluate_model
from evaluate_accelerate import main

# The model's package: it marks what is bright, in the frames of two clips at once, if anything is heard.
PACKAGE = """
import numpy as np


class Brightness:
    def __init__(self, threshold):
        self.threshold = threshold
        self.calls = []

    def __call__(self, frames, loudness):
        self.calls.append(len(frames))
        bright = frames.mean(-1) / 255 > self.threshold
        return np.where(loudness[:, None, None, None] > 0, bright * 0.75, 0.0)
"""
ADAPTER = """
import numpy as np

from avs_engine.predict import Segmented
from brightness import Brightness


class BrightnessSegmenter:
    batch_size = 2

    def __init__(self, threshold):
        self.model = Brightness(threshold)
        self.identity = {"threshold": threshold}

    def hear(self, splits, wanted, accelerator):
        self.loudness = {
            condition: {i: np.abs(np.array(split[i]["audio"]["array"])).mean() for i in wanted}
            for condition, split in splits.items()
        }

    def segment(self, clips):
        frames = np.stack([clip.frames for clip in clips])
        predicted = [
            self.model(frames, np.array([of_clip[clip.index] for clip in clips]))
            for of_clip in self.loudness.values()
        ]
        return [
            Segmented(np.stack([p[i, : len(clip.masks)] for p in predicted]).astype(np.float32))
            for i, clip in enumerate(clips)
        ]


segmenter = BrightnessSegmenter(0.4)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The two files lie in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "brightness.py").write_text(PACKAGE)
    (tmp_path / "brightness_segmenter.py").write_text(ADAPTER)
    yield
    for name in ("brightness", "brightness_segmenter"):
        sys.modules.pop(name, None)


def test_a_second_model_is_scored(installed, demo_tree, tmp_path):
    arguments = ["--cpu", "--subset", "demo", "--data_dir", demo_tree, "--output_dir", str(tmp_path / "eval")]
    main([*arguments, "--model-fn", "brightness_segmenter:segmenter"])
    segmenter = sys.modules["brightness_segmenter"].segmenter
    assert isinstance(segmenter, Segmenter)
    assert segmenter.model.calls == [2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1], "five clips by two, under four conditions"
    scores = json.loads((tmp_path / "eval/results.json").read_text(encoding="utf-8"))["scores"]
    splits = load_splits("demo", demo_tree, 42, "test", ["positive", "silence"])
    ious = [
        (bright & target).sum() / (bright | target).sum()
        for clip in splits["positive"]
        for frame, mask in zip(clip["frames"], clip["masks"], strict=True)
        for bright, target in [(np.asarray(frame).mean(-1) / 255 > 0.4, np.asarray(mask) > 0)]
    ]
    assert scores["miou_positive"] == pytest.approx(np.mean(ious), abs=1e-9) and 0 < np.mean(ious) < 1
    assert scores["fpr_silence"] == 0 == scores["miou_silence"]
    again = evaluate_model(load_segmenter("brightness_segmenter:segmenter"), splits, Accelerator(cpu=True))
    assert again["miou_positive"] == scores["miou_positive"]


def test_rows_of_other_settings_of_it_are_not_taken(installed, demo_tree, tmp_path, monkeypatch):
    """`identity` names the journal of an interrupted evaluation."""
    arguments = ["--cpu", "--subset", "demo", "--data_dir", demo_tree, "--output_dir", str(tmp_path / "eval")]
    segmenter = load_segmenter("brightness_segmenter:segmenter")
    segment = type(segmenter).segment

    def stop_at_the_second(self, clips):
        if self.model.calls:
            raise KeyboardInterrupt
        return segment(self, clips)

    monkeypatch.setattr(type(segmenter), "segment", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, "--model-fn", "brightness_segmenter:segmenter"])
    monkeypatch.setattr(type(segmenter), "segment", segment)
    segmenter.model.threshold = 0.6
    segmenter.identity = {"threshold": 0.6}
    segmenter.model.calls.clear()
    main([*arguments, "--model-fn", "brightness_segmenter:segmenter"])
    assert sum(segmenter.model.calls) == 5 * 4, "clips of the other threshold were taken"
