"""The table of a paper: models as rows, subsets side by side, percent with one decimal, best bold, second underlined.

Only full evaluations of one kind are ranked in a subset; others stand in the table with a mark and a note.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..avs_robust.avs_robust import METRICS
from ..results import Run, protocol_of
from .markup import render
from .table_formats import ARROWS, LATEX, LATEX_ARROWS, MARKDOWN, TableFormat
from .tables import Score, group_by_name, mean, model_intervals, number, partial_reasons, seed_values

LATEX_MARKS = (r"$^\dagger$", r"$^\ddagger$", r"$^\S$", r"$^\P$", r"$^\|$")
MARKDOWN_MARKS = ("†", "‡", "§", "¶", "‖")


# The scores under the clip's own sound, and over the negative conditions.
_SHOWN = [metric for metric in METRICS if metric.general and not metric.variant_of]
COLUMNS = [Score(f"{m.key}_positive", m.label, m.heard) for m in _SHOWN if m.heard]
COLUMNS += [Score(f"g_{m.key}", m.general, m.heard if m.is_harmonic else m.unheard) for m in _SHOWN]


@dataclass(frozen=True)
class _Block:
    """A subset's part of the table.

    Attributes:
        cells: model -> (percent with one decimal, "low, high" or "", place), one a column; place 1 is the best, 2 the
            second, 0 any other.
        notes: model -> why it is not ranked; "" if it is.
    """

    subset: str
    cells: Mapping[str, Sequence[tuple[float, str, int]]]
    notes: Mapping[str, str]


def _block(subset: str, runs: Sequence[Run]) -> _Block:
    models = group_by_name(runs)
    kinds = {name: protocol_of(seeds[0]) for name, seeds in models.items()}
    reasons = {name: partial_reasons(seeds[0]) for name, seeds in models.items()}
    whole = Counter(kinds[name] for name in models if not reasons[name])
    common = whole.most_common(1)[0][0] if whole else None
    notes = {}
    for name in models:
        others = [] if common is None else list(kinds[name].differences([common]).values())
        notes[name] = "; ".join(reasons[name] or others)
    ranked = [name for name in models if not notes[name]]
    intervals = {name: model_intervals(seeds) for name, seeds in models.items()}
    cells: dict[str, list[tuple[float, str, int]]] = {name: [] for name in models}
    for column in COLUMNS:
        values = {name: round(100 * mean(seed_values(seeds, column.key)), 1) for name, seeds in models.items()}
        found = {values[name] for name in ranked if math.isfinite(values[name])}
        best = sorted(found, reverse=column.better == "higher")[:2] if len(ranked) > 1 else []
        for name, value in values.items():
            bounds = ", ".join(number(100 * bound, 1) for bound in intervals[name].get(column.key, ()))
            place = best.index(value) + 1 if name in ranked and value in best else 0
            cells[name].append((value, bounds, place))
    return _Block(subset, cells, notes)


def _blocks(runs: Iterable[Run]) -> list[_Block]:
    by_subset: dict[str, list[Run]] = {}
    for run in runs:
        by_subset.setdefault(run.subset, []).append(run)
    return [_block(subset, of_subset) for subset, of_subset in by_subset.items()]


def _rows(blocks: Sequence[_Block], form: TableFormat, marks: Sequence[str], style, with_intervals: bool):
    """(rows of cells, the notes that the marks refer to)."""
    notes = list(dict.fromkeys(note for block in blocks for note in block.notes.values() if note))
    rows = []
    for name in dict.fromkeys(name for block in blocks for name in block.cells):
        row = [form.escape(name)]
        bounds = [""]
        for block in blocks:
            note = block.notes.get(name, "")
            mark = marks[notes.index(note) % len(marks)] if note else ""
            for value, interval, place in block.cells.get(name, [(math.nan, "", 0)] * len(COLUMNS)):
                text = style[place].format(number(value, 1, form.missing))
                row.append(text + (mark if math.isfinite(value) else ""))
                bounds.append(interval)
        rows.append((row, bounds if with_intervals else None))
    said = [f"{marks[i % len(marks)]} {form.escape(f'{note}: not ranked')}" for i, note in enumerate(notes)]
    return rows, said


def latex_paper_table(runs: Iterable[Run], intervals: bool = False) -> str:
    r"""The table in LaTeX, no wider than a line; needs `\usepackage{booktabs,graphicx}`.

    Args:
        intervals: with the 95 % interval of each score below it.
    """
    blocks = _blocks(runs)
    style = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")
    rows, notes = _rows(blocks, LATEX, LATEX_MARKS, style, intervals)
    lines = []
    for row, bounds in rows:
        lines += [row] if bounds is None else [row, [rf"{{\tiny {bound}}}" if bound else "" for bound in bounds]]
    return render(
        "paper.tex",
        subsets=[LATEX.escape(block.subset.upper()) for block in blocks],
        labels=[f"{LATEX.escape(column.label)}\\,{LATEX_ARROWS[column.better]}" for column in COLUMNS],
        lines=lines,
        notes=notes,
    )


def markdown_paper_table(runs: Iterable[Run], intervals: bool = False) -> str:
    """The table in GitHub Markdown; arguments as in `latex_paper_table`."""
    blocks = _blocks(runs)
    rows, notes = _rows(blocks, MARKDOWN, MARKDOWN_MARKS, ("{}", "**{}**", "<u>{}</u>"), intervals)
    head = ["model"]
    head += [
        f"{block.subset.upper()} {column.label} {ARROWS[column.better]}" for block in blocks for column in COLUMNS
    ]
    lines = [
        [f"{cell} [{bound}]" if bound else cell for cell, bound in zip(row, bounds or [""] * len(row), strict=True)]
        for row, bounds in rows
    ]
    table = MARKDOWN.table(head, [lines], "l" + "r" * (len(head) - 1))
    return table + "".join(f"\n{note}\n" for note in notes)
