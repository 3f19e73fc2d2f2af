"""Lets `save_to_disk`, `to_parquet` and `push_to_hub` write our rows so that they load anywhere, without this package.

In a row a frame is a path and a sound is a recipe (`waveform.py`); what is written holds their content.
"""

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.table import embed_table_storage, table_cast

from .conditions import SAMPLING_RATE
from .waveform import SAMPLES_FEATURES, Waveform

ROWS = 32  # at once: about 60 MB of S4
WRITERS = {
    datasets.Dataset: ("save_to_disk", "to_parquet", "push_to_hub"),
    datasets.DatasetDict: ("push_to_hub",),  # its other methods call those of its splits
    datasets.IterableDataset: ("to_parquet", "push_to_hub"),
    datasets.IterableDatasetDict: ("push_to_hub",),
}
WRAPPED = "_writes_portable_rows"


def portable(dataset: Any, folder: Path | None = None) -> Any:
    """The data set, or dictionary of them, with the content of all files and the samples of all sounds in its rows.

    A data set without a `Waveform` column is returned as it is.

    Args:
        folder: receives the rows; the cache of `datasets` when None. Not used for streams, which store nothing.

    Raises:
        FileNotFoundError, ValueError: a file of a row is gone or broken by now.
    """
    if isinstance(dataset, Mapping):
        kind: Any = type(dataset)
        return kind({name: portable(part, folder and folder / name) for name, part in dataset.items()})
    stored = dataset.features or {}
    sounds = [name for name, feature in stored.items() if isinstance(feature, Waveform)]
    if not sounds:
        return dataset
    features = datasets.Features(stored | dict.fromkeys(sounds, SAMPLES_FEATURES))
    options: dict[str, Any] = {"batched": True, "batch_size": ROWS, "features": features}
    options["fn_kwargs"] = {"sounds": sounds, "stored": stored, "features": features}
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.with_format("arrow").map(_with_content, **options).with_format(None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        options["cache_file_name"] = str(folder / "rows.arrow")
    whole = dataset.with_format("arrow").map(_with_content, writer_batch_size=ROWS, desc="Embedding", **options)
    whole.set_format(**dataset.format)
    return whole


def _with_content(
    table: pa.Table, sounds: list[str], stored: datasets.Features, features: datasets.Features
) -> pa.Table:
    """Rows of `stored` with the bytes of their images and the samples of their sounds, as `features` has them."""
    table = table_cast(table, stored.arrow_schema)  # a stream's tables have the types of their first rows
    columns = dict(zip(table.column_names, embed_table_storage(table).columns, strict=True))
    for name in sounds:
        samples = columns[name].combine_chunks()
        rates = pa.array([SAMPLING_RATE] * len(samples), pa.int32())
        columns[name] = pa.StructArray.from_arrays(
            [samples.field("array"), rates],
            fields=list(features.arrow_schema.field(name).type),
            mask=samples.is_null(),
        )
    return pa.table(columns, schema=features.arrow_schema)


def register_portable_writers() -> None:
    """Wraps the `WRITERS`; a second call changes nothing."""
    for kind, methods in WRITERS.items():
        for method in methods:
            original = getattr(kind, method)
            if not getattr(original, WRAPPED, False):
                setattr(kind, method, _writes_portable_rows(original))


def _writes_portable_rows(original: Callable) -> Callable:
    @functools.wraps(original)
    def write(self, *args, **kwargs):
        cache = Path(datasets.config.HF_DATASETS_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".portable-", dir=cache) as folder:
            return original(portable(self, Path(folder)), *args, **kwargs)

    setattr(write, WRAPPED, True)
    return write
