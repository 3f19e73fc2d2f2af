"""What `results.json` says of the data behind the scores: whose masks, which draw, which clips are mute."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from avsbench_robust_dataset import SPLITS, SUBSETS, Subset
from avsbench_robust_dataset.builder import locate
from avsbench_robust_dataset.conditions import get_condition, off_screen, positive, unseen
from avsbench_robust_dataset.draw import draw_off_screen, draw_statistics
from avsbench_robust_dataset.recipes import partners_wanted
from avsbench_robust_dataset.sounds import is_mute
from avsbench_robust_dataset.sources import annotation, read_clips
from avsbench_robust_dataset.subsets import Clip
from evaluate_metrics.uncertainty import shared_source_videos

from .clips import Splits

__all__ = ["Download", "data_facts", "find_mute_clips", "open_download"]

DRAW = "matched"  # the builder's default, which an evaluation always has


class Download(NamedTuple):
    """A subset, the root that it is read from and the clips of all its splits."""

    subset: Subset
    root: Path
    clips: list[Clip]

    def of_split(self, split: str) -> list[Clip]:
        return [clip for clip in self.clips if clip.split == SPLITS[split]]


def open_download(subset: str, data_dir: str | None) -> Download:
    """Locates the data and reads its table, once for all that an evaluation says of it."""
    known = SUBSETS[subset]
    root = locate(known, data_dir)
    return Download(known, root, read_clips(known, root))


def data_facts(download: Download, split: str, seed: int, conditions: Sequence[str]) -> dict:
    """{"source_videos": shared by splits, "annotation": "object" or "semantic", "draw": name and `DrawStatistics`}.

    "draw" is of the whole split, and missing where none of the conditions has an off-screen sound.
    """
    videos = {SPLITS[name]: [clip.source_video for clip in download.of_split(name)] for name in SPLITS}
    facts: dict = {"source_videos": shared_source_videos(videos), "annotation": annotation(download.root)}
    if "off_screen" in partners_wanted(conditions):
        pairs = draw_off_screen(download.of_split(split), download.subset, seed, DRAW)
        statistics = draw_statistics(pairs, download.subset)
        facts["draw"] = {"name": DRAW} | asdict(statistics)
    return facts


def find_mute_clips(splits: Splits, unseen_dir: Path | None = None) -> dict[str, list[str]]:
    """condition -> the ids of the clips that hear silence under it, where they should hear a recorded sound.

    Reads every sound of the conditions that play one file as it is: positive, off_screen, recorded, and unseen where
    its sounds are files of `unseen_dir`.
    """
    makes = (positive, off_screen) if unseen_dir is None else (positive, off_screen, unseen)
    return {
        condition: [
            row["clip_id"] for row in split.select_columns(["clip_id", "audio"]) if is_mute(row["audio"]["array"])
        ]
        for condition, split in splits.items()
        if get_condition(condition).make in makes
    }
