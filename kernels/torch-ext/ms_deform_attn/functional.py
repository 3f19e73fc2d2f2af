"""The op's public functions: `ms_deform_attn` and `backends`."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from . import compiled
from .checks import check_shapes_tensor, check_tensors, level_sizes
from .ops import NAMESPACE, Once, lowered
from .reference import ms_deform_attn_reference
from .toolchain import BUILD_COMMAND

__all__ = ["Availability", "backends", "ms_deform_attn"]

BACKENDS = ("reference", "cpu", "cuda")
_ops = getattr(torch.ops, NAMESPACE)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Sum each query's sampled values over levels and points, per head (multi-scale deformable attention).

    Args:
        value (Tensor[batch, sum(h*w), heads, channels]): feature maps, levels flattened row by row and concatenated;
            float32, float64, bfloat16 or float16.
        spatial_shapes (Tensor[levels, 2], int64; or a list of pairs): (height, width) of each level. A list is best
            under `torch.compile` (and needed there by `reference`) and in CUDA graphs: a CUDA tensor has to be copied
            to the host once.
        sampling_locations (Tensor[batch, queries, heads, levels, points, 2]): (x, y); (0, 0) is the top-left corner
            of the map and (1, 1) the bottom-right. Outside reads as zero; not a number, or infinite, gives NaN (as
            grid_sample does on the CPU; on a GPU it reads zero there, and so does `reference`).
            float32 (float64 for a float64 `value`); bfloat16 and float16 are accepted and widened.
        attention_weights (Tensor[batch, queries, heads, levels, points]): as a rule they sum to 1 over levels and
            points; this is not required. The dtype of `sampling_locations`.
        backend: `auto`, `reference` (torch alone), `cpu` (compiled C++) or `cuda` (compiled CUDA C++). `auto` is
            `cpu` for CPU tensors and `cuda` for CUDA tensors, and `reference` only where that cannot be: a device or
            an export that the op has no code for, no compiler, or `MS_DEFORM_ATTN_BACKEND=reference` in the
            environment. It says so once; `backends()` tells the reason.

    Returns:
        Tensor[batch, queries, heads * channels], of the dtype of `value`. All sums are in float32 (float64 for a
        float64 `value`), and rounded once. Sizes of 0 (batch, queries, heads, channels, levels, points) are fine.

    Raises:
        TypeError, ValueError: an argument is not a tensor, has an unknown dtype or does not fit the others.
        RuntimeError: the named backend cannot work here; the message says why and how to build it. A second
            derivative, which the op does not have, raises its subclass NotImplementedError.

    Source: Deformable DETR, eq. 3, https://arxiv.org/abs/2010.04159
    """
    check_tensors(value, sampling_locations, attention_weights)
    levels = sampling_locations.shape[3]
    unread = torch.compiler.is_compiling() or (value.is_meta and getattr(spatial_shapes, "is_meta", False))
    if isinstance(spatial_shapes, Tensor) and unread:
        check_shapes_tensor(spatial_shapes, levels)  # the rest when it is read
        op, shapes = _ops.forward.tensor, spatial_shapes
    else:
        op, shapes = _ops.forward.default, level_sizes(spatial_shapes, value, levels)
    chosen = _choose(backend, value.device.type)
    if chosen != "reference":
        return op(value, shapes, sampling_locations, attention_weights)

    if torch.is_grad_enabled():
        value, sampling_locations, attention_weights = Once.apply(value, sampling_locations, attention_weights)
    # Other devices have no operators of ours; asking torch for them is not traced by torch.compile in torch 2.11.
    device_type = value.device.type
    if device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type):
        value = lowered(value, device_type)
    if isinstance(shapes, Tensor):
        shapes = [int(side) for side in shapes.flatten().tolist()]
    pairs = list(zip(shapes[::2], shapes[1::2], strict=True))
    return ms_deform_attn_reference(value, pairs, sampling_locations, attention_weights)


class Availability(str):
    """`"available"`, which is true, or the reason why a backend does not work here, which is false."""

    def __bool__(self) -> bool:
        return self == "available"


def backends() -> dict[str, Availability]:
    """What works here: {"reference": "available", "cpu": "available", "cuda": "no CUDA device is visible"}.

    A backend that can be built is built (some seconds, once), so the answer is what a call will find. Reasons are
    false: `if backends()["cuda"]: …`. Also reachable as `ms_deform_attn.backends()` on the function itself.
    """
    return {backend: Availability(_reason(backend) or "available") for backend in BACKENDS}


ms_deform_attn.backends = backends


@functools.cache
def _reason(backend: str) -> str | None:
    """Why `backend` does not work here, or None if it does."""
    if backend == "reference":
        return None
    try:
        compiled.require(backend)
    except compiled.Unavailable as unavailable:
        return str(unavailable)
    return None


@torch.compiler.assume_constant_result
def _choose(backend: str, device_type: str) -> str:
    """The backend to use: for `auto` that of the device, or `reference` with one warning that gives the reason."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"Expected `backend` to be one of auto, {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "reference":
        return backend
    if backend != "auto":
        if device_type not in (backend, "meta"):
            raise ValueError(f"Expected `value` on a {backend} device for backend={backend!r}, got {device_type}.")
        if reason := _reason(backend):
            raise RuntimeError(
                f"backend={backend!r} cannot work here: {reason}. Build it with {BUILD_COMMAND} --backend {backend}; "
                "ms_deform_attn.backends() lists what works."
            )
        return backend

    wanted = os.environ.get("MS_DEFORM_ATTN_BACKEND", "auto")
    if wanted == "reference":
        return wanted
    if wanted != "auto":
        raise ValueError(f"Expected $MS_DEFORM_ATTN_BACKEND to be auto or reference, got {wanted!r}.")
    if device_type == "meta":
        return "meta"
    if torch.onnx.is_in_onnx_export():
        return "reference"
    reason = _reason(device_type) if device_type in BACKENDS else f"there is no code for {device_type} devices"
    if reason is None:
        return device_type
    _say_once(f"ms_deform_attn uses its slow reference backend for {device_type} tensors: {reason}.")
    return "reference"


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
