"""The audio conditions: pure functions from a clip's sound, a generator and a partner's sound to what is heard.

A condition that is added to `CONDITIONS` is a split, a training negative (where the clip's own sound is not heard in
it) and a condition of the evaluation. All waveforms are float32 (80000,), 16 kHz mono, nominally in [-1, 1].
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .subsets import FRAMES_PER_CLIP, SAMPLES, SAMPLING_RATE
from .timbres import UNSEEN_KINDS, random_timbre, unseen_sound

FOLDERS = ("unseen_dir", "negative_dir")  # the arguments that name a folder of wav files
STEP = 15360  # samples, 0.96 s: from one window of AVSBench's front end (0.975 s) to the next
MUTED_SECONDS = 2  # of five, under the condition `muted`


def generator(*key: object) -> np.random.Generator:
    """A PCG64 generator of its own for each key, e.g. (seed, subset, split, condition, clip id).

    The benchmark's conditions use its raw 64-bit words only: NumPy keeps those the same across its releases, which it
    does not promise for the distributions above them.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def positive(own: np.ndarray, *_: object) -> np.ndarray:
    """The clip's own sound, unchanged."""
    return own


def silence(*_: object) -> np.ndarray:
    """Zeros."""
    return np.zeros(SAMPLES, dtype=np.float32)


def noise(own: object, rng: np.random.Generator, *_: object) -> np.ndarray:
    """White noise, uniform in [-1, 1): the upper 24 bits of each raw word, exact in float32.

    The release's noise is the bytes of float64 numbers read as 16-bit samples, which is not white; this is.
    """
    words = rng.bit_generator.random_raw(SAMPLES)
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)


def off_screen(own: object, rng: object, partner: np.ndarray) -> np.ndarray:
    """The partner's sound, unchanged."""
    return partner


def timbre(own: object, rng: np.random.Generator, *_: object) -> np.ndarray:
    """A sound of no category, drawn at random; see `random_timbre`."""
    return random_timbre(rng)


def unseen(own: object, rng: np.random.Generator, partner: np.ndarray | None = None) -> np.ndarray:
    """A sound that no training of this project uses: the partner's, or one of a random kind of `UNSEEN_KINDS`."""
    return unseen_sound(str(rng.choice(list(UNSEEN_KINDS))), rng) if partner is None else partner


def draw_heard_frames(rng: np.random.Generator) -> np.ndarray:
    """bool (5,), False in the `MUTED_SECONDS` that `muted` silences: each choice is equally likely."""
    heard = np.ones(FRAMES_PER_CLIP, dtype=bool)
    heard[np.argsort(rng.bit_generator.random_raw(FRAMES_PER_CLIP), kind="stable")[:MUTED_SECONDS]] = False
    return heard


def muted(own: np.ndarray, rng: np.random.Generator, *_: object) -> np.ndarray:
    """The clip's own sound with zeros in the seconds that `draw_heard_frames` draws.

    The zeros of second k begin with the k-th window of AVSBench's front end, at 0.96 k seconds, and end at k + 1
    seconds: whichever of the two a model takes for frame k is silent. A frame that is heard hears at least 0.8 s.
    """
    sound = own.copy()
    for second in np.flatnonzero(~draw_heard_frames(rng)):
        sound[second * STEP : (second + 1) * SAMPLING_RATE] = 0
    return sound


def mix(waveform: np.ndarray, other: np.ndarray, snr: float) -> np.ndarray:
    """`waveform` plus `other`, the latter scaled so that its power over the clip is `snr` dB below the waveform's.

    A sum that leaves [-1, 1] is scaled down as a whole, which keeps the ratio. Where `waveform` is silent there is no
    such level and the mix is silent; where `other` is, the mix is `waveform`.
    """
    own, added = (np.mean(np.square(values, dtype=np.float64)) for values in (waveform, other))
    gain = np.sqrt(own / added) * 10 ** (-snr / 20) if added > 0 else 0.0
    mixed = waveform + gain * other.astype(np.float64)
    return (mixed / max(1.0, np.abs(mixed).max(initial=0))).astype(np.float32)


@dataclass(frozen=True)
class Condition:
    """How the sound of a condition is made, and what it is made from.

    Attributes:
        make: (own, rng, partner) -> float32 (80000,). Each is None where the condition does not ask for it.
        needs_own: whether `make` uses the clip's own sound.
        partner: whose sound `make` uses as well: "off_screen" (of the clip that the draw assigned), one of `FOLDERS`
            (of a file in the folder that this argument names) or None.
        is_random: whether `make` draws from `rng`. With one of `FOLDERS` as partner it does so only where the folder
            is not given; else the folder is required.
        noise_of: the condition that names the generator; None means this one.
        heard: in which frames the clip's own sound is heard. Where it is "none", the condition is negative.
        draw_heard: generator of `make` -> bool (5,), the frames in which the own sound is heard, where these are
            "some".
    """

    name: str
    make: Callable[..., np.ndarray]
    needs_own: bool = False
    partner: Literal["off_screen", "unseen_dir", "negative_dir"] | None = None
    is_random: bool = False
    noise_of: str | None = None
    heard: Literal["all", "none", "some"] = "none"
    draw_heard: Callable[[np.random.Generator], np.ndarray] | None = None

    def __post_init__(self):
        if (self.heard == "some") != (self.draw_heard is not None):
            raise ValueError(f"Expected `draw_heard` exactly where `heard` is 'some', got heard={self.heard!r}.")


def _by_name(*conditions: Condition) -> dict[str, Condition]:
    return {condition.name: condition for condition in conditions}


# The benchmark's conditions, in the order of the `condition` ClassLabel.
CONDITIONS = _by_name(
    Condition("positive", positive, needs_own=True, heard="all"),
    Condition("silence", silence),
    Condition("noise", noise, is_random=True),
    Condition("off_screen", off_screen, partner="off_screen"),
)
# Splits where they are asked for by name.
EXTRA_CONDITIONS = _by_name(
    Condition("unseen", unseen, partner="unseen_dir", is_random=True),
    Condition("timbre", timbre, is_random=True),
    Condition("recorded", off_screen, partner="negative_dir"),
    Condition("muted", muted, needs_own=True, is_random=True, heard="some", draw_heard=draw_heard_frames),
)


def get_condition(name: str) -> Condition:
    """The condition of this name: one of `CONDITIONS`, or

    - `unseen`: held out from every training: a sound of the folder `unseen_dir`, or else of `UNSEEN_KINDS`;
    - `timbre`, `recorded`: to train on: a sound drawn at random, a sound of the folder `negative_dir`;
    - `muted`: the clip's own sound, silent in two of its five seconds;
    - `mixed_snr_<dB>`, `noise_snr_<dB>`: the clip's own sound and its off-screen sound, or its noise. Above 0 dB the
      own sound is the louder one; minus is written `-` or `m`, as in `noise_snr_m5`.

    Raises:
        ValueError: another name.
    """
    known = CONDITIONS | EXTRA_CONDITIONS
    if name in known:
        return known[name]
    match = re.fullmatch(r"(mixed|noise)_snr_([m-]?)(\d{1,3}(?:\.\d+)?)", name)
    if match is None:
        raise ValueError(
            f"Expected one of {', '.join(known)}, mixed_snr_<dB> or noise_snr_<dB> (for example noise_snr_m5, five dB "
            f"below the noise) as condition, got {name!r}."
        )
    kind, sign, level = match.groups()
    snr = -float(level) if sign else float(level)
    if kind == "mixed":
        return Condition(
            name, lambda own, rng, partner: mix(own, partner, snr), needs_own=True, partner="off_screen", heard="all"
        )
    return Condition(
        name,
        lambda own, rng, partner: mix(own, noise(own, rng), snr),
        needs_own=True,
        is_random=True,
        noise_of="noise",
        heard="all",
    )


def negative_conditions() -> tuple[str, ...]:
    """The names of `CONDITIONS` in which the clip's own sound is not heard, in order."""
    return tuple(name for name, condition in CONDITIONS.items() if condition.heard == "none")


def heard_frames(condition: str, key: str) -> list[bool]:
    """For each of a clip's five frames, whether its own sound is heard; `key` is as of `recipes.generator_key`."""
    known = get_condition(condition)
    if known.draw_heard is not None:
        return known.draw_heard(generator(key)).tolist()
    return [known.heard == "all"] * FRAMES_PER_CLIP


def split_name(split: str, condition: str) -> str:
    """The split of a condition, as `load_dataset` names it: `test_silence`; minus becomes `m`, `test_noise_snr_m5`."""
    return f"{split}_{condition.replace('-', 'm')}"
