"""A comparison of two results as plain text, Markdown, LaTeX and JSON. Every format says how to read it."""

import json
from collections.abc import Sequence

from .. import uncertainty
from ..compare import Comparison
from ..results import Run
from .tables import (
    ARROWS,
    Score,
    difference_digits,
    escape_latex,
    escape_markdown,
    number,
    plain_table,
    sections_of,
    signed,
)

__all__ = ["FORMATS", "comparison_text"]


def _verdict(metric: Score, difference: uncertainty.Difference, names: Sequence[str]) -> str:
    """What stands, in words."""
    if not difference.stands:
        return "no"
    if not metric.better:
        return "yes"
    better = (difference.difference > 0) == (metric.better == "higher")
    return f"yes, {names[better]} is better"


def _lines(comparison, runs, names, show=lambda text: text):
    """Sections of text cells: metric, better, a, b, b - a, interval, verdict."""
    sections: dict[str, list[list[str]]] = {}
    for section in sections_of(runs):
        for metric in section.rows:
            found = comparison.differences.get(metric.key)
            if found is None:
                continue
            cells = [
                section.full_label(metric),
                metric.better,
                number(found.a, metric.digits),
                number(found.b, metric.digits),
            ]
            digits = difference_digits(found, metric.digits)
            difference, low, high = (show(signed(v, digits, "-")) for v in (found.difference, found.low, found.high))
            cells += [difference, f"[{low}, {high}]", f"{found.adjusted:.4f}"]
            sections.setdefault(section.title, []).append([*cells, _verdict(metric, found, names)])
    return list(sections.values())


def _head(comparison, names):
    a, b = names
    interval = f"{100 * comparison.settings['level']:g} % interval"
    return ["metric", "better", a, b, f"{b} - {a}", interval, "p", "stands"]


def _plain(comparison, runs, names):
    rows: list[list[str] | None] = [_head(comparison, names)]
    for section in _lines(comparison, runs, names):
        rows += [None, *section]
    return plain_table(rows) + "".join(f"\n{line}" for line in comparison.explanation) + "\n"


def _markdown(comparison, runs, names):
    head = _head(comparison, names)
    del head[1]
    lines = ["| " + " | ".join(map(escape_markdown, head)) + " |", "| --- |" + " ---: |" * 5 + " --- |"]
    for section in _lines(comparison, runs, names):
        for label, better, *cells, verdict in section:
            cells = [f"{escape_markdown(label)} {ARROWS[better]}".rstrip(), *cells, escape_markdown(verdict)]
            lines.append("| " + " | ".join(cells) + " |")
    for line in comparison.explanation:
        lines += ["", escape_markdown(line)]
    return "\n".join(lines) + "\n"


def _latex(comparison, runs, names):
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "": ""}
    head = _head(comparison, names)
    del head[1]
    lines = [r"\begin{tabular}{lrrrrrl}", r"\toprule", " & ".join(map(escape_latex, head)) + r" \\"]
    for section in _lines(comparison, runs, names, lambda text: f"${text}$"):
        lines.append(r"\midrule")
        for label, better, *cells, verdict in section:
            lines.append(" & ".join([escape_latex(label) + arrows[better], *cells, escape_latex(verdict)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\par\smallskip", r"{\footnotesize"]
    return "\n".join([*lines, *map(escape_latex, comparison.explanation), "}"]) + "\n"


def _json(comparison, runs, names):
    metrics = {
        metric: {
            "a": found.a,
            "b": found.b,
            "difference": found.difference,
            "interval": [found.low, found.high],
            "p": found.p,
            "p_adjusted": found.adjusted,
            "stands": found.stands,
        }
        for metric, found in comparison.differences.items()
    }
    content = {"a": names[0], "b": names[1], "scores": metrics}
    content |= {"primary": uncertainty.PRIMARY, "correction": "Holm, of all scores but the primary one"}
    content |= {"seeds": list(comparison.seeds), "covers_training_seeds": comparison.covers_training_seeds}
    content |= {"bootstrap": comparison.settings, "notes": list(comparison.notes)}
    content["explanation"] = comparison.explanation
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


FORMATS = {"text": _plain, "markdown": _markdown, "latex": _latex, "json": _json}


def comparison_text(
    comparison: Comparison, runs: Sequence[Run], names: Sequence[str] = ("a", "b"), form: str = "text"
) -> str:
    """Both scores, their difference, its interval and p-value, and which differences stand.

    Args:
        runs: those that were compared, for the order of the scores.
        names: what to call the sides.
        form: one of `FORMATS`.
    """
    return FORMATS[form](comparison, runs, names)
