"""The report's charts, as SVG: bars with intervals, training curves, curves over a threshold or ratio.

Models have the colours of `overlay.py` and differ by dash and hatch too, so that a grey print keeps them apart.
Matplotlib is imported here only.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .overlay import COLORS

HATCHES = ("//", "", "..", "xx", "--", "oo")
DASHES = ("--", "-", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
MAX_POINTS = 200  # of one curve; a longer log is averaged in equal bins of steps

# Text as paths: the page needs no font. Fixed salt and no date: the same numbers give the same bytes.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "avs-report",
    "font.size": 10,
    "axes.edgecolor": "#444444",
}
_SIZE = (5.6, 3.1)  # inches
_WHISKER: dict[str, Any] = {"ecolor": "black", "elinewidth": 1.1, "capsize": 2.5, "fmt": "none"}

Interval = tuple[float, float]


def bar_chart(
    title: str,
    groups: Sequence[str],
    values: Mapping[str, Sequence[Sequence[float]]],
    intervals: Mapping[str, Sequence[Interval | None]] | None = None,
    *,
    digits: int,
    top: float | None = None,
    lying: bool = False,
) -> bytes:
    """Grouped bars: one group a condition or category, one bar a model, one dot a seed, one whisker an interval.

    Args:
        values: model -> one sequence of seeds' values per group; NaN where there is none.
        intervals: model -> (low, high) per group, None where there is none.
        digits: decimals of the number over a bar.
        top: end of the value axis; by default a little above the largest value.
        lying: bars from the left, without dots and numbers, for many groups with long names.
    """
    with matplotlib.rc_context(_STYLE):
        each = max(0.24, 0.13 * len(values) + 0.08)
        size = (_SIZE[0], 0.95 + each * len(groups)) if lying else _SIZE
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        width = 0.8 / max(1, len(values))
        highest = 0.0
        for i, (model, per_group) in enumerate(values.items()):
            seeds = [[v for v in group if np.isfinite(v)] for group in per_group]
            heights = [float(np.mean(group)) if group else np.nan for group in seeds]
            bounds = (intervals or {}).get(model, [None] * len(groups))
            centers = np.arange(len(groups)) + (i - (len(values) - 1) / 2) * width
            style = {"color": COLORS[i % len(COLORS)], "hatch": _cycle(HATCHES, i), "edgecolor": "white"}
            style |= {"label": _legend_label(model), "linewidth": 0}
            if lying:
                axes.barh(centers, heights, 0.92 * width, **style)
                axes.errorbar(heights, centers, xerr=_arms(heights, bounds), **{**_WHISKER, "capsize": 1.5})
                continue
            axes.bar(centers, heights, 0.92 * width, **style)
            axes.errorbar(centers, heights, yerr=_arms(heights, bounds), **_WHISKER)
            for center, group, height, bound in zip(centers, seeds, heights, bounds, strict=True):
                if len(group) > 1:
                    places = center + np.linspace(-0.2, 0.2, len(group)) * width
                    axes.plot(places, group, "o", ms=3.5, mfc="white", mec="black", mew=0.8, clip_on=False)
                text = f"{height:.{digits}f}" if group else "–"
                above = max([*group, *(bound or ())], default=0)
                highest = max(highest, above)
                letters = 6 if len(values) * len(groups) > 10 else 8
                axes.annotate(text, (center, above), (0, 5), textcoords="offset points", ha="center", fontsize=letters)
        if lying:
            axes.set_xlim(0, top)
            axes.set_ylim(len(groups) - 0.4, -0.6)
            axes.set_yticks(range(len(groups)), [_plain(group, 30) for group in groups], fontsize=9)
        else:
            axes.set_ylim(0, 1.07 * top if top else 1.15 * (highest or 1))  # room for the numbers
            axes.set_xlim(-0.5, len(groups) - 0.5)  # also around bars that are not there
            axes.set_xticks(range(len(groups)), [_plain(group, 14) for group in groups])
            if len(groups) > 5 or sum(map(len, groups)) > 56:
                axes.tick_params(axis="x", labelsize=8, labelrotation=30)
        _finish(axes, title, room=70 - max(map(len, groups)) if lying else 70)
        (axes.xaxis if lying else axes.yaxis).grid(True, color="#dddddd", linewidth=0.7)
        return _svg(figure)


def line_chart(
    title: str,
    places: Sequence[float],
    curves: Mapping[str, Sequence[float] | None],
    bands: Mapping[str, np.ndarray] | None = None,
    *,
    label: str,
    top: float | None = None,
    mark: float | None = None,
    dots: bool = False,
) -> bytes:
    """A score over a setting, one line a model.

    Args:
        title: above the chart.
        places: of the setting, ascending.
        curves: model -> one value a place, NaN where there is none; None: no curve, but the others' styles stay.
        bands: model -> float[2, len(places)], the ends of the intervals; shaded.
        label: of the axis of places.
        top: end of the value axis; by default a little above all values but those of the first place.
        mark: place of an upright line.
        dots: whether each place has a dot.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        highest = 0.0
        for i, (model, values) in enumerate(curves.items()):
            if values is None:
                continue
            style = {"color": COLORS[i % len(COLORS)], "ls": _cycle(DASHES, i), "marker": "o" if dots else "", "ms": 4}
            axes.plot(places, values, lw=2.2, label=_legend_label(model), **style)
            if bands and model in bands:
                axes.fill_between(places, *bands[model], color=style["color"], alpha=0.2, linewidth=0)
            highest = max([highest, *(v for v in values[1:] if np.isfinite(v))])
        if mark is not None:
            axes.axvline(mark, color="#777777", linewidth=0.8)
        margin = 0.02 * (places[-1] - places[0]) if dots else 0
        axes.set_xlim(places[0] - margin, places[-1] + margin)
        if dots:
            axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_ylim(0, top or min(1.0, 1.25 * highest) or 1.0)
        axes.set_xlabel(label)
        _finish(axes, title)
        axes.grid(True, color="#dddddd", linewidth=0.7)
        return _svg(figure)


def curve_chart(title: str, curves: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]) -> bytes:
    """Curves over optimizer steps: every seed a thin line, their mean thick over the steps that all have.

    Args:
        title: above the chart.
        curves: model -> one (steps, values) pair of equally long arrays per seed; steps ascend. No pair: no curve,
            but the others' styles stay.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        for i, (model, seeds) in enumerate(curves.items()):
            if not seeds:
                continue
            color = COLORS[i % len(COLORS)]
            seeds = [_thin(steps, values) for steps, values in seeds]
            for steps, values in seeds:
                axes.plot(steps, values, linewidth=0.8, alpha=0.6, color=color)
            few = max(len(steps) for steps, _ in seeds) <= 20
            style = {"color": color, "linestyle": _cycle(DASHES, i), "marker": "o" if few else "", "ms": 4}
            axes.plot(*_mean_curve(seeds), linewidth=2.2, label=_legend_label(model), **style)
        has_negative = any((values < 0).any() for seeds in curves.values() for _, values in seeds)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if has_negative else 0)
        axes.set_xlabel("optimizer step")
        _finish(axes, title)
        axes.grid(True, color="#dddddd", linewidth=0.7)
        return _svg(figure)


def _cycle(styles, i):
    # After a round of the colours the styles shift by one: no pair of colour and style comes back soon.
    return styles[(i + i // len(COLORS)) % len(styles)]


def _arms(values, bounds):
    """float[2, N]: how far the whiskers reach below and above the values; NaN for none."""
    pairs = [
        (value - bound[0], bound[1] - value) if bound else (np.nan, np.nan)
        for value, bound in zip(values, bounds, strict=True)
    ]
    # A mean may lie a rounding error outside a narrow interval.
    return np.maximum(np.array(pairs, float).reshape(-1, 2).T, 0)


def _legend_label(name):
    return " " + _plain(name, 28)  # matplotlib drops labels that begin with an underscore


def _plain(name, length):
    """At most `length` characters, and none that matplotlib reads as mathematics."""
    name = name if len(name) <= length else name[: length - 1] + "…"
    return name.replace("$", r"\$")


def _thin(steps, values):
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    if len(steps) <= MAX_POINTS:
        return steps, values
    bins = np.array_split(np.arange(len(steps)), MAX_POINTS)
    return np.array([steps[b].mean() for b in bins]), np.array([values[b].mean() for b in bins])


def _mean_curve(seeds):
    """Mean over seeds at every step that any seed has, within the range that all have."""
    first, last = max(steps[0] for steps, _ in seeds), min(steps[-1] for steps, _ in seeds)
    steps = np.unique(np.concatenate([steps for steps, _ in seeds]))
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.mean([np.interp(steps, *seed) for seed in seeds], axis=0)


def _finish(axes, title, room=70):
    """Title, and the legend between it and the axes in rows of about `room` letters."""
    labels = axes.get_legend_handles_labels()[1]
    widths = [len(label) + 7 for label in labels]
    columns = len(labels) or 1
    if sum(widths) > room:
        columns = min(columns, max(1, room // max(widths)))
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=6 + 16 * -(-len(labels) // columns))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if labels:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        axes.legend(frameon=False, ncols=columns, fontsize=9, handlelength=2.4, columnspacing=1.2, **place)


def _svg(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
