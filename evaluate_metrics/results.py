"""What an evaluation left on disk: scores, each clip's part in them, the training log.

`results.json` needs no more than {"scores": {metric: value}}; everything else makes the report richer.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from avsbench_robust_dataset.files import printable

from .avs_robust.avs_robust import CONDITIONS, NEGATIVE_CONDITIONS, condition_scores
from .mask_files import Reading
from .mask_folders import Source

__all__ = ["Protocol", "Run", "check_annotations", "extra_negatives", "protocol_of", "read_clips", "read_run"]


@dataclass(frozen=True)
class Run:
    """One evaluated checkpoint. Runs with equal `name` are the seeds of one model.

    Attributes:
        name: the model's name in every table and picture.
        scores: metric -> fraction in [0, 1]; None or NaN where it is not defined.
        log: lines of the training log, {"step", "loss", …} or {"step", "validation": {metric: value}}.
        predictions: where its masks lie, as `mask_folders.py` finds them. None: no pictures of this run.
        subset, split: what was evaluated; "" if unknown.
        clips: one row a clip, see `clip_rows.py`.
        intervals: metric -> (low, high).
        bootstrap: how they were made: {"resamples", "level", "cluster", "clusters", "seed"}.
        breakdown: "category", "group", "mask_area" or "frame" -> name -> metric -> value.
        fpr_curve: {"thresholds": […], condition: [fraction of the frame above each]}.
        source_videos: how many the splits share, as `uncertainty.shared_source_videos` counts them.
        annotation: whose masks were scored against, "object" or "semantic"; "" if the file does not say.
        draw: the off-screen draw of the split: its name and `DrawStatistics`.
        mute_clips: condition -> ids of the clips that hear silence under it.
        weights: which weights the model holds, with their SHA-256.
        predictions_digest: `mask_files.predictions_digest` of the masks that were scored; "" if unknown.
    """

    name: str
    scores: Mapping[str, float | None]
    log: Sequence[Mapping] = ()
    predictions: Source | None = None
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
    annotation: str = ""
    draw: Mapping = field(default_factory=dict)
    mute_clips: Mapping[str, Sequence[str]] = field(default_factory=dict)
    weights: Mapping = field(default_factory=dict)
    predictions_digest: str = ""

    @property
    def reading(self) -> Reading:
        """How `predictions` are read."""
        background = self.settings.get("background")
        return Reading(
            self.settings.get("grey_of_one") or 255,
            bool(self.settings.get("resize")),
            tuple(background) if background else None,
            self.settings.get("pattern"),
        )


Fraction = Annotated[float, Field(ge=0, le=1)]
Fractions = Annotated[list[Fraction], Field(min_length=1)]
Count = Annotated[int, Field(ge=0, le=2**53)]  # what every JSON reader keeps exactly
Numbers = Annotated[list[float], Field(min_length=1)]
Pixels = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
MAX_DEPTH = 32  # of objects and lists in each other


def _in_range(scores: dict[str, float | None]) -> dict[str, float | None]:
    """Scores are fractions, save the numbers of clips; None and NaN are scores that are not defined."""
    for key, value in scores.items():
        is_count = key == "clips" or key.startswith("clips_") or key.endswith("_clips")
        if value is not None and (value < 0 or (value > 1 and not is_count)):
            expected = "a number of at least 0" if is_count else "a number from 0 to 1"
            raise PydanticCustomError("range", "{expected}", {"expected": expected, "key": key, "got": value})
    return scores


def _ascending(bounds: list[float]) -> list[float]:
    if bounds[0] > bounds[1]:
        raise PydanticCustomError("order", "[low, high]")
    return bounds


Scores = Annotated[dict[str, Annotated[float, Field(allow_inf_nan=True)] | None], AfterValidator(_in_range)]
Interval = Annotated[list[Fraction], Field(min_length=2, max_length=2), AfterValidator(_ascending)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _SourceVideos(_Checked):
    source_videos: Count
    in_several_splits: Count


class _Bootstrap(_Checked):
    resamples: Count | None = None
    level: Fraction | None = None
    clusters: Count | None = None
    clips: Count | None = None


class _Draw(_Checked):
    clips: Count
    sounds_unused: Count
    sounds_reused: Count
    most_uses: Count
    sound_auc: Fraction


class _Settings(_Checked):
    seed: Annotated[int, Field(ge=-(2**64), le=2**64)] | None = None
    conditions: list[str] | None = None
    max_clips: Count | None = None
    front_end: str | None = None
    prediction_levels: str | None = None
    grey_of_one: Literal[1, 255] | None = None
    resize: Literal["nearest"] | None = None
    background: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)] | None = None
    pattern: str | None = None


class _Results(_Checked):
    """The schema of `results.json`. Keys that it does not name are free."""

    scores: Scores
    model: str | None = None
    subset: str | None = None
    split: str | None = None
    settings: _Settings | None = None
    versions: dict | None = None
    intervals: dict[str, Interval] | None = None
    bootstrap: _Bootstrap | None = None
    breakdown: dict[str, dict[str, Scores]] | None = None
    fpr_curve: dict[str, Fractions] | None = None
    similarity_auroc: Scores | None = None
    extra_conditions: dict[str, Scores] | None = None
    source_videos: _SourceVideos | None = None
    annotation: Literal["object", "semantic"] | None = None
    draw: _Draw | None = None
    mute_clips: dict[str, list[str]] | None = None
    weights: dict | None = None
    clips_file: str | None = None
    predictions_dir: str | dict[str, str] | None = None
    predictions_digest: str | None = None

    @field_validator("fpr_curve")
    @classmethod
    def _of_one_length(cls, curves: dict | None) -> dict | None:
        if curves and ("thresholds" not in curves or len({len(curve) for curve in curves.values()}) > 1):
            raise PydanticCustomError("length", 'equally long lists of numbers, "thresholds" among them,')
        return curves


class _ClipInCondition(_Checked):
    __pydantic_extra__: dict[str, float | list[float] | None]
    iou: Fractions
    area: Fractions
    f_score: Fraction | None = None
    similarity: Numbers | None = None
    heard: list[bool] | None = None
    intersection: Pixels | None = None
    union: Pixels | None = None
    fpr_curve: Fractions | None = None


class _ClipRow(_Checked):
    """The schema of a line of `clips.jsonl`."""

    clip_id: str
    conditions: Annotated[dict[str, _ClipInCondition], Field(min_length=1)]
    category: str | None = None
    group: str | None = None
    source_video: str | None = None
    mask_area: Fractions | None = None
    selectivity: dict[str, Fraction] | None = None

    @model_validator(mode="after")
    def _one_number_a_frame(self) -> Self:
        for clip in self.conditions.values():
            lists = (clip.iou, clip.area, self.mask_area, clip.heard, clip.intersection, clip.union)
            if len({len(values or clip.iou) for values in lists}) > 1:
                expected = "equally many values in iou, area, mask_area, heard, intersection and union"
                raise PydanticCustomError("length", expected)
        return self


# Pydantic's kinds of errors in the words of JSON.
_WORDS = {
    "missing": "a value",
    "model_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "text",
    "too_short": "at least {min_length} numbers",
    "too_long": "at most {max_length} numbers",
}


def _check(schema: type[BaseModel], content: object, place: str) -> None:
    """Raises ValueError if `content` does not fit; names `place`, the key, what was expected and what came."""
    try:
        schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        context = first.get("ctx", {})
        keys = [*first["loc"], *([context["key"]] if "key" in context else [])]
        where = " for " + "".join([str(keys[0]), *(f"[{key!r}]" for key in keys[1:])]) if keys else ""
        expected = first["msg"].removeprefix("Input should be ")
        if first["type"] in _WORDS:
            expected = _WORDS[first["type"]].format(**context)
        got = "nothing" if first["type"] == "missing" else repr(context.get("got", first["input"]))[:80]
        raise ValueError(f"{place}: expected {expected}{where}, got {got}.") from error


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
    results = read_results(path)
    if isinstance(results, dict):
        results = {key: value for key, value in results.items() if value != {} or key == "scores"}
    _check(_Results, results, str(path))
    scores = dict(results["scores"])
    # Other figures are scores, too: every table has one row a score, whatever it measures.
    for condition, value in (results.get("similarity_auroc") or {}).items():
        scores.setdefault(f"similarity_auroc_{condition}", value)
    for condition, values in (results.get("extra_conditions") or {}).items():
        for key, value in values.items():
            scores.setdefault(f"{key}_{condition}", value)
    if log is None:
        beside = [folder / "train_log.jsonl" for folder in (directory, directory.resolve().parent)]
        log = next((candidate for candidate in beside if candidate.is_file()), None)
    clips: Sequence[Mapping] = ()
    clips_path = directory / str(results.get("clips_file") or "clips.jsonl")
    if not clips_path.resolve().is_relative_to(directory.resolve()):
        raise ValueError(f"{path}: expected a file of its own folder for 'clips_file', got {str(clips_path)!r}.")
    if results.get("clips_file") and clips_path.is_file():  # `results.json` may have been copied alone
        clips = read_clips(clips_path)
        _check_same(path, scores, clips)
    # None: no masks were saved, and a folder that lies there is another run's.
    saved = results.get("predictions_dir", "predictions")
    predictions: Source | None = None
    if isinstance(saved, dict):
        folders = {condition: directory / folder for condition, folder in saved.items()}
        predictions = folders if all(folder.is_dir() for folder in folders.values()) else None
    elif saved is not None and (directory / saved).is_dir():
        predictions = directory / saved
    measured = {"name": name, "scores": scores, "log": () if log is None else _read_log(Path(log))}
    measured |= {"clips": clips, "predictions": predictions}
    known = {field.name for field in fields(Run)}
    return Run(**{key: value for key, value in results.items() if key in known and value is not None} | measured)


class Protocol(NamedTuple):
    """What scores must have in common to be compared; "" and None: unknown."""

    subset: str
    split: str
    annotation: str
    clips: int | None
    front_end: str | None

    def differences(self, others: Iterable["Protocol"]) -> dict[str, str]:
        """Field -> its value in words, of the fields in which one of the others is known to differ.

        Those of another subset differ in nothing else: their clips are others.
        """
        words = {
            "subset": self.subset.upper(),
            "split": f"{self.split} split",
            "annotation": f"{self.annotation} masks",
            "clips": f"{self.clips} clips",
            "front_end": f"{self.front_end} front end",
        }
        found = set()
        for other in others:
            pairs = zip(self._fields, self, other, strict=True)
            fields = {name for name, ours, theirs in pairs if ours and theirs and ours != theirs}
            found |= {"subset"} if "subset" in fields else fields
        return {name: said for name, said in words.items() if name in found}


def protocol_of(run: Run) -> Protocol:
    """Results that do not say whose masks are of AVSBench-object, which alone was read before they said it."""
    clips = len(run.clips) or run.bootstrap.get("clips")
    return Protocol(run.subset, run.split, run.annotation or "object", clips, run.settings.get("front_end"))


def extra_negatives(runs: Iterable[Run]) -> list[str]:
    """Conditions beside silence, noise and off_screen that have a harmonic mean with the positives."""
    keys = {key for run in runs for key in run.scores}
    named = {key.removeprefix("g_miou_") for key in keys if key.startswith("g_miou_")} - set(NEGATIVE_CONDITIONS)
    return sorted(condition for condition in named if f"miou_{condition}" in keys)


def check_annotations(runs: Iterable[Run], mixed_annotations: bool = False) -> str:
    """What to say of runs that were scored against masks of different annotations; "" where they are the same.

    Args:
        mixed_annotations: do not refuse them.

    Raises:
        ValueError: they differ; the message names both annotations and their runs.
    """
    by_annotation: dict[str, list[str]] = {}
    for run in runs:
        by_annotation.setdefault(protocol_of(run).annotation, []).append(repr(run.name))
    if len(by_annotation) < 2:
        return ""
    found = "; ".join(f"AVSBench-{whose}: {', '.join(names)}" for whose, names in sorted(by_annotation.items()))
    if mixed_annotations:
        return f"The results are of masks of different annotations ({found}), on which every score depends."
    raise ValueError(
        f"Expected results of one annotation, got masks of two ({found}): their scores are not comparable. Score all "
        "against the same masks, or pass --mixed_annotations (`mixed_annotations=True`)."
    )


def read_clips(path: str | os.PathLike) -> list[dict]:
    """The rows of a `clips.jsonl`, checked.

    Raises:
        FileNotFoundError, ValueError: names the file, the line, what was expected and what came.
    """
    path = Path(path)
    rows: dict[str, dict] = {}
    for number, row in _json_lines(path, "the scores of each clip, one JSON object a line"):
        _check(_ClipRow, row, f"{path}, line {number}")
        if row["clip_id"] in rows:
            raise ValueError(f"{path}: expected each clip once, got {row['clip_id']!r} again. Evaluate again.")
        rows[row["clip_id"]] = row
    if not rows:
        raise ValueError(f"{path}: expected the scores of at least one clip, got an empty file. Evaluate again.")
    return list(rows.values())


def _printable(value, place: str, levels: int = MAX_DEPTH):
    """The JSON value with printable texts, which tables and messages show; ValueError if it is too deeply nested."""
    if isinstance(value, str):
        return printable(value)
    if not isinstance(value, dict | list):
        return value
    if not levels:
        raise ValueError(f"{place}: expected at most {MAX_DEPTH} objects and lists in each other, got more.")
    if isinstance(value, list):
        return [_printable(inner, place, levels - 1) for inner in value]
    return {printable(key): _printable(inner, place, levels - 1) for key, inner in value.items()}


def _parsed(text: str | bytes, place: str):
    """The JSON value; ValueError names `place` if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are the former
        raise ValueError(f"{place}: not valid JSON ({error}). Evaluate again, or remove the file.") from error


def read_json(path: Path):
    """The file's content; ValueError names it if it is not JSON."""
    return _parsed(path.read_bytes(), str(path))


def read_results(path: Path):
    """The content of a `results.json`, unchecked, its texts printable; ValueError names the file if it is not JSON."""
    return _printable(read_json(path), str(path))


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
            place = f"{path}, line {number}"
            yield number, _printable(_parsed(line, place), place)


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
