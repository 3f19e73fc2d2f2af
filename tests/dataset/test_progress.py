"""Progress of long work: rate and remaining time, a line a minute where there is no terminal."""

import io
import re

import datasets
import pytest

from avs_engine.audit import main as audit
from avsbench_robust_dataset import progress as module
from avsbench_robust_dataset.__main__ import main
from avsbench_robust_dataset.progress import progress


def test_short_work_says_nothing(capsys):
    assert list(progress("abc", 3, "check train")) == list("abc")
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(module.sys, "stderr", terminal)
    assert list(progress("abc", 3, "check train")) == list("abc")
    assert re.search(r"check train:   0%\|.*0/3 \[00:00<\?, \?clip/s\]", terminal.getvalue())


@pytest.mark.parametrize("command", ["check", "audio", "audit"])
def test_each_long_command_says_how_far_it_is(write_s4, tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr(module, "SECONDS_PER_LINE", 0)
    monkeypatch.setattr("avs_engine.audit.RESAMPLES", 10)
    write_s4(tmp_path / "data")
    options = {"audio": ["--out", str(tmp_path / "out")]}.get(command, [])
    run = audit if command == "audit" else lambda arguments: main([command, *arguments])
    assert run(["--data_dir", str(tmp_path / "data"), *options]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"{command}.*: 100% (\d+)/\1 \[00:0\d<00:00, +[\d.]+(clip/s|s/clip)\]$", last), last


def test_a_build_knows_when_it_ends(write_s4, load, tmp_path, capsys):
    datasets.enable_progress_bars()
    load("s4", write_s4(tmp_path / "data"))
    assert re.search(r"train_positive split: 100%\|.*5/5 \[\d\d:\d\d<00:00, ", capsys.readouterr().err)
