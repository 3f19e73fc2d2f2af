"""Each condition's sounds as files in AVSBench's own layout, for code bases that read files."""

import io
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .conditions import CONDITIONS
from .draw import draw_off_screen
from .files import write_whole
from .progress import progress
from .recipes import Row, make_sound, partners_wanted, plan
from .sounds import encode_wav
from .sources import read_clips
from .subsets import SPLITS, Subset

__all__ = ["write_audio"]


def write_audio(
    subset: Subset,
    root: Path,
    out: Path,
    conditions: Sequence[str] = tuple(CONDITIONS),
    splits: Iterable[str] = tuple(SPLITS),
    seed: int = 42,
    draw: str = "matched",
    unseen_dir: str | os.PathLike | None = None,
    log_mel: bool = False,
) -> int:
    """Writes `out`/<condition>/<folder>/<media>/audio_wav/…wav, 5 s of 16 kHz mono in 16 bits, e.g.
    `out/silence/Single-source/s4_data/audio_wav/test/dog_barking/<clip>.wav`.

    The waveforms are those of the data set's splits, rounded to 16 bits: exactly its positive and off-screen sounds
    where AVSBench's own files have 16 bits and 16 kHz. A file is there whole or not at all.

    Args:
        conditions: as in `get_condition`.
        splits: of train, validation, test.
        unseen_dir: folder of wav files for the condition `unseen`.
        log_mel: also `audio_log_mel/…npy`, (5, 1, 96, 64) float32, by the data set's one front end.

    Returns:
        How many sounds were written.

    Raises:
        FileNotFoundError, ValueError: a sound is missing or broken; a condition is unknown.
    """
    if log_mel:
        from modeling_avsegformer.log_mel import log_mel as front_end
    clips = read_clips(subset, root)
    rows: list[Row] = []
    for split in splits:
        of_split = [clip for clip in clips if clip.split == SPLITS[split]]
        if of_split:
            needs_draw = "off_screen" in partners_wanted(conditions)
            pairs = draw_off_screen(of_split, subset, seed, draw) if needs_draw else []
            of_conditions = plan(subset, root, of_split, conditions, seed, pairs, unseen_dir)
            rows += itertools.chain.from_iterable(zip(*of_conditions.values(), strict=True))  # clip by clip
    for row in progress(rows, len(rows), "audio", "file"):
        waveform = make_sound(row.recipe)
        clip = row.clip
        place = subset.wav.format(split=clip.split, category=clip.category, clip_id=clip.clip_id)
        media = out / row.condition / subset.folder / subset.media
        write_whole(media / place, _wav(waveform))
        if log_mel:
            mel = media / place.replace("audio_wav", "audio_log_mel", 1)
            write_whole(mel.with_suffix(".npy"), _npy(front_end(waveform)))
    return len(rows)


def _wav(waveform: np.ndarray) -> bytes:
    # As libsndfile reads them, 32768 is 1: what was read from 16 bits is written as it was.
    samples = np.clip(np.round(waveform.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    return encode_wav(samples)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
