"""Training that is killed again and again ends with the bits of the run that nothing disturbed."""

import json

import pytest
from safetensors.torch import load_file

from avs_engine.checkpoints import complete_checkpoints
from avsbench_robust_dataset.synthetic import write_demo
from modeling_avsegformer import AVSegFormerForSegmentation


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, write_model):
    """Arguments of six steps with two validations and a checkpoint a step, and where their data set is cached."""
    root = tmp_path_factory.mktemp("killed_training")
    write_demo(root / "data", seed=3, sizes={"train": 4, "val": 4, "test": 4}, num_proc=1)
    arguments = ["--subset", "demo", "--data_dir", root / "data", "--model", write_model(size=32), "--cpu"]
    arguments += ["--batch_size", 2, "--frames_per_clip", 2, "--epochs", 2, "--negative_ratio", "0.3"]
    arguments += ["--recipe", "paper"]
    arguments += ["--validation_clips", 1, "--checkpointing_steps", 1, "--logging_steps", 1]
    return [*arguments, "--resume_from_checkpoint", "auto"], {"HF_DATASETS_CACHE": str(root / "cache")}


@pytest.mark.slow
def test_a_training_killed_at_30_moments_ends_with_the_same_bits(
    tiny_run, tmp_path, run_command, kill_at_random_moments
):
    arguments, environment = tiny_run
    entry = "train_accelerate:main"
    built = run_command(entry, [*arguments, "--output_dir", tmp_path / "first"], environment=environment)
    assert built.code == 0, built.output  # the data set is in the cache now: what is killed below is the training
    whole = tmp_path / "undisturbed"

    def check(folder, finished):
        for checkpoint in complete_checkpoints(folder / "checkpoints"):
            load_file(checkpoint / "model.safetensors")
        if (folder / "model.safetensors").exists():
            AVSegFormerForSegmentation.from_pretrained(folder)
        if not finished:
            return
        for name in ("model.safetensors", "last/model.safetensors", "train_log.jsonl", "config.json"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), f"{folder.name}: another {name}"
        best = [
            json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["best"] for run in (folder, whole)
        ]
        assert best[0] == best[1]
        assert not [path.name for path in folder.glob(".*")], "something half written was left"
        names = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert names == ["step_5", "step_6"], "something half written was left"

    killed = kill_at_random_moments(
        entry,
        lambda folder: [*arguments, "--output_dir", folder],
        check,
        lambda name: tmp_path / name,
        environment=environment,
    )
    assert killed >= 15  # those before a change of the file system; those by the clock may come too late
