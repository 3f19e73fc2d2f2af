"""What a download has and lacks, file by file, and which of its sounds are not what they should be."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import soundfile

from .files import printable
from .progress import progress
from .sounds import is_mute, missing_share, read_waveform
from .sources import count_odd_objects, media_files, objects_table, read_clips, read_frames, read_masks
from .subsets import SPLITS, Subset

__all__ = ["PUBLISHED_CLIPS", "check", "mute_clips"]

PUBLISHED_CLIPS = {
    "s4": {"train": 3452, "validation": 740, "test": 740},
    "ms3": {"train": 296, "validation": 64, "test": 64},
}

SHOWN = 3  # paths of each kind
HEADER_TOLERANCE = 0.01  # s; some programs count the header's own bytes as samples
SHOWN_SOUNDS = 20  # of mute and short ones, of which AVSBench itself has some


@dataclass
class _Findings:
    """What was found in a split: paths that are missing, and sentences that begin with a path."""

    frames: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    wavs: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    mute: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not (self.frames or self.masks or self.wavs or self.unreadable or self.cut)

    def lines(self) -> list[str]:
        lines = []
        for paths in (self.frames, self.masks, self.wavs, self.unreadable):
            lines += _listed(paths, SHOWN)
        if self.cut:
            lines.append(f"    cut off: {len(self.cut)}. Download them again:")
            lines += _listed(self.cut, SHOWN)
        if self.mute:
            lines.append(
                f"    mute: {len(self.mute)}. A mute clip's own sound is its silence condition once more, and whoever "
                "gets it off screen hears silence:"
            )
            lines += _listed(self.mute, SHOWN_SOUNDS)
        if self.short:
            lines.append(f"    shorter than a second: {len(self.short)}. The rest of the 5 seconds is made up:")
            lines += _listed(self.short, SHOWN_SOUNDS)
        return lines


def _listed(paths: list[str], shown: int) -> list[str]:
    more = [f"    … and {len(paths) - shown} more"] if len(paths) > shown else []
    return [f"    {path}" for path in paths[:shown]] + more


def _look_at_images(frames: list[Path], masks: list[Path], findings: _Findings) -> None:
    size = None
    for path in frames:
        if not path.is_file():
            findings.frames.append(str(path))
            continue
        try:
            _, size_of_frame = read_frames([path])
        except ValueError as error:
            findings.unreadable.append(str(error))
            continue
        size = size or size_of_frame
        if size_of_frame != size:
            findings.unreadable.append(f"{path}: {size_of_frame} pixels, where the clip's other frames have {size}.")
    for path in masks:
        if not path.is_file():
            findings.masks.append(str(path))
            continue
        try:
            read_masks([path], size)
        except ValueError as error:
            findings.unreadable.append(str(error))


def _look_at_sound(path: Path, findings: _Findings) -> None:
    if not path.is_file():
        findings.wavs.append(str(path))
        return
    try:
        waveform = read_waveform(path)
    except ValueError as error:
        findings.unreadable.append(str(error))
        return
    seconds = soundfile.info(path).duration
    announced = seconds / (1 - missing_share(path))
    if announced > seconds + HEADER_TOLERANCE:
        findings.cut.append(f"{path}: ends after {seconds:.2f} of the {announced:.2f} s that its header announces")
    if is_mute(waveform):
        findings.mute.append(str(path))
    if seconds < 1:
        findings.short.append(f"{path}: {seconds:.2f} s")


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
        findings = _Findings()
        for clip in progress(of_split, len(of_split), f"check {split}"):
            frames, masks, wav = media_files(subset, root, clip)
            _look_at_images(frames, masks, findings)
            _look_at_sound(wav, findings)
        missing = {"frames": findings.frames, "masks": findings.masks, "wavs": findings.wavs}
        absent = ", ".join(f"{len(paths)} {kind}" for kind, paths in missing.items() if paths) or "nothing"
        lines.append(f"  {split}: {len(of_split)} clips, missing: {absent}, unreadable: {len(findings.unreadable)}")
        lines += findings.lines()
        complete &= findings.complete
    return list(map(printable, lines)), complete


def mute_clips(rows: Iterable[Mapping]) -> list[str]:
    """The clip ids of the rows whose sound is silent, or so nearly that nobody hears it.

    Such a row of `…_positive` equals its row of `…_silence` but for what is expected of the model, and such a row of
    `…_off_screen` is one of silence.

    Args:
        rows: with `clip_id` and `audio`, such as `ds["test_positive"].select_columns(["clip_id", "audio"])`.
    """
    return [row["clip_id"] for row in rows if is_mute(row["audio"]["array"])]
