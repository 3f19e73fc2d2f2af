"""The compiled functions, found or built at their first use, for tensors that ops.py has checked and prepared."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import cuda
from .toolchain import BUILD_COMMAND, Unavailable, load_cpu_library

try:  # A build for the Hub has its own namespace, and functions compiled ahead of time, or None to compile here.
    from ._ops import add_op_namespace_prefix
    from ._ops import ops as _hub_functions
except ModuleNotFoundError:
    _hub_functions = None

    def add_op_namespace_prefix(name: str) -> str:
        return f"ms_deform_attn::{name}"


def _require_in_hub_build(key: str) -> None:
    if not torch._C._dispatch_has_kernel_for_dispatch_key(add_op_namespace_prefix("compiled_forward"), key):
        raise Unavailable(f"this build of the kernel has no {key} code")


@functools.cache
def _cpu():
    if _hub_functions is None:
        return load_cpu_library()
    _require_in_hub_build("CPU")
    return _hub_functions


def require(backend: str) -> None:
    """Load what `backend` needs, building it if need be; raise `Unavailable` with the reason where that fails."""
    if backend == "cpu":
        _cpu()
    elif _hub_functions is None:
        cuda.require()
    else:
        _require_in_hub_build("CUDA")
        cuda.require_device()


def _functions(value: Tensor):
    if value.is_cuda:
        return cuda if _hub_functions is None else _hub_functions
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
