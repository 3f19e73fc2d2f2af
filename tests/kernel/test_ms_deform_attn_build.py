"""Building: at the first use and ahead of time, by several processes at once, and where it cannot be."""

import importlib.util
import itertools
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch

from ms_deform_attn import build, cuda, toolchain
from ms_deform_attn.toolchain import BuildError, Unavailable

ONE_CALL = """
    import sys, warnings
    import torch
    import ms_deform_attn as package
    inputs = torch.randn(1, 4, 1, 3), [(2, 2)], torch.rand(1, 2, 1, 1, 1, 2), torch.rand(1, 2, 1, 1, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            output = package.ms_deform_attn(*inputs)
    expected = package.ms_deform_attn(*inputs, backend="reference")
    assert torch.allclose(output, expected, atol=1e-6)
    for warning in caught:
        print("warning:", str(warning.message).replace(chr(10), " "))
    print("cpu:", package.backends()["cpu"].replace(chr(10), " "))
"""


@pytest.fixture
def start(fork_run, tmp_path_factory):
    """start(cache, code, **environment): the running code, in a process that has built nothing."""

    def start(cache, code=ONE_CALL, **environment):
        folder = tmp_path_factory.mktemp("process")
        (folder / "code.py").write_text(textwrap.dedent(code))
        settings = {"MS_DEFORM_ATTN_CACHE": str(cache), **environment}
        return fork_run(folder / "code.py", [], folder / "log", folder, settings)

    return start


def finish(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def fake_compiler(folder, script):
    path = folder / "fake_cxx"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def quick_compiler(tmp_path_factory):
    """Makes a script that stands for the compiler: what it links is a copy of the library built before."""
    try:
        library = toolchain.build_cpu_library(toolchain.cache_directory())
    except Unavailable as unavailable:
        pytest.skip(str(unavailable))

    def make(folder, before=""):
        script = f'''{before}
        case "$*" in *-shared*) from={library};; *) from=/dev/null;; esac
        while [ "$1" != -o ]; do shift; done
        cp $from "$2"'''
        return str(fake_compiler(folder, script))

    return make


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_four_processes_at_once_build_once(start, quick_compiler, tmp_path):
    # The compiler notes each run and is slowed down, so that the processes meet.
    compiler = quick_compiler(tmp_path, f"echo run >> {tmp_path}/runs; sleep 1")
    cache = tmp_path / "cache"
    processes = [start(cache, CXX=compiler) for _ in range(4)]
    assert [finish(process) for process in processes] == ["cpu: available\n"] * 4
    runs = len((tmp_path / "runs").read_text(encoding="utf-8").split())
    assert runs == len(toolchain.CPU_SOURCES) + 1  # one compilation each, one link
    lock, library, digest = sorted(files_in(cache), key=len)
    assert library.endswith("/ms_deform_attn_cpu.so") and lock.endswith(".lock")
    assert digest == f"{library}.sha256"


@pytest.mark.parametrize("damage", ["cut off", "another byte", "no digest"])
def test_a_damaged_library_is_built_anew(start, quick_compiler, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("CXX", quick_compiler(tmp_path))
    library = toolchain.build_cpu_library(tmp_path)
    whole = library.read_bytes()
    if damage == "cut off":  # before, every later process died of SIGBUS
        library.write_bytes(whole[: len(whole) // 2])
    elif damage == "another byte":
        library.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        library.with_name(f"{library.name}.sha256").unlink()
    assert not toolchain.is_whole(library)
    if damage == "cut off":  # at a first use
        assert finish(start(tmp_path, CXX=quick_compiler(tmp_path))) == "cpu: available\n"
    else:
        assert build.main(["--backend", "cpu", "--out", str(tmp_path)]) == 0
    assert library.read_bytes() == whole and toolchain.is_whole(library)


def test_a_damaged_image_of_a_gpu_is_not_loaded_but_built_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "nvcc_problem", lambda nvcc: "nvcc was not found")
    monkeypatch.setattr(cuda, "nvrtc_compile", lambda source, architecture: b"code for " + architecture.encode())
    [image] = cuda.build_cuda_images(tmp_path, ["sm_90"])
    assert cuda.image_for((9, 0), tmp_path) == image
    image.write_bytes(b"code")
    assert cuda.image_for((9, 0), tmp_path) is None
    assert cuda.build_cuda_images(tmp_path, ["sm_90"]) == [image]
    assert image.read_bytes() == b"code for sm_90"


def test_a_library_is_on_the_disk_before_its_name(quick_compiler, tmp_path, monkeypatch):
    events = []
    fsync, replace = toolchain.os.fsync, toolchain.os.replace
    monkeypatch.setattr(toolchain.os, "fsync", lambda file: (events.append("fsync"), fsync(file)))
    monkeypatch.setattr(toolchain.os, "replace", lambda *names: (events.append("replace"), replace(*names)))
    monkeypatch.setenv("CXX", quick_compiler(tmp_path))
    toolchain.build_cpu_library(tmp_path)
    assert events == ["fsync", "replace", "fsync", "replace"]


def test_the_first_use_compiles_the_sources(start, cxx, tmp_path):
    assert finish(start(tmp_path, CXX=cxx)) == "cpu: available\n"


def test_a_finished_build_needs_no_compiler_and_no_right_to_write(start, quick_compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", quick_compiler(tmp_path))
    library = toolchain.build_cpu_library(tmp_path)
    monkeypatch.delenv("CXX")
    before = files_in(tmp_path)
    assert finish(start(tmp_path, PATH="", CXX=None)) == "cpu: available\n"
    assert files_in(tmp_path) == before
    assert toolchain.build_cpu_library(tmp_path) == library


def test_without_a_compiler_one_warning_and_the_reference(start, tmp_path):
    lines = finish(start(tmp_path, PATH="", CXX=None)).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "warning: ms_deform_attn uses its slow reference backend for cpu tensors: no C++ compiler"
    )
    assert lines[1].startswith("cpu: no C++ compiler was found (c++, g++ or clang++ on the path, or $CXX)")
    assert files_in(tmp_path) == []


def test_a_compiler_that_is_named_has_to_be_there(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unavailable, match=r"\$CXX is 'no-such-compiler', which is not on the path"):
        toolchain.find_cxx_compiler()


def test_a_compiler_that_fails_is_a_named_reason(start, tmp_path):
    compiler = fake_compiler(tmp_path, "echo 'error: this compiler is broken' >&2; exit 3")
    lines = finish(start(tmp_path / "cache", CXX=str(compiler))).splitlines()
    assert len(lines) == 2  # said once
    assert "error: this compiler is broken" in lines[0] and "exit status 3" in lines[0] and ".log" in lines[0]
    log, lock = sorted(files_in(tmp_path / "cache"))[::-1]
    assert not any(name.endswith(".so") for name in (log, lock))
    [log] = (tmp_path / "cache").glob("*.log")
    assert "this compiler is broken" in log.read_text(encoding="utf-8")

    code = """
        import torch
        from ms_deform_attn import ms_deform_attn
        locations, weights = torch.ones(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1)
        try:
            ms_deform_attn(torch.ones(1, 1, 1, 1), [(1, 1)], locations, weights, backend="cpu")
        except RuntimeError as error:
            print(error)
    """
    message = finish(start(tmp_path / "cache", code, CXX=str(compiler)))
    assert "backend='cpu' cannot work here" in message and "error: this compiler is broken" in message
    assert "python -m ms_deform_attn.build --backend cpu" in message


def test_a_build_that_is_killed_leaves_nothing_to_load(start, quick_compiler, tmp_path):
    # The compilations are done, then death: the next process builds anew, and tidies up.
    (tmp_path / "deadly").mkdir()
    deadly = quick_compiler(tmp_path / "deadly", 'case "$*" in *-shared*) kill -9 $PPID; exit 1;; esac')
    process = start(tmp_path / "cache", CXX=deadly)
    process.communicate()
    assert process.returncode == -9
    assert [path for path in files_in(tmp_path / "cache") if path.endswith(".so")] == []
    assert list((tmp_path / "cache").glob("*.build.*"))
    assert finish(start(tmp_path / "cache", CXX=quick_compiler(tmp_path))) == "cpu: available\n"
    assert not list((tmp_path / "cache").glob("*.build.*"))


def test_a_folder_that_cannot_be_written(start, quick_compiler, tmp_path):
    (tmp_path / "file").write_text("in the way")
    lines = finish(start(tmp_path / "file" / "cache", CXX=quick_compiler(tmp_path))).splitlines()
    assert lines[0].startswith("warning: ms_deform_attn builds into a temporary folder")
    assert "MS_DEFORM_ATTN_CACHE" in lines[0] and lines[1:] == ["cpu: available"]


def test_a_library_that_cannot_be_loaded_is_a_named_reason(tmp_path, cxx, monkeypatch):
    # As where a home folder is shared with a machine that has an earlier C library.
    monkeypatch.setenv("MS_DEFORM_ATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(toolchain, "compile_library", lambda compiler, library, *_: library.write_bytes(b"foreign"))
    with pytest.raises(Unavailable, match=r"ms_deform_attn_cpu.so cannot be loaded here \(.*MS_DEFORM_ATTN_CACHE"):
        toolchain.load_cpu_library()


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("MS_DEFORM_ATTN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert toolchain.cache_directory() == tmp_path / "ms_deform_attn"
    monkeypatch.setenv("MS_DEFORM_ATTN_CACHE", str(tmp_path / "elsewhere"))
    assert toolchain.cache_directory() == tmp_path / "elsewhere"


def test_the_name_of_a_build_follows_sources_and_flags(monkeypatch, tmp_path):
    name = toolchain.sources_digest(toolchain.CPU_SOURCES, "-O3")
    assert name == toolchain.sources_digest(toolchain.CPU_SOURCES, "-O3")
    assert name != toolchain.sources_digest(toolchain.CPU_SOURCES, "-O2")
    copied = shutil.copytree(toolchain.SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(toolchain, "SOURCES", copied)
    assert name == toolchain.sources_digest(toolchain.CPU_SOURCES, "-O3")
    with open(copied / "binding.cpp", "a") as source:
        source.write("// changed\n")
    assert name != toolchain.sources_digest(toolchain.CPU_SOURCES, "-O3")


def test_every_source_is_in_the_name_and_in_the_package():
    named = {*toolchain.CPU_SOURCES, *toolchain.CPU_HEADERS, *cuda.CUDA_SOURCES, "cuda_launch.cu", "cuda_launch.h"}
    assert named == {path.name for path in toolchain.SOURCES.iterdir()}


# --------------------------------------------------------------------------------------------------------- the command


def test_the_command_builds_for_this_machine(quick_compiler, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", quick_compiler(tmp_path))
    assert build.main(["--backend", "cpu", "--out", str(tmp_path)]) == 0
    path = capsys.readouterr().out.strip().removeprefix("cpu: ")
    assert Path(path).is_file() and Path(path).is_relative_to(tmp_path)


def test_the_command_says_what_it_cannot(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.main(["--backend", "cpu", "--out", str(tmp_path)]) == 1
    assert "cpu: not built: no C++ compiler" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert build.main(["--backend", "cuda", "--out", str(tmp_path)]) == 1
        assert "--arch" in capsys.readouterr().err
    assert files_in(tmp_path) == []
    for bad in ("9", "sm_90", "9.0+ptx", "nine"):
        with pytest.raises(SystemExit):
            build.main(["--arch", bad])
        assert f"like 9.0 or 9.0+PTX, got '{bad}'" in capsys.readouterr().err


def test_architectures():
    assert build.parse_architectures(["8.6", "9.0+PTX", "12.0"]) == ["sm_86", "sm_90", "compute_90", "sm_120"]
    assert len(build.parse_architectures(list(build.ARCHITECTURES))) == 6


@pytest.fixture
def nvrtc():
    try:
        return cuda.nvrtc()
    except Unavailable as unavailable:
        pytest.skip(str(unavailable))


def kernels_in(image):
    """Every kernel that cuda.py launches has to be in an image."""
    return all(name.encode() in image for name in cuda.KERNEL_NAMES)


@pytest.mark.slow
def test_nvrtc_compiles_without_nvcc_and_without_a_gpu(nvrtc, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "find_nvcc", lambda: None)
    cubin, ptx = cuda.build_cuda_images(tmp_path, ["sm_90", "compute_80"])
    assert cubin.read_bytes()[:4] == b"\x7fELF" and kernels_in(cubin.read_bytes())
    assert ".target sm_80" in ptx.read_text(errors="replace") and kernels_in(ptx.read_bytes())
    assert b"red.global.add.v4.f32" not in ptx.read_bytes()  # an instruction of sm_90
    assert sorted(re.findall(rb"\.entry (\w+)\(", ptx.read_bytes())) == sorted(map(str.encode, cuda.KERNEL_NAMES))
    stamps = [path.stat().st_mtime_ns for path in (cubin, ptx)]
    assert cuda.build_cuda_images(tmp_path, ["sm_90", "compute_80"]) == [cubin, ptx]
    assert [path.stat().st_mtime_ns for path in (cubin, ptx)] == stamps

    # What a GPU is given: its own, an earlier one of its generation, or PTX.
    assert cuda.image_for((9, 0), tmp_path) == cubin
    assert cuda.image_for((8, 9), tmp_path) == ptx
    assert cuda.image_for((12, 0), tmp_path) == ptx
    assert cuda.image_for((7, 5), tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loads_of_a_point_are_in_flight_together(dtype, nvrtc, tmp_path):
    triton = importlib.util.find_spec("triton")
    program = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump" if triton else tmp_path / "none"
    if not program.is_file():
        pytest.skip("triton, which brings cuobjdump, is not installed")
    [cubin] = cuda.build_cuda_images(tmp_path, ["sm_90"], "nvrtc")
    command = [program, "-sass", "-fun", f"forward_{dtype}_vector", cubin]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    codes = re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\d+ +)?(LDG\.E\.128|FFMA|BRA|BSSY|BSYNC)", text)
    # No sum and no branch between a point's four loads.
    runs = [len(list(run)) for code, run in itertools.groupby(codes) if code == "LDG.E.128"]
    lanes, _ = cuda.GROUPS[dtype, "vector"]
    assert sum(runs) == 4 * lanes and all(run % 4 == 0 for run in runs)


def test_nvrtc_reports_what_the_compiler_says(nvrtc):
    with pytest.raises(BuildError, match=r"(?s)NVRTC failed for sm_90.*kernels\.cu\(1\): error"):
        cuda.nvrtc_compile(b"this is no CUDA", "sm_90")
    assert 90 in cuda.supported_architectures()


@pytest.mark.parametrize("name, kernel", [("design_2020", b"design_2020_backward"), ("floors", b"add_rows")])
def test_the_benchmarks_kernels_compile(name, kernel, nvrtc):
    source = Path(__file__).parents[2] / "kernels" / "benchmarks" / f"{name}.cu"
    assert kernel in cuda.nvrtc_compile(source.read_bytes(), "sm_90")


@pytest.mark.slow
def test_the_command_compiles_for_named_gpus(tmp_path, capsys):
    if problem := cuda.nvcc_problem(cuda.find_nvcc()):
        pytest.skip(problem)
    arguments = ["--backend", "cuda", "--compiler", "nvcc", "--arch", "7.5", "9.0+PTX", "--out", str(tmp_path)]
    assert build.main(arguments) == 0
    paths = [Path(line.removeprefix("cuda: ")) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths] == ["sm_75.cubin", "sm_90.cubin", "compute_90.ptx"]
    assert all(kernels_in(path.read_bytes()) for path in paths)
    assert b"red.global.add.v4.f32" in paths[2].read_bytes()  # four sums in one request


def test_nvcc_of_another_cuda_is_not_used(tmp_path, monkeypatch):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 10.2, V10.2.89'\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "is of CUDA 10 and torch of CUDA 13" in cuda.nvcc_problem(str(nvcc))
    monkeypatch.setattr(cuda, "find_nvcc", lambda: str(nvcc))
    with pytest.raises(Unavailable, match="is of CUDA 10"):
        cuda.build_cuda_images(tmp_path, ["sm_90"], compiler="nvcc")


def test_why_cuda_does_not_work(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match="no CUDA device is visible"):
        cuda.require()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(Unavailable, match="built without CUDA"):
        cuda.require()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(Unavailable, match="ROCm"):
        cuda.require()
