"""Rows of statistics against plain loops over pixels, and everything that is reported of them against the rows."""

import itertools
import json
import time

import numpy as np
import pytest

from evaluate_metrics.avs_robust.avs_robust import AVSRobust
from evaluate_metrics.clip_rows import (
    breakdown,
    breakdown_intervals,
    clip_row,
    results,
    scores,
    similarity_auroc,
    write_rows,
)
from evaluate_metrics.uncertainty import intervals, mean_intervals, source_clusters

CONDITIONS = ("positive", "silence", "noise", "off_screen")
THRESHOLDS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]


def clips(count=13, conditions=(*CONDITIONS, "unseen", "mixed_snr_0"), similarity=True):
    """(about, masks, {condition: probabilities}, {condition: similarity}): sizes, frames and areas differ."""
    rng = np.random.default_rng(7)
    for number in range(count):
        shape = (1 + number % 3, 5 + number % 2, 4)
        masks = rng.random(shape) < 0.05 + number / (2 * count)
        masks[0] = False if number == 4 else masks[0]
        about = {"clip_id": f"c{number:02d}", "category": "abc"[number % 3], "group": ("x", "y", None)[number % 3]}
        about["source_video"] = f"v{number // 2}"
        # eighths, so that thresholds are met exactly and similarities tie
        probabilities = {name: (rng.integers(0, 9, shape) / 8).astype(np.float32) for name in conditions}
        values = {name: (rng.integers(-2, 3 + (name == "positive"), 5) / 4).tolist() for name in conditions}
        yield about, masks, probabilities, values if similarity else None


def rows_of(**options):
    return [clip_row(*clip) for clip in clips(**options)]


def clip_miou(row, name):
    """Frames without an object do not count where nothing visible is heard; NaN if there are no others."""
    ious = row["conditions"][name]["iou"]
    if name not in ("positive", "mixed_snr_0"):
        ious = [iou for iou, area in zip(ious, row["mask_area"], strict=True) if area]
    return np.mean(ious) if ious else np.nan


def test_a_row_is_counted_pixel_by_pixel():
    for about, masks, probabilities, similarity in clips():
        row = clip_row(about, masks, probabilities, similarity)
        assert {name: row[name] for name in about} == about
        assert row["mask_area"] == [frame.sum() / frame.size for frame in masks]
        assert list(row["conditions"]) == list(probabilities)
        for name, frames in probabilities.items():
            got = row["conditions"][name]
            assert got["similarity"] == similarity[name]
            assert got["area"] == [(frame > 0.5).sum() / frame.size for frame in frames]
            ious = [
                ((p > 0.5) & m).sum() / ((p > 0.5) | m).sum() if m.any() else (p <= 0.5).mean()
                for p, m in zip(frames, masks, strict=True)
            ]
            assert got["iou"] == pytest.approx(ious, abs=1e-6)
            assert got["fpr_curve"] == [(frames > np.float32(t)).sum() / frames.size for t in THRESHOLDS]
            assert got["fpr_curve"][5] == pytest.approx(np.mean(got["area"])) and got["fpr_curve"][10] == 0


def test_eight_bit_probabilities_meet_the_thresholds_of_the_curve():
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).astype(np.float32) / np.float32(255)
    row = clip_row({"clip_id": "c"}, np.ones((1, 16, 16)), {"silence": frames})
    above = [sum(value * 10 > 255 * k for value in range(256)) for k in range(11)]  # in whole numbers
    assert [fraction * 256 for fraction in row["conditions"]["silence"]["fpr_curve"]] == above


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.5])
def test_bad_probabilities_name_clip_and_condition(value):
    frames = np.full((1, 2, 2), value, np.float32)
    with pytest.raises(ValueError, match=r"clip 'dog' \(noise\)"):
        clip_row({"clip_id": "dog"}, np.ones((1, 2, 2)), {"noise": frames})


def test_scores_are_the_metric_s(tmp_path):
    metric = AVSRobust(cache_dir=str(tmp_path), experiment_id="rows")
    for about, masks, probabilities, _ in clips():
        for name in CONDITIONS:
            metric.add(prediction=probabilities[name], reference=masks, condition=name, clip_id=about["clip_id"])
    expected = metric.compute()
    got = scores(rows_of())
    got = {key: value for key, value in got.items() if "unseen" not in key and "mixed" not in key}
    assert set(got) == set(expected)
    assert got == pytest.approx(expected, abs=1e-15)


def test_means_over_the_written_file_are_the_scores(tmp_path):
    rows = rows_of()
    found = results(rows, ["unseen"])
    write_rows(tmp_path / "clips.jsonl", rows)
    read = [json.loads(line) for line in (tmp_path / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    assert read == rows and [path.name for path in tmp_path.iterdir()] == ["clips.jsonl"]
    for name in CONDITIONS:
        of = [row["conditions"][name] for row in read]
        assert found["scores"][f"miou_{name}"] == pytest.approx(np.nanmean([clip_miou(r, name) for r in read]))
        assert found["scores"][f"fpr_{name}"] == pytest.approx(np.mean([np.mean(clip["area"]) for clip in of]))
        f_scores = [clip["f_score"] for clip in of if clip["f_score"] is not None]
        assert found["scores"][f"f_score_{name}"] == pytest.approx(np.mean(f_scores))
        assert found["fpr_curve"][name] == pytest.approx(np.mean([clip["fpr_curve"] for clip in of], axis=0))
    assert found["fpr_curve"]["thresholds"] == THRESHOLDS
    assert found["clips"] == found["bootstrap"]["clips"] == 13
    low, high = found["intervals"]["g_miou"]
    assert low < found["scores"]["g_miou"] < high
    json.dumps(found, allow_nan=False)


def test_extra_conditions_stand_beside_the_four():
    rows = rows_of()
    extra = results(rows, ["unseen"])["extra_conditions"]
    assert list(extra) == ["unseen", "mixed_snr_0"]
    for name in extra:
        of = [row["conditions"][name] for row in rows]
        assert extra[name]["miou"] == pytest.approx(np.nanmean([clip_miou(row, name) for row in rows]))
        assert extra[name]["fpr"] == pytest.approx(np.mean([np.mean(clip["area"]) for clip in of]))
        assert extra[name]["clips"] == 13
    assert set(extra["mixed_snr_0"]) == {"miou", "pooled_iou", "f_score", "fpr", "clips"}
    positive = scores(rows)["miou_positive"]
    rest = 1 - extra["unseen"]["miou"]
    assert extra["unseen"]["g_miou"] == pytest.approx(2 * positive * rest / (positive + rest))
    assert extra["unseen"]["g_fpr"] == extra["unseen"]["fpr"] and "g_f_score" in extra["unseen"]


def test_a_condition_with_nothing_heard_has_g_scores_with_and_without_it():
    rows = rows_of()
    four = [row | {"conditions": {name: row["conditions"][name] for name in CONDITIONS}} for row in rows]
    found = scores(rows, ["unseen"])
    assert {key: found[key] for key in scores(four)} == scores(four)
    for key in ("miou", "f_score"):
        negative = np.mean([found[f"{key}_{name}"] for name in (*CONDITIONS[1:], "unseen")])
        positive = found[f"{key}_positive"]
        expected = 2 * positive * (1 - negative) / (positive + 1 - negative)
        assert found[f"g_{key}_with_unseen"] == pytest.approx(expected)
    assert found["g_fpr_with_unseen"] == pytest.approx(
        np.mean([found[f"fpr_{name}"] for name in (*CONDITIONS[1:], "unseen")])
    )
    assert not any(key.startswith("g_") and "mixed" in key for key in found)
    bounds = results(rows, ["unseen"])["intervals"]
    assert {"miou_unseen", "g_miou_unseen", "g_miou_with_unseen", "g_fpr_with_unseen", "g_miou_released"} <= set(
        bounds
    )


def test_selectivity_counts_the_frames_that_show_both_objects():
    sounding, silent, marked = np.zeros((3, 3, 2, 4), bool)
    sounding[:2, :, :2] = True  # frames 1 and 2: the left half
    silent[0, :, 2:] = silent[2] = True  # frame 1: the right half; frame 3: everything, and nothing sounds
    silent[0, 0, 0] = True  # a pixel of both objects is the sounding one's
    marked[0, 0], marked[1], marked[2] = True, True, True  # frame 1: the upper row
    arguments = {"clip_id": "c"}, sounding, {"positive": marked.astype(float), "silence": 0.0 * marked}
    assert clip_row(*arguments, silent_masks=silent)["selectivity"] == {"sounding_iou": 2 / 6, "silent_share": 2 / 4}
    assert "selectivity" not in clip_row(*arguments)
    assert "selectivity" not in clip_row(*arguments, silent_masks=np.zeros_like(silent))
    with pytest.raises(ValueError, match="clip 'c' .positive., `silent_masks`"):
        clip_row(*arguments, silent_masks=silent[:2])


def test_selectivity_is_the_mean_over_the_clips_that_have_it():
    rows = rows_of()
    assert not any("selectivity" in key for key in scores(rows))
    for row, iou, share in zip(rows[:4], (0.9, 0.8, 0.5, 0.6), (0, 0.1, 0.4, 0.3), strict=True):
        row["selectivity"] = {"sounding_iou": iou, "silent_share": share}
    found = results(rows)
    assert found["scores"]["selectivity_miou"] == pytest.approx(0.7) and found["scores"]["selectivity_clips"] == 4
    assert found["scores"]["selectivity_silent"] == pytest.approx(0.2)
    low, high = found["intervals"]["selectivity_miou"]
    assert low < 0.7 < high and "selectivity_silent" in found["intervals"]


def test_breakdown_is_the_scores_of_the_parts():
    rows = rows_of()
    found = breakdown(rows, ["unseen"])
    assert {name: sorted(found[name]) for name in ("category", "group")} == {
        "category": ["a", "b", "c"],
        "group": ["x", "y"],  # the third is unknown
    }
    for key in ("category", "group"):
        for name, values in found[key].items():
            part = [row for row in rows if row[key] == name]
            assert values == scores(part, ["unseen"])
    areas = sorted((np.mean(row["mask_area"]), row["clip_id"]) for row in rows)
    first = [row for row in rows if row["clip_id"] in {clip_id for _, clip_id in areas[:4]}]
    bins = list(found["mask_area"])
    assert [name[:3] for name in bins] == ["Q1:", "Q2:", "Q3:", "Q4:"]
    assert bins[0] == f"Q1: {areas[0][0]:.3g} to {areas[3][0]:.3g}"
    assert found["mask_area"][bins[0]] == scores(first, ["unseen"])
    edges = [areas[k][0] for k in (3, 6, 9)]  # the quartiles of 13 values are values
    counts = [sum(sum(area > edge for edge in edges) == number for area, _ in areas) for number in range(4)]
    assert [found["mask_area"][name]["clips_positive"] for name in bins] == counts
    assert list(found["frame"]) == ["1", "2", "3"]
    for k, values in enumerate(found["frame"].values()):
        here = [row for row in rows if len(row["mask_area"]) > k]
        for name in (*CONDITIONS, "unseen", "mixed_snr_0"):
            # Frame 1 of clip 4 shows no object.
            seen = [row for row in here if row["mask_area"][k] or name in ("positive", "mixed_snr_0")]
            assert (len(seen) < len(here)) == (k == 0 and name not in ("positive", "mixed_snr_0"))
            ious = [row["conditions"][name]["iou"][k] for row in seen]
            assert values[f"miou_{name}"] == pytest.approx(np.mean(ious))
            areas = [row["conditions"][name]["area"][k] for row in here]
            assert values[f"fpr_{name}"] == pytest.approx(np.mean(areas))
        rest = 1 - np.mean([values[f"miou_{name}"] for name in CONDITIONS[1:]])
        expected = 2 * values["miou_positive"] * rest / (values["miou_positive"] + rest)
        assert values["g_miou"] == pytest.approx(expected)
        assert not any("f_score" in key and not key.startswith("clips") for key in values)


def test_every_score_of_a_breakdown_has_its_interval():
    rows = rows_of()
    found, bounds = (results(rows, ["unseen"])[key] for key in ("breakdown", "breakdown_intervals"))
    assert {key: list(parts) for key, parts in bounds.items()} == {key: list(parts) for key, parts in found.items()}
    for key, parts in found.items():
        for name, values in parts.items():
            assert bounds[key][name].keys() == {metric for metric in values if not metric.startswith("clips")}
    part = [row for row in rows if row["category"] == "b"]
    expected = intervals(part, extra_negatives=["unseen"], resamples=1000)
    got = bounds["category"]["b"]
    assert got == {metric: expected[metric] for metric in got}
    low, high = got["miou_positive"]
    assert low < found["category"]["b"]["miou_positive"] < high
    third = [row for row in rows if len(row["mask_area"]) > 2]
    ious = np.array([[row["conditions"]["noise"]["iou"][2]] for row in third])
    (expected,) = mean_intervals(ious, source_clusters(third), resamples=1000)
    assert bounds["frame"]["3"]["miou_noise"] == pytest.approx(expected)
    alone = [row for row in rows if row["source_video"] == "v1"]
    assert breakdown_intervals(alone)["frame"]["1"] == {} and results(alone)["fpr_curve_intervals"] == {}


def test_the_curve_has_intervals():
    rows = rows_of()
    found = results(rows, ["unseen"])
    curves = found["fpr_curve_intervals"]
    assert list(curves) == list(rows[0]["conditions"])
    for name, bounds in curves.items():
        assert bounds[5] == pytest.approx(found["intervals"][f"fpr_{name}"])  # the threshold of FPR
        assert len(bounds) == 11
        for (low, high), value in zip(bounds, found["fpr_curve"][name], strict=True):
            assert low <= value <= high and low < high  # no value of some clips is certain


@pytest.mark.slow
def test_the_intervals_of_s4_take_seconds():
    """740 clips of 23 categories."""
    rng = np.random.default_rng(0)
    curve = rng.random(11).tolist()
    clip = {"f_score": 0.5, "fpr_curve": curve, "similarity": None}
    rows = [
        {"clip_id": str(k), "category": str(k % 23), "group": "abcd"[k % 4], "source_video": str(k // 2)}
        | {"mask_area": rng.random(5).tolist()}
        | {"conditions": {c: clip | {"iou": rng.random(5), "area": rng.random(5)} for c in CONDITIONS}}
        for k in range(740)
    ]
    started = time.process_time()
    results(rows)
    assert time.process_time() - started < 10


def test_equal_areas_are_one_bin():
    ones = np.ones((1, 2, 2))
    rows = [clip_row({"clip_id": str(k), "category": "", "group": None}, ones, {"noise": ones}) for k in range(5)]
    assert list(breakdown(rows)["mask_area"]) == ["Q1: 1 to 1"]
    assert breakdown(rows)["category"] == {}


def test_auroc_counts_every_pair_of_two_clips():
    rows = rows_of()
    for name in (*CONDITIONS[1:], "unseen"):
        of = {c: [np.mean(row["conditions"][c]["similarity"]) for row in rows] for c in ("positive", name)}
        pairs = itertools.permutations(range(len(rows)), 2)  # a clip's own pair is left out
        wins = [(of["positive"][i] > of[name][j]) + (of["positive"][i] == of[name][j]) / 2 for i, j in pairs]
        assert similarity_auroc(rows, name) == pytest.approx(np.mean(wins), abs=1e-12)
    assert set(results(rows, ["unseen"])["similarity_auroc"]) == {"silence", "noise", "off_screen", "unseen"}


def test_no_auroc_without_similarities_or_positives():
    rows = rows_of(similarity=False)
    assert results(rows)["similarity_auroc"] == {"silence": None, "noise": None, "off_screen": None}
    rows = rows_of(conditions=("silence",))
    assert similarity_auroc(rows, "silence") is None
    assert "g_miou" not in results(rows)["scores"] and results(rows)["extra_conditions"] == {}


def test_the_silent_share_is_of_the_silent_object_not_of_what_is_marked():
    """Marked are all 4 pixels of the sounding object and 1 of the 2 of the silent one."""
    sounding, silent, marked = np.zeros((3, 1, 3, 4), dtype=np.uint8)
    sounding[0, 0], silent[0, 2, :2], marked[0, 0], marked[0, 2, 0] = 1, 1, 1, 1
    metadata = {"clip_id": "c", "category": "x", "group": None, "source_video": "c"}
    row = clip_row(metadata, sounding, {"positive": marked.astype(np.float32)}, silent_masks=silent)
    assert row["selectivity"] == {"sounding_iou": 0.8, "silent_share": 0.5}
