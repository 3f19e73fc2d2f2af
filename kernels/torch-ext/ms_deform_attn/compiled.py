"""The compiled functions, found or built at their first use: one `forward` and one `backward` for all devices.

They take prepared tensors: contiguous, sizes checked, coordinates and weights in the dtype of the sums.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util

import torch
from torch import Tensor

from . import cuda
from .toolchain import BUILD_COMMAND, Unavailable, load_cpu_library

__all__ = ["Unavailable", "backward", "forward", "require"]


@functools.cache
def hub_build():
    """`_ops`, which kernel-builder adds to this package: functions compiled ahead of time. None if there are none."""
    if importlib.util.find_spec("._ops", __package__) is None:
        return None
    module = importlib.import_module("._ops", __package__)
    return module if module.ops is not None else None  # without functions it only names the operators


def _in_hub_build(key: str) -> bool:
    name = hub_build().add_op_namespace_prefix("compiled_forward")
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


@functools.cache
def _cpu():
    if hub_build() is None:
        return load_cpu_library()
    if not _in_hub_build("CPU"):
        raise Unavailable("this build of the kernel has no CPU code")
    return hub_build().ops


def require(backend: str) -> None:
    """Load what `backend` needs, building it if need be; raise `Unavailable` with the reason where that fails."""
    if backend == "cpu":
        _cpu()
    elif hub_build() is None:
        cuda.require()
    elif not _in_hub_build("CUDA"):
        raise Unavailable("this build of the kernel has no CUDA code")
    else:
        cuda.require_device()


def _functions(value: Tensor):
    if value.is_cuda:
        return cuda if hub_build() is None else hub_build().ops
    try:
        return _cpu()
    except Unavailable as unavailable:
        raise Unavailable(f"ms_deform_attn has no compiled CPU code: {unavailable} (build: {BUILD_COMMAND})") from None


def forward(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    if value.dtype == torch.float16 and not value.is_cuda:  # through float32: converting whole tensors is cheap
        return forward(value.float(), sizes, locations, weights).half()
    return _functions(value).compiled_forward(value, sizes, locations, weights)


def backward(
    grad_output: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if value.dtype == torch.float16 and not value.is_cuda:
        grad_value, *others = backward(grad_output.float(), value.float(), sizes, locations, weights)
        return grad_value.half(), *others
    deterministic = torch.are_deterministic_algorithms_enabled()
    return _functions(value).compiled_backward(grad_output, value, sizes, locations, weights, deterministic)
