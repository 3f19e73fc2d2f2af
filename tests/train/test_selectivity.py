"""Clips that show a sounding and a silent object: which of the two does a model mark?"""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from avs_engine.clips import load_splits
from evaluate_accelerate import main
from evaluate_metrics.clip_rows import clip_row

CONDITIONS = ("positive", "silence", "noise", "off_screen")


def images(folder, clip_id):
    return np.stack([np.asarray(Image.open(folder / f"{clip_id}_{k}.png")) for k in range(1, 6)])


@pytest.fixture(scope="module")
def masks_of(demo_tree):
    """Bytes of a test clip's frames -> its masks and its silent masks, bool (5, 64, 64)."""
    media = Path(demo_tree) / "Single-source" / "s4_data"
    found = {}
    for frames in (media / "visual_frames" / "test").glob("*/*"):
        place = f"test/{frames.parent.name}/{frames.name}"
        masks = images(media / "gt_masks" / place, frames.name) > 0
        silent = media / "silent_masks" / place
        silent_masks = images(silent, frames.name) > 0 if silent.is_dir() else np.zeros_like(masks)
        found[images(frames, frames.name).tobytes()] = masks, silent_masks
    return found


@pytest.fixture(scope="module")
def clips_with_two(masks_of):
    """How many test clips show a sounding and a silent object in some frame."""
    count = sum((masks.any((1, 2)) & silent.any((1, 2))).any() for masks, silent in masks_of.values())
    assert 1 <= count < len(masks_of)
    return count


@pytest.fixture
def evaluate(demo_tree, tmp_path):
    def evaluate(name, *options, data_dir=demo_tree):
        main(["--cpu", "--subset", "demo", "--data_dir", data_dir, "--output_dir", str(tmp_path / name), *options])
        rows = [
            json.loads(line) for line in (tmp_path / name / "clips.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        return json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8")), rows

    return evaluate


@pytest.fixture
def listener(masks_of, monkeypatch):
    """The module `listener` with three models that know the masks."""
    module = ModuleType("listener")
    module.hears = lambda frames, waveform, rate: masks_of[frames.tobytes()][0].astype(np.float32)
    module.marks_both = lambda frames, waveform, rate: np.maximum(*masks_of[frames.tobytes()]).astype(np.float32)
    module.takes_the_other = lambda frames, waveform, rate: masks_of[frames.tobytes()][1].astype(np.float32)
    monkeypatch.setitem(sys.modules, "listener", module)


@pytest.mark.parametrize(
    ("function", "silent_share", "iou"), [("hears", 0, 1), ("marks_both", 1, None), ("takes_the_other", 1, 0)]
)
def test_a_callable_is_scored_where_two_objects_are_seen(
    evaluate, listener, masks_of, clips_with_two, function, silent_share, iou, capsys
):
    results, rows = evaluate("eval", "--model-fn", f"listener:{function}")
    scores = results["scores"]
    assert scores["selectivity_clips"] == clips_with_two == sum("selectivity" in row for row in rows)
    assert scores["selectivity_silent"] == silent_share
    if iou is None:  # the share of the sounding object in what both cover
        shares = []
        for masks, silent in masks_of.values():
            both = masks.any((1, 2)) & silent.any((1, 2))
            areas = masks.sum((1, 2))[both], silent.sum((1, 2))[both]
            shares += [np.mean(areas[0] / (areas[0] + areas[1]))] if both.any() else []
        iou = pytest.approx(np.mean(shares), abs=1e-9)
    assert scores["selectivity_miou"] == iou
    assert {"selectivity_miou", "selectivity_silent"} <= results["intervals"].keys()
    assert f"{clips_with_two} clips with several labelled objects" in capsys.readouterr().out


def test_png_masks_score_as_the_callable_that_wrote_them(evaluate, listener, tmp_path):
    written, _ = evaluate("written", "--model-fn", "listener:marks_both", "--save_predictions")
    read, _ = evaluate("read", "--predictions", str(tmp_path / "written" / "predictions"))
    keys = ("selectivity_miou", "selectivity_silent", "selectivity_clips")
    assert [read["scores"][key] for key in keys] == [written["scores"][key] for key in keys]


def test_a_network_is_scored_where_two_objects_are_seen(
    evaluate, tiny_model, demo_tree, masks_of, clips_with_two, tmp_path
):
    results, rows = evaluate("eval", "--model", tiny_model, "--save_predictions")
    assert results["scores"]["selectivity_clips"] == clips_with_two
    splits = load_splits("demo", demo_tree, 42, "test", CONDITIONS)
    for row, clip in zip(rows, splits["positive"], strict=True):
        masks, silent = masks_of[np.stack([np.asarray(frame) for frame in clip["frames"]]).tobytes()]
        folder = tmp_path / f"eval/predictions/positive/{clip['category']}/{clip['clip_id']}"
        probabilities = images(folder, clip["clip_id"]) / np.float32(255)
        metadata = {"clip_id": row["clip_id"]}
        expected = clip_row(metadata, masks, {"positive": probabilities}, silent_masks=silent)
        assert row.get("selectivity") == expected.get("selectivity")


@pytest.mark.parametrize("fault", ["missing", "of another size"])
def test_a_broken_silent_mask_is_named(evaluate, listener, demo_tree, tmp_path, fault):
    shutil.copytree(demo_tree, tmp_path / "data")
    path = sorted((tmp_path / "data").glob("*/*/silent_masks/test/*/*/*_3.png"))[0]
    if fault == "missing":
        path.unlink()
        error, words = FileNotFoundError, path.name
    else:
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(path)
        error, words = ValueError, f"{path.name}.*32 x 32"
    with pytest.raises(error, match=words):
        evaluate("eval", "--model-fn", "listener:hears", data_dir=str(tmp_path / "data"))


def test_a_tree_without_silent_masks_has_no_such_scores(evaluate, listener, demo_tree, tmp_path):
    shutil.copytree(demo_tree, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "Single-source" / "s4_data" / "silent_masks")
    results, rows = evaluate("eval", "--model-fn", "listener:hears", data_dir=str(tmp_path / "data"))
    assert not any("selectivity" in key for key in (*results["scores"], *results["intervals"]))
    assert not any("selectivity" in row for row in rows)
