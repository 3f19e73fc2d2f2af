"""What is heard under the further conditions: the draw of unseen sounds, and waveforms made from two splits."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from .conditions import SAMPLING_RATE, FurtherCondition, generator
from .sounds import read_waveform
from .subsets import SPLITS

__all__ = ["FurtherSounds", "draw_unseen", "find_wavs", "unseen_digest"]


def find_wavs(folder: Path) -> list[Path]:
    """The wav files in `folder` and below it, sorted by their path in it; hidden ones are left out.

    Raises:
        FileNotFoundError: there is none.
    """
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() == ".wav"]
    wavs = [folder / name for name in sorted(names, key=Path.as_posix) if not name.name.startswith(".")]
    if not wavs:
        what = "holds none" if folder.is_dir() else "is no folder"
        raise FileNotFoundError(f"Expected wav files for the condition `unseen` in {folder}, which {what}.")
    return wavs


def draw_unseen(clip_ids: Iterable[str], wavs: Sequence[Path], seed: int, subset: str, split: str) -> dict[str, Path]:
    """clip id -> the file that is heard with it: random, every file as often as any other or once more.

    A pure function of its arguments; neither the order of `clip_ids` nor where the files lie matters.

    Args:
        wavs: as `find_wavs` sorts them.
        split: as the CSV calls it: train, val or test.
    """
    clip_ids = sorted(clip_ids)
    words = generator(seed, subset, split, "unseen").bit_generator
    order: list[int] = []
    while len(order) < len(clip_ids):
        order += np.argsort(words.random_raw(len(wavs)), kind="stable").tolist()
    return {clip_id: wavs[place] for clip_id, place in zip(clip_ids, order, strict=False)}


def unseen_digest(folder: Path, wavs: Iterable[Path]) -> str:
    """SHA-256 over names and content: two results compare only if this is equal."""
    digest = hashlib.sha256()
    for path in wavs:
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class FurtherSounds:
    """The sounds of a further condition, made when they are read: item i is {"audio": …} of clip i, as in a split.

    Args:
        positive: the positive split, whole: the draw of unseen sounds is over all of its clips.
        partner: the off-screen split (`condition.partner == "off_screen"`), the wav files ("unseen"), or None.
        seed, subset, split: as in `load_dataset`, e.g. 42, "s4", "test".

    Attributes:
        clip_ids: as in the split.
        keys: one str a clip, equal where the waveforms are.
    """

    def __init__(
        self,
        condition: FurtherCondition,
        positive: Dataset,
        partner: Dataset | Sequence[Path] | None,
        seed: int,
        subset: str,
        split: str,
    ):
        self.condition = condition
        self.clip_ids = positive["clip_id"][:]
        self.positive = positive.select_columns(["audio"]).with_format("numpy")
        self.key = (seed, subset, SPLITS[split])
        if condition.partner == "unseen":
            heard = draw_unseen(self.clip_ids, partner, *self.key)
            self.partner = [heard[clip_id] for clip_id in self.clip_ids]
            self.keys = [f"unseen {path}" for path in self.partner]
        else:
            self.partner = None if partner is None else partner.select_columns(["audio"]).with_format("numpy")
            self.keys = [f"{condition.name} {clip_id}" for clip_id in self.clip_ids]
        self.places = range(len(self.clip_ids))

    def select(self, indices: Iterable[int]) -> "FurtherSounds":
        """The clips at `indices`, as `Dataset.select`."""
        selected = object.__new__(FurtherSounds)
        selected.__dict__ |= self.__dict__
        indices = list(indices)
        selected.places = [self.places[i] for i in indices]
        selected.clip_ids = [self.clip_ids[i] for i in indices]
        selected.keys = [self.keys[i] for i in indices]
        return selected

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict:
        place, partner = self.places[index], None
        if self.condition.partner == "unseen":
            partner = read_waveform(self.partner[place])
        elif self.condition.partner == "off_screen":
            partner = np.asarray(self.partner[place]["audio"]["array"], dtype=np.float32)
        waveform = np.asarray(self.positive[place]["audio"]["array"], dtype=np.float32)
        rng = generator(*self.key, "noise", self.clip_ids[index])
        return {"audio": {"array": self.condition.make(waveform, rng, partner), "sampling_rate": SAMPLING_RATE}}
