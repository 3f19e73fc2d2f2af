"""Turns probabilities into rows, scores and a printed table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from accelerate import Accelerator
from accelerate.utils import gather_object

from avsbench_robust_dataset import SPLITS
from avsbench_robust_dataset.conditions import get_condition, heard_frames
from avsbench_robust_dataset.progress import progress_bar
from avsbench_robust_dataset.recipes import generator_key
from avsbench_robust_dataset.sources import media_files, silent_mask_files
from avsbench_robust_dataset.subsets import FRAMES_PER_CLIP
from evaluate_metrics.avs_robust.avs_robust import METRICS, PARTLY_HEARD, SELECTIVITY, partly_heard_conditions
from evaluate_metrics.clip_rows import clip_row, scores
from evaluate_metrics.mask_files import READING, Reading, Target, read_objects, score_predictions
from evaluate_metrics.mask_folders import Source

from .clips import DecodedClip, Splits, check_splits, clip_metadata, evenly_spaced
from .data_facts import Download
from .journal import Journal
from .predict import Predictions, Segmented, Segmenter, predict


def score(
    batches: Iterable[Predictions],
    conditions: Sequence[str],
    accelerator: Accelerator,
    download: Download | None = None,
    journal: Journal | None = None,
    total: int | None = None,
    silent_masks: Mapping[str, Sequence[Path]] = MappingProxyType({}),
) -> list[dict]:
    """The rows (see `evaluate_metrics.clip_rows`) of all processes' clips, as `predict` yields them, in every process.

    Args:
        download: gives the rows categories, groups and source videos.
        journal: receives the rows of each batch; clips that it has already are left out.
        silent_masks: clip id -> files of `find_silent_masks`; these clips' rows have a "selectivity".

    Raises:
        FileNotFoundError, ValueError: one of `silent_masks` is missing, broken or of another size than the masks.
    """
    rows: list[dict] = []
    known_ids = set() if journal is None else set(journal.rows)
    clips = [] if download is None else [clip_metadata(clip, download.subset) for clip in download.clips]
    of_ids = {clip["clip_id"]: clip for clip in clips}

    def row_of(clip: DecodedClip, segmented: Segmented) -> dict:
        metadata = of_ids.get(clip.clip_id, {"clip_id": clip.clip_id})
        files = silent_masks.get(clip.clip_id)
        silent = read_objects(files, clip.masks.shape[1:]) if files else None
        probabilities = dict(zip(conditions, segmented.probabilities, strict=True))
        return clip_row(metadata, clip.masks, probabilities, segmented.similarity, silent)

    bar = progress_bar(total=total, desc="clips", unit="clip", show=accelerator.is_main_process, leave=False)
    for batch in batches:
        reduced = [row_of(*predicted) for predicted in batch if predicted[0].clip_id not in known_ids]
        reduced = gather_object(reduced) if accelerator.num_processes > 1 else reduced
        if journal is not None:
            journal.append(reduced)
        rows += reduced
        bar.update(len(reduced))
    bar.close()
    return rows


def add_heard_frames(rows: Iterable[dict], conditions: Iterable[str], subset: str, split: str, seed: int) -> None:
    """Adds to the rows in which frames the clip's own sound is heard, of the conditions that are heard in some."""
    partly = [name for name in conditions if get_condition(name).heard == "some"]
    for row in rows:
        for name in partly:
            heard = heard_frames(name, generator_key(seed, subset, SPLITS[split], name, row["clip_id"]))
            row["conditions"][name]["heard"] = heard[: len(row["conditions"][name]["iou"])]


def find_silent_masks(download: Download) -> dict[str, list[Path]]:
    """Clip id -> mask files of the objects that are visible and do not sound, for the clips that have them."""
    found = {clip.clip_id: silent_mask_files(download.subset, download.root, clip) for clip in download.clips}
    return {clip_id: files for clip_id, files in found.items() if files}


def score_masks(
    source: Source,
    conditions: Sequence[str],
    download: Download,
    split: str,
    max_clips: int | None = None,
    reading: Reading = READING,
) -> tuple[list[dict], dict]:
    """The rows of PNG masks, compared with the masks of the download, and how they were read, for `results.json`.

    Raises:
        PredictionsError: what is missing, extra, broken, of another size or may mean two things.
        FileNotFoundError, ValueError: from the download.
    """
    subset, root = download.subset, download.root
    targets = [
        Target(
            **clip_metadata(clip, subset),
            masks=tuple(media_files(subset, root, clip)[1]),
            frames=FRAMES_PER_CLIP,
            silent_masks=tuple(silent_mask_files(subset, root, clip)),
        )
        for clip in download.of_split(split)
    ]
    if not targets:
        raise ValueError(
            f"Expected clips in the split {split} of {subset.name}, but {subset.table} has none. Name another "
            "--split, or complete the download (see `avs-data check`)."
        )
    return score_predictions(source, conditions, targets, evenly_spaced(len(targets), max_clips), reading=reading)


def evaluate_model(
    segmenter: Segmenter, splits: Splits, accelerator: Accelerator, num_workers: int = 0
) -> dict[str, float]:
    """The robustness scores of a model over `splits`, the same in every process.

    Args:
        splits: condition -> Dataset, the same clips in the same order, as `load_dataset("avsbench_robust", …)` gives.

    Returns:
        The metric's keys (`miou_positive`, …, `g_miou`, …), fractions in [0, 1].

    Raises:
        ValueError: splits of different clips.
    """
    check_splits(splits)
    predictions = predict(segmenter, splits, accelerator, num_workers)
    return scores(score(predictions, list(splits), accelerator, total=len(next(iter(splits.values())))))


def format_scores(
    scores: dict[str, float], conditions: Sequence[str], extra_conditions: dict[str, dict[str, float]] | None = None
) -> str:
    """An aligned table: a row per condition, then the G-metrics and the score of a model that ignores audio.

    Args:
        extra_conditions: condition beyond the four -> its miou, f_score, fpr.
    """

    def row(name: str, values: Sequence[float | None]) -> str:
        return f"{name:<20}" + "".join(f"{'-' if value is None else f'{value:.4f}':>12}" for value in values)

    shown = [metric for metric in METRICS if not metric.variant_of]
    lines = [f"{'condition':<20}" + "".join(f"{metric.label:>12}" for metric in shown)]
    lines += [row(c, [scores.get(f"{metric.key}_{c}") for metric in shown]) for c in conditions]
    lines += [row("G (all negatives)", [scores.get(f"g_{metric.key}") for metric in shown])]
    negatives = [c for c in conditions if c != "positive"]
    if len(negatives) > 1:
        lines += [row(f"G {c}", [scores.get(f"g_{metric.key}_{c}") for metric in shown]) for c in negatives]
    lines += [row("audio-blind floor", [scores.get("audio_blind_floor"), *[None] * (len(shown) - 1)])]
    for condition, of_condition in (extra_conditions or {}).items():
        lines += [row(condition, [of_condition.get(metric.key) for metric in shown])]
        if "g_miou" in of_condition:
            lines += [row(f"G {condition}", [of_condition.get(f"g_{metric.key}") for metric in shown])]
    for condition in partly_heard_conditions(scores):
        measured = ", ".join(f"{m.label} {scores.get(m.key.format(condition), math.nan):.4f}" for m in PARTLY_HEARD)
        lines += [f"{condition}: {measured}"]
    if "selectivity_clips" in scores:
        measured = ", ".join(f"{metric.label} {scores[metric.key]:.4f}" for metric in SELECTIVITY)
        lines += [f"{scores['selectivity_clips']} clips with several labelled objects: {measured}"]
    return "\n".join(lines)
