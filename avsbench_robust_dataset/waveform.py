"""The `audio` column: stored as what a sound is made from, read as the sound itself.

A waveform as float32 takes 320 kB and each clip has four of them: two are files that are there already, one is zeros,
one a function of a key. So a row keeps the file's path or the key; reading it takes a millisecond.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from datasets.features.features import register_feature

from .conditions import SAMPLES, SAMPLING_RATE, generator, noise
from .sounds import read_waveform

__all__ = ["Waveform"]


def _check_rate(rate: int | None) -> None:
    if rate not in (None, SAMPLING_RATE):
        raise ValueError(f"Expected sound at {SAMPLING_RATE} Hz, got {rate} Hz. Resample it.")


@dataclass
class Waveform:
    """5 s of sound, read as {"array": float32 (80000,), "sampling_rate": 16000}.

    Stored is one of: the samples; the path of a file, as `read_waveform` reads it; the key of a generator whose noise
    is heard; nothing, which is silence.

    Args:
        decode (bool): whether rows are read as sound, else as what is stored.

    Raises (when a row is read):
        FileNotFoundError, ValueError: the file is gone or broken by now.
    """

    decode: bool = True
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "dict"
    pa_type: ClassVar[pa.DataType] = pa.struct(
        {"array": pa.list_(pa.float32()), "path": pa.string(), "noise": pa.string()}
    )
    _type: str = field(default="Waveform", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        return self.pa_type

    def encode_example(self, value: dict) -> dict:
        """What is stored of {"array": …, "sampling_rate": 16000}; what is stored already stays."""
        _check_rate(value.get("sampling_rate"))
        array = value.get("array")
        return {
            "array": None if array is None else np.asarray(array, dtype=np.float32),
            "path": value.get("path"),
            "noise": value.get("noise"),
        }

    def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> dict:
        """`value` as stored, or as this has read it before."""
        if value.get("array") is not None:
            array = np.asarray(value["array"], dtype=np.float32)
        elif value["path"] is not None:
            array = read_waveform(Path(value["path"]))
        elif value["noise"] is not None:
            array = noise(np.empty(SAMPLES, dtype=np.float32), generator(value["noise"]))
        else:
            array = np.zeros(SAMPLES, dtype=np.float32)
        return {"array": array, "sampling_rate": SAMPLING_RATE}

    def cast_storage(self, storage: pa.StructArray) -> pa.StructArray:
        """Arrow structs of other fields, e.g. {"array", "sampling_rate"}, as this feature stores them."""
        if storage.type.get_field_index("sampling_rate") >= 0:
            for rate in storage.field("sampling_rate").unique().to_pylist():
                _check_rate(rate)
        fields = [
            storage.field(name).cast(self.pa_type.field(name).type)
            if storage.type.get_field_index(name) >= 0
            else pa.nulls(len(storage), self.pa_type.field(name).type)
            for name in ("array", "path", "noise")
        ]
        return pa.StructArray.from_arrays(fields, fields=list(self.pa_type), mask=storage.is_null())

    def embed_storage(self, storage: pa.StructArray, **kwargs) -> pa.StructArray:
        """The samples of all rows, for what leaves this machine (`save_to_disk`, `push_to_hub`)."""
        rows = [value and {"array": self.decode_example(value)["array"]} for value in storage.to_pylist()]
        return self.cast_storage(pa.array(rows, type=pa.struct({"array": pa.list_(pa.float32())})))

    def flatten(self) -> "Waveform":
        return self


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'register_feature' is experimental", UserWarning)
    register_feature(Waveform, "Waveform")
