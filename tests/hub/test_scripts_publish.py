"""`--push_to_hub` of the two scripts, and a Hub checkpoint in another process, on a loopback Hub (the client side)."""

import json
import os
import re
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import ModelCard

import evaluate_accelerate
import train_accelerate
from avs_engine.hub import push_checkpoint
from avsbench_robust_dataset.files import sha256
from avsbench_robust_dataset.synthetic import write_demo
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerImageProcessor, AVSegFormerProcessor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo_tree(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("demo_tree")
    write_demo(folder, seed=3, sizes={"train": 4, "val": 4, "test": 4}, num_proc=1)
    return str(folder)


@pytest.fixture(scope="module")
def hf_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("hf_cache")


@pytest.fixture
def tiny(model, demo_tree, hf_cache, tmp_path, monkeypatch) -> list[str]:
    """Arguments of a tiny run, in a process that has never seen accelerate."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hf_cache)
    model.save_pretrained(tmp_path / "start")
    processor = AVSegFormerProcessor(AVSegFormerImageProcessor(size={"height": 64, "width": 64}))
    processor.save_pretrained(tmp_path / "start")
    yield ["--subset", "demo", "--data_dir", demo_tree, "--cpu", "--model", str(tmp_path / "start")]
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def card_of(hub, name: str) -> ModelCard:
    return ModelCard(hub.read(name, "README.md").decode())


@pytest.mark.slow
def test_train_then_evaluate(client, tiny, demo_tree, tmp_path, capsys):
    run = tmp_path / "tiny-run"
    train = [*tiny, "--output_dir", str(run), "--max_steps", "1", "--batch_size", "2", "--frames_per_clip", "1"]
    train_accelerate.main([*train, "--push_to_hub", "--hub_token", "hf_fake"])
    assert "published: " in capsys.readouterr().out
    (commit,) = client.repositories()["models/me/tiny-run"]["commits"][1:]
    assert {"model.safetensors", "processor_config.json", "README.md", "modeling_avsegformer.py"} <= set(commit[2])
    text = card_of(client, "me/tiny-run").text
    command = f"train_accelerate.py --subset demo --data_dir {Path(demo_tree).name} --cpu --model start"
    assert f"{command} --output_dir tiny-run" in text
    assert "hf_fake" not in text and str(tmp_path) not in text
    assert "`demo`, 1 steps; the weights are those of the best validation G-mIoU" in text
    assert "hf_fake" not in (run / "trainer_state.json").read_text(encoding="utf-8")
    (digest,) = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["weights"]["model"][
        "sha256"
    ].values()
    assert f"Weights at the start: model: start (SHA-256 {digest})." in text
    published = AVSegFormerForSegmentation.from_pretrained("me/tiny-run").state_dict()
    ours = AVSegFormerForSegmentation.from_pretrained(run).state_dict()
    assert all(torch.equal(tensor, published[name]) for name, tensor in ours.items())

    AcceleratorState._reset_state(reset_partial_state=True)
    evaluate = [*tiny[:-1], str(run), "--output_dir", str(tmp_path / "eval"), "--push_to_hub"]
    evaluate_accelerate.main(evaluate)
    card = card_of(client, "me/tiny-run")
    scores = json.loads((tmp_path / "eval" / "results.json").read_text(encoding="utf-8"))["scores"]
    on_card = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert on_card == {name: value for name, value in scores.items() if value is not None} and "g_miou" in on_card
    assert {result.dataset_config for result in card.data.eval_results} == {"demo"}
    assert f"| silence | {scores['miou_silence']:.4f} [" in card.text
    assert "train_accelerate.py --subset demo" in card.text  # the training is still there
    assert len(client.repositories()["models/me/tiny-run"]["commits"]) == 3

    # the Hub's copy, scored on other clips, keeps what is there
    AcceleratorState._reset_state(reset_partial_state=True)
    evaluate = [*tiny[:-1], "me/tiny-run", "--output_dir", str(tmp_path / "validation"), "--split", "validation"]
    evaluate_accelerate.main([*evaluate, "--push_to_hub"])
    card = card_of(client, "me/tiny-run")
    assert {result.dataset_split for result in card.data.eval_results} == {"test", "validation"}
    weights = json.loads((tmp_path / "validation" / "results.json").read_text(encoding="utf-8"))["weights"]
    assert weights["source"] == "me/tiny-run" and re.fullmatch("[0-9a-f]{40}", weights["commit"])
    assert weights["sha256"] == {"model.safetensors": sha256(run / "model.safetensors")}
    assert "train_accelerate.py --subset demo" in card.text


def test_no_token_is_said_before_the_training(client, tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="Expected a token to publish run, but there is none"):
        train_accelerate.main([*tiny, "--output_dir", str(tmp_path / "run"), "--max_steps", "1", "--push_to_hub"])
    assert not (tmp_path / "run").exists() and client.repositories() == {}


@pytest.mark.slow
def test_a_failed_upload_says_how_to_repeat_it(client, tiny, tmp_path):
    client.fail("POST", "/commit/", "drop")
    train = [*tiny, "--output_dir", str(tmp_path / "run"), "--max_steps", "1", "--validation_every", "0"]
    with pytest.raises(ConnectionError, match="me/x was not published") as failure:
        train_accelerate.main([*train, "--push_to_hub", "--hub_model_id", "me/x", "--hub_private"])
    (note,) = failure.value.__notes__
    command = note.split("in Python: ")[1]
    assert command.startswith("push_checkpoint(") and command.endswith("'me/x', private=True)")
    client.heal()
    names = {"AVSegFormerForSegmentation": AVSegFormerForSegmentation, "push_checkpoint": push_checkpoint}
    eval(command, names)
    assert client.repositories()["models/me/x"]["private"]
    assert "README.md" in client.repositories()["models/me/x"]["commits"][-1][2]


@pytest.mark.slow
def test_only_one_process_publishes(hub, fork_run, tiny, tmp_path, hf_cache):
    environment = {"HF_TOKEN": "hf_fake", "HF_DATASETS_CACHE": str(hf_cache)}
    its_hub = f"import huggingface_hub.constants as constants; vars(constants).update({hub.constants(tmp_path)!r})"
    arguments = [*tiny, "--output_dir", tmp_path / "two", "--max_steps", "1"]
    arguments += ["--batch_size", "1", "--frames_per_clip", "1", "--validation_every", "0", "--push_to_hub"]
    options = {"environment": environment, "processes": 2, "before": its_hub}
    run = fork_run(ROOT / "train_accelerate.py", arguments, tmp_path / "log.txt", tmp_path, **options)
    output, _ = run.communicate()
    assert run.returncode == 0 and "in 2 process(es)" in output, output[-3000:]
    log = hub.log()
    assert log.count("POST /api/repos/create") == 1 and sum("/commit/main" in entry for entry in log) == 1
    assert output.count("published: ") == 1


def test_only_models_of_ours(client, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate_accelerate.main(
            ["--predictions", str(tmp_path), "--subset", "demo", "--output_dir", "x", "--push_to_hub"]
        )
    assert "--push_to_hub: only with argument --model" in capsys.readouterr().err
    assert not os.path.exists("x")


def test_a_model_with_holes_is_not_scored(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = tmp_path / "start" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(weights).items() if name != "mask_head.reduce.weight"}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="but 1 are missing and 0 are unknown, e.g. mask_head.reduce.weight"):
        evaluate_accelerate.main([*tiny, "--output_dir", str(tmp_path / "eval")])
