"""Bad input: one sentence that names the argument, what was expected and what came, whatever the backend."""

import pytest
import torch

from ms_deform_attn import ms_deform_attn

BAD = {
    "value is a list": (lambda v, s, x, w: ([1.0], s, x, w), TypeError, r"`value` to be a torch.Tensor, got list"),
    "value has 3 dimensions": (
        lambda v, s, x, w: (v[0], s, x, w),
        ValueError,
        r"`value` to be .*got shape \(40, 3, 5\)",
    ),
    "value is int": (lambda v, s, x, w: (v.int(), s, x, w), ValueError, r"`value` to be float32.*got int32"),
    "value is complex": (
        lambda v, s, x, w: (v.cfloat(), s, x, w),
        ValueError,
        r"`value` to be float32.*got complex64",
    ),
    "value is sparse": (
        lambda v, s, x, w: (v.to_sparse(), s, x, w),
        ValueError,
        r"`value` to be a dense tensor, got layout torch.sparse_coo",
    ),
    "shapes are sparse": (
        lambda v, s, x, w: (v, s.to_sparse(), x, w),
        ValueError,
        r"`spatial_shapes` to be a dense tensor, got layout torch.sparse_coo",
    ),
    "shapes without numbers": (
        lambda v, s, x, w: (v, s.to("meta"), x, w),
        ValueError,
        r"`spatial_shapes` to hold numbers for a `value` on cpu, got a meta tensor",
    ),
    "locations have no pairs": (
        lambda v, s, x, w: (v, s, x[..., :1], w),
        ValueError,
        r"`sampling_locations` to be .*got shape \(2, 7, 3, 3, 3, 1\)",
    ),
    "locations have 5 dimensions": (
        lambda v, s, x, w: (v, s, x[0], w),
        ValueError,
        r"`sampling_locations` to be .*got shape \(7, 3, 3, 3, 2\)",
    ),
    "locations are int": (
        lambda v, s, x, w: (v, s, x.long(), w),
        ValueError,
        r"`sampling_locations` to be float32.*int64",
    ),
    "locations are float64": (
        lambda v, s, x, w: (v, s, x.double(), w),
        ValueError,
        r"`sampling_locations` to be float32 for a float32 `value`, got float64",
    ),
    "value is float64 alone": (
        lambda v, s, x, w: (v.double(), s, x, w),
        ValueError,
        r"`sampling_locations` to be float64 for a float64 `value`, got float32",
    ),
    "weights are float64": (
        lambda v, s, x, w: (v, s, x, w.double()),
        ValueError,
        r"`attention_weights` to be float32",
    ),
    "locations elsewhere": (
        lambda v, s, x, w: (v, s, x.to("meta"), w),
        ValueError,
        r"`sampling_locations` on.*cpu, got meta",
    ),
    "weights elsewhere": (
        lambda v, s, x, w: (v, s, x, w.to("meta")),
        ValueError,
        r"`attention_weights` on.*cpu, got meta",
    ),
    "another batch": (
        lambda v, s, x, w: (v, s, x[:1], w),
        ValueError,
        r"`sampling_locations` to have the batch size 2",
    ),
    "another batch of value": (
        lambda v, s, x, w: (v[:1], s, x, w),
        ValueError,
        r"`sampling_locations` to have the batch size 1",
    ),
    "other heads": (lambda v, s, x, w: (v, s, x[:, :, :2], w), ValueError, r"and the 3 heads of `value`"),
    "weights for other queries": (
        lambda v, s, x, w: (v, s, x, w[:, :6]),
        ValueError,
        r"`attention_weights` to have the shape \(2, 7, 3, 3, 3\).*got \(2, 6, 3, 3, 3\)",
    ),
    "weights without points": (
        lambda v, s, x, w: (v, s, x, w.flatten(3)),
        ValueError,
        r"`attention_weights` to be .*got shape \(2, 7, 3, 9\)",
    ),
    "weights for other points": (
        lambda v, s, x, w: (v, s, x, w[..., :2]),
        ValueError,
        r"`attention_weights` to have the shape",
    ),
    "shapes are int32": (
        lambda v, s, x, w: (v, s.int(), x, w),
        ValueError,
        r"`spatial_shapes` to be int64, got int32",
    ),
    "shapes are float": (
        lambda v, s, x, w: (v, s.float(), x, w),
        ValueError,
        r"`spatial_shapes` to be int64, got float32",
    ),
    "shapes are flat": (
        lambda v, s, x, w: (v, s.flatten(), x, w),
        ValueError,
        r"`spatial_shapes` to have shape \(3, 2\).*got \(6,\)",
    ),
    "too few shapes": (
        lambda v, s, x, w: (v, s[:2], x, w),
        ValueError,
        r"`spatial_shapes` to have shape \(3, 2\).*got \(2, 2\)",
    ),
    "too few shapes in a list": (
        lambda v, s, x, w: (v, s[:2].tolist(), x, w),
        ValueError,
        r"`spatial_shapes` to have one .*3 levels of `sampling_locations`, got 2",
    ),
    "a zero size": (
        lambda v, s, x, w: (v, torch.tensor([[5, 6], [0, 1], [2, 5]]), x, w),
        ValueError,
        r"`spatial_shapes` to hold sizes between 1 and .*level of \(0, 1\)",
    ),
    "negative sizes": (
        lambda v, s, x, w: (v, torch.tensor([[5, 6], [-2, -2], [2, 3]]), x, w),
        ValueError,
        r"`spatial_shapes` to hold sizes between 1 and .*level of \(-2, -2\)",
    ),
    "a size that overflows": (
        lambda v, s, x, w: (v, torch.tensor([[2**62, 4], [4, 1], [2, 3]]), x, w),
        ValueError,
        r"`spatial_shapes` to hold sizes between 1 and",
    ),
    "shapes that cover less": (
        lambda v, s, x, w: (v, torch.tensor([[5, 6], [3, 1], [2, 3]]), x, w),
        ValueError,
        r"`spatial_shapes` to cover the 40 pixels of `value`.*which cover 39",
    ),
    "shapes that cover more": (
        lambda v, s, x, w: (v, [(5, 6), (4, 1), (7, 1)], x, w),
        ValueError,
        r"`spatial_shapes` to cover the 40 pixels of `value`.*which cover 41",
    ),
    "an image of 2**31 pixels": (
        lambda v, s, x, w: (v[:, :1].expand(2, 2**31, 3, 5), [(2**16, 2**15)], x[:, :, :, :1], w[:, :, :, :1]),
        ValueError,
        r"`spatial_shapes` to cover fewer than 2\*\*31 pixels, got 2147483648",
    ),
    "a list of floats": (
        lambda v, s, x, w: (v, [(5.0, 6), (4, 1), (2, 3)], x, w),
        TypeError,
        r"`spatial_shapes` to hold integers, got 5.0",
    ),
    "a list of triples": (
        lambda v, s, x, w: (v, [(5, 6, 1)] * 3, x, w),
        ValueError,
        r"`spatial_shapes` to be a list of \(height, width\)",
    ),
    "a list of numbers": (
        lambda v, s, x, w: (v, [30, 4, 6], x, w),
        TypeError,
        r"`spatial_shapes` to be an int64 tensor",
    ),
    "shapes are None": (
        lambda v, s, x, w: (v, None, x, w),
        TypeError,
        r"`spatial_shapes` to be an int64 tensor .*NoneType",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, backend, make_inputs):
    spoil, error, message = BAD[case]
    with pytest.raises(error, match=message) as raised:
        ms_deform_attn(*spoil(*make_inputs()), backend=backend)
    assert str(raised.value).count("\n") == 0


def test_unknown_backend(make_inputs):
    with pytest.raises(ValueError, match="`backend` to be one of auto, reference, cpu, cuda, got 'gpu'"):
        ms_deform_attn(*make_inputs(), backend="gpu")


def test_a_backend_for_another_device(make_inputs):
    with pytest.raises(ValueError, match="`value` on a cuda device for backend='cuda', got cpu"):
        ms_deform_attn(*make_inputs(), backend="cuda")


def test_environment_names_an_unknown_backend(make_inputs, monkeypatch):
    monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", "fastest")
    with pytest.raises(ValueError, match="MS_DEFORM_ATTN_BACKEND to be auto or reference, got 'fastest'"):
        ms_deform_attn(*make_inputs())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("argument", [0, 2, 3])
def test_second_derivative(backend, argument, make_inputs):
    inputs = make_inputs(requires_grad=True)
    output = ms_deform_attn(*inputs, backend=backend)
    (grad,) = torch.autograd.grad(output.square().sum(), inputs[argument], create_graph=True)
    with pytest.raises(
        RuntimeError, match="`value`, `sampling_locations` and `attention_weights` to be differentiated once"
    ):
        grad.sum().backward()


@pytest.mark.parametrize("overload", ["default", "tensor"])
def test_the_operators_themselves_check_too(overload, make_inputs):
    value, spatial_shapes, locations, weights = make_inputs()
    op = getattr(torch.ops.ms_deform_attn.forward, overload)
    shapes = spatial_shapes - 1
    with pytest.raises(ValueError, match="`spatial_shapes`"):
        op(value, shapes if overload == "tensor" else shapes.flatten().tolist(), locations, weights)
    shapes = spatial_shapes if overload == "tensor" else spatial_shapes.flatten().tolist()
    with pytest.raises(ValueError, match="`attention_weights` to have the shape"):
        op(value, shapes, locations, weights[:, :3])


def test_a_gradient_of_another_shape_is_refused(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs()
    with pytest.raises(RuntimeError, match=r"shape '\[2, 7, 15\]' is invalid"):
        torch.ops.ms_deform_attn.backward(
            torch.ones(2, 7, 14), value, spatial_shapes.flatten().tolist(), locations, weights
        )
