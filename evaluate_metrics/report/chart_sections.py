"""The report's charts, section by section: by condition, over the threshold, by category and part, over training."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import uncertainty
from ..avs_robust.avs_robust import METRICS
from ..clip_rows import THRESHOLDS, rows_by_part
from ..results import Run, extra_negatives
from . import charts, overlay
from .markup import figures
from .tables import (
    SWEEP,
    Cell,
    Section,
    are_comparable,
    conditions_of,
    has_seeds,
    is_negative,
    label_of,
    mean,
    number,
    seed_values,
    sound_of,
)

_MAX_CATEGORIES = 30  # bars of one chart; MS3 has nearly as many categories as clips


@dataclass(frozen=True)
class Evidence:
    """What every section of the page draws on.

    Attributes:
        sections: of the table of scores.
        cells: model -> metric -> its `Cell`.
        intervals: model -> metric -> (low, high).
        differences: metric -> the second model's score less the first's, where there are two with the same clips.
        explanation: how to read the differences.
    """

    runs: Sequence[Run]
    models: Mapping[str, Sequence[Run]]
    colors: Mapping[str, str]
    sections: Sequence[Section]
    cells: Mapping[str, Mapping[str, Cell]]
    intervals: Mapping[str, Mapping[str, Sequence[float]]]
    differences: Mapping[str, uncertainty.Difference]
    explanation: Sequence[str]

    @property
    def has_differences(self) -> bool:
        """Whether the second model's scores less the first's may be shown."""
        return len(self.models) == 2 and are_comparable(self.runs)


def conditions_html(evidence):
    every = conditions_of(evidence.runs)
    conditions = [c for c in every if not SWEEP.fullmatch(c)]
    found = []
    for metric in METRICS:
        if metric.variant_of:
            continue
        keys = [f"{metric.key}_{c}" for c in conditions]
        values = {name: [seed_values(seeds, k) for k in keys] for name, seeds in evidence.models.items()}
        bounds = {name: [evidence.intervals[name].get(k) for k in keys] for name in evidence.models}
        # What is neither good nor bad under positive audio has a scale of its own.
        top = 1 if metric.heard else None
        title = f"{metric.label}: {_good_values(metric)}"
        found += _bars(
            title, [label_of(c) for c in conditions], values, bounds, metric.digits - bool(metric.heard), top
        )
    found += _sweeps(evidence, every)
    seeds = "Bars are means over the seeds, dots the seeds. " if has_seeds(evidence.models) else ""
    return figures(found, f"{seeds}{_whisker_hint(evidence)}FPR has a scale of its own.")


def _good_values(metric):
    """Which values are good, in words."""
    words = {"higher": "high", "lower": "low", "": "any"}
    if not metric.heard:
        return f"{words[metric.unheard]} except under positive"
    return f"{words[metric.heard]} under positive, {words[metric.unheard]} elsewhere"


def _sweeps(evidence, conditions):
    """A line chart of mIoU for each kind of sound that is mixed in at several signal-to-noise ratios."""
    kinds: dict[str, dict[float, str]] = {}
    for condition in conditions:
        if sweep := SWEEP.fullmatch(condition):
            kinds.setdefault(sweep[1], {})[float(sweep[2])] = f"miou_{condition}"
    found = []
    for kind, keys in kinds.items():
        ratios = sorted(keys)
        values, bands = {}, {}
        for name, seeds in evidence.models.items():
            values[name] = [mean(seed_values(seeds, keys[ratio])) for ratio in ratios]
            bounds = [evidence.intervals[name].get(keys[ratio]) for ratio in ratios]
            if all(bounds):
                bands[name] = np.array(bounds).T
        other = "the off-screen sound" if kind == "mixed" else label_of(kind)
        title = f"mIoU with the own sound and {other} ↑"
        if len(ratios) == 1:
            seeds = {name: [numbers] for name, numbers in values.items()}
            whiskers = {name: [evidence.intervals[name].get(keys[ratios[0]])] for name in values}
            found += _bars(title, [f"{ratios[0]:g} dB"], seeds, whiskers, 2, 1)
            continue
        label = "signal-to-noise ratio, dB; to the right the own sound is louder"
        shown = {name: numbers if np.isfinite(numbers).any() else None for name, numbers in values.items()}
        svg = charts.line_chart(title, ratios, shown, bands, label=label, top=1, dots=True)
        said = _said([f"{ratio:g} dB" for ratio in ratios], values, 2)
        found.append((overlay.data_uri(svg), f"Line chart over the signal-to-noise ratio. {title}. {said}."))
    return found


def _bars(title, groups, values, bounds, digits, top, names=()):
    """[(address, alternative text)] of a bar chart, or [] if there is nothing to show.

    Args:
        names: of categories, whose bars lie; `groups` are their labels.
    """
    if not any(math.isfinite(v) for seeds in values.values() for group in seeds for v in group):
        return []
    svg = charts.bar_chart(title, groups, values, bounds, digits=digits, top=top, lying=bool(names))
    means = {name: [mean(group) for group in seeds] for name, seeds in values.items()}
    kind = "Bar chart by category" if names else "Bar chart"
    return [(overlay.data_uri(svg), f"{kind}. {title}. {_said(names or groups, means, digits)}.")]


def _said(groups, values, digits):
    return "; ".join(
        f"{name}: "
        + ", ".join(f"{g} {number(v, digits, 'not measured')}" for g, v in zip(groups, numbers, strict=True))
        for name, numbers in values.items()
        if numbers is not None
    )


def _whisker_hint(evidence):
    return "Whiskers are 95 % intervals. " if any(evidence.intervals.values()) else ""


def thresholds_html(evidence):
    curves, bands = {}, {}
    for name, seeds in evidence.models.items():
        curves[name], bands[name] = _threshold_curves(seeds)
    thresholds = next((values["thresholds"] for values in curves.values() if values), None)
    if thresholds is None:
        return ""
    for name, values in curves.items():
        if values and not np.array_equal(values["thresholds"], thresholds):
            curves[name], bands[name] = {}, {}
    found = []
    conditions = [c for c in conditions_of(evidence.runs) if c == "positive" or is_negative(c, evidence.runs)]
    for condition in conditions:
        # Models without this curve stay in, so that the others keep their colours.
        shown = {name: values.get(condition) for name, values in curves.items()}
        if all(values is None for values in shown.values()):
            continue
        area = "predicted area" if condition == "positive" else "part of the frame predicted"
        title = f"Under {sound_of(condition)}: {area}"
        own = {name: of_model[condition] for name, of_model in bands.items() if condition in of_model}
        groups = [f"above {threshold:g}" for threshold in thresholds]
        said = _said(groups, shown, 3)
        # Any sigmoid exceeds 0 nearly everywhere: the first point may leave the chart.
        svg = charts.line_chart(title, thresholds, shown, own, label="threshold; the scores are at 0.5", mark=0.5)
        found.append((overlay.data_uri(svg), f"Line chart over the threshold. {title}. {said}."))
    shaded = " Shaded: 95 % intervals." if any(bands.values()) else ""
    return figures(
        found,
        "Pixels whose probability exceeds the threshold, mean over frames and clips. Under negative audio all of them "
        f"are false positives: a flat, high line cannot be mended by another threshold.{shaded}",
    )


def _threshold_curves(seeds):
    """({"thresholds": …, condition: mean over the seeds}, condition -> float[2, thresholds]); {} where unknown."""
    found = _curve_intervals(seeds) if all(run.clips for run in seeds) else {}
    if found:
        curves = {condition: values for condition, (values, _) in found.items()}
        thresholds = np.array(THRESHOLDS)
        return {"thresholds": thresholds, **curves}, {condition: bounds for condition, (_, bounds) in found.items()}
    keys = [key for key in seeds[0].fpr_curve if all(key in run.fpr_curve for run in seeds)]
    if not keys or len({tuple(run.fpr_curve["thresholds"]) for run in seeds}) > 1:
        return {}, {}
    return {key: np.mean([run.fpr_curve[key] for run in seeds], axis=0) for key in keys}, {}


def _curve_intervals(seeds):
    """condition -> (mean curve, float[2, thresholds]) from the clips' own curves, over the seeds."""
    runs = uncertainty.paired_rows([run.clips for run in seeds])
    clusters = uncertainty.source_clusters(runs[0])
    found = {}
    for condition, first in runs[0][0]["conditions"].items():
        if first.get("heard"):  # in some frames: one curve over all of them would say nothing
            continue
        tables = [[row["conditions"][condition].get("fpr_curve") for row in rows] for rows in runs]
        lengths = {len(curve or ()) for table in tables for curve in table}
        if clusters.max() > 0 and lengths == {len(THRESHOLDS)}:
            curves = np.mean(tables, axis=0)  # of each clip, over the seeds
            found[condition] = (curves.mean(axis=0), uncertainty.mean_intervals(curves, clusters).T)
    return found


def categories_html(evidence):
    parts = {name: _part_scores(seeds, "category") for name, seeds in evidence.models.items()}
    names = list(dict.fromkeys(category for scores in parts.values() for category in scores))
    if len(names) < 2:
        return ""
    last = next(reversed([scores for scores in parts.values() if scores]))
    counts = Counter(row.get("category", "") for row in evidence.runs[0].clips)
    caption = "Each category's own scores, sorted by the G-mIoU of the last model. "
    if len(names) > _MAX_CATEGORIES:
        caption += f"The {_MAX_CATEGORIES} categories with most clips of {len(names)}. "
        names = sorted(names, key=lambda n: (-counts.get(n, 0), n))[:_MAX_CATEGORIES]
    names.sort(key=lambda n: (-_finite(last.get(n, {}).get("g_miou")), n))
    labels = [f"{n or 'no category'}" + (f" ({counts[n]})" if n in counts else "") for n in names]
    if counts:
        caption += "In brackets: clips. "
    found = []
    for title, key in (("G-mIoU ↑", "g_miou"), ("mIoU under positive audio ↑", "miou_positive"), ("G-FPR ↓", "g_fpr")):
        top = None if key == "g_fpr" else 1
        values, bounds = _values_and_bounds(parts, names, key)
        found += _bars(title, labels, values, bounds, 2, top, names)
    return figures(found, caption + _whisker_hint(evidence)) if found else ""


def _finite(value, missing=-1.0):
    return float(value) if value is not None and math.isfinite(value) else missing


def _values_and_bounds(parts, names, key):
    """(model -> [value] of each part, model -> (low, high) of each part or None)."""
    found = {model: [of.get(name, {}) for name in names] for model, of in parts.items()}
    values = {model: [[_finite(scores.get(key), math.nan)] for scores in of] for model, of in found.items()}
    return values, {model: [scores.get("intervals", {}).get(key) for scores in of] for model, of in found.items()}


def _part_scores(seeds, part):
    """Name -> {metric: value, "intervals": {metric: [low, high]}}: scores of the clips of each category, say.

    From the clips where they are known, so that there are intervals; else from `breakdown`.
    """
    if not all(run.clips for run in seeds):
        return _mean_breakdown(seeds, part)
    runs = [rows_by_part(rows)[part] for rows in uncertainty.paired_rows([run.clips for run in seeds])]
    return {name: _scores_with_intervals([parts[name] for parts in runs], extra_negatives(seeds)) for name in runs[0]}


def _scores_with_intervals(runs, extra):
    # A tenth of the resamples: these are drawn, not printed, and there may be dozens of parts.
    bounds = uncertainty.intervals(*runs, extra_negatives=extra, resamples=uncertainty.RESAMPLES // 10)
    return {**uncertainty.run_scores(*runs, extra_negatives=extra), "intervals": bounds}


def _mean_breakdown(seeds, part):
    tables = [run.breakdown.get(part, {}) for run in seeds]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    found = {}
    for name in names:
        keys = [key for key in tables[0][name] if all(key in table[name] for table in tables)]
        found[name] = {key: mean(_finite(table[name][key], math.nan) for table in tables) for key in keys}
    return found


def parts_html(evidence):
    found = []
    for title, part in (
        ("G-mIoU by semantic group ↑", "group"),
        ("G-mIoU by size of the object ↑", "mask_area"),
        ("G-mIoU by frame (second) ↑", "frame"),
    ):
        parts = {name: _part_scores(seeds, part) for name, seeds in evidence.models.items()}
        groups = list(dict.fromkeys(group for scores in parts.values() for group in scores))
        if len(groups) < 2:
            continue
        values, bounds = _values_and_bounds(parts, groups, "g_miou")
        found += _bars(title, groups, values, bounds, 2, 1)
    hint = "Q1 to Q4 are quarters of the clips by the part of the frame that the object covers. "
    return figures(found, f"Means over the clips of each part. {hint}{_whisker_hint(evidence)}")


def curves_html(models):
    found = []
    for title, key, place in (
        ("Training loss", "loss", None),
        ("Validation G-mIoU ↑", "g_miou", "validation"),
        ("Validation mIoU, positive ↑", "miou_positive", "validation"),
        ("Validation FPR, silence ↓", "fpr_silence", "validation"),
    ):
        curves = {name: [_curve(run.log, key, place) for run in seeds] for name, seeds in models.items()}
        curves = {name: [c for c in seeds if len(c[0])] for name, seeds in curves.items()}
        if not any(curves.values()):
            continue
        ends = "; ".join(
            f"{name} ends at {', '.join(number(seed[1][-1], 3) for seed in seeds)} after {int(seeds[0][0][-1])} steps"
            for name, seeds in curves.items()
            if seeds
        )
        svg = charts.curve_chart(title, curves)
        found.append((overlay.data_uri(svg), f"Line chart. {title} over training steps. {ends}."))
    caption = f"Logs of more than {charts.MAX_POINTS} points are averaged in that many bins of steps."
    if has_seeds(models):
        caption = f"Thin lines are the seeds, thick lines their means. {caption}"
    return figures(found, caption)


def _curve(log, key, place):
    """(steps, values), steps ascending; of a step logged twice (a resumed run) the later line counts."""
    points = {}
    for record in log:
        source = record.get(place) if place else record
        value = source.get(key) if isinstance(source, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            points[record["step"]] = float(value)
    steps = sorted(points)
    return np.array(steps, float), np.array([points[step] for step in steps], float)
