"""`avs-data export`: a subset as `README.md` and `<subset>/<split>-<k>-of-<n>.parquet`, which load with no import.

Frames and masks are in each of the four splits of a condition: no layout that `datasets` reads shares columns between
splits. But the four are cut at the same rows, and so their image columns are the same bytes, which the Hub's storage
(Xet) keeps once. docs/howto/export.md has the figures.
"""

import hashlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from .builder import AvsbenchRobust
from .conditions import SAMPLES, SAMPLING_RATE
from .data_card import make_card, read_card
from .files import NO_SPACE, locked, sha256
from .processes import end_with_parent
from .progress import progress
from .recipes import Row
from .sounds import encode_clip
from .sources import annotation, media_files
from .subsets import SUBSETS

logger = logging.getLogger(__name__)

SHARDS = 8  # a split's number of files is a multiple of it: 2, 4 or 8 nodes read whole files
ROWS_PER_GROUP = 32  # what a stream reads at once: about 25 MB of S4
# Column options by the path of a Parquet leaf. PNG does not shrink further. Sounds: bytes of equal weight side
# by side; the demo's positive test split is 16 % smaller so than with a dictionary and snappy, the default.
IMAGES = [f"{column}.list.element.{part}" for column in ("frames", "masks") for part in ("bytes", "path")]
PLAIN = ["clip_id", "category", "condition", "audio_source", "audio_category"]
# How sounds are stored: (the leaf of the samples, its encoding, the other leaf).
SOUNDS = {
    "array": ("audio.array.list.element", "BYTE_STREAM_SPLIT", "audio.sampling_rate"),
    "wav": ("audio.bytes", "PLAIN", "audio.path"),
}
PARQUET = {
    # Pages end where the content says so, as `datasets` writes them: what is equal in two files is stored once.
    "use_content_defined_chunking": datasets.config.DEFAULT_CDC_OPTIONS,
    "write_page_index": True,
}


def _options(audio: str) -> dict[str, Any]:
    sound, encoding, other = SOUNDS[audio]
    plain = [*PLAIN, other]
    return PARQUET | {
        "compression": dict.fromkeys(IMAGES, "none") | dict.fromkeys(plain, "snappy") | {sound: "zstd"},
        "column_encoding": dict.fromkeys(IMAGES, "PLAIN") | {sound: encoding},
        "use_dictionary": plain,
    }


@dataclass(frozen=True)
class _Shard:
    """A file to write: which clips of a split, and how their sounds are stored."""

    builder: AvsbenchRobust
    split: str
    rows: list[Row]
    path: Path
    audio: str


def _features(builder: AvsbenchRobust, audio: str) -> datasets.Features:
    if audio == "array":
        return builder.features
    return datasets.Features(builder.features | {"audio": datasets.Audio(sampling_rate=SAMPLING_RATE)})


def _stored(shard: _Shard, row: Row) -> dict:
    """What the file holds of a row, without `Features.encode_example`, which for an `Audio` needs torchcodec."""
    example = shard.builder.example(row, embed=True)
    example["condition"] = shard.builder.features["condition"].str2int(example["condition"])
    if shard.audio == "wav":
        samples = np.array(example["audio"]["array"], dtype=np.float32)
        example["audio"] = {"bytes": encode_clip(samples), "path": f"{example['clip_id']}.wav"}
    return example


def _write_shard(shard: _Shard) -> str:
    """Writes the file unless it exists, in which case it is complete; returns its SHA-256."""
    if not shard.path.exists():
        partial = shard.path.with_name(f".{shard.path.name}.{os.getpid()}")
        schema = _features(shard.builder, shard.audio).arrow_schema
        with pq.ParquetWriter(partial, schema, **_options(shard.audio)) as writer:
            for begin in range(0, len(shard.rows), ROWS_PER_GROUP):
                group = [_stored(shard, row) for row in shard.rows[begin : begin + ROWS_PER_GROUP]]
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else the name may outlive a power cut, and the content not
        partial.rename(shard.path)
    return sha256(shard.path)


def _plan(builder: AvsbenchRobust, folder: Path, max_shard_size: int, audio: str) -> list[_Shard]:
    """Every file of a subset. The four conditions of a split are cut at the same rows."""
    subset, shards = SUBSETS[builder.config.name], []
    for generator in builder._split_generators(datasets.DownloadManager()):  # says which files are missing
        rows = [row for part in generator.gen_kwargs["shards"] for row in part]
        size = 0
        for row in rows:
            frames, masks, _ = media_files(subset, builder._root, row.clip)
            size += sum(path.stat().st_size for path in (*frames, *masks)) + 4 * SAMPLES
        count = SHARDS * -(-size // (SHARDS * max_shard_size))
        # The first files have one row more: nodes take every n-th file, and so get equally many rows, up to one.
        least, more = divmod(len(rows), count)  # fewer clips than files: some have no rows
        edges = [k * least + min(k, more) for k in range(count + 1)]
        shards += [
            _Shard(
                builder,
                generator.name,
                rows[begin:end],
                folder / f"{generator.name}-{k:05d}-of-{count:05d}.parquet",
                audio,
            )
            for k, (begin, end) in enumerate(itertools.pairwise(edges))
        ]
    return shards


def _write_all(shards: list[_Shard], num_proc: int) -> list[str]:
    if num_proc == 1:
        return list(progress(map(_write_shard, shards), len(shards), "Writing Parquet", " files"))
    with ProcessPoolExecutor(num_proc, get_context("spawn"), end_with_parent) as pool:
        try:
            return list(progress(pool.map(_write_shard, shards), len(shards), "Writing Parquet", " files"))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else all others are written before the error is seen
            raise


def _write_subset(
    builder: AvsbenchRobust, folder: Path, num_proc: int, max_shard_size: int, audio: str
) -> tuple[dict, datasets.DatasetInfo]:
    """Completes folder/*.parquet; returns the config and the `dataset_info` of the card."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = _plan(builder, folder, max_shard_size, audio)
    for path in set(folder.iterdir()) - {shard.path for shard in shards}:
        path.unlink()  # half a file of a killed run
    digests = _write_all(shards, num_proc)
    splits, listing = datasets.SplitDict(), []
    for shard, digest in zip(shards, digests, strict=True):
        metadata = pq.read_metadata(shard.path)
        info = splits.setdefault(shard.split, datasets.SplitInfo(shard.split, num_bytes=0, num_examples=0))
        info.num_bytes += sum(metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups))
        info.num_examples += metadata.num_rows
        listing.append(f"{digest}  {shard.path.name}\n")
    content = hashlib.sha256("".join(sorted(listing, key=lambda line: line.split()[1])).encode()).hexdigest()
    masks = ", masks of AVSBench-semantic" if annotation(builder._root) == "semantic" else ""
    config = {
        # `datasets` names its cache after version and description, not after the files: equal patterns, stale rows.
        "version": str(builder.config.version),
        "description": f"seed {builder.config.seed}, draw {builder.config.draw}{masks}, sha256 {content}",
        "data_files": [{"split": split, "path": f"{folder.name}/{split}-*"} for split in splits],
    }
    info = datasets.DatasetInfo(
        features=_features(builder, audio),
        splits=splits,
        download_size=sum(shard.path.stat().st_size for shard in shards),
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )
    return config, info


def _earlier_card(out: Path) -> DatasetCard | None:
    """`read_card`, None where `out` is new or empty."""
    is_new = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    return None if is_new else read_card(out)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


@contextmanager
def _alone(out: Path) -> Iterator[Path]:
    """Allows one export at a time into `out`; yields where its earlier content goes until the new one is in its place.

    What is there in the end without a new one in its place, also of a killed export, is put back.
    """
    old = out.with_name(f".{out.name}.old")

    def repair():
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)

    with locked(out):
        repair()
        try:
            yield old
        finally:
            repair()


def export(
    subset: str,
    out: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    seed: int = 42,
    draw: str = "matched",
    num_proc: int = 1,
    max_shard_size: str | int = "500MB",
    audio: str = "array",
) -> Path:
    """Writes a subset as Parquet into `out`, all at once or not at all; other subsets that are there stay.

    A run that is interrupted leaves the files it has finished in `.<out>.partial-…` beside `out`, from where the same
    call goes on. The rows are those of `load_dataset` with this package. The files depend on the data, the seed, the
    draw and the version of pyarrow only.

    Args:
        subset, data_dir, seed, draw: as in `load_dataset`.
        out: must not exist, be empty, or be what this function wrote; then its `subset` is replaced.
        num_proc: processes; more than one are spawned, so a script of its own needs a main guard.
        max_shard_size: of a file, as 500MB or in bytes, by an upper estimate; a split has 8, 16, 24, … files.
        audio: "array", float32 samples, which anything reads; or "wav", files of 16 bits in a column of
            `datasets.Audio`, which the Hub's viewer plays and which `datasets` decodes by torchcodec and FFmpeg.

    Returns:
        `out`, resolved.

    Raises:
        FileExistsError: `out` is something else.
        FileNotFoundError, ValueError: the data lacks files or has broken ones; a bad argument.
        BlockingIOError: another export into `out` is running.
        OSError: the disk is full, or the folder of `out` cannot be written to.
    """
    out = Path(out).expanduser().resolve()
    if num_proc < 1:
        raise ValueError(f"Expected one process or more for `num_proc`, got {num_proc}.")
    try:
        size = datasets.utils.py_utils.convert_file_size_to_int(max_shard_size)
    except ValueError:
        size = 0
    if size < 1:
        raise ValueError(f"Expected a size as 500MB for `max_shard_size`, got {max_shard_size!r}.")
    if audio not in SOUNDS:
        raise ValueError(f"Expected one of {', '.join(SOUNDS)} for `audio`, got {audio!r}.")
    _earlier_card(out)  # refuses a wrong folder before anything else
    builder = AvsbenchRobust(config_name=subset, data_dir=data_dir, seed=seed, draw=draw)
    with _alone(out) as old:
        card = _earlier_card(out)
        partial = _partial_folder(out, f"{builder.config_id} {size} {pa.__version__} {audio}", subset)
        try:
            configs, infos = MetadataConfigs(), DatasetInfosDict()
            if card is not None:
                configs = MetadataConfigs.from_dataset_card_data(card.data)
                infos = DatasetInfosDict.from_dataset_card_data(card.data)
            configs[subset], infos[subset] = _write_subset(builder, partial / subset, num_proc, size, audio)
            for name in set(configs) - {subset}:
                shutil.rmtree(partial / name, ignore_errors=True)
                shutil.copytree(out / name, partial / name, copy_function=_link_or_copy)
            (partial / "README.md").write_text(str(make_card(configs, infos)), encoding="utf-8")
            if out.exists():
                out.rename(old)
            partial.rename(out)
        except (FileNotFoundError, ValueError):  # of the data: what is to be exported has to change first
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise OSError(
                error.errno,
                f"{os.strerror(error.errno)}: {out} could not be written and is as it was before. The files that are "
                f"complete stay in {partial}; make room and repeat the same command to go on from there.",
            ) from error
    return out


def _partial_folder(out: Path, work: str, subset: str) -> Path:
    """The folder in which this export is written; a repetition of the same export finds it by its name."""
    prefix = f".{out.name}.partial-"
    partial = out.with_name(f"{prefix}{subset}-{hashlib.sha256(work.encode()).hexdigest()[:16]}")
    for other in out.parent.iterdir():
        if other.name.startswith(f"{prefix}{subset}-") and other != partial:
            shutil.rmtree(other)  # the data, the arguments or this program have changed since
        elif other == partial:
            logger.warning("Going on with the export that was interrupted in %s.", partial)
        elif other.name.startswith(prefix):
            logger.warning("%s is of an interrupted export: repeat that to go on, or remove it.", other)
    return partial
