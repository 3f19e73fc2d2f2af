"""`avs-audit`: measures whether anything but content distinguishes a negative condition from positive (a shortcut).

Rows are reduced to numbers: properties of the sound besides its content (padding, duration, level, ..., and those of
the model's input), the row's place in its split, and the sizes of its files. For every number, and for cross-validated
linear probes over all of them, the area under the ROC curve says how well it tells the condition from positive: 0.5 is
chance, 0 and 1 are certain.

    avs-audit --subset s4 --data_dir data
    avs-audit --subset s4 --data_dir data --front_end released
"""

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from avsbench_robust_dataset import CONDITIONS, SPLITS, SUBSETS, Subset, __version__
from avsbench_robust_dataset.builder import locate
from avsbench_robust_dataset.conditions import SAMPLING_RATE
from avsbench_robust_dataset.draw import DRAWS
from avsbench_robust_dataset.files import printable
from avsbench_robust_dataset.progress import progress
from avsbench_robust_dataset.sources import read_clips
from modeling_avsegformer.log_mel import MIN_SAMPLES, log_mel, released_log_mel

from .provenance import write_json

__all__ = ["FRONT_ENDS", "Audit", "Comparison", "Estimate", "audit", "format_audit", "write_audit"]

FRONT_ENDS = ("vggish", "released")
FOLDS = 5
RESAMPLES = 1000  # bootstrap samples behind an interval
FEW_SOUNDS = 30  # below which a bootstrap over sounds is rough
RIDGE = 0.1  # penalty on the probe's weights, features of unit variance

SOUND_FEATURES = {  # the kind of shortcut that they show -> features
    "padding": ("leading_zeros", "trailing_zeros", "zero_fraction", "longest_run"),
    "duration": ("samples", "sounding_seconds"),
    "level": ("rms_db", "peak_db"),
    "clipping": ("clipped_fraction",),
    "DC": ("dc_offset",),
    "spectrum edges": ("below_50_hz_db", "above_7500_hz_db"),
    "dtype": ("sampling_rate", "bits", "off_16_bit_grid"),
    "model input": tuple(f"input_{name}" for name in "constant_frames zero_fraction minimum maximum mean std".split()),
}
SOUND_KINDS = {name: kind for kind, names in SOUND_FEATURES.items() for name in names}
ROW_KINDS = {"row": "ordering"} | dict.fromkeys(("frames", "masks", "frame_bytes", "mask_bytes", "paths"), "files")


# --- what is measured ---


def sound_features(waveform: np.ndarray, sampling_rate: int, bits: int, examples: np.ndarray) -> np.ndarray:
    """float64 array in the order of `SOUND_KINDS`.

    Args:
        waveform (float array (samples,)): as stored, `bits` a sample; not empty.
        examples (float array (seconds, 1, frames, bands)): what the model's front end makes of it.
    """
    x = waveform.astype(np.float64)
    sounding = np.flatnonzero(x)
    loud = np.flatnonzero(np.abs(x) > 1e-3 * np.abs(x).max())  # within 60 dB of the peak
    power = np.abs(np.fft.rfft(x)) ** 2
    frequency = np.fft.rfftfreq(len(x), 1 / sampling_rate)
    ends = np.flatnonzero(np.diff(x, prepend=np.nan, append=np.nan))  # where a run of equal samples begins or ends
    frames = examples.reshape(-1, examples.shape[-1])
    total = power[1:].sum() + 1e-12
    values = {
        "leading_zeros": sounding[0] if len(sounding) else len(x),
        "trailing_zeros": len(x) - 1 - sounding[-1] if len(sounding) else len(x),
        "zero_fraction": 1 - len(sounding) / len(x),
        "longest_run": np.diff(ends).max(),
        "samples": len(x),
        "sounding_seconds": (loud[-1] - loud[0] + 1) / sampling_rate if len(loud) else 0,
        "rms_db": 10 * np.log10(np.mean(x**2) + 1e-12),
        "peak_db": 20 * np.log10(np.abs(x).max() + 1e-6),
        "clipped_fraction": np.mean(np.abs(x) >= 0.999),
        "dc_offset": x.mean(),
        "below_50_hz_db": 10 * np.log10(power[1:][frequency[1:] < 50].sum() / total + 1e-12),
        "above_7500_hz_db": 10 * np.log10(power[frequency > 7500].sum() / total + 1e-12),
        "sampling_rate": sampling_rate,
        "bits": bits,
        "off_16_bit_grid": np.mean(x * 32768 != np.round(x * 32768)),
        "input_constant_frames": np.mean(np.ptp(frames, axis=1) == 0),
        "input_zero_fraction": np.mean(frames == 0),
        "input_minimum": frames.min(),
        "input_maximum": frames.max(),
        "input_mean": frames.mean(dtype=np.float64),
        "input_std": frames.std(dtype=np.float64),
    }
    return np.array([values[name] for name in SOUND_KINDS], dtype=np.float64)


def audio_statistics(examples: np.ndarray) -> np.ndarray:
    """float64 (2 x bands,): mean and standard deviation of each band over time. They depend on the content."""
    frames = examples.reshape(-1, examples.shape[-1]).astype(np.float64)
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0)])


def row_features(position: int, frames: list[dict], masks: list[dict]) -> np.ndarray:
    """float64 array in the order of `ROW_KINDS`, from a row's place in its split and its stored images."""
    images = frames + masks
    sizes = [
        [os.path.getsize(image["path"]) if image["bytes"] is None else len(image["bytes"]) for image in of_kind]
        for of_kind in (frames, masks)
    ]
    paths = sum(image["path"] is not None for image in images)
    return np.array([position, len(frames), len(masks), sum(sizes[0]), sum(sizes[1]), paths], dtype=np.float64)


class Row(NamedTuple):
    """A row's groups, clip and sound, which must not be split between folds, its sound's digest, and its features."""

    clip: str
    source: str
    digest: tuple
    sound: np.ndarray
    audio: np.ndarray
    row: np.ndarray


class Reader:
    """Reduces rows to features. Equal sounds are measured once, so that their features are equal to the last bit."""

    def __init__(self, subset: Subset, front_end: str):
        self.subset, self.front_end = subset, front_end
        self._measured: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def read(self, splits: Iterable[Iterable[dict]], condition: str) -> list[Row]:
        """The rows of one condition in the splits, in their order; their images are not decoded."""
        return [
            Row(
                self.subset.source_video(row["clip_id"]),
                # Silence and noise have no source clip; they belong to the group of the clip whose sound they replace.
                self.subset.source_video(row["audio_source"] or row["clip_id"]),
                *self._measure(**row["audio"], positive=condition == "positive"),
                row_features(position, row["frames"], row["masks"]),
            )
            for split in splits
            for position, row in enumerate(split)
        ]

    def _measure(self, array: np.ndarray, sampling_rate: int, positive: bool) -> tuple[tuple, np.ndarray, np.ndarray]:
        waveform, bits = array, 8 * array.itemsize
        released = self.front_end == "released" and not positive
        key = (hashlib.sha256(waveform.tobytes()).digest(), sampling_rate, bits, released)
        if key not in self._measured:
            if sampling_rate != SAMPLING_RATE or len(waveform) < MIN_SAMPLES:
                raise ValueError(
                    f"Expected sounds of at least {MIN_SAMPLES} samples at {SAMPLING_RATE} Hz, which the model takes, "
                    f"got {len(waveform)} at {sampling_rate} Hz. Build the data set anew."
                )
            examples = released_log_mel(waveform) if released else log_mel(waveform)
            self._measured[key] = (
                sound_features(waveform, sampling_rate, bits, examples),
                audio_statistics(examples),
            )
        return key, *self._measured[key]


# --- how well a feature tells ---


@dataclass(frozen=True)
class Estimate:
    """An area under the ROC curve and its 95 % interval."""

    auc: float
    low: float
    high: float

    @property
    def at_chance(self) -> bool:
        return self.low <= 0.5 <= self.high

    def __str__(self) -> str:
        return f"{self.auc:.3f} [{self.low:.3f}, {self.high:.3f}]"


def weighted_auc(
    scores: np.ndarray, negative: np.ndarray, fold: np.ndarray, group: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """The share of (negative, positive) pairs within a fold in which the negative row scores higher; ties count half.

    Pairs within a group are left out: in a resample that holds the group twice they would count four times, and pairs
    of two groups twice.

    Args:
        scores (float array (n,)), negative (bool array (n,)), fold (int array (n,)).
        group (int array (n,)): from 0 to G - 1.
        counts (float array (R, G)): how often each group counts, in each of R resamples.

    Returns:
        float64 array (R,); NaN where a resample has no pair.
    """
    weights = counts[:, group]
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for of_fold in (fold == number for number in np.unique(fold)):
        values, place = np.unique(scores[of_fold], return_inverse=True)
        order = np.argsort(place, kind="stable")
        starts = np.searchsorted(place[order], np.arange(len(values)))
        ordered, is_negative = weights[:, of_fold][:, order], negative[of_fold][order]
        negatives = np.add.reduceat(ordered * is_negative, starts, axis=1)  # (R, distinct scores)
        positives = np.add.reduceat(ordered * ~is_negative, starts, axis=1)
        below = positives.cumsum(axis=1) - positives
        won += (negatives * (below + positives / 2)).sum(axis=1)
        pairs += negatives.sum(axis=1) * positives.sum(axis=1)
        for number in np.unique(group[of_fold]):
            own = of_fold & (group == number)
            ahead = scores[own & negative][:, None] - scores[own & ~negative]
            won -= counts[:, number] ** 2 * (np.count_nonzero(ahead > 0) + np.count_nonzero(ahead == 0) / 2)
            pairs -= counts[:, number] ** 2 * ahead.size
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def estimate_auc(scores, negative, group, fold, resamples: int = RESAMPLES) -> Estimate:
    """AUC with a percentile interval of a bootstrap over groups: whole groups of rows are drawn with replacement.

    A score that separates perfectly has an interval of width 0, for any number of groups. If no fold holds a pair of
    two groups, the result is 0.5 in [0, 1].
    """
    names, place = np.unique(group, return_inverse=True)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples).astype(np.float64)
    (auc,) = weighted_auc(scores, negative, fold, place, np.ones((1, len(names))))
    if np.isnan(auc):
        return Estimate(0.5, 0.0, 1.0)
    drawn = weighted_auc(scores, negative, fold, place, counts)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Estimate(float(auc), float(low), float(high))


def assign_folds(group: list[str], folds: int = FOLDS) -> np.ndarray:
    """int array (n,): a fold for each row, the same for all rows of a group; the random assignment is fixed."""
    names, place = np.unique(group, return_inverse=True)
    return (np.random.default_rng(0).permutation(len(names)) % folds)[place]


def cross_validated_scores(features: np.ndarray, negative: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Each row's score from a linear probe that was fitted on the other folds; higher means negative.

    The probe is ridge regression of the label, -1 or 1, on standardised features, cut off at 5 standard deviations.

    Args:
        features (float array (n, d)), negative (bool array (n,)), fold (int array (n,)).
    """
    scores = np.zeros(len(features))
    label = np.where(negative, 1.0, -1.0)
    for number in np.unique(fold):
        test = fold == number
        x = np.clip(StandardScaler().fit(features[~test]).transform(features), -5, 5)
        probe = Ridge(alpha=RIDGE * np.count_nonzero(~test)).fit(x[~test], label[~test])
        scores[test] = (x[test] * probe.coef_).sum(axis=1)  # not `predict`: by BLAS, equal rows get unequal scores
    return scores


# --- the audit ---


@dataclass(frozen=True)
class Comparison:
    """How well one condition is told from positive.

    Attributes:
        draw: of the off-screen sounds; None for other conditions.
        by_definition: whether the content tells them apart for any data, see `is_told_by_definition`.
        same_sounds: whether both have the same sounds, bit by bit, equally often and through one front end, as the
            matched draw promises. Then no function of the sound alone can tell them apart.
        probes: "sound" (all of `SOUND_KINDS`), "audio_only" (log-mel statistics, content included) and "row" (all of
            `ROW_KINDS`), cross-validated so that no sound (of "row": no clip) is in training and test.
        features: each of `SOUND_KINDS` and `ROW_KINDS` alone.
    """

    condition: str
    draw: str | None
    by_definition: bool
    same_sounds: bool
    probes: dict[str, Estimate]
    features: dict[str, Estimate]

    @property
    def breaks_promise(self) -> bool:
        """Whether the draw promises the same sounds in both conditions, but they differ."""
        return self.draw == "matched" and not self.same_sounds

    @property
    def at_chance(self) -> bool:
        """Whether no probe tells the condition and the draw's promise holds, which even a shift by a sample breaks."""
        return not self.breaks_promise and all(estimate.at_chance for estimate in self.probes.values())


@dataclass(frozen=True)
class Audit:
    subset: str
    splits: list[str]
    clips: int
    sounds: int
    seed: int
    front_end: str
    comparisons: list[Comparison]


def is_told_by_definition(condition: str) -> bool:
    """Whether the condition contains no recording: silence, noise."""
    return not CONDITIONS[condition].needs_own and CONDITIONS[condition].partner is None


def compare(positive: list[Row], other: list[Row], condition: str, draw: str | None) -> Comparison:
    """Every probe and every feature of one condition against positive."""
    rows = positive + other
    negative = np.arange(len(rows)) >= len(positive)
    sounds, clips = [row.source for row in rows], [row.clip for row in rows]
    sound, audio, place = (np.array([getattr(row, name) for row in rows]) for name in ("sound", "audio", "row"))
    probes = {}
    for name, features, group in (("sound", sound, sounds), ("audio_only", audio, sounds), ("row", place, clips)):
        fold = assign_folds(group)
        probes[name] = estimate_auc(cross_validated_scores(features, negative, fold), negative, group, fold)
    together = np.zeros(len(rows), dtype=int)
    alone = {
        name: estimate_auc(values, negative, group, together)
        for kinds, features, group in ((SOUND_KINDS, sound, sounds), (ROW_KINDS, place, clips))
        for name, values in zip(kinds, features.T, strict=True)
    }
    same_sounds = Counter(row.digest for row in positive) == Counter(row.digest for row in other)
    return Comparison(condition, draw, is_told_by_definition(condition), same_sounds, probes, alone)


def audit(
    subset: str,
    data_dir: str | None = None,
    splits: tuple[str, ...] = ("test",),
    seed: int = 42,
    draws: tuple[str, ...] = DRAWS,
    front_end: str = "vggish",
) -> Audit:
    """Every condition against positive, in the splits together, off-screen sound once for each draw; stores nothing.

    Args:
        subset, data_dir, seed: as in `load_dataset`.
        splits: of "train", "validation" and "test".
        front_end: "vggish", this project's, or "released": positive sounds as VGGish's log-mel, all others by
            `released_log_mel`.

    Raises:
        FileNotFoundError, ValueError: as the builder; a split without clips, fewer than two sounds.
    """
    reader = Reader(SUBSETS[subset], front_end)
    counts = Counter(clip.split for clip in read_clips(SUBSETS[subset], locate(SUBSETS[subset], data_dir)))
    streams = {
        draw: datasets.load_dataset("avsbench_robust", subset, data_dir=data_dir, seed=seed, draw=draw, streaming=True)
        for draw in draws
    }
    absent = [split for split in splits if f"{split}_positive" not in streams[draws[0]]]
    if absent:
        raise ValueError(f"Expected clips in the split {absent[0]} of {subset}, but there are none.")

    def read(condition: str, draw: str) -> list[Row]:
        rows = []
        for split in splits:
            of_split = streams[draw][f"{split}_{condition}"]
            for column in ("frames", "masks"):
                of_split = of_split.cast_column(column, datasets.List(datasets.Image(decode=False)))
            rows.append(progress(of_split, counts[SPLITS[split]], f"audit {split} {condition}, {draw} draw"))
        return reader.read(rows, condition)

    positive = read("positive", draws[0])
    sounds = len({row.source for row in positive})
    if sounds < 2:
        raise ValueError(f"Expected at least two sounds in {', '.join(splits)} of {subset}, got one.")
    same_in_each_draw = filter(is_told_by_definition, CONDITIONS)
    comparisons = [compare(positive, read(name, draws[0]), name, None) for name in same_in_each_draw]
    drawn = [name for name, condition in CONDITIONS.items() if condition.partner == "off_screen"]
    comparisons += [compare(positive, read(name, draw), name, draw) for draw in draws for name in drawn]
    return Audit(subset, list(splits), len(positive), sounds, seed, front_end, comparisons)


def _label(comparison: Comparison) -> str:
    return comparison.condition + (f", {comparison.draw} draw" if comparison.draw else "")


def _verdict(comparison: Comparison, sounds: int) -> str:
    if comparison.by_definition:
        return "told apart by what is heard, by definition"
    if comparison.same_sounds and comparison.at_chance:
        return "at chance, by construction: each sound comes once in both"
    if comparison.breaks_promise:
        return "NOT at chance: the sounds are not the very same in both"
    if sounds < FEW_SOUNDS:
        return "too few sounds to tell"
    return "at chance" if comparison.at_chance else "NOT at chance"


def format_audit(result: Audit) -> str:
    """The audit as text: the probes of each condition, then the features that tell a condition from positive."""
    lines = [
        f"{result.subset}, {' + '.join(result.splits)}, {result.clips} clips, seed {result.seed}, "
        f"front end {result.front_end}",
        "AUC of telling a condition from positive, with its 95 % interval; 0.5 is chance",
        *([f"only {result.sounds} sounds: the intervals are rough"] if result.sounds < FEW_SOUNDS else []),
        "",
        f"{'condition':<26}{'sound, no content':<24}{'audio only':<24}{'row and files':<24}verdict",
    ]
    for comparison in result.comparisons:
        probes = "".join(f"{str(comparison.probes[name]):<24}" for name in ("sound", "audio_only", "row"))
        lines.append(f"{_label(comparison):<26}{probes}{_verdict(comparison, result.sounds)}")
    kinds = SOUND_KINDS | ROW_KINDS
    lines += ["", "features alone (below 0.5: smaller than in positive rows)"]
    lines.append(f"{'':<40}" + "".join(f"{_label(comparison):<26}" for comparison in result.comparisons).rstrip())
    for name, kind in kinds.items():
        estimates = "".join(f"{str(comparison.features[name]):<26}" for comparison in result.comparisons)
        lines.append(f"{f'{kind}: {name}':<40}{estimates.rstrip()}")
    return "\n".join(lines)


def write_audit(result: Audit, path: Path) -> None:
    """Writes the audit as a JSON file."""
    content = asdict(result)
    for row, comparison in zip(content["comparisons"], result.comparisons, strict=True):
        row["at_chance"] = comparison.at_chance
    content |= {"folds": FOLDS, "resamples": RESAMPLES, "kinds": SOUND_KINDS | ROW_KINDS}
    write_json(path, content)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="avs-audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--subset", choices=list(SUBSETS), default="s4")
    parser.add_argument("--data_dir", help="the download; default: $AVSBENCH_DIR, else ./data")
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=["test"], help="default: test")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--draw", choices=DRAWS, help="draw of the off-screen sounds; default: both, side by side")
    parser.add_argument(
        "--front_end",
        choices=FRONT_ENDS,
        default="vggish",
        help="released: negative sounds pass another front end, as in the released pipeline",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything that was measured")
    args = parser.parse_args(argv)
    draws = DRAWS if args.draw is None else (args.draw,)
    try:
        result = audit(args.subset, args.data_dir, args.splits, args.seed, draws, args.front_end)
        print(format_audit(result))
        if args.json is not None:
            write_audit(result, args.json)
    except (OSError, ValueError) as error:
        print(f"avs-audit: {printable(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
