"""What an epoch consists of: each clip with its own sound, and some of them with a sound that is not theirs.

A share of the items may show two clips in one picture (`compositions`), of which one sounds, or neither.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset

from avsbench_robust_dataset.draw import pairing_rules
from avsbench_robust_dataset.subsets import SUBSETS, Subset
from modeling_avsegformer import AVSegFormerProcessor

from .clips import Splits, clips_of, decode_clip, stored_images
from .compositions import compose


def epoch_plan(
    clips: int, negative_ratio: float, conditions: dict[str, float], seed: int, epoch: int
) -> list[tuple[str, int]]:
    """The items of an epoch in order, as (condition, clip index): a pure function of its arguments.

    Args:
        clips: n; each is there once as a positive item.
        negative_ratio: r in [0, 1), the share of negative items: round(n r / (1 - r)) of them, at least one if r is
            above 0; other clips each epoch.
        conditions: negative condition -> weight; each gets its share of the negative items, rounded at random.
    """
    rng = np.random.default_rng([seed, epoch])
    items = [("positive", clip) for clip in range(clips)]
    if negative_ratio > 0:
        negatives = max(1, round(clips * negative_ratio / (1 - negative_ratio)))
        bounds = np.cumsum(list(conditions.values())) / sum(conditions.values())
        # Systematic sampling: equally spaced points with one random offset. No clip twice before all were drawn.
        drawn = np.searchsorted(bounds, (rng.random() + np.arange(negatives)) / negatives, side="right")
        rounds = [rng.permutation(clips) for _ in range(math.ceil(negatives / clips))]
        names = list(conditions)
        items += [
            (names[min(which, len(names) - 1)], int(clip))
            for which, clip in zip(drawn, np.concatenate(rounds)[:negatives], strict=True)
        ]
    return [items[index] for index in rng.permutation(len(items))]


@dataclasses.dataclass(eq=False)
class TrainingClips(torch.utils.data.Dataset):
    """The items of one epoch; `set_epoch` draws another.

    All that is random about an item is a pure function of (seed, epoch, index): neither workers, nor prefetching, nor
    where a run was resumed can change it.

    Args:
        split: the positive split; negative items show the same frames.
        keys: condition -> key of each clip's sound, as in `Sounds`.
        frames_per_clip: frames of an item, drawn among those with a mask first; None: all.
        augment: flip half of the items left to right.
        cache_bytes: keep the decoded frames in memory if they take no more.
        compose_share: the share in [0, 1] of the items that show two clips.
        redraw_sounds: negative items hear a sound that is drawn anew each epoch among those of their condition; off
            screen, under the benchmark's rule. False: the sound of their clip in `keys`, unless they show two clips.
        subset: tells which sounds and clips go together, where items are composed or sounds drawn anew.
        off_screen_sources: clip ids whose sounds `keys["off_screen"]` names, as the split's `audio_source`.
    """

    split: Dataset
    keys: dict[str, list[str]]
    negative_ratio: float
    negative_conditions: dict[str, float]
    seed: int
    frames_per_clip: int | None = None
    augment: bool = False
    cache_bytes: float = 0
    compose_share: float = 0.0
    redraw_sounds: bool = False
    subset: Subset | None = None
    off_screen_sources: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.clip_ids = self.split["clip_id"][:]
        if self.compose_share or self.redraw_sounds:
            if self.subset is None:
                raise ValueError("Expected a `subset` for items that are composed or whose sounds are drawn anew.")
            self.may_hear, self.may_meet = pairing_rules(clips_of(self.split, self.subset), self.subset)
            places = {clip_id: place for place, clip_id in enumerate(self.clip_ids)}
            self.off_screen_places = np.array([places[clip_id] for clip_id in self.off_screen_sources], dtype=int)
        self.images = stored_images(self.split)
        self.decoded: list | None = None
        if sum(array.nbytes for array in decode_clip(self.images, 0)) * len(self.clip_ids) <= self.cache_bytes:
            self.decoded = [decode_clip(self.images, clip) for clip in range(len(self.clip_ids))]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.plan = epoch_plan(len(self.clip_ids), self.negative_ratio, self.negative_conditions, self.seed, epoch)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict:
        condition, clip = self.plan[index]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        more = np.random.default_rng([self.seed, self.epoch, index, 1])  # so that `rng` draws what it always has
        frames, masks = self._decode(clip)
        chosen, labelled = self._choose(len(frames), len(masks), rng)
        frames, masks = frames[chosen], masks[chosen[:labelled]]
        visible = [clip]
        if more.random() < self.compose_share and (partners := np.flatnonzero(self.may_meet[clip])).size:
            visible.append(int(more.choice(partners)))
            other_frames, other_masks = self._decode(visible[1])
            other = other_frames[chosen], other_masks[chosen[:labelled]]
            frames, masks, _ = compose((frames, masks), other, more)
        if self.augment and rng.random() < 0.5:
            frames, masks = np.flip(frames, 2).copy(), np.flip(masks, 2).copy()
        return {
            "clip": f"{' beside '.join(self.clip_ids[place] for place in visible)} ({condition})",
            "frames": frames,  # (T, H, W, 3) uint8
            "masks": masks if condition == "positive" else np.zeros_like(masks),  # (K, H, W)
            "sound": (self._sound(condition, visible, more), chosen.tolist()),  # its key and seconds
            "audio_label": float(condition == "positive"),
        }

    def _decode(self, clip: int) -> tuple[np.ndarray, np.ndarray]:
        return decode_clip(self.images, clip) if self.decoded is None else self.decoded[clip]

    def _choose(self, frames: int, labelled: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Which frames an item shows, and how many of them, the first ones, have a mask."""
        if self.frames_per_clip is None or self.frames_per_clip >= frames:
            return np.arange(frames), labelled
        first = rng.permutation(labelled)[: self.frames_per_clip]
        others = labelled + rng.permutation(frames - labelled)[: self.frames_per_clip - len(first)]
        return np.concatenate([np.sort(first), np.sort(others)]), len(first)

    def _sound(self, condition: str, visible: list[int], rng: np.random.Generator) -> str:
        """The key of what is heard with these clips, of which the first sounds where the item is positive."""
        keys = self.keys[condition]
        if condition == "positive" or not (self.redraw_sounds or len(visible) > 1):
            return keys[visible[0]]
        candidates = np.arange(len(keys))
        if condition == "off_screen":
            allowed = self.may_hear[visible][:, self.off_screen_places]
            # Three groups in a picture of two MS3 clips may leave no sound: then the rule holds for the first one.
            fitting = np.flatnonzero(allowed.all(0))
            candidates = fitting if fitting.size else np.flatnonzero(allowed[0])
        return keys[int(rng.choice(candidates))]


def collate(processor: AVSegFormerProcessor, items: list[dict]) -> dict:
    """Items to a batch of tensors. Labels cover the first K frames, where K is the fewest masks of any item.

    Sounds stay keys: this may run in a worker of the loader, which has no audio encoder.
    """
    labelled = min(len(item["masks"]) for item in items)
    inputs = processor(
        frames=[list(item["frames"]) for item in items], masks=[list(item["masks"][:labelled]) for item in items]
    )
    return {
        "clips": [item["clip"] for item in items],
        "pixel_values": inputs.pixel_values,  # (B, T, 3, H, W)
        "sounds": [item["sound"] for item in items],
        "labels": inputs.labels,  # (B, K, H, W)
        "audio_labels": torch.tensor([item["audio_label"] for item in items]),  # (B,)
    }


def build_clips(args: argparse.Namespace, splits: Splits, keys: dict[str, list[str]]) -> TrainingClips:
    """The items that the trainer's arguments describe."""
    same = ("negative_ratio", "negative_conditions", "seed", "frames_per_clip", "augment", "compose_share")
    return TrainingClips(
        splits["positive"],
        keys,
        **{name: getattr(args, name) for name in (*same, "redraw_sounds")},
        cache_bytes=args.cache_frames_gb * 2**30,
        subset=SUBSETS[args.subset],
        off_screen_sources=splits["off_screen"]["audio_source"][:] if "off_screen" in splits else (),
    )
