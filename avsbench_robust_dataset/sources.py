"""What AVSBench holds on disk: where a subset lies, its table, frames and masks. Errors name the file."""

import ast
import csv
import difflib
import functools
import hashlib
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from .categories import CATEGORY_OF_OBJECT
from .files import BROKEN_IMAGE
from .masks import object_mask
from .subsets import FRAMES_PER_CLIP, LAYOUTS, SPLITS, Clip, Subset

DATA_DIR_VARIABLE = "AVSBENCH_DIR"
HOW_TO_GET_IT = (
    "Ask for AVSBench as https://github.com/OpenNLPLab/AVSBench describes, unpack it so that it holds "
    "`Single-source/` and `Multi-sources/` (AVSBench-object), or `metadata.csv`, `v1s/` and `v1m/` "
    "(AVSBench-semantic), and pass that folder as `data_dir` or in $AVSBENCH_DIR. To try this without it: load the "
    "subset `demo`, or write a tree with `avs-data demo --out data_demo` and pass `data_dir='data_demo'` with the "
    "subset `demo`."
)
NO_OBJECTS = (
    "Categories are empty, and off-screen sounds are drawn from any clip of another source video, without the group "
    "rule. For the rule, put the whole metadata.csv of AVSBench-semantic there."
)
# What decides the content of a build; the rest prints, writes or checks.
DECIDING_MODULES = (
    "builder",
    "categories",
    "conditions",
    "draw",
    "masks",
    "recipes",
    "sounds",
    "sources",
    "subsets",
    "timbres",
    "unseen",
    "waveform",
)
ANNOTATION = "annotation.json"  # lies in a root whose masks were made from AVSBench-semantic's
MASK_FOLDERS = ("labels_rgb", "labels_semantic")  # of AVSBench-semantic; the same pixels are background in both
OFF_SCREEN_OBJECT = "off-the-screen"  # in AVSS, what sounds outside the picture
MAX_PIXELS = 2**25  # of an image, AVSBench's have 50,176: 100 MB decoded
MAX_FILE_BYTES = 2**27  # of an image, more than the pixels of the largest
MAX_TABLE_BYTES = 2**24  # of a CSV; S4's has 200 kB
MAX_CLIPS = 20_000  # of a CSV; the draw takes memory by the square of it
MAX_ID_LENGTH = 200  # characters; file names end at 255 bytes
PNG_END = b"IEND\xaeB\x60\x82"  # the last chunk's name and checksum

logger = logging.getLogger(__name__)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


# --- where things are ---


def _place(data_dir: str | os.PathLike | None) -> tuple[str, Path]:
    """How the folder to read from was named, and that folder."""
    if data_dir is not None:
        place, root = f"data_dir={os.fspath(data_dir)!r}", Path(data_dir)
    elif os.environ.get(DATA_DIR_VARIABLE):
        place, root = f"${DATA_DIR_VARIABLE}", Path(os.environ[DATA_DIR_VARIABLE])
    else:
        place, root = f"./data (no data_dir, no ${DATA_DIR_VARIABLE})", Path("data")
    return place, root.expanduser().resolve()


def find_download(
    subset: Subset, data_dir: str | os.PathLike | None, layout: str | None = None
) -> tuple[Subset, Path]:
    """The subset in the layout in which it lies there, and its root: `data_dir`, else $AVSBENCH_DIR, else ./data.

    The root is the download, or the subset's own folder in it (it then holds the CSV itself). Where both layouts are
    and none is asked for, AVSBench-object is read, whose masks are the benchmark's, and a warning says so.

    Raises:
        FileNotFoundError: nothing is there; the message says what was looked for and how to get it.
        ValueError: `layout` is not one of `LAYOUTS`.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"Expected one of {', '.join(LAYOUTS)} for `layout`, got {layout!r}.")
    place, root = _place(data_dir)
    found = _layouts_in(subset, root)
    if not found:
        looked_for = f"neither {subset.folder}/{subset.table} nor {subset.table}"
        if subset.avss_label is not None:
            looked_for += f", and no metadata.csv of AVSBench-semantic with rows of {subset.avss_label}"
        what = f"holds {looked_for}. {_resembles(root)}" if root.is_dir() else f"does not exist ({looked_for})."
        raise FileNotFoundError(
            f"Expected AVSBench's subset {subset.name} in {place}, but {root} {what} {HOW_TO_GET_IT}"
        )
    if annotation(root) == layout == "semantic":  # in AVSBench-object's layout by now, see `as_object_layout`
        return subset, root
    if layout is not None and layout not in found:
        raise FileNotFoundError(
            f"Expected AVSBench's subset {subset.name} in the layout {layout!r} in {root}, found "
            f"{' and '.join(found)}. Pass another data_dir, or leave out `layout`."
        )
    if layout is None and len(found) > 1 and media_folder(replace(subset, layout="semantic"), root).is_dir():
        _warn_once(
            f"{root} holds {subset.name} in both layouts: the masks of AVSBench-object are read. Pass "
            "layout='semantic' for those of AVSBench-semantic, which are another annotation."
        )
    return replace(subset, layout=layout or found[0]), root


def _layouts_in(subset: Subset, root: Path) -> list[str]:
    """Which of `LAYOUTS` a folder has the table of."""
    known = LAYOUTS if subset.avss_label else ("object",)
    return [layout for layout in known if _table(replace(subset, layout=layout), root).is_file()]


def _resembles(root: Path) -> str:
    """What a folder that is not a download holds, and where in it one may be."""
    names = sorted(path.name for path in root.iterdir())
    for name in names:
        if any((root / name / inside).exists() for inside in ("Single-source", "Multi-sources", "metadata.csv")):
            return f"Its folder {name} looks like a download: pass {root / name}."
    return f"It holds {', '.join(names[:5]) or 'nothing'}{', …' if len(names) > 5 else ''}."


def annotation(root: Path) -> str:
    """Whose masks lie in a root that is read: one of `LAYOUTS`. Scores on one are not comparable with the other's."""
    return "semantic" if (root / ANNOTATION).is_file() else "object"


def _first_file(*paths: Path) -> Path:
    return next((path for path in paths if path.is_file()), paths[0])


def _table(subset: Subset, root: Path) -> Path:
    if subset.layout == "semantic":
        return _avss_table(root)
    return _first_file(root / subset.folder / subset.table, root / subset.table)


def _avss_table(root: Path) -> Path:
    return _first_file(root / "AVSS" / "metadata.csv", root / "metadata.csv")


def holds_demo(subset: Subset) -> bool:
    """Whether $AVSBENCH_DIR, else ./data, has a whole table and the last mask of its first training clip.

    A real S4 download looks like the demo, but has one mask of each training clip.
    """
    _, root = _place(None)
    if not _table(subset, root).is_file():
        return False
    try:
        clip = next((clip for clip in read_clips(subset, root) if clip.split == "train"), None)
    except ValueError:  # a table of something else
        return False
    return clip is not None and media_files(subset, root, clip)[1][-1].is_file()


def media_folder(subset: Subset, root: Path) -> Path:
    """The folder of all media files of a subset."""
    return _table(subset, root).parent / (str(subset.avss_label) if subset.layout == "semantic" else subset.media)


def media_files(subset: Subset, root: Path, clip: Clip) -> tuple[list[Path], list[Path], Path]:
    """A clip's five frames, its masks (of the first frames) and its wav."""
    base = media_folder(subset, root)
    if subset.layout == "semantic":
        base /= clip.uid
        labels = next((base / name for name in MASK_FOLDERS if (base / name).is_dir()), base / MASK_FOLDERS[0])
        return (
            [base / "frames" / f"{k}.jpg" for k in range(FRAMES_PER_CLIP)],
            [labels / f"{k}.png" for k in range(subset.masks_of(clip.split))],
            base / "audio.wav",
        )
    masks = numbered_files(subset, root, clip, subset.mask)[: subset.masks_of(clip.split)]
    wav = subset.wav.format(split=clip.split, category=clip.category, clip_id=clip.clip_id)
    return numbered_files(subset, root, clip, subset.frame), masks, base / wav


def numbered_files(subset: Subset, root: Path, clip: Clip, pattern: str) -> list[Path]:
    """A clip's five files of a pattern of the subset, which lies in AVSBench-object's layout."""
    base = media_folder(subset, root)
    names = {"split": clip.split, "category": clip.category, "clip_id": clip.clip_id}
    return [base / pattern.format(**names, number=k) for k in range(1, FRAMES_PER_CLIP + 1)]


def silent_mask_files(subset: Subset, root: Path, clip: Clip) -> list[Path]:
    """The masks of the objects that a clip shows and that do not sound, one for each of its masks; empty without any.

    The data set's rows do not have them; the evaluator measures with them which of several objects a model marks.
    """
    if subset.silent_mask is None:
        return []
    paths = numbered_files(subset, root, clip, subset.silent_mask)
    return paths[: subset.masks_of(clip.split)] if paths[0].parent.is_dir() else []


def check_complete(subset: Subset, root: Path, clips: list[Clip]) -> None:
    """Raises FileNotFoundError if media files are missing that the clips need."""
    missing = []
    for clip in clips:
        frames, masks, wav = media_files(subset, root, clip)
        missing += [path for path in (*frames, *masks, wav) if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"Expected every file of the {len(clips)} clips of {subset.name} in {root}, but {len(missing)} are "
            f"missing: {', '.join(map(str, missing[:3]))}{', …' if len(missing) > 3 else ''}. Complete the download; "
            f"`avs-data check --subset {subset.name} --data_dir {root}` lists what each split lacks."
        )


# --- what the content is ---


def content_digest(subset: Subset, root: Path) -> str:
    """SHA-256 over the tables and over path, size and times of every media file that the subset reads.

    A file that is missing counts as such, so that the digest changes when it arrives.
    """
    digest = hashlib.sha256()
    for path in (_table(subset, root), objects_table(subset, root)):
        digest.update(path.read_bytes() if path is not None else b"none")
        digest.update(b"\0")
    for clip in read_clips(subset, root):
        frames, masks, wav = media_files(subset, root, clip)
        for path in (*frames, *masks, wav):
            try:
                stat = os.stat(path)
                state: tuple[int, ...] = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            except FileNotFoundError:
                state = ()
            digest.update(f"{path.relative_to(root)}{state}\0".encode())
    return digest.hexdigest()


@functools.cache
def code_digest(modules: tuple[str, ...] = DECIDING_MODULES) -> str:
    """SHA-256 over the statements of modules, by default those that decide what a row holds.

    Comments, docstrings and layout do not count.
    """
    digest = hashlib.sha256()
    for module in modules:
        tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        digest.update(f"{module}\0{ast.dump(tree)}\0".encode())
    return digest.hexdigest()


# --- tables ---


def _read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV, by column name; order, further columns, BOM and line ends do not matter."""
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise ValueError(
            f"Expected a table of at most {MAX_TABLE_BYTES} bytes at {path}, got {path.stat().st_size}. Download it "
            "again."
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = header = [name.strip() for name in reader.fieldnames or []]
            absent = [column for column in columns if column not in header]
            if absent:
                raise ValueError(
                    f"Expected the columns {', '.join(columns)} in {path}, got "
                    f"{_shortened(', '.join(header)) or 'an empty file'}. Add {', '.join(absent)} to its first line."
                )
            for row in reader:
                if None in (row[column] for column in columns):
                    raise ValueError(
                        f"Expected {len(header)} values in {path}, line {reader.line_num}, got fewer. Complete them."
                    )
                yield reader.line_num, {column: row[column].strip() for column in columns}
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"Expected comma-separated UTF-8 text in {path}: {error}. Download it again.") from error


def _shortened(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters)"


def _check_clip_id(clip_id: str, where: str) -> None:
    is_plain = clip_id.isprintable() and ".." not in clip_id and clip_id != "." and not set(clip_id) & set("/\\")
    if not clip_id or not is_plain or len(clip_id.encode()) > MAX_ID_LENGTH:
        raise ValueError(
            f"Expected a plain file name as clip id in {where}, got {_shortened(repr(clip_id))}. Clip ids become "
            "paths: correct the row; no path separators, no '..', not empty."
        )


def read_clips(subset: Subset, root: Path) -> list[Clip]:
    """All clips of a subset, sorted by clip id.

    Raises:
        ValueError: a column is missing, or a row has an unknown split, an unknown category, a clip id that is not a
            plain file name or one that was there before. The message names file and line.
    """
    table = _table(subset, root)
    objects = _read_objects(subset, root) if subset.category_column is None else {}
    clips: dict[str, Clip] = {}
    unlabelled: list[str] = []
    for line, clip_id, split, category, uid in _read_table(subset, table):
        where = f"{table}, line {line}"
        _check_clip_id(clip_id, where)
        if split not in SPLITS.values():
            raise ValueError(
                f"Expected one of {', '.join(SPLITS.values())} as split in {where}, got {_shortened(repr(split))}. "
                "Correct the row."
            )
        if clip_id in clips:
            raise ValueError(
                f"Expected each clip once in {table}, but {clip_id!r} is there again in line {line}. Remove one row."
            )
        source = subset.source_video(clip_id)
        if subset.category_column is not None:
            labels: tuple[str, ...] = (category,)
            if category not in subset.groups:
                near = difflib.get_close_matches(category[:100], subset.groups, n=3) or sorted(subset.groups)
                raise ValueError(
                    f"Expected one of {subset.name}'s {len(subset.groups)} categories in {where}, got "
                    f"{_shortened(repr(category))}. Correct the row; did you mean {', '.join(near)}?"
                )
        else:
            labels = objects.get(clip_id) or objects.get(source) or ()
            unlabelled += [] if labels else [clip_id]
        clips[clip_id] = Clip(clip_id, split, "_".join(labels), labels, source, uid)
        if len(clips) > MAX_CLIPS:
            raise ValueError(f"Expected at most {MAX_CLIPS} clips in {table}, got more. Download it again.")
    if not clips:
        rows = f"rows of {subset.name}, label {subset.avss_label}," if subset.layout == "semantic" else "clips"
        raise ValueError(f"Expected {rows} in {table}, got none. Download it again.")
    if objects and unlabelled:
        _warn_once(
            f"{objects_table(subset, root)} does not name the objects of {len(unlabelled)} of {len(clips)} clips "
            f"({', '.join(unlabelled[:3])}, …): their category is empty and the group rule does not bind them."
        )
    return sorted(clips.values(), key=lambda clip: clip.clip_id)


def _read_table(subset: Subset, table: Path) -> Iterator[tuple[int, str, str, str, str]]:
    """(line, clip id, split, category, uid) of each row of a subset; category and uid are "" where there are none."""
    if subset.layout == "object":
        columns = [subset.id_column, "split"] + ([subset.category_column] if subset.category_column else [])
        for line, row in _read_rows(table, tuple(columns)):
            yield line, row[subset.id_column], row["split"], row.get(subset.category_column or "", ""), ""
        return
    for line, row in _read_rows(table, ("vid", "uid", "a_obj", "split", "label")):
        if row["label"] == subset.avss_label:
            _check_clip_id(row["uid"], f"{table}, line {line}")
            (name, *_) = _objects_of(row) or ("",)
            yield line, row["vid"], row["split"], CATEGORY_OF_OBJECT.get(name, name), row["uid"]


def _objects_of(row: dict[str, str]) -> list[str]:
    """The objects of a row of AVSS. One row of the published table reads "h orse"."""
    return [name for name in row["a_obj"].replace(" ", "").split("_") if name]


def count_odd_objects(root: Path) -> tuple[int, int]:
    """Rows of AVSS's table whose objects are written with a blank, and rows in which something sounds off screen."""
    table = _avss_table(root)
    rows = [row["a_obj"] for _, row in _read_rows(table, ("a_obj",))] if table.is_file() else []
    return sum(" " in names for names in rows), sum(OFF_SCREEN_OBJECT in names for names in rows)


def objects_table(subset: Subset, root: Path) -> Path | None:
    """AVSS's table of objects, for a subset without a category column of its own."""
    table = _avss_table(root)
    return table if subset.category_column is None and table.is_file() else None


def _read_objects(subset: Subset, root: Path) -> dict[str, tuple[str, ...]]:
    """vid -> objects of MS3's clips. `vid` is a clip id or a bare YouTube id; rows of one vid are united.

    An object that AVSS does not know is kept, as a semantic group of its own: it shares a group with itself only.
    """
    path = objects_table(subset, root)
    if path is None:
        _warn_once(f"{subset.name}: neither AVSS/metadata.csv nor metadata.csv in {root}. {NO_OBJECTS}")
        return {}
    objects: dict[str, tuple[str, ...]] = {}
    unknown: set[str] = set()
    off_screen = 0
    for _, row in _read_rows(path, ("vid", "label", "a_obj")):
        if row["label"] == subset.avss_label:
            names = [name for name in _objects_of(row) if name != OFF_SCREEN_OBJECT]
            off_screen += len(names) < len(_objects_of(row))
            objects[row["vid"]] = tuple(dict.fromkeys((*objects.get(row["vid"], ()), *names)))
            unknown.update(name for name in objects[row["vid"]] if name not in subset.groups)
    if not objects:
        _warn_once(f"{subset.name}: {path} has no row of label {subset.avss_label}. {NO_OBJECTS}")
    if off_screen:
        _warn_once(
            f"{path}: in {off_screen} rows of {subset.avss_label} something sounds {OFF_SCREEN_OBJECT}. The group "
            "rule passes over it, because AVSS does not say what it is."
        )
    if unknown:
        _warn_once(
            f"{path} names objects that are not AVSS's: {', '.join(sorted(unknown))}. Each counts as a semantic group"
            " of its own."
        )
    return objects


# --- media ---


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():  # also a pipe, which one could wait for without end
        raise FileNotFoundError(
            f"Expected a file at {path}, got none. Complete the download; `avs-data check` lists all that is missing."
        )
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(
            f"Expected an image of at most {MAX_FILE_BYTES} bytes at {path}, got {size}. Download it again."
        )
    return path.read_bytes()


def _open_image(path: Path, data: bytes, decode: bool = False) -> Image.Image:
    """An image whose file is whole: every chunk is there and its checksum right. A PNG's pixels need not be decoded.

    What AVSBench's files are, PNG, or JPEG by that name; no other format, of which some run programs.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
        if image.format == "PNG":
            if PNG_END not in data:  # Pillow does not look at the very last checksum
                raise ValueError("no end")
            image.verify()
            image = Image.open(io.BytesIO(data))
        if decode or image.format == "JPEG":
            image.load()
        if b"eXIf" in data or b"exif" in data:  # which `datasets` reads, to turn the image as it says
            Image.open(io.BytesIO(data)).getexif()  # decodes it
        return image
    except BROKEN_IMAGE as error:
        raise ValueError(
            f"Expected a complete PNG at {path}, got {len(data)} bytes that are not one ({error}). Download it again."
        ) from error


def read_frames(paths: list[Path]) -> tuple[list[bytes], tuple[int, int]]:
    """The files' bytes as they are, and their common (width, height).

    Raises:
        FileNotFoundError: a frame is missing.
        ValueError: a file is not a whole image, or of another size than the clip's first frame.
    """
    files, sizes = [], []
    for path in paths:
        files.append(_read_bytes(path))
        sizes.append(_open_image(path, files[-1]).size)
        if sizes[-1] != sizes[0]:
            raise ValueError(
                f"Expected {sizes[0][0]} x {sizes[0][1]} pixels at {path}, as in {paths[0].name}, got "
                f"{sizes[-1][0]} x {sizes[-1][1]}. All frames of a clip have one size: download them again."
            )
    return files, sizes[0]


def read_masks(paths: list[Path], size: tuple[int, int] | None = None) -> list[bytes]:
    """PNG files in which, read as 8-bit grey, the object is what is above 0.

    They are the files' own bytes, save where grey has other than two values, or loses the object (a palette of dark
    colours, 16-bit values below 256, …): such a mask is written anew, as 1-bit PNG.

    Args:
        size: (width, height) of the clip's frames; not checked when None.

    Raises:
        FileNotFoundError: a mask is missing.
        ValueError: a file is not a whole image, is a JPEG whatever its name says, or has another size than the frames.
    """
    files = []
    for path in paths:
        data = _read_bytes(path)
        image = _open_image(path, data, decode=True)
        if size is not None and image.size != size:
            raise ValueError(
                f"Expected a mask of {size[0]} x {size[1]} pixels at {path}, as its frame, got {image.width} x "
                f"{image.height}. Download mask and frame again."
            )
        if image.format != "PNG":
            raise ValueError(
                f"Expected a PNG as mask at {path}, got a {image.format}: its compression leaves greys above 0 "
                "around the object, which would count as object. Download it again, or convert the "
                "original mask to PNG."
            )
        if image.mode != "1":
            inside, grey = object_mask(image) > 0, np.asarray(image.convert("L"))
            if not np.array_equal(grey > 0, inside) or len(np.unique(grey[inside])) > 1:
                buffer = io.BytesIO()
                Image.fromarray(inside).save(buffer, format="PNG")
                data = buffer.getvalue()
        files.append(data)
    return files
