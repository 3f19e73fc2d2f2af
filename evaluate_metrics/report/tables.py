"""Scores as tables: which metrics there are, in which order, with which interval."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from avsbench_robust_dataset.check import PUBLISHED_CLIPS

from .. import entry, uncertainty
from ..avs_robust.avs_robust import (
    CONDITIONS,
    METRICS,
    NEGATIVE_CONDITIONS,
    PARTLY_HEARD,
    SELECTIVITY,
    partly_heard_conditions,
)
from ..results import Run, extra_negatives, protocol_of
from .table_formats import LATEX, MARKDOWN, MISSING, TEXT, write_table

SWEEP = re.compile(r"(.+)_snr_(-?\d+(?:\.\d+)?)")  # a condition of a sweep over the signal-to-noise ratio in dB


@dataclass(frozen=True)
class Score:
    """A row: the score's key, what it is called, whether "higher" or "lower" is better ("" for neither)."""

    key: str
    label: str
    better: str
    digits: int = 3


@dataclass(frozen=True)
class Section:
    """Rows of one kind under a title; where the title is part of what they are called, `names_rows`."""

    title: str
    explanation: str
    rows: Sequence[Score]
    names_rows: bool = True

    def full_label(self, row: Score) -> str:
        return f"{self.title}, {row.label}" if self.names_rows else row.label


@dataclass(frozen=True)
class Cell:
    """One model's score: the mean of its seeds, half their range, its interval, their values; NaN: not defined."""

    mean: float
    half_range: float
    interval: Sequence[float] | None
    values: Sequence[float]

    @property
    def bounds(self) -> Sequence[float]:
        """The interval where there is a score; else ()."""
        return self.interval if self.interval and math.isfinite(self.mean) else ()


_ROBUSTNESS = (
    "G-mIoU is the harmonic mean of P, the positive mIoU, and 1 − N, where N is the mean mIoU over the negative "
    "conditions; G-F is the same for F. The audio-blind floor 2P(1 − P) is the G-mIoU of an equally good "
    "segmenter whose masks do not react to the sound at all. G-FPR is the mean FPR over the negative conditions."
)
_BY_CONDITION = "The harmonic means with N of one negative condition alone: which sound the model is fooled by."
_SELECTIVITY = (
    "On clips that show more than one labelled object, under their own sound: does the mask follow the one that "
    "sounds? IoU with it, and the share of the silent objects' area that is marked; means over such clips."
)
_PARTLY_HEARD = (
    "The clip's own sound is silent in some of its seconds: the mask should be the object's in the seconds that are "
    "heard and empty in the others. mIoU over the former, share of the picture that is marked in the latter (FPR): "
    "where a model never listens, that is its FPR under positive, which is small where objects are small."
)
_SIMILARITY = (
    "How often the model's own similarity of sound and picture, averaged over the frames, is higher for a clip "
    "with its own sound than for one with negative sound: 0.5 is chance, 1 tells every pair apart."
)


def group_by_name(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Model -> its runs (training seeds), in the order of first appearance.

    Runs of one name whose scores are not comparable, of S4 and of MS3 for example, are models of their own, which
    say in their names what differs.
    """
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    models: dict[str, list[Run]] = {}
    for name, seeds in by_name.items():
        protocols = [protocol_of(run) for run in seeds]
        for run, protocol in zip(seeds, protocols, strict=True):
            differences = ", ".join(protocol.differences(protocols).values())
            models.setdefault(f"{name} ({differences})" if differences else name, []).append(run)
    if not models:
        raise ValueError("Expected at least one run, got none.")
    return models


def are_comparable(runs: Sequence[Run]) -> bool:
    """Whether the runs' scores may stand in one column of differences."""
    protocols = [protocol_of(run) for run in runs]
    return not any(protocol.differences(protocols) for protocol in protocols)


def partial_reasons(run: Run) -> list[str]:
    """Why a run is not of all clips of its split under the four conditions; [] where it is."""
    clips = protocol_of(run).clips
    if run.subset in PUBLISHED_CLIPS:
        results = {"subset": run.subset, "split": run.split, "clips": clips, "scores": run.scores}
        reasons = entry.partial_reasons(results | {"settings": run.settings}) if clips else []
        return [reason.partition(",")[0] if reason.startswith("with ") else reason for reason in reasons]
    return [f"{clips} clips alone"] if run.settings.get("max_clips") == clips and clips else []


def head_of(name: str, seeds: Sequence[Run]) -> str:
    """The head of a model's column: how many seeds, whose masks, and the mark of a partial evaluation."""
    notes = [f"{len(seeds)} seeds"] if len(seeds) > 1 else []
    notes += ["semantic masks"] if any(run.annotation == "semantic" for run in seeds) else []
    notes += dict.fromkeys(reason for run in seeds for reason in partial_reasons(run))
    notes = [note for note in notes if note not in name]
    return f"{name} ({', '.join(notes)})" if notes else name


def has_seeds(models: Mapping[str, Sequence[Run]]) -> bool:
    return any(len(seeds) > 1 for seeds in models.values())


def conditions_of(runs: Iterable[Run]) -> list[str]:
    """The benchmark's conditions, then every other one that the scores name in both mIoU and FPR, sorted."""
    keys = {key for run in runs for key in run.scores}
    others = {key.removeprefix("miou_") for key in keys if key.startswith("miou_")} - set(CONDITIONS)
    return [*CONDITIONS, *sorted((c for c in others if f"fpr_{c}" in keys), key=_natural)]


def is_negative(condition: str, runs: Sequence[Run]) -> bool:
    return condition in NEGATIVE_CONDITIONS or condition in extra_negatives(runs)


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """The sections of every table, made from the table of metrics; a score that no run has may be left out."""
    conditions = conditions_of(runs)
    extra = extra_negatives(runs)
    negatives = [*NEGATIVE_CONDITIONS, *(c for c in conditions if c in extra)]
    measured = {key for run in runs for key in run.scores}
    # Earlier results have no pooled IoU.
    later = {metric for metric in METRICS if metric.variant_of or metric.over}
    metrics = [m for m in METRICS if m not in later or any(f"{m.key}_{c}" in measured for c in conditions)]
    sections = [Section("Robustness", _ROBUSTNESS, _robustness_rows(metrics, extra, measured), names_rows=False)]
    for metric in metrics:
        rows = [
            Score(
                f"{metric.key}_{condition}",
                label_of(condition),
                metric.unheard if condition in negatives else metric.heard,
                metric.digits,
            )
            for condition in conditions
        ]
        sections.append(Section(metric.label, metric.explanation, rows))
    by_condition = [
        Score(f"g_{metric.key}_{c}", f"{metric.general}, {label_of(c)}", metric.heard, metric.digits)
        for metric in metrics
        if metric.is_harmonic
        for c in negatives
    ]
    sections.append(Section("Robustness by condition", _BY_CONDITION, by_condition, names_rows=False))
    selective = [Score(m.key, m.label, m.heard, m.digits) for m in SELECTIVITY if m.key in measured]
    sections.append(Section("Selectivity", _SELECTIVITY, selective))
    for condition in sorted(partly_heard_conditions(measured)):
        partly = [Score(m.key.format(condition), m.label, m.heard, m.digits) for m in PARTLY_HEARD]
        sections.append(Section(label_of(condition).capitalize(), _PARTLY_HEARD, partly))
    similar = [Score(f"similarity_auroc_{c}", label_of(c), "higher") for c in conditions]
    similar = [row for row in similar if row.key in measured]
    if not any(math.isfinite(value) for row in similar for value in seed_values(runs, row.key)):
        similar = []
    sections.append(Section("Similarity AUROC", _SIMILARITY, similar))
    return [section for section in sections if section.rows]


def _robustness_rows(metrics, extra, measured):
    rows = []
    for metric in metrics:
        if not metric.general:
            continue
        better = metric.heard if metric.is_harmonic else metric.unheard
        rows.append(Score(f"g_{metric.key}", metric.general, better, metric.digits))
        for condition in extra:
            if f"g_{metric.key}_with_{condition}" in measured:
                label = f"{metric.general} with {label_of(condition)}"
                rows.append(Score(f"g_{metric.key}_with_{condition}", label, better, metric.digits))
        if metric.key == "miou":
            rows.append(Score("audio_blind_floor", "audio-blind floor of G-mIoU", ""))
    return rows


def model_intervals(seeds: Sequence[Run]) -> Mapping[str, Sequence[float]]:
    """metric -> [low, high] of one model's score, of several training seeds the mean: {} where no clips are known."""
    if len(seeds) == 1 and seeds[0].intervals:
        return seeds[0].intervals
    if not all(run.clips for run in seeds) or uncertainty.source_clusters(seeds[0].clips).max() == 0:
        return {}
    return uncertainty.intervals(*[run.clips for run in seeds], extra_negatives=extra_negatives(seeds))


def results_table(runs: Iterable[Run]) -> str:
    """The scores as aligned plain ASCII text: metrics by row, models by column, half-ranges over seeds, intervals."""
    return _scores_table(runs, TEXT)


def markdown_table(runs: Iterable[Run]) -> str:
    """The scores as a GitHub Markdown table; arrows say which direction is better."""
    return _scores_table(runs, MARKDOWN)


def latex_table(runs: Iterable[Run]) -> str:
    r"""The scores as a LaTeX `tabular`; needs `\usepackage{booktabs}`."""
    return _scores_table(runs, LATEX)


def model_cells(seeds: Sequence[Run], metrics: Iterable[Score], intervals: Mapping) -> dict[str, Cell]:
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
    label, at, ratio = label_of(condition).partition(" at ")
    return (label if label.endswith(("silence", "noise")) else f"{label} audio") + at + ratio


def label_of(condition: str) -> str:
    """The condition in words: off-screen; noise at -5 dB."""
    sweep = SWEEP.fullmatch(condition)
    if sweep:
        return f"{label_of(sweep[1])} at {sweep[2]} dB"
    return condition.replace("_", "-")


def _natural(condition):
    sweep = SWEEP.fullmatch(condition)
    return (sweep[1], float(sweep[2])) if sweep else (condition, 0.0)


def _half_range(values):
    finite = [v for v in values if math.isfinite(v)]
    return (max(finite) - min(finite)) / 2 if len(finite) > 1 else math.nan


def _scores_table(runs, form):
    runs = list(runs)
    models = group_by_name(runs)
    sections = sections_of(runs)
    metrics = [metric for section in sections for metric in section.rows]
    cells = {name: model_cells(seeds, metrics, model_intervals(seeds)) for name, seeds in models.items()}
    rows = [
        [
            [section.full_label(metric), metric.better]
            + [_cell_text(cells[name][metric.key], metric.digits, form) for name in models]
            for metric in section.rows
        ]
        for section in sections
    ]
    names = [head_of(name, seeds) for name, seeds in models.items()]
    return write_table(form, names, rows, "r" * len(names))


def _cell_text(cell, digits, form):
    text = number(cell.mean, digits, form.missing)
    if math.isfinite(cell.half_range):
        text += form.half_range.format(number(cell.half_range, digits))
    if cell.bounds:
        text += " " + form.interval.format(*(number(bound, digits) for bound in cell.bounds))
    return text
