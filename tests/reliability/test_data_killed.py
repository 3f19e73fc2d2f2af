"""Builds, sounds as files, demo trees and audits that are killed, find no room, or run twice at once."""

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avs_engine.audit import main as audit
from avsbench_robust_dataset import SUBSETS
from avsbench_robust_dataset.__main__ import main
from avsbench_robust_dataset.sources import media_files, read_clips

BUILD, DEMO, COMMAND = "data_runs:build", "data_runs:demo", "avsbench_robust_dataset.__main__:main"
AUDIT = "avs_engine.audit:main"
FIND_RUNS = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
NO_ROOM = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, resource.RLIM_INFINITY)); "
ROWS = [(f"clip{number:07d}", ("dog_barking", "race_car", "playing_piano")[number % 3]) for number in range(9)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A download of S4 of nine clips, three in each split."""
    root = tmp_path_factory.mktemp("killed_data")
    table = root / "Single-source/s4_meta_data.csv"
    table.parent.mkdir()
    lines = [f"{name},0,{category},{('train', 'val', 'test')[k // 3]}\n" for k, (name, category) in enumerate(ROWS)]
    table.write_text("name,start,category,split\n" + "".join(lines))
    rng = np.random.default_rng(0)
    for clip in read_clips(SUBSETS["s4"], root):
        frames, masks, wav = media_files(SUBSETS["s4"], root, clip)
        for path in (*frames, *masks, wav):
            path.parent.mkdir(parents=True, exist_ok=True)
        for path in frames:
            Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).save(path)
        for path in masks:
            Image.fromarray(rng.integers(0, 2, (5, 4)) > 0).save(path)
        soundfile.write(wav, rng.integers(-9999, 9999, 80000, dtype=np.int16), 16000)
    return root


@pytest.fixture
def folders(tmp_path):
    def folders(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    return folders


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that is not hidden, no lock, and not of a build that is under way."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix != ".lock"
        and not any(part.startswith(".") or part.endswith(".incomplete") for part in path.relative_to(folder).parts)
    }


@pytest.fixture
def as_undisturbed(tmp_path):
    """A check that what is there is that of the undisturbed run, bit for bit, and all of it in the end."""

    def check(folder: Path, finished: bool) -> None:
        there, whole = contents(folder), contents(tmp_path / "undisturbed")
        assert whole and all(whole[name] == content for name, content in there.items())
        assert not finished or there == whole

    return check


@pytest.mark.parametrize(("num_proc", "moments"), [(1, 30), (2, 2)])
def test_a_killed_build(tree, folders, as_undisturbed, kill_at_random_moments, num_proc, moments):
    def check(folder: Path, finished: bool) -> None:
        as_undisturbed(folder, finished)
        # All of the splits, in so many files each, and the info, or nothing.
        assert finished or len(contents(folder)) in (0, 12 * num_proc + 1)

    killed = kill_at_random_moments(
        BUILD, lambda folder: [tree, folder, num_proc], check, folders, moments, before=FIND_RUNS
    )
    assert killed >= moments / 3


def test_killed_sounds_as_files(tree, folders, as_undisturbed, kill_at_random_moments):
    def arguments(folder: Path) -> list:
        return ["audio", "--subset", "s4", "--data_dir", tree, "--out", folder, "--splits", "test"]

    assert kill_at_random_moments(COMMAND, arguments, as_undisturbed, folders, 10) >= 3


def test_a_killed_demo(folders, as_undisturbed, kill_at_random_moments):
    assert kill_at_random_moments(DEMO, lambda folder: [folder], as_undisturbed, folders, 10, before=FIND_RUNS) >= 3


def test_a_killed_audit_leaves_a_whole_file_or_none(tree, tmp_path, run_command):
    arguments = ["--data_dir", tree, "--json"]
    few = "import avs_engine.audit as audit; audit.RESAMPLES = 20"
    whole = run_command(AUDIT, [*arguments, tmp_path / "whole.json"], before=few)
    assert whole.code == 0, whole.output
    there = []
    for change in range(whole.changes - 4, whole.changes):
        out = tmp_path / f"{change}.json"
        run = run_command(AUDIT, [*arguments, out], before=few, kill_before_change=change)
        assert run.code == -signal.SIGKILL
        there.append(out.exists())
        if not there[-1]:
            assert run_command(AUDIT, [*arguments, out], before=few).code == 0
        assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert there[0] is False, "no run was killed while it wrote"


def test_no_room_for_a_build(tree, tmp_path, run_command):
    arguments = [tree, tmp_path / "cache", 1]
    run = run_command(BUILD, arguments, before=FIND_RUNS + NO_ROOM.format(bytes=5000))
    assert run.code == 1
    assert f"Expected room for the built data set in {tmp_path / 'cache'}, got: File too large." in run.output
    assert contents(tmp_path / "cache") == {}
    assert run_command(BUILD, arguments, before=FIND_RUNS).code == 0


def test_no_room_for_sounds_and_demo(tree, tmp_path, run_command):
    sounds = ["audio", "--data_dir", tree, "--out", tmp_path / "sounds", "--conditions", "silence"]
    run = run_command(COMMAND, sounds, before=NO_ROOM.format(bytes=3000))
    assert run.code == 1 and "avs-data audio: " in run.output and "Traceback" not in run.output
    assert str(tmp_path / "sounds") in run.output
    assert not [path for path in (tmp_path / "sounds").rglob("*") if path.is_file()]
    run = run_command(COMMAND, ["demo", "--out", tmp_path / "demo"], before=NO_ROOM.format(bytes=300))
    assert run.code == 1 and "avs-data demo: " in run.output and "Traceback" not in run.output
    assert not list((tmp_path / "demo").iterdir())


@pytest.mark.parametrize("command", ["audio", "demo", "audit"])
def test_a_folder_that_cannot_be_written_is_named(tree, tmp_path, monkeypatch, capsys, command):
    def mkdir(self, *args, original=Path.mkdir, **kwargs):
        if "read-only" in self.parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        original(self, *args, **kwargs)

    out = tmp_path / "read-only" / "out"
    monkeypatch.setattr(Path, "mkdir", mkdir)
    options = {"audio": ["--out", out], "demo": ["--out", out], "audit": ["--json", out]}[command]
    data = [] if command == "demo" else ["--data_dir", tree]
    run = audit if command == "audit" else lambda options: main([command, *options])
    name = "avs-audit" if command == "audit" else f"avs-data {command}"
    assert run([*map(str, data), *map(str, options)]) == 1
    said = capsys.readouterr().err
    assert f"{name}: " in said and "Permission denied" in said and str(tmp_path / "read-only") in said


def at_once(run_command, entry: str, arguments: list[list]) -> None:
    """Runs a command with each of the argument lists at the same time."""
    with ThreadPoolExecutor(len(arguments)) as threads:
        for run in threads.map(lambda each: run_command(entry, each, before=FIND_RUNS), arguments):
            assert run.code == 0, run.output


def test_two_builds_at_once_into_one_cache(tree, tmp_path, run_command):
    """Of one seed: one builds, the other waits and finds it. Of two: each its own."""
    cache = tmp_path / "cache"
    at_once(run_command, BUILD, [[tree, cache, 1, seed] for seed in (42, 42, 7)])
    expected = {}
    for seed in (42, 7):
        alone = tmp_path / f"alone_{seed}"
        assert run_command(BUILD, [tree, alone, 1, seed], before=FIND_RUNS).code == 0
        expected |= contents(alone)
    assert contents(cache) == expected and len(expected) == 2 * 13


def test_two_demos_at_once(tmp_path, run_command):
    at_once(run_command, DEMO, [[tmp_path / "out"]] * 3)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Single-source"]
    files = [path for path in contents(tmp_path / "out") if "silent_masks" not in str(path)]
    assert len(files) == 1 + 8 * 11  # masks of silent objects come on top, for the clips that show one
