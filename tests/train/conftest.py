"""A tiny demo tree, a tiny model, and the two scripts: called in this process, or launched as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from avsbench_robust_dataset.synthetic import write_demo

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def hf_cache(tmp_path_factory):
    """The data set is built once for all tests of this folder, in a cache of their own."""
    return tmp_path_factory.mktemp("train_hf_cache")


@pytest.fixture(scope="session")
def demo_tree(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("demo_tree")
    write_demo(folder, seed=3, sizes={"train": 8, "val": 4, "test": 5}, num_proc=1)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model(write_model) -> str:
    """A model with dropout 0.1 and batch norm, frames of 64 pixels."""
    return write_model()


@pytest.fixture(autouse=True)
def isolated(monkeypatch, hf_cache):
    """No $AVSBENCH_DIR, no network, a cache of the tests' own, one thread, and accelerate as in a new process."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hf_cache)
    monkeypatch.delenv("AVSBENCH_DIR", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def environment(hf_cache):
    """Environment of a launched script: one thread a process, the data set built for all tests."""
    return {"HF_DATASETS_CACHE": str(hf_cache), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def start(fork_run, environment, tmp_path):
    """start(script, *arguments, processes=1, launcher=None, **environment): the running script, in an empty folder.

    With `launcher="accelerate"` by a command of its own; without it the processes are forked, as torchrun starts them.
    """
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    runs = []

    def start(script: str, *arguments, processes: int = 1, launcher: str | None = None, **settings):
        words = ["--cpu", *map(str, arguments)]
        if launcher is None:
            log = tmp_path / f"log_{len(runs)}.txt"
            options = {"environment": environment | settings, "processes": processes}
            runs.append(fork_run(ROOT / script, words, log, cwd, **options))
            return runs[-1]
        return subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", str(ROOT / script), *words],
            cwd=cwd,
            env=os.environ | environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    yield start
    for run in runs:
        run.kill()


@pytest.fixture
def launch(start):
    """As `start`, but waits; the output of a run that ended well."""

    def launch(script: str, *arguments, **options) -> str:
        process = start(script, *arguments, **options)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        return output

    return launch
