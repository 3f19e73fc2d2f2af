"""Robustness scores as evidence: tables, charts, curves and pictures in one self-contained HTML page.

Runs of one name are the training seeds of one model. The page needs no network and no script.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from avsbench_robust_dataset.files import write_whole

from .. import uncertainty
from ..avs_robust.avs_robust import CONDITIONS
from ..compare import compare_runs
from ..data_notes import data_notes
from ..results import Run, check_annotations
from . import overlay
from .chart_sections import Evidence, categories_html, conditions_html, curves_html, parts_html, thresholds_html
from .gallery import Clip, gallery_html
from .markup import render
from .table_formats import ARROWS, MISSING
from .tables import (
    are_comparable,
    conditions_of,
    difference_digits,
    group_by_name,
    has_seeds,
    label_of,
    mean,
    model_cells,
    model_intervals,
    number,
    partial_reasons,
    sections_of,
    seed_values,
    signed,
    sound_of,
)


def write_report(
    out_dir: str | os.PathLike,
    runs: Iterable[Run],
    clips: Iterable[Clip] = (),
    *,
    title: str = "Does the model listen?",
    notes: Sequence[str] = (),
    settings: Mapping | None = None,
    gallery_size: int = 12,
    mixed_annotations: bool = False,
) -> Path:
    """Writes `out_dir/index.html`, one self-contained page, and returns its path.

    Args:
        out_dir: made if it is missing. An existing page is replaced in one step, or left alone on an error.
        runs: two or more seeds of a model are runs of equal name. The order of first appearance is the order of the
            columns. The gallery shows the first run of each model that has predictions, and ranks the clips by the
            bias of the first model and the G-mIoU of the last (`choose_clips`).
        clips: read once, one at a time; memory holds one small JPEG a clip.
        title: the page's headline.
        notes: what the reader should know before believing the numbers; plain text, one paragraph each.
        settings: of the whole experiment; shown beside each run's own.
        gallery_size: clips shown under every condition, beside the most biased, best and worst one under each.
        mixed_annotations: show results on AVSBench-object's masks beside results on AVSBench-semantic's.

    Raises:
        ValueError, FileNotFoundError: no runs, runs of different annotations, a missing prediction, one of another
            size; the message names the file.
    """
    runs = list(runs)
    said = [*notes, *filter(None, [check_annotations(runs, mixed_annotations)]), *_data_notes(runs)]
    models = group_by_name(runs)
    colors = {name: overlay.COLORS[i % len(overlay.COLORS)] for i, name in enumerate(models)}
    gallery = gallery_html(runs, models, clips, colors, gallery_size)  # first: it reads files, and may find one bad
    comparison = _comparison(models, mixed_annotations)
    intervals = {name: model_intervals(seeds) for name, seeds in models.items()}
    scores = sections_of(runs)
    metrics = [metric for section in scores for metric in section.rows]
    evidence = Evidence(
        runs,
        models,
        colors,
        scores,
        cells={name: model_cells(seeds, metrics, intervals[name]) for name, seeds in models.items()},
        intervals=intervals,
        differences=comparison.differences if comparison else {},
        explanation=comparison.explanation if comparison else (),
    )
    sections = [
        ("results", "Scores", _table_html(evidence)),
        ("charts", "By condition", conditions_html(evidence)),
        ("thresholds", "FPR over the threshold", thresholds_html(evidence)),
        ("categories", "By category", categories_html(evidence)),
        ("parts", "By group, size and time", parts_html(evidence)),
        ("curves", "Training", curves_html(models)),
        ("gallery", "Clips", gallery),
        ("notes", "Notes and limits", render("notes.html", notes=[*said, *_source_notes(runs)])),
        ("settings", "Settings and versions", _settings_html(runs, settings or {})),
    ]
    sections = [section for section in sections if section[2]]
    head = {"title": title, "headline": _headline(runs, models), "cards": _cards_html(evidence)}
    page = render("page.html", sections=sections, **head)
    path = Path(out_dir) / "index.html"
    write_whole(path, f"{page}\n".encode())
    return path


def _comparison(models, mixed_annotations):
    """The comparison of two models that were scored on the same clips; None for any other number of models."""
    if len(models) != 2:
        return None
    runs = [run for seeds in models.values() for run in seeds]
    if not are_comparable(runs) or not all(run.clips for run in runs):
        return None
    if len({frozenset(row["clip_id"] for row in run.clips) for run in runs}) > 1:
        return None
    rows, left_out = uncertainty.common_conditions([run.clips for run in runs])
    # The G-scores average over the benchmark's conditions.
    if set(left_out) & set(CONDITIONS) or uncertainty.source_clusters(rows[0]).max() == 0:
        return None
    return compare_runs(*models.values(), mixed_annotations=mixed_annotations)


# --- header and scores -----------------------------------------------------------------------------------------------


def _join(words):
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _headline(runs, models):
    places = list(dict.fromkeys(" ".join(filter(None, (run.subset.upper(), run.split))) for run in runs))
    where = f" on {_join(places)}" if all(places) else ""
    measured = [c for c in conditions_of(runs) if any(math.isfinite(v) for v in seed_values(runs, f"miou_{c}"))]
    scores = _join(f"{name} {number(mean(seed_values(seeds, 'g_miou')), 3)}" for name, seeds in models.items())
    named = [c for c in measured if c in CONDITIONS]
    sounds = [*map(label_of, named[:-1]), *map(sound_of, named[-1:])]
    if more := len(measured) - len(named):
        sounds.append(f"{more} {'more' if named else 'extra'} condition{'s' if more > 1 else ''}")
    under = f" under {_join(sounds)}" if measured else ""
    counts = sorted({len(seeds) for seeds in models.values()})
    means = f" (means over {' or '.join(map(str, counts))} training seeds)" if counts[-1] > 1 else ""
    return (
        f"Measured{where}{under}: does a model segment the object that it hears, and nothing when that object is "
        f"silent? G-mIoU{means}: {scores}."
    )


def _cards_html(evidence):
    cells = evidence.cells
    cards = [(name, evidence.colors[name], of["g_miou"], of["audio_blind_floor"].mean) for name, of in cells.items()]
    return render("cards.html", cards=cards)


def _table_html(evidence):
    seeds = (
        "Small figures without brackets: the seeds, in one order throughout. " if has_seeds(evidence.models) else ""
    )
    return render(
        "scores.html",
        hint=seeds + _intervals_hint(evidence),
        models=[(name, len(seeds), "; ".join(partial_reasons(seeds[0]))) for name, seeds in evidence.models.items()],
        cells=evidence.cells,
        sections=evidence.sections,
        arrows=ARROWS,
        differences=_differences(evidence) if evidence.has_differences else {},
    )


def _differences(evidence):
    """metric -> the second model's score less the first's, its interval, whether it stands, in words too."""
    first, second = evidence.cells.values()
    shown = {}
    for section in evidence.sections:
        for metric in section.rows:
            value = second[metric.key].mean - first[metric.key].mean
            found = evidence.differences.get(metric.key)
            digits = difference_digits(found, metric.digits) if found else metric.digits
            bounds = [_signed(bound, digits) for bound in (found.low, found.high)] if found else []
            if not found or math.isnan(found.adjusted):
                verdict = ""
            else:
                verdict = "stands" if found.stands else "may be chance"
            is_known = math.isfinite(value)
            shown[metric.key] = (_signed(value, digits), bounds if is_known else [], verdict if is_known else "")
    return shown


def _intervals_hint(evidence):
    if not any(evidence.intervals.values()):
        return ""
    made = []
    for run in evidence.runs:
        how = run.bootstrap or (uncertainty.bootstrap_settings(run.clips) if run.clips else {})
        if {"clusters", "resamples", "level"} <= how.keys():
            clips = f"{how.get('clips', len(run.clips) or '?')} clips of {how['clusters']} source videos"
            made.append(f"{100 * how['level']:g} % bootstrap over {clips}, {how['resamples']} resamples")
    said = f" ({'; '.join(dict.fromkeys(made))})" if made else ""
    compared = "".join(f" {line}" for line in evidence.explanation)
    seeds = " They cover the choice of clips, not that of training seeds." if has_seeds(evidence.models) else ""
    return f"In brackets: intervals{said}; clips of one source video share a weight.{seeds}{compared} "


def _signed(value, digits):
    return signed(value, digits).replace("-", "−")


# --- notes and settings ----------------------------------------------------------------------------------------------


def _data_notes(runs):
    """Whose masks, which draw, which clips are mute; named by run only where the runs do not all say the same."""
    by_run = [(run, data_notes(vars(run))) for run in runs]
    if len({tuple(notes) for _, notes in by_run}) == 1:
        return by_run[0][1]
    return list(dict.fromkeys(f"{run.name}: {note}" for run, notes in by_run for note in notes))


def _source_notes(runs):
    """What the intervals cannot cover: source videos that several splits share."""
    notes = []
    for run in runs:
        shared = run.source_videos
        if shared.get("in_several_splits"):
            note = (
                f"{run.subset.upper()}: {shared['in_several_splits']} of {shared['source_videos']} source videos have "
                "clips in more than one split"
            )
            own = shared.get("by_split", {}).get(run.split) or shared.get("by_split", {}).get(run.split[:3])
            note += f", {own} of those in the {run.split} split" if own else ""
            notes.append(f"{note}. The intervals do not cover what a model may remember of them.")
    return list(dict.fromkeys(notes))


def _settings_html(runs, settings):
    """Every setting once: in the first column where all runs agree, else by run."""
    counts = Counter(run.name for run in runs)
    numbers: Counter[str] = Counter()
    columns = []
    for run in runs:
        numbers[run.name] += 1
        columns.append(f"{run.name} #{numbers[run.name]}" if counts[run.name] > 1 else run.name)
    common = _flatten(settings)
    parts = ("versions", "bootstrap", "weights")
    own = [_flatten({**run.settings, **{part: getattr(run, part) for part in parts}}) for run in runs]
    differing = {}
    for key in dict.fromkeys(key for values in own for key in values):
        values = [each.get(key, MISSING) for each in own]
        if len(set(values)) == 1 and common.get(key, values[0]) == values[0]:
            common[key] = values[0]
        else:
            differing[key] = values
    return render("settings.html", common=common, differing=differing, columns=columns)


def _flatten(mapping, prefix=""):
    flat: dict[str, str] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            flat[f"{prefix}{key}"] = shown
    return flat
