"""One row of statistics a clip, and everything that is reported of them: scores, breakdowns, curves, AUROC.

A row is what a line of `clips.jsonl` holds:

    {"clip_id": str, "category": str, "group": str or None, "source_video": str, "mask_area": [a frame's fraction, …],
     "conditions": {condition: {"iou": [a frame, …], "area": [a frame's fraction predicted at > 0.5, …],
                                "intersection": [a frame's pixels, …], "union": [a frame's pixels, …],
                                "f_score": float or None, "fpr_curve": [fraction predicted at > each of THRESHOLDS],
                                "similarity": [a frame, …] or None,
                                "heard": [a frame, …]}},
     "selectivity": {"sounding_iou": float, "silent_share": float}}

Each metric of `avs_robust.METRICS` has its statistic under every condition. Lists over frames are as long as the clip
has masks (`similarity`: as it has frames). Clips that show several labelled objects alone have a "selectivity", and
conditions that are heard in some frames alone, such as `muted`, say in which ("heard").
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avsbench_robust_dataset.files import write_whole

from .avs_robust.avs_robust import (
    CONDITIONS,
    METRICS,
    NEGATIVE_CONDITIONS,
    SELECTIVITY,
    STATISTICS,
    check_clip,
    clip_statistics,
    condition_scores,
    flat_scores,
    partly_heard_values,
    with_partly_heard,
    without_repeats,
)
from .uncertainty import auroc_of_clips, bootstrap_settings, intervals, mean_intervals, source_clusters

__all__ = [
    "THRESHOLDS",
    "breakdown",
    "breakdown_intervals",
    "clip_row",
    "fpr_curve_intervals",
    "have_two_values",
    "results",
    "scores",
    "similarity_auroc",
    "write_rows",
]

THRESHOLDS = tuple(k / 10 for k in range(11))  # of the FPR curve
BREAKDOWN_RESAMPLES = 1000  # behind each interval of a breakdown


def clip_row(
    clip_metadata: Mapping[str, str | None],
    masks: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    similarity: Mapping[str, Sequence[float]] | None = None,
    silent_masks: np.ndarray | None = None,
) -> dict:
    """The row of one clip.

    Args:
        clip_metadata: its clip_id, category, group and source_video.
        masks: (K, H, W), 0 or 1.
        probabilities: condition -> (K, H, W) in [0, 1].
        similarity: condition -> one number a frame.
        silent_masks: (K, H, W), 0 or 1: the labelled objects that are visible and do not sound. The row has a
            "selectivity" if `positive` is scored and a frame shows both a sounding and a silent object.

    Raises:
        ValueError: shapes that differ, numbers out of range or NaN; names clip and condition.
    """
    row: dict[str, Any] = {**clip_metadata, "mask_area": [], "conditions": {}}
    for condition, frames in probabilities.items():
        name = f"clip {clip_metadata['clip_id']!r} ({condition})"
        flat, flat_masks = check_clip(frames, masks, name)
        prediction, reference = clip_statistics(flat, flat_masks)
        del prediction["curve_sum"]  # for the released averages alone
        row["mask_area"] = reference["area"]
        row["conditions"][condition] = {
            **prediction,
            "fpr_curve": [np.count_nonzero(flat > np.float32(threshold)) / flat.size for threshold in THRESHOLDS],
            "similarity": None if similarity is None else [float(value) for value in similarity[condition]],
        }
        if condition == "positive" and silent_masks is not None:
            silent = check_clip(frames, silent_masks, f"{name}, `silent_masks`")[1] != 0
            if found := _selectivity(flat > 0.5, flat_masks != 0, silent):
                row["selectivity"] = found
    return row


def _selectivity(predicted: np.ndarray, sounding: np.ndarray, silent: np.ndarray) -> dict[str, float] | None:
    """Does the mask follow the sound where there is a choice? None if no frame shows a sounding and a silent object.

    Args:
        predicted, sounding, silent (bool[K, P]): pixels that belong to both objects count as sounding.

    Returns:
        {"sounding_iou": IoU with the sounding object, "silent_share": share of the silent objects' area that is
        marked}, means over the frames that show both.
    """
    silent = silent & ~sounding
    both = sounding.any(axis=1) & silent.any(axis=1)
    if not both.any():
        return None
    predicted, sounding, silent = predicted[both], sounding[both], silent[both]
    ious = (predicted & sounding).sum(axis=1) / (predicted | sounding).sum(axis=1)
    shares = (predicted & silent).sum(axis=1) / silent.sum(axis=1)
    return {"sounding_iou": float(ious.mean()), "silent_share": float(shares.mean())}


def _of(rows: Iterable[Mapping], condition: str) -> list[Mapping]:
    return [row["conditions"][condition] for row in rows]


def _used(rows: Sequence[Mapping]) -> list[str]:
    """The conditions of the rows that are heard in all frames or in none, the benchmark's first."""
    names = [name for name, clip in rows[0]["conditions"].items() if not clip.get("heard")] if rows else []
    return [*(name for name in CONDITIONS if name in names), *(name for name in names if name not in CONDITIONS)]


def scores(rows: Sequence[Mapping], negatives: Iterable[str] = ()) -> dict[str, float]:
    """Every score of the clips in `rows`, as `results.json` has them.

    The scores of the benchmark's conditions are those that the metric returns.

    Args:
        negatives: other conditions under which nothing visible is heard, see `robust_scores`.
    """
    negatives = tuple(negatives)
    areas = [row["mask_area"] for row in rows] if all("mask_area" in row for row in rows) else None
    by_condition = {
        name: condition_scores(_of(rows, name), areas, name in (*NEGATIVE_CONDITIONS, *negatives))
        for name in _used(rows)
    }
    return (
        without_repeats(flat_scores(by_condition, negatives)) | _partly_heard_scores(rows) | _selectivity_scores(rows)
    )


def _partly_heard_scores(rows: Sequence[Mapping]) -> dict[str, float]:
    found: dict[str, float] = {}
    for condition in [name for name, clip in rows[0]["conditions"].items() if clip.get("heard")] if rows else []:
        values = np.array([partly_heard_values(clip) for clip in _of(rows, condition)])
        for key, of_clips in zip((f"miou_{condition}_heard", f"fpr_{condition}"), values.T, strict=True):
            if np.isfinite(of_clips).any():
                found[key] = float(np.nanmean(of_clips))
    return with_partly_heard(found)


def _selectivity_scores(rows: Sequence[Mapping]) -> dict[str, float]:
    clips = [row["selectivity"] for row in rows if row.get("selectivity")]
    if not clips:
        return {}
    means = {metric.key: float(np.mean([clip[metric.statistic] for clip in clips])) for metric in SELECTIVITY}
    return means | {"selectivity_clips": len(clips)}


def _extra_scores(found: Mapping[str, float], rows: Sequence[Mapping], negatives: Iterable[str]) -> dict[str, dict]:
    """condition -> {metric: score or None} of the conditions beyond the benchmark's."""
    extra: dict[str, dict] = {}
    for name in _used(rows):
        if name in CONDITIONS:
            continue
        extra[name] = {"clips": len(rows)}
        for metric in METRICS:
            value, general = (found.get(f"{key}_{name}") for key in (metric.key, f"g_{metric.key}"))
            if not metric.variant_of:
                extra[name][metric.key] = value
            if general is not None:
                extra[name][f"g_{metric.key}"] = general
            elif name in negatives and metric.general and not metric.is_harmonic:
                extra[name][f"g_{metric.key}"] = value
    return extra


def _grouped(rows: Iterable[Mapping], name_of: Callable[[Mapping], str | None]) -> dict[str, list[Mapping]]:
    groups: dict[str, list[Mapping]] = {}
    for row in rows:
        groups.setdefault(name_of(row) or "", []).append(row)
    return {name: groups[name] for name in sorted(groups) if name}  # "": unknown, as of MS3 without labels


def _area_bins(rows: Sequence[Mapping]) -> dict[str, str]:
    """clip id -> its quartile of the clips' mean mask area; a clip on an edge belongs to the lower one."""
    areas = {row["clip_id"]: float(np.mean(row["mask_area"])) for row in rows}
    edges = np.quantile(list(areas.values()), (0.25, 0.5, 0.75))
    bins: dict[int, list[str]] = {}
    for clip_id, area in areas.items():
        bins.setdefault(int(np.sum(area > edges)) + 1, []).append(clip_id)
    names: dict[str, str] = {}
    for number, clip_ids in bins.items():
        low, high = min(areas[c] for c in clip_ids), max(areas[c] for c in clip_ids)
        names |= dict.fromkeys(clip_ids, f"Q{number}: {low:.3g} to {high:.3g}")
    return names


def _by_frame(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """Number of the frame, from 1 -> rows of this frame alone, without what is one number a clip."""
    per_frame = STATISTICS | {"heard": True}
    frames: dict[str, list[Mapping]] = {}
    for k in range(max((len(row["mask_area"]) for row in rows), default=0)):
        frames[str(k + 1)] = [
            {
                **{key: value for key, value in row.items() if key != "selectivity"},
                "mask_area": [row["mask_area"][k]],
                "conditions": {
                    name: {
                        key: ([clip[key][k]] if is_list else None) for key, is_list in per_frame.items() if key in clip
                    }
                    for name, clip in row["conditions"].items()
                },
            }
            for row in rows
            if len(row["mask_area"]) > k
        ]
    return frames


def rows_by_part(rows: Sequence[Mapping]) -> dict[str, dict[str, list[Mapping]]]:
    """{"category" | "group" | "mask_area" | "frame": {name: rows of these clips, or of this frame of the clips}}.

    `mask_area` has the quartiles of the clips' mean mask area. Rows that do not say what they belong to are left out.
    """
    by_area = rows if rows and all(row.get("mask_area") for row in rows) else []
    bins = _area_bins(by_area) if by_area else {}
    return {
        "category": _grouped(rows, lambda row: row.get("category")),
        "group": _grouped(rows, lambda row: row.get("group")),
        "mask_area": _grouped(by_area, lambda row: bins[row["clip_id"]]),
        "frame": _by_frame(by_area),
    }


def breakdown(rows: Sequence[Mapping], negatives: Iterable[str] = ()) -> dict[str, dict[str, dict[str, float]]]:
    """The scores of each part of `rows_by_part`, nested as it is."""
    negatives = tuple(negatives)
    found = {
        key: {name: scores(part, negatives) for name, part in parts.items()}
        for key, parts in rows_by_part(rows).items()
    }
    for name, values in found["frame"].items():  # which has nothing that is one number a clip
        found["frame"][name] = {key: value for key, value in values.items() if not key.startswith("clips_without")}
    return found


def breakdown_intervals(
    rows: Sequence[Mapping], negatives: Iterable[str] = (), resamples: int = BREAKDOWN_RESAMPLES
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """The 95 % intervals of `breakdown`, nested as it is; a part of a single source video has {}."""
    negatives = tuple(negatives)
    return {
        key: {
            # A breakdown has no AUROC of the similarity.
            name: intervals(_without_similarity(part), extra_negatives=negatives, resamples=resamples)
            for name, part in parts.items()
        }
        for key, parts in rows_by_part(rows).items()
    }


def _without_similarity(rows: Iterable[Mapping]) -> list[dict]:
    return [
        {**row, "conditions": {name: clip | {"similarity": None} for name, clip in row["conditions"].items()}}
        for row in rows
    ]


def fpr_curve_intervals(rows: Sequence[Mapping]) -> dict[str, list[list[float]]]:
    """condition -> [low, high] for each of `THRESHOLDS`; {} for clips of a single source video.

    At 0.5 it is the interval of the condition's `fpr`.
    """
    clusters = source_clusters(rows)
    if clusters.max(initial=0) == 0:
        return {}
    names = _used(rows)
    curves = np.hstack([[clip["fpr_curve"] for clip in _of(rows, name)] for name in names])
    bounds = mean_intervals(curves, clusters).reshape(len(names), len(THRESHOLDS), 2)
    return dict(zip(names, bounds.tolist(), strict=True))


def similarity_auroc(rows: Sequence[Mapping], condition: str) -> float | None:
    """Probability that a positive clip has a higher mean similarity than another clip under `condition`.

    Ties count 1/2. None where the model has no similarity head, where `positive` or `condition` was not scored, and
    for a single clip.
    """
    means = []
    for name in ("positive", condition):
        clips = _of(rows, name) if name in _used(rows) else []
        if not clips or any(clip["similarity"] is None for clip in clips):
            return None
        means.append(np.array([np.mean(clip["similarity"]) for clip in clips]))
    return float(auroc_of_clips(*means).mean()) if len(rows) > 1 else None


def have_two_values(rows: Iterable[Mapping]) -> bool:
    """Whether every pixel of every prediction is 0 or one other value, by the rows' FPR curves; False without them.

    F, the maximum over thresholds, is higher for such masks.
    """
    curves = [clip.get("fpr_curve") for row in rows for clip in row["conditions"].values()]
    if not curves or not all(curves):
        return False
    steps = [[value for value in curve if value] for curve in curves]
    return all(len(set(step)) < 2 for step in steps) and len({len(step) for step in steps if step}) < 2


def results(rows: Sequence[Mapping], negatives: Iterable[str] = ()) -> dict:
    """What `results.json` says of the rows: scores, other conditions, breakdowns, AUROC, curves; 95 % intervals.

    Args:
        negatives: conditions beside the benchmark's under which nothing visible is heard.
    """
    negatives = tuple(negatives)
    found = scores(rows, negatives)
    of_negatives = [name for name in _used(rows) if name in NEGATIVE_CONDITIONS or name in negatives]
    curves = {name: np.mean([clip["fpr_curve"] for clip in _of(rows, name)], axis=0).tolist() for name in _used(rows)}
    return {
        "scores": found,
        "clips": len(rows),
        "intervals": intervals(rows, extra_negatives=negatives),
        "bootstrap": bootstrap_settings(rows),
        "extra_conditions": _extra_scores(found, rows, negatives),
        "similarity_auroc": {name: similarity_auroc(rows, name) for name in of_negatives},
        "fpr_curve": {"thresholds": list(THRESHOLDS), **curves},
        "fpr_curve_intervals": fpr_curve_intervals(rows),
        "breakdown": breakdown(rows, negatives),
        "breakdown_intervals": breakdown_intervals(rows, negatives),
    }


def write_rows(path: Path, rows: Iterable[Mapping]) -> None:
    """Writes one JSON line a row, the file whole or not at all."""
    write_whole(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
