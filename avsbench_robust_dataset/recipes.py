"""A sound is a recipe: a condition, the clip's own file, a partner's file and the key of a generator.

`plan` decides the recipes of a split's clips without reading a sound; `make_sound` follows one.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from .conditions import CONDITIONS, generator, get_condition, split_name
from .draw import Pair
from .sounds import read_waveform
from .sources import media_files
from .subsets import Clip, Subset
from .unseen import draw_unseen, find_wavs

__all__ = ["Partner", "Recipe", "Row", "Sound", "check_conditions", "make_sound", "partners_wanted", "plan"]


class Sound(TypedDict):
    """A file at 16 kHz, which is read anew each time, or the samples of one that would have to be resampled."""

    path: str | None
    array: np.ndarray | None


class Recipe(TypedDict):
    """What a sound is made from; None is what the condition does not ask for."""

    condition: str
    own: Sound | None
    partner: Sound | None
    key: str | None


@dataclass(frozen=True)
class Partner:
    """Another clip or file, whose sound a clip gets.

    Attributes:
        name: the clip id, or the file's path in `unseen_dir`.
        category: of the clip; "" for a file.
    """

    wav: Path
    name: str
    category: str


@dataclass(frozen=True)
class Row:
    """A clip under a condition, before anything is read.

    Attributes:
        wav: the clip's own sound.
        key: of the generator: seed, subset, split, condition and clip id.
    """

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
            "key": self.key if condition.is_random else None,
        }

    @property
    def source(self) -> tuple[str, str]:
        """Name and category of the clip, or file, whose sound is heard; "" for silence and noise."""
        if get_condition(self.condition).heard != "none":
            return self.clip.clip_id, self.clip.category
        return (self.partner.name, self.partner.category) if self.partner else ("", "")


def check_conditions(names: Sequence[str] | None, unseen_dir: str | os.PathLike | None) -> tuple[str, ...]:
    """The conditions that are asked for; None means the benchmark's.

    Raises:
        ValueError: there is none, one is unknown or there twice; `unseen_dir` is given without need, or is missing.
    """
    if isinstance(names, str) or (names is not None and not list(names)):
        raise ValueError(f"Expected `conditions` as names, for example ('positive', 'silence'), got {names!r}.")
    chosen = tuple(CONDITIONS) if names is None else tuple(names)
    if len({split_name("test", name) for name in chosen}) < len(chosen):
        raise ValueError(f"Expected each of the `conditions` once, got {', '.join(chosen)}.")
    has_unseen = "unseen" in partners_wanted(chosen)
    if has_unseen != (unseen_dir is not None):
        raise ValueError(
            "Expected the condition `unseen` together with a folder of wav files, --unseen_dir or `unseen_dir`, got "
            "one of them alone."
        )
    return chosen


def partners_wanted(conditions: Iterable[str]) -> set[str]:
    """The kinds of partners, "off_screen" and "unseen", that the conditions ask for."""
    return {partner for name in conditions if (partner := get_condition(name).partner)}


def plan(
    subset: Subset,
    root: Path,
    clips: Sequence[Clip],
    conditions: Sequence[str],
    seed: int,
    pairs: Iterable[Pair] = (),
    unseen_dir: str | os.PathLike | None = None,
) -> dict[str, list[Row]]:
    """condition -> a row for each clip, in the order of `clips`.

    Args:
        clips: all clips of one split.
        pairs: their off-screen draw, where a condition asks for it.

    Raises:
        FileNotFoundError: `unseen_dir` holds no wav file.
        ValueError: as `check_conditions`.
    """
    chosen = {name: get_condition(name) for name in check_conditions(conditions, unseen_dir)}
    wavs = {clip.clip_id: media_files(subset, root, clip)[2] for clip in clips}
    partners: dict[str | None, dict[str, Partner]] = {
        "off_screen": {
            pair.clip.clip_id: Partner(wavs[pair.partner.clip_id], pair.partner.clip_id, pair.partner.category)
            for pair in pairs
        }
    }
    if unseen_dir is not None:
        folder = Path(unseen_dir)
        drawn = draw_unseen(wavs, find_wavs(folder), seed, subset.name, clips[0].split)
        partners["unseen"] = {
            clip_id: Partner(wav, wav.relative_to(folder).as_posix(), "") for clip_id, wav in drawn.items()
        }
    return {
        name: [
            Row(
                condition=name,
                clip=clip,
                wav=wavs[clip.clip_id],
                partner=partners[condition.partner][clip.clip_id] if condition.partner else None,
                key=f"{seed}/{subset.name}/{clip.split}/{condition.noise_of or name}/{clip.clip_id}",
            )
            for clip in clips
        ]
        for name, condition in chosen.items()
    }


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
