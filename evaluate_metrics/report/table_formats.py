"""Writes a table of scores as plain text, Markdown or LaTeX."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MISSING = "–"
ARROWS = {"higher": "↑", "lower": "↓", "": ""}
LATEX_ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$", "": ""}

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class TableFormat:
    """What differs between the formats of a table.

    Attributes:
        missing: what stands for a score that is not defined.
        half_range, interval, signed: patterns for what follows a mean, for two bounds, and for a number with a sign.
        escape: turns any text into text of this format.
        arrows: what follows a score's label by the direction that is better; None: a column of its own names it.
        table: (head, sections, alignment of each column, "l" or "r") -> the table.
        notes: paragraphs -> what follows the table.
    """

    missing: str
    half_range: str
    interval: str
    signed: str
    escape: Callable[[str], str]
    arrows: Mapping[str, str] | None
    table: Callable[[Sequence[str], Sequence[Rows], str], str]
    notes: Callable[[Sequence[str]], str]


def write_table(form: TableFormat, names: Sequence[str], sections: Sequence[Rows], alignment: str) -> str:
    """The table, with a rule between sections.

    Args:
        names: heads of the columns after the first.
        sections: rows of (label, "higher", "lower" or "", one cell a name). Labels and names are escaped, cells not.
        alignment: "l" or "r" for each name.
    """
    if form.arrows is None:
        return form.table(["metric", "better", *names], sections, "ll" + alignment)
    rows = [
        [[f"{form.escape(label)} {form.arrows[better]}".rstrip(), *cells] for label, better, *cells in section]
        for section in sections
    ]
    return form.table(["metric", *map(form.escape, names)], rows, "l" + alignment)


def _text_table(head: Sequence[str], sections: Sequence[Rows], alignment: str) -> str:
    widths = [max(map(len, column)) for column in zip(head, *(row for rows in sections for row in rows), strict=True)]
    rule = ["-" * width for width in widths]
    lines = [head]
    for rows in sections:
        lines += [rule, *rows]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "".join(f"{line.rstrip()}\n" for line in padded)


def _markdown_table(head: Sequence[str], sections: Sequence[Rows], alignment: str) -> str:
    rule = ["---" if side == "l" else "---:" for side in alignment]
    lines = [head, rule, *(row for rows in sections for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex_table(head: Sequence[str], sections: Sequence[Rows], alignment: str) -> str:
    parts = ["".join(" & ".join(row) + " \\\\\n" for row in rows) for rows in ([head], *sections)]
    body = "\\midrule\n".join(parts)
    return f"\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{body}\\bottomrule\n\\end{{tabular}}\n"


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text).replace("\n", " ")


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " "}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


TEXT = TableFormat(
    missing="-",
    half_range=" +/- {}",
    interval="[{}, {}]",
    signed="{}",
    escape=str,
    arrows=None,
    table=_text_table,
    notes=lambda lines: "".join(f"\n{line}" for line in lines) + "\n",
)
MARKDOWN = TableFormat(
    missing=MISSING,
    half_range=" ± {}",
    interval="[{}, {}]",
    signed="{}",
    escape=_escape_markdown,
    arrows=ARROWS,
    table=_markdown_table,
    notes=lambda lines: "".join(f"\n{_escape_markdown(line)}\n" for line in lines),
)
LATEX = TableFormat(
    missing="--",
    half_range=r"\,$\pm$\,{}",
    interval=r"{{\scriptsize [{}, {}]}}",
    signed="${}$",
    escape=_escape_latex,
    arrows=LATEX_ARROWS,
    table=_latex_table,
    notes=lambda lines: "\n".join([r"\par\smallskip", r"{\footnotesize", *map(_escape_latex, lines), "}"]) + "\n",
)
