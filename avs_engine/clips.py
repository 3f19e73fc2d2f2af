"""Loads the splits of a run and decodes their clips, singly or in batches shared by all processes."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, Image, load_dataset
from torch.utils.data import DataLoader

from avsbench_robust_dataset import Subset
from avsbench_robust_dataset.conditions import CONDITIONS, split_name
from avsbench_robust_dataset.files import BROKEN_IMAGE
from avsbench_robust_dataset.masks import object_mask
from avsbench_robust_dataset.recipes import Folders
from avsbench_robust_dataset.subsets import Clip

from .signals import leave_sigterm_to_parent

IMAGE = Image()


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """`limit` of `count` indices, evenly spaced, because the first clips are all of one category."""
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def stored_images(split: Dataset) -> Dataset:
    """The frames and masks of a split, not yet decoded, for `decode_clip`."""
    return split.select_columns(["frames", "masks"]).with_format("arrow")


def decode_clip(images: Dataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """A row's frames, (T, H, W, 3) uint8 RGB, and its masks, (K, H, W) uint8 with 1 = object.

    Raises:
        ValueError: an image cannot be decoded, although its checksums are right; the message names the file.
    """

    def decoded(file: dict):
        try:
            return IMAGE.decode_example(file)
        except BROKEN_IMAGE as error:  # Pillow's messages do not name the file
            raise ValueError(
                f"Expected images that can be decoded, got {file['path'] or f'one of row {index}'}: {error}. Download "
                "or extract the file again, then build the data anew."
            ) from error

    (row,) = images[index].to_pylist()
    frames = np.stack([np.asarray(decoded(frame).convert("RGB")) for frame in row["frames"]])
    masks = np.stack([object_mask(decoded(mask)) for mask in row["masks"]])
    return frames, masks


@dataclasses.dataclass(frozen=True)
class DecodedClip:
    """A clip of a split: its index there, frames (T, H, W, 3) uint8 RGB, masks (K, H, W) uint8 with 1 = object."""

    index: int
    clip_id: str
    category: str
    frames: np.ndarray
    masks: np.ndarray


class DecodedClips(torch.utils.data.Dataset):
    """The clips of a split, decoded when they are read."""

    def __init__(self, split: Dataset):
        self.clip_ids, self.categories = split["clip_id"][:], split["category"][:]
        self.images = stored_images(split)  # the waveforms are read once, by `Sounds`

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> DecodedClip:
        return DecodedClip(index, self.clip_ids[index], self.categories[index], *decode_clip(self.images, index))


def data_loader(items: torch.utils.data.Dataset, num_workers: int, **options: Any) -> DataLoader:
    """A loader that draws no random numbers from the global generator, which a training run owns."""
    return DataLoader(
        items,
        num_workers=num_workers,
        worker_init_fn=leave_sigterm_to_parent,
        generator=torch.Generator(),
        **options,
    )


def batches(
    split: Dataset, accelerator: Accelerator, batch_size: int, num_workers: int, done: Collection[str]
) -> tuple[list[int], Iterator[list[DecodedClip]]]:
    """The indices of the clips in batches that are not all `done`, and this process's share of these batches, decoded.

    Every process has the same number of batches; the last ones may be empty. Neither `done` nor the number of
    processes changes which clips share a batch, since a result's last bits may depend on that. So a batch may contain
    clips that are done.
    """
    clips = DecodedClips(split)
    clip_ids = clips.clip_ids
    whole = [range(start, min(start + batch_size, len(clip_ids))) for start in range(0, len(clip_ids), batch_size)]
    left = [list(batch) for batch in whole if not all(clip_ids[index] in done for index in batch)]
    share = left[accelerator.process_index :: accelerator.num_processes]
    loader = data_loader(clips, num_workers, batch_sampler=share, collate_fn=list)
    rounds = math.ceil(len(left) / accelerator.num_processes)
    indices = [index for batch in left for index in batch]
    return indices, itertools.islice(itertools.chain(loader, itertools.repeat([])), rounds)


Splits = dict[str, Dataset]  # condition -> the same clips in the same order


def load_splits(
    subset: str,
    data_dir: str | None,
    seed: int,
    split: str,
    conditions: Sequence[str],
    num_proc: int | None = None,
    folders: Folders = MappingProxyType({}),
    max_clips: int | None = None,
) -> Splits:
    """The clips of a split under each condition; `num_proc` processes build what is not cached yet.

    Args:
        conditions: as in `get_condition`. The benchmark's four always share one build.
        folders: of wav files for the conditions `unseen` and `recorded`, by the name of their argument.
        max_clips: take only this many clips, evenly spaced.

    Raises:
        ValueError: the split has no clips; the subset or a condition is unknown.
        FileNotFoundError: data are missing; the message names them.
    """
    known = [condition for condition in conditions if condition in CONDITIONS]
    extra = [condition for condition in conditions if condition not in CONDITIONS]
    options: dict[str, Any] = {"data_dir": data_dir, "seed": seed, "num_proc": num_proc}
    extra_options = options | {"conditions": tuple(extra), **folders}
    loaded: Splits = {}
    for chosen, its_options in ((known, options), (extra, extra_options)):
        names = [split_name(split, condition) for condition in chosen]
        clips = load_dataset("avsbench_robust", subset, split=names, **its_options) if names else ()
        loaded |= zip(chosen, clips, strict=True)
    kept = evenly_spaced(len(next(iter(loaded.values()))), max_clips)
    if not kept:
        raise ValueError(f"Expected clips in the split {split} of {subset}, but there are none. See `avs-data check`.")
    return {condition: loaded[condition].select(kept) for condition in conditions}


def check_splits(splits: Splits) -> None:
    """Raises ValueError if the conditions have different clips."""
    clip_ids = {condition: split["clip_id"][:] for condition, split in splits.items()}
    first, *others = clip_ids
    for condition in others:
        if clip_ids[condition] != clip_ids[first]:
            raise ValueError(
                f"Expected the same clips in the same order in every condition, but those of {first!r} and "
                f"{condition!r} differ. Take the splits of one load_dataset call."
            )


def clips_of(split: Dataset, subset: Subset) -> list[Clip]:
    """The clips of the rows of a data set; their split is not known."""
    clips = []
    for clip_id, category in zip(split["clip_id"][:], split["category"][:], strict=True):
        labels = (category,) if subset.category_column else tuple(filter(None, category.split("_")))
        clips.append(Clip(clip_id, "", category, labels, subset.source_video(clip_id)))
    return clips


def clip_metadata(clip: Clip, subset: Subset) -> dict[str, Any]:
    """The clip's part of a row of `clips.jsonl`; the group is None if its objects are unknown."""
    return {
        "clip_id": clip.clip_id,
        "category": clip.category,
        "group": "_".join(subset.groups_of(clip)) or None,
        "source_video": clip.source_video,
    }
