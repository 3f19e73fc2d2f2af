"""What cuts a training short: signals, full disks, broken numbers, a second run; and that it loses nothing by it."""

import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from avs_engine import clips, scoring, step
from avs_engine.checkpoints import complete_checkpoints
from avsbench_robust_dataset.files import only_run_in
from train_accelerate import cli, main

STEPS = 6
KEPT = ("model.safetensors", "last/model.safetensors", "train_log.jsonl")


@pytest.fixture
def train(demo_tree, write_model, tmp_path):
    """train(name, *more): six steps with a validation after the fourth and the last, in tmp_path/name."""
    arguments = ["--subset", "demo", "--data_dir", demo_tree, "--model", write_model(size=32), "--cpu"]
    arguments += ["--batch_size", "2", "--frames_per_clip", "2", "--logging_steps", "1", "--negative_ratio", "0"]
    arguments += ["--recipe", "paper"]
    arguments += ["--validation_clips", "2", "--max_steps", str(STEPS)]

    def train(name, *more):
        main([*arguments, "--output_dir", str(tmp_path / name), *map(str, more)])
        return tmp_path / name

    train.arguments = arguments
    return train


@pytest.fixture
def whole(train):
    """The run that nothing disturbs."""
    return train("whole")


@pytest.fixture
def before_step(monkeypatch):
    """before_step(n, action): `action` is called with the model, before its n-th step."""

    def before_step(number, action):
        train_batch = step.train_batch

        def patched(accelerator, model, optimizer, batch, max_grad_norm, done):
            if done == number - 1:
                action(model)
            return train_batch(accelerator, model, optimizer, batch, max_grad_norm, done)

        monkeypatch.setattr(step, "train_batch", patched)

    yield before_step
    monkeypatch.undo()


def terminate(*_) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def assert_same(run, whole) -> None:
    for name in KEPT:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), f"another {name}"
    hidden = [path.name for path in run.rglob(".*")]
    assert not hidden, "something half written was left"


def names(run) -> list[str]:
    return [checkpoint.name for checkpoint in complete_checkpoints(run / "checkpoints")]


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(train, whole, before_step, monkeypatch, tmp_path, capsys):
    before_step(3, terminate)
    run = train("cut")
    out = capsys.readouterr().out
    assert "Stopped by SIGTERM after step 3" in out and "--resume_from_checkpoint latest" in out
    assert names(run) == ["step_3"] and not (run / "last").exists()
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handler stayed"
    train("cut", "--resume_from_checkpoint", "latest")
    assert_same(run, whole)


@pytest.mark.slow
def test_sigterm_in_a_validation(train, whole, monkeypatch, tmp_path, capsys):
    """The run stops at once and, resumed, validates before it goes on."""

    def evaluate_model(*arguments):
        terminate()
        time.sleep(60)

    monkeypatch.setattr(scoring, "evaluate_model", evaluate_model)
    run = train("cut")
    assert "Stopped by SIGTERM after step 4" in capsys.readouterr().out
    assert (
        names(run) == ["step_4"]
        and json.loads((run / "checkpoints/step_4/trainer_state.json").read_text(encoding="utf-8"))["validates"]
    )
    monkeypatch.undo()
    train("cut", "--resume_from_checkpoint", "latest")
    assert_same(run, whole)


def test_sigterm_before_the_first_step(train, monkeypatch, tmp_path, capsys):
    load_splits = clips.load_splits
    monkeypatch.setattr(clips, "load_splits", lambda *arguments: terminate() or load_splits(*arguments))
    run = train("cut")
    assert "before the first step" in capsys.readouterr().out
    assert not run.exists()


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes(train, start, tmp_path):
    """Both save and end with exit code 0."""
    run = tmp_path / "run"
    more = ["--max_steps", 10000, "--validation_every", 0, "--checkpointing_steps", 2, "--output_dir", run]
    process = start("train_accelerate.py", *train.arguments, *more, processes=2)
    while not names(run) and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]
    process.processes[-1].terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Stopped by SIGTERM after step" in output, output
    newest = complete_checkpoints(run / "checkpoints")[-1]
    assert f"The last complete checkpoint is {newest}" in output


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the launcher", "all processes"])
def test_sigterm_that_does_not_come_to_the_script_alone(whom, train, start, tmp_path):
    """`accelerate launch` passes nothing on; schedulers signal every process, the data loader's workers too."""
    run = tmp_path / "run"
    more = ["--max_steps", 10000, "--validation_every", 0, "--checkpointing_steps", 2, "--output_dir", run]
    launcher = "accelerate" if whom == "the launcher" else None
    process = start("train_accelerate.py", *train.arguments, *more, "--num_workers", 1, launcher=launcher)
    while not names(run) and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]
    script, *workers = psutil.Process(process.pid).children(recursive=True)
    if launcher is None:
        script, workers = psutil.Process(process.pid), [script, *workers]
    assert workers
    for signalled in (process,) if launcher else (script, *workers):
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker may end as soon as the script has its signal
            signalled.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "Stopped by SIGTERM after step" in output, output
    psutil.wait_procs([script], timeout=30)
    assert not script.is_running()
    assert f"The last complete checkpoint is {complete_checkpoints(run / 'checkpoints')[-1]}" in output


@pytest.fixture
def little_space():
    """little_space(bytes): files of this process can grow no further, as on a full disk; without argument: again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def little_space(size=soft):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield little_space
    little_space()


# What does not fit: a checkpoint's weights, its optimizer's state, the best model of the validation after step 4.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "size", "what"),
    [(2, 150_000, "/cut/checkpoints/step_2"), (2, 2_500_000, "/cut/checkpoints/step_2"), (4, 150_000, "/cut")],
)
def test_a_full_disk(step, size, what, train, whole, before_step, little_space, monkeypatch, tmp_path):
    """The error names the file and the checkpoint to go on from; the run that goes on ends with the same bits."""
    sizes = {path.name: path.stat().st_size for path in (whole / "checkpoints/epoch_1").iterdir()}
    assert (size < sizes["model.safetensors"]) == (size == 150_000) and size < sizes["optimizer.bin"], sizes
    before_step(step, lambda model: little_space(size))
    run = tmp_path / "cut"
    match = rf"Expected to write \S*{what}, but .*free space.*checkpoint is .*step_{step - 1}: .*latest"
    with pytest.raises(OSError, match=match):
        train("cut", "--checkpointing_steps", 1)
    little_space()
    monkeypatch.undo()
    assert names(run)[-1] == f"step_{step - 1}"
    hidden = [path.name for path in run.rglob(".*")]
    assert not hidden, "what is half written takes up the space"
    train("cut", "--checkpointing_steps", 1, "--resume_from_checkpoint", "latest")
    assert_same(run, whole)


def test_a_folder_that_cannot_be_written_to(train, tmp_path, unprivileged):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="Not a directory.*file/run"):
        train("file/run")
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(OSError, match="Permission denied.*run"):
        train("run")


@pytest.mark.slow
def test_two_trainings_in_one_folder(train, whole, tmp_path):
    before = {name: (whole / name).read_bytes() for name in KEPT}
    for more in (["--overwrite_output_dir"], ["--resume_from_checkpoint", "latest"]):
        with only_run_in(whole), pytest.raises(OSError, match=f"process {os.getpid()} on .* works there"):
            train("whole", *more)
    assert before == {name: (whole / name).read_bytes() for name in KEPT}

    with only_run_in(tmp_path / "new"), pytest.raises(OSError, match="works there"):
        train("new")  # both began before there was anything in it
    assert not (tmp_path / "new").exists()


def test_on_the_command_line_an_error_is_a_line(train, whole, before_step, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["train_accelerate.py", *train.arguments, "--output_dir", str(whole)])
    with pytest.raises(SystemExit, match="2"):
        cli()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("avs-train: error: Expected an --output_dir without a run")

    more = ["--output_dir", str(tmp_path / "run"), "--checkpointing_steps", "2"]
    monkeypatch.setattr("sys.argv", ["train_accelerate.py", *train.arguments, *more])
    before_step(4, poison)
    with pytest.raises(SystemExit, match="2"):
        cli()
    error = capsys.readouterr().err.partition("avs-train: error: ")[2]
    assert "in the clips" in error and "step_2: repeat the command with --resume_from_checkpoint latest" in error


def poison(model) -> None:
    with torch.no_grad():
        next(parameter for parameter in model.parameters() if parameter.requires_grad)[0] = torch.inf


@pytest.mark.slow
def test_a_loss_that_is_not_finite_keeps_the_checkpoint(train, before_step, tmp_path):
    before_step(4, poison)
    with pytest.raises(FloatingPointError, match=r"step 4, in the clips d\w+ \(positive\), d\w+ \(p") as error:
        train("run", "--checkpointing_steps", 2)
    assert "step_2: repeat the command" in error.value.__notes__[0]
    assert names(tmp_path / "run") == ["step_2"]
    tensors = load_file(tmp_path / "run/checkpoints/step_2/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


BROKEN_IN_ONE_PROCESS = """
import torch
import train_accelerate
from avs_engine import step

train_batch = step.train_batch

def patched(accelerator, model, optimizer, batch, max_grad_norm, done):
    if done == 2 and accelerator.process_index == 1:
        batch["audio_labels"] = batch["audio_labels"] * torch.nan
        print("ONLY HERE", *batch["clips"], sep="|", flush=True)
    return train_batch(accelerator, model, optimizer, batch, max_grad_norm, done)

step.train_batch = patched
train_accelerate.main()
"""


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_of_two_processes(train, start, tmp_path):
    """Both end with the clips' names; before, one waited for the other until it was killed."""
    script = tmp_path / "broken.py"
    script.write_text(BROKEN_IN_ONE_PROCESS)
    arguments = [*train.arguments, "--negative_ratio", "0.3", "--checkpointing_steps", 1]
    process = start(script, *arguments, "--output_dir", tmp_path / "run", processes=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    clips = re.search(r"ONLY HERE\|(.*)", output)[1].split("|")
    said = re.findall(r"FloatingPointError: The loss is nan in step 3, in the clips (.*?)\. Lower", output)
    assert said == [", ".join(clips)] * 2
    assert names(tmp_path / "run") == ["step_1", "step_2"]


@pytest.mark.slow
def test_weights_that_are_not_finite_are_never_saved(train, monkeypatch, tmp_path):
    """The loss of a step is that of the weights before it."""
    train_batch = step.train_batch

    def patched(accelerator, model, *rest):
        losses = train_batch(accelerator, model, *rest)
        if rest[-1] == 3:
            poison(model)
        return losses

    monkeypatch.setattr(step, "train_batch", patched)
    with pytest.raises(FloatingPointError, match=r"not finite after step 4, on the clips d\w+ \(positive\), d\w+ \(p"):
        train("run", "--checkpointing_steps", 2)
    assert names(tmp_path / "run") == ["step_2"]
    assert not (tmp_path / "run/model.safetensors").exists(), "it was validated"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(train, whole, tmp_path):
    again = train("again")
    assert_same(again, whole)
    other = train("other", "--seed", 7)
    assert (other / "last/model.safetensors").read_bytes() != (whole / "last/model.safetensors").read_bytes()


@pytest.mark.slow
def test_auto_goes_on_or_starts(train, whole, before_step, monkeypatch, tmp_path):
    auto = ["--resume_from_checkpoint", "auto"]

    def stop(model):
        raise KeyboardInterrupt

    before_step(2, stop)
    with pytest.raises(KeyboardInterrupt):
        train("run", *auto)  # nothing to go on from
    monkeypatch.undo()
    assert (tmp_path / "run/train_log.jsonl").read_text(encoding="utf-8"), "it ended before its first step"
    before_step(6, stop)
    with pytest.raises(KeyboardInterrupt):
        train("run", *auto)  # a run that has no checkpoint
    monkeypatch.undo()
    assert names(tmp_path / "run") == ["epoch_1"]
    assert_same(train("run", *auto), whole)
    times = {
        name: (tmp_path / "run" / name).stat().st_mtime_ns for name in ("model.safetensors", "checkpoints/step_6")
    }
    assert_same(train("run", *auto), whole)
    for name, before in times.items():
        assert (tmp_path / "run" / name).stat().st_mtime_ns == before, "a run that is over was repeated"

    # a model that is not a run of ours
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    with pytest.raises(ValueError, match="model has config.json"):
        train("model", *auto)


@pytest.mark.slow
def test_auto_replaces_no_run_that_got_further(train, tmp_path):
    """Its checkpoints were removed to make room, or are damaged: the model is there still."""
    run = train("run", "--validation_every", 1)
    shutil.rmtree(run / "last")
    damaged = run / "checkpoints"
    for checkpoint in damaged.iterdir():
        (checkpoint / "optimizer.bin").write_bytes(b"half")
    weights = (run / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="Expected an --output_dir without a run"):
        train("run", "--validation_every", 1, "--resume_from_checkpoint", "auto")
    shutil.rmtree(damaged)
    with pytest.raises(ValueError, match="Expected an --output_dir without a run"):
        train("run", "--validation_every", 1, "--resume_from_checkpoint", "auto")
    assert (run / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_checkpoint_runs_no_code(train, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    newest = max((tmp_path / "run/checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns)

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    assert not list(newest.glob("custom_checkpoint_*"))
    state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl"):
        if not (newest / name).exists() and name != "custom_checkpoint_0.pkl":
            continue
        shutil.copytree(newest, tmp_path / name)
        torch.save(Hostile(), tmp_path / name / name)
        content = (tmp_path / name / name).read_bytes()
        files = state["files"] | {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state | {"files": files}))
        with contextlib.suppress(Exception):  # refused in whatever words: it must not run
            train(f"from_{name}", "--resume_from_checkpoint", tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl"])
def test_a_checkpoint_with_a_flipped_bit(name, train, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before, newest = complete_checkpoints(tmp_path / "run/checkpoints")
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / name).write_bytes(content)
    assert complete_checkpoints(tmp_path / "run/checkpoints") == [before, newest]  # its size is right
    for which in ("latest", newest):
        with pytest.raises(ValueError, match=rf"{newest.name}: {name} is damaged.*Remove this checkpoint"):
            train("run", "--resume_from_checkpoint", which)
    shutil.rmtree(newest)
    assert_same(train("run", "--resume_from_checkpoint", "latest"), whole)


@pytest.mark.slow
def test_going_on_from_an_older_checkpoint(train, whole, tmp_path):
    """In its own folder the newer ones would be taken for the run's newest."""
    before, newest = complete_checkpoints(whole / "checkpoints")
    with pytest.raises(ValueError, match=f"got {before.name}, but {newest.name} came after it.*another --output_dir"):
        train("whole", "--resume_from_checkpoint", before)
    assert complete_checkpoints(whole / "checkpoints") == [before, newest]
    other = train("other", "--resume_from_checkpoint", before)
    assert (other / "last/model.safetensors").read_bytes() == (whole / "last/model.safetensors").read_bytes()


@pytest.mark.slow
def test_no_checkpoint_replaces_a_complete_one(train, whole, before_step, monkeypatch):
    """That of an interrupted validation and the one after it are of the same step."""

    def evaluate_model(*arguments):
        terminate()
        time.sleep(60)

    monkeypatch.setattr(scoring, "evaluate_model", evaluate_model)
    run = train("cut", "--checkpointing_steps", 1)
    assert names(run) == ["step_3", "step_4"]
    monkeypatch.undo()
    there = []
    before_step(5, lambda model: there.extend(names(run)))
    train("cut", "--checkpointing_steps", 1, "--resume_from_checkpoint", "latest")
    assert there == ["step_4", "step_4_again"] and names(run) == ["step_5", "step_6"]
    assert_same(run, whole)


def test_the_run_says_what_it_is(train, tmp_path, capsys):
    run = train("run", "--max_steps", 1)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("run {")]
    state = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))
    assert json.loads(line.removeprefix("run ")).items() <= state.items()
    assert (state["settings"]["seed"], state["settings"]["data_seed"]) == (42, 42)
    assert torch.__version__.startswith(state["versions"]["torch"])
    assert "git_revision" in state
