"""Sounds from a folder, as of the condition `unseen`: which files it holds, and which clip hears which of them."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .conditions import generator
from .files import sha256
from .sources import code_digest


def find_wavs(folder: Path) -> list[Path]:
    """The wav files in `folder` and below it, sorted by their path in it; hidden ones are left out.

    Raises:
        FileNotFoundError: there is none.
    """
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() == ".wav"]
    wavs = [folder / name for name in sorted(names, key=Path.as_posix) if not name.name.startswith(".")]
    if not wavs:
        what = "that folder holds none" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"Expected wav files in {folder}, but {what}. Name a folder with files NAME.wav.")
    return wavs


def draw_unseen(
    clip_ids: Iterable[str],
    wavs: Sequence[Path],
    seed: int,
    subset: str,
    split: str,
    condition: str = "unseen",
) -> dict[str, Path]:
    """clip id -> the file that is heard with it: random, every file as often as any other or once more.

    Args:
        clip_ids: in any order.
        wavs: as `find_wavs` sorts them.
        split: as the CSV calls it: train, val or test.
    """
    clip_ids = sorted(clip_ids)
    words = generator(seed, subset, split, condition).bit_generator
    order: list[int] = []
    while len(order) < len(clip_ids):
        order += np.argsort(words.random_raw(len(wavs)), kind="stable").tolist()
    return {clip_id: wavs[place] for clip_id, place in zip(clip_ids, order, strict=False)}


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and content of its wav files: two results compare only if this is equal."""
    digest = hashlib.sha256()
    for path in find_wavs(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + bytes.fromhex(sha256(path)))
    return digest.hexdigest()


def unseen_source(folder: Path | None) -> dict[str, str]:
    """What a result says of its unseen sounds; `unseen_sha256` is over the files, or over the code that makes them."""
    if folder is None:
        return {"unseen_source": "built-in", "unseen_sha256": code_digest(("timbres",))}
    return {"unseen_source": folder.name, "unseen_sha256": folder_digest(folder)}
