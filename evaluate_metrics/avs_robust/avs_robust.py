"""Robustness scores of audio-visual segmentation: does the mask follow the sound, or only the picture?

Masks are reduced to a few numbers a clip when they are added, so memory does not grow with pixels.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import datasets
import evaluate
import numpy as np

CONDITIONS = ("positive", "silence", "noise", "off_screen")
NEGATIVE_CONDITIONS = tuple(name for name in CONDITIONS if name != "positive")

BETA_SQUARED = 0.3  # weight of recall against precision, as AVSBench (Zhou et al. 2022)

_STEP = float(np.float32(1) / np.float32(254))
_RANK = np.arange(255)
# torch.linspace(0, 1 - 1e-10, 255) bit for bit: it counts up from 0 in the first half and down from 1 in the second,
# in float32 with one rounding. The end is exactly 1.0, because 1 - 1e-10 is not a float32.
THRESHOLDS = np.where(_RANK < 127, _RANK * _STEP, 1 - (254 - _RANK) * _STEP).astype(np.float32)
_BLOCK = 25_088  # pixels, half a 224x224 frame: temporaries that fit the cache
_WRITER_BATCH_SIZE = 8  # rows, about 2 kB each, that wait in memory before the base class writes them to its file

_CITATION = """\
@article{li2025avsbench_robust,
  title   = {Do Audio-Visual Segmentation Models Truly Segment Sounding Objects?},
  author  = {Li, Jia and Zhao, Wenjie and Huang, Ziru and Guo, Yunhui and Tian, Yapeng},
  journal = {arXiv preprint arXiv:2502.00358},
  url     = {https://arxiv.org/abs/2502.00358},
  year    = {2025}
}
@inproceedings{zhou2022avs,
  title     = {Audio-Visual Segmentation},
  author    = {Zhou, Jinxing and Wang, Jianyuan and Zhang, Jiayi and Sun, Weixuan and Zhang, Jing and
               Birchfield, Stan and Guo, Dan and Kong, Lingpeng and Wang, Meng and Zhong, Yiran},
  booktitle = {European Conference on Computer Vision},
  url       = {https://arxiv.org/abs/2207.05042},
  year      = {2022}
}
"""

_DESCRIPTION = """\
Scores audio-visual segmentation with the sound that belongs to the picture (positive) and with sound that does not
(silence, noise, off_screen): mIoU, F-score and predicted area per condition, and G-mIoU, G-F and G-FPR, which are high
only if the masks are right when the object is heard and absent when it is not.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (array or tensor[N, T, H, W] or [N, H, W], or a list of N clips): probabilities in [0, 1], read in
        float32. N clips of T frames (a clip without T has one frame); sizes and T may differ between calls and, in a
        list, between clips.
    references (same shape): masks of the visible object, 0 or 1, the same ones in every condition. A soft mask
        with values between 0 and 1 is accepted and summed as the original code does.
    conditions (list of N str): "positive", "silence", "noise" or "off_screen".
    clip_ids (list of N str): a clip is added whole, once a condition, and in every condition that is used.

Args of `compute` alone:
    official (bool): average as the released code does, over batches; see OFFICIAL.md. Needs the clips in its order.
    batch_size (int, or dict of condition to int): clips a batch of the released code, with `official` only.
    per_clip (bool): also return each clip's scores.

Returns:
    dict of str to float or int. For each condition that was added:
        miou_{condition}: frame IoU at probability > 0.5, mean over a clip's frames, then over clips. An empty mask
            scores the fraction of its frame that is left empty; on negative conditions, where lower is better, it
            does not count, and a clip of such frames alone is left out.
        pooled_iou_{condition}: sum of the intersections of all frames over the sum of their unions, in pixels, as CAVP
            reports it; frames without an object do not count on negative conditions.
        f_score_{condition}: maximum over 255 thresholds of the F curve (beta squared 0.3), itself the mean over a
            clip's frames with a non-empty mask; then mean over clips. On negative conditions lower is better; never 0.
        fpr_{condition}: fraction of the frame predicted at probability > 0.5. A false-positive rate only on negative
            conditions, where nothing that is seen is heard.
        clips_{condition}, clips_without_f_score_{condition}: how many clips, and how many of them have only empty
            masks, hence no F-score.
    With N a negative condition's score and P the positive one:
        g_miou, g_f_score: 2 P (1 - N) / (P + 1 - N), N averaged over the negative conditions that were added.
        g_miou_{negative condition}, g_f_score_{negative condition}: the same for one of them.
        miou_released_{condition}, g_miou_released, g_miou_released_{negative condition}: the same with the released
            code's rule for empty masks, which count on negative conditions too; only where a score differs.
        g_fpr: mean of fpr over the negative conditions that were added. Lower is better.
        audio_blind_floor: 2 P (1 - P), the G-mIoU of the same masks if they never reacted to the sound.
    A score that is not defined (g_miou without negatives, say) has no key.
    With `official`, miou, f_score and fpr are means over batches of the frames' mean, f_score with the maximum over
    thresholds taken once a batch and 0 for a batch of empty masks; empty masks count on negative conditions. What is
    computed from them keeps its formula.
    With `per_clip`, per_clip: a list, sorted by condition and clip id, of dicts condition, clip_id, miou, f_score
    (None where they are not defined) and fpr, as they are before any average over clips.

Raises:
    ValueError: probabilities or masks out of range or NaN, shapes that disagree, an unknown condition, a clip added
        twice in a condition, a condition that lacks clips of another. Nothing of a refused batch is stored.
    `official` in several processes (there is no order of clips then), a batch size that is no positive int.

Examples:
    >>> metric = evaluate.load("./evaluate_metrics/avs_robust")  # doctest: +SKIP
    >>> metric = AVSRobust()
    >>> masks = [[[1, 0], [0, 0]]]  # one clip, one frame of 2x2 pixels
    >>> metric.add_batch(predictions=[[[0.9, 0.9], [0.1, 0.1]]], references=masks,
    ...                  conditions=["positive"], clip_ids=["dog_1"])
    >>> metric.add_batch(predictions=[[[0.1, 0.1], [0.1, 0.1]]], references=masks,
    ...                  conditions=["silence"], clip_ids=["dog_1"])
    >>> scores = metric.compute()
    >>> scores["miou_positive"], scores["miou_silence"], scores["fpr_silence"]
    (0.5, 0.0, 0.0)
    >>> round(scores["g_miou"], 6), scores["audio_blind_floor"]
    (0.666667, 0.5)
"""


@dataclass(frozen=True)
class Metric:
    """A row of the table of metrics.

    Attributes:
        key: `{key}_{condition}` names its score.
        label: its name in tables and charts.
        explanation: what the report tells its reader.
        statistic: the clip's statistic of which it is the mean.
        over: the statistic by whose sum over all clips that of `statistic` is divided; "": it is the mean over clips.
        per_frame: whether this statistic is a list of one number a frame. Else it is one number a clip, or None.
        heard, unheard: which values are better, "higher", "lower" or "", where the visible object is heard, and where
            nothing visible is heard.
        digits: decimals in tables.
        general: label of the score over all negative conditions; "" if there is none.
        is_harmonic: whether that score is the harmonic mean of the positive score and 1 - N; else it is N.
        objects_only: whether frames without an object are left out under negative conditions.
        variant_of: key of the metric whose scores it repeats, unless frames without an object make a difference.
        measure: makes the statistic, (probabilities float32[T, P], masks bool or float[T, P]) -> T numbers, one number
            or None. None: `clip_statistics` makes it.
    """

    key: str
    label: str
    explanation: str = ""
    statistic: str = ""
    over: str = ""
    per_frame: bool = True
    heard: str = ""
    unheard: str = ""
    digits: int = 3
    general: str = ""
    is_harmonic: bool = False
    objects_only: bool = False
    variant_of: str = ""
    measure: Callable | None = None


METRICS = (
    Metric(
        key="miou",
        label="mIoU",
        explanation=(
            "Intersection over union of the predicted mask (probability above 0.5) and the visible object's mask, per "
            "frame, averaged. Under negative audio the visible object is not heard, so overlap with it is an error; "
            "frames without an object do not count there. Under positive audio such a frame scores its share of "
            "pixels left empty."
        ),
        statistic="iou",
        heard="higher",
        unheard="lower",
        general="G-mIoU",
        is_harmonic=True,
        objects_only=True,
    ),
    Metric(
        key="pooled_iou",
        label="pooled IoU",
        explanation=(
            "Sum of all intersections over sum of all unions, in pixels, as CAVP reports it: large objects count "
            "more, where mIoU counts each frame once. Frames without an object do not count under negative audio."
        ),
        statistic="intersection",
        over="union",
        heard="higher",
        unheard="lower",
        objects_only=True,
    ),
    Metric(
        key="f_score",
        label="F",
        explanation=(
            "F-measure with β² = 0.3: the maximum over 255 thresholds of the curve averaged over a clip's frames, "
            "then averaged over clips. It cannot fall to 0 under negative audio: the lowest threshold admits every "
            "pixel."
        ),
        statistic="f_score",
        per_frame=False,
        heard="higher",
        unheard="lower",
        general="G-F",
        is_harmonic=True,
    ),
    Metric(
        key="fpr",
        label="FPR",
        explanation=(
            "Share of the picture that the predicted mask covers, averaged over frames. Under negative audio nothing "
            "visible is heard, so all of it is false; under positive audio it is only the predicted area."
        ),
        statistic="area",
        unheard="lower",
        general="G-FPR",
    ),
    Metric(
        key="miou_released",
        label="mIoU, released rule",
        explanation=(
            "mIoU as the released code averages it: a frame without an object counts under negative audio too, and "
            "scores its share of pixels left empty. It rewards masks painted over the whole of such frames."
        ),
        statistic="iou",
        heard="higher",
        unheard="lower",
        general="G-mIoU, released rule",
        is_harmonic=True,
        variant_of="miou",
    ),
)

STATISTICS = {row.statistic: row.per_frame for row in METRICS} | {row.over: True for row in METRICS if row.over}

# Of a clip that shows more than one labelled object, under its own sound; from the row's "selectivity".
SELECTIVITY = (
    Metric("selectivity_miou", "IoU with the sounding object", statistic="sounding_iou", heard="higher"),
    Metric("selectivity_silent", "silent objects marked", statistic="silent_share", heard="lower"),
)

# Of a condition in which some frames are heard and the others are not, as `muted`: the rows' "heard" says which.
# "{}" stands for the condition.
PARTLY_HEARD = (
    Metric("miou_{}_heard", "mIoU, heard frames", heard="higher"),
    Metric("fpr_{}", "FPR, other frames", heard="lower"),
    Metric("g_{}", "harmonic mean of mIoU and 1 − FPR", heard="higher"),
)


def harmonic_mean(a, b):
    """Harmonic mean of scores in [0, 1], numbers or arrays of one shape; 0 where both are 0, NaN where one is.

    >>> round(harmonic_mean(0.862, 1 - 0.862), 6)  # a model that never listens: P = N = 0.862
    0.237912
    """
    total = np.asarray(a + b, float)
    mean = np.divide(2 * a * b, total, out=np.zeros_like(total), where=~(total <= 0))
    return mean if mean.ndim else float(mean)


def threshold_counts(probabilities, mask):
    """Pixels at or above each of the 255 thresholds, and how much of the mask lies on them.

    Exact for float32 comparisons `probabilities >= threshold`, in one pass over the pixels instead of 255.

    Args:
        probabilities (float32[P]): in [0, 1].
        mask (bool[P] or float[P])

    Returns:
        (float64[255], float64[255]): predicted pixels, and the sum of the mask over them.
    """
    histograms = np.zeros((2, 255))  # off and on the mask
    for start in range(0, probabilities.size, _BLOCK):
        block, inside = probabilities[start : start + _BLOCK], mask[start : start + _BLOCK]
        rank = (block * np.float32(254) + np.float32(0.5)).astype(np.intp)
        # Only the nearest threshold can lie on the wrong side of the pixel, so that one comparison settles its rank.
        rank -= block < THRESHOLDS.take(rank)
        if mask.dtype == bool:
            histograms += np.bincount(rank + 255 * inside, minlength=510).reshape(2, 255)
        else:
            on_mask = np.bincount(rank, inside, minlength=255)
            histograms += np.bincount(rank, minlength=255) - on_mask, on_mask
    at_or_above = histograms[:, ::-1].cumsum(axis=1)[:, ::-1]
    return at_or_above.sum(axis=0), at_or_above[1]


def f_curve(predicted, hit, target):
    """F (beta squared 0.3) at each threshold: float64[255] from `threshold_counts` and the mask's area in pixels."""
    precision = hit / (predicted + 1e-20)
    recall = hit / (target + 1e-20)
    numerator = (1 + BETA_SQUARED) * precision * recall
    denominator = BETA_SQUARED * precision + recall
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _sums(frames):
    # count_nonzero is 20 times as fast as the sum
    return np.array([np.count_nonzero(f) if f.dtype == bool else f.sum(dtype=float) for f in frames])


def clip_statistics(probabilities, masks):
    """What is kept of one clip in one condition.

    Args:
        probabilities (float32[T, P]), masks (bool[T, P] or float[T, P]): T frames of P pixels.

    Returns:
        ({"iou", "area", "intersection", "union": T numbers each, "f_score": float or None, "curve_sum": float32[255]},
        {"area": T floats}): of the prediction and of the mask; areas as fractions of the frame, intersections and
        unions in pixels. `f_score` is None if every mask is empty. `curve_sum` adds up the F curves of the others.
    """
    pixels = probabilities.shape[1]
    foreground = probabilities > 0.5
    predicted, target, intersection = _sums(foreground), _sums(masks), _sums(foreground * masks)
    union = predicted + target - intersection
    curves = []
    for frame, mask, area in zip(probabilities, masks, target, strict=True):
        if area:
            at_threshold, hit = threshold_counts(frame, mask)
            curves.append(f_curve(at_threshold, hit, area))
    prediction: dict[str, object] = {
        # float32 as in the original, where 1e-7 vanishes beside a union of 2 pixels or more
        "iou": (
            np.where(target == 0, pixels - predicted, intersection).astype(np.float32)
            / (np.where(target == 0, pixels, union).astype(np.float32) + np.float32(1e-7))
        ).tolist(),
        "area": (predicted / pixels).tolist(),
        "intersection": intersection.tolist(),
        "union": union.tolist(),
        "f_score": float(np.mean(curves, axis=0).max()) if curves else None,
        "curve_sum": np.sum(curves, axis=0).astype(np.float32) if curves else np.zeros(255, np.float32),
    }
    prediction |= {row.statistic: row.measure(probabilities, masks) for row in METRICS if row.measure}
    return prediction, {"area": (target / pixels).tolist()}


def as_numpy(values):
    """`values` as a numpy array; a torch tensor on any device, with or without gradient, bfloat16 too.

    Torch is recognised by its methods and never imported.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # numpy has no such type; float32 holds every value of it
            values = values.float()
        return values.numpy()
    return np.asarray(values)


def check_clip(probabilities, masks, name):
    """One clip as (float32[T, P], bool[T, P] or float[T, P]) after every check that its pixels need.

    Raises:
        ValueError: names the clip, what was expected and what came.
    """
    arrays = []
    for argument, values in (("predictions", probabilities), ("references", masks)):
        array = as_numpy(values)
        if array.dtype.kind not in "bfiu":
            raise ValueError(f"Expected numbers in `{argument}`, got {array.dtype} for {name}.")
        if array.ndim not in (2, 3):
            raise ValueError(
                f"Expected (T, H, W) or (H, W) for a clip in `{argument}`, got shape {array.shape} for {name}. "
                "A batch is (N, T, H, W) or (N, H, W); remove a channel axis."
            )
        if array.size == 0:
            raise ValueError(f"Expected at least one frame and pixel in `{argument}`, got {array.shape} for {name}.")
        arrays.append(array)
    probabilities, masks = arrays
    if probabilities.shape != masks.shape:
        raise ValueError(
            f"Expected `predictions` and `references` of the same shape, got {probabilities.shape} and {masks.shape} "
            f"for {name}. Resize the probabilities to the masks."
        )
    low, high = probabilities.min(), probabilities.max()
    if not (low >= 0 and high <= 1):  # written so that NaN fails it
        raise ValueError(
            f"Expected probabilities in [0, 1] in `predictions`, got {low} to {high} for {name}. "
            "Apply a sigmoid to logits, divide 8-bit masks by 255, and look for NaN in the model."
        )
    if masks.dtype != bool:
        low, high = masks.min(), masks.max()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"Expected masks of 0 and 1 in `references`, got {low} to {high} for {name}. "
                "Binarise them, e.g. `masks > 0`."
            )
        binary = masks != 0
        if masks.dtype.kind != "f" or np.array_equal(masks, binary):
            masks = binary
    frames = probabilities.shape[0] if probabilities.ndim == 3 else 1
    return probabilities.reshape(frames, -1).astype(np.float32, copy=False), masks.reshape(frames, -1)


def check_labels(labels, argument, count):
    """`labels` as a list of `count` str; raises ValueError for anything else."""
    if isinstance(labels, str):
        raise ValueError(f"Expected a list of {count} str in `{argument}`, one a clip, got the str {labels!r}.")
    labels = list(labels)
    if len(labels) != count:
        raise ValueError(
            f"Expected one of `{argument}` for each of {count} clips in `predictions`, got {len(labels)}."
        )
    for label in labels:
        if not isinstance(label, str):
            raise ValueError(
                f"Expected str in `{argument}`, got {label!r} ({type(label).__name__}). "
                "A ClassLabel gives its name by `int2str`."
            )
    return labels


def check_keys(keys, known=()):
    """Raises ValueError if a (condition, clip id) comes twice, or again after `known`, or its condition is unknown."""
    seen = set(known)
    for condition, clip_id in keys:
        if condition not in CONDITIONS:
            raise ValueError(f"Expected one of {', '.join(CONDITIONS)} in `conditions`, got {condition!r}.")
        if (condition, clip_id) in seen:
            raise ValueError(
                f"Expected each clip once a condition, got clip {clip_id!r} in condition {condition!r} again. "
                "Add all frames of a clip at once; drop the samples that a distributed sampler repeats."
            )
        seen.add((condition, clip_id))


def check_batch_sizes(batch_size):
    """`batch_size`, an int or {condition: int}, as the latter; raises ValueError for anything else."""
    sizes = batch_size if isinstance(batch_size, dict) else dict.fromkeys(CONDITIONS, batch_size)
    for condition, size in sizes.items():
        if condition not in CONDITIONS:
            raise ValueError(f"Expected one of {', '.join(CONDITIONS)} in `batch_size`, got {condition!r}.")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"Expected a whole number of clips, at least 1, as `batch_size`, got {size!r}.")
    return sizes


def check_coverage(keys):
    """Raises ValueError if a condition that is used lacks a clip that another condition has."""
    clips: dict[str, set[str]] = {}
    for condition, clip_id in keys:
        clips.setdefault(condition, set()).add(clip_id)
    every_clip = set().union(*clips.values())
    for condition in clips:
        missing = sorted(every_clip - clips[condition])
        if missing:
            shown = ", ".join(repr(clip_id) for clip_id in missing[:5]) + (", …" if len(missing) > 5 else "")
            raise ValueError(
                f"Expected the same clips in every condition that is used, but {len(missing)} of {len(every_clip)} "
                f"have no {condition!r}: {shown}. Add them, or leave the clips or the condition out altogether."
            )


def clip_parts(metric, clip, mask_area=None, is_negative=False):
    """(a clip's part in the metric's sum over clips, and in what that is divided by), NaN where it has none.

    Args:
        metric: of `METRICS`.
        clip: the statistics of the prediction, see `clip_statistics`.
        mask_area (T floats): of the masks; None where they are unknown: then every frame counts.
        is_negative: whether nothing visible is heard under this condition.
    """
    found, over = clip.get(metric.statistic), clip.get(metric.over)
    if found is None or (metric.over and over is None):
        return float("nan"), float("nan")
    if not metric.per_frame:
        return float(found), 1.0
    counted = np.ones(len(found), dtype=bool)
    if is_negative and metric.objects_only and mask_area is not None:
        counted = np.array(mask_area) > 0
    found = np.array(found)[counted]
    if metric.over:
        return float(found.sum()), float(np.array(over)[counted].sum())
    return (float(found.mean()), 1.0) if len(found) else (float("nan"), float("nan"))


def condition_scores(predictions, mask_areas=None, is_negative=False):
    """Each metric over the clips of one condition, None if no clip defines it, and how many clips there are.

    Args:
        predictions: the clips' statistics.
        mask_areas: one list of areas a clip, see `clip_parts`.
        is_negative: whether nothing visible is heard under this condition.
    """
    areas = [None] * len(predictions) if mask_areas is None else mask_areas
    scores, without = {}, {}
    for metric in METRICS:
        parts = [clip_parts(metric, clip, area, is_negative) for clip, area in zip(predictions, areas, strict=True)]
        defined = np.array([pair for pair in parts if np.isfinite(pair[0])]).reshape(-1, 2)
        whole = defined[:, 1].sum()
        if metric.over:
            scores[metric.key] = float(defined[:, 0].sum() / whole) if whole else None
        else:
            scores[metric.key] = float(np.mean(defined[:, 0])) if len(defined) else None
        if not metric.per_frame:
            without[f"clips_without_{metric.key}"] = len(parts) - len(defined)
    return scores | {"clips": len(predictions)} | without


def official_condition_scores(predictions, references, curve_sums, batch_size):
    """`condition_scores` as the released code averages: clips in their order, `batch_size` a batch, mean of batches.

    A short last batch weighs as much as a full one. F is the maximum of the batch's mean curve, 0 if all its masks are
    empty.
    """
    mious, f_scores, areas = [], [], []
    for start in range(0, len(predictions), batch_size):
        batch = slice(start, start + batch_size)
        mious.append(np.mean(np.concatenate([clip["iou"] for clip in predictions[batch]])))
        areas.append(np.mean(np.concatenate([clip["area"] for clip in predictions[batch]])))
        frames = sum(np.count_nonzero(clip["area"]) for clip in references[batch])
        curve = np.sum(curve_sums[batch], axis=0, dtype=np.float64)
        f_scores.append(curve.max() / frames if frames else 0.0)
    scores = {"miou": float(np.mean(mious)), "f_score": float(np.mean(f_scores)), "fpr": float(np.mean(areas))}
    variants = {metric.key: None for metric in METRICS if metric.variant_of}
    return condition_scores(predictions) | scores | variants


def clip_scores(predictions, references, conditions, clip_ids):
    """Each clip's scores as a dict, sorted by condition and clip id; None where a score is not defined."""
    rows = []
    for clip, reference, condition, clip_id in zip(predictions, references, conditions, clip_ids, strict=True):
        values = {}
        for metric in METRICS:
            part, whole = clip_parts(metric, clip, reference["area"], condition in NEGATIVE_CONDITIONS)
            if not metric.variant_of:
                values[metric.key] = part / whole if np.isfinite(part) and whole else None
        rows.append({"condition": condition, "clip_id": clip_id, **values})
    return sorted(rows, key=lambda row: (CONDITIONS.index(row["condition"]), row["clip_id"]))


def _general_score(metric, positive, negatives):
    """A metric's score over several negative conditions, from the scores under each."""
    mean = np.mean(negatives, axis=0)
    mean = mean if mean.ndim else float(mean)
    return harmonic_mean(positive, 1 - mean) if metric.is_harmonic else mean


def robust_scores(by_condition, extra_negatives=()):
    """G-scores and the audio-blind floor, as far as defined.

    Args:
        by_condition: {condition: {metric: score}}, numbers or arrays of one shape (one element a resample).
        extra_negatives: conditions beside the benchmark's negative ones under which nothing visible is heard. Each has
            a harmonic mean of its own (`g_miou_unseen`) and a G-score that counts it beside the benchmark's
            (`g_miou_with_unseen`); the other G-scores leave it out.

    >>> scores = robust_scores({"positive": {"miou": 0.862}, "silence": {"miou": 0.862, "fpr": 0.2}})
    >>> round(scores["g_miou"], 4), round(scores["audio_blind_floor"], 4), scores["g_fpr"]
    (0.2379, 0.2379, 0.2)
    """
    scores = {}
    for metric in METRICS:
        key, positive = metric.key, by_condition.get("positive", {}).get(metric.key)
        if not metric.general or (metric.is_harmonic and positive is None):
            continue
        found = {name: of[key] for name, of in by_condition.items() if of.get(key) is not None}
        found = {name: value for name, value in found.items() if np.isfinite(value).any()}
        negatives = {name: found[name] for name in NEGATIVE_CONDITIONS if name in found}
        extra = {name: found[name] for name in extra_negatives if name in found}
        if negatives:
            scores[f"g_{key}"] = _general_score(metric, positive, list(negatives.values()))
            for name, value in extra.items():
                scores[f"g_{key}_with_{name}"] = _general_score(metric, positive, [*negatives.values(), value])
        if metric.is_harmonic:
            for name, value in (negatives | extra).items():
                scores[f"g_{key}_{name}"] = _general_score(metric, positive, [value])
    positive = by_condition.get("positive", {}).get("miou")
    if positive is not None:
        scores["audio_blind_floor"] = 2 * positive * (1 - positive)
    return scores


def partly_heard_values(clip):
    """A clip's mean IoU over the frames in which it is heard, and its mean predicted area over the others.

    Args:
        clip: the statistics of the prediction and "heard", one bool a frame. NaN where there is no such frame.
    """
    heard = np.array(clip["heard"], dtype=bool)
    parts = np.array(clip["iou"])[heard], np.array(clip["area"])[~heard]
    return tuple(float(part.mean()) if part.size else float("nan") for part in parts)


def partly_heard_conditions(scores):
    """The conditions of which `scores` has a mIoU over heard frames."""
    return [key[len("miou_") : -len("_heard")] for key in scores if key.startswith("miou_") and key.endswith("_heard")]


def with_partly_heard(scores):
    """`scores` and, of each of `partly_heard_conditions`, the harmonic mean of its mIoU and 1 - FPR, as `g_muted`."""
    means = {}
    for condition in partly_heard_conditions(scores):
        miou, fpr = scores[f"miou_{condition}_heard"], scores.get(f"fpr_{condition}")
        if fpr is not None:
            means[f"g_{condition}"] = harmonic_mean(miou, 1 - fpr)
    return scores | means


def flat_scores(by_condition, extra_negatives=()):
    """The scores of `by_condition` as `{metric}_{condition}`, and those of `robust_scores`; None has no key."""
    values = {f"{key}_{name}": v for name, of in by_condition.items() for key, v in of.items() if v is not None}
    return values | robust_scores(by_condition, extra_negatives)


def without_repeats(scores):
    """`scores` less those of a variant (`miou_released`) that equal, all of them, what it is a variant of."""
    for metric in METRICS:
        if not metric.variant_of:
            continue
        pairs = [(key, key.replace(metric.key, metric.variant_of)) for key in scores if metric.key in key]
        if all(other in scores and np.array_equal(scores[key], scores[other], equal_nan=True) for key, other in pairs):
            scores = {key: value for key, value in scores.items() if metric.key not in key}
    return scores


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AVSRobust(evaluate.Metric):
    file_paths: list[str] | None  # of the base class, which does not declare them
    filelocks: list | None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._added = {}  # (condition, clip id) -> the clip's `curve_sum`, of this process and in its order
        self.writer_batch_size = _WRITER_BATCH_SIZE

    def _info(self):
        # What is stored, not what the user hands over: a few numbers a clip instead of its pixels.
        number, numbers = datasets.Value("float64"), datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": {name: numbers if many else number for name, many in STATISTICS.items()},
                    "references": {"area": numbers},
                    "conditions": datasets.Value("string"),
                    "clip_ids": datasets.Value("string"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2502.00358", "https://arxiv.org/abs/2207.05042"],
        )

    def add_batch(self, *, predictions=None, references=None, conditions=None, clip_ids=None):
        """Reduces N clips to their statistics and stores those; a batch that is refused leaves nothing behind."""
        inputs = {"predictions": predictions, "references": references, "conditions": conditions, "clip_ids": clip_ids}
        missing = [name for name, values in inputs.items() if values is None]
        if missing:
            raise ValueError(f"Expected {', '.join(inputs)}; missing: {', '.join(missing)}.")
        # A tensor is moved and converted once for the batch, a list clip by clip: sizes may differ in it.
        predictions, references = (
            values if isinstance(values, list | tuple) else as_numpy(values) for values in (predictions, references)
        )
        for argument, values in (("predictions", predictions), ("references", references)):
            if not isinstance(values, list | tuple) and values.ndim not in (3, 4):
                raise ValueError(f"Expected (N, T, H, W) or (N, H, W) in `{argument}`, got shape {values.shape}.")
        count = len(predictions)
        if count == 0:
            raise ValueError("Expected at least one clip in `predictions`, got none.")
        if len(references) != count:
            raise ValueError(f"Expected as many `references` as `predictions`, got {len(references)} and {count}.")
        conditions = check_labels(conditions, "conditions", count)
        clip_ids = check_labels(clip_ids, "clip_ids", count)
        keys = list(zip(conditions, clip_ids, strict=True))
        check_keys(keys, self._added)
        rows = [
            clip_statistics(*check_clip(prediction, reference, f"clip {clip_id!r} ({condition})"))
            for prediction, reference, (condition, clip_id) in zip(predictions, references, keys, strict=True)
        ]
        # One by one: the base class collects rows that are added singly, but writes out every batch, about 1 ms each.
        for (prediction, reference), (condition, clip_id) in zip(rows, keys, strict=True):
            curve_sum = prediction.pop("curve_sum")  # kept out of the file: 1 kB a clip, for `official` only
            super().add(prediction=prediction, reference=reference, conditions=condition, clip_ids=clip_id)
            self._added[condition, clip_id] = curve_sum

    def add(self, *, prediction=None, reference=None, condition=None, clip_id=None, **batch_names):
        """Reduces one clip, (T, H, W) or (H, W), and stores its statistics.

        `batch_names` takes the same four under their names in `add_batch`: `evaluate.combine` calls it so.
        """
        clip = {"predictions": prediction, "references": reference, "conditions": condition, "clip_ids": clip_id}
        unknown = set(batch_names) - set(clip)
        if unknown:
            raise ValueError(
                f"Expected prediction, reference, condition and clip_id, got {', '.join(sorted(unknown))}."
            )
        clip |= batch_names
        self.add_batch(**{name: None if value is None else [value] for name, value in clip.items()})

    def compute(
        self,
        *,
        predictions=None,
        references=None,
        conditions=None,
        clip_ids=None,
        official=False,
        batch_size=1,
        per_clip=False,
    ):
        """Scores everything added since the last `compute`, then forgets it. None in processes other than the first.

        Where a condition lacks clips, a single process keeps what was added, so that they can be added still.
        """
        batch_sizes = check_batch_sizes(batch_size) if official else None
        if official and self.num_process > 1:
            raise ValueError(
                f"Expected a single process with `official`, got {self.num_process}: the released averages depend on "
                "the order of the clips, which several processes do not have. Gather the masks in one process."
            )
        inputs = {"predictions": predictions, "references": references, "conditions": conditions, "clip_ids": clip_ids}
        if any(values is not None for values in inputs.values()):
            self.add_batch(**inputs)
        if not self._added:
            raise ValueError(
                f"Expected at least one clip before `compute`, got none in process {self.process_id} of "
                f"{self.num_process}. Call `add_batch` first."
            )
        if self.num_process == 1:
            check_coverage(self._added)
        if batch_sizes is not None:
            absent = sorted({condition for condition, _ in self._added} - set(batch_sizes), key=CONDITIONS.index)
            if absent:
                raise ValueError(f"Expected every condition that is used in `batch_size`; missing: {absent}.")
        curve_sums, self._added = self._added, {}
        with ExitStack() as on_error:
            on_error.callback(self._release)
            scores = super().compute(batch_sizes=batch_sizes, curve_sums=curve_sums, per_clip=per_clip)
            on_error.pop_all()
        return scores

    def _release(self):
        """Gives back the stored rows and their locks, which the base class keeps if `_compute` raises."""
        self.data = self.writer = self.buf_writer = None
        for path, lock in zip(self.file_paths or [], self.filelocks or [], strict=True):
            if os.path.exists(path):
                os.remove(path)
            lock.release()
        self.file_paths = self.filelocks = None

    def _compute(
        self, predictions, references, conditions, clip_ids, batch_sizes=None, curve_sums=None, per_clip=False
    ):
        keys = list(zip(conditions, clip_ids, strict=True))
        check_keys(keys)  # the same clip may have been added in two processes
        check_coverage(keys)
        self._warn_of_other_masks(references, keys)
        by_condition = {}
        for name in CONDITIONS:
            places = [place for place, condition in enumerate(conditions) if condition == name]
            rows, targets = [predictions[place] for place in places], [references[place] for place in places]
            if not rows:
                continue
            if batch_sizes is None:
                areas = [target["area"] for target in targets]
                by_condition[name] = condition_scores(rows, areas, name in NEGATIVE_CONDITIONS)
            else:
                curves = [curve_sums[keys[place]] for place in places]
                by_condition[name] = official_condition_scores(rows, targets, curves, batch_sizes[name])
        scores = without_repeats(flat_scores(by_condition))
        return scores | ({"per_clip": clip_scores(predictions, references, conditions, clip_ids)} if per_clip else {})

    @staticmethod
    def _warn_of_other_masks(references, keys):
        """Says so if a clip's masks have another area in another condition: training's empty targets, most likely."""
        areas: dict[str, list[float]] = {}
        differing = set()
        for reference, (_, clip_id) in zip(references, keys, strict=True):
            if areas.setdefault(clip_id, reference["area"]) != reference["area"]:
                differing.add(clip_id)
        if differing:
            evaluate.utils.logging.get_logger(__name__).warning(
                f"{len(differing)} clips have other masks in one condition than in another, {min(differing)!r} among "
                "them. The benchmark compares with the visible object's masks in every condition."
            )
