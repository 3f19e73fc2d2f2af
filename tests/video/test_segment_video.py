"""The command `avs-segment`."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV, which reads and writes videos: pip install av")

from modeling_avsegformer.video.segment_video import main

ROOT = Path(__file__).resolve().parents[2]


def test_overlay_and_masks(clip, tiny_model, tmp_path, capsys, read, read_sound):
    path = clip(size=(64, 48), times=[0, 0.04, 0.3, 0.9])
    out, masks = tmp_path / "new" / "out.mp4", tmp_path / "masks.webm"
    assert main([str(path), "-o", str(out), "--masks", str(masks), "--model", tiny_model, "--device", "cpu"]) == 0
    streams = capsys.readouterr()
    assert streams.out.splitlines() == [f"wrote {out}", f"wrote {masks}"]
    assert "clip.mp4: 100%" in streams.err  # the progress bar
    said = r"own sound: \d+\.\d % of the picture marked, similarity [+-]\d\.\d\d\nIts files do not say what it was"
    assert re.search(said, streams.err), streams.err
    np.testing.assert_allclose(read(out)[0], [0, 0.04, 0.3, 0.9], atol=1e-6)
    assert read(out)[1].shape == (4, 48, 64, 3)
    np.testing.assert_array_equal(read_sound(out)[2], read_sound(path)[2])
    assert read(masks, "libvpx-vp9")[1].shape == (4, 48, 64, 4)


@pytest.mark.slow
def test_panels_with_another_sound_in_a_process_of_its_own(clip, tiny_model, tmp_path, read):
    command = [sys.executable, "-m", "modeling_avsegformer.video.segment_video", "clip.mp4", "-o", "panels.mp4"]
    clip(audio=None, seconds=0.3), clip("other.mkv")
    done = subprocess.run(
        [*command, "--conditions", "--audio", "other.mkv", "--model", tiny_model],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "clip.mp4 has no sound; the model hears silence in its place" in done.stderr
    assert read(tmp_path / "panels.mp4")[1].shape == (3, 64, 5 * 64, 3)
    for label in ("own sound (none)", "silence", "noise", "off-screen: other", "unseen: bells"):
        assert f"\n{label}: " in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nobody/nothing"], "Expected a model's folder .* or a Hub id for --model, got 'nobody/nothing'"),
        ([], "Expected --model, a folder or a Hub id, since outputs/demo holds no model. `make demo`"),
        (["--model", "other"], "Expected an AVSegFormer model, but other is a model of type 'bert'"),
        (["--model", "no_processor"], "no_processor"),
    ],
)
def test_a_model_that_is_none_is_said(clip, tiny_model, tmp_path, monkeypatch, capsys, options, message):
    from transformers import AutoConfig, BertConfig

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    BertConfig().save_pretrained("other")
    AutoConfig.from_pretrained(tiny_model).save_pretrained("no_processor")
    before = sorted(path.name for path in tmp_path.iterdir())
    clip()
    assert main(["clip.mp4", "-o", "out.mp4", *options]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("avs-segment:") == 1, error
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "clip.mp4"])


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_said(clip, tiny_model, tmp_path, capsys, device):
    out = tmp_path / "out.mp4"
    assert main([str(clip(seconds=0.2)), "-o", str(out), "--model", tiny_model, "--device", device]) == 2
    assert f"Expected a device of this machine for --device, got '{device}'" in capsys.readouterr().err


def test_the_demos_model_is_the_default(clip, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("outputs/demo/robust_seed0").mkdir(parents=True)
    Path("outputs/demo/robust_seed0/last").symlink_to(tiny_model)
    clip(seconds=0.2)
    assert main(["clip.mp4", "--masks", "masks"]) == 0
    assert sorted(path.name for path in Path("masks").iterdir()) == ["000000.png", "000001.png"]


def test_ctrl_c_leaves_nothing(clip, tiny_model, tmp_path, monkeypatch, capsys):
    from modeling_avsegformer.video import pipeline

    def draw_until_stopped(frame, mask, drawn=[]):  # noqa: B006
        drawn.append(1)
        if len(drawn) == 5:
            signal.raise_signal(signal.SIGINT)
        return frame

    monkeypatch.setattr(pipeline, "draw_overlay", draw_until_stopped)
    path = clip()
    # What a shell starts in the background ignores it.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main([str(path), "-o", str(tmp_path / "o.mp4"), "--masks", str(tmp_path / "m"), "--model", tiny_model])
    finally:
        signal.signal(signal.SIGINT, previous)
    assert code == 130
    assert capsys.readouterr().err.endswith("avs-segment: stopped, nothing was written\n")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_nothing(clip, tiny_model, tmp_path):
    path = clip(seconds=20, size=(320, 240))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "modeling_avsegformer.video.segment_video",
            path,
            "-o",
            "out.mp4",
            "--model",
            tiny_model,
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = ""
    while "| 2" not in seen:  # two frames or more of 200 are done
        seen += process.stderr.read(1)
        assert process.poll() is None, seen
    process.terminate()
    assert process.communicate(timeout=60)[1].endswith("avs-segment: stopped, nothing was written\n")
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to write"),
        (["--masks", "m.webm", "--conditions"], "expected -o panels.mp4 with --conditions"),
    ],
)
def test_a_command_that_writes_nothing_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["clip.mp4", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("missing.mp4", "out.mp4", "missing.mp4 does not exist"),
        ("text.mp4", "out.mp4", "FFmpeg cannot open text.mp4"),
        ("clip.mp4", "out.txt", "Expected a video (.mp4, .m4v, .mov, .mkv, .webm) as output, got out.txt"),
        ("clip.mp4", "clip.mp4", "Expected outputs unlike each other and unlike the video, clip.mp4"),
    ],
)
def test_bad_input_is_one_sentence(clip, tiny_model, tmp_path, monkeypatch, capsys, name, output, message):
    monkeypatch.chdir(tmp_path)
    clip(seconds=0.2)
    Path("text.mp4").write_text("no video")
    assert main([name, "-o", output, "--model", tiny_model]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "text.mp4"]
