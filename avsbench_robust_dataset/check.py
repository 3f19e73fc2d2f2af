"""What a download has and lacks, file by file."""

from pathlib import Path

from .progress import progress
from .sounds import read_waveform
from .sources import media_files, objects_table, read_clips, read_frames, read_masks
from .subsets import SPLITS, Clip, Subset

__all__ = ["check"]

SHOWN = 3  # paths of each kind


def _faults(subset: Subset, root: Path, clip: Clip) -> tuple[dict[str, list[Path]], list[str]]:
    """A clip's missing files by kind, and what is wrong with those that are there."""
    frames, masks, wav = media_files(subset, root, clip)
    missing = {
        "frames": [path for path in frames if not path.is_file()],
        "masks": [path for path in masks if not path.is_file()],
        "wavs": [path for path in [wav] if not path.is_file()],
    }
    faults, size = [], None
    for path in frames:
        if path not in missing["frames"]:
            try:
                _, size_of_frame = read_frames([path])
            except ValueError as error:
                faults.append(str(error))
                continue
            size = size or size_of_frame
            if size_of_frame != size:
                faults.append(f"{path}: {size_of_frame} pixels, where the clip's other frames have {size}.")
    for path in masks:
        if path not in missing["masks"]:
            try:
                read_masks([path], size)
            except ValueError as error:
                faults.append(str(error))
    if not missing["wavs"]:
        try:
            read_waveform(wav)
        except ValueError as error:
            faults.append(str(error))
    return missing, faults


def check(subset: Subset, root: Path) -> tuple[list[str], bool]:
    """Reads every file that the subset's table asks for; whatever else lies there is ignored.

    Returns:
        (lines, complete): the report, and whether all files are there and can be read.

    Raises:
        ValueError: the table itself is wrong; the message names the line.
    """
    clips = read_clips(subset, root)
    lines, complete = [f"{subset.name} in {root}: {len(clips)} clips"], True
    if subset.category_column is None:
        table = objects_table(subset, root)
        lines.append(f"  objects: {table or 'no AVSS metadata.csv, so off-screen sounds ignore the group rule'}")
    for split in SPLITS.values():
        of_split = [clip for clip in clips if clip.split == split]
        missing: dict[str, list[Path]] = {"frames": [], "masks": [], "wavs": []}
        faults: list[str] = []
        for clip in progress(of_split, len(of_split), f"check {split}"):
            missing_of_clip, faults_of_clip = _faults(subset, root, clip)
            for kind, paths in missing_of_clip.items():
                missing[kind] += paths
            faults += faults_of_clip
        absent = ", ".join(f"{len(paths)} {kind}" for kind, paths in missing.items() if paths) or "nothing"
        lines.append(f"  {split}: {len(of_split)} clips, missing: {absent}, unreadable: {len(faults)}")
        for paths in (*missing.values(), faults):
            lines += [f"    {path}" for path in paths[:SHOWN]]
            if len(paths) > SHOWN:
                lines.append(f"    … and {len(paths) - SHOWN} more")
            complete &= not paths
    return lines, complete
