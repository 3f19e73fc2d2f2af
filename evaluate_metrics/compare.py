"""Which differences between two results stand: `avs-report compare a/results.json b/results.json`.

Both are scored on the same resamples of the clips (paired bootstrap), so that what makes a clip easy or hard for both
falls out of the difference. Needs the `clips.jsonl` that evaluate_accelerate.py writes beside `results.json`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import uncertainty
from .avs_robust.avs_robust import CONDITIONS
from .report.tables import (
    ARROWS,
    Score,
    Section,
    difference_digits,
    escape_latex,
    escape_markdown,
    extra_negatives,
    number,
    plain_table,
    sections_of,
    signed,
)
from .results import Run, read_run

__all__ = ["Comparison", "compare_runs", "main"]


@dataclass(frozen=True)
class Comparison:
    """Two models' scores side by side.

    Attributes:
        rows: (section, metric, its difference) in the order of the report's tables.
        settings: how the intervals were made, as `uncertainty.bootstrap_settings` gives them.
        notes: what the reader should know: left-out conditions, another draw of sounds.
    """

    rows: Sequence[tuple[Section, Score, uncertainty.Difference]]
    settings: dict
    notes: Sequence[str]


def compare_runs(
    a: Sequence[Run],
    b: Sequence[Run],
    *,
    resamples: int = uncertainty.RESAMPLES,
    level: float = uncertainty.LEVEL,
    seed: int = uncertainty.SEED,
) -> Comparison:
    """The differences b - a of all scores that both sides have; several runs of a side are seeds, and averaged.

    A further condition that one side lacks is left out, with a note; of silence, noise and off_screen both must have
    the same, because the G-scores average over them.

    Raises:
        ValueError: a run without clips, or clips or conditions that differ; the message names them.
    """
    runs = [*a, *b]
    for run in runs:
        if not run.clips:
            raise ValueError(
                f"Expected clips.jsonl beside the results of {run.name!r}, as evaluate_accelerate.py writes it: a "
                "paired comparison needs each clip's scores. Evaluate again."
            )
    notes = []
    rows, left_out = uncertainty.common_conditions([run.clips for run in runs])
    if set(left_out) & set(CONDITIONS):
        missing = ", ".join(c for c in CONDITIONS if c in left_out)
        raise ValueError(
            f"Expected the same conditions on both sides, but not every result has {missing}. Score both under them."
        )
    if left_out:
        notes.append(f"Left out, because not every result has them: {', '.join(left_out)}.")
    if len({(run.subset, run.split) for run in runs}) > 1:
        notes.append("The results name different subsets or splits, but have the same clips.")
    if len({json.dumps(run.settings.get("seed"), default=str) for run in runs}) > 1:
        notes.append("The results name different seeds of the draw: the negative sounds may not be the same ones.")
    rows = uncertainty.paired_rows(rows)
    other = {
        row["clip_id"]
        for table in rows[1:]
        for row, first in zip(table, rows[0], strict=True)
        if row.get("mask_area") != first.get("mask_area")
    }
    if other:
        notes.append(f"{len(other)} clips were scored against masks of another area, {min(other)!r} among them.")
    further = extra_negatives(runs)
    options = dict(resamples=resamples, seed=seed)
    found = uncertainty.compare(rows[: len(a)], rows[len(a) :], further_negatives=further, level=level, **options)
    found = {difference.metric: difference for difference in found}
    table = [
        (section, metric, found[metric.key])
        for section in sections_of(runs)
        for metric in section.rows
        if metric.key in found
    ]
    settings = uncertainty.bootstrap_settings(rows[0], level=level, **options)
    return Comparison(table, settings, notes)


def _verdict(metric: Score, difference: uncertainty.Difference, names: Sequence[str]) -> str:
    """What stands, in words."""
    if not difference.stands:
        return "no"
    if not metric.better:
        return "yes"
    better = (difference.difference > 0) == (metric.better == "higher")
    return f"yes, {names[better]} is better"


def _lines(comparison, names, show=lambda text: text):
    """Sections of text cells: metric, better, a, b, b - a, interval, verdict."""
    sections = {}
    for section, metric, found in comparison.rows:
        cells = [
            section.full_label(metric),
            metric.better,
            number(found.a, metric.digits),
            number(found.b, metric.digits),
        ]
        digits = difference_digits(found, metric.digits)
        difference, low, high = (show(signed(v, digits, "-")) for v in (found.difference, found.low, found.high))
        cells += [difference, f"[{low}, {high}]"]
        sections.setdefault(section.title, []).append([*cells, _verdict(metric, found, names)])
    return list(sections.values())


def _head(comparison, names):
    a, b = names
    return ["metric", "better", a, b, f"{b} - {a}", f"{100 * comparison.settings['level']:g} % interval", "stands"]


def _plain(comparison, names):
    rows = [_head(comparison, names)]
    for section in _lines(comparison, names):
        rows += [None, *section]
    return plain_table(rows)


def _markdown(comparison, names):
    head = _head(comparison, names)
    del head[1]
    lines = ["| " + " | ".join(map(escape_markdown, head)) + " |", "| --- |" + " ---: |" * 4 + " --- |"]
    for section in _lines(comparison, names):
        for label, better, *cells, verdict in section:
            cells = [f"{escape_markdown(label)} {ARROWS[better]}".rstrip(), *cells, escape_markdown(verdict)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _latex(comparison, names):
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "": ""}
    head = _head(comparison, names)
    del head[1]
    lines = [r"\begin{tabular}{lrrrrl}", r"\toprule", " & ".join(map(escape_latex, head)) + r" \\"]
    for section in _lines(comparison, names, lambda text: f"${text}$"):
        lines.append(r"\midrule")
        for label, better, *cells, verdict in section:
            lines.append(" & ".join([escape_latex(label) + arrows[better], *cells, escape_latex(verdict)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _json(comparison, names):
    metrics = {
        found.metric: {
            "a": found.a,
            "b": found.b,
            "difference": found.difference,
            "interval": [found.low, found.high],
            "stands": found.stands,
        }
        for _, _, found in comparison.rows
    }
    content = {"a": names[0], "b": names[1], "scores": metrics}
    content |= {"bootstrap": comparison.settings, "notes": list(comparison.notes)}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


_FORMATS = {"text": _plain, "markdown": _markdown, "latex": _latex, "json": _json}


def main(argv: Sequence[str] | None = None) -> None:
    """`avs-report compare`: prints both scores, their difference, its interval, and which differences stand."""
    parser = argparse.ArgumentParser(
        prog="avs-report compare", description="Which differences between two results stand (paired bootstrap)."
    )
    parser.add_argument("a", type=Path, metavar="A", help="results.json of the first model, or its folder")
    parser.add_argument("b", type=Path, metavar="B", help="results.json of the second model, or its folder")
    parser.add_argument("--more_a", type=Path, nargs="+", default=[], metavar="A2", help="further seeds of A")
    parser.add_argument("--more_b", type=Path, nargs="+", default=[], metavar="B2", help="further seeds of B")
    parser.add_argument("--names", nargs=2, default=["a", "b"], metavar=("A", "B"), help="what to call them")
    parser.add_argument("--format", choices=list(_FORMATS), default="text")
    parser.add_argument("--resamples", type=int, default=uncertainty.RESAMPLES, metavar="N")
    parser.add_argument("--level", type=float, default=uncertainty.LEVEL, metavar="P", help="of the intervals")
    parser.add_argument("--seed", type=int, default=uncertainty.SEED, help="of the resamples")
    args = parser.parse_args(argv)
    if args.resamples < 1:
        parser.error(f"argument --resamples: expected at least 1, got {args.resamples}")
    if not 0 < args.level < 1:
        parser.error(f"argument --level: expected a number between 0 and 1, got {args.level}")
    try:
        sides = [
            [read_run(str(path), path) for path in paths] for paths in ([args.a, *args.more_a], [args.b, *args.more_b])
        ]
        found = compare_runs(*sides, resamples=args.resamples, level=args.level, seed=args.seed)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"avs-report compare: {error}\n")
    print(_FORMATS[args.format](found, args.names), end="")
    if args.format == "text":
        for line in _said(found, sides):
            print(line)


def _said(comparison, sides):
    """How to read the table."""
    made = comparison.settings
    yield ""
    for name, runs in zip("ab", sides, strict=True):
        yield f"{name}: {', '.join(run.name for run in runs)}" + (" (mean of seeds)" if len(runs) > 1 else "")
    stands = sum(found.stands for _, _, found in comparison.rows)
    yield (
        f"{stands} of {len(comparison.rows)} differences stand: their {100 * made['level']:g} % interval leaves "
        "out 0. Each is judged on its own, without correction for their number."
    )
    together = "" if made["clusters"] == made["clips"] else "; clips of one source video are drawn together"
    yield (
        f"Paired bootstrap over {made['clips']} clips of {made['clusters']} source videos, {made['resamples']} "
        f"resamples, seed {made['seed']}{together}."
    )
    yield from comparison.notes
