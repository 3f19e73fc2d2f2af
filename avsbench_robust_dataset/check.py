"""What a download has and lacks, file by file, and which of its sounds are not what they should be."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile

from .files import printable
from .progress import progress
from .sounds import is_mute, missing_share, read_waveform
from .sources import count_odd_objects, media_files, objects_table, read_clips, read_frames, read_masks
from .subsets import SPLITS, Subset

PUBLISHED_CLIPS = {
    "s4": {"train": 3452, "validation": 740, "test": 740},
    "ms3": {"train": 296, "validation": 64, "test": 64},
}

SHOWN = 3  # paths of each kind
HEADER_TOLERANCE = 0.01  # s; some programs count the header's own bytes as samples
SHOWN_SOUNDS = 20  # of mute and short ones, of which AVSBench itself has some
MISSING = ("frames", "masks", "wavs")
HEADINGS = {
    "cut": "cut off: {}. Download them again:",
    "mute": "mute: {}. A mute clip's own sound is its silence condition once more, and whoever gets it off screen "
    "hears silence:",
    "short": "shorter than a second: {}. The rest of the 5 seconds is made up:",
}


Findings = dict[str, list[str]]  # kind -> paths that are missing, or sentences that begin with a path


def _lines(findings: Findings) -> list[str]:
    lines = []
    for kind in (*MISSING, "unreadable"):
        lines += _listed(findings[kind], SHOWN)
    for kind, heading in HEADINGS.items():
        if findings[kind]:
            lines.append(f"    {heading.format(len(findings[kind]))}")
            lines += _listed(findings[kind], SHOWN if kind == "cut" else SHOWN_SOUNDS)
    return lines


def _listed(paths: list[str], shown: int) -> list[str]:
    more = [f"    … and {len(paths) - shown} more"] if len(paths) > shown else []
    return [f"    {path}" for path in paths[:shown]] + more


def _found(kind: str, path: Path, read: Callable[[Path], Any], findings: Findings) -> Any:
    """What `read` gives of a file, None where the file is missing or broken, which is noted."""
    if not path.is_file():
        findings[kind].append(str(path))
        return None
    try:
        return read(path)
    except ValueError as error:
        findings["unreadable"].append(str(error))
        return None


def _look_at_images(frames: list[Path], masks: list[Path], findings: Findings) -> None:
    size = None
    for path in frames:
        _, own_size = _found("frames", path, lambda path: read_frames([path]), findings) or (None, size)
        size = size or own_size
        if own_size != size:
            findings["unreadable"].append(f"{path}: {own_size} pixels, where the clip's other frames have {size}.")
    for path in masks:
        _found("masks", path, lambda path: read_masks([path], size), findings)


def _look_at_sound(path: Path, findings: Findings) -> None:
    waveform = _found("wavs", path, read_waveform, findings)
    if waveform is None:
        return
    seconds = soundfile.info(path).duration
    announced = seconds / (1 - missing_share(path))
    if announced > seconds + HEADER_TOLERANCE:
        findings["cut"].append(f"{path}: ends after {seconds:.2f} of the {announced:.2f} s that its header announces")
    if is_mute(waveform):
        findings["mute"].append(str(path))
    if seconds < 1:
        findings["short"].append(f"{path}: {seconds:.2f} s")


def check(subset: Subset, root: Path) -> tuple[list[str], bool]:
    """Reads every file that the subset's table asks for; whatever else lies there is ignored.

    Returns:
        (lines, complete): the report, and whether all files are there, whole and readable. Mute and very short sounds
        are reported only: AVSBench itself has some, and the draw, which depends on the tables alone, keeps them.

    Raises:
        ValueError: the table itself is wrong; the message names the line.
    """
    clips = read_clips(subset, root)
    lines, complete = [f"{subset.name} in {root}: {len(clips)} clips, layout: AVSBench-{subset.layout}"], True
    published = sum(PUBLISHED_CLIPS.get(subset.name, {}).values())
    if published and len(clips) != published:
        lines.append(
            f"  AVSBench's own table has {published} clips of {subset.name}: this one was cut short or is another, so "
            "its off-screen draw is not the published one"
        )
    if subset.category_column is None:
        table = objects_table(subset, root)
        found = "no AVSS metadata.csv" if table is None else str(table)
        if table is not None and not any(clip.labels for clip in clips):
            found += f" has no row of {subset.name.upper()}"
        rule = "" if any(clip.labels for clip in clips) else ", so off-screen sounds ignore the group rule"
        lines.append(f"  objects: {found}{rule}")
    if subset.layout == "semantic" or subset.category_column is None:
        with_blanks, off_screen = count_odd_objects(root)
        if with_blanks or off_screen:
            lines.append(
                f"  metadata.csv: {with_blanks} names with a blank, read without it; {off_screen} rows with an object "
                "that sounds outside the picture, of which AVSS does not say what it is"
            )
    for split in SPLITS.values():
        of_split = [clip for clip in clips if clip.split == split]
        findings: Findings = defaultdict(list)
        for clip in progress(of_split, len(of_split), f"check {split}"):
            frames, masks, wav = media_files(subset, root, clip)
            _look_at_images(frames, masks, findings)
            _look_at_sound(wav, findings)
        absent = ", ".join(f"{len(findings[kind])} {kind}" for kind in MISSING if findings[kind]) or "nothing"
        unreadable = len(findings["unreadable"])
        lines.append(f"  {split}: {len(of_split)} clips, missing: {absent}, unreadable: {unreadable}")
        lines += _lines(findings)
        complete &= not any(findings[kind] for kind in (*MISSING, "unreadable", "cut"))
    return list(map(printable, lines)), complete
