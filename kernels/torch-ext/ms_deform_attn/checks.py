"""Checks of the op's arguments: one sentence each, with the argument, what was expected and what came."""

from __future__ import annotations

import numbers
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

VALUE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LARGEST_SIDE = 2**24  # pixels; beyond it float32 coordinates cannot tell neighbours apart

# Host copies of `spatial_shapes` that live on a GPU: reading one waits for the GPU, and cannot be done while a CUDA
# graph is captured, so each tensor is read once (and again when it was written to).
_host_copies: dict[int, tuple[weakref.ref[Tensor], int, list[list[int]]]] = {}


def compute_dtype(value: Tensor) -> torch.dtype:
    """The dtype of coordinates, weights and sums for a dtype of `value`."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def check_tensors(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> None:
    """Raise TypeError or ValueError unless the three tensors fit each other."""
    named = {"value": value, "sampling_locations": sampling_locations, "attention_weights": attention_weights}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Expected `{name}` to be a torch.Tensor, got {type(tensor).__name__}.")
        if tensor.layout != torch.strided:
            raise ValueError(
                f"Expected `{name}` to be a dense tensor, got layout {tensor.layout}; convert it with .to_dense()."
            )
    if value.dtype not in VALUE_DTYPES:
        raise ValueError(
            "Expected `value` to be float32, float64, bfloat16 or float16, got "
            f"{_name(value.dtype)}; convert it first."
        )
    if value.dim() != 4:
        raise ValueError(f"Expected `value` to be (batch, sum(h*w), heads, channels), got shape {_shape(value)}.")
    if sampling_locations.dim() != 6 or sampling_locations.shape[5] != 2:
        raise ValueError(
            "Expected `sampling_locations` to be (batch, queries, heads, levels, points, 2), got shape "
            f"{_shape(sampling_locations)}."
        )
    if attention_weights.dim() != 5:
        raise ValueError(
            "Expected `attention_weights` to be (batch, queries, heads, levels, points), got shape "
            f"{_shape(attention_weights)}."
        )
    accepted = [torch.float64] if value.dtype == torch.float64 else [torch.float32, torch.bfloat16, torch.float16]
    for name in ("sampling_locations", "attention_weights"):
        tensor = named[name]
        if tensor.dtype not in accepted:
            raise ValueError(
                f"Expected `{name}` to be {_name(accepted[0])} for a {_name(value.dtype)} `value`, got "
                f"{_name(tensor.dtype)}; convert it with .to({accepted[0]})."
            )
        if tensor.device != value.device:
            raise ValueError(
                f"Expected `{name}` on the device of `value`, {value.device}, got {tensor.device}; move it first."
            )
    batch, _, heads, _ = value.shape
    if sampling_locations.shape[0] != batch or sampling_locations.shape[2] != heads:
        raise ValueError(
            f"Expected `sampling_locations` to have the batch size {batch} and the {heads} heads of `value` "
            f"(shape {_shape(value)}), got shape {_shape(sampling_locations)}."
        )
    if attention_weights.shape != sampling_locations.shape[:5]:
        raise ValueError(
            f"Expected `attention_weights` to have the shape {_shape(sampling_locations)[:5]} of `sampling_locations` "
            f"without its last dimension, got {_shape(attention_weights)}."
        )


def level_sizes(spatial_shapes: Tensor | Sequence[Sequence[int]], value: Tensor, levels: int) -> list[int]:
    """The levels' sizes as flat integers [height, width, height, width, …], or ValueError.

    Sums of traced sizes (`torch.SymInt`) are compared by the compiler's guards.
    """
    if isinstance(spatial_shapes, Tensor):
        check_shapes_tensor(spatial_shapes, levels)
        if spatial_shapes.is_meta:
            raise ValueError(
                f"Expected `spatial_shapes` to hold numbers for a `value` on {value.device}, got a meta tensor."
            )
        pairs = _read(spatial_shapes)
    else:
        try:
            pairs = [list(pair) for pair in spatial_shapes]
        except TypeError:
            raise TypeError(
                "Expected `spatial_shapes` to be an int64 tensor (levels, 2) or a list of (height, width), got "
                f"{type(spatial_shapes).__name__}."
            ) from None
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"Expected `spatial_shapes` to be a list of (height, width), got {pairs}.")
        for side in (side for pair in pairs for side in pair):
            if isinstance(side, bool) or not isinstance(side, (int, torch.SymInt, numbers.Integral)):
                raise TypeError(f"Expected `spatial_shapes` to hold integers, got {side!r}, a {type(side).__name__}.")
        pairs = [[side if isinstance(side, (int, torch.SymInt)) else int(side) for side in pair] for pair in pairs]
        if len(pairs) != levels:
            raise ValueError(
                f"Expected `spatial_shapes` to have one (height, width) for each of the {levels} levels of "
                f"`sampling_locations`, got {len(pairs)}."
            )
    for height, width in pairs:
        if height < 1 or width < 1 or height > LARGEST_SIDE or width > LARGEST_SIDE:
            raise ValueError(
                f"Expected `spatial_shapes` to hold sizes between 1 and 2**24, got a level of ({height}, {width})."
            )
    pixels = sum(height * width for height, width in pairs)
    if pixels != value.shape[1]:
        raise ValueError(
            f"Expected `spatial_shapes` to cover the {value.shape[1]} pixels of `value` (shape {_shape(value)}), got "
            f"levels of {[tuple(pair) for pair in pairs]}, which cover {pixels}."
        )
    if pixels >= 2**31:
        raise ValueError(f"Expected `spatial_shapes` to cover fewer than 2**31 pixels, got {pixels}.")
    return [side for pair in pairs for side in pair]


def check_shapes_tensor(spatial_shapes: Tensor, levels: int) -> None:
    """Check what can be known of the tensor without reading it."""
    if spatial_shapes.layout != torch.strided:
        raise ValueError(f"Expected `spatial_shapes` to be a dense tensor, got layout {spatial_shapes.layout}.")
    if spatial_shapes.dtype != torch.int64:
        raise ValueError(
            f"Expected `spatial_shapes` to be int64, got {_name(spatial_shapes.dtype)}; convert it with .long()."
        )
    if spatial_shapes.dim() != 2 or spatial_shapes.shape[0] != levels or spatial_shapes.shape[1] != 2:
        raise ValueError(
            f"Expected `spatial_shapes` to have shape ({levels}, 2), one (height, width) for each level of "
            f"`sampling_locations`, got {_shape(spatial_shapes)}."
        )


def _read(spatial_shapes: Tensor) -> list[list[int]]:
    if spatial_shapes.device.type != "cuda" or spatial_shapes.is_inference():
        return spatial_shapes.tolist()
    key, version = id(spatial_shapes), spatial_shapes._version
    if key in _host_copies:
        reference, read_version, pairs = _host_copies[key]
        if reference() is spatial_shapes and read_version == version:
            return pairs
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "Expected `spatial_shapes` as a list, as a CPU tensor, or as a CUDA tensor that an earlier call has read, "
            "while a CUDA graph is captured: a new CUDA tensor cannot be read then. Pass a list of (height, width)."
        )
    pairs = spatial_shapes.tolist()
    _host_copies[key] = (weakref.ref(spatial_shapes, lambda _: _host_copies.pop(key, None)), version, pairs)
    return pairs


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
