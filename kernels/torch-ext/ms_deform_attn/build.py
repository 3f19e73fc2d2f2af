"""Builds the compiled backends ahead of time.

    python -m ms_deform_attn.build                                 # what this machine can build, into the cache
    python -m ms_deform_attn.build --backend cuda --arch 8.0 9.0+PTX --out DIR
    python -m ms_deform_attn.build --hub DIR                       # a Hugging Face kernel, for get_local_kernel

Without it the first use builds the same. Machines that are to use DIR set MS_DEFORM_ATTN_CACHE=DIR; it may be
read-only, and they need no compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from . import cuda
from .toolchain import (
    CPU_HEADERS,
    CPU_SOURCES,
    SOURCES,
    STABLE_ABI,
    Unavailable,
    build_cpu_library,
    cache_directory,
    compile_library,
    find_cxx_compiler,
    run,
    sources_digest,
)

# Turing, Ampere, Hopper, Blackwell in servers and on desks; PTX for what comes later.
ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0", "12.0+PTX")
HUB_NAME = "ms-deform-attn"  # as in build.toml, with the next two
HUB_VERSION = 1
HUB_LICENSE = "Apache-2.0"
HUB_MODULES = ("__init__", "checks", "compiled", "cuda", "functional", "layers", "ops", "reference", "toolchain")


def parse_architectures(names: list[str]) -> list[str]:
    """["9.0+PTX"] -> ["sm_90", "compute_90"]; ValueError for anything that is not like 9.0 or 9.0+PTX."""
    architectures = []
    for name in names:
        match = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", name)
        if match is None:
            raise ValueError(f"Expected `--arch` like 9.0 or 9.0+PTX, got {name!r}.")
        number = match[1] + match[2]
        architectures += [f"sm_{number}", *([f"compute_{number}"] if match[3] else [])]
    return architectures


def visible_architectures() -> list[str]:
    """The visible GPUs' architectures, or `Unavailable` where there is none."""
    if torch.version.cuda is None:
        raise Unavailable("this torch is built without CUDA; name architectures with --arch to build for others")
    if not torch.cuda.is_available():
        raise Unavailable("no CUDA device is visible; name architectures with --arch to build for other machines")
    capabilities = {torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())}
    return [f"sm_{major}{minor}" for major, minor in sorted(capabilities)]


def build_hub_kernel(folder: Path, backend: str, architectures: list[str]) -> Path:
    """Write `folder/build/<variant>`, which `kernels.get_local_kernel(folder)` loads; give its path.

    kernel-builder makes the same of this source, for older systems too. `backend` is `cpu`, or `cuda`, which has the
    CPU functions too; without architectures it is the sources alone, which are compiled at the first use.
    """
    version = f"{int(STABLE_ABI[2:4], 16)}{int(STABLE_ABI[4:6], 16)}"  # 0x020a… -> 210
    toolkit = "cpu" if backend == "cpu" else "cu" + (torch.version.cuda or "").replace(".", "")
    variant = f"torch-stable-abi{version}-{toolkit}-{platform.machine()}-{platform.system().lower()}"
    compiled = backend == "cpu" or bool(architectures)
    if not compiled:
        variant = f"torch-{backend}"
    sources = CPU_SOURCES + CPU_HEADERS + cuda.CUDA_SOURCES + ("cuda_launch.h", "cuda_launch.cu")
    modules = {f"{name}.py": (Path(__file__).parent / f"{name}.py").read_text("utf-8") for name in HUB_MODULES}
    # The namespace of the operators has to differ from that of any other version in the process.
    namespace = f"_ms_deform_attn_{backend}_{sources_digest(sources, variant, *architectures, *modules.values())}"

    builds = folder / "build"
    builds.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=builds, prefix=f".{variant}.") as scratch:
        made = Path(scratch) / variant
        made.mkdir()
        if compiled:
            library = made / f"{namespace}.abi3.so"
            _compile_hub_library(library, namespace, architectures, Path(scratch), builds / f"{variant}.log")
            ops = f'torch.ops.load_library(Path(__file__).with_name("{library.name}"))\nops = torch.ops.{namespace}'
        else:
            shutil.copytree(SOURCES, made / SOURCES.name)
            ops = "ops = None  # the sources are compiled at the first use"
        (made / "_ops.py").write_text(HUB_OPS.format(ops=ops, namespace=namespace))
        for name, text in modules.items():
            (made / name).write_text(text, "utf-8")
        metadata = {
            "id": namespace,
            "name": HUB_NAME,
            "version": HUB_VERSION,
            "license": HUB_LICENSE,
            "python-depends": [],
            "backend": {"type": backend},
        }
        if architectures:
            numbers = [name.split("_")[1] for name in architectures]
            metadata["backend"]["archs"] = [
                f"{number[:-1]}.{number[-1]}" + ("+PTX" if name.startswith("compute") else "")
                for name, number in zip(architectures, numbers, strict=True)
            ]
        (made / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
        if (builds / variant).exists():
            os.replace(builds / variant, Path(scratch) / "old")
        os.replace(made, builds / variant)
    return builds / variant


def _compile_hub_library(library: Path, namespace: str, architectures: list[str], scratch: Path, log: Path) -> None:
    """The CPU functions, and with `architectures` the CUDA functions too."""
    compiler = find_cxx_compiler()
    cuda_objects: tuple[str, ...] = ()
    if architectures:
        nvcc = cuda.find_nvcc()
        if problem := cuda.nvcc_problem(nvcc):
            raise Unavailable(problem)
        codes = [f"-gencode=arch=compute_{name.split('_')[1]},code={name}" for name in architectures]
        target = str(scratch / "cuda_launch.o")
        flags = [*cuda.COMPILE_FLAGS, "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", *codes]
        run([[nvcc, *flags, "-c", str(SOURCES / "cuda_launch.cu"), "-o", target]], log)
        runtime = next((Path(nvcc).resolve().parent.parent).glob("**/libcudart_static.a"), None)
        if runtime is None:
            raise Unavailable(f"libcudart_static.a was not found beside {nvcc}")
        cuda_objects = (target, str(runtime), "-ldl", "-lrt", "-lpthread")
    compile_library(compiler, scratch / library.name, namespace, log, cuda_objects)
    shutil.move(scratch / library.name, library)


HUB_OPS = '''"""Generated by `python -m ms_deform_attn.build --hub`, as kernel-builder generates it."""

from pathlib import Path

import torch

{ops}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{namespace}::{{op_name}}"
'''


def main(arguments: list[str] | None = None) -> int:
    """Build what was asked for and print where it is; 1 if something asked for by name could not be built."""
    parser = argparse.ArgumentParser(prog="python -m ms_deform_attn.build", description=__doc__.split("\n")[0])
    parser.add_argument("--backend", choices=("cpu", "cuda"), action="append", help="default: both, where they can be")
    parser.add_argument("--arch", nargs="+", metavar="X.Y[+PTX]", help="default: the visible GPUs'")
    parser.add_argument(
        "--compiler", choices=("nvcc", "nvrtc"), help="for CUDA; default: nvcc if it fits torch's CUDA"
    )
    parser.add_argument("--out", type=Path, help="folder to build into; default: the cache, %(default)s")
    parser.add_argument("--hub", type=Path, help="write a Hugging Face kernel into this folder instead")
    parser.set_defaults(out=cache_directory())
    options = parser.parse_args(arguments)
    try:
        named = parse_architectures(options.arch) if options.arch else None
    except ValueError as error:
        parser.error(str(error))
    if options.hub and options.compiler == "nvrtc":
        parser.error("Expected `--compiler nvcc` with --hub (its C++ launches the kernels), got 'nvrtc'.")

    failed = False
    wanted = options.backend or (["cuda"] if named else ["cpu", "cuda"])
    for backend in wanted:
        try:
            if options.hub:
                # Compiled CUDA code takes longer and needs nvcc: if asked for. Else it is compiled at the first use.
                default = list(ARCHITECTURES) if options.backend else []
                architectures = named or parse_architectures(default) if backend == "cuda" else []
                paths = [build_hub_kernel(options.hub, backend, architectures)]
            elif backend == "cpu":
                paths = [build_cpu_library(options.out)]
            else:
                paths = cuda.build_cuda_images(options.out, named or visible_architectures(), options.compiler)
        except Unavailable as unavailable:
            print(f"{backend}: not built: {unavailable}", file=sys.stderr)
            failed = failed or options.backend is not None or named is not None or backend == "cpu"
        else:
            for path in paths:
                print(f"{backend}: {path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
