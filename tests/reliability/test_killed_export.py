"""`avs-data export` killed at any moment: what is there is whole, and the next run keeps it and does the rest."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from avsbench_robust_dataset.export import export
from avsbench_robust_dataset.synthetic import write_demo

MAIN = "avsbench_robust_dataset.__main__:main"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three clips as demo and, in the same layout, as s4."""
    folder = tmp_path_factory.mktemp("data")
    write_demo(folder, sizes={"test": 3}, num_proc=1)
    return folder


@pytest.fixture(scope="module")
def earlier(data, tmp_path_factory):
    """An export of two subsets; s4 is to be replaced."""
    folder = tmp_path_factory.mktemp("earlier") / "avsbench_robust"
    export("demo", folder, data)
    export("s4", folder, data, seed=7)
    return folder


@pytest.fixture
def prepare(earlier, tmp_path):
    """prepare(name): a folder that holds the earlier export, and nothing else."""

    def prepare(name):
        shutil.copytree(earlier, tmp_path / name / "avsbench_robust")
        return tmp_path / name

    return prepare


@pytest.fixture
def check(data, earlier, tmp_path):
    before, after = contents(earlier), earlier.parent / "after" / "avsbench_robust"
    if not after.exists():
        shutil.copytree(earlier, after)
        export("s4", after, data)
    after = contents(after)
    assert before.keys() == after.keys() and before != after

    def check(folder, finished):
        out = folder / "avsbench_robust"
        if finished:
            assert contents(out) == after
            assert {path.name for path in folder.iterdir()} == {"avsbench_robust", ".avsbench_robust.lock"}
        elif out.exists():
            assert contents(out) in (before, after)
        else:  # between the two steps of the exchange; the next run takes it up
            assert contents(folder / ".avsbench_robust.old") == before
        for path in folder.glob(".avsbench_robust.partial-*/*/[!.]*"):
            assert path.read_bytes() == after[f"{path.parent.name}/{path.name}"], path

    return check


def arguments_of(data):
    return lambda folder: ["export", "--data_dir", data, "--out", folder / "avsbench_robust", "--num_proc", 1]


@pytest.mark.slow
def test_killed_at_random_moments(data, prepare, check, kill_at_random_moments):
    killed = kill_at_random_moments(MAIN, arguments_of(data), check, prepare)
    assert killed >= 20


def test_killed_at_each_step_of_the_exchange(data, prepare, check, run_command):
    """The earlier folder goes aside and the new one takes its place: there is a moment without either."""

    def killed_before(change):
        folder = prepare(f"killed_before_{change}")
        run = run_command(MAIN, arguments_of(data)(folder), kill_before_change=change)
        assert run.code == -signal.SIGKILL
        check(folder, False)
        out = folder / "avsbench_robust"
        if not out.exists():
            return folder, "missing"
        return folder, "before" if "seed 7" in (out / "README.md").read_text(encoding="utf-8") else "after"

    first, last = 0, run_command(MAIN, arguments_of(data)(prepare("undisturbed"))).changes
    while first < last:  # the first change before which the earlier folder is no longer in its place
        middle = (first + last) // 2
        folder, state = killed_before(middle)
        shutil.rmtree(folder)
        first, last = (middle + 1, last) if state == "before" else (first, middle)
    for change, expected in ((first - 1, "before"), (first, "missing"), (first + 1, "after")):
        folder, state = killed_before(change)
        assert state == expected
        if state == "missing":  # the next run may also be of another subset
            export("demo", folder / "avsbench_robust", data)
            check(folder, False)
        assert run_command(MAIN, arguments_of(data)(folder)).code == 0
        check(folder, True)


def test_finished_files_are_kept(data, prepare, check, run_command):
    folder = prepare("killed")
    run = run_command(MAIN, arguments_of(data)(folder), kill_before_change=25)
    assert run.code == -signal.SIGKILL
    [partial] = folder.glob(".avsbench_robust.partial-s4-*")
    finished = {path.name: path.stat().st_ino for path in partial.glob("s4/[!.]*")}
    assert len(finished) > 10
    run = run_command(MAIN, arguments_of(data)(folder))
    assert "Going on with the export that was interrupted" in run.output
    check(folder, True)
    assert {name: (folder / "avsbench_robust" / "s4" / name).stat().st_ino for name in finished} == finished


@pytest.mark.slow
def test_workers_end_with_their_parent(data, tmp_path):
    """Else they wait for work for ever, and hold memory and open files."""
    out = tmp_path / "out"
    command = ["-m", "avsbench_robust_dataset", "export", "--data_dir", data, "--out", out, "--num_proc", "2"]
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=Path(__file__).resolve().parents[2])
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.partial-*/*/[!.]*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert not alive and not out.exists()
