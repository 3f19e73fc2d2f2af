"""The encoders of a new model never start at random unless somebody asks for it, and every result says from what."""

import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import evaluate_accelerate
from avs_engine.models import build_model
from avs_engine.provenance import tensors_digest
from avs_engine.training_arguments import parse_args
from modeling_avsegformer import AVSegFormerConfig, AVSegFormerForSegmentation, VGGishConfig
from train_accelerate import main

NEW = ["--subset", "demo", "--backbone", "test_resnet", "--cpu"]
RUN = ["--batch_size", "2", "--frames_per_clip", "2", "--max_steps", "1", "--validation_every", "0"]
RANDOM = ["--random_backbone", "--random_vggish"]


def sha256(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ([], "backbone of a new model: give --backbone_weights FILE"),
        (["--random_vggish"], "backbone of a new model: .*--random_backbone"),
        (["--random_backbone"], "audio encoder of a new model: give --vggish_weights FILE .*--random_vggish"),
    ],
)
def test_a_new_model_without_weights_is_refused_before_the_first_step(more, match, demo_tree, tmp_path):
    with pytest.raises(ValueError, match=match):
        main([*NEW, *RUN, *more, "--data_dir", demo_tree, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--model", "x", "--random_backbone"], "leave --random_backbone out"),
        (["--model", "x", "--backbone_weights", "f"], "leave --backbone_weights out"),
        (["--model", "x", "--random_vggish"], "leave --random_vggish out"),
        (
            ["--random_backbone", "--pretrained_backbone"],
            "--pretrained_backbone: not allowed with argument --random_backbone",
        ),
        (["--random_vggish", "--vggish_weights", "f"], "--vggish_weights: not allowed with argument --random_vggish"),
    ],
)
def test_weights_that_contradict_each_other(more, match, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--subset", "demo", "--output_dir", str(tmp_path), *more])
    assert match in capsys.readouterr().err


def test_weights_that_cannot_be_fetched(monkeypatch, demo_tree, tmp_path):
    """Before, a random backbone was trained, and the exit code was 0."""
    monkeypatch.setattr(AVSegFormerForSegmentation, "load_pretrained_backbone", lambda self: False)
    arguments = [*NEW, *RUN, "--pretrained_backbone", "--random_vggish", "--data_dir", demo_tree]
    with pytest.raises(ConnectionError, match="timm's weights of test_resnet for --pretrained_backbone"):
        main([*arguments, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_weights_that_were_fetched_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(AVSegFormerForSegmentation, "load_pretrained_backbone", lambda self: True)
    args = parse_args([*NEW, "--output_dir", str(tmp_path), "--pretrained_backbone", "--random_vggish"])
    model, _, weights = build_model(args, load_weights=True)
    digest = tensors_digest(model.get_backbone().state_dict())
    assert weights["backbone"] == {"source": "timm's test_resnet", "sha256": digest}
    with torch.no_grad():
        next(model.get_backbone().parameters()).view(-1)[0] += 1
    assert tensors_digest(model.get_backbone().state_dict()) != digest


@pytest.mark.slow
def test_a_run_and_its_scores_say_which_weights(tiny_model, demo_tree, tmp_path):
    """Of a model that is trained on; a resumed run keeps what the first one said."""
    run = tmp_path / "run"
    arguments = ["--subset", "demo", "--data_dir", demo_tree, "--cpu", "--model", tiny_model, *RUN]
    main([*arguments, "--output_dir", str(run)])
    weights = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["weights"]
    start = {"model.safetensors": sha256(Path(tiny_model) / "model.safetensors")}
    assert weights == {"model": {"source": Path(tiny_model).name, "sha256": start}}
    resume = ["--max_steps", "2", "--resume_from_checkpoint", "latest"]
    main([*arguments, "--output_dir", str(run), *resume])
    assert json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["weights"] == weights
    evaluate_accelerate.main([*arguments[:5], "--model", str(run), "--output_dir", str(tmp_path / "eval")])
    found = json.loads((tmp_path / "eval/results.json").read_text(encoding="utf-8"))["weights"]
    digests = {"model.safetensors": sha256(run / "model.safetensors")}
    assert found == {"source": "run", "sha256": digests, "encoders": weights}


@pytest.mark.slow
def test_a_new_model_from_files(demo_tree, tmp_path, monkeypatch):
    """A backbone's file and VGGish's: what is trained is what they hold, and their digests are written down."""
    vggish = VGGishConfig(conv_channels=[4, 4, 8, 8], fc_size=32)  # the published one has 72 million weights
    monkeypatch.setattr("avs_engine.models.AVSegFormerConfig", partial(AVSegFormerConfig, audio_config=vggish))
    torch.manual_seed(5)
    model = AVSegFormerForSegmentation(AVSegFormerConfig(backbone="test_resnet", audio_config=vggish))
    torch.save(model.get_backbone().timm_model.state_dict(), tmp_path / "backbone.pth")
    torch.save(model.get_audio_encoder().state_dict(), tmp_path / "vggish.pth")
    files = ["--backbone_weights", str(tmp_path / "backbone.pth"), "--vggish_weights", str(tmp_path / "vggish.pth")]
    more = ["--data_dir", demo_tree, "--freeze_backbone_epochs", "9", "--output_dir", str(tmp_path / "run")]
    main([*NEW, *RUN, *files, *more])
    weights = json.loads((tmp_path / "run/trainer_state.json").read_text(encoding="utf-8"))["weights"]
    assert weights == {
        "backbone": {"source": "backbone.pth", "sha256": sha256(tmp_path / "backbone.pth")},
        "audio_encoder": {"source": "vggish.pth", "sha256": sha256(tmp_path / "vggish.pth")},
    }
    trained, given = load_file(tmp_path / "run/model.safetensors"), model.state_dict()
    frozen = [name for name in given if name.startswith(("model.backbone.", "model.audio_encoder."))]
    assert frozen and all(torch.equal(trained[name], given[name]) for name in frozen)
