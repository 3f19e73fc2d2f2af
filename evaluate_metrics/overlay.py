"""The report's pictures: masks drawn over frames, bar charts, training curves. Matplotlib is imported here only.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which colour-blind readers can tell apart; lines
and bars also differ by dash and hatch, so that a grey print keeps them apart.
"""

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageFilter

__all__ = [
    "COLORS",
    "TILE_SIZE",
    "bar_chart",
    "curve_chart",
    "data_uri",
    "fit_tile",
    "prediction_tile",
    "truth_tile",
]

# Okabe-Ito, ordered so that the first two (baseline, robust) are the farthest apart.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
HATCHES = ("//", "", "..", "xx", "--", "oo")
DASHES = ("--", "-", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
TILE_SIZE = 224  # pixels of the longer side; AVSBench's own frame size
MAX_POINTS = 200  # of one curve; a longer log is averaged in equal bins of steps

# Text as paths: the page needs no font. Fixed salt and no date: the same numbers give the same bytes.
_STYLE = {"svg.fonttype": "path", "svg.hashsalt": "avs-report", "font.size": 10, "axes.edgecolor": "#444444"}


def fit_tile(image: Image.Image) -> Image.Image:
    """The image as RGB with its longer side at `TILE_SIZE` pixels, so that outlines have one width in every tile."""
    scale = TILE_SIZE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def truth_tile(frame: Image.Image, truth: np.ndarray) -> Image.Image:
    """The frame with everything but the object darkened, and the object's outline.

    Args:
        frame: as `fit_tile` returns it.
        truth (bool array[height, width]): the visible object, at any resolution.
    """
    truth = _resize_mask(truth * np.uint8(255), frame.size)
    pixels = np.asarray(frame, np.float32)
    return _draw_truth(np.where(truth[..., None], pixels, 0.3 * pixels), truth)


def prediction_tile(frame: Image.Image, probability: np.ndarray, truth: np.ndarray, color: str) -> Image.Image:
    """The frame with the predicted mask filled in `color` and the object's outline in white.

    Args:
        frame: as `fit_tile` returns it.
        probability (uint8 array[height, width]): 255 is certain; the mask is where it exceeds one half (>= 128).
        truth (bool array[height, width]): the visible object.
        color: "#RRGGBB".
    """
    predicted = _resize_mask(probability, frame.size)
    truth = _resize_mask(truth * np.uint8(255), frame.size)
    # The frame is pulled half-way to grey: colours in the picture cannot be taken for the mask's.
    grey = np.asarray(frame.convert("L"), np.float32)[..., None]
    pixels = 0.85 * (0.5 * np.asarray(frame, np.float32) + 0.5 * grey)
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
    pixels[predicted] = 0.35 * pixels[predicted] + 0.65 * rgb
    pixels[_outline(predicted, 5)] = rgb
    return _draw_truth(pixels, truth)


def data_uri(image: Image.Image | bytes) -> str:
    """A `data:` address of a photograph (JPEG, full colour resolution for the thin outlines) or of SVG bytes."""
    if isinstance(image, bytes):
        return "data:image/svg+xml;base64," + base64.b64encode(image).decode("ascii")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def bar_chart(
    title: str,
    groups: Sequence[str],
    values: Mapping[str, Sequence[Sequence[float]]],
    *,
    digits: int,
    top: float | None = None,
) -> bytes:
    """Grouped bars as SVG: one group a condition, one bar a model, one dot a seed.

    Args:
        title: above the chart.
        groups: names of the groups.
        values: model -> one sequence of seeds' values per group; NaN where there is none.
        digits: decimals of the number over a bar.
        top: end of the value axis; by default a little above the largest value.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 3.1), layout="constrained")
        axes = figure.add_subplot()
        width = 0.8 / max(1, len(values))
        for i, (model, per_group) in enumerate(values.items()):
            style = {"color": COLORS[i % len(COLORS)], "hatch": HATCHES[i % len(HATCHES)], "edgecolor": "white"}
            seeds = [[v for v in group if np.isfinite(v)] for group in per_group]
            heights = [float(np.mean(group)) if group else np.nan for group in seeds]
            centers = np.arange(len(groups)) + (i - (len(values) - 1) / 2) * width
            axes.bar(centers, heights, 0.92 * width, label=_legend_label(model), linewidth=0, **style)
            for center, group, height in zip(centers, seeds, heights, strict=True):
                if len(group) > 1:
                    places = center + np.linspace(-0.2, 0.2, len(group)) * width
                    axes.plot(places, group, "o", ms=3.5, mfc="white", mec="black", mew=0.8, clip_on=False)
                text = f"{height:.{digits}f}" if group else "–"
                place = (center, max(group, default=0))
                size = 8 if len(values) <= 2 else 6
                axes.annotate(text, place, (0, 5), textcoords="offset points", ha="center", fontsize=size)
        highest = max((v for per_group in values.values() for group in per_group for v in group if v > 0), default=1)
        axes.set_ylim(0, top or 1.15 * highest)
        axes.set_xticks(range(len(groups)), groups)
        _finish(axes, title)
        axes.yaxis.grid(True, color="#dddddd", linewidth=0.7)
        return _svg(figure)


def curve_chart(title: str, curves: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]) -> bytes:
    """Curves over optimizer steps as SVG: every seed a thin line, their mean thick over the steps that all have.

    Args:
        title: above the chart.
        curves: model -> one (steps, values) pair of equally long arrays per seed, never empty; steps ascend.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for i, (model, seeds) in enumerate(curves.items()):
            color = COLORS[i % len(COLORS)]
            seeds = [_thin(steps, values) for steps, values in seeds]
            for steps, values in seeds:
                axes.plot(steps, values, linewidth=0.8, alpha=0.6, color=color)
            few = max(len(steps) for steps, _ in seeds) <= 20
            style = {"color": color, "linestyle": DASHES[i % len(DASHES)], "marker": "o" if few else "", "ms": 4}
            axes.plot(*_mean_curve(seeds), linewidth=2.2, label=_legend_label(model), **style)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if _any_negative(curves) else 0)
        axes.set_xlabel("optimizer step")
        _finish(axes, title)
        axes.grid(True, color="#dddddd", linewidth=0.7)
        return _svg(figure)


def _resize_mask(probability, size):
    """uint8 probabilities -> bool at `size` (width, height); smooth edges, thresholded as the metric does."""
    image = Image.fromarray(np.ascontiguousarray(probability, np.uint8))
    if image.size != tuple(size):
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image) >= 128


def _outline(mask, width):
    """The band of `width` pixels (odd) on both sides of the mask's edge."""
    image = Image.fromarray(mask * np.uint8(255))
    grown = np.asarray(image.filter(ImageFilter.MaxFilter(width)))
    shrunk = np.asarray(image.filter(ImageFilter.MinFilter(width)))
    return grown != shrunk


def _draw_truth(pixels, truth):
    # White between two dark lines: visible on light, dark and coloured ground.
    pixels = pixels.copy()
    halo = np.asarray(Image.fromarray(_outline(truth, 3) * np.uint8(255)).filter(ImageFilter.MaxFilter(3))) > 0
    pixels[halo] = 0.25 * pixels[halo]
    pixels[_outline(truth, 3)] = 255
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _legend_label(name):
    # Matplotlib reads $…$ as mathematics and drops labels that begin with an underscore.
    name = name if len(name) <= 28 else name[:27] + "…"
    return " " + name.replace("$", r"\$")


def _any_negative(curves):
    return any((values < 0).any() for seeds in curves.values() for _, values in seeds)


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


def _finish(axes, title):
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=22)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        axes.legend(frameon=False, ncols=6, fontsize=9, handlelength=2.4, columnspacing=1.2, **place)


def _svg(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
