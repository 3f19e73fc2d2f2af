"""The op inside torch: opcheck, torch.compile, autocast, meta tensors, checkpoints, threads of autograd."""

import copy
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ms_deform_attn import functional, ms_deform_attn

OPS = torch.ops.ms_deform_attn


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("overload", ["default", "tensor"])
def test_opcheck(dtype, overload, make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(dtype, requires_grad=True)
    shapes = spatial_shapes if overload == "tensor" else spatial_shapes.flatten().tolist()
    torch.library.opcheck(getattr(OPS.forward, overload), (value, shapes, locations, weights))
    grad = torch.randn(2, 7, 15).to(dtype)
    detached = [tensor.detach() for tensor in (value, locations, weights)]
    torch.library.opcheck(getattr(OPS.backward, overload), (grad, detached[0], shapes, *detached[1:]))


def compiled_and_eager(function, inputs, backend):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    results = []
    for run in (compiled, function):
        value, spatial_shapes, locations, weights = copy.deepcopy(inputs)
        output = run(value, spatial_shapes, locations, weights)
        output.square().sum().backward()
        results.append([output.detach(), value.grad, locations.grad, weights.grad])
    return compiled, results


@pytest.mark.slow
@pytest.mark.parametrize("shapes_as", ["tensor", "list"])
@pytest.mark.parametrize("name", ["auto", "reference", "cpu"])
def test_compiles_without_a_break(shapes_as, name, make_inputs):
    def function(value, spatial_shapes, locations, weights):
        return ms_deform_attn(value * 2, spatial_shapes, locations.sigmoid(), weights, backend=name) + 1

    value, spatial_shapes, locations, weights = make_inputs(requires_grad=True)
    if shapes_as == "list":
        spatial_shapes = [tuple(pair) for pair in spatial_shapes.tolist()]
    elif name == "reference":
        pytest.skip("the reference splits by sizes, which a traced tensor does not tell; a list does")
    inputs = (value, spatial_shapes, locations, weights)
    _, (compiled, eager) = compiled_and_eager(function, inputs, "aot_eager")
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_compiles_with_inductor(make_inputs):
    def function(value, spatial_shapes, locations, weights):
        return ms_deform_attn(value * 2, spatial_shapes, locations, weights)

    _, (compiled, eager) = compiled_and_eager(function, make_inputs(requires_grad=True), "inductor")
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_sizes_are_dynamic(make_inputs):
    frames = []

    def counting_backend(graph, example_inputs):
        frames.append(graph)
        return graph

    torch._dynamo.reset()
    function = torch.compile(
        lambda *inputs: ms_deform_attn(*inputs), fullgraph=True, dynamic=True, backend=counting_backend
    )
    # Unequal sizes at first: the compiler takes equal ones for the same, and the 2 of (x, y) is a constant.
    for batch, queries, shapes in (
        (6, 7, ((5, 6), (4, 2))),
        (3, 9, ((6, 7), (5, 3))),
        (4, 11, ((3, 9), (2, 8))),
        (5, 6, ((8, 3), (9, 2))),
    ):
        inputs = make_inputs(batch=batch, queries=queries, heads=4, shapes=shapes)
        torch.testing.assert_close(function(*inputs), ms_deform_attn(*inputs))
    assert len(frames) == 1


def test_bad_shapes_are_found_when_a_compiled_graph_runs(make_inputs):
    torch._dynamo.reset()
    function = torch.compile(ms_deform_attn, fullgraph=True, dynamic=True, backend="eager")
    value, spatial_shapes, locations, weights = make_inputs()
    function(value, spatial_shapes, locations, weights)
    with pytest.raises(ValueError, match="`spatial_shapes` to cover the 40 pixels"):
        function(value, spatial_shapes + 1, locations, weights)


def test_exports(make_inputs):
    class Attention(torch.nn.Module):
        def forward(self, value, locations, weights):
            return ms_deform_attn(value, [(5, 6), (4, 1), (2, 3)], locations, weights)

    value, spatial_shapes, locations, weights = make_inputs()
    program = torch.export.export(Attention(), (value, locations, weights))
    assert any("ms_deform_attn.forward" in str(node.target) for node in program.graph.nodes)
    got = program.module()(value, locations, weights)
    torch.testing.assert_close(got, ms_deform_attn(value, spatial_shapes, locations, weights))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_reads_value_in_half_and_computes_in_float32(dtype, make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(shapes=((60, 50),), requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        output = ms_deform_attn(value, spatial_shapes, locations, weights)
    assert output.dtype == dtype
    # Bit for bit what half values with float32 coordinates give: those were not rounded.
    assert torch.equal(output, ms_deform_attn(value.to(dtype), spatial_shapes, locations, weights))
    grads = torch.autograd.grad(output.float().sum(), (value, locations, weights))
    assert [grad.dtype for grad in grads] == [torch.float32] * 3
    double = [tensor.detach().double() for tensor in (value, locations, weights)]
    with torch.autocast("cpu", dtype=dtype):
        assert ms_deform_attn(double[0], spatial_shapes, *double[1:]).dtype == torch.float64


def test_autocast_is_the_same_for_the_reference(make_inputs, assert_close):
    inputs = make_inputs(requires_grad=True)
    results = []
    for backend in ("reference", "cpu"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = ms_deform_attn(*inputs, backend=backend)
        results.append([output, *torch.autograd.grad(output.float().sum(), (inputs[0], *inputs[2:]))])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, 8e-3)
    double = [tensor.detach().double() for tensor in (inputs[0], *inputs[2:])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ms_deform_attn(double[0], inputs[1], *double[1:], backend="reference").dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_inside_compile(backend, make_inputs):
    def function(value, spatial_shapes, locations, weights):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ms_deform_attn(value, spatial_shapes, locations, weights, backend=backend)

    value, spatial_shapes, locations, weights = make_inputs()
    inputs = value, spatial_shapes.tolist(), locations, weights
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), function(*inputs)) and compiled(*inputs).dtype == torch.bfloat16


def test_meta_tensors_give_shapes(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(torch.bfloat16, device="meta")
    output = ms_deform_attn(value, spatial_shapes, locations, weights)
    assert output.device.type == "meta" and output.shape == (2, 7, 15) and output.dtype == torch.bfloat16
    output = ms_deform_attn(value, spatial_shapes.to("meta"), locations, weights)
    assert output.device.type == "meta" and output.shape == (2, 7, 15) and output.dtype == torch.bfloat16
    list_of_shapes = spatial_shapes.tolist()
    assert ms_deform_attn(value, list_of_shapes, locations, weights, backend="reference").shape == (2, 7, 15)


def test_only_what_requires_grad_gets_one(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs()
    weights.requires_grad_()
    output = ms_deform_attn(value, spatial_shapes, locations, weights)
    output.sum().backward()
    assert weights.grad is not None and value.grad is None and locations.grad is None
    with torch.no_grad():
        assert not ms_deform_attn(value, spatial_shapes, locations, weights).requires_grad
    with torch.inference_mode():
        assert torch.equal(ms_deform_attn(value, spatial_shapes, locations, weights), output)


def test_gradient_checkpoint_and_anomaly_mode(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(requires_grad=True)
    plain = torch.autograd.grad(ms_deform_attn(value, spatial_shapes, locations, weights).sum(), value)[0]
    with torch.autograd.detect_anomaly(check_nan=True):
        output = checkpoint(ms_deform_attn, value, spatial_shapes, locations, weights, use_reentrant=False)
        assert torch.equal(torch.autograd.grad(output.sum(), value)[0], plain)


def test_deterministic_mode(make_inputs):
    inputs = make_inputs(requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        grads = [torch.autograd.grad(ms_deform_attn(*inputs).sum(), inputs[0])[0] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*grads)


def test_forced_reference(make_inputs, monkeypatch):
    inputs = make_inputs()
    monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", "reference")
    monkeypatch.setattr("ms_deform_attn.compiled.require", None)  # not to be called
    assert torch.equal(ms_deform_attn(*inputs), ms_deform_attn(*inputs, backend="reference"))


def test_a_device_without_code_falls_back_and_says_so_once(make_inputs, monkeypatch):
    functional._say_once.cache_clear()
    with pytest.warns(UserWarning, match="reference backend for mps tensors: there is no code for mps devices"):
        assert functional._choose("auto", "mps") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert functional._choose("auto", "mps") == "reference"


def test_auto_never_falls_back_on_an_exception(make_inputs, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("the kernel broke")

    inputs = make_inputs()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the kernel broke"):
        patch.setattr("ms_deform_attn.compiled.forward", broken)
        ms_deform_attn(*inputs)
    # ... nor where the build breaks for a reason that has no name.
    functional._reason.cache_clear()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the kernel broke"):
        patch.setattr("ms_deform_attn.compiled.require", broken)
        ms_deform_attn(*inputs)


def test_no_code_while_exporting_to_onnx(monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert functional._choose("auto", "cpu") == "reference"
