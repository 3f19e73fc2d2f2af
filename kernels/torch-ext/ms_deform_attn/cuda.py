"""The CUDA backend: device code compiled by nvcc or by NVRTC, loaded and launched through the driver.

A machine with a GPU needs torch alone, whose CUDA wheels bring NVRTC. The sizes of the levels are in the kernel's
parameters: nothing is copied or waited for, so a CUDA graph can capture launches.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .toolchain import (
    SOURCES,
    BuildError,
    Unavailable,
    cache_directory,
    is_whole,
    locked_folder,
    publish,
    run,
    sources_digest,
)

CUDA_SOURCES = ("cuda_kernels.cuh", "device_body.h")
COMPILE_FLAGS = ("-std=c++17",)
MAX_LEVELS = 64  # kMaxLevels in device_body.h
THREADS = 256  # kThreads in device_body.h
FUNC_ATTRIBUTE_NUM_REGS = 4  # CU_FUNC_ATTRIBUTE_NUM_REGS of cuda.h

OWNED_PIXELS = 16  # kOwnedPixels in device_body.h; a warp owns them

# Lanes in a group and channels in a vector, as in the list at the end of cuda_kernels.cuh.
GROUPS = {
    ("float32", "vector"): (8, 4),
    ("float64", "vector"): (8, 2),
    ("bfloat16", "vector"): (4, 8),
    ("float16", "vector"): (4, 8),
}
GROUPS |= {(dtype, "scalar"): (8, 1) for dtype, _ in GROUPS}
BACKWARD_GROUPS = GROUPS | {("bfloat16", "vector"): (8, 4), ("float16", "vector"): (8, 4)}
KERNEL_NAMES = (
    *(f"{kind}_{dtype}_{access}" for dtype, access in GROUPS for kind in ("forward", "backward")),
    *(f"backward_owners_{dtype}" for dtype, access in GROUPS if access == "vector"),
)
POINTERS = "value locations weights output grad_output grad_value grad_locations grad_weights".split()
SIZES = ("batch", "pixels", "heads", "channels", "queries", "levels", "points", "adds")


class Level(ctypes.Structure):
    _fields_ = [("height", ctypes.c_int), ("width", ctypes.c_int), ("start", ctypes.c_longlong)]


class Params(ctypes.Structure):
    """`Params` of device_body.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_longlong) for name in SIZES),
        ("level", Level * MAX_LEVELS),
    ]


def find_nvcc() -> str | None:
    """nvcc's path: `$CUDACXX`, the path, `$CUDA_HOME`, /usr/local/cuda."""
    places = [os.environ.get("CUDACXX"), "nvcc"]
    places += [str(Path(home) / "bin" / "nvcc") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return next((path for place in places if place and (path := shutil.which(place))), None)


def nvcc_problem(nvcc: str | None) -> str | None:
    """Why nvcc is not used, or None. It has to be of torch's CUDA version: drivers refuse later machine code."""
    if nvcc is None:
        return "nvcc was not found"
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        return f"{nvcc} needs a host compiler, and there is none"
    found = re.search(r"release (\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    expected = (torch.version.cuda or "").split(".")[0]
    if expected and (found is None or found[1] != expected):
        return f"{nvcc} is of CUDA {found[1] if found else 'unknown'} and torch of CUDA {expected}"
    return None


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """The NVRTC library of torch's CUDA version, or `Unavailable`."""
    name = f"libnvrtc.so.{(torch.version.cuda or '13').split('.')[0]}"
    # torch's wheels: nvidia/cu13/lib (CUDA 13) or nvidia/cuda_nvrtc/lib (before), beside torch.
    packages = Path(torch.__file__).parent.parent / "nvidia"
    for place in [*sorted(packages.glob(f"*/lib/{name}")), name]:
        try:
            return ctypes.CDLL(str(place))
        except OSError:
            continue
    raise Unavailable(f"{name} was not found (it comes with torch's CUDA wheels)")


def nvrtc_compile(source: bytes, architecture: str) -> bytes:
    """What NVRTC makes of `source`, which may include device_body.h: a cubin for `sm_XX`, PTX for `compute_XX`."""
    library = nvrtc()
    header = CUDA_SOURCES[1]
    program = ctypes.c_void_p()

    def output_of(kind: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        output = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{kind}")(program, output)
        return output.raw

    status = library.nvrtcCreateProgram(
        ctypes.byref(program),
        source,
        b"kernels.cu",
        1,
        (ctypes.c_char_p * 1)((SOURCES / header).read_bytes()),
        (ctypes.c_char_p * 1)(header.encode()),
    )
    if status != 0:
        raise BuildError(f"NVRTC could not start (status {status})")
    try:
        options = [f"--gpu-architecture={architecture}".encode(), *(flag.encode() for flag in COMPILE_FLAGS)]
        status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if status != 0:
            log = output_of("ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise BuildError(f"NVRTC failed for {architecture} (status {status}):\n{log}")
        return output_of("CUBIN" if architecture.startswith("sm_") else "PTX")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _image_name(architecture: str) -> str:
    return architecture + (".cubin" if architecture.startswith("sm_") else ".ptx")


def _images_folder() -> str:
    return "cuda_" + sources_digest(CUDA_SOURCES, *COMPILE_FLAGS)


def build_cuda_images(folder: Path, architectures: list[str], compiler: str | None = None) -> list[Path]:
    """The images for `architectures` (`sm_90`, or `compute_90` for PTX) in `folder`, built if not there whole.

    `compiler` is `nvcc` or `nvrtc`; without it nvcc where it fits torch, else NVRTC. Raises `Unavailable`.
    """
    images = [folder / _images_folder() / _image_name(architecture) for architecture in architectures]
    if all(is_whole(image) for image in images):
        return images
    nvcc = find_nvcc()
    problem = nvcc_problem(nvcc)
    if compiler == "nvcc" and problem:
        raise Unavailable(problem)
    with locked_folder(folder, _images_folder()) as (target, scratch, log):
        missing = [architecture for architecture in architectures if not is_whole(target / _image_name(architecture))]
        built = [scratch / _image_name(architecture) for architecture in missing]
        if compiler != "nvrtc" and problem is None:
            command = [nvcc, *COMPILE_FLAGS, "-O3", "-x", "cu", str(SOURCES / CUDA_SOURCES[0])]
            kinds = ["-cubin" if image.suffix == ".cubin" else "-ptx" for image in built]
            outputs = [
                [kind, f"-arch={architecture}", "-o", str(image)]
                for kind, architecture, image in zip(kinds, missing, built, strict=True)
            ]
            run([command + output for output in outputs], log)
        else:
            for architecture, image in zip(missing, built, strict=True):
                image.write_bytes(nvrtc_compile((SOURCES / CUDA_SOURCES[0]).read_bytes(), architecture))
        for image in built:
            publish(image, target / image.name)
        return [target / _image_name(architecture) for architecture in architectures]


def supported_architectures() -> list[int]:
    """The architectures NVRTC knows: 75, 80, …"""
    library, count = nvrtc(), ctypes.c_int()
    library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    library.nvrtcGetSupportedArchs(numbers)
    return sorted(numbers)


def image_for(capability: tuple[int, int], folder: Path) -> Path | None:
    """The best whole image in `folder` for a GPU: its own cubin, an earlier one of its generation, or PTX."""
    wanted = capability[0] * 10 + capability[1]
    found = folder / _images_folder()
    cubins = {int(path.stem.removeprefix("sm_")): path for path in found.glob("sm_*.cubin") if is_whole(path)}
    fitting = [number for number in cubins if number // 10 == capability[0] and number <= wanted]
    if fitting:
        return cubins[max(fitting)]
    texts = {int(path.stem.removeprefix("compute_")): path for path in found.glob("compute_*.ptx") if is_whole(path)}
    fitting = [number for number in texts if number <= wanted]
    return texts[max(fitting)] if fitting else None


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise Unavailable(f"the NVIDIA driver's libcuda.so.1 could not be loaded ({error})") from None


def _check(status: int, what: str) -> None:
    if status != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"ms_deform_attn: {what} failed: {(text.value or b'unknown error').decode()} ({status})")


class Kernels:
    """The kernels of `image` on one GPU. Those of `names` are loaded at once, for a CUDA graph to capture them."""

    def __init__(self, device: int, image: bytes, names: Sequence[str] = ()):
        driver = _driver()
        handle = ctypes.c_int()  # the driver counts the devices that CUDA_VISIBLE_DEVICES leaves, as torch does
        _check(driver.cuDeviceGet(ctypes.byref(handle), device), "cuDeviceGet")
        self.context = ctypes.c_void_p()  # torch's own, the primary one
        _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(self.context), handle), "cuDevicePrimaryCtxRetain")
        self.module = ctypes.c_void_p()
        self.functions: dict[str, ctypes.c_void_p] = {}
        with self:
            _check(driver.cuModuleLoadData(ctypes.byref(self.module), image), "cuModuleLoadData")
            for name in names:
                self._load(name)

    def __enter__(self):
        _check(_driver().cuCtxPushCurrent_v2(self.context), "cuCtxPushCurrent")

    def __exit__(self, *exception):
        _check(_driver().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())), "cuCtxPopCurrent")

    def _load(self, name: str) -> None:
        function, registers = ctypes.c_void_p(), ctypes.c_int()
        status = _driver().cuModuleGetFunction(ctypes.byref(function), self.module, name.encode())
        _check(status, f"finding {name}")
        # A handle may be of a kernel that is not loaded yet; asking for its number of registers loads it.
        status = _driver().cuFuncGetAttribute(ctypes.byref(registers), FUNC_ATTRIBUTE_NUM_REGS, function)
        _check(status, f"loading {name}")
        self.functions[name] = function

    def launch(self, name: str, blocks: int, params: ctypes.Structure, stream: int, threads: int = THREADS) -> None:
        if blocks == 0:
            return
        with self:  # whatever device is current in this thread
            if name not in self.functions:
                self._load(name)
            arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
            grid, block, shared = (blocks, 1, 1), (threads, 1, 1), 0
            status = _driver().cuLaunchKernel(
                self.functions[name], *grid, *block, shared, ctypes.c_void_p(stream), arguments, None
            )
            _check(status, f"launching {name}")


@functools.cache
def load(device: int) -> Kernels:
    """The kernels on GPU number `device`, built first if need be; or `Unavailable`."""
    capability = torch.cuda.get_device_capability(device)
    image = image_for(capability, cache_directory())
    if image is None:
        number = capability[0] * 10 + capability[1]
        known = [] if nvcc_problem(find_nvcc()) is None else supported_architectures()
        earlier = [architecture for architecture in known if architecture <= number]
        if known and not earlier:
            raise Unavailable(
                f"the GPU is sm_{number}, and NVRTC of CUDA {torch.version.cuda} begins at sm_{known[0]}"
            )
        exact = not known or number in known
        [image] = build_cuda_images(cache_directory(), [f"sm_{number}" if exact else f"compute_{earlier[-1]}"])
    torch.cuda.init()
    return Kernels(device, image.read_bytes() + b"\0", KERNEL_NAMES)


def require_device() -> None:
    """Raise `Unavailable` unless torch sees a CUDA device."""
    if torch.version.hip is not None:
        raise Unavailable("this torch is built for ROCm; there are CUDA kernels only")
    if torch.version.cuda is None:
        raise Unavailable("this torch is built without CUDA")
    if not torch.cuda.is_available():
        raise Unavailable("no CUDA device is visible")


def require() -> None:
    """Raise `Unavailable` unless the current GPU can run the kernels."""
    require_device()
    load(torch.cuda.current_device())


def variant(value: Tensor, *others: Tensor) -> str:
    """The kernels' suffix: `_vector` where 16-byte accesses fit `value` and what has rows like it, else `_scalar`."""
    name = str(value.dtype).removeprefix("torch.")
    _, pixels, heads, channels = value.shape
    # The vector kernels count the vectors of an image in 32 bits.
    fits = channels % GROUPS[name, "vector"][1] == 0
    fits = fits and pixels * heads * channels // BACKWARD_GROUPS[name, "vector"][1] < 2**32
    fits = fits and all(tensor.data_ptr() % 16 == 0 for tensor in (value, *others))
    return f"{name}_{'vector' if fits else 'scalar'}"


def blocks(params: Params, suffix: str, groups: dict[tuple[str, str], tuple[int, int]] = GROUPS) -> int:
    """`blocks_of` of device_body.h: a block has some consecutive queries of one head."""
    queries = THREADS // groups[tuple(suffix.split("_"))][0]
    return params.batch * -(-params.queries // queries) * params.heads


def owner_blocks(params: Params) -> int:
    """`owner_blocks_of` of device_body.h: a warp for some pixels of each image and head."""
    owners = params.batch * params.heads * -(-params.pixels // OWNED_PIXELS)
    return -(-owners // (THREADS // 32))


def parameters(value: Tensor, sizes: list[int], locations: Tensor, **pointers: Tensor) -> Params:
    """The kernels' parameters for checked, contiguous tensors."""
    levels = len(sizes) // 2
    if levels > MAX_LEVELS:
        raise ValueError(f"Expected `spatial_shapes` to have at most {MAX_LEVELS} levels on CUDA, got {levels}.")
    params = Params(
        value=value.data_ptr(),
        locations=locations.data_ptr(),
        batch=value.shape[0],
        pixels=value.shape[1],
        heads=value.shape[2],
        channels=value.shape[3],
        queries=locations.shape[1],
        levels=levels,
        points=locations.shape[4],
        **{name: tensor.data_ptr() for name, tensor in pointers.items()},
    )
    start = 0
    for level in range(levels):
        height, width = sizes[2 * level : 2 * level + 2]
        params.level[level] = Level(height, width, start)
        start += height * width
    if 2 * levels * params.points >= 2**31:
        raise ValueError(
            f"Expected `sampling_locations` to have fewer than 2**30 points for a query and head on CUDA, got shape "
            f"{tuple(locations.shape)}."
        )
    if params.batch * params.heads * params.queries >= 2**31:
        raise ValueError(
            "Expected `sampling_locations` to have fewer than 2**31 queries times heads in all on CUDA, got "
            f"shape {tuple(locations.shape)}."
        )
    return params


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream


def compiled_forward(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    output = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    if output.numel() == 0:
        return output
    params = parameters(value, sizes, locations, weights=weights, output=output)
    suffix = variant(value, output)
    load(value.device.index).launch(f"forward_{suffix}", blocks(params, suffix), params, _stream(value))
    return output


def compiled_backward(
    grad_output: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor, deterministic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_value = torch.zeros_like(value, dtype=locations.dtype)  # sums are in float32, whatever the values are
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    params = parameters(
        value,
        sizes,
        locations,
        weights=weights,
        grad_output=grad_output,
        grad_value=grad_value,
        grad_locations=grad_locations,
        grad_weights=grad_weights,
    )
    if value.shape[3] == 0:
        return grad_value, grad_locations.zero_(), grad_weights.zero_()
    suffix = variant(value, grad_output, grad_value)
    kernels, stream = load(value.device.index), _stream(value)
    params.adds = not deterministic
    kernels.launch(f"backward_{suffix}", blocks(params, suffix, BACKWARD_GROUPS), params, stream)
    if deterministic:
        kernels.launch(f"backward_owners_{suffix.split('_')[0]}", owner_blocks(params), params, stream)
    return grad_value, grad_locations, grad_weights
