"""Each condition's sounds as files in AVSBench's own layout, for code bases that read files."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .conditions import CONDITIONS, further_condition, generator
from .draw import draw_off_screen
from .files import write_whole
from .further import draw_unseen
from .progress import progress
from .sounds import encode_wav, read_waveform
from .sources import media_files, read_clips
from .subsets import SPLITS, Subset

__all__ = ["write_audio"]


def write_audio(
    subset: Subset,
    root: Path,
    out: Path,
    conditions: Iterable[str] = tuple(CONDITIONS),
    splits: Iterable[str] = tuple(SPLITS),
    seed: int = 42,
    draw: str = "matched",
    unseen: Sequence[Path] = (),
    log_mel: bool = False,
) -> int:
    """Writes `out`/<condition>/<folder>/<media>/audio_wav/…wav, 5 s of 16 kHz mono in 16 bits, e.g.
    `out/silence/Single-source/s4_data/audio_wav/test/dog_barking/<clip>.wav`.

    The waveforms are those of the data set's splits, rounded to 16 bits: exactly its positive and off-screen sounds
    where AVSBench's own files have 16 bits and 16 kHz. A file is there whole or not at all.

    Args:
        conditions: of the four, or further ones, see `further_condition`.
        splits: of train, validation, test.
        unseen: wav files for the condition `unseen`, as `find_wavs` sorts them.
        log_mel: also `audio_log_mel/…npy`, (5, 1, 96, 64) float32, by the data set's one front end.

    Returns:
        How many sounds were written.

    Raises:
        FileNotFoundError, ValueError: a sound is missing or broken; a condition is unknown.
    """
    if log_mel:
        from modeling_avsegformer.log_mel import log_mel as front_end
    makers = {}
    for name in conditions:
        if name in CONDITIONS:
            makers[name] = (CONDITIONS[name], name if name == "off_screen" else None, name)
        else:
            further = further_condition(name)
            makers[name] = (further.make, further.partner, "noise")
    clips = [clip for clip in read_clips(subset, root) if clip.split in {SPLITS[split] for split in splits}]
    partners = {}
    for split in {clip.split for clip in clips}:
        of_split = [clip for clip in clips if clip.split == split]
        if any(partner == "off_screen" for _, partner, _ in makers.values()):
            for pair in draw_off_screen(of_split, subset, seed, draw):
                partners["off_screen", pair.clip.clip_id] = media_files(subset, root, pair.partner)[2]
        if unseen:
            drawn = draw_unseen([clip.clip_id for clip in of_split], unseen, seed, subset.name, split)
            partners |= {("unseen", clip_id): path for clip_id, path in drawn.items()}
    for clip in progress(clips, len(clips), "audio"):
        own = read_waveform(media_files(subset, root, clip)[2])
        place = subset.wav.format(split=clip.split, category=clip.category, clip_id=clip.clip_id)
        for name, (make, partner, key) in makers.items():
            other = read_waveform(partners[partner, clip.clip_id]) if partner else None
            waveform = make(own, generator(seed, subset.name, clip.split, key, clip.clip_id), other)
            media = out / name / subset.folder / subset.media
            write_whole(media / place, _wav(waveform))
            if log_mel:
                mel = media / place.replace("audio_wav", "audio_log_mel", 1)
                write_whole(mel.with_suffix(".npy"), _npy(front_end(waveform)))
    return len(clips) * len(makers)


def _wav(waveform: np.ndarray) -> bytes:
    # As libsndfile reads them, 32768 is 1: what was read from 16 bits is written as it was.
    samples = np.clip(np.round(waveform.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    return encode_wav(samples)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
