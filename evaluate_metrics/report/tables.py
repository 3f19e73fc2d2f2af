"""Scores as tables: which metrics there are, in which order, with which interval; plain text, Markdown and LaTeX."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .. import uncertainty
from ..results import CONDITIONS, NEGATIVES, Run

__all__ = [
    "ARROWS",
    "EXPLANATIONS",
    "MISSING",
    "SWEEP",
    "Cell",
    "Metric",
    "conditions_of",
    "difference_digits",
    "escape_latex",
    "escape_markdown",
    "further_negatives",
    "group_by_name",
    "has_seeds",
    "is_negative",
    "label_of",
    "latex_table",
    "markdown_table",
    "mean",
    "model_cells",
    "model_intervals",
    "number",
    "plain_table",
    "results_table",
    "seed_values",
    "sections_of",
    "signed",
    "sound_of",
]

MISSING = "–"
SWEEP = re.compile(r"(.+)_snr_(-?\d+(?:\.\d+)?)")  # a condition of a sweep over the signal-to-noise ratio in dB
ARROWS = {"higher": "↑", "lower": "↓", "": ""}


@dataclass(frozen=True)
class Metric:
    """A row: the score's key, what it is called, whether "higher" or "lower" is better ("" for neither)."""

    key: str
    label: str
    better: str
    digits: int = 3


@dataclass(frozen=True)
class Cell:
    """One model's score: the mean of its seeds, half their range, its interval, their values; NaN: not defined."""

    mean: float
    half_range: float
    interval: Sequence[float] | None
    values: Sequence[float]


# Section -> what it says.
EXPLANATIONS = {
    "Robustness": (
        "G-mIoU is the harmonic mean of P, the positive mIoU, and 1 − N, where N is the mean mIoU over the negative "
        "conditions; G-F is the same for F. The audio-blind floor 2P(1 − P) is the G-mIoU of an equally good "
        "segmenter whose masks do not react to the sound at all. G-FPR is the mean FPR over the negative conditions."
    ),
    "mIoU": (
        "Intersection over union of the predicted mask (probability above 0.5) and the visible object's mask, per "
        "frame, averaged; a frame without an object scores its share of pixels left empty. Under negative audio the "
        "visible object is not heard, so overlap with it is an error."
    ),
    "F": (
        "F-measure with β² = 0.3: the maximum over 255 thresholds of the curve averaged over a clip's frames, then "
        "averaged over clips. It cannot fall to 0 under negative audio: the lowest threshold admits every pixel."
    ),
    "FPR": (
        "Share of the picture that the predicted mask covers, averaged over frames. Under negative audio nothing "
        "visible is heard, so all of it is false; under positive audio it is only the predicted area."
    ),
    "Robustness by condition": (
        "The harmonic means with N of one negative condition alone: which sound the model is fooled by."
    ),
    "Similarity AUROC": (
        "How often the model's own similarity of sound and picture, averaged over the frames, is higher for a clip "
        "with its own sound than for one with negative sound: 0.5 is chance, 1 tells every pair apart."
    ),
}


def group_by_name(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Model -> its runs (training seeds), in the order of first appearance."""
    models = {}
    for run in runs:
        models.setdefault(run.name, []).append(run)
    if not models:
        raise ValueError("Expected at least one run, got none.")
    return models


def has_seeds(models: Mapping[str, Sequence[Run]]) -> bool:
    return any(len(seeds) > 1 for seeds in models.values())


def conditions_of(runs: Iterable[Run]) -> list[str]:
    """The four conditions, then every further one that the scores name in all three base metrics, sorted."""
    keys = {key for run in runs for key in run.scores}
    further = {key.removeprefix("miou_") for key in keys if key.startswith("miou_")} - set(CONDITIONS)
    return [*CONDITIONS, *sorted((c for c in further if {f"f_score_{c}", f"fpr_{c}"} <= keys), key=_natural)]


def further_negatives(runs: Iterable[Run]) -> list[str]:
    """Conditions beside the three negatives that the metric gave a harmonic mean with the positives."""
    keys = {key for run in runs for key in run.scores if key.startswith("g_miou_")}
    return sorted({key.removeprefix("g_miou_") for key in keys} - set(NEGATIVES))


def is_negative(condition: str, runs: Iterable[Run]) -> bool:
    return condition in NEGATIVES or condition in further_negatives(runs)


def sections_of(runs: Sequence[Run]) -> list[tuple[str, list[Metric]]]:
    """(title, its metrics) in the order of every table."""
    conditions = conditions_of(runs)
    negatives = [*NEGATIVES, *(c for c in conditions if c in further_negatives(runs))]
    robustness = [
        Metric("g_miou", "G-mIoU", "higher"),
        Metric("audio_blind_floor", "audio-blind floor of G-mIoU", ""),
        Metric("g_f_score", "G-F", "higher"),
        Metric("g_fpr", "G-FPR", "lower", 4),
    ]
    sections = [("Robustness", robustness)]
    for title, prefix, digits in (("mIoU", "miou", 3), ("F", "f_score", 3), ("FPR", "fpr", 4)):
        metrics = []
        for condition in conditions:
            better = "lower" if condition in negatives else "higher"
            if prefix == "fpr" and condition not in negatives:
                better = ""  # the predicted area
            metrics.append(Metric(f"{prefix}_{condition}", label_of(condition), better, digits))
        sections.append((title, metrics))
    by_condition = [Metric(f"g_miou_{c}", f"G-mIoU, {label_of(c)}", "higher") for c in negatives]
    by_condition += [Metric(f"g_f_score_{c}", f"G-F, {label_of(c)}", "higher") for c in negatives]
    sections.append(("Robustness by condition", by_condition))
    similar = [c for c in conditions if any(f"similarity_auroc_{c}" in run.scores for run in runs)]
    if any(math.isfinite(v) for c in similar for v in seed_values(runs, f"similarity_auroc_{c}")):
        metrics = [Metric(f"similarity_auroc_{c}", label_of(c), "higher") for c in similar]
        sections.append(("Similarity AUROC", metrics))
    return sections


def model_intervals(seeds: Sequence[Run]) -> dict[str, Sequence[float]]:
    """metric -> [low, high] of one model's score, of several training seeds the mean: {} where no clips are known."""
    if len(seeds) == 1 and seeds[0].intervals:
        return dict(seeds[0].intervals)
    if not all(run.clips for run in seeds) or uncertainty.source_clusters(seeds[0].clips).max() == 0:
        return {}
    _, samples = uncertainty.resampled_scores([run.clips for run in seeds], further_negatives=further_negatives(seeds))
    return {key: bounds for key, values in samples.items() if (bounds := uncertainty.interval(values))}


def results_table(runs: Iterable[Run]) -> str:
    """The scores as aligned plain ASCII text: metrics by row, models by column, half-ranges over seeds, intervals."""
    names, sections = _cells(runs, missing="-", spread=" +/- ", bounds=" [{}, {}]")
    rows = [["metric", "better", *names]]
    for title, lines in sections:
        rows += [None, *([_full_label(title, label), *rest] for label, *rest in lines)]
    return plain_table(rows)


def plain_table(rows: Sequence[Sequence[str] | None]) -> str:
    """Rows as aligned columns; None is a rule."""
    widths = [max(len(row[i]) for row in rows if row) for i in range(len(rows[0]))]
    rule = "  ".join("-" * width for width in widths)
    text = [rule if row is None else "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in text) + "\n"


def markdown_table(runs: Iterable[Run]) -> str:
    """The scores as a GitHub Markdown table; arrows say which direction is better."""
    names, sections = _cells(runs, missing=MISSING, spread=" ± ", bounds=" [{}, {}]")
    head = " | ".join(map(escape_markdown, names))
    lines = [f"| metric | {head} |", "| --- |" + " ---: |" * len(names)]
    for title, rows in sections:
        for label, better, *values in rows:
            label = escape_markdown(_full_label(title, label))
            lines.append(f"| {label} {ARROWS[better]}".rstrip() + " | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def latex_table(runs: Iterable[Run]) -> str:
    r"""The scores as a LaTeX `tabular`; needs `\usepackage{booktabs}`."""
    names, sections = _cells(runs, missing="--", spread=r"\,$\pm$\,", bounds=r" {{\scriptsize [{}, {}]}}")
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "": ""}
    lines = [r"\begin{tabular}{l" + "r" * len(names) + "}", r"\toprule"]
    lines.append(" & ".join(["metric", *map(escape_latex, names)]) + r" \\")
    for title, rows in sections:
        lines.append(r"\midrule")
        for label, better, *values in rows:
            label = escape_latex(_full_label(title, label))
            lines.append(" & ".join([label + arrows[better], *values]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def model_cells(seeds: Sequence[Run], metrics: Iterable[Metric], intervals: Mapping) -> dict[str, Cell]:
    """Metric key -> what a table shows of one model."""
    cells = {}
    for metric in metrics:
        values = seed_values(seeds, metric.key)
        cells[metric.key] = Cell(mean(values), _half_range(values), intervals.get(metric.key), values)
    return cells


def seed_values(runs: Iterable[Run], key: str) -> list[float]:
    """One float a run; NaN where the run has no finite value."""
    values = [run.scores.get(key) for run in runs]
    return [float(v) if v is not None and math.isfinite(v) else math.nan for v in values]


def mean(values: Iterable[float]) -> float:
    """Of the finite values; NaN if there is none."""
    finite = [v for v in values if math.isfinite(v)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def number(value: float, digits: int, missing: str = MISSING) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else missing


def signed(value: float, digits: int, missing: str = MISSING) -> str:
    """With its sign; what rounds to 0 has a plus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}" if math.isfinite(value) else missing


def difference_digits(difference: uncertainty.Difference, digits: int) -> int:
    """Decimals, from `digits` to 6, at which the difference and its bounds show two significant digits."""
    values = [abs(v) for v in (difference.difference, difference.low, difference.high)]
    sizes = [v for v in values if v >= 1e-6]
    # 0.01 needs 3 decimals; the margin is for values such as 0.0099999999.
    return min(6, max([digits, *(math.ceil(1 - math.log10(v) - 1e-6) for v in sizes)]))


def sound_of(condition: str) -> str:
    """What is heard, in words: off-screen audio; silence; noise at -5 dB."""
    sweep = SWEEP.fullmatch(condition)
    if sweep:
        return f"{sound_of(sweep[1])} at {sweep[2]} dB"
    label = label_of(condition)
    return label if label.endswith(("silence", "noise")) else f"{label} audio"


def label_of(condition: str) -> str:
    """The condition in words: off-screen; noise at -5 dB."""
    sweep = SWEEP.fullmatch(condition)
    if sweep:
        return f"{label_of(sweep[1])} at {sweep[2]} dB"
    return condition.replace("_", "-")


def escape_markdown(text: str) -> str:
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text).replace("\n", " ")


def escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " "}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


def _natural(condition):
    sweep = SWEEP.fullmatch(condition)
    return (sweep[1], float(sweep[2])) if sweep else (condition, 0.0)


def _full_label(section, label):
    return label if section.startswith("Robustness") else f"{section}, {label}"


def _half_range(values):
    finite = [v for v in values if math.isfinite(v)]
    return (max(finite) - min(finite)) / 2 if len(finite) > 1 else math.nan


def _cells(runs, missing, spread, bounds):
    runs = list(runs)
    models = group_by_name(runs)
    sections = sections_of(runs)
    metrics = [metric for _, group in sections for metric in group]
    cells = {name: model_cells(seeds, metrics, model_intervals(seeds)) for name, seeds in models.items()}
    table = []
    for title, group in sections:
        rows = []
        for metric in group:
            row = [metric.label, metric.better]
            for name in models:
                cell = cells[name][metric.key]
                text = number(cell.mean, metric.digits, missing)
                if math.isfinite(cell.half_range):
                    text += spread + number(cell.half_range, metric.digits)
                if cell.interval and math.isfinite(cell.mean):
                    text += bounds.format(*(number(bound, metric.digits) for bound in cell.interval))
                row.append(text)
            rows.append(row)
        table.append((title, rows))
    names = [name if len(seeds) == 1 else f"{name} ({len(seeds)} seeds)" for name, seeds in models.items()]
    return names, table
