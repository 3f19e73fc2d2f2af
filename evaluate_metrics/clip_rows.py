"""One row of statistics a clip, and everything that is reported of them: scores, breakdowns, curves, AUROC.

A row is what a line of `clips.jsonl` holds:

    {"clip_id": str, "category": str, "group": str or None, "source_video": str, "mask_area": [a frame's fraction, …],
     "conditions": {condition: {"iou": [a frame, …], "area": [a frame's fraction predicted at > 0.5, …],
                                "f_score": float or None, "fpr_curve": [fraction predicted at > each of THRESHOLDS],
                                "similarity": [a frame, …] or None}}}

Numbers are unrounded; lists over frames are in the frames' order, as long as the clip has masks (`similarity`: as it
has frames). Rows are what bootstrap intervals and comparisons are made from.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from avsbench_robust_dataset.files import write_whole

from .avs_robust.avs_robust import (
    CONDITIONS,
    NEGATIVE_CONDITIONS,
    check_clip,
    clip_statistics,
    condition_scores,
    harmonic_mean,
    robust_scores,
)
from .uncertainty import bootstrap_auroc, bootstrap_means, bootstrap_settings, interval, intervals, source_clusters

__all__ = [
    "THRESHOLDS",
    "breakdown",
    "breakdown_intervals",
    "clip_row",
    "fpr_curve_intervals",
    "results",
    "scores",
    "similarity_auroc",
    "write_rows",
]

THRESHOLDS = tuple(k / 10 for k in range(11))  # of the FPR curve
BREAKDOWN_RESAMPLES = 1000  # behind each interval of a breakdown


def clip_row(
    about: Mapping[str, str | None],
    masks: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    similarity: Mapping[str, Sequence[float]] | None = None,
) -> dict:
    """The row of one clip.

    Args:
        about: its clip_id, category, group and source_video.
        masks: (K, H, W), 0 or 1.
        probabilities: condition -> (K, H, W) in [0, 1].
        similarity: condition -> one number a frame.

    Raises:
        ValueError: shapes that differ, numbers out of range or NaN; names clip and condition.
    """
    row = {**about, "mask_area": [], "conditions": {}}
    for condition, frames in probabilities.items():
        flat, flat_masks = check_clip(frames, masks, f"clip {about['clip_id']!r} ({condition})")
        prediction, reference = clip_statistics(flat, flat_masks)
        row["mask_area"] = reference["area"]
        row["conditions"][condition] = {
            "iou": prediction["iou"],
            "area": prediction["area"],
            "f_score": prediction["f_score"],
            "fpr_curve": [np.count_nonzero(flat > np.float32(threshold)) / flat.size for threshold in THRESHOLDS],
            "similarity": None if similarity is None else [float(value) for value in similarity[condition]],
        }
    return row


def _of(rows: Iterable[dict], condition: str) -> list[dict]:
    return [row["conditions"][condition] for row in rows]


def _used(rows: Sequence[dict]) -> list[str]:
    return list(rows[0]["conditions"]) if rows else []


def scores(rows: Sequence[dict]) -> dict[str, float]:
    """What the metric returns for the clips of `rows`: the four conditions' scores and the G-scores."""
    by_condition = {name: condition_scores(_of(rows, name)) for name in CONDITIONS if name in _used(rows)}
    return _flat(by_condition)


def _flat(by_condition: dict[str, dict]) -> dict[str, float]:
    """{condition: {metric: value}} as the metric names it, and the G-scores that follow; None has no key."""
    values = {f"{key}_{name}": v for name, of in by_condition.items() for key, v in of.items() if v is not None}
    return values | robust_scores(by_condition)


def _further_scores(rows: Sequence[dict], negatives: Iterable[str]) -> dict[str, dict]:
    """condition -> mIoU, F, predicted area and clips of the conditions beyond the four; G-scores of negative ones."""
    positive = condition_scores(_of(rows, "positive")) if "positive" in _used(rows) else {}
    further = {}
    for name in _used(rows):
        if name in CONDITIONS:
            continue
        values = condition_scores(_of(rows, name))
        further[name] = {key: values[key] for key in ("miou", "f_score", "fpr", "clips")}
        if name in negatives:
            for key in ("miou", "f_score"):
                if positive.get(key) is not None and values[key] is not None:
                    further[name][f"g_{key}"] = harmonic_mean(positive[key], 1 - values[key])
            further[name]["g_fpr"] = values["fpr"]
    return further


def _grouped(rows: Iterable[dict], name_of: Callable[[dict], str | None]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(name_of(row) or "", []).append(row)
    return {name: groups[name] for name in sorted(groups) if name}  # "": unknown, as of MS3 without labels


def _area_bins(rows: Sequence[dict]) -> dict[str, str]:
    """clip id -> its quartile of the clips' mean mask area; a clip on an edge belongs to the lower one."""
    areas = {row["clip_id"]: float(np.mean(row["mask_area"])) for row in rows}
    edges = np.quantile(list(areas.values()), (0.25, 0.5, 0.75))
    bins: dict[int, list[str]] = {}
    for clip_id, area in areas.items():
        bins.setdefault(int(np.sum(area > edges)) + 1, []).append(clip_id)
    names = {}
    for number, clip_ids in bins.items():
        low, high = min(areas[c] for c in clip_ids), max(areas[c] for c in clip_ids)
        names |= dict.fromkeys(clip_ids, f"Q{number}: {low:.3g} to {high:.3g}")
    return names


def _by_frame(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Number of the frame, from 1 -> rows of this frame alone; without F, which is one number a clip."""
    frames = {}
    for k in range(max((len(row["mask_area"]) for row in rows), default=0)):
        frames[str(k + 1)] = [
            row
            | {
                "conditions": {
                    name: {"iou": [clip["iou"][k]], "area": [clip["area"][k]], "f_score": None}
                    for name, clip in row["conditions"].items()
                }
            }
            for row in rows
            if len(row["mask_area"]) > k
        ]
    return frames


def _parts(rows: Sequence[dict]) -> dict[str, dict[str, list[dict]]]:
    bins = _area_bins(rows) if rows else {}
    return {
        "category": _grouped(rows, lambda row: row["category"]),
        "group": _grouped(rows, lambda row: row["group"]),
        "mask_area": _grouped(rows, lambda row: bins[row["clip_id"]]),
        "frame": _by_frame(rows),
    }


def _part_scores(rows: Sequence[dict]) -> dict[str, float]:
    further = {name: condition_scores(_of(rows, name)) for name in _used(rows) if name not in CONDITIONS}
    keys = ("miou", "f_score", "fpr")
    found = scores(rows) | {f"{k}_{name}": of[k] for name, of in further.items() for k in keys}
    return {key: value for key, value in found.items() if value is not None}


def breakdown(rows: Sequence[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """{"category" | "group" | "mask_area" | "frame": {name: the metric's keys over these clips or frames}}.

    `mask_area` has the quartiles of the clips' mean mask area, as fractions of the frame. Conditions beyond the four
    have their mIoU, F and predicted area (`miou_unseen`, …).
    """
    found = {key: {name: _part_scores(part) for name, part in parts.items()} for key, parts in _parts(rows).items()}
    for number, values in found["frame"].items():
        found["frame"][number] = {key: value for key, value in values.items() if "f_score" not in key}
    return found


def breakdown_intervals(
    rows: Sequence[dict], resamples: int = BREAKDOWN_RESAMPLES
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """The 95 % intervals of `breakdown`, nested as it is; a part of a single source video has {}."""
    found = {}
    for key, parts in _parts(rows).items():
        found[key] = {}
        for name, part in parts.items():
            unheard = [_without_similarity(row) for row in part]  # whose AUROC a breakdown does not have
            found[key][name] = intervals(unheard, resamples=resamples)
    return found


def _without_similarity(row: dict) -> dict:
    return row | {"conditions": {name: clip | {"similarity": None} for name, clip in row["conditions"].items()}}


def fpr_curve_intervals(rows: Sequence[dict]) -> dict[str, list[list[float]]]:
    """condition -> [low, high] for each of `THRESHOLDS`; {} for clips of a single source video.

    From the resamples of `intervals`: at 0.5 it is the interval of the condition's `fpr`.
    """
    clusters = source_clusters(rows)
    if clusters.max(initial=0) == 0:
        return {}
    names = _used(rows)
    curves = np.hstack([[clip["fpr_curve"] for clip in _of(rows, name)] for name in names])
    bounds = [interval(samples) for samples in bootstrap_means(curves, clusters).T]
    count = len(THRESHOLDS)
    return {name: bounds[place * count : (place + 1) * count] for place, name in enumerate(names)}


def similarity_auroc(rows: Sequence[dict], condition: str) -> float | None:
    """Probability that a positive clip has a higher mean similarity than a clip under `condition`; ties count 1/2.

    None where the model has no similarity head, or `positive` or `condition` was not scored.
    """
    means = []
    for name in ("positive", condition):
        clips = _of(rows, name) if name in _used(rows) else []
        if not clips or any(clip["similarity"] is None for clip in clips):
            return None
        means.append(np.array([np.mean(clip["similarity"]) for clip in clips]))
    return bootstrap_auroc(*means, resamples=0)[0]


def results(rows: Sequence[dict], negatives: Iterable[str] = ()) -> dict:
    """What `results.json` says of the rows: scores, further conditions, breakdowns, AUROC, curves; 95 % intervals.

    Args:
        negatives: further conditions under which the clip's own sound is not heard.
    """
    negatives = tuple(negatives)
    of_negatives = [name for name in _used(rows) if name in NEGATIVE_CONDITIONS or name in negatives]
    curves = {name: np.mean([clip["fpr_curve"] for clip in _of(rows, name)], axis=0).tolist() for name in _used(rows)}
    return {
        "scores": scores(rows),
        "clips": len(rows),
        "intervals": intervals(rows, further_negatives=negatives),
        "bootstrap": bootstrap_settings(rows),
        "extra_conditions": _further_scores(rows, negatives),
        "similarity_auroc": {name: similarity_auroc(rows, name) for name in of_negatives},
        "fpr_curve": {"thresholds": list(THRESHOLDS), **curves},
        "fpr_curve_intervals": fpr_curve_intervals(rows),
        "breakdown": breakdown(rows),
        "breakdown_intervals": breakdown_intervals(rows),
    }


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Writes one JSON line a row, the file whole or not at all."""
    write_whole(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
