"""A comparison of two results as plain text, Markdown, LaTeX and JSON. Every format says how to read it."""

import json
import math
from collections.abc import Sequence

from .. import uncertainty
from ..compare import Comparison
from ..results import Run
from .table_formats import LATEX, MARKDOWN, TEXT, write_table
from .tables import Score, difference_digits, number, sections_of, signed

TABLES = {"text": TEXT, "markdown": MARKDOWN, "latex": LATEX}
FORMATS = (*TABLES, "json")


def _verdict(metric: Score, difference: uncertainty.Difference, names: Sequence[str]) -> str:
    """What stands, in words; "" of a score of which neither direction is better."""
    if math.isnan(difference.adjusted):
        return ""
    if not difference.stands:
        return "no"
    better = (difference.difference > 0) == (metric.better == "higher")
    return f"yes, {names[better]} is better"


def _sections(comparison, runs, names, form):
    """Sections of rows: metric, better, a, b, b - a, interval, p, verdict."""
    sections = []
    for section in sections_of(runs):
        rows = []
        for metric in section.rows:
            found = comparison.differences.get(metric.key)
            if found is None:
                continue
            digits = difference_digits(found, metric.digits)
            difference, low, high = (
                form.signed.format(signed(v, digits, "-")) for v in (found.difference, found.low, found.high)
            )
            values = [number(found.a, metric.digits), number(found.b, metric.digits), difference]
            verdict = form.escape(_verdict(metric, found, names))
            sure = [f"[{low}, {high}]", number(found.adjusted, 4, ""), verdict]
            rows.append([section.full_label(metric), metric.better, *values, *sure])
        if rows:
            sections.append(rows)
    return sections


def _json(comparison, names):
    metrics = {
        metric: {
            "a": found.a,
            "b": found.b,
            "difference": found.difference,
            "interval": [found.low, found.high],
            "p": found.p,
            "p_adjusted": None if math.isnan(found.adjusted) else found.adjusted,
            "stands": found.stands,
        }
        for metric, found in comparison.differences.items()
    }
    content = {
        "a": names[0],
        "b": names[1],
        "scores": metrics,
        "primary": uncertainty.PRIMARY,
        "correction": "Holm, of all scores but the primary one",
        "seeds": comparison.seeds,
        "covers_training_seeds": comparison.covers_training_seeds,
        "bootstrap": comparison.settings,
        "notes": comparison.notes,
        "explanation": comparison.explanation,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def comparison_text(comparison: Comparison, runs: Sequence[Run], names: Sequence[str], form: str) -> str:
    """Both scores, their difference, its interval and p-value, and which differences stand.

    Args:
        runs: those that were compared, for the order of the scores.
        names: what to call the sides.
        form: one of `FORMATS`.
    """
    if form == "json":
        return _json(comparison, names)
    a, b = names
    head = [a, b, f"{b} - {a}", f"{100 * comparison.settings['level']:g} % interval", "p", "stands"]
    sections = _sections(comparison, runs, names, TABLES[form])
    return write_table(TABLES[form], head, sections, "rrrrrl") + TABLES[form].notes(comparison.explanation)
