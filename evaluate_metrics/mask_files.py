"""Scores a folder of PNG masks that any other code wrote, clip by clip, on all cores.

FOLDER/<condition>/<category>/<clip>/<clip>_<k>.png, as AVSBench codes write them: <k> counts from 0 or from 1, the
category level may be left out. Everything is looked at before anything is scored, so that one run tells every problem.
"""

import hashlib
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from avsbench_robust_dataset.files import BROKEN_IMAGE, sha256
from avsbench_robust_dataset.masks import object_mask

from .avs_robust.avs_robust import CONDITIONS
from .clip_rows import clip_row

__all__ = [
    "PredictionsError",
    "Target",
    "predictions_digest",
    "read_objects",
    "read_prediction",
    "score_predictions",
]

PROGRESS = partial(tqdm, disable=None, leave=False)  # a bar on a terminal


@dataclass(frozen=True)
class Target:
    """What the predictions of one clip are compared with.

    Attributes:
        masks: ground truth of the first frames, in order.
        frames: how many frames the clip has; predictions of frames without a mask may lie there and are not scored.
        silent_masks: masks of the objects that are visible and do not sound, as many as `masks`; empty if unknown.
    """

    clip_id: str
    category: str
    group: str | None
    source_video: str
    masks: tuple[Path, ...]
    frames: int
    silent_masks: tuple[Path, ...] = ()

    @property
    def nested(self) -> str:
        return f"{self.category}/{self.clip_id}" if self.category else self.clip_id

    @property
    def clip_metadata(self) -> dict[str, str | None]:
        return {name: getattr(self, name) for name in ("clip_id", "category", "group", "source_video")}


class PredictionsError(ValueError):
    """The folder cannot be scored; `problems` has one line for each file or folder."""

    def __init__(self, folder: Path, problems: Sequence[str]):
        self.problems = list(problems)
        kinds: dict[str, int] = {}
        for problem in problems:
            kind = problem.partition(":")[0]
            kinds[kind] = kinds.get(kind, 0) + 1
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        plural = "" if len(self.problems) == 1 else "s"
        super().__init__(
            f"{folder}: nothing is scored, {len(self.problems)} problem{plural} ({counts}). Expected "
            f"{folder}/<condition>/<category>/<clip>/<clip>_<k>.png, <k> from 0 or 1, the category level optional."
        )


# --- which files ---


LEFT_BEHIND = ("Thumbs.db", "desktop.ini", "__MACOSX")  # by file managers, in any folder


def _is_left_behind(name: str) -> bool:
    return name.startswith(".") or name in LEFT_BEHIND  # .DS_Store and the like


def _files(folder: Path) -> dict[str, set[str]]:
    """Path of a folder below `folder` -> names of the files in it, at most three levels deep.

    What file managers leave behind is passed over.
    """
    found: dict[str, set[str]] = {}

    def look(place: str, depth: int) -> None:
        for entry in os.scandir(folder / place):
            if _is_left_behind(entry.name):
                continue
            if entry.is_dir() and depth < 2:
                look(f"{place}/{entry.name}" if place else entry.name, depth + 1)
            else:
                found.setdefault(place, set()).add(f"{entry.name}/" if entry.is_dir() else entry.name)

    look("", 0)
    return found


def _beside(folder: Path, conditions: Sequence[str], is_condition: Callable[[str], bool]) -> tuple[list, list]:
    """(folders of conditions that are not scored, files and folders that are none), directly in `folder`."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [path for path in paths if not _is_left_behind(path.name)]
    others = [path for path in others if not (path.is_dir() and path.name in conditions)]
    unscored = [path for path in others if path.is_dir() and is_condition(path.name)]
    return unscored, [path for path in others if path not in unscored]


def _place(folder: Path, condition: str, targets: Sequence[Target], kept: Collection[str]):
    """({clip id: paths of its masks}, problems) of one condition; `kept` are the ids of the clips to score."""
    root = folder / condition
    if not root.is_dir():
        others = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        return {}, [f"folder missing: {root}; {folder} holds {', '.join(others) or 'no folder'}"]
    found = _files(root)
    homes: dict[str, str | None] = {}
    first_names = last_names = 0
    for target in targets:
        options = [target.nested, target.clip_id]
        home = next((option for option in options if option in found), None)
        there = found[home] if home else set()
        homes[target.clip_id] = home
        first_names += f"{target.clip_id}_0.png" in there
        last_names += f"{target.clip_id}_{target.frames}.png" in there
    first = 0 if first_names > last_names else 1
    # A clip that lacks its folder is named as its neighbours lie.
    is_flat = any(homes.values()) and not any("/" in (home or "") for home in homes.values())
    paths, problems = {}, []
    for target in targets:
        home = homes[target.clip_id] or (target.clip_id if is_flat else target.nested)
        names = [f"{target.clip_id}_{k}.png" for k in range(first, first + target.frames)]
        there = found.get(home, set())
        if target.clip_id in kept:
            scored = names[: len(target.masks)]
            paths[target.clip_id] = [root / home / name for name in scored if name in there]
            problems += [f"missing: {root / home / name}" for name in scored if name not in there]
        there -= set(names)
    problems += sorted(f"extra: {root / place / name}" for place, names in found.items() for name in names)
    return paths, problems


def predictions_digest(folder: Path, conditions: Sequence[str]) -> str:
    """SHA-256, in hexadecimal digits, over names and contents of the PNG files of `conditions` in `folder`.

    `results.json` has it, so that the masks of another run are not shown beside its scores.
    """
    digest = hashlib.sha256()
    for condition in sorted(conditions):
        for path in sorted((folder / condition).rglob("*.png")):
            if path.is_file():  # no pipe
                digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


# --- what is in them ---


def read_prediction(path: Path, size: tuple[int, int] | None = None) -> tuple[np.ndarray, bool]:
    """(H, W) uint8 and whether it is grey: grey values as they are, two other values as 0 and 255.

    Args:
        size: (H, W) that it must have; pixels of another size are never decoded.

    Raises:
        ValueError: a file that is broken, of another size, or of more than one channel of 8 bits; begins with the
            problem's kind.
    """
    if not path.is_file():  # also a pipe, which one could wait for without end
        raise ValueError(f"unreadable: {path}, it is not a regular file")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            width, height = image.size
            if size in (None, (height, width)):
                image.load()
    except BROKEN_IMAGE as error:
        raise ValueError(f"unreadable: {path}, {error}") from error
    if size is not None and size != (height, width):
        raise ValueError(
            f"of another size: {path} has {width} x {height} pixels, its ground truth {size[1]} x {size[0]}"
        )
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8) * np.uint8(255), False
    if image.mode == "L":
        return np.asarray(image), True
    mode = image.mode
    if mode == "P":
        indices = np.asarray(image)
        used = np.unique(indices)
        palette = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        colours = palette[used] if used[-1] < len(palette) else None
        if colours is None or (len(used) == 2 and _tells_nothing(colours)):
            return (indices > 0).astype(np.uint8) * np.uint8(255), False
        if (colours == colours[:, :1]).all():
            return palette[indices, 0], True
        if len(used) <= 2:
            inside = colours.any(axis=1)[np.searchsorted(used, indices)]
            return inside.astype(np.uint8) * np.uint8(255), False
        mode = f"a palette of {len(used)} colours"
    raise ValueError(
        f"of a wrong mode: {path} is {mode}; save one channel, 1-bit or 8-bit grey, 255 for probability 1"
    )


def _tells_nothing(colours: np.ndarray) -> bool:
    """Whether both of two colours are black, or neither is and they are no greys: then the index is the mask."""
    grey = (colours == colours[:, :1]).all()
    return not colours.any() or (not grey and bool(colours.any(axis=1).all()))


def read_objects(
    paths: Sequence[Path], read_masks: Callable[[list[Path]], list[bytes]], size: tuple[int, ...] | None = None
) -> np.ndarray:
    """bool (K, H, W), True inside the object, of K mask files.

    Args:
        read_masks: as in `score_predictions`.
        size: (H, W) that the files must have; that of the first one by default.

    Raises:
        ValueError: a file has another size.
        FileNotFoundError, ValueError: from `read_masks`.
    """
    masks = [object_mask(Image.open(io.BytesIO(data))).astype(bool) for data in read_masks(list(paths))]
    height, width = size or masks[0].shape
    for path, mask in zip(paths, masks, strict=True):
        if mask.shape != (height, width):
            raise ValueError(
                f"Expected a mask of {width} x {height} pixels at {path}, as the clip's other masks have, got "
                f"{mask.shape[1]} x {mask.shape[0]}. Write or download the clip's masks again."
            )
    return np.stack(masks)


def _look(job: tuple[Target, dict[str, list[Path]]], read_masks) -> tuple[list[str], dict[str, int]]:
    """What is wrong with a clip's files, and condition -> the highest grey in them."""
    target, paths = job
    size = read_objects(target.masks, read_masks).shape[1:]
    problems, highest = [], dict.fromkeys(paths, 0)
    for condition, path in ((c, path) for c, of_condition in paths.items() for path in of_condition):
        try:
            values, is_grey = read_prediction(path, size)
        except ValueError as error:
            problems.append(str(error))
            continue
        highest[condition] = max(highest[condition], int(values.max()) if is_grey else 0)
    return problems, highest


def _ambiguous(folder: Path, highest: dict[str, int]) -> list[str]:
    """Why it is not known whether grey 1 is probability 1; `highest` is the highest grey of each condition."""
    ones = [condition for condition, value in highest.items() if value == 1]
    above = next((condition for condition, value in highest.items() if value > 1), None)
    if ones and above:
        return [
            f"ambiguous: {folder / condition} holds no value above 1 but {folder / above} does; save masks as 0 and "
            "255, or say that these are probabilities of at most 1/255: --grey_of_one 255"
            for condition in ones
        ]
    if ones and "positive" not in highest:
        return [
            f"ambiguous: no value above 1 in {folder}, which are masks of 0 and 1 or probabilities of 1/255; score "
            "`positive` too, or say which: --grey_of_one 1 or 255"
        ]
    return []


def _score(job: tuple[Target, dict[str, list[Path]]], read_masks, one: int) -> dict:
    """A clip's row; `one` is the grey of probability 1."""
    target, paths = job
    probabilities = {}
    for condition, of_condition in paths.items():
        frames = [(values, one if is_grey else 255) for values, is_grey in map(read_prediction, of_condition)]
        probabilities[condition] = np.stack([values.astype(np.float32) / np.float32(top) for values, top in frames])
    masks = read_objects(target.masks, read_masks)
    silent_masks = None
    if target.silent_masks:
        silent_masks = read_objects(target.silent_masks, read_masks, masks.shape[1:])
    return clip_row(target.clip_metadata, masks, probabilities, silent_masks=silent_masks)


def _end_with_parent() -> None:
    """For a worker: a killed parent leaves no process behind that waits for work for ever."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler is not for workers

    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("Expected to run in a worker process, which has a parent.")

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _workers(count: int, jobs: int) -> Iterator[Callable]:
    """A `map` over processes, in order; the plain one where a single process is all there is."""
    if min(count, jobs) < 2:
        yield map
        return
    # Forked, as PyTorch's loaders are: a spawned process would import the caller's script, and with it PyTorch.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(count, jobs), mp_context=context, initializer=_end_with_parent) as pool:
        yield partial(pool.map, chunksize=4)


def score_predictions(
    folder: Path,
    conditions: Sequence[str],
    targets: Sequence[Target],
    read_masks: Callable[[list[Path]], list[bytes]],
    kept: Sequence[int] | None = None,
    processes: int | None = None,
    is_condition: Callable[[str], bool] = CONDITIONS.__contains__,
    grey_of_one: int | None = None,
    progress: Callable[..., Iterable] = PROGRESS,
) -> tuple[list[dict], int]:
    """(the rows of `clip_rows`, in the order of `targets`, of the masks in `folder`; the grey of probability 1).

    A mask is 1-bit, a palette's two colours (the object is what is not black) or 8-bit grey: probability 255 p. Where
    no grey in the whole folder is above 1, it holds masks of 0 and 1, and the grey of probability 1 is 1 instead of
    255. A folder in which one condition has greys of 0 and 1 and another higher ones is not scored.

    Args:
        conditions: the folders of `folder` to score.
        targets: all clips of the split; what lies there for other clips is extra.
        read_masks: paths of ground truth -> PNG files in which the object is what is above 0; a function of a module.
        kept: which targets to score; all by default.
        processes: by default one for each core that this process may use.
        is_condition: whether a folder beside those of `conditions` may lie there: a note on stderr names it.
        grey_of_one: 1 or 255, the grey of probability 1; found out as told above by default.
        progress: shows how far an iterable is, as `tqdm(iterable, desc=…, total=…)`.

    Raises:
        PredictionsError: files that are missing, extra, unreadable, of another size or mode, or greys that may mean
            two things; all of them are named, nothing is scored.
        FileNotFoundError, ValueError: from `read_masks`.
    """
    scored = [targets[i] for i in (range(len(targets)) if kept is None else kept)]
    paths: dict[str, dict[str, list[Path]]] = {target.clip_id: {} for target in scored}
    unscored, extra = _beside(folder, conditions, is_condition)
    if unscored:
        names = ", ".join(map(str, unscored))
        print(f"not scored: {names}; add {'it' if len(unscored) == 1 else 'them'} to --conditions", file=sys.stderr)
    problems = [f"extra: {path}" for path in extra]
    for condition in conditions:
        found, of_condition = _place(folder, condition, targets, paths.keys())
        problems += of_condition
        for clip_id, of_clip in found.items():
            paths[clip_id][condition] = of_clip
    jobs = [(target, paths[target.clip_id]) for target in scored]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with _workers(processes or cores, len(jobs)) as map_jobs:
        highest = dict.fromkeys(conditions, 0)
        looks = map_jobs(partial(_look, read_masks=read_masks), jobs)
        for of_clip, values in progress(looks, desc="files", total=len(jobs)):
            problems += of_clip
            highest |= {condition: max(highest[condition], value) for condition, value in values.items()}
        if grey_of_one is None:
            problems += _ambiguous(folder, highest)
        elif max(highest.values(), default=0) > grey_of_one:
            problems.append(f"of another range: {folder} has greys up to {max(highest.values())}, not {grey_of_one}")
        if problems:
            raise PredictionsError(folder, problems)
        one = grey_of_one or (1 if 1 in highest.values() else 255)
        rows = map_jobs(partial(_score, read_masks=read_masks, one=one), jobs)
        return list(progress(rows, desc="clips", total=len(jobs))), one
