"""Files as bytes first: libsndfile and Pillow do not say which file found no room, or that one did not."""

import io
import os
from pathlib import Path

import numpy as np
import soundfile

from .conditions import SAMPLING_RATE

__all__ = ["encode_wav", "write_bytes", "write_whole"]


def encode_wav(samples: np.ndarray) -> bytes:
    """A wav file of 16 bits at 16 kHz; `samples` are int16, or float in [-1, 1]."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file.

    Raises:
        OSError: as always, but one of a full disk names the file too.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file, and the folders it lies in, whole or not at all; errors as `write_bytes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_bytes(partial, content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
