"""What an evaluation left on disk: scores, each clip's part in them, the training log.

`results.json` needs no more than {"scores": {metric: value}}; everything else makes the report richer.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .avs_robust.avs_robust import CONDITIONS, NEGATIVE_CONDITIONS, condition_scores

__all__ = ["Run", "extra_negatives", "read_clips", "read_run"]


@dataclass(frozen=True)
class Run:
    """One evaluated checkpoint. Runs with equal `name` are the seeds of one model.

    Attributes:
        name: the model's name in every table and picture.
        scores: metric -> fraction in [0, 1]; None or NaN where it is not defined.
        log: lines of the training log, {"step", "loss", …} or {"step", "validation": {metric: value}}.
        predictions: folder of mask PNGs, `<condition>/<category>/<clip>/<clip>_<k>.png`, k from 1 (or from 0), the
            category level optional; 8-bit probabilities. None: no pictures of this run.
        subset, split: what was evaluated; "" if unknown.
        settings, versions: as `results.json` has them.
        clips: one row a clip, as `clips.jsonl` has them (see `uncertainty.py`); empty: only `intervals` are known.
        intervals: metric -> (low, high), as `results.json` has them.
        bootstrap: how they were made: {"resamples", "level", "cluster", "clusters", "seed"}.
        breakdown: "category", "group", "mask_area" or "frame" -> name -> metric -> value.
        fpr_curve: {"thresholds": […], condition: [fraction of the frame above each]}.
        source_videos: how many the splits share, as `uncertainty.shared_source_videos` counts them.
        grey_of_one: grey of probability 1 in the PNGs of `predictions`: 255, or 1 where they hold masks of 0 and 1.
    """

    name: str
    scores: Mapping[str, float | None]
    log: Sequence[Mapping] = ()
    predictions: Path | None = None
    subset: str = ""
    split: str = ""
    settings: Mapping = field(default_factory=dict)
    versions: Mapping = field(default_factory=dict)
    clips: Sequence[Mapping] = ()
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    bootstrap: Mapping = field(default_factory=dict)
    breakdown: Mapping[str, Mapping[str, Mapping[str, float | None]]] = field(default_factory=dict)
    fpr_curve: Mapping[str, Sequence[float]] = field(default_factory=dict)
    source_videos: Mapping = field(default_factory=dict)
    grey_of_one: int = 255


def read_run(name: str, directory: str | os.PathLike, log: str | os.PathLike | None = None) -> Run:
    """The run evaluated in `directory`, with its clips' scores, training log and predictions where they exist.

    Args:
        name: the model's name; give the seeds of one model the same name.
        directory: has `results.json` and perhaps `clips.jsonl` and `predictions/`; or the path of the `results.json`.
        log: the training run's `train_log.jsonl`; by default the one in `directory` or in the folder above it.

    Raises:
        FileNotFoundError: no `results.json`, or no file at `log`.
        ValueError: a file that is not what it should be; the message names it, and the line of a log or clips file.
    """
    directory = Path(directory)
    path = directory if directory.is_file() else directory / "results.json"
    directory = path.parent
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found. Expected a folder that evaluate_accelerate.py wrote.")
    results = read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("scores"), dict):
        raise ValueError(f'{path}: expected {{"scores": {{metric: value}}, …}}, as evaluate_accelerate.py writes it.')
    _check_numbers(path, "scores", results["scores"])
    optional = ("settings", "versions", "intervals", "bootstrap", "breakdown", "fpr_curve", "source_videos")
    optional += ("similarity_auroc", "extra_conditions")
    for key in optional:
        if not isinstance(results.get(key) or {}, dict):
            raise ValueError(f"{path}: expected an object for {key!r}, got {results[key]!r}.")
    found = {key: results.get(key) or {} for key in optional}
    _check_details(path, found)
    grey_of_one = found["settings"].get("grey_of_one", 255)
    if grey_of_one not in (1, 255):
        raise ValueError(f"{path}: expected 1 or 255 for settings['grey_of_one'], got {grey_of_one!r}.")
    scores = dict(results["scores"])
    # Further figures are further scores: every table has one row a score, whatever it measures.
    for condition, value in found["similarity_auroc"].items():
        scores.setdefault(f"similarity_auroc_{condition}", value)
    for condition, values in found["extra_conditions"].items():
        for key in ("miou", "f_score", "fpr", "g_miou", "g_f_score"):
            if key in values:
                scores.setdefault(f"{key}_{condition}", values[key])
    if log is None:
        beside = [folder / "train_log.jsonl" for folder in (directory, directory.resolve().parent)]
        log = next((candidate for candidate in beside if candidate.is_file()), None)
    clips = ()
    clips_path = directory / str(results.get("clips_file") or "clips.jsonl")
    if results.get("clips_file") and clips_path.is_file():  # `results.json` may have been copied alone
        clips = read_clips(clips_path)
        _check_same(path, scores, clips)
    predictions = directory / str(results.get("predictions_dir") or "predictions")
    return Run(
        name=name,
        scores=scores,
        log=() if log is None else _read_log(Path(log)),
        predictions=predictions if predictions.is_dir() else None,
        subset=str(results.get("subset", "")),
        split=str(results.get("split", "")),
        settings=found["settings"],
        versions=found["versions"],
        clips=clips,
        intervals=found["intervals"],
        bootstrap=found["bootstrap"],
        breakdown=found["breakdown"],
        fpr_curve=found["fpr_curve"],
        source_videos=found["source_videos"],
        grey_of_one=grey_of_one,
    )


def extra_negatives(runs: Iterable[Run]) -> list[str]:
    """Conditions beside silence, noise and off_screen that have a harmonic mean with the positives."""
    keys = {key for run in runs for key in run.scores}
    named = {key.removeprefix("g_miou_") for key in keys if key.startswith("g_miou_")} - set(NEGATIVE_CONDITIONS)
    return sorted(condition for condition in named if f"miou_{condition}" in keys)


def read_clips(path: str | os.PathLike) -> list[dict]:
    """The rows of a `clips.jsonl`, checked.

    Raises:
        FileNotFoundError, ValueError: names the file, the line, what was expected and what came.
    """
    path = Path(path)
    rows = []
    for number, row in _json_lines(path, "the scores of each clip, one JSON object a line"):
        place = f"{path}, line {number}"
        conditions = row.get("conditions") if isinstance(row, dict) else None
        if not (isinstance(conditions, dict) and conditions and isinstance(row.get("clip_id"), str)):
            raise ValueError(f'{place}: expected an object with "clip_id" and "conditions", got {str(row)[:80]!r}.')
        for key in ("category", "group", "source_video"):
            if not isinstance(row.get(key), str | None):
                raise ValueError(f"{place}: expected text or null for {key!r}, got {row[key]!r}.")
        for condition, values in conditions.items():
            if not (isinstance(values, dict) and _are_numbers(values.get("iou")) and _are_numbers(values.get("area"))):
                raise ValueError(f'{place}: expected numbers for each frame in "iou" and "area" of {condition!r}.')
            if not (values.setdefault("f_score", None) is None or _are_numbers([values["f_score"]])):
                raise ValueError(f'{place}: expected a number or null for "f_score" of {condition!r}.')
            for key in ("similarity", "fpr_curve"):
                if not (values.get(key) is None or _are_numbers(values[key])):
                    raise ValueError(f"{place}: expected numbers or null for {key!r} of {condition!r}.")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: expected the scores of at least one clip, got an empty file. Evaluate again.")
    if len({row["clip_id"] for row in rows}) < len(rows):
        seen = set()
        twice = next(row["clip_id"] for row in rows if row["clip_id"] in seen or seen.add(row["clip_id"]))
        raise ValueError(f"{path}: expected each clip once, got {twice!r} again. Evaluate again.")
    return rows


def read_json(path: Path):
    """The file's content; ValueError names it if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path}: not valid JSON ({error}). Evaluate again, or remove the file.") from error


def _read_log(path):
    records = []
    for number, record in _json_lines(path, "a training log, one JSON object a line"):
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            got = str(record)[:80]
            raise ValueError(f'{path}, line {number}: expected an object with an integer "step", got {got!r}.')
        records.append(record)
    return records


def _json_lines(path, expected):
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found. Expected {expected}.")
    # Bytes, so that a line of another encoding is an error of that line.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error}).") from error


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(values):
    return isinstance(values, list) and bool(values) and all(_is_number(v) and math.isfinite(v) for v in values)


def _check_numbers(path, name, mapping):
    for key, value in mapping.items():
        if not (value is None or _is_number(value)):
            raise ValueError(f"{path}: expected a number or null for {name}[{key!r}], got {value!r}.")


def _check_details(path, found):
    for key, bounds in found["intervals"].items():
        if not (_are_numbers(bounds) and len(bounds) == 2):
            raise ValueError(f"{path}: expected [low, high] for intervals[{key!r}], got {bounds!r}.")
    _check_numbers(path, "similarity_auroc", found["similarity_auroc"])
    for section, groups in [("extra_conditions", found["extra_conditions"]), *found["breakdown"].items()]:
        if not (isinstance(groups, dict) and all(isinstance(values, dict) for values in groups.values())):
            raise ValueError(f"{path}: expected an object of objects for {section!r}, got {str(groups)[:80]!r}.")
        for name, values in groups.items():
            _check_numbers(path, f"{section}.{name}", values)
    for key, used in (
        ("bootstrap", ("resamples", "level", "clusters", "clips")),
        ("source_videos", ("source_videos", "in_several_splits")),
    ):
        _check_numbers(path, key, {k: found[key][k] for k in used if k in found[key]})
    if found["source_videos"] and not {"source_videos", "in_several_splits"} <= found["source_videos"].keys():
        raise ValueError(f'{path}: expected "source_videos" and "in_several_splits" in {found["source_videos"]!r}.')
    curve = found["fpr_curve"]
    lengths = {len(values) if _are_numbers(values) else 0 for values in curve.values()}
    if curve and ("thresholds" not in curve or lengths != {len(curve["thresholds"])}):
        raise ValueError(f'{path}: expected equally long lists of numbers in "fpr_curve", "thresholds" among them.')


def _check_same(path, scores, clips):
    """Refuses clips that the scores are not of: a folder may hold those of a later, unfinished evaluation.

    Frames without an object counted under negative conditions, too, when earlier versions wrote `results.json`.
    """
    for condition in CONDITIONS:
        value = scores.get(f"miou_{condition}")
        rows = [row for row in clips if condition in row["conditions"]]
        if value is None or not math.isfinite(value) or not rows:
            continue
        areas = [row.get("mask_area") for row in rows]
        predictions = [row["conditions"][condition] for row in rows]
        means = condition_scores(predictions, areas, condition in NEGATIVE_CONDITIONS)
        if not any(
            mean is not None and math.isclose(mean, value, abs_tol=1e-6)
            for mean in (means["miou"], means["miou_released"])
        ):
            raise ValueError(
                f"{path}: miou_{condition} is {value:.6f} here, but {means['miou']:.6f} over the {len(rows)} clips of "
                "its clips file. They are of two evaluations; evaluate again."
            )
