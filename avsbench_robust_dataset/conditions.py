"""The audio conditions: small pure functions from a clip's waveform to the waveform that is heard.

Each takes (waveform, rng, partner): the clip's own sound, the clip's own generator and, for `off_screen`, the sound of
the clip that the draw assigned. All waveforms are float32 (80000,), 16 kHz mono, nominally in [-1, 1]; what comes out
passes the same front end in every condition.

Four conditions are the benchmark's and have splits of their own (`CONDITIONS`). Further ones are made from these when
a model is evaluated, and are named by what they are (`further_condition`): `unseen`, `mixed_snr_0`, `noise_snr_-5`.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

__all__ = [
    "CONDITIONS",
    "SAMPLES",
    "SAMPLING_RATE",
    "FurtherCondition",
    "further_condition",
    "generator",
    "mix",
    "noise",
    "off_screen",
    "positive",
    "silence",
]

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


def mix(waveform: np.ndarray, other: np.ndarray, snr: float) -> np.ndarray:
    """`waveform` plus `other`, the latter scaled so that its power over the clip is `snr` dB below the waveform's.

    A sum that leaves [-1, 1] is scaled down as a whole, which keeps the ratio. Where `waveform` is silent there is no
    such level and the mix is silent; where `other` is, the mix is `waveform`.
    """
    own, added = (np.mean(np.square(values, dtype=np.float64)) for values in (waveform, other))
    gain = np.sqrt(own / added) * 10 ** (-snr / 20) if added > 0 else 0.0
    mixed = waveform + gain * other.astype(np.float64)
    return (mixed / max(1.0, np.abs(mixed).max(initial=0))).astype(np.float32)


def _with_partner(waveform: np.ndarray, rng: np.random.Generator | None, partner: np.ndarray, snr: float):
    return mix(waveform, partner, snr)


def _with_noise(waveform: np.ndarray, rng: np.random.Generator, partner: np.ndarray | None, snr: float):
    return mix(waveform, noise(waveform, rng), snr)


@dataclass(frozen=True)
class FurtherCondition:
    """A condition beyond the four.

    Attributes:
        make: (waveform, rng, partner) -> waveform. `rng` is the generator of the clip's `noise`, so that a sweep over
            levels hears one noise.
        partner: what `partner` is: "off_screen" (the drawn clip's sound), "unseen" (a file's) or None.
        is_heard: whether the clip's own sound is in it, so that the mask should be as on positive sound.
    """

    name: str
    make: Callable[[np.ndarray, np.random.Generator | None, np.ndarray | None], np.ndarray]
    partner: str | None
    is_heard: bool


def further_condition(name: str) -> FurtherCondition:
    """`unseen`: a sound of a folder of wav files; `mixed_snr_<dB>`: the clip's own and its off-screen sound;
    `noise_snr_<dB>`: the clip's own sound and its noise. Above 0 dB the own sound is the louder one.

    Raises:
        ValueError: another name.
    """
    if name == "unseen":
        return FurtherCondition(name, off_screen, "unseen", is_heard=False)
    match = re.fullmatch(r"(mixed|noise)_snr_(-?\d{1,3}(?:\.\d+)?)", name)
    if match is None:
        raise ValueError(
            f"Expected one of {', '.join(CONDITIONS)}, unseen, mixed_snr_<dB> or noise_snr_<dB> (for example "
            f"noise_snr_-5) as condition, got {name!r}."
        )
    kind, snr = match[1], float(match[2])
    if kind == "mixed":
        return FurtherCondition(name, partial(_with_partner, snr=snr), "off_screen", is_heard=True)
    return FurtherCondition(name, partial(_with_noise, snr=snr), None, is_heard=True)
