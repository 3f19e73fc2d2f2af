"""What `results.json` says of the data behind the scores: whose masks, which draw, which clips are mute."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from avsbench_robust_dataset import SPLITS, Subset
from avsbench_robust_dataset.builder import locate
from avsbench_robust_dataset.check import mute_clips
from avsbench_robust_dataset.conditions import get_condition, off_screen, positive, unseen
from avsbench_robust_dataset.draw import draw_off_screen, draw_statistics
from avsbench_robust_dataset.recipes import partners_wanted
from avsbench_robust_dataset.sources import annotation, read_clips

from .clips import Splits

__all__ = ["data_facts", "find_mute_clips"]

DRAW = "matched"  # the builder's default, which an evaluation always has


def data_facts(subset: Subset, data_dir: str | None, split: str, seed: int, conditions: Sequence[str]) -> dict:
    """{"annotation": "object" or "semantic", "draw": name and `DrawStatistics` of the whole split}.

    "draw" is missing where none of the conditions has an off-screen sound.
    """
    root = locate(subset, data_dir)
    facts: dict = {"annotation": annotation(root)}
    if "off_screen" in partners_wanted(conditions):
        clips = [clip for clip in read_clips(subset, root) if clip.split == SPLITS[split]]
        statistics = draw_statistics(draw_off_screen(clips, subset, seed, DRAW), subset)
        facts["draw"] = {"name": DRAW} | asdict(statistics)
    return facts


def find_mute_clips(splits: Splits, unseen_dir: Path | None = None) -> dict[str, list[str]]:
    """condition -> the ids of the clips that hear silence under it, where they should hear a recorded sound.

    Reads every sound of the conditions that play one file as it is: positive, off_screen, recorded, and unseen where
    its sounds are files of `unseen_dir`.
    """
    makes = (positive, off_screen) if unseen_dir is None else (positive, off_screen, unseen)
    return {
        condition: mute_clips(split.select_columns(["clip_id", "audio"]))
        for condition, split in splits.items()
        if get_condition(condition).make in makes
    }
