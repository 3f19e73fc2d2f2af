"""What only a GPU shows: streams, graphs, several devices, determinism, alignment."""

import copy

import pytest
import torch

from ms_deform_attn import backends, cuda, ms_deform_attn

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


def test_it_works_here():
    assert backends()["cuda"] == "available"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [1, 5, 8, 32, 40, 64])
@pytest.mark.parametrize("queries", [1, 33, 300])
def test_agrees_with_the_cpu(dtype, channels, queries, make_inputs, assert_close, tolerance):
    results = []
    for device in ("cpu", "cuda"):
        inputs = make_inputs(dtype, channels=channels, queries=queries, device=device, requires_grad=True)
        output = ms_deform_attn(*inputs)
        leaves = (inputs[0], *inputs[2:])
        results.append([output, *torch.autograd.grad(output.float().square().sum(), leaves)])
    for got, expected in zip(results[1], results[0], strict=True):
        assert_close(got.cpu(), expected, 4 * tolerance[dtype][1])


def test_a_cuda_graph(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(channels=32, device="cuda")
    sizes = [tuple(pair) for pair in spatial_shapes.tolist()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ms_deform_attn(value, sizes, locations, weights)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = ms_deform_attn(value, sizes, locations, weights)
    value.copy_(torch.randn_like(value))
    graph.replay()
    torch.testing.assert_close(output, ms_deform_attn(value, sizes, locations, weights))


def test_a_cuda_graph_of_kernels_that_never_ran(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(torch.float16, channels=32, device="cuda")
    sizes = spatial_shapes.flatten().tolist()
    grad = torch.randn(2, 7, 96, device="cuda").half()
    cuda.load.cache_clear()
    assert cuda.load(0).functions.keys() == set(cuda.KERNEL_NAMES)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = torch.ops.ms_deform_attn.backward(grad, value, sizes, locations, weights)
    graph.replay()
    expected = torch.ops.ms_deform_attn.backward(grad, value, sizes, locations, weights)
    for got, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["batch", "queries", "heads", "channels", "points", "shapes"])
def test_any_size_may_be_zero(name, make_inputs):
    inputs = make_inputs(**{name: () if name == "shapes" else 0}, device="cuda", requires_grad=True)
    output = ms_deform_attn(*inputs)
    assert not output.any()
    output.sum().backward()
    assert not any(tensor.grad.any() for tensor in (inputs[0], *inputs[2:]))


def test_shapes_on_the_gpu_are_read_once(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(device="cuda")
    shapes = spatial_shapes.cuda()
    expected = ms_deform_attn(value, shapes, locations, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = ms_deform_attn(value, shapes, locations, weights)
    graph.replay()
    torch.testing.assert_close(output, expected)
    with pytest.raises(RuntimeError, match="while a CUDA graph is captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        ms_deform_attn(value, shapes.clone(), locations, weights)
    shapes[0] = shapes[0].flip(0)  # written to: read again
    flipped = torch.cat([spatial_shapes[:1].flip(1), spatial_shapes[1:]])
    torch.testing.assert_close(
        ms_deform_attn(value, shapes, locations, weights), ms_deform_attn(value, flipped, locations, weights)
    )


def test_runs_on_the_current_stream(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(channels=32, device="cuda")
    expected = ms_deform_attn(value, spatial_shapes, locations, weights)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late = value * 1
        output = ms_deform_attn(late, spatial_shapes, locations, weights)
    side.synchronize()
    torch.testing.assert_close(output, expected)


def test_deterministic_gradients_are_the_same_bits(make_inputs, assert_close):
    inputs = make_inputs(batch=3, queries=400, channels=32, device="cuda", requires_grad=True)
    grad = torch.randn(3, 400, 96, device="cuda")
    plain = torch.autograd.grad(ms_deform_attn(*inputs), inputs[0], grad)[0]
    torch.use_deterministic_algorithms(True)
    try:
        grads = [torch.autograd.grad(ms_deform_attn(*inputs), inputs[0], grad)[0] for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(grads[0], other) for other in grads[1:])
    assert_close(grads[0].cpu(), plain.cpu(), 1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_gpu_than_the_current(make_inputs):
    inputs = make_inputs(device="cuda:1", requires_grad=True)
    with torch.cuda.device(0):
        output = ms_deform_attn(*inputs)
        output.sum().backward()
    assert output.device == inputs[0].grad.device == torch.device("cuda:1")
    torch.testing.assert_close(output.cpu(), ms_deform_attn(*make_inputs()))


def test_tensors_on_two_devices(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(device="cuda")
    with pytest.raises(ValueError, match="`sampling_locations` on the device of `value`, cuda:0, got cpu"):
        ms_deform_attn(value, spatial_shapes, locations.cpu(), weights)


def test_misaligned_values_take_the_scalar_kernel(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(channels=32, device="cuda")
    shifted = torch.empty(value.numel() + 1, device="cuda")[1:].view_as(value).copy_(value)
    assert cuda.variant(shifted) == "float32_scalar"
    got = ms_deform_attn(shifted, spatial_shapes, locations, weights)
    torch.testing.assert_close(got, ms_deform_attn(value, spatial_shapes, locations, weights))


def test_compiles_and_autocasts(make_inputs):
    inputs = make_inputs(device="cuda", requires_grad=True)
    compiled = torch.compile(ms_deform_attn, fullgraph=True, dynamic=True)
    results = []
    for function in (compiled, ms_deform_attn):
        value, spatial_shapes, locations, weights = copy.deepcopy(inputs)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            output = function(value, spatial_shapes, locations, weights)
        assert output.dtype == torch.bfloat16
        output.float().sum().backward()
        results.append([output, value.grad, locations.grad, weights.grad])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_opcheck(make_inputs):
    value, spatial_shapes, locations, weights = make_inputs(device="cuda", requires_grad=True)
    torch.library.opcheck(
        torch.ops.ms_deform_attn.forward.default, (value, spatial_shapes.flatten().tolist(), locations, weights)
    )


def test_nvrtc_and_nvcc_agree(tmp_path, make_inputs, monkeypatch):
    if problem := cuda.nvcc_problem(cuda.find_nvcc()):
        pytest.skip(problem)
    inputs, outputs = make_inputs(channels=32, device="cuda"), []
    major, minor = torch.cuda.get_device_capability()
    for compiler in ("nvcc", "nvrtc"):
        [image] = cuda.build_cuda_images(tmp_path / compiler, [f"sm_{major}{minor}"], compiler)
        kernels = cuda.Kernels(torch.cuda.current_device(), image.read_bytes() + b"\0")
        monkeypatch.setattr(cuda, "load", lambda device, kernels=kernels: kernels)
        outputs.append(ms_deform_attn(*inputs))
    torch.testing.assert_close(*outputs)
