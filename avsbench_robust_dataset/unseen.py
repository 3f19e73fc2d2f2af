"""The condition `unseen`: which files a folder holds, and which clip hears which of them."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .conditions import generator
from .files import sha256

__all__ = ["draw_unseen", "find_wavs", "unseen_digest"]


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
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + bytes.fromhex(sha256(path)))
    return digest.hexdigest()
