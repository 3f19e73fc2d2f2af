"""Original checkpoints: names, what is left out, the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_avsegformer import AVSegFormerConfig, AVSegFormerForSegmentation
from modeling_avsegformer.convert_original_checkpoint import convert_original_state_dict, detect_backbone, main

FIXTURES = Path(__file__).parents[1] / "fixtures"


def original(backbone: str, module: str = "") -> dict[str, torch.Tensor]:
    """An original state dict without memory behind it."""
    shapes = json.loads((FIXTURES / f"original_{backbone}_state_dict.json").read_text())
    return {module + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("backbone", "parameters", "unused"), [("pvt_v2_b5", 184082880, 11), ("resnet50", 127263552, 185)]
)
@pytest.mark.parametrize("module", ["", "module."])
def test_every_tensor_finds_its_place(backbone, parameters, unused, module):
    # parameters: the paper's model less what it never uses, spec of the original; ResNet-50 with the repaired head
    state_dict = original(backbone, module)
    config = AVSegFormerConfig(backbone=backbone)
    converted, report = convert_original_state_dict(state_dict, config, return_report=True)
    with torch.device("meta"):
        model = AVSegFormerForSegmentation(config)
    model.load_state_dict(converted, assign=True)  # strict
    assert model.num_parameters() == parameters
    assert len(report.unused) == unused and report.unknown == []
    assert len(converted) + unused == len(state_dict)
    assert {id(tensor) for tensor in converted.values()} <= {id(tensor) for tensor in state_dict.values()}
    assert all(name.startswith(("head.fpn.", "head.attn_fc.", "backbone.layer")) for name in report.unused)


@pytest.fixture(scope="module")
def converted_pvt():
    state_dict = original("pvt_v2_b5")
    return state_dict, convert_original_state_dict(state_dict, AVSegFormerConfig())


@pytest.mark.parametrize(
    ("original_name", "name"),
    [
        ("backbone.patch_embed1.proj.weight", "model.backbone.timm_model.patch_embed.proj.weight"),
        ("backbone.patch_embed4.norm.bias", "model.backbone.timm_model.stages_3.downsample.norm.bias"),
        ("backbone.block3.39.attn.sr.weight", "model.backbone.timm_model.stages_2.blocks.39.attn.sr.weight"),
        ("backbone.block2.5.mlp.dwconv.dwconv.bias", "model.backbone.timm_model.stages_1.blocks.5.mlp.dwconv.bias"),
        ("backbone.norm2.weight", "model.backbone.timm_model.stages_1.norm.weight"),
        ("vggish.embeddings.2.bias", "model.audio_encoder.embeddings.2.bias"),
        ("head.mlp.layers.2.weight", "mask_head.mlp.4.weight"),
        ("head.fc.4.weight", "mask_head.predict.2.weight"),
        ("audio_proj.weight", "model.audio_projection.weight"),
        ("cosine_sim.audio_proj.weight", "similarity_head.audio_projection.weight"),
    ],
)
def test_names(converted_pvt, original_name, name):
    state_dict, converted = converted_pvt
    assert converted[name] is state_dict[original_name]


def test_plain_avsegformer_has_no_similarity_head():
    state_dict = {name: value for name, value in original("resnet50").items() if not name.startswith("cosine_sim")}
    with pytest.raises(ValueError, match="plain AVSegFormer. Use AVSegFormerConfig\\(use_similarity_head=False\\)"):
        convert_original_state_dict(state_dict, AVSegFormerConfig(backbone="resnet50"))
    config = AVSegFormerConfig(backbone="resnet50", use_similarity_head=False)
    assert not any("similarity" in name for name in convert_original_state_dict(state_dict, config))


def test_unknown_names_are_reported():
    state_dict = original("resnet50") | {"head.novelty.weight": torch.zeros(2)}
    config = AVSegFormerConfig(backbone="resnet50")
    _, report = convert_original_state_dict(state_dict, config, return_report=True)
    assert report.unknown == ["head.novelty.weight"]


def test_detect_backbone():
    assert detect_backbone(original("pvt_v2_b5", "module.")) == "pvt_v2_b5"
    assert detect_backbone(original("resnet50")) == "resnet50"
    assert detect_backbone({"weight": torch.zeros(1)}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state_dict: {}, "neither PVT-v2-b5 nor ResNet-50. It is no AVSegFormer checkpoint"),
        (lambda state_dict: original("pvt_v2_b5"), r"'resnet50', but this one has 'pvt_v2_b5'. Use AVSegFormerConfig"),
        (
            lambda s: {k: v for k, v in s.items() if k != "audio_proj.bias"},
            "1 are missing, e.g. model.audio_projection",
        ),
        (
            lambda s: s | {"head.learnable_query.weight": torch.zeros(100, 256)},
            r"1 are of another shape, e.g. model.query_embed.weight \(100, 256\) instead of \(300, 256\)",
        ),
        (lambda s: s | {"audio_proj.scale": torch.zeros(1)}, "1 are too many, e.g. model.audio_projection.scale"),
    ],
)
def test_checkpoints_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        convert_original_state_dict(change(original("resnet50")), AVSegFormerConfig(backbone="resnet50"))


@pytest.mark.slow
def test_command(tmp_path, weight_fill):
    shapes = json.loads((FIXTURES / "original_resnet50_state_dict.json").read_text())
    checkpoint = tmp_path / "S4_res50.pth"
    state_dict = weight_fill.state_dict(shapes)
    torch.save({f"module.{name}": value for name, value in state_dict.items()}, checkpoint)
    command = [sys.executable, "-m", "modeling_avsegformer.convert_original_checkpoint", str(checkpoint)]
    done = subprocess.run([*command, str(tmp_path / "out" / "s4")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "670 tensors, backbone resnet50, with the similarity head; 185 tensors" in done.stdout
    assert "RuntimeWarning" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["s4"]

    model = AVSegFormerForSegmentation.from_pretrained(tmp_path / "out" / "s4")
    assert model.config.backbone == "resnet50" and model.config.loss_type == "dice"
    assert torch.equal(model.model.query_embed.weight, state_dict["head.learnable_query.weight"])
    assert (tmp_path / "out" / "s4" / "processor_config.json").exists()


def test_command_refuses_and_leaves_nothing(tmp_path):
    checkpoint = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(2)}, checkpoint)
    with pytest.raises(SystemExit, match="error: .*It is no AVSegFormer checkpoint"):
        main([str(checkpoint), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="error: .*missing.pth does not exist"):
        main([str(tmp_path / "missing.pth"), str(tmp_path / "out")])
    torch.save({"backbone.patch_embed1.proj.weight": torch.zeros(2)}, checkpoint)
    with pytest.raises(SystemExit, match="'resnet50', but this one has 'pvt_v2_b5'"):
        main([str(checkpoint), str(tmp_path / "out"), "--backbone", "resnet50"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SystemExit, match="error: .*full has content"):
        main([str(checkpoint), str(tmp_path / "full")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "other.pth"]
