"""Each condition's sounds as files in AVSBench's own layout, for code bases that read files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .conditions import CONDITIONS, EXTRA_CONDITIONS, FOLDERS
from .draw import DRAWS
from .files import write_whole
from .progress import progress
from .recipes import Row, make_sound, plan
from .sounds import encode_clip
from .sources import read_clips
from .subsets import SPLITS, Subset


def add_audio_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which sounds are written where."""
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--draw", choices=DRAWS, default="matched")
    parser.add_argument("--out", type=Path, required=True, help="receives <condition>/, each as a download's folder")
    parser.add_argument(
        "--conditions",
        nargs="+",
        default=list(CONDITIONS),
        metavar="CONDITION",
        help=f"{', '.join(CONDITIONS)} (the default), {', '.join(EXTRA_CONDITIONS)}, mixed_snr_<dB>, noise_snr_<dB>",
    )
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS), help="default: all three")
    parser.add_argument("--unseen_dir", type=Path, help="folder of wav files for unseen; default: built-in sounds")
    parser.add_argument("--negative_dir", type=Path, help="folder of wav files for the condition recorded")


def audio_rows(subset: Subset, root: Path, args: argparse.Namespace) -> list[Row]:
    """Every clip of the splits under every condition that `args`, see `add_audio_arguments`, name, clip by clip.

    Raises:
        FileNotFoundError, ValueError: a folder holds no sound or is missing; a condition is unknown.
    """
    clips = read_clips(subset, root)
    conditions = list(dict.fromkeys(args.conditions))  # one that is named twice counts once
    folders = {argument: getattr(args, argument) for argument in FOLDERS}
    planned = plan(subset, root, clips, conditions, args.seed, args.draw, folders, args.splits)
    return [row for _, _, rows in planned for of_clip in zip(*rows.values(), strict=True) for row in of_clip]


def wav_path(row: Row, subset: Subset) -> str:
    """For example `silence/Single-source/s4_data/audio_wav/test/dog_barking/<clip>.wav`."""
    clip = row.clip
    wav = subset.wav.format(split=clip.split, category=clip.category, clip_id=clip.clip_id)
    return f"{row.condition}/{subset.folder}/{subset.media}/{wav}"


def write_audio(rows: Sequence[Row], subset: Subset, out: Path) -> None:
    """Writes the rows' sounds below `out`, at `wav_path`: those of the data set's splits, rounded to 16 bits.

    Raises:
        FileNotFoundError, ValueError: a sound is missing or broken.
        OutputError: there is no room.
    """
    for row in progress(rows, len(rows), "audio"):
        write_whole(out / wav_path(row, subset), encode_clip(make_sound(row.recipe)))
