"""The arithmetic of the CUDA and CPU ops in C++: under sanitizers, and the CUDA body run on the host from Python.

What a GPU adds (races, barriers, alignment faults, speed) is not seen here; alignment is, by the sanitizer.
"""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ms_deform_attn import cuda, ms_deform_attn
from ms_deform_attn.toolchain import SOURCES

HERE = Path(__file__).parent
SANITIZERS = ["-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = [
    "-std=c++17",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",
    "-fno-strict-aliasing",
    f"-I{SOURCES}",
    f"-I{HERE}",
]
NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def compile_cxx(cxx, sources, target, flags):
    command = [cxx, *FLAGS, *flags, *(str(source) for source in sources), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in result.stderr and "san" in result.stderr:
        pytest.skip("this compiler has no sanitizer libraries")
    assert result.returncode == 0, result.stderr
    return target


@pytest.mark.slow
@pytest.mark.parametrize("program", ["device_body", "cpu_kernels"])
def test_random_shapes_under_sanitizers(program, cxx, tmp_path):
    sources = [HERE / f"host_{program}.cpp"]
    if program == "cpu_kernels":
        sources += [SOURCES / "cpu_plain.cpp", SOURCES / "cpu_avx2.cpp"]
    built = compile_cxx(cxx, sources, tmp_path / program, [*SANITIZERS, "-DPROGRAM"])
    # Two checks against plain float64 loops: 40 shapes, every kernel.
    result = subprocess.run([built], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stdout + result.stderr


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The CUDA op's body as a library for the host."""
    import shutil

    cxx = shutil.which("g++") or shutil.which("clang++")
    if cxx is None:
        pytest.skip("no C++ compiler (g++ or clang++)")
    target = tmp_path_factory.mktemp("host") / "host_device_body.so"
    library = ctypes.CDLL(str(compile_cxx(cxx, [HERE / "host_device_body.cpp"], target, ["-O1", "-shared", "-fPIC"])))
    library.host_blocks.restype = library.host_size_of_params.restype = ctypes.c_longlong
    return library


def run_on_host(host, inputs, grad_output, suffix, deterministic=False):
    """Forward and backward as cuda.py would launch them."""
    value, spatial_shapes, locations, weights = inputs
    sizes = spatial_shapes.flatten().tolist()
    output = torch.full_like(grad_output, float("nan"))
    grads = [
        torch.zeros_like(value, dtype=locations.dtype),
        torch.full_like(locations, float("nan")),
        torch.full_like(weights, float("nan")),
    ]
    params = cuda.parameters(
        value,
        sizes,
        locations,
        weights=weights,
        output=output,
        grad_output=grad_output,
        grad_value=grads[0],
        grad_locations=grads[1],
        grad_weights=grads[2],
    )
    params.adds = not deterministic
    name = suffix.encode()
    assert host.host_forward(name, ctypes.byref(params)) == 0
    assert host.host_backward(name, ctypes.byref(params)) == 0
    if deterministic:
        assert not grads[0].any()
        assert host.host_owners(name, ctypes.byref(params)) == 0
    return output, grads


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_cuda_body_for_any_shape(data, host, make_inputs, assert_close, tolerance):
    dtype = data.draw(st.sampled_from(list(NAMES)), label="dtype")
    sizes = {name: data.draw(st.integers(1, 3), label=name) for name in ("batch", "heads", "points")}
    sizes["queries"] = data.draw(st.sampled_from([1, 5, 31, 32, 33, 64, 65]), label="queries")
    sizes["channels"] = data.draw(st.sampled_from([1, 3, 4, 8, 24, 32, 40, 64, 72]), label="channels")
    side = st.integers(1, 9)
    sizes["shapes"] = data.draw(st.lists(st.tuples(side, side), min_size=1, max_size=4), label="shapes")
    inputs = make_inputs(dtype, **sizes)
    grad = torch.randn(sizes["batch"], sizes["queries"], sizes["heads"] * sizes["channels"], dtype=torch.float64).to(
        dtype
    )
    suffix = cuda.variant(dtype, sizes["channels"], [])
    if data.draw(st.booleans(), label="scalar"):
        suffix = f"{NAMES[dtype]}_scalar"

    leaves = [tensor.double().requires_grad_() for tensor in (inputs[0], *inputs[2:])]
    expected = ms_deform_attn(leaves[0], inputs[1], *leaves[1:], backend="reference")
    expected_grads = torch.autograd.grad(expected, leaves, grad.double())
    sums = tolerance[torch.float64 if dtype == torch.float64 else torch.float32][1]
    for deterministic in (False, True):
        output, grads = run_on_host(host, inputs, grad, suffix, deterministic)
        assert_close(output, expected, tolerance[dtype][0])
        for a, b in zip(grads, expected_grads, strict=True):
            assert_close(a, b, sums)


def test_a_location_that_is_no_number_reaches_the_output(host, make_inputs):
    inputs = make_inputs(channels=32)
    inputs[2][1, 4, 2, 0, 1, 0] = float("nan")
    output, grads = run_on_host(host, inputs, torch.ones(2, 7, 96), "float32_vector")
    output = output.view(2, 7, 3, 32)
    assert output[1, 4, 2].isnan().all()
    output[1, 4, 2] = 0
    assert output.isfinite().all() and grads[0].isfinite().all()


@pytest.mark.parametrize("suffix", ["_".join(key) for key in cuda.GROUPS])
@pytest.mark.parametrize("batch, heads, queries", [(1, 1, 1), (3, 2, 31), (2, 8, 32), (1, 3, 33), (2, 5, 129)])
def test_the_grid_visits_every_query_once(suffix, batch, heads, queries, host, make_inputs):
    inputs = make_inputs(batch=batch, heads=heads, queries=queries, points=1, shapes=((2, 2),))
    params = cuda.parameters(inputs[0], [2, 2], inputs[2])
    counts = torch.zeros(batch * queries * heads, dtype=torch.int32)
    assert host.host_visits(suffix.encode(), ctypes.byref(params), ctypes.c_void_p(counts.data_ptr())) == 0
    assert (counts == 1).all()
    # ... and cuda.py launches as many blocks as the C++ says.
    group = cuda.GROUPS[tuple(suffix.split("_"))][0]
    assert cuda.blocks(params, suffix) == host.host_blocks(group, ctypes.byref(params))


def test_the_parameters_have_one_layout(host, make_inputs):
    assert ctypes.sizeof(cuda.Params) == host.host_size_of_params()
    text = (SOURCES / "device_body.h").read_text()
    assert f"kMaxLevels = {cuda.MAX_LEVELS};" in text and f"kThreads = {cuda.THREADS};" in text
    kernels = (SOURCES / "cuda_kernels.cuh").read_text()
    types = {"float32": "float", "float64": "double", "bfloat16": "BFloat16", "float16": "Float16"}
    for (name, access), (group, vector) in cuda.GROUPS.items():
        assert f"MSDA_KERNELS({name}_{access}, {types[name]}, {group}, {vector})" in kernels


def test_narrowing_and_widening_are_exact(host):
    # Every float16, and floats around every boundary.
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    wide, number, bits = ctypes.c_float(), ctypes.c_float(), ctypes.c_ushort()
    got = []
    for pattern in range(0, 2**16, 7):
        host.host_from_half(ctypes.byref(ctypes.c_ushort(pattern)), ctypes.byref(wide))
        got.append(wide.value)
    expected = torch.arange(0, 2**16, 7, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    torch.testing.assert_close(torch.tensor(got), expected, rtol=0, atol=0, equal_nan=True)

    finite = halves[halves.isfinite()].float()[::17]
    cases = torch.cat([finite, finite * (1 + 2**-11), finite * (1 + 2**-12), finite * 3e-3, finite * 1e5])
    narrowed = {"half": [], "bfloat16": []}
    for case in cases.tolist():
        number.value = case
        for name, patterns in narrowed.items():
            getattr(host, f"host_to_{name}")(ctypes.byref(number), ctypes.byref(bits))
            patterns.append(bits.value)
    for name, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16)):
        expected = cases.to(dtype).view(torch.int16).to(torch.int32) & 0xFFFF
        assert narrowed[name] == expected.tolist()


def test_vectors_need_whole_and_aligned_channels():
    assert cuda.variant(torch.float32, 32, [16, 32]) == "float32_vector"
    assert cuda.variant(torch.float32, 32, [16, 36]) == "float32_scalar"
    assert cuda.variant(torch.float32, 30, [16]) == "float32_scalar"
    assert cuda.variant(torch.bfloat16, 4, [0]) == "bfloat16_scalar"
    assert cuda.variant(torch.float64, 2, [0]) == "float64_vector"


def test_more_than_2_to_31_elements(host):
    # Memory that is never touched is not there, so only the last block runs: it reads and writes a few pages.
    height, width, heads, channels = 1024, 1025, 2, 1024
    try:
        arrays = [np.zeros((1, height * width, heads * channels), dtype) for dtype in ("i2", "i2", "i2", "f4")]
        points = [np.zeros((1, height * width, heads, 1, 1, last), "f4") for last in (2, 1, 2, 1)]
    except MemoryError:
        pytest.skip("not enough memory for 2**31 numbers")
    value, output, grad_output, grad_value = map(torch.from_numpy, arrays)
    locations, weights, grad_locations, grad_weights = map(torch.from_numpy, points)
    value, output, grad_output = (tensor.view(torch.bfloat16) for tensor in (value, output, grad_output))
    assert value.numel() > 2**31
    value = value.view(1, height * width, heads, channels)
    last = torch.arange(channels) % 7
    value[0, -1, -1] = last.to(torch.bfloat16)
    grad_output[0, -1, -channels:] = 3
    locations[0, -1, -1] = torch.tensor([1 - 0.5 / width, 1 - 0.5 / height])  # the centre of the last pixel
    weights[0, -1, -1] = 0.5
    params = cuda.parameters(
        value,
        [height, width],
        locations,
        weights=weights,
        output=output,
        grad_output=grad_output,
        grad_value=grad_value,
        grad_locations=grad_locations,
        grad_weights=grad_weights,
    )
    params.adds = 1
    assert host.host_last_block(b"bfloat16_vector", ctypes.byref(params)) == 0
    # The coordinates are float32: 1025 pixels of them leave an error of some 1e-4.
    torch.testing.assert_close(output[0, -1, -channels:].float(), 0.5 * last, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(grad_value[0, -1, -channels:], torch.full((channels,), 1.5), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(grad_weights[0, -1, -1].item(), 3.0 * last.sum().item(), rtol=1e-2, atol=0)

    # The deterministic way walks over all queries: so it gets the last three only.
    grad_value = torch.from_numpy(np.zeros(arrays[3].shape, "f4"))
    ends = [tensor[:, -3:].contiguous() for tensor in (locations, weights, grad_output)]
    pointers = {"weights": ends[1], "grad_output": ends[2], "grad_value": grad_value}
    params = cuda.parameters(value, [height, width], ends[0], **pointers)
    assert host.host_owners(b"bfloat16_vector", ctypes.byref(params)) == 0
    torch.testing.assert_close(grad_value[0, -1, -channels:], torch.full((channels,), 1.5), rtol=1e-2, atol=1e-2)


def test_what_a_launch_cannot_count(make_inputs):
    value = torch.empty(1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"`sampling_locations` to have fewer than 2\*\*30 points"):
        cuda.parameters(value, [1, 1], torch.empty(1, 1, 1, 1, 2**30, 2, device="meta"))
    with pytest.raises(ValueError, match=r"`sampling_locations` to have fewer than 2\*\*31 queries times heads"):
        cuda.parameters(value, [1, 1], torch.empty(1, 2**31, 1, 1, 1, 2, device="meta"))


def test_too_many_levels_for_the_kernel_parameters(make_inputs):
    value, _, locations, _ = make_inputs(heads=1, points=1, shapes=((1, 1),) * 65)
    with pytest.raises(ValueError, match="`spatial_shapes` to have at most 64 levels on CUDA, got 65"):
        cuda.parameters(value, [1, 1] * 65, locations)
