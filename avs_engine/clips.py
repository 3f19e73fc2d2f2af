"""The splits of a run and their clips, decoded one at a time or in batches that every process shares."""

import io
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, load_dataset
from PIL import Image
from torch.utils.data import DataLoader

from avsbench_robust_dataset import Subset
from avsbench_robust_dataset.conditions import CONDITIONS, split_name
from avsbench_robust_dataset.files import BROKEN_IMAGE
from avsbench_robust_dataset.masks import object_mask
from avsbench_robust_dataset.recipes import Folders
from avsbench_robust_dataset.subsets import Clip

from .signals import leave_sigterm_to_parent


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """`limit` of `count` indices, evenly spaced: where clips are sorted by category, a prefix would be biased."""
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def decode_clip(split: Dataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """A row's frames, (T, H, W, 3) uint8 RGB, and its masks, (K, H, W) uint8 with 1 = object.

    Raises:
        ValueError: an image cannot be decoded, though a build found its checksums right; the message names the file.
    """
    try:
        clip = split[index]
    except BROKEN_IMAGE as error:  # what Pillow raises does not say of which file
        stored = split.with_format("arrow")[index : index + 1]
        files = [file for column in ("frames", "masks") for file in stored[column].to_pylist()[0]]
        names = [file["path"] or f"image {place} of row {index}" for place, file in enumerate(files)]
        broken = [name for name, file in zip(names, files, strict=True) if not is_image(file)]
        raise ValueError(
            f"Expected images that can be decoded, got {', '.join(broken or names)}: {error}. Download or extract the "
            "file again, then build the data anew."
        ) from error
    frames = np.stack([np.asarray(frame.convert("RGB")) for frame in clip["frames"]])
    masks = np.stack([object_mask(mask) for mask in clip["masks"]])
    return frames, masks


def is_image(file: dict) -> bool:
    """Whether Pillow can decode a file of `datasets`' `Image`, {"path", "bytes"}."""
    try:
        with Image.open(file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"])) as image:
            image.load()
    except BROKEN_IMAGE:
        return False
    return True


class DecodedClip(NamedTuple):
    """A clip of a split: its index there, frames (T, H, W, 3) uint8 RGB, masks (K, H, W) uint8 with 1 = object."""

    index: int
    frames: np.ndarray
    masks: np.ndarray


class DecodedClips(torch.utils.data.Dataset):
    """The clips of a split, decoded when they are read."""

    def __init__(self, split: Dataset):
        self.split = split.select_columns(["frames", "masks"])  # the waveforms are read once, by `encode_sounds`

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> DecodedClip:
        return DecodedClip(index, *decode_clip(self.split, index))


def batches(
    split: Dataset, accelerator: Accelerator, batch_size: int, num_workers: int, done: Collection[str]
) -> tuple[list[int], Iterator[list[DecodedClip]]]:
    """The clips that are not `done`: the indices of all of them, and decoded batches of this process's share.

    Every process has the same number of batches; the last ones may be empty. A clip has the same neighbours in its
    batch whatever is done and however many processes there are, since its last bits may depend on them: a batch comes
    as a whole, with clips that are done already.
    """
    clip_ids = split["clip_id"][:]
    whole = [range(start, min(start + batch_size, len(clip_ids))) for start in range(0, len(clip_ids), batch_size)]
    left = [list(batch) for batch in whole if not all(clip_ids[index] in done for index in batch)]
    share = left[accelerator.process_index :: accelerator.num_processes]
    loader = DataLoader(
        DecodedClips(split),
        batch_sampler=share,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=leave_sigterm_to_parent,
        generator=torch.Generator(),  # else the loader draws from the global generator, which a training run owns
    )
    rounds = math.ceil(len(left) / accelerator.num_processes)
    indices = [index for batch in left for index in batch]
    return indices, itertools.islice(itertools.chain(loader, itertools.repeat([])), rounds)


Splits = dict[str, Dataset]  # condition -> the same clips in the same order


def load_splits(
    subset: str,
    data_dir: str | None,
    seed: int,
    splits: Sequence[str],
    conditions: Sequence[str],
    num_proc: int | None = None,
    folders: Folders = MappingProxyType({}),
) -> list[Splits]:
    """For each of `splits` of the subset, condition -> clips; `num_proc` processes build what is not cached yet.

    Args:
        conditions: as in `get_condition`. The benchmark's have one build, whichever of them are asked for.
        folders: of wav files for the conditions `unseen` and `recorded`, by the name of their argument.

    Raises:
        ValueError: a split without clips; an unknown subset or condition.
        FileNotFoundError: missing data; the builder's message says what.
    """
    known = [condition for condition in conditions if condition in CONDITIONS]
    extra = tuple(condition for condition in conditions if condition not in CONDITIONS)
    loaded: list[Splits] = [{} for _ in splits]
    for chosen, options in ((known, {}), (extra, {"conditions": extra, **folders})):
        names = [split_name(split, condition) for split in splits for condition in chosen]
        if not names:
            continue
        options |= {"data_dir": data_dir, "seed": seed, "num_proc": num_proc}
        of_names = iter(load_dataset("avsbench_robust", subset, split=names, **options))
        for split, of_split in zip(splits, loaded, strict=True):
            for condition in chosen:
                of_split[condition] = next(of_names)
                if not len(of_split[condition]):
                    raise ValueError(
                        f"Expected clips in the split {split_name(split, condition)} of {subset}, but there are none. "
                        "See `avs-data check`."
                    )
    return [{condition: of_split[condition] for condition in conditions} for of_split in loaded]


def load_conditions(
    subset: str,
    data_dir: str | None,
    seed: int,
    split: str,
    conditions: Sequence[str],
    folders: Folders = MappingProxyType({}),
    max_clips: int | None = None,
    num_proc: int | None = None,
) -> tuple[Splits, dict[str, list[str]]]:
    """The clips of a split under each condition.

    Args:
        conditions, folders: as in `load_splits`.
        max_clips: only so many, evenly spaced.

    Returns:
        The splits, and condition -> the files of the cache that they were read from.
    """
    (loaded,) = load_splits(subset, data_dir, seed, [split], conditions, num_proc, folders)
    first, *_ = loaded.values()
    kept = evenly_spaced(len(first), max_clips)
    splits = {condition: of_condition.select(kept) for condition, of_condition in loaded.items()}
    check_splits(splits)
    files = {name: [file["filename"] for file in of_condition.cache_files] for name, of_condition in loaded.items()}
    return splits, files


def check_splits(splits: Splits) -> None:
    """Raises ValueError where the conditions are of different clips."""
    conditions = list(splits)
    first = splits[conditions[0]]
    for condition in conditions[1:]:
        split = splits[condition]
        if split["clip_id"][:] != first["clip_id"][:]:
            raise ValueError(
                f"Expected the same clips in the same order in every condition, but those of {conditions[0]!r} and "
                f"{condition!r} differ. Take the splits of one load_dataset call."
            )


def clip_metadata(clip: Clip, subset: Subset) -> dict[str, str | None]:
    """What a row of `clips.jsonl` says of a clip itself; the group is None where its objects are unknown."""
    return {
        "clip_id": clip.clip_id,
        "category": clip.category,
        "group": "_".join(subset.groups_of(clip)) or None,
        "source_video": clip.source_video,
    }
