"""Scores PNG masks that any other code wrote, clip by clip, on all cores.

`mask_folders.py` finds them. Everything is looked at before anything is scored, so that one run tells every problem.
"""

import hashlib
import io
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from avsbench_robust_dataset.files import BROKEN_IMAGE, printable, sha256, write_whole
from avsbench_robust_dataset.masks import object_mask
from avsbench_robust_dataset.progress import progress
from avsbench_robust_dataset.sources import read_masks

from .clip_rows import clip_row
from .mask_folders import Source, condition_folders, find_masks, mask_files

__all__ = [
    "Prediction",
    "PredictionsError",
    "READING",
    "Reading",
    "Target",
    "predictions_digest",
    "read_objects",
    "read_prediction",
    "score_predictions",
]

SHOWN_PROBLEMS = 20
MAX_PIXELS = 2**24  # of a mask that is scaled
BLEND_ERROR = 4  # of a channel of a blend of two colours, of 255; each scaling rounds


@dataclass(frozen=True)
class Target:
    """What the predictions of one clip are compared with.

    Attributes:
        masks: ground truth of the first frames, in order.
        frames: of the clip; predictions of frames without a mask are not scored.
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
    def clip_metadata(self) -> dict[str, str | None]:
        return {name: getattr(self, name) for name in ("clip_id", "category", "group", "source_video")}


class PredictionsError(ValueError):
    """The masks cannot be scored; `problems` has one line for each file or folder, "kind: path and what is wrong"."""

    def __init__(self, source: Source, problems: Sequence[str]):
        self.problems = list(map(printable, problems))
        kinds = Counter(problem.partition(":")[0] for problem in problems)
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        plural = "" if len(self.problems) == 1 else "s"
        super().__init__(
            f"{_named(source)}: nothing is scored, {len(self.problems):,} problem{plural} ({counts}). Expected "
            "<condition>/…/<clip>/<clip>_<k>.png or the names of another public code, see docs/howto/score-masks.md."
        )

    def told(self, list_file: Path) -> str:
        """The problems, one a line; of many, one line a kind, and all of them in `list_file`."""
        if len(self.problems) <= SHOWN_PROBLEMS:
            return "\n".join([*self.problems, str(self)])
        write_whole(list_file, "".join(f"{problem}\n" for problem in self.problems).encode())
        kinds: dict[str, list[str]] = {}
        for problem in self.problems:
            kind, _, said = problem.partition(": ")
            kinds.setdefault(kind, []).append(said)
        lines = [
            f"{len(of_kind):,} {kind}, for example {of_kind[0]}" if len(of_kind) > 1 else f"{kind}: {of_kind[0]}"
            for kind, of_kind in kinds.items()
        ]
        return "\n".join([*lines, str(self), f"Every problem is listed in {list_file}."])


def _named(source: Source) -> str:
    return str(source) if isinstance(source, Path) else " ".join(f"{name}={path}" for name, path in source.items())


def predictions_digest(source: Source, conditions: Sequence[str]) -> str:
    """SHA-256, in hexadecimal digits, over names and contents of the PNG files of `conditions`.

    `results.json` has it, so that the masks of another run are not shown beside its scores.
    """
    digest = hashlib.sha256()
    folders, *_ = condition_folders(source, conditions)
    for condition in sorted(folders):
        for path in sorted(mask_files(folders[condition])):
            if path.is_file():  # no pipe
                name = f"{condition}/{path.relative_to(folders[condition]).as_posix()}"
                digest.update(f"{name}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


# --- what is in them ---


@dataclass(frozen=True)
class Reading:
    """How masks are read where they do not say it themselves.

    Attributes:
        grey_of_one: 1 or 255, the grey of probability 1; None: 1 where no grey in all masks is above 1, else 255.
        resize: scale masks of another size to the ground truth's, by the nearest neighbour.
        background: the (red, green, blue) of the background; None: black, where a picture has one other colour.
        pattern: the masks to score where a folder has others beside them; see `mask_folders.py`.
    """

    grey_of_one: int | None = None
    resize: bool = False
    background: tuple[int, int, int] | None = None
    pattern: str | None = None


READING = Reading()


class Prediction(NamedTuple):
    """A mask: uint8 (H, W), whether it is grey (else 0 and 255 alone), and the file's own (height, width)."""

    values: np.ndarray
    is_grey: bool
    size: tuple[int, int]


def read_prediction(path: Path, size: tuple[int, int] | None = None, reading: Reading = READING) -> Prediction:
    """Grey values as they are, two other values as 0 and 255.

    Args:
        size: (H, W) that it must have, or is scaled to; without `reading.resize` pixels of another size are never
            decoded.

    Raises:
        ValueError: a file that is broken, of another size, of 16 bits, transparent, or in colours of which any may be
            the object; begins with the problem's kind.
    """
    if not path.is_file():  # also a pipe, which one could wait for without end
        raise ValueError(f"unreadable: {path}, it is not a regular file")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            width, height = own = image.size
            is_wanted = size in (None, (height, width)) or (reading.resize and width * height <= MAX_PIXELS)
            if is_wanted:
                image.load()
    except BROKEN_IMAGE as error:
        raise ValueError(f"unreadable: {path}, {error}") from error
    if not is_wanted and size is not None:
        raise ValueError(
            f"of another size: {path} has {width} x {height} pixels, its ground truth {size[1]} x {size[0]}; score it "
            "with --resize nearest"
        )
    values, is_grey = _values(image, path, reading.background)
    if size not in (None, (height, width)):
        values = np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))
    return Prediction(values, is_grey, own[::-1])


def _values(image: Image.Image, path: Path, background: tuple[int, int, int] | None) -> tuple[np.ndarray, bool]:
    """uint8 (H, W) and whether they are greys, else 0 and 255 alone."""
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8) * np.uint8(255), False
    if image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert(image.mode[:-1])
    if image.mode == "L":
        return np.asarray(image), True
    if image.mode == "P" and background is None and (inside := _inside_by_index(image)) is not None:
        return inside.astype(np.uint8) * np.uint8(255), False
    if image.mode not in ("P", "RGB"):
        raise ValueError(
            f"of a wrong mode: {path} is {image.mode}; save one channel, 1-bit or 8-bit grey, 255 for probability 1"
        )
    pixels = np.asarray(image.convert("RGB"))
    if background is not None:
        return (pixels != np.array(background, np.uint8)).any(axis=-1).astype(np.uint8) * np.uint8(255), False
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0], True
    return _inside_by_colour(pixels, path).astype(np.uint8) * np.uint8(255), False


def _inside_by_index(image: Image.Image) -> np.ndarray | None:
    """Where the index is above 0, for a palette that tells nothing: entries that lack, or two colours of which both
    or none is black and that are not greys.
    """
    indices = np.asarray(image)
    used = np.unique(indices)
    palette = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    colours = palette[used] if used[-1] < len(palette) else None
    if colours is not None:
        grey = (colours == colours[:, :1]).all()
        tells_nothing = not colours.any() or (not grey and bool(colours.any(axis=1).all()))
        if len(used) != 2 or not tells_nothing:
            return None
    return indices > 0


def _inside_by_colour(pixels: np.ndarray, path: Path) -> np.ndarray:
    """bool (H, W) of uint8 (H, W, 3): nearer to the one colour of the picture than to black.

    All pixels are blends of the two, as they are at the edges of a mask that was scaled.
    """
    packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    found, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(float)
    brightness = colours.max(axis=1)
    bright = brightness > brightness.max() / 2
    colour = colours[bright][counts[bright].argmax()]  # that of most pixels: some blends are a little brighter
    shares = colours @ colour / (colour @ colour)
    are_blends = np.abs(colours - shares[:, None] * colour).max() <= BLEND_ERROR
    if are_blends and (len(found) == 1 or brightness.min() <= BLEND_ERROR):
        return (shares > 0.5)[places.reshape(packed.shape)]
    said = ", ".join("{:.0f},{:.0f},{:.0f}".format(*colours[i]) for i in np.argsort(-counts)[:3])
    raise ValueError(
        f"in colour: {path} is not black and one other colour, and any of its {len(found)} may be an object ({said}, "
        "…); say which is none, for example --background black"
    )


def read_objects(paths: Sequence[Path], size: tuple[int, ...] | None = None) -> np.ndarray:
    """bool (K, H, W), True inside the object, of K mask files of the ground truth.

    Args:
        size: (H, W) that the files must have; that of the first one by default.

    Raises:
        FileNotFoundError, ValueError: a file is missing, broken or of another size.
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


class _Look(NamedTuple):
    """What a clip's files are: their problems, condition -> the highest grey, "width x height" -> how many files."""

    problems: list[str]
    highest: dict[str, int]
    sizes: Counter[str]


def _look(job: tuple[Target, dict[str, list[Path]]], reading: Reading) -> _Look:
    target, paths = job
    size = read_objects(target.masks).shape[1:]
    look = _Look([], dict.fromkeys(paths, 0), Counter())
    for condition, path in ((c, path) for c, of_condition in paths.items() for path in of_condition):
        try:
            prediction = read_prediction(path, size, reading)
        except ValueError as error:
            look.problems.append(str(error))
            continue
        if prediction.is_grey:
            look.highest[condition] = max(look.highest[condition], int(prediction.values.max()))
        if prediction.size != size:
            look.sizes[f"{prediction.size[1]} x {prediction.size[0]}"] += 1
    return look


def _ambiguous(folders: Mapping[str, Path], highest: dict[str, int]) -> list[str]:
    """Why it is not known which grey is probability 1; `highest` is the highest grey of each condition."""
    ones = [condition for condition, value in highest.items() if value == 1]
    above = next((condition for condition, value in highest.items() if value > 1), None)
    if ones and above:
        return [
            f"ambiguous: {folders[condition]} holds no value above 1 but {folders[above]} does; save masks as 0 and "
            "255, or say that these are probabilities of at most 1/255: --grey_of_one 255"
            for condition in ones
        ]
    if ones and "positive" not in highest:
        return [
            f"ambiguous: no value above 1 in {folders[ones[0]]}, which are masks of 0 and 1 or probabilities of "
            "1/255; score `positive` too, or say which: --grey_of_one 1 or 255"
        ]
    if "positive" in highest and 1 < max(highest.values()) < 128:
        return [
            f"ambiguous: no value above {max(highest.values())} in {folders['positive']}, which are numbers of "
            "classes or probabilities below one half; save masks as 0 and 255, or say that these are probabilities: "
            "--grey_of_one 255"
        ]
    return []


def _score(job: tuple[Target, dict[str, list[Path]]], reading: Reading) -> dict:
    """A clip's row; the grey of probability 1 is known."""
    target, paths = job
    masks = read_objects(target.masks)
    probabilities = {}
    for condition, of_condition in paths.items():
        frames = [read_prediction(path, masks.shape[1:], reading) for path in of_condition]
        tops = [np.float32(reading.grey_of_one if frame.is_grey else 255) for frame in frames]
        probabilities[condition] = np.stack(
            [frame.values.astype(np.float32) / top for frame, top in zip(frames, tops, strict=True)]
        )
    silent_masks = None
    if target.silent_masks:
        silent_masks = read_objects(target.silent_masks, masks.shape[1:])
    return clip_row(target.clip_metadata, masks, probabilities, silent_masks=silent_masks)


def score_predictions(
    source: Source,
    conditions: Sequence[str],
    targets: Sequence[Target],
    kept: Sequence[int] | None = None,
    reading: Reading = READING,
) -> tuple[list[dict], dict]:
    """(the rows of `clip_rows` in the order of `targets`, how the masks were read as settings for `results.json`).

    A mask is 1-bit, black and one other colour, or 8-bit grey: probability 255 p, or 0 and 1.

    Args:
        conditions: those to score.
        targets: all clips of the split; what lies there for other clips is extra.
        kept: which targets to score; all by default.

    Returns:
        The settings are grey_of_one, resize (None or "nearest"), original_sizes ("width x height" -> how many files
        had this size instead of the ground truth's), background, pattern, and layout, a sentence of what was found.

    Raises:
        PredictionsError: files that are missing, extra, unreadable, of another size or mode, or that may mean two
            things; all of them are named, nothing is scored.
        FileNotFoundError, ValueError: ground truth that is missing or broken.
    """
    scored = [targets[i] for i in (range(len(targets)) if kept is None else kept)]
    folders, problems, unscored = condition_folders(source, conditions)
    if unscored:
        names = ", ".join(map(str, unscored))
        print(f"not scored: {names}; add {'it' if len(unscored) == 1 else 'them'} to --conditions", file=sys.stderr)
    paths, layouts = _place(folders, targets, scored, reading.pattern, problems)
    jobs = [(target, paths[target.clip_id]) for target in scored]
    with ThreadPoolExecutor() as pool:  # zlib and numpy release the interpreter
        highest, sizes = dict.fromkeys(folders, 0), Counter[str]()
        looks = pool.map(partial(_look, reading=reading), jobs)
        for look in progress(looks, len(jobs), "files"):
            problems += look.problems
            highest |= {condition: max(highest[condition], value) for condition, value in look.highest.items()}
            sizes += look.sizes
        top = max(highest.values(), default=0)
        if reading.grey_of_one is None:
            problems += _ambiguous(folders, highest)
            reading = replace(reading, grey_of_one=1 if top == 1 else 255)
        elif top > reading.grey_of_one:
            problems.append(f"of another range: {_named(source)} has greys up to {top}, not {reading.grey_of_one}")
        if problems:
            raise PredictionsError(source, problems)
        scores = pool.map(partial(_score, reading=reading), jobs)
        rows = list(progress(scores, len(jobs), "clips"))
    facts = {**asdict(reading), "resize": "nearest" if sizes else None, "original_sizes": dict(sizes)}
    return rows, facts | {"layout": _layout(folders, layouts, scored, sizes, reading)}


def _place(folders, targets, scored, pattern, problems):
    """(clip id -> condition -> its masks, how the masks of each condition are named); adds to `problems`."""
    paths: dict[str, dict[str, list[Path]]] = {target.clip_id: {} for target in scored}
    frames = {target.clip_id: target.frames for target in targets}
    categories = {target.clip_id: target.category for target in targets}
    layouts = []
    for condition, folder in folders.items():
        found = find_masks(folder, frames, pattern, categories)
        problems += found.problems
        for target in scored:
            of_clip = found.paths.get(target.clip_id, {})
            wanted = range(len(target.masks))
            paths[target.clip_id][condition] = [of_clip[k] for k in wanted if k in of_clip]
            problems += [f"missing: {found.expected(target.clip_id, k)}" for k in wanted if k not in of_clip]
        layouts.append(f"{found.pattern}, <k> from {found.first}")
    return paths, layouts


def _layout(folders, layouts, scored, sizes, reading) -> str:
    """What was recognised, in one sentence."""
    count = sum(len(target.masks) for target in scored)
    of_conditions = {text: [c for c, each in zip(folders, layouts, strict=True) if each == text] for text in layouts}
    said = "; ".join(f"{text} ({', '.join(names)})" for text, names in of_conditions.items())
    scaled = ", ".join(f"{number:,} of {size}" for size, number in sizes.most_common(3))
    return (
        f"{count:,} masks of {len(scored)} clips a condition, {said}"
        + (f"; scaled to the ground truth by the nearest neighbour: {scaled}" if sizes else "")
        + ("; masks of 0 and 1" if reading.grey_of_one == 1 else "")
    )
