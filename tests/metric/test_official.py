"""The released averages (`official=True`): against the stored values of the released functions, and against a loop."""

import doctest
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
METRIC = ROOT / "evaluate_metrics" / "avs_robust"
FIXTURES = np.load(ROOT / "tests" / "fixtures" / "metrics.npz")
WITH_CLIPS = [name for name in FIXTURES["names"] if len(FIXTURES[f"{name}/gt"]) % 5 == 0]


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    return evaluate.load(str(METRIC), cache_dir=str(tmp_path_factory.mktemp("metrics")), keep_in_memory=True)


@pytest.fixture
def module(metric):
    return sys.modules[type(metric).__module__]


def compute(metric, probabilities, masks, condition="positive", **options):
    return metric.compute(
        predictions=list(probabilities),
        references=list(masks),
        conditions=[condition] * len(masks),
        clip_ids=[str(index) for index in range(len(masks))],
        **options,
    )


def released_scores(probabilities, masks, batch_size):
    """mIoU, F, FPR of (N, T, H, W) as the released script averages: whole batches in float32 torch, plain loops.

    Written from the description of the released functions, not from their code.
    """
    mious, f_scores, fprs = [], [], []
    thresholds = torch.linspace(0, 1 - 1e-10, 255)
    for start in range(0, len(masks), batch_size):
        frames = torch.from_numpy(probabilities[start : start + batch_size]).flatten(0, 1)
        targets = torch.from_numpy(masks[start : start + batch_size]).flatten(0, 1).float()
        foreground = (frames > 0.5).float()
        ious, curves = [], []
        for frame, hard, target in zip(frames, foreground, targets, strict=True):
            if target.sum() == 0:
                ious.append(((1 - hard) * (1 - target)).sum() / (hard.numel() + 1e-7))
                continue
            ious.append((hard * target).sum() / (torch.maximum(hard, target).sum() + 1e-7))
            curve = torch.zeros(255)
            for index, threshold in enumerate(thresholds):
                binary = (frame >= threshold).float()
                precision = (binary * target).sum() / (binary.sum() + 1e-20)
                recall = (binary * target).sum() / (target.sum() + 1e-20)
                curve[index] = torch.nan_to_num(1.3 * precision * recall / (0.3 * precision + recall))
            curves.append(curve)
        mious.append(torch.stack(ious).mean())
        f_scores.append(torch.stack(curves).mean(0).max() if curves else torch.tensor(0.0))
        fprs.append(foreground.mean())
    return [float(torch.stack(values).mean()) for values in (mious, f_scores, fprs)]


@pytest.mark.parametrize("name", WITH_CLIPS)
def test_a_stored_batch_of_the_released_functions(metric, name):
    """Each stored case is one batch of clips of five frames; a batch of empty masks is 0, as there."""
    clips = len(FIXTURES[f"{name}/gt"]) // 5
    probabilities = torch.sigmoid(torch.from_numpy(FIXTURES[f"{name}/pred"])).unflatten(0, (clips, 5)).numpy()
    masks = FIXTURES[f"{name}/gt"].reshape(probabilities.shape)
    scores = compute(metric, probabilities, masks, official=True, batch_size=clips)
    assert scores["miou_positive"] == pytest.approx(float(FIXTURES[f"{name}/miou"]), abs=1e-6)
    assert scores["f_score_positive"] == pytest.approx(float(FIXTURES[f"{name}/fmeasure"]), abs=1e-6)
    assert scores["fpr_positive"] == pytest.approx(float(FIXTURES[f"{name}/fpr"]), abs=1e-6)


def test_there_are_stored_batches_of_several_clips():
    assert len(WITH_CLIPS) >= 2
    assert max(len(FIXTURES[f"{name}/gt"]) for name in WITH_CLIPS) >= 10


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9])
def test_a_loop_over_batches_agrees(metric, batch_size):
    """Five clips, of which one has no mask and another one lacks two of three; the last batch is short."""
    rng = np.random.default_rng(batch_size)
    probabilities = rng.random((5, 3, 6, 5), dtype=np.float32)
    masks = probabilities + rng.normal(0, 0.5, probabilities.shape) > 0.6
    masks[1] = masks[3, :2] = False
    scores = compute(metric, probabilities, masks, "noise", official=True, batch_size=batch_size)
    expected = released_scores(probabilities, masks, batch_size)
    assert [scores[f"{key}_noise"] for key in ("miou", "f_score", "fpr")] == pytest.approx(expected, abs=1e-6)
    assert (scores["clips_noise"], scores["clips_without_f_score_noise"]) == (5, 1)


def test_each_condition_has_its_batch_size_and_g_follows(metric, module):
    rng = np.random.default_rng(0)
    sizes = {"positive": 1, "silence": 2, "off_screen": 3}
    masks = rng.random((4, 2, 5, 4)) < 0.4
    by_condition = {}
    for condition, size in sizes.items():
        probabilities = rng.random(masks.shape, dtype=np.float32)
        miou, f_score, fpr = released_scores(probabilities, masks, size)
        by_condition[condition] = {"miou": miou, "f_score": f_score, "fpr": fpr}
        for index in range(len(masks)):
            metric.add(
                prediction=probabilities[index], reference=masks[index], condition=condition, clip_id=str(index)
            )
    scores = metric.compute(official=True, batch_size=sizes)
    for key, value in module.robust_scores(by_condition).items():
        assert scores[key] == pytest.approx(value, abs=1e-6)
    f_scores = {condition: values["f_score"] for condition, values in by_condition.items()}
    negative = (f_scores["silence"] + f_scores["off_screen"]) / 2
    expected = 2 * f_scores["positive"] * (1 - negative) / (f_scores["positive"] + 1 - negative)
    assert scores["g_f_score"] == pytest.approx(expected, abs=1e-6)


def test_clips_are_batched_in_the_order_in_which_they_were_added(metric):
    rng = np.random.default_rng(2)
    probabilities = rng.random((4, 2, 5, 4), dtype=np.float32)
    masks = rng.random(probabilities.shape) < 0.4
    for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
        for index in order:  # two conditions, interleaved
            for condition in ("silence", "positive"):
                metric.add(
                    prediction=probabilities[index], reference=masks[index], condition=condition, clip_id=f"{index}"
                )
        scores = metric.compute(official=True, batch_size=2)
        expected = released_scores(probabilities[order], masks[order], 2)[1]
        assert scores["f_score_positive"] == pytest.approx(expected, abs=1e-6)
        assert scores["f_score_silence"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (0, "at least 1, as `batch_size`, got 0"),
        (2.0, "got 2.0"),
        (True, "got True"),
        ({"positive": -1}, "got -1"),
        ({"slience": 1}, "in `batch_size`, got 'slience'"),
        ({"silence": 1}, r"Expected every condition .* missing: \['positive'\]"),
    ],
)
def test_bad_batch_sizes_are_refused_and_nothing_is_lost(metric, batch_size, message):
    metric.add(prediction=[[1.0]], reference=[[1]], condition="positive", clip_id="a")
    with pytest.raises(ValueError, match=message):
        metric.compute(official=True, batch_size=batch_size)
    assert metric.compute()["clips_positive"] == 1


def test_several_processes_have_no_order(tmp_path):
    metric = evaluate.load(str(METRIC), num_process=2, process_id=0, experiment_id="x", cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="single process with `official`, got 2"):
        metric.compute(official=True)


def test_rows_of_clips_average_to_the_scores(metric):
    rng = np.random.default_rng(3)
    masks = rng.random((3, 2, 5, 4)) < 0.4
    masks[0] = False
    for condition in ("noise", "positive"):
        for index in (2, 0, 1):
            metric.add(
                prediction=rng.random(masks[0].shape, dtype=np.float32),
                reference=masks[index],
                condition=condition,
                clip_id=f"clip_{index}",
            )
    scores = metric.compute(per_clip=True)
    rows = scores.pop("per_clip")
    assert [(row["condition"], row["clip_id"]) for row in rows] == [
        (condition, f"clip_{index}") for condition in ("positive", "noise") for index in range(3)
    ]
    assert [row["clip_id"] for row in rows if row["f_score"] is None] == ["clip_0", "clip_0"]
    for condition in ("positive", "noise"):
        for key in ("miou", "f_score", "fpr"):
            values = [row[key] for row in rows if row["condition"] == condition and row[key] is not None]
            assert np.mean(values) == pytest.approx(scores[f"{key}_{condition}"], abs=1e-12)
    assert all(isinstance(value, int | float) for value in scores.values())


def test_page_of_differences(monkeypatch):
    monkeypatch.chdir(ROOT)
    results = doctest.testfile(str(METRIC / "OFFICIAL.md"), module_relative=False, encoding="utf-8")
    assert results.attempted >= 20
    assert results.failed == 0
