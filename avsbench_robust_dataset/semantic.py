"""AVSBench-semantic, read as AVSBench-object: the same clips in the other download's layout, written once.

AVSBench-semantic has JPEG frames and masks of all classes at the videos' own size. Here every pixel that is not
background belongs to the object, and frames and masks become 224 x 224, masks by the nearest neighbour.
"""

import csv
import hashlib
import io
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from filelock import FileLock
from PIL import Image

from . import sources
from .files import write_whole, writing
from .processes import available_cpus
from .progress import progress
from .subsets import Clip, Subset

IMAGE_SIZE = 224  # pixels, both sides, of AVSBench-object
VERSION = 1  # of what is written; a change writes all trees anew

logger = logging.getLogger(__name__)


def as_object_layout(subset: Subset, root: Path, cache_dir: Path, size: int | None = IMAGE_SIZE) -> Path:
    """A root in AVSBench-object's layout with the clips of a semantic one, written below `cache_dir` once.

    Sounds are links to the download's files. A call that is killed keeps the clips that it has finished.

    Args:
        size: of frames and masks, both sides, in pixels; None keeps their own, and frames are links then.

    Raises:
        FileNotFoundError: files that the table asks for are missing.
        ValueError: a broken file; the message names it.
    """
    clips = sources.read_clips(subset, root)
    sources.check_complete(subset, root, clips)
    key = json.dumps([VERSION, str(root), sources.content_digest(subset, root), size])
    name = f"avsbench_semantic_{subset.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    out = cache_dir.expanduser().resolve() / name
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{name}.lock")):  # another process may be writing it; then this one waits
        if not out.is_dir():
            logger.warning("Writing %s of AVSBench-semantic to %s, once.", subset.name, out)
            unfinished = out.with_name(f".{name}.partial")
            _write_tables(subset, root, clips, unfinished)
            write = partial(_write_clip, subset, root, unfinished, size)
            with ThreadPoolExecutor(min(8, available_cpus())) as pool:  # Pillow does not hold Python's lock
                for _ in progress(pool.map(write, clips), len(clips), f"{subset.name} from AVSBench-semantic"):
                    pass
            unfinished.rename(out)
    return out


def _write_tables(subset: Subset, root: Path, clips: list[Clip], out: Path) -> None:
    table = io.StringIO()
    columns = [subset.id_column, "split"] + ([subset.category_column] if subset.category_column else [])
    rows = [[clip.clip_id, clip.split, clip.category][: len(columns)] for clip in clips]
    csv.writer(table).writerows([columns, *rows])
    write_whole(out / subset.folder / subset.table, table.getvalue().encode())
    objects = sources.objects_table(subset, root)
    if objects is not None:
        write_whole(out / "AVSS" / "metadata.csv", objects.read_bytes())
    write_whole(out / sources.ANNOTATION, json.dumps({"masks": "semantic"}).encode())


def _write_clip(subset: Subset, root: Path, out: Path, size: int | None, clip: Clip) -> None:
    frames, masks, wav = sources.media_files(subset, root, clip)
    out_frames, out_masks, out_wav = sources.media_files(replace(subset, layout="object"), out, clip)
    if out_wav.is_symlink():  # it is written last
        return
    files, own_size = sources.read_frames(frames)
    with writing(out_wav):
        for path, data, source in zip(out_frames, files, frames, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if size is None:
                path.symlink_to(source)
            else:
                path.write_bytes(_resized(data, size, "RGB", Image.Resampling.BILINEAR))
        for path, data in zip(out_masks, sources.read_masks(masks, own_size), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if size is None else _resized(data, size, "L", Image.Resampling.NEAREST))
        out_wav.parent.mkdir(parents=True, exist_ok=True)
        out_wav.symlink_to(wav)


def _resized(data: bytes, size: int, mode: str, resampling: Image.Resampling) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert(mode).resize((size, size), resampling).save(buffer, format="PNG")
    return buffer.getvalue()
