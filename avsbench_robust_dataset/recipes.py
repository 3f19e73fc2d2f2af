"""A sound is a recipe: a condition, the clip's own file, a partner's file and the key of a generator."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict

import numpy as np

from .conditions import CONDITIONS, EXTRA_CONDITIONS, FOLDERS, generator, get_condition, heard_frames, split_name
from .draw import Pair, draw_off_screen
from .sounds import read_waveform
from .sources import media_files
from .subsets import SPLITS, Clip, Subset
from .unseen import draw_unseen, find_wavs

Folders = Mapping[str, str | os.PathLike | None]  # argument of `FOLDERS` -> the folder, None where it is not given


class Sound(TypedDict):
    """A file at 16 kHz, which is read anew each time, or the samples of one that would have to be resampled."""

    path: str | None
    array: np.ndarray | None


class Recipe(TypedDict):
    """The inputs of a sound; None for those that the condition does not need."""

    condition: str
    own: Sound | None
    partner: Sound | None
    key: str | None


@dataclass(frozen=True)
class Partner:
    """Another clip, or a file of a folder (its path in it is the name, its category ""), whose sound a clip gets."""

    wav: Path
    name: str
    category: str


@dataclass(frozen=True)
class Row:
    """A clip under a condition, before anything is read; `key` is of the generator."""

    condition: str
    clip: Clip
    wav: Path
    partner: Partner | None
    key: str

    @property
    def recipe(self) -> Recipe:
        condition = get_condition(self.condition)
        return {
            "condition": self.condition,
            "own": {"path": str(self.wav), "array": None} if condition.needs_own else None,
            "partner": {"path": str(self.partner.wav), "array": None} if self.partner else None,
            "key": self.key if condition.is_random and self.partner is None else None,
        }

    @property
    def heard(self) -> list[bool]:
        """For each of the five frames, whether the clip's own sound is heard."""
        return heard_frames(self.condition, self.key)

    @property
    def source(self) -> tuple[str, str]:
        """Name and category of the clip, or file, whose sound is heard; "" for silence and noise."""
        if get_condition(self.condition).heard != "none":
            return self.clip.clip_id, self.clip.category
        return (self.partner.name, self.partner.category) if self.partner else ("", "")


def check_conditions(names: Sequence[str] | None, folders: Folders = MappingProxyType({})) -> tuple[str, ...]:
    """The conditions that are asked for; None means the benchmark's.

    Raises:
        ValueError: there is none, one is unknown or there twice; a folder is given without need, or is missing.
    """
    if isinstance(names, str) or (names is not None and not list(names)):
        raise ValueError(f"Expected `conditions` as names, for example ('positive', 'silence'), got {names!r}.")
    chosen = tuple(CONDITIONS) if names is None else tuple(names)
    if len({split_name("test", name) for name in chosen}) < len(chosen):
        raise ValueError(f"Expected each of the `conditions` once, got {', '.join(chosen)}.")
    wanted = partners_wanted(chosen)
    for argument in FOLDERS:
        if folders.get(argument) is not None and argument not in wanted:
            known = (CONDITIONS | EXTRA_CONDITIONS).values()
            hearing = ", ".join(condition.name for condition in known if condition.partner == argument)
            raise ValueError(
                f"Expected `{argument}` (--{argument}) together with a condition that hears its files ({hearing}), "
                f"got {', '.join(chosen)}."
            )
    for name in chosen:
        condition = get_condition(name)
        if condition.partner in FOLDERS and not condition.is_random and folders.get(condition.partner) is None:
            raise ValueError(
                f"Expected a folder of wav files as `{condition.partner}` (--{condition.partner}) for the condition "
                f"`{name}`."
            )
    return chosen


def partners_wanted(conditions: Iterable[str]) -> set[str]:
    """The kinds of partners, "off_screen" and some of `FOLDERS`, that the conditions ask for."""
    return {partner for name in conditions if (partner := get_condition(name).partner)}


def plan(
    subset: Subset,
    root: Path,
    clips: Sequence[Clip],
    conditions: Sequence[str],
    seed: int,
    draw: str,
    folders: Folders = MappingProxyType({}),
    splits: Iterable[str] = tuple(SPLITS),
) -> Iterator[tuple[str, list[Pair], dict[str, list[Row]]]]:
    """(split, its off-screen draw if a condition asks for it, condition -> a row for each clip) of each of `splits`.

    Args:
        clips: of all splits; a split without clips has no rows.

    Raises:
        FileNotFoundError: one of the `folders` holds no wav file.
        ValueError: as `check_conditions`.
    """
    chosen = {name: get_condition(name) for name in check_conditions(conditions, folders)}
    for split in splits:
        of_split = [clip for clip in clips if clip.split == SPLITS[split]]
        wavs = {clip.clip_id: media_files(subset, root, clip)[2] for clip in of_split}
        pairs: list[Pair] = []
        partners: dict[str | None, dict[str, Partner]] = {}
        for condition in chosen.values():
            if condition.partner == "off_screen" and not pairs:
                pairs = draw_off_screen(of_split, subset, seed, draw)
                partners["off_screen"] = {
                    pair.clip.clip_id: Partner(wavs[pair.partner.clip_id], pair.partner.clip_id, pair.partner.category)
                    for pair in pairs
                }
            elif (named := folders.get(condition.partner or "")) is not None:
                folder = Path(named)
                drawn = draw_unseen(wavs, find_wavs(folder), seed, subset.name, SPLITS[split], condition.name)
                partners[condition.partner] = {
                    clip_id: Partner(wav, wav.relative_to(folder).as_posix(), "") for clip_id, wav in drawn.items()
                }
        rows = {
            name: [
                Row(
                    condition=name,
                    clip=clip,
                    wav=wavs[clip.clip_id],
                    partner=partners[condition.partner][clip.clip_id] if condition.partner in partners else None,
                    key=generator_key(seed, subset.name, clip.split, name, clip.clip_id),
                )
                for clip in of_split
            ]
            for name, condition in chosen.items()
        }
        yield split, pairs, rows if of_split else {}


def generator_key(seed: int, subset: str, split: str, condition: str, clip_id: str) -> str:
    """The key of the generator of a clip's sound; `split` is the CSV's name."""
    return f"{seed}/{subset}/{split}/{get_condition(condition).noise_of or condition}/{clip_id}"


def make_sound(recipe: Recipe) -> np.ndarray:
    """float32 (80000,): the sound of a recipe.

    Raises:
        FileNotFoundError, ValueError: a file is gone or broken; the condition is unknown.
    """
    rng = None if recipe["key"] is None else generator(recipe["key"])
    return get_condition(recipe["condition"]).make(_read(recipe["own"]), rng, _read(recipe["partner"]))


def _read(sound: Sound | None) -> np.ndarray | None:
    if sound is None:
        return None
    if sound["path"] is not None:
        return read_waveform(Path(sound["path"]))
    return np.asarray(sound["array"], dtype=np.float32)
