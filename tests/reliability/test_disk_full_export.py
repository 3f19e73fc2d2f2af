"""`avs-data export` where it cannot write: a sentence, and nothing is lost."""

import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from avsbench_robust_dataset.__main__ import main
from avsbench_robust_dataset.export import export
from avsbench_robust_dataset.synthetic import write_demo


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_demo(folder, sizes={"test": 16}, num_proc=1)
    return folder


@pytest.fixture
def mount(tmp_path):
    """mount(options): a file system in memory of its own; skips where it may not be mounted."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mounted = []

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        if shutil.which("mount") is None:
            pytest.skip("there is no command `mount`")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def command(data, out, *options):
    return ["export", "--subset", "s4", "--data_dir", str(data), "--out", str(out), "--num_proc", "1", *options]


@pytest.mark.slow
def test_disk_full_keeps_what_is_there_and_the_next_run_goes_on(data, mount, tmp_path, capsys):
    folder = mount("size=12m")
    out = folder / "avsbench_robust"
    export("demo", tmp_path / "whole" / "avsbench_robust", data)
    export("s4", tmp_path / "whole" / "avsbench_robust", data)
    whole = contents(tmp_path / "whole" / "avsbench_robust")
    export("demo", out, data)  # 10 MB
    before = contents(out)
    for _ in range(2):
        assert main(command(data, out)) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert (
            f"avs-data export: [Errno 28] No space left on device: {out} could not be written and is as it was before"
            in said
        )
        assert "repeat the same command to go on" in said
        assert contents(out) == before
    [partial] = folder.glob(".avsbench_robust.partial-s4-*")
    finished = {path.name: path.stat().st_ino for path in partial.glob("s4/[!.]*")}
    assert finished
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    assert main(command(data, out)) == 0
    assert contents(out) == whole
    assert {name: (out / "s4" / name).stat().st_ino for name in finished} == finished
    assert not list(folder.glob(".avsbench_robust.partial-*"))


@pytest.mark.slow
@pytest.mark.parametrize("num_proc", [1, 2])
def test_limit_on_file_size(data, tmp_path, capsys, num_proc):
    out = tmp_path / "avsbench_robust"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # a file of two clips has 300 kB and more
    try:
        code = main(command(data, out, "--num_proc", str(num_proc)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert code == 1 and f"{os.strerror(errno.EFBIG)}: {out} could not be written" in said and not out.exists()
    assert main(command(data, out)) == 0 and (out / "README.md").is_file()


def test_read_only_folder(data, mount, capsys):
    folder = mount("size=64m")
    out = folder / "avsbench_robust"
    export("s4", out, data)
    before = contents(out)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for place in (out, folder / "deeper" / "new"):
        assert main(command(data, place, "--seed", "7")) == 1
        said = capsys.readouterr().err
        assert "Expected a place to write to, but: Read-only file system" in said and str(place.parent) in said
    assert contents(out) == before


def test_folder_of_another_user(data, tmp_path, capsys, unprivileged):
    folder = tmp_path / "theirs"
    folder.mkdir()
    folder.chmod(0o555)
    assert main(command(data, folder / "out")) == 1
    said = capsys.readouterr().err
    assert "Expected a place to write to, but: Permission denied" in said and str(folder) in said
    assert list(Path(folder).iterdir()) == []
