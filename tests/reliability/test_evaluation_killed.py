"""An evaluation that is killed again and again ends with the results of the one that nothing disturbed."""

import os
import signal
import time

import pytest
from PIL import Image

from avsbench_robust_dataset.synthetic import write_demo

ENTRY = "evaluate_accelerate:cli"
CONDITIONS = ("positive", "silence", "noise", "off_screen")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of six clips to score, and the environment whose cache holds it."""
    root = tmp_path_factory.mktemp("killed_evaluation")
    write_demo(root / "data", seed=3, sizes={"train": 2, "val": 2, "test": 6}, num_proc=1)
    return root / "data", {"HF_DATASETS_CACHE": str(root / "cache")}


@pytest.fixture(scope="module")
def of_model(data, write_model):
    model = write_model(size=32)
    return ["--model", model, "--subset", "demo", "--data_dir", data[0], "--cpu", "--batch_size", 2]


@pytest.fixture(scope="module")
def of_predictions(data, tmp_path_factory):
    """Every mask is the ground truth, in each condition."""
    folder = tmp_path_factory.mktemp("predictions")
    for path in (data[0] / "Single-source/s4_data/gt_masks/test").rglob("*.png"):
        for condition in CONDITIONS:
            target = folder / condition / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).convert("1").save(target)
    return ["--predictions", folder, "--subset", "demo", "--data_dir", data[0]]


def names(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def same_files(folder, other) -> None:
    """Every byte; where a run took place and how long it took stands in none of them."""
    assert names(folder) == names(other)
    for name in names(folder):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), f"{folder.name}: another {name}"


@pytest.mark.parametrize("source, moments", [("model", 30), ("predictions", 10)])
def test_a_killed_evaluation_ends_with_the_same_bits(
    source, moments, data, request, tmp_path, run_command, kill_at_random_moments
):
    arguments = [*request.getfixturevalue(f"of_{source}")]
    arguments += ["--save_predictions"] if source == "model" else []
    options = {"environment": data[1]}
    assert run_command(ENTRY, [*arguments, "--output_dir", tmp_path / "first"], **options).code == 0  # fills the cache
    whole = tmp_path / "undisturbed"

    def check(folder, finished):
        if finished:
            same_files(folder, whole)
        for name in ("results.json", "clips.jsonl"):
            if (folder / name).exists():
                assert (folder / name).read_bytes() == (whole / name).read_bytes()
        for path in folder.rglob("[!.]*.png"):
            Image.open(path).load()

    killed = kill_at_random_moments(
        ENTRY,
        lambda folder: [*arguments, "--output_dir", folder],
        check,
        lambda name: tmp_path / name,
        moments=moments,
        **options,
    )
    assert killed > 0.8 * moments


@pytest.fixture
def start(fork_run, data, of_model, tmp_path):
    """start(*options, before=Python code): the evaluation of the model, running, into tmp_path/out."""
    running = []

    def start(*options, before="", arguments=None):
        words = [*(arguments or of_model), "--output_dir", tmp_path / "out", *options]
        log = tmp_path / f"log_{len(running)}.txt"
        running.append(fork_run(ENTRY, words, log, ".", data[1], before=before))
        return running[-1]

    yield start
    for run in running:
        run.kill()


def wait_for(text: str, run) -> None:
    while text not in run.output():
        assert run.poll() is None, f"the run ended without {text!r}:\n{run.output()}"
        time.sleep(0.02)


def end(run) -> tuple[int, str]:
    """Exit code and output."""
    output, _ = run.communicate()
    return run.returncode, output


@pytest.fixture(scope="module")
def whole(data, of_model, fork_run, tmp_path_factory):
    """The evaluation that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    code, output = end(fork_run(ENTRY, [*of_model, "--output_dir", folder / "out"], folder / "log", ".", data[1]))
    assert code == 0, output
    return folder / "out"


SLOW = """
import time, avs_engine.journal
append = avs_engine.journal.Journal.append
def slowly(self, rows):
    append(self, rows)
    print("scored", len(self.rows), flush=True)
    time.sleep({seconds})
avs_engine.journal.Journal.append = slowly
"""

FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))"  # bytes

WITHOUT_PRIVILEGES = """
import ctypes
header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, none) == 0  # root may write where nobody may
"""


def test_sigterm_ends_well_and_the_next_run_goes_on(start, whole, tmp_path):
    run = start(before=SLOW.format(seconds=60))
    wait_for("scored 2", run)
    os.kill(run.pid, signal.SIGTERM)
    code, output = end(run)
    assert code == 0 and "Stopped by SIGTERM" in output and "repeat the command to go on" in output
    code, output = end(start())
    assert code == 0 and "resumed: 2 of 6 clips" in output
    same_files(tmp_path / "out", whole)


def test_two_evaluations_into_one_folder(start, whole, tmp_path):
    first = start(before=SLOW.format(seconds=0.5))
    wait_for("scored 2", first)
    os.kill(first.pid, signal.SIGSTOP)  # until the second has ended
    code, output = end(start("--seed", 43))
    os.kill(first.pid, signal.SIGCONT)
    assert code == 2 and "Traceback" not in output
    assert f"process {first.pid} on" in output and "name another folder" in output
    assert end(first)[0] == 0
    same_files(tmp_path / "out", whole)


@pytest.mark.parametrize("limit", [1_000, 3_000, 12_000])
def test_a_full_disk(limit, start, whole, tmp_path):
    sizes = [(whole / name).stat().st_size for name in ("clips.jsonl", "results.json")]
    assert max(sizes) > 12_000, "the run would not notice"
    code, output = end(start(before=FULL_DISK.format(limit=limit)))
    assert code == 2 and "Traceback" not in output, output
    assert "File too large. Free some room or name another output folder" in output
    assert not (tmp_path / "out/results.json").exists()
    code, output = end(start())
    assert code == 0, output
    same_files(tmp_path / "out", whole)


def test_a_full_disk_keeps_the_results_before(start, tmp_path, of_predictions):
    """An earlier evaluation's files in the folder stay as they are."""
    code, output = end(start(arguments=of_predictions))
    assert code == 0, output
    old = {name: (tmp_path / "out" / name).read_bytes() for name in ("results.json", "clips.jsonl")}
    code, output = end(start("--overwrite_output_dir", before=FULL_DISK.format(limit=5_000)))
    assert code == 2 and "File too large" in output
    assert {name: (tmp_path / "out" / name).read_bytes() for name in old} == old


def test_a_folder_that_cannot_be_written_to(start, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o500)
    code, output = end(start(before=WITHOUT_PRIVILEGES))
    assert code == 2 and "Traceback" not in output, output
    assert "Permission denied. Free some room or name another output folder" in output
    assert not list((tmp_path / "out").iterdir())
