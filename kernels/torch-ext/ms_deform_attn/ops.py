"""The op as torch knows it: schemas, shapes without data, gradients, autocast.

`torch.ops.ms_deform_attn.forward` takes the levels' sizes as integers. Its overload `forward.tensor` takes them as a
tensor and reads it when it runs, for `torch.compile`, which cannot read a tensor while it traces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import compiled
from .checks import check_tensors, compute_dtype, level_sizes

NAMESPACE = compiled.add_op_namespace_prefix("").removesuffix("::")
_library = torch.library.Library(NAMESPACE, "FRAGMENT")
for overload, shapes in (("", "SymInt[] spatial_shapes"), (".tensor", "Tensor spatial_shapes")):
    inputs = f"Tensor value, {shapes}, Tensor sampling_locations, Tensor attention_weights"
    _library.define(f"forward{overload}({inputs}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    _library.define(
        f"backward{overload}(Tensor grad_output, {inputs}) -> (Tensor, Tensor, Tensor)",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
_ops = getattr(torch.ops, NAMESPACE)


def _prepare(value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor) -> tuple:
    """The arguments of the compiled functions: contiguous, coordinates and weights in the dtype of the sums."""
    check_tensors(value, locations, weights)
    sizes = level_sizes(list(zip(*[iter(spatial_shapes)] * 2, strict=True)), value, locations.shape[3])
    compute = compute_dtype(value)
    return value.contiguous(), sizes, locations.to(compute).contiguous(), weights.to(compute).contiguous()


def _forward(
    value: Tensor, spatial_shapes: list[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    value, sizes, locations, weights = _prepare(value, spatial_shapes, sampling_locations, attention_weights)
    return compiled.forward(value, sizes, locations, weights)


def _backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    value, sizes, locations, weights = _prepare(value, spatial_shapes, sampling_locations, attention_weights)
    batch, _, heads, channels = value.shape
    grad_output = grad_output.to(value.dtype).reshape(batch, locations.shape[1], heads * channels).contiguous()
    grads = compiled.backward(grad_output, value, sizes, locations, weights)
    return grads[0].to(value.dtype), grads[1].to(sampling_locations.dtype), grads[2].to(attention_weights.dtype)


def _forward_tensor(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    sizes = level_sizes(spatial_shapes, value, sampling_locations.shape[3])
    return _forward(value, sizes, sampling_locations, attention_weights)


def _backward_tensor(
    grad_output: Tensor, value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = level_sizes(spatial_shapes, value, sampling_locations.shape[3])
    return _backward(grad_output, value, sizes, sampling_locations, attention_weights)


for key in ("CPU", "CUDA"):
    _library.impl("forward", _forward, key)
    _library.impl("backward", _backward, key)
    _library.impl("forward.tensor", _forward_tensor, key)
    _library.impl("backward.tensor", _backward_tensor, key)


def _forward_shape(value: Tensor, spatial_shapes, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * channels)


def _backward_shapes(
    grad_output: Tensor, value: Tensor, spatial_shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (value, sampling_locations, attention_weights)
    )


def _save(ctx, inputs, output) -> None:
    value, ctx.spatial_shapes, sampling_locations, attention_weights = inputs
    ctx.save_for_backward(value, sampling_locations, attention_weights)


def _save_tensor(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad_output: Tensor) -> tuple:
    value, sampling_locations, attention_weights = ctx.saved_tensors
    grads = _ops.backward(grad_output, value, ctx.spatial_shapes, sampling_locations, attention_weights)
    return grads[0], None, grads[1], grads[2]


def _gradients_tensor(ctx, grad_output: Tensor) -> tuple:
    grads = _ops.backward.tensor(grad_output, *ctx.saved_tensors)
    return grads[0], None, grads[1], grads[2]


def _no_second_derivative(ctx, *grads) -> None:
    raise NotImplementedError(
        "Expected `value`, `sampling_locations` and `attention_weights` to be differentiated once, got a second "
        "backward through their gradients: ms_deform_attn has no second derivative (was create_graph=True meant?)."
    )


class Once(torch.autograd.Function):
    """The identity, but its gradient cannot be differentiated again: gives `reference` the error of the others."""

    @staticmethod
    def forward(ctx, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, ...]:
        return OnceGradient.apply(*grads) if torch.is_grad_enabled() else grads


class OnceGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.view_as(grad) for grad in grads)

    backward = staticmethod(_no_second_derivative)


def lowered(value: Tensor, device_type: str) -> Tensor:
    """`value` as it is read under autocast: in the lower precision. Coordinates, weights and sums stay in float32."""
    return value if value.dtype == torch.float64 else value.to(torch.get_autocast_dtype(device_type))


def _autocast(op, device_type: str):
    def cast(value: Tensor, spatial_shapes, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
        value = lowered(value, device_type)
        with torch.autocast(device_type, enabled=False):
            return op(value, spatial_shapes, sampling_locations, attention_weights)

    return cast


for overload, save, gradients in (("", _save, _gradients), (".tensor", _save_tensor, _gradients_tensor)):
    forward, backward = f"{NAMESPACE}::forward{overload}", f"{NAMESPACE}::backward{overload}"
    torch.library.register_fake(forward, _forward_shape, lib=_library)
    torch.library.register_fake(backward, _backward_shapes, lib=_library)
    torch.library.register_autograd(forward, gradients, setup_context=save, lib=_library)
    torch.library.register_autograd(backward, _no_second_derivative, lib=_library)
    op = getattr(_ops.forward, overload.removeprefix(".") or "default")
    _library.impl(f"forward{overload}", _autocast(op, "cpu"), "AutocastCPU")
    _library.impl(f"forward{overload}", _autocast(op, "cuda"), "AutocastCUDA")
