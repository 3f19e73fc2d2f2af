"""The trainer, launched as a user does where processes matter, else called."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import evaluate_accelerate
from avs_engine import clips
from avs_engine.clips import load_splits
from avs_engine.models import build_model
from avs_engine.training_arguments import parse_args
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor
from train_accelerate import main


@pytest.fixture
def tiny(demo_tree, tiny_model):
    """Arguments of a tiny run: 8 clips, 2 at a time."""
    arguments = ["--subset", "demo", "--data_dir", demo_tree, "--model", tiny_model]
    arguments += ["--batch_size", "2", "--frames_per_clip", "2", "--logging_steps", "1"]
    return [*arguments, "--recipe", "paper"]


def train(arguments, output_dir: Path, *more) -> list[dict]:
    """Trains in this process; the lines of the log."""
    main([*map(str, arguments), "--cpu", "--output_dir", str(output_dir), *map(str, more)])
    return log_of(output_dir)


def log_of(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_bits(first: Path, second: Path) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def validation_of(folder: Path, step: int) -> dict[str, float]:
    (scores,) = [line["validation"] for line in log_of(folder) if "validation" in line and line["step"] == step]
    return scores


def evaluated(folder: Path, tiny: list[str]) -> dict[str, float]:
    """The validation scores that the evaluator finds for a trained folder."""
    arguments = ["--cpu", "--model", str(folder), "--split", "validation", *tiny[:4]]
    conditions = ["--conditions", "positive", "silence", "off_screen"]
    evaluate_accelerate.main([*arguments, *conditions, "--output_dir", str(folder / "eval")])
    return json.loads((folder / "eval/results.json").read_text(encoding="utf-8"))["scores"]


# 8 positive and 5 negative items: 7 batches of 2, steps of 2 batches and a last one of 1, in one process.
HARD = (
    "--epochs 3 --negative_ratio 0.4 --augment --lr_scheduler onecycle --max_grad_norm 1 "
    "--gradient_accumulation_steps 2 --freeze_backbone_epochs 1 --checkpointing_steps 1 --keep_checkpoints 0 "
    "--num_workers 1"
).split()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kill_after"), [(1, 6), (2, 3)])
def test_a_killed_run_resumes_bit_for_bit(processes, kill_after, tiny, tmp_path, start, launch):
    """With dropout, batch norm, accumulation, clipping, flips, a schedule, unfreezing and a worker process."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    output = launch("train_accelerate.py", *tiny, *HARD, "--output_dir", whole, processes=processes)
    assert f"in {processes} process(es)" in output

    process = start("train_accelerate.py", *tiny, *HARD, "--output_dir", cut, processes=processes)
    checkpoint = cut / f"checkpoints/step_{kill_after}"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[0]
    process.kill()
    assert not (cut / "last").exists(), "the run was over before it was killed"
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["batches_done"] > 0 and state["epoch"] == 1, "not in mid-epoch"
    # Whatever came after that checkpoint, the run goes on from it, beside a newer one that was never finished.
    for later in (cut / "checkpoints").glob("step_*"):
        if int(later.name.removeprefix("step_")) > kill_after:
            shutil.rmtree(later)
    shutil.copytree(checkpoint, cut / "checkpoints/step_99")
    (cut / "checkpoints/step_99/optimizer.bin").write_bytes(b"half")
    shutil.copytree(checkpoint, cut / "checkpoints/.step_98")

    resume = ["--output_dir", cut, "--resume_from_checkpoint", "latest"]
    # another number of threads, which the checkpoint knows better
    output = launch("train_accelerate.py", *tiny, *HARD, *resume, processes=processes, OMP_NUM_THREADS="2")
    assert f"step_{kill_after}: epoch 1, step {kill_after}" in output
    assert same_bits(whole / "last", cut / "last")
    assert same_bits(whole, cut), "another best model"
    assert (whole / "train_log.jsonl").read_text(encoding="utf-8") == (cut / "train_log.jsonl").read_text(
        encoding="utf-8"
    )
    assert not (cut / "checkpoints/.step_98").exists()
    assert not same_bits(whole / "last", whole / "checkpoints/step_1"), "nothing was learned"

    # The processes validated one model, the saved one, though each has batch norm statistics of its own.
    best = json.loads((whole / "trainer_state.json").read_text(encoding="utf-8"))["best"]
    assert evaluated(whole, tiny) == pytest.approx(validation_of(whole, best["step"]), abs=1e-6)


def test_two_processes_train_as_one_with_the_double_batch(demo_tree, write_model, tmp_path, launch):
    """The backbone is frozen in the first of two epochs: both halves must be averaged over the processes.

    No dropout and no batch norm, whose statistics are of a process. Half of the items are negative: processes have
    different numbers of masks that are not empty, over which the dice part of the loss is a mean.
    """
    model = write_model("test_convnext", dropout=0.0)
    arguments = ["--subset", "demo", "--data_dir", demo_tree, "--model", model, "--negative_ratio", "0.5"]
    arguments += ["--epochs", "2", "--freeze_backbone_epochs", "1", "--logging_steps", "1", "--learning_rate", "2e-5"]
    one = train(arguments, tmp_path / "one", "--batch_size", "4", "--keep_checkpoints", "0")
    both = ["--batch_size", "2", "--output_dir", tmp_path / "two"]
    output = launch("train_accelerate.py", *arguments, *both, processes=2)
    assert "in 2 process(es)" in output
    two = log_of(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    for ours, theirs in zip(one, two, strict=True):
        if "loss" in ours:
            # 7e-8 measured, over all eight steps. With a larger rate Adam, whose steps are as long where a gradient is
            # nothing but rounding, makes it grow: 2e-3 at 0.003.
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-6)
    new, old = weights(tmp_path / "one/last"), weights(Path(model))
    first = weights(tmp_path / "one/checkpoints/epoch_1")
    backbone = [name for name in new if name.startswith("model.backbone.")]
    assert backbone and all(torch.equal(first[name], old[name]) for name in backbone), "it was not frozen"
    assert not all(torch.equal(new[name], old[name]) for name in backbone), "it was never unfrozen"
    two_weights = weights(tmp_path / "two/last")
    # Adam's steps are as long where the gradient is nothing but rounding: compare means (0.03 measured; 1.0 without
    # the averaging).
    difference = torch.cat([(two_weights[name] - new[name]).abs().flatten() for name in backbone]).mean()
    change = torch.cat([(new[name] - old[name]).abs().flatten() for name in backbone]).mean()
    assert difference < 0.2 * change


def test_a_run_from_end_to_end(tiny, tmp_path, capsys):
    lines = train(tiny, tmp_path, "--epochs", "2", "--negative_ratio", "0.2", "--learning_rate", "0.003")
    steps = [line for line in lines if "loss" in line]
    validations = [line["validation"] for line in lines if "validation" in line]
    assert [(line["step"], line["epoch"]) for line in steps] == [(s, s > 5) for s in range(1, 11)]
    assert sum(line["negatives"] for line in steps) == 2 * 2  # 8 * 0.2 / 0.8 an epoch
    for line in steps:
        parts = line["loss_mask"] + 0.1 * line["loss_mix"] + line["loss_similarity"]  # the configuration's weights
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
        assert line["lr"] == 0.003
    assert len(validations) == 2
    assert {"miou_positive", "miou_silence", "miou_off_screen", "g_miou"} <= validations[0].keys()
    assert "miou_noise" not in validations[0], "noise is held out of model selection"

    # The folder is the model of the best validation, and the evaluator agrees about it.
    best = max(range(2), key=lambda i: validations[i]["g_miou"])
    state = json.loads((tmp_path / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["best"] == {"g_miou": validations[best]["g_miou"], "epoch": best, "step": 5 * (best + 1)}
    AVSegFormerForSegmentation.from_pretrained(tmp_path)
    assert AVSegFormerProcessor.from_pretrained(tmp_path).image_processor.size["height"] == 64
    assert same_bits(tmp_path / "last", tmp_path) == (best == 1)
    out = capsys.readouterr().out
    assert str(tmp_path / "last") in out and "in 1 process(es)" in out
    assert evaluated(tmp_path, tiny) == pytest.approx(validations[best], abs=1e-6)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["epoch_1", "epoch_2"]
    hidden = [path.name for path in tmp_path.rglob(".*")]
    assert not hidden, "something was left half written"


@pytest.mark.slow
def test_learning_and_the_baseline(tiny, tmp_path):
    """On positive clips only the loss falls, and the validation is the same as with negatives: runs are comparable."""
    lines = train(tiny, tmp_path, "--epochs", "6", "--negative_ratio", "0", "--learning_rate", "0.005")
    losses = [line["loss_mask"] for line in lines if "loss" in line]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    assert all(line["negatives"] == 0 for line in lines if "loss" in line)
    assert {"g_miou_silence", "g_miou_off_screen"} <= lines[-1]["validation"].keys()


def test_noise_on_request(tiny, tmp_path, capsys):
    extra = ["--max_steps", "1", "--negative_ratio", "0.5", "--negative_conditions", "noise"]
    lines = train(tiny, tmp_path, *extra, "--validation_clips", "2")
    assert "not a held-out condition" in capsys.readouterr().out
    assert lines[-1]["validation"].keys() >= {"miou_noise", "g_miou_noise"}
    assert lines[-1]["validation"]["clips_noise"] == 2
    assert "miou_silence" not in lines[-1]["validation"]


def test_one_mask_a_clip(tiny, tmp_path, monkeypatch):
    """S4's training clips have one mask: the same path, with K = 1."""

    def one_mask(*arguments):
        loaded = load_splits(*arguments)
        if arguments[3] != "train":
            return loaded
        return {name: split.map(lambda clip: {"masks": clip["masks"][:1]}) for name, split in loaded.items()}

    shapes = []
    forward = AVSegFormerForSegmentation.forward

    def spy(self, *args, **kwargs):
        if "labels" in kwargs:
            shapes.append((tuple(kwargs["pixel_values"].shape[:2]), tuple(kwargs["labels"].shape)))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(clips, "load_splits", one_mask)
    monkeypatch.setattr(AVSegFormerForSegmentation, "forward", spy)
    train(tiny, tmp_path, "--max_steps", "2", "--negative_ratio", "0.5", "--validation_every", "0")
    assert shapes == [((2, 2), (2, 1, 64, 64))] * 2
    assert (tmp_path / "model.safetensors").is_file(), "no model without a validation"


@pytest.mark.slow
def test_an_audio_encoder_that_learns(tiny, write_model, tmp_path):
    model = write_model(freeze_audio_encoder=False)
    arguments = [*tiny, "--model", model]
    train(arguments, tmp_path, "--max_steps", "2")
    old, new = weights(Path(model)), weights(tmp_path / "last")
    encoder = [name for name in old if name.startswith("model.audio_encoder.")]
    assert encoder and not all(torch.equal(old[name], new[name]) for name in encoder)


def test_a_frozen_audio_encoder_does_not(tiny, tiny_model, tmp_path):
    train(tiny, tmp_path, "--max_steps", "2", "--validation_every", "0")
    old, new = weights(Path(tiny_model)), weights(tmp_path / "last")
    assert all(torch.equal(old[name], new[name]) for name in old if name.startswith("model.audio_encoder."))
    assert not all(torch.equal(old[name], new[name]) for name in old)


def test_loss_settings(tiny, tmp_path):
    losses = ["--loss_type", "bce", "--mix_weight", "0.5", "--mask_weight", "2", "--similarity_weight", "0.25"]
    (step,) = train(tiny, tmp_path, "--max_steps", "1", "--image_size", "32", "--validation_every", "0", *losses)
    parts = 2 * step["loss_mask"] + 0.5 * step["loss_mix"] + 0.25 * step["loss_similarity"]
    assert step["loss"] == pytest.approx(parts, rel=1e-5)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["loss_type"], config["mix_weight"], config["bce_weight"]) == ("bce", 0.5, 5.0)
    processor = AVSegFormerProcessor.from_pretrained(tmp_path)
    assert dict(processor.image_processor.size) == {"height": 32, "width": 32}


def test_a_new_model(tmp_path):
    args = parse_args(
        ["--subset", "s4", "--backbone", "test_resnet", "--output_dir", str(tmp_path), "--image_size", "96"]
        + ["--random_backbone", "--random_vggish"]
    )
    model, processor, _ = build_model(args, load_weights=True)
    assert model.config.backbone == "test_resnet" and model.config.num_queries == 300
    assert dict(processor.image_processor.size) == {"height": 96, "width": 96}


@pytest.mark.slow
def test_learning_rate_schedules(tiny, tmp_path):
    common = ["--max_steps", "4", "--learning_rate", "0.01", "--validation_every", "0"]
    rates = {}
    for name, more in {
        "constant": [],
        "constant with warmup": ["--warmup_steps", "2"],
        "linear": ["--lr_scheduler", "linear"],
        "onecycle": ["--lr_scheduler", "onecycle", "--warmup_steps", "1"],
    }.items():
        lines = train(tiny, tmp_path / name, *common, *more)
        rates[name] = [line["lr"] for line in lines]
    assert rates["constant"] == [0.01] * 4
    assert rates["constant with warmup"] == pytest.approx([0, 0.005, 0.01, 0.01])
    assert rates["linear"] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    # from 1/25 of the maximum, up within one step, then down to the half cosine's values
    assert rates["onecycle"][0] == pytest.approx(0.01 / 25)
    assert max(rates["onecycle"]) == pytest.approx(0.01)
    assert rates["onecycle"][-1] < 0.003


@pytest.mark.slow
def test_a_constant_rate_run_may_be_extended(tiny, tmp_path):
    """Five steps and, resumed, five more are ten: also over the end of an epoch, with checkpoints in both styles."""
    common = ["--validation_every", "0", "--keep_checkpoints", "0"]
    train(tiny, tmp_path / "whole", "--max_steps", "10", *common)
    train(tiny, tmp_path / "parts", "--max_steps", "3", *common)
    train(tiny, tmp_path / "parts", "--max_steps", "10", *common, "--resume_from_checkpoint", "latest")
    assert same_bits(tmp_path / "whole/last", tmp_path / "parts/last")
    # in another folder, from a named checkpoint
    named = ["--resume_from_checkpoint", tmp_path / "whole/checkpoints/epoch_1", "--epochs", "3", *common]
    lines = train(tiny, tmp_path / "other", *named)
    assert [line["step"] for line in lines] == list(range(1, 16))
    assert (tmp_path / "other/model.safetensors").is_file()
    # a run that is over stays as it is
    before = weights(tmp_path / "whole/last")
    train(tiny, tmp_path / "whole", "--max_steps", "10", *common, "--resume_from_checkpoint", "latest")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path / "whole/last").items())


@pytest.mark.slow
def test_resuming_another_run(tiny, tmp_path, write_model):
    run = tmp_path / "run"
    train(tiny, run, "--max_steps", "2", "--validation_every", "0", "--lr_scheduler", "linear")
    log = (run / "train_log.jsonl").read_text(encoding="utf-8")
    other = write_model("test_resnet", size=64, num_points=2)
    for more, match in (
        (["--batch_size", "4"], "setting batch_size is 2, this run's is 4"),
        (["--seed", "7"], "setting seed is 42, this run's is 7"),
        (["--negative_conditions", "silence"], "setting negative_conditions"),
        (["--max_steps", "3"], "setting total_steps is 2, this run's is 3"),
        (["--image_size", "32"], "setting image_size"),
        (["--loss_type", "dice"], "model setting loss_type is 'bce_dice', this run's is 'dice'"),
        (["--model", other], "model setting num_points is 4, this run's is 2"),
        (
            ["--model", write_model("test_convnext")],
            "model setting backbone is 'test_resnet', this run's is 'test_con",
        ),
    ):
        arguments = ["--max_steps", "2", "--validation_every", "0", "--lr_scheduler", "linear", *more]
        with pytest.raises(ValueError, match=match):
            train(tiny, run, *arguments, "--resume_from_checkpoint", "latest")
    assert (run / "train_log.jsonl").read_text(encoding="utf-8") == log


@pytest.mark.slow
def test_resuming_on_other_clips(tiny, tmp_path):
    from avsbench_robust_dataset.synthetic import write_demo

    run = tmp_path / "run"
    train(tiny, run, "--max_steps", "1", "--validation_every", "0")
    write_demo(tmp_path / "other", seed=9, sizes={"train": 8, "val": 4, "test": 5}, num_proc=1)
    arguments = [*tiny, "--data_dir", tmp_path / "other", "--max_steps", "2"]
    with pytest.raises(ValueError, match="trained on other clips or sounds"):
        train(arguments, run, "--resume_from_checkpoint", "latest")


def test_checkpoints_that_are_none(tiny, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="Expected a complete checkpoint in .*run"):
        train(tiny, run, "--resume_from_checkpoint", "latest")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        train(tiny, run, "--resume_from_checkpoint", tmp_path / "nowhere")
    assert not run.exists(), "bad input left something behind"
    train(tiny, run, "--max_steps", "2", "--validation_every", "0", "--checkpointing_steps", "1")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_1", "step_2"]
    with pytest.raises(FileNotFoundError, match="but it holds a trained model"):
        train(tiny, run, "--resume_from_checkpoint", run)
    newest = run / "checkpoints/step_2"
    (newest / "optimizer.bin").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match="step_2, but optimizer.bin is missing or does not have its"):
        train(tiny, run, "--resume_from_checkpoint", newest)
    (newest / "trainer_state.json").unlink()
    with pytest.raises(FileNotFoundError, match="trainer_state.json, which is written last, is missing"):
        train(tiny, run, "--resume_from_checkpoint", newest)


@pytest.mark.slow
def test_checkpoints_that_are_kept(tiny, tmp_path):
    common = ["--max_steps", "5", "--validation_every", "0", "--checkpointing_steps", "2"]
    for keep, names in ((1, ["step_5"]), (2, ["step_4", "step_5"]), (0, ["step_2", "step_4", "step_5"])):
        run = tmp_path / str(keep)
        train(tiny, run, *common, "--keep_checkpoints", keep)
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names


def test_the_folder_of_another_run(tiny, tmp_path):
    common = ["--max_steps", "1", "--validation_every", "0"]
    train(tiny, tmp_path, *common)
    mine = tmp_path / "notes.txt"
    mine.write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="train_log.jsonl.*--resume_from_checkpoint latest.*--overwrite_output_dir"):
        train(tiny, tmp_path, *common)
    # bad input does not clear the folder either
    arguments = [*tiny, "--data_dir", tmp_path / "none"]
    with pytest.raises(FileNotFoundError):
        train(arguments, tmp_path, *common, "--overwrite_output_dir")
    assert sorted(tmp_path.rglob("*")) == before
    lines = train(tiny, tmp_path, *common, "--overwrite_output_dir", "--seed", "1")
    assert len(lines) == 1 and mine.read_text(encoding="utf-8") == "kept"


def test_missing_data_and_model(tiny, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="none"):
        train([*tiny, "--data_dir", tmp_path / "none"], run)
    with pytest.raises(OSError, match="no_model"):
        train([*tiny, "--model", tmp_path / "no_model"], run)
    arguments = ["--subset", "demo", *tiny[2:4], "--backbone", "resnet5O", "--random_backbone", "--random_vggish"]
    with pytest.raises(ValueError, match="resnet5O"):
        train(arguments, run)
    assert not run.exists()


def test_a_loss_that_is_not_finite_names_the_clips(tiny, tiny_model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    tensors = weights(broken)
    tensors["mask_head.reduce.bias"].fill_(torch.nan)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    ids = load_splits("demo", tiny[3], 42, "train", ["positive"])["positive"]["clip_id"][:]
    with pytest.raises(
        FloatingPointError, match=r"loss is nan in step 1, in the clips d\w+ \((positive|silence)"
    ) as error:
        train([*tiny, "--model", broken], tmp_path / "run")
    assert sum(clip in str(error.value) for clip in ids) >= 1
    assert not (tmp_path / "run/model.safetensors").exists()
