"""Compilers and the cache of what they built: at the first use, or ahead of time (`python -m ms_deform_attn.build`).

A build is named by what it depends on: sources, flags, processor, stable ABI. Beside it lie its size and digest, so
that a file that was cut off is built anew instead of loaded.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from filelock import FileLock

SOURCES = Path(__file__).parent / "csrc"
BUILD_COMMAND = "python -m ms_deform_attn.build"
STABLE_ABI = "0x020a000000000000"  # torch 2.10, the first with everything that binding.cpp uses

CPU_SOURCES = ("binding.cpp", "cpu_plain.cpp", "cpu_avx2.cpp")
CPU_HEADERS = ("cpu_kernels.h", "cpu_kernels_impl.h")
# -O3 unrolls the gathers; -Wno-psabi: 32-byte vectors never cross a library's border here.
LIBRARY = "ms_deform_attn_cpu.so"
COMPILE_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wno-psabi")


class Unavailable(RuntimeError):
    """A backend cannot work here; the message is the reason."""


class BuildError(Unavailable):
    """A compiler was found and failed; the message has its last words and names the file with all of them."""


def find_cxx_compiler() -> str:
    """The path of the C++ compiler: `$CXX`, else the first of c++, g++, clang++ on the path; or `Unavailable`."""
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path is not None:
            return path
    if wanted:
        raise Unavailable(f"no C++ compiler was found: $CXX is {wanted!r}, which is not on the path")
    raise Unavailable("no C++ compiler was found (c++, g++ or clang++ on the path, or $CXX); install g++ or clang")


def cache_directory() -> Path:
    """Where builds are kept: `$MS_DEFORM_ATTN_CACHE`, else ms_deform_attn in `$XDG_CACHE_HOME` or `~/.cache`."""
    if os.environ.get("MS_DEFORM_ATTN_CACHE"):
        return Path(os.environ["MS_DEFORM_ATTN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ms_deform_attn"


@functools.cache
def _temporary_directory(reason: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ms_deform_attn_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warnings.warn(
        f"ms_deform_attn builds into a temporary folder, again in every process: {reason}. Set MS_DEFORM_ATTN_CACHE "
        "to a folder that can be written.",
        stacklevel=2,
    )
    return folder


def _writable(folder: Path) -> Path:
    """`folder`, made if need be; a temporary one where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return _temporary_directory(f"{folder} cannot be written ({error.strerror})")
    return folder


@contextlib.contextmanager
def locked_folder(folder: Path, name: str):
    """Hold the lock on `folder/name`; yield this folder, a scratch folder beside it and the path of a log.

    Of several processes that start at once one builds and the others find what they came for. `folder` is replaced by
    a temporary one where it cannot be written.
    """
    folder = _writable(folder)
    with FileLock(folder / f"{name}.lock"):
        for left_over in folder.glob(f"{name}.build.*"):  # of processes that were killed: we hold the lock
            shutil.rmtree(left_over)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f"{name}.build.") as scratch:
            target = folder / name
            target.mkdir(exist_ok=True)
            yield target, Path(scratch), folder / f"{name}.log"


def run(commands: list[list[str]], log: Path) -> None:
    """Run `commands` side by side, or raise BuildError; their output goes to `log` if one fails."""
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        for command in commands
    ]
    outputs = [process.communicate()[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        if process.returncode != 0:
            log.write_text(
                "\n".join(f"$ {' '.join(command)}\n{text}" for command, text in zip(commands, outputs, strict=True)),
                "utf-8",
            )
            last = "\n".join(output.strip().splitlines()[-20:])
            raise BuildError(
                f"{process.args[0]} failed (exit status {process.returncode}; all of it in {log}):\n{last}"
            )


def _seal(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _size_and_digest(path: Path) -> str:
    data = path.read_bytes()
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}\n"


def is_whole(path: Path) -> bool:
    """Whether a file of the cache is there as it was built: of the size and digest that lie beside it."""
    return path.is_file() and _seal(path).is_file() and _seal(path).read_text() == _size_and_digest(path)


def publish(built: Path, target: Path) -> None:
    """Move a built file into the cache, on the disk before its name is, and its size and digest beside it."""
    seal = _seal(built)
    seal.write_text(_size_and_digest(built))
    for source, destination in ((built, target), (seal, _seal(target))):
        with open(source, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(source, destination)


def sources_digest(names: tuple[str, ...], *flags: str) -> str:
    """A name for what `names` compile to: their contents, the flags, the processor and the system."""
    digest = hashlib.sha256()
    parts = [*names, *((SOURCES / name).read_bytes() for name in names), *flags, platform.machine(), sys.platform]
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def build_cpu_library(folder: Path) -> Path:
    """The path of the CPU library in `folder`, built if it is not there whole; `Unavailable` without a compiler."""
    name = "cpu_" + sources_digest(CPU_SOURCES + CPU_HEADERS, *COMPILE_FLAGS, STABLE_ABI)
    library = folder / name / LIBRARY
    if is_whole(library):
        return library
    if sys.platform == "win32":
        raise Unavailable("the C++ sources need GCC or Clang, and are not built on Windows")
    compiler = find_cxx_compiler()
    with locked_folder(folder, name) as (target, scratch, log):
        if not is_whole(target / LIBRARY):  # another process was not faster
            compile_library(compiler, scratch / LIBRARY, f"ms_deform_attn_{name}", log)
            publish(scratch / LIBRARY, target / LIBRARY)
    return target / LIBRARY


def compile_library(
    compiler: str, library: Path, namespace: str, log: Path, cuda_objects: tuple[str, ...] = ()
) -> None:
    """Compile the C++ sources to `library`, with functions in `torch.ops.{namespace}`; `cuda_objects`, what nvcc made
    of `cuda_launch.cu` and the libraries it needs, add those on CUDA."""
    torch_root = Path(torch.__file__).parent
    flags = [
        *COMPILE_FLAGS,
        "-DMS_DEFORM_ATTN_JIT",
        f"-DTORCH_EXTENSION_NAME={namespace}",
        f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
        f"-I{torch_root / 'include'}",
        *(["-DCUDA_KERNEL"] if cuda_objects else []),
    ]
    objects = {name: str(library.with_name(f"{name}.o")) for name in CPU_SOURCES}
    run([[compiler, *flags, "-c", str(SOURCES / name), "-o", target] for name, target in objects.items()], log)
    # No path to torch's libraries, which are loaded already; the CPU library needs no CUDA build of torch.
    torch_libraries = [f"-L{torch_root / 'lib'}", "-ltorch_cpu", *(["-ltorch_cuda"] if cuda_objects else [])]
    if sys.platform == "darwin":
        torch_libraries.append("-Wl,-undefined,dynamic_lookup")
    run([[compiler, "-shared", "-s", "-o", str(library), *objects.values(), *cuda_objects, *torch_libraries]], log)


def load_cpu_library():
    """The CPU library's functions (a `torch.ops` namespace), built first if need be; or `Unavailable`."""
    library = build_cpu_library(cache_directory())
    try:
        torch.ops.load_library(library)
    except OSError as error:  # built on another system, say, with a later C library, for a folder that both use
        raise Unavailable(
            f"{library} cannot be loaded here ({error}); set MS_DEFORM_ATTN_CACHE to another folder"
        ) from None
    return getattr(torch.ops, f"ms_deform_attn_{library.parent.name}")
