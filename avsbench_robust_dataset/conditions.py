"""The four audio conditions: small pure functions from a clip's waveform to the waveform that is heard.

Each takes (waveform, rng, partner): the clip's own sound, the clip's own generator and, for `off_screen`, the sound of
the clip that the draw assigned. All waveforms are float32 (80000,), 16 kHz mono, nominally in [-1, 1]; what comes out
passes the same front end in every condition.
"""

import hashlib

import numpy as np

__all__ = ["CONDITIONS", "SAMPLES", "SAMPLING_RATE", "generator", "noise", "off_screen", "positive", "silence"]

SAMPLING_RATE = 16000  # Hz
SAMPLES = 5 * SAMPLING_RATE  # a clip


def generator(*key: object) -> np.random.Generator:
    """A PCG64 generator of its own for each key, e.g. (seed, subset, split, condition, clip id).

    Only its raw 64-bit words are used in this package: NumPy keeps those the same across its releases, which it does
    not promise for the distributions above them.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def positive(waveform: np.ndarray, rng: np.random.Generator | None = None, partner: np.ndarray | None = None):
    """The clip's own sound, unchanged."""
    return waveform


def silence(waveform: np.ndarray, rng: np.random.Generator | None = None, partner: np.ndarray | None = None):
    """Zeros."""
    return np.zeros_like(waveform)


def noise(waveform: np.ndarray, rng: np.random.Generator, partner: np.ndarray | None = None):
    """White noise, uniform in [-1, 1): the upper 24 bits of each raw word, exact in float32.

    The release's noise is the bytes of float64 numbers read as 16-bit samples, which is not white; this is.
    """
    words = rng.bit_generator.random_raw(waveform.size)
    return ((words >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)).reshape(waveform.shape)


def off_screen(waveform: np.ndarray, rng: np.random.Generator | None, partner: np.ndarray):
    """Another clip's real sound, unchanged."""
    return partner


# In the order of the `condition` ClassLabel.
CONDITIONS = {"positive": positive, "silence": silence, "noise": noise, "off_screen": off_screen}
