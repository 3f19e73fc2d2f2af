"""What the op computes, with every backend that works here."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ms_deform_attn as package
from ms_deform_attn import ms_deform_attn

BACKENDS = [
    "reference",
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def on(backend):
    return "cuda" if backend == "cuda" else "cpu"


def float64_of(inputs):
    value, spatial_shapes, locations, weights = inputs
    return (
        value.detach().cpu().double(),
        spatial_shapes,
        locations.detach().cpu().double(),
        weights.detach().cpu().double(),
    )


def gradients(function, inputs, grad):
    value, spatial_shapes, locations, weights = inputs
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (value, locations, weights)]
    output = function(leaves[0], spatial_shapes, *leaves[1:])
    return output, torch.autograd.grad(output, leaves, grad.to(output))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_plain_loops(backend, dtype, make_inputs, loops, assert_close, tolerance):
    inputs = make_inputs(dtype, device=on(backend))
    output = ms_deform_attn(*inputs, backend=backend)
    assert output.dtype == dtype and output.is_contiguous()
    assert_close(output.cpu(), loops(*float64_of(inputs)), tolerance[dtype][0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_of_one_at_a_pixel_centre_reads_that_pixel(backend):
    # One level of 2 x 3; x = (column + 1/2) / width, y = (row + 1/2) / height.
    value = torch.tensor([[10.0, 11.0, 12.0], [20.0, 21.0, 22.0]]).reshape(1, 6, 1, 1)
    centres = torch.tensor([[0.5 / 3, 0.25], [2.5 / 3, 0.25], [0.5 / 3, 0.75], [1.5 / 3, 0.75], [0.5, 0.5]])
    locations = centres.reshape(1, 5, 1, 1, 1, 2)
    inputs = [tensor.to(on(backend)) for tensor in (value, locations, torch.ones(1, 5, 1, 1, 1))]
    output = ms_deform_attn(inputs[0], [(2, 3)], *inputs[1:], backend=backend)
    # The last is the middle of the map: halfway between 11 and 21.
    torch.testing.assert_close(output.flatten().cpu(), torch.tensor([10.0, 12.0, 20.0, 21.0, 16.0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [32, 5])
def test_gradients_agree_with_the_reference_in_float64(backend, dtype, channels, make_inputs, assert_close, tolerance):
    inputs = make_inputs(dtype, queries=23, channels=channels, device=on(backend))
    grad = torch.randn(2, 23, 3 * channels, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    _, expected = gradients(lambda *x: ms_deform_attn(*x, backend="reference"), float64_of(inputs), grad.double())
    _, got = gradients(lambda *x: ms_deform_attn(*x, backend=backend), inputs, grad)
    for name, a, b in zip(("value", "locations", "weights"), got, expected, strict=True):
        # Only grad_value is rounded to the dtype of value.
        limit = tolerance[dtype if name == "value" or dtype == torch.float64 else torch.float32][1]
        assert_close(a.cpu(), b, limit)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend, make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(
        torch.float64, batch=1, queries=2, heads=2, channels=3, points=2, device=on(backend), requires_grad=True
    )
    function = lambda v, x, w: ms_deform_attn(v, spatial_shapes, x, w, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(function, (value, locations, weights), nondet_tol=1e-12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape(data, make_inputs, assert_close, tolerance):
    sizes = {name: data.draw(st.integers(0, 4), label=name) for name in ("batch", "heads", "points")}
    sizes["queries"] = data.draw(st.sampled_from([0, 1, 3, 8, 17, 65]), label="queries")
    sizes["channels"] = data.draw(st.sampled_from([0, 1, 3, 7, 8, 12, 16, 32, 33, 72]), label="channels")
    side = st.integers(1, 9)
    sizes["shapes"] = data.draw(st.lists(st.tuples(side, side), min_size=0, max_size=4), label="shapes")
    dtype = data.draw(st.sampled_from(DTYPES), label="dtype")
    inputs = make_inputs(dtype, **sizes, seed=data.draw(st.integers(0, 9), label="seed"))
    grad = torch.randn(sizes["batch"], sizes["queries"], sizes["heads"] * sizes["channels"]).to(dtype)
    got, got_grads = gradients(lambda *x: ms_deform_attn(*x, backend="cpu"), inputs, grad)
    expected, expected_grads = gradients(
        lambda *x: ms_deform_attn(*x, backend="reference"), float64_of(inputs), grad.double()
    )
    assert_close(got, expected, tolerance[dtype][0])
    assert_close(got_grads[0], expected_grads[0], tolerance[dtype][1])
    for a, b in zip(got_grads[1:], expected_grads[1:], strict=True):
        assert_close(a, b, tolerance[torch.float64 if dtype == torch.float64 else torch.float32][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_few_queries_read_a_large_map(backend, make_inputs, assert_close, tolerance):
    # Fewer samples than pixels: the CPU op then reads `value` where it lies.
    inputs = make_inputs(queries=3, channels=24, shapes=((40, 31), (9, 8)), device=on(backend))
    expected = ms_deform_attn(*float64_of(inputs), backend="reference")
    assert_close(ms_deform_attn(*inputs, backend=backend).cpu(), expected, tolerance[torch.float32][0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_need_not_be_contiguous(backend, make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(device=on(backend))
    expected = ms_deform_attn(value, spatial_shapes, locations, weights, backend=backend)
    strided = [
        value.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch.stack([locations, -locations], -2)[..., 0, :],
        weights.transpose(1, 2).contiguous().transpose(1, 2),
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    shapes = torch.stack([spatial_shapes, spatial_shapes], -1)[..., 0]
    got = ms_deform_attn(strided[0], shapes, *strided[1:], backend=backend)
    torch.testing.assert_close(got, expected)
    # ... nor the gradient that comes in, nor aligned to vectors.
    leaf = value.detach().requires_grad_()
    output = ms_deform_attn(leaf, spatial_shapes, locations, weights, backend=backend)
    grad = torch.ones(1, device=output.device).expand_as(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, leaf, grad, retain_graph=True)[0],
        torch.autograd.grad(output, leaf, grad.contiguous())[0],
    )
    shifted = torch.empty(value.numel() + 1, device=value.device)[1:].view_as(value).copy_(value)
    torch.testing.assert_close(ms_deform_attn(shifted, spatial_shapes, locations, weights, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_locations_far_outside_read_zero_and_are_no_crash(backend, make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(device=on(backend), requires_grad=True)
    for far in (-1.0, 2.0, 1e9, -1e30):
        output = ms_deform_attn(value, spatial_shapes, torch.full_like(locations, far), weights, backend=backend)
        assert output.abs().max() == 0
        assert torch.autograd.grad(output.sum(), value)[0].abs().max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_location_that_is_no_number_gives_no_number(backend, bad, make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(device=on(backend))
    locations[1, 4, 2, 0, 1, 0] = bad
    output = ms_deform_attn(value, spatial_shapes, locations, weights, backend=backend).view(2, 7, 3, 5)
    assert output[1, 4, 2].isnan().all()
    output[1, 4, 2] = 0
    assert output.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinities_in_value_reach_only_who_reads_them(backend, make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(device=on(backend))
    value[0, 0] = float("inf")  # pixel (0, 0) of the first level
    # In the corner opposite, or outside: not near that pixel.
    locations = torch.where(locations > 0.5, 1.3, 0.9).to(locations)
    assert ms_deform_attn(value, spatial_shapes, locations, weights, backend=backend).isfinite().all()


def test_more_than_2_to_31_elements():
    # Memory that is never touched is not there; reading needs a few pages of it.
    height, width, channels = 2049, 1024, 1024
    try:
        bits = np.zeros((1, height * width, 1, channels), dtype=np.int16)  # 4.3 GB of address space
    except MemoryError:
        pytest.skip("not enough memory for 2**31 bfloat16 numbers")
    assert bits.size > 2**31
    value = torch.from_numpy(bits).view(torch.bfloat16)
    value[0, -1, 0] = torch.arange(channels).to(torch.bfloat16)
    corner = torch.tensor([1 - 0.5 / width, 1 - 0.5 / height], dtype=torch.float32).reshape(1, 1, 1, 1, 1, 2)
    output = ms_deform_attn(value, [(height, width)], corner, torch.ones(1, 1, 1, 1, 1), backend="cpu")
    torch.testing.assert_close(output[0, 0], value[0, -1, 0], rtol=0.01, atol=1e-2)
    assert output[0, 0, -1] > 1000


def test_the_bits_do_not_depend_on_threads(make_inputs):
    inputs = make_inputs(queries=301, heads=2, channels=32)
    grad = torch.randn(2, 301, 64)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            output, grads = gradients(lambda *x: ms_deform_attn(*x, backend="cpu"), inputs, grad)
            seen.append([output, *grads])
    finally:
        torch.set_num_threads(before)
    for others in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], others, strict=True))


def test_plain_instructions_agree(make_inputs, fork_run, tmp_path):
    inputs = make_inputs(queries=19, channels=40)
    torch.save(inputs, tmp_path / "inputs.pt")
    (tmp_path / "call.py").write_text(
        "import torch; from ms_deform_attn import ms_deform_attn\n"
        "torch.save(ms_deform_attn(*torch.load('inputs.pt'), backend='cpu'), 'output.pt')\n"
    )
    run = fork_run(tmp_path / "call.py", [], tmp_path / "log", tmp_path, {"MS_DEFORM_ATTN_PLAIN": "1"})
    run.communicate()
    assert run.returncode == 0, run.output()
    torch.testing.assert_close(torch.load(tmp_path / "output.pt"), ms_deform_attn(*inputs, backend="cpu"))


def test_shapes_may_be_a_list(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs()
    expected = ms_deform_attn(value, spatial_shapes, locations, weights)
    for shapes in (
        spatial_shapes.tolist(),
        tuple(tuple(pair) for pair in spatial_shapes.tolist()),
        spatial_shapes.numpy(),
    ):
        assert torch.equal(ms_deform_attn(value, shapes, locations, weights), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_coordinates_are_widened_not_computed_in_half(backend, dtype, make_inputs, assert_close):
    value, spatial_shapes, locations, weights = make_inputs(dtype, shapes=((90, 80),), device=on(backend))
    locations, weights = locations.to(dtype), weights.to(dtype)
    expected = ms_deform_attn(value.float(), spatial_shapes, locations.float(), weights.float(), backend="reference")
    got = ms_deform_attn(value, spatial_shapes, locations, weights, backend=backend)
    assert_close(got, expected, 8e-3)
    # Gradients come back in the dtype of what they belong to.
    leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
    output = ms_deform_attn(leaves[0], spatial_shapes, *leaves[1:], backend=backend)
    assert [grad.dtype for grad in torch.autograd.grad(output.sum(), leaves)] == [dtype] * 3


def test_backends_tells_what_works():
    for listed in (package.backends(), ms_deform_attn.backends()):
        assert list(listed) == ["reference", "cpu", "cuda"]
        assert listed["reference"] and listed["reference"] == "available"
        for reason in listed.values():
            assert isinstance(reason, str) and bool(reason) == (reason == "available")
    if not torch.cuda.is_available():
        assert "CUDA" in package.backends()["cuda"]


def test_auto_is_the_compiled_backend(make_inputs):
    if not package.backends()["cpu"]:
        pytest.skip(f"cpu: {package.backends()['cpu']}")
    inputs = make_inputs()
    assert torch.equal(ms_deform_attn(*inputs), ms_deform_attn(*inputs, backend="cpu"))
