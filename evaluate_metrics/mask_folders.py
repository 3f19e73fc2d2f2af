"""Finds predicted masks on disk, however the code that wrote them names its folders and files.

A mask's path names its clip, by the nearest folder that is called like it or by the beginning of the file's name, and
its frame, by the last number in the file's name: [any folders/]<clip>/<clip>_<k>.png, <uid>/<k>.png,
<clip>/frames/<k>_pred.png, <clip>_<k>.png. Written so, with <clip>, <uid> and <k> in place of names and numbers, it is
the mask's *pattern*; all masks of a folder have one.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from avsbench_robust_dataset.conditions import get_condition

__all__ = ["FoundMasks", "Source", "condition_folders", "find_masks", "mask_files", "named_folders", "relative_to"]

Source = Path | Mapping[str, Path]  # one folder with a folder for each condition, or condition -> its folder

LEFT_BEHIND = ("Thumbs.db", "desktop.ini", "__MACOSX")  # by file managers, in any folder
UID = re.compile(r"(.+)_\d+_\d+")  # AVSBench-semantic's name of a clip: <clip>_<start ms>_<end ms>
LAST_NUMBER = re.compile(r"(.*?)(\d+)(\D*)")


def _is_left_behind(name: str) -> bool:
    return name.startswith(".") or name in LEFT_BEHIND  # .DS_Store and the like


def _files(root: Path) -> Iterator[tuple[str, str]]:
    """(folder below `root`, name) of every file, sorted; a folder that a link leads to is read once."""
    known = set()
    for place, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in known:
            folders.clear()
            continue
        known.add(real)
        folders[:] = sorted(name for name in folders if not _is_left_behind(name))
        below = Path(place).relative_to(root).as_posix()
        for name in sorted(names):
            if not _is_left_behind(name):
                yield "" if below == "." else below, name


def mask_files(root: Path) -> list[Path]:
    """Every PNG file below a folder."""
    return [root / place / name for place, name in _files(root) if name.lower().endswith(".png")]


# --- which folder has which condition ---


def _is_condition(name: str) -> bool:
    try:
        get_condition(name)
    except ValueError:
        return False
    return True


def named_folders(given: Sequence[str]) -> Source:
    """The source that a command line names: DIR, or CONDITION=DIR for each condition.

    Raises:
        ValueError: it is neither, or a condition or a folder comes twice.
    """
    pairs = [(name, path) for name, _, path in (text.partition("=") for text in given) if path and _is_condition(name)]
    if len(given) == 1 and not pairs:
        return Path(given[0])
    folders = {get_condition(name).name: Path(path) for name, path in pairs}
    if len(pairs) < len(given) or len(folders) < len(pairs) or len(set(folders.values())) < len(pairs):
        raise ValueError(
            "Expected one folder of predictions, or CONDITION=DIR with each condition and each folder once, got "
            f"{' '.join(given)!r}."
        )
    return folders


def relative_to(source: Source, folder: Path) -> str | dict[str, str]:
    """The source's paths as seen from a folder, as `results.json` has them."""
    if isinstance(source, Path):
        return os.path.relpath(source, folder)
    return {condition: os.path.relpath(path, folder) for condition, path in source.items()}


def condition_folders(source: Source, conditions: Sequence[str]) -> tuple[dict[str, Path], list[str], list[Path]]:
    """(condition -> the folder of its masks, problems, folders of conditions that are not asked for).

    Folders of conditions may lie deeper where nothing else lies above them. A folder that has none is the masks of the
    condition, if only one is asked for.
    """
    if not isinstance(source, Path):
        return dict(source), [f"folder missing: {path}" for path in source.values() if not path.is_dir()], []
    folder, inside = source, _inside(source)
    while not any(map(_is_condition, inside)) and len(inside) == 1 and (folder / inside[0]).is_dir():
        folder, inside = folder / inside[0], _inside(folder / inside[0])
    if not any(_is_condition(name) and (folder / name).is_dir() for name in inside) and next(_files(source), None):
        if len(conditions) == 1:
            return {conditions[0]: source}, [], []
        problem = (
            f"ambiguous: {source} has no folder of a condition; say which sound its masks are of, for example "
            f"--predictions {conditions[0]}={source}, and name one folder for each condition that is to be scored"
        )
        return {}, [problem], []
    folders = {condition: folder / condition for condition in conditions if (folder / condition).is_dir()}
    there = ", ".join(name for name in inside if (folder / name).is_dir()) or "no folder"
    missing = [name for name in conditions if name not in folders]
    problems = [f"folder missing: {folder}/{name}; {folder} holds {there}" for name in missing]
    beside = [folder / name for name in inside if name not in folders]
    unscored = [path for path in beside if _is_condition(path.name) and path.is_dir()]
    return folders, problems + [f"extra: {path}" for path in beside if path not in unscored], unscored


def _inside(folder: Path) -> list[str]:
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in paths if not _is_left_behind(path.name))


# --- which file is which mask ---


class _Mask(NamedTuple):
    """A file that is named like a mask.

    Attributes:
        above: folders above what the pattern describes.
        before, after: the path below `above`, around the number of the frame.
    """

    path: Path
    clip_id: str
    pattern: str
    number: int
    above: str
    before: str
    after: str


@dataclass
class FoundMasks:
    """The masks of one condition.

    Attributes:
        paths: clip id -> number of the frame, from 0 -> its file.
        problems: files that are extra or may mean two things; one line each.
        pattern: that all masks have; "" if there are none.
        first: 0 or 1, the number of a clip's first frame in the files' names.
    """

    paths: dict[str, dict[int, Path]]
    problems: list[str]
    pattern: str
    first: int
    root: Path
    _samples: dict[str, _Mask] = field(default_factory=dict)
    _categories: Mapping[str, str] = field(default_factory=dict)

    def expected(self, clip_id: str, frame: int) -> Path:
        """The path that a mask would have, for a clip without any as its neighbours lie."""
        neighbour = self._samples.get(clip_id) or next(iter(self._samples.values()), None)
        if neighbour is None:
            above, own = self._categories.get(clip_id, ""), f"{clip_id}/{clip_id}_{frame + self.first}.png"
        elif neighbour.clip_id == clip_id:
            above, own = neighbour.above, f"{neighbour.before}{frame + self.first}{neighbour.after}"
        else:
            theirs, ours = self._categories.get(neighbour.clip_id), self._categories.get(clip_id, "")
            above = "/".join(ours if part == theirs else part for part in neighbour.above.split("/"))
            own = self.pattern.replace("<clip>", clip_id).replace("<k>", str(frame + self.first))
        return self.root / above / own


def _clip_named(name: str, clip_ids: Collection[str]) -> tuple[str, str]:
    """(clip id, its place in a pattern) of a folder or the beginning of a file's name; ("", "") if it names none."""
    for ending in ("", ".mp4"):
        bare = name.removesuffix(ending) if name.endswith(ending) else ""
        if bare in clip_ids:
            return bare, f"<clip>{ending}"
    uid = UID.fullmatch(name)
    return (uid[1], "<uid>") if uid and uid[1] in clip_ids else ("", "")


def _parse(root: Path, place: str, name: str, clip_ids: Collection[str]) -> _Mask | None:
    """What a path means; None if it names no clip or no frame, or two clips."""
    folders = place.split("/") if place else []
    named = [_clip_named(folder, clip_ids) for folder in folders]
    depth = max((i for i, (clip_id, _) in enumerate(named) if clip_id), default=len(folders))
    clip_id, token = named[depth] if depth < len(folders) else ("", "")
    stem, suffix = name[:-4], name[-4:]
    begin = 0
    for end in [match.start() for match in re.finditer(r"[_.\s-]", stem)][::-1]:
        inside, inside_token = _clip_named(stem[:end], clip_ids)
        if inside and LAST_NUMBER.fullmatch(stem[end:]):
            if clip_id and clip_id != inside:
                return None
            clip_id, begin = inside, end
            break
    number = LAST_NUMBER.fullmatch(stem[begin:])
    if not clip_id or not number:
        return None
    before, digits, after = number.groups()
    parts = [token, *folders[depth + 1 :]] if token else []
    pattern = "/".join([*parts, f"{inside_token if begin else ''}{before}<k>{after}{suffix}"])
    padding = "0" * (len(digits) - len(str(int(digits))))
    own = "/".join([*folders[depth:], stem[:begin] + before + padding])
    path = root / place / name
    return _Mask(path, clip_id, pattern, int(digits), "/".join(folders[:depth]), own, after + suffix)


def find_masks(
    root: Path, frames: Mapping[str, int], pattern: str | None = None, categories: Mapping[str, str] | None = None
) -> FoundMasks:
    """The masks of one condition below a folder, at any depth.

    Args:
        frames: clip id -> how many frames the clip has.
        pattern: the masks to read, where a folder has others beside them, which are passed over then.
        categories: clip id -> category, to name the path of a missing clip.
    """
    masks, problems = [], []
    for place, name in _files(root):
        mask = _parse(root, place, name, frames) if name.lower().endswith(".png") else None
        if mask is None and pattern is None:
            problems.append(f"extra: {root / place / name}")
        elif mask is not None and pattern in (None, mask.pattern):
            masks.append(mask)
    common = Counter(mask.pattern for mask in masks).most_common(1)
    main = common[0][0] if common else ""
    problems += _strangers(root, masks, main, frames)
    places: dict[str, dict[str, dict[int, _Mask]]] = {}  # clip -> folder above -> number -> mask
    for mask in masks:
        if mask.pattern == main:
            places.setdefault(mask.clip_id, {}).setdefault(mask.above, {})[mask.number] = mask
    clips = {}
    for clip_id, of_clip in places.items():
        clips[clip_id], *others = sorted(of_clip.values(), key=len, reverse=True)
        for other in others:
            copies = [next(iter(numbers.values())).path for numbers in (clips[clip_id], other)]
            if len(other) == len(clips[clip_id]):
                where = f"{copies[0]} and {copies[1]}"
                problems.append(f"ambiguous: clip {clip_id} has masks twice, {where}; name one folder: CONDITION=DIR")
            else:
                problems += [f"extra: {mask.path}" for mask in other.values()]
    from_0 = [clip_id for clip_id, numbers in clips.items() if 0 in numbers and frames[clip_id] not in numbers]
    from_1 = [clip_id for clip_id, numbers in clips.items() if frames[clip_id] in numbers and 0 not in numbers]
    if from_0 and from_1:
        problems.append(
            f"ambiguous: {root} counts the masks of {len(from_0)} clips from 0, for example {from_0[0]}, and those of "
            f"{len(from_1)} from 1, for example {from_1[0]}; keep the masks of one code, or count all alike"
        )
    first = 0 if len(from_0) > len(from_1) else 1
    paths: dict[str, dict[int, Path]] = {}
    for clip_id, numbers in clips.items():
        paths[clip_id] = {k - first: mask.path for k, mask in numbers.items()}
        outside = [k for k in paths[clip_id] if not 0 <= k < frames[clip_id]]
        problems += [f"extra: {paths[clip_id].pop(k)}" for k in outside]
    samples = {clip_id: next(iter(numbers.values())) for clip_id, numbers in clips.items()}
    return FoundMasks(paths, problems, main, first, root, samples, categories or {})


def _strangers(root: Path, masks: list[_Mask], pattern: str, frames: Mapping[str, int]) -> list[str]:
    """What is wrong with masks of other patterns: single ones are extra, those of whole clips ask for a choice."""
    others = [mask for mask in masks if mask.pattern != pattern]
    of_clips = Counter((mask.pattern, mask.clip_id) for mask in others)
    rivals = {found for (found, clip_id), count in of_clips.items() if count >= frames[clip_id]}
    problems = [f"extra: {mask.path}" for mask in others if mask.pattern not in rivals]
    for rival in sorted(rivals):
        count = sum(mask.pattern == rival for mask in others)
        example = next(mask.path for mask in others if mask.pattern == rival)
        problems.append(
            f"ambiguous: {root} has {len(masks) - len(others)} masks named {pattern} and {count} named {rival}, for "
            f"example {example}; say which to score: --mask_pattern '{pattern}' or '{rival}'"
        )
    return problems
