"""From probabilities to rows, scores and the table that is printed."""

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from avsbench_robust_dataset import SPLITS, Subset
from avsbench_robust_dataset.builder import locate
from avsbench_robust_dataset.progress import progress_bar
from avsbench_robust_dataset.sources import read_clips
from avsbench_robust_dataset.subsets import Clip
from evaluate_metrics.clip_rows import clip_row, scores
from evaluate_metrics.uncertainty import shared_source_videos
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor

from .clips import Splits, check_splits, clip_metadata
from .journal import Journal
from .predict import predict


def score(
    batches: Iterable[list[dict]],
    conditions: Sequence[str],
    accelerator: Accelerator,
    subset: Subset | None = None,
    journal: Journal | None = None,
    total: int | None = None,
) -> list[dict]:
    """The rows (see `evaluate_metrics.clip_rows`) of all processes' clips, as `predict` yields them, in every process.

    Each process reduces its own clips; rows are gathered as objects: exact, without the duplicates that padding would
    bring, whatever the masks' sizes.

    Args:
        subset: tells groups and source videos; without it a row has no group and is of a video of its own.
        journal: receives the rows as they come; a clip that it has already is left out.
    """
    rows = []
    known_ids = set() if journal is None else set(journal.rows)
    bar = progress_bar(total=total, desc="clips", unit="clip", show=accelerator.is_main_process, leave=False)
    for clips in batches:
        reduced = []
        for clip in clips:
            if clip["clip_id"] in known_ids:
                continue
            known = {"clip_id": clip["clip_id"], "category": clip["category"], "group": None}
            known["source_video"] = clip["clip_id"]
            if subset is not None:
                several = subset.category_column is None
                labels = tuple(filter(None, clip["category"].split("_"))) if several else (clip["category"],)
                source = subset.source_video(clip["clip_id"])
                known = clip_metadata(Clip(clip["clip_id"], "", clip["category"], labels, source), subset)
            probabilities = dict(zip(conditions, clip["probabilities"], strict=True))
            reduced.append(clip_row(known, clip["masks"], probabilities, clip["similarity"]))
        reduced = gather_object(reduced) if accelerator.num_processes > 1 else reduced
        if journal is not None:
            journal.append(reduced)
        rows += reduced
        bar.update(len(reduced))
    bar.close()
    return rows


def evaluate_model(
    model: AVSegFormerForSegmentation,
    processor: AVSegFormerProcessor,
    splits: Splits,
    accelerator: Accelerator,
    batch_size: int = 4,
    num_workers: int = 0,
    sounds: dict[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """The robustness scores of `model` over `splits`, the same in every process.

    Args:
        model: on the accelerator's device, not wrapped for distributed training. Its training mode is restored.
        splits: condition -> Dataset, the same clips in the same order, as `load_dataset("avsbench_robust", …)` gives.
        sounds: embeddings from `encode_sounds` to reuse; None computes them.

    Returns:
        The metric's keys (`miou_positive`, …, `g_miou`, …), fractions in [0, 1].

    Raises:
        ValueError: splits of different clips.
    """
    check_splits(splits)
    was_training = model.training
    model.eval()
    batches = predict(model, processor, splits, accelerator, batch_size, num_workers, sounds)
    rows = score(batches, list(splits), accelerator, total=len(next(iter(splits.values()))))
    model.train(was_training)
    return scores(rows)


def format_scores(
    scores: dict[str, float], conditions: Sequence[str], further: dict[str, dict[str, float]] | None = None
) -> str:
    """An aligned table: a row per condition, then the G-metrics and the score of a model that ignores audio.

    Args:
        further: condition beyond the four -> its miou, f_score, fpr.
    """

    def row(name: str, values: Sequence[float | None]) -> str:
        return f"{name:<20}" + "".join(f"{'-' if value is None else f'{value:.4f}':>10}" for value in values)

    lines = [f"{'condition':<20}{'mIoU':>10}{'F':>10}{'FPR':>10}"]
    lines += [row(c, [scores.get(f"{name}_{c}") for name in ("miou", "f_score", "fpr")]) for c in conditions]
    lines += [row("G (all negatives)", [scores.get(f"g_{name}") for name in ("miou", "f_score", "fpr")])]
    negatives = [c for c in conditions if c != "positive"]
    if len(negatives) > 1:
        lines += [
            row(f"G {c}", [scores.get(f"g_{name}_{c}") for name in ("miou", "f_score")] + [None]) for c in negatives
        ]
    lines += [row("audio-blind floor", [scores.get("audio_blind_floor"), None, None])]
    for condition, of_condition in (further or {}).items():
        lines += [row(condition, [of_condition[name] for name in ("miou", "f_score", "fpr")])]
        if "g_miou" in of_condition:
            lines += [row(f"G {condition}", [of_condition.get(f"g_{name}") for name in ("miou", "f_score", "fpr")])]
    return "\n".join(lines)


def count_source_videos(subset: Subset, data_dir: str | None) -> dict:
    """How many source videos the splits of the subset's table share."""
    videos: dict[str, list[str]] = {split: [] for split in SPLITS.values()}
    for clip in read_clips(subset, locate(subset, data_dir)):
        videos[clip.split].append(clip.source_video)
    return shared_source_videos(videos)
