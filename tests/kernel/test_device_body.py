"""The arithmetic of the CUDA and CPU ops in C++: under sanitizers, and the CUDA body run on the host from Python.

What a GPU adds (races, barriers, alignment faults, speed) is not seen here; alignment is, by the sanitizer.
"""

import ctypes
import itertools
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
    for function in (library.host_blocks, library.host_owner_blocks, library.host_size_of_params):
        function.restype = ctypes.c_longlong
    library.host_launch_problem.restype = ctypes.c_char_p
    library.host_fits_vectors.restype = ctypes.c_bool
    return library


@pytest.fixture
def kernels(host, monkeypatch):
    """cuda.py's functions with kernels that run on the host; its list has the names of what was launched."""
    launched = []

    class HostKernels:
        def launch(self, name, blocks, params, stream):
            launched.append(name)
            assert host.host_launch(name.encode(), ctypes.c_longlong(blocks), ctypes.byref(params)) == 0

    monkeypatch.setattr(cuda, "load", lambda device: HostKernels())
    monkeypatch.setattr(cuda, "_stream", lambda tensor: 0)
    return launched


def run_on_host(inputs, grad_output, deterministic=False):
    """Forward and backward of prepared tensors, through cuda.py."""
    value, spatial_shapes, locations, weights = inputs
    prepared = (value, spatial_shapes.flatten().tolist(), locations, weights)
    output = cuda.compiled_forward(*prepared)
    return output, cuda.compiled_backward(grad_output, *prepared, deterministic)


def compare_with_reference(inputs, grad, assert_close, tolerance):
    dtype = grad.dtype
    leaves = [tensor.double().requires_grad_() for tensor in (inputs[0], *inputs[2:])]
    expected = ms_deform_attn(leaves[0], inputs[1], *leaves[1:], backend="reference")
    expected_grads = torch.autograd.grad(expected, leaves, grad.double())
    sums = tolerance[torch.float64 if dtype == torch.float64 else torch.float32][1]
    for deterministic in (False, True):
        output, grads = run_on_host(inputs, grad, deterministic)
        assert_close(output, expected, tolerance[dtype][0])
        for a, b in zip(grads, expected_grads, strict=True):
            assert_close(a, b, sums)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_cuda_body_for_any_shape(data, kernels, make_inputs, assert_close, tolerance):
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
    if data.draw(st.booleans(), label="scalar"):
        # Not at the start of its memory, so that 16 bytes do not fit.
        inputs = (torch.cat([inputs[0].flatten()[:1], inputs[0].flatten()])[1:].view_as(inputs[0]), *inputs[1:])

    compare_with_reference(inputs, grad, assert_close, tolerance)


@pytest.mark.parametrize("dtype", list(NAMES), ids=NAMES.get)
def test_several_blocks_of_the_vector_kernels(dtype, kernels, make_inputs, assert_close, tolerance):
    inputs = make_inputs(dtype, queries=65, heads=2, channels=32, points=4)
    grad = torch.randn(2, 65, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    compare_with_reference(inputs, grad, assert_close, tolerance)
    name = NAMES[dtype]
    assert set(kernels) == {f"forward_{name}_vector", f"backward_{name}_vector", f"backward_owners_{name}"}


def test_a_location_that_is_no_number_reaches_the_output(kernels, make_inputs):
    inputs = make_inputs(channels=32)
    inputs[2][1, 4, 2, 0, 1, 0] = float("nan")
    output, grads = run_on_host(inputs, torch.ones(2, 7, 96))
    assert kernels[0] == "forward_float32_vector"
    output = output.view(2, 7, 3, 32)
    assert output[1, 4, 2].isnan().all()
    output[1, 4, 2] = 0
    assert output.isfinite().all() and grads[0].isfinite().all()


@pytest.mark.parametrize("dtype", list(NAMES), ids=NAMES.get)
def test_any_size_may_be_zero(dtype, kernels, make_inputs, assert_close):
    names = ("batch", "queries", "heads", "channels", "points")
    for *sizes, levels in itertools.product((0, 1, 8), (0, 1, 33), (0, 1, 2), (0, 1, 8), (0, 1, 4), (0, 1, 2)):
        if 0 not in (*sizes, levels):
            continue
        sizes = dict(zip(names, sizes, strict=True))
        inputs = make_inputs(dtype, **sizes, shapes=((2, 3), (1, 1))[:levels])
        grad = torch.ones(sizes["batch"], sizes["queries"], sizes["heads"] * sizes["channels"], dtype=dtype)
        expected = ms_deform_attn(*inputs, backend="reference")
        for deterministic in (False, True):
            output, grads = run_on_host(inputs, grad, deterministic)
            assert_close(output, expected, 0)
            for got, tensor in zip(grads, (inputs[0], *inputs[2:]), strict=True):
                assert got.shape == tensor.shape and not got.any()
    assert set(kernels) <= set(cuda.KERNEL_NAMES)


@pytest.mark.parametrize("suffix", ["_".join(key) for key in cuda.GROUPS])
@pytest.mark.parametrize("batch, heads, queries", [(1, 1, 1), (3, 2, 31), (2, 8, 32), (1, 3, 33), (2, 5, 129)])
def test_the_grid_visits_every_query_once(suffix, batch, heads, queries, host, make_inputs):
    inputs = make_inputs(batch=batch, heads=heads, queries=queries, points=1, shapes=((2, 2),))
    params = cuda.parameters(inputs[0], [2, 2], inputs[2])
    for backward, groups in ((False, cuda.GROUPS), (True, cuda.BACKWARD_GROUPS)):
        counts = torch.zeros(batch * queries * heads, dtype=torch.int32)
        pointer = ctypes.c_void_p(counts.data_ptr())
        assert host.host_visits(suffix.encode(), backward, ctypes.byref(params), pointer) == 0
        assert (counts == 1).all()
        # ... and cuda.py launches as many blocks as the C++ says.
        group = groups[tuple(suffix.split("_"))][0]
        assert cuda.blocks(params, suffix, groups) == host.host_blocks(group, ctypes.byref(params))


@pytest.mark.parametrize("sides", [(1, 1), (4, 4), (17, 1), (28, 28), (0, 0)])
def test_the_owners_have_every_pixel(sides, host, make_inputs):
    shapes = (sides,) if all(sides) else ()
    inputs = make_inputs(batch=3, heads=2, points=1, shapes=shapes)
    params = cuda.parameters(inputs[0], [side for pair in shapes for side in pair], inputs[2])
    assert cuda.owner_blocks(params) == host.host_owner_blocks(ctypes.byref(params))


def test_deterministic_gradients_of_one_order(kernels, make_inputs):
    # All queries meet one pixel, whose gradient is then the sum of float32 numbers in their order.
    value, spatial_shapes, locations, weights = make_inputs(batch=1, queries=70, heads=1, channels=32, points=3)
    locations = torch.full_like(locations, 0.5)
    locations[:, :, :, 0] = torch.tensor([0.5 / 6, 0.5 / 5])  # the centre of pixel (0, 0) of the first level
    grad = torch.randn(1, 70, 32, generator=torch.Generator().manual_seed(1))
    _, grads = run_on_host((value, spatial_shapes, locations, weights), grad, deterministic=True)
    expected = torch.zeros(32)
    for query, point in itertools.product(range(70), range(3)):
        expected += weights[0, query, 0, 0, point] * grad[0, query]
    torch.testing.assert_close(grads[0][0, 0, 0], expected, rtol=0, atol=1e-6)
    assert kernels[-1] == "backward_owners_float32"


def test_the_parameters_have_one_layout(host):
    assert ctypes.sizeof(cuda.Params) == host.host_size_of_params()
    text = (SOURCES / "device_body.h").read_text(encoding="utf-8")
    assert f"kMaxLevels = {cuda.MAX_LEVELS};" in text and f"kThreads = {cuda.THREADS};" in text
    assert f"kOwnerLanes = 32, kOwnedPixels = {cuda.OWNED_PIXELS};" in text
    kernels = (SOURCES / "cuda_kernels.cuh").read_text(encoding="utf-8")
    types = {"float32": "float", "float64": "double", "bfloat16": "BFloat16", "float16": "Float16"}
    for (name, access), forward in cuda.GROUPS.items():
        numbers = ", ".join(map(str, (*forward, *cuda.BACKWARD_GROUPS[name, access])))
        assert f"MSDA_KERNELS({name}_{access}, {types[name]}, {numbers})" in kernels
    # The C++ that launches them has the groups once more.
    launch = (SOURCES / "cuda_launch.cu").read_text(encoding="utf-8")
    for name in types:
        groups = [of[name, "vector"][0] for of in (cuda.GROUPS, cuda.BACKWARD_GROUPS)]
        assert f"MSDA_LIST({name}, {groups[0]}, {groups[1]})" in launch
        assert {of[name, "scalar"][0] for of in (cuda.GROUPS, cuda.BACKWARD_GROUPS)} == {8}


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


def on_meta(dtype, pixels, channels, heads=1):
    return torch.empty(1, pixels, heads, channels, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((torch.float32, 10, 32), "float32_vector"),
        ((torch.float32, 10, 30), "float32_scalar"),
        ((torch.bfloat16, 10, 4), "bfloat16_scalar"),
        ((torch.bfloat16, 10, 8), "bfloat16_vector"),
        ((torch.float64, 10, 2), "float64_vector"),
        # 2**32 vectors of an image are more than the vector kernels count.
        ((torch.float32, 2**30, 16), "float32_scalar"),
        ((torch.float32, 2**30 - 1, 16), "float32_vector"),
        ((torch.bfloat16, 2**30, 16), "bfloat16_scalar"),
        ((torch.bfloat16, 2**30 - 1, 8, 2), "bfloat16_vector"),
        ((torch.float64, 2**30, 4, 2), "float64_scalar"),
        ((torch.float64, 2**30 - 1, 4, 2), "float64_vector"),
    ],
)
def test_vectors_need_whole_channels_and_fit_32_bits(shape, expected, host):
    value = on_meta(*shape)
    assert cuda.variant(value) == expected
    # The C++ route has the same rule.
    params = cuda.Params(pixels=value.shape[1], heads=value.shape[2], channels=value.shape[3])
    assert host.host_fits_vectors(ctypes.byref(params), value.element_size()) == expected.endswith("_vector")


def test_vectors_need_aligned_pointers(host):
    value, memory = torch.zeros(1, 2, 1, 4), torch.zeros(9)
    for shifted, expected in ((memory[:8], "float32_vector"), (memory[1:], "float32_scalar")):
        other = shifted.view(value.shape)
        assert cuda.variant(value, other) == cuda.variant(other, value) == expected
        for name in ("value", "output", "grad_output", "grad_value"):
            params = cuda.Params(pixels=2, heads=1, channels=4, **{name: other.data_ptr()})
            assert host.host_fits_vectors(ctypes.byref(params), 4) == (expected == "float32_vector")


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
    assert host.host_last_owners(b"bfloat16_vector", ctypes.byref(params)) == 0
    torch.testing.assert_close(grad_value[0, -1, -channels:], torch.full((channels,), 1.5), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "grid, expected",
    [
        ((1, 1, 1, 1, 2**30), r"`sampling_locations` to have fewer than 2\*\*30 points"),
        ((1, 1, 1, 2, 2**29), r"`sampling_locations` to have fewer than 2\*\*30 points"),
        ((1, 1, 1, 1, 2**30 - 1), None),
        ((1, 2**31, 1, 1, 1), r"`sampling_locations` to have fewer than 2\*\*31 queries times heads"),
        ((2, 2**20, 2**10, 1, 1), r"`sampling_locations` to have fewer than 2\*\*31 queries times heads"),
        ((1, 2**31 - 1, 1, 1, 1), None),
        ((1, 1, 1, 65, 1), "`spatial_shapes` to have at most 64 levels on CUDA, got 65"),
        ((1, 1, 1, 64, 1), None),
    ],
)
def test_what_a_launch_cannot_count(grid, expected, host):
    batch, queries, heads, levels, points = grid
    value = torch.empty(batch, levels, heads, 1, device="meta")
    locations = torch.empty(*grid, 2, device="meta")
    # The C++ route has the same rule.
    params = cuda.Params(batch=batch, queries=queries, heads=heads, levels=levels, points=points)
    problem = host.host_launch_problem(ctypes.byref(params))
    if expected is None:
        cuda.parameters(value, [1, 1] * levels, locations)
        assert problem is None
        return
    with pytest.raises(ValueError, match=expected):
        cuda.parameters(value, [1, 1] * levels, locations)
    assert problem is not None


class Driver:
    """Stands in for libcuda: says yes to all, and remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *(argument for argument in arguments if isinstance(argument, bytes))))
            return 0

        return call


def test_all_kernels_are_loaded_before_the_first_launch(monkeypatch, tmp_path):
    driver = Driver()
    monkeypatch.setattr(cuda, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    image = tmp_path / "sm_90.cubin"
    image.write_bytes(b"")
    monkeypatch.setattr(cuda, "image_for", lambda capability, folder: image)
    loaded = cuda.load.__wrapped__(0)
    found = [call[1] for call in driver.calls if call[0] == "cuModuleGetFunction"]
    assert sorted(found) == sorted(name.encode() for name in cuda.KERNEL_NAMES)
    assert len([call for call in driver.calls if call[0] == "cuFuncGetAttribute"]) == len(found)
    driver.calls.clear()
    for name in cuda.KERNEL_NAMES:
        loaded.launch(name, 1, cuda.Params(), 0)
    assert {call[0] for call in driver.calls} == {"cuCtxPushCurrent_v2", "cuLaunchKernel", "cuCtxPopCurrent_v2"}
    loaded.launch("another", 1, cuda.Params(), 0)  # of a benchmark, say
    assert ("cuModuleGetFunction", b"another") in driver.calls
