"""A conversion that is killed, or has no room: the folder is whole or not there, and the next run makes it."""

import fcntl
import os
import resource
from pathlib import Path

import pytest
import torch

from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor

FILES = {"config.json", "conversion.json", "model.safetensors", "processor_config.json"}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import tiny_conversion

    monkeypatch.setattr(tiny_conversion.conversion, "AVSegFormerConfig", tiny_conversion.conversion.AVSegFormerConfig)
    for module in (tiny_conversion.conversion, tiny_conversion.original_state_dict):
        monkeypatch.setattr(module, "detect_backbone", module.detect_backbone)
    return tiny_conversion


@pytest.fixture
def original(tiny, tmp_path) -> Path:
    tiny.write_original(tmp_path / "S4.pth")
    return tmp_path / "S4.pth"


@pytest.fixture
def convert(tiny, original):
    """convert(out): the command, in this process."""
    tiny.shrink()
    return lambda out: tiny.conversion.main([str(original), str(out), "--image_size", "64"])


def content(folder: Path) -> dict[str, bytes]:
    """What is made of the checkpoint; the code beside it is a copy of ours."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".py"}


@pytest.mark.slow
def test_killed_at_any_moment(kill_at_random_moments, original, tmp_path):
    undisturbed = {}

    def arguments_of(folder):
        return [original, folder / "out", "--image_size", "64"]

    def check(folder, finished):
        if not undisturbed:
            undisturbed.update(content(folder / "out"))
            assert FILES == undisturbed.keys()
        if finished or (folder / "out").exists():
            assert content(folder / "out") == undisturbed
        if finished:
            assert os.listdir(folder) == ["out"]  # nothing is left of killed runs

    def folders(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    killed = kill_at_random_moments("tiny_conversion:main", arguments_of, check, folders)
    assert killed >= 15  # most runs were really cut short

    model = AVSegFormerForSegmentation.from_pretrained(tmp_path / "undisturbed" / "out")
    state_dict = torch.load(original)
    assert torch.equal(model.model.query_embed.weight, state_dict["module.head.learnable_query.weight"])
    assert AVSegFormerProcessor.from_pretrained(tmp_path / "undisturbed" / "out").image_processor.size["height"] == 64


def test_finished_work_is_kept(convert, tmp_path, capsys):
    convert(tmp_path / "out")
    assert "matched: " in capsys.readouterr().out
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    convert(tmp_path / "out")
    assert "has been converted from" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match="out has content. Name another"):
        convert(tmp_path / "out")


def test_two_at_once_are_refused(convert, tmp_path):
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    other = os.open(partial, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)  # as another process does
    with pytest.raises(SystemExit, match="Expected no other process that converts into .*out"):
        convert(tmp_path / "out")
    os.close(other)
    (partial / "model.safetensors").write_bytes(b"half")
    convert(tmp_path / "out")
    assert FILES == content(tmp_path / "out").keys() and not partial.exists()


def test_full_disk(convert, tmp_path):
    """A limit on the size of files stands for a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SystemExit, match="error: .*[Ff]ile too large"):
            convert(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["S4.pth"]
    convert(tmp_path / "out")


def test_folder_that_cannot_be_written(convert, tmp_path, unprivileged):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(SystemExit, match="error: .*Permission denied.*locked"):
        convert(tmp_path / "locked" / "out")
    assert not list((tmp_path / "locked").iterdir())
