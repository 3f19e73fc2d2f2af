"""The `audio` column: stored as the recipe of a sound, read as the sound itself, which takes a millisecond.

A waveform as float32 takes 320 kB, and each clip has one in every condition.
"""

import hashlib
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset, List, Value
from datasets.features.features import register_feature

from .conditions import SAMPLING_RATE, get_condition, off_screen, positive, unseen
from .recipes import Recipe, make_sound

# A sound as rows hold it that leave this machine.
SAMPLES_FEATURES = {"array": List(Value("float32")), "sampling_rate": Value("int32")}

SAMPLES_TYPE = pa.list_(pa.float32())
SOUND_TYPE = pa.struct({"path": pa.string(), "array": SAMPLES_TYPE})


def _check_rate(rate: int | None) -> None:
    if rate not in (None, SAMPLING_RATE):
        raise ValueError(f"Expected sound at {SAMPLING_RATE} Hz, got {rate} Hz. Resample it.")


@dataclass
class Waveform:
    """5 s of sound, read as {"array": float32 (80000,), "sampling_rate": 16000}; stored is a `Recipe`, or the array.

    Args:
        decode (bool): whether rows are read as sound, else as what is stored.

    Raises (when a row is read):
        FileNotFoundError, ValueError: a file of the recipe is gone or broken by now.
    """

    decode: bool = True
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "dict"
    pa_type: ClassVar[pa.DataType] = pa.struct(
        {
            "array": SAMPLES_TYPE,
            "condition": pa.string(),
            "key": pa.string(),
            "own": SOUND_TYPE,
            "partner": SOUND_TYPE,
        }
    )
    _type: str = field(default="Waveform", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        return self.pa_type

    def encode_example(self, value: dict) -> dict:
        """What is stored of {"array": …, "sampling_rate": 16000}, or of a recipe."""
        _check_rate(value.get("sampling_rate"))
        array = value.get("array")
        stored = {part.name: value.get(part.name) for part in self.pa_type}
        return stored | {"array": None if array is None else np.asarray(array, dtype=np.float32)}

    def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> dict:
        """`value` as stored, or as this has read it before."""
        array = value.get("array")
        array = make_sound(cast(Recipe, value)) if array is None else np.asarray(array, dtype=np.float32)
        return {"array": array, "sampling_rate": SAMPLING_RATE}

    def cast_storage(self, storage: pa.StructArray) -> pa.StructArray:
        """Arrow structs of other fields, e.g. {"array", "sampling_rate"}, as this feature stores them."""
        if storage.type.get_field_index("sampling_rate") >= 0:
            for rate in storage.field("sampling_rate").unique().to_pylist():
                _check_rate(rate)
        fields = [
            storage.field(part.name).cast(part.type)
            if storage.type.get_field_index(part.name) >= 0
            else pa.nulls(len(storage), part.type)
            for part in self.pa_type
        ]
        return pa.StructArray.from_arrays(fields, fields=list(self.pa_type), mask=storage.is_null())

    def embed_storage(self, storage: pa.StructArray, **kwargs: Any) -> pa.StructArray:
        """The samples of all rows, for what leaves this machine; see `portable`."""
        rows = [value and {"array": self.decode_example(value)["array"]} for value in storage.to_pylist()]
        return self.cast_storage(pa.array(rows, type=pa.struct({"array": SAMPLES_TYPE})))

    def flatten(self) -> "Waveform":
        return self


def sound_keys(split: Dataset) -> list[str]:
    """One key a row, equal exactly where the recipes make the same waveform; no sound is read.

    A clip's own sound is also the off-screen sound of other clips: their keys are equal. Rows that hold samples, as
    exported ones do, are keyed by their samples.
    """
    return [_key(value) for value in split.select_columns(["audio"]).with_format("arrow")[:]["audio"]]


def _key(value: pa.StructScalar) -> str:
    if value["array"].is_valid:
        return _samples_key(value["array"])
    condition = get_condition(value["condition"].as_py())
    own, partner = (_sound_key(value[name]) for name in ("own", "partner"))
    if condition.make is positive:
        return str(own)
    if condition.make in (off_screen, unseen) and partner is not None:
        return partner
    return " ".join(filter(None, (condition.name, own, partner, value["key"].as_py())))


def _sound_key(sound: pa.StructScalar) -> str | None:
    if not sound.is_valid:
        return None
    path = sound["path"].as_py()
    return _samples_key(sound["array"]) if path is None else f"file {path}"


def _samples_key(samples: pa.ListScalar) -> str:
    return f"samples {hashlib.sha256(samples.values.to_numpy(zero_copy_only=False).tobytes()).hexdigest()}"


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'register_feature' is experimental", UserWarning)
    register_feature(Waveform, "Waveform")
