"""Backbone files as other groups hold them, by timm's names and by the original's."""

import hashlib

import pytest
import timm
import torch

from modeling_avsegformer import AVSegFormerForSegmentation


def whole_model(name: str) -> dict[str, torch.Tensor]:
    """timm's whole classifier, as its `.pth` files have it, with weights unlike those of a new model."""
    torch.manual_seed(7)
    return timm.create_model(name).state_dict()


def original_pvt(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of the PVT-v2 authors' files."""
    original = {}
    for name, tensor in state_dict.items():
        parts = name.split(".")
        if name.startswith("patch_embed."):
            name = name.replace("patch_embed.", "patch_embed1.")
        elif name.startswith("stages."):
            stage, kind, rest = int(parts[1]) + 1, parts[2], ".".join(parts[3:])
            name = {"downsample": f"patch_embed{stage}.", "blocks": f"block{stage}.", "norm": f"norm{stage}."}[kind]
            name += rest.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")
        original[name] = tensor
    return original


def original_resnet(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint of AVSBench: two branches, and more than the backbone."""
    names = {f"encoder_backbone.{name}": value for name, value in state_dict.items() if not name.startswith("fc.")}
    for number in "34":
        for name in [name for name in names if f".layer{number}." in name]:
            tensor = names.pop(name)
            names[name.replace(f".layer{number}.", f".layer{number}_1.")] = tensor
            names[name.replace(f".layer{number}.", f".layer{number}_2.")] = tensor + 1
    return {f"module.{name}": value for name, value in names.items()} | {"module.conv1.bias": torch.ones(3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "change"),
    [
        ("pvt_v2_b0", dict),
        ("pvt_v2_b0", original_pvt),
        ("pvt_v2_b0", lambda names: {f"backbone.{name}": value for name, value in original_pvt(names).items()}),
        ("resnet18", dict),
        ("resnet18", lambda names: {n: v for n, v in names.items() if "num_batches_tracked" not in n}),  # torchvision
        ("resnet18", original_resnet),
        ("convnext_atto", dict),
    ],
)
def test_files_that_groups_hold(make_config, tmp_path, backbone, change):
    weights = whole_model(backbone)
    torch.save(change(weights), tmp_path / "w.pth")
    model = AVSegFormerForSegmentation(make_config(backbone=backbone)).eval()
    loaded = model.load_backbone_weights(tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    assert loaded == {"source": "w.pth", "sha256": digest}

    whole = timm.create_model(backbone)
    whole.load_state_dict(weights)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = whole.eval().forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[-1]
        found = model.get_backbone()(images)[-1]
    torch.testing.assert_close(found, expected)


def test_another_backbones_file_is_refused_and_nothing_changes(make_config, tmp_path):
    model = AVSegFormerForSegmentation(make_config(backbone="resnet18"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(whole_model("resnet34"), tmp_path / "deeper.pth")
    with pytest.raises(ValueError, match=r"in .*deeper.pth.* are too many, e.g. layer1\.2\.bn1"):
        model.load_backbone_weights(tmp_path / "deeper.pth")
    torch.save(whole_model("resnet26"), tmp_path / "wider.pth")
    with pytest.raises(ValueError, match=r"are of another shape, e.g. layer1\.0\.conv1.*instead of"):
        model.load_backbone_weights(tmp_path / "wider.pth")
    torch.save({"conv1.weight": before["model.backbone.timm_model.conv1.weight"]}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"are missing, e.g. bn1\.weight.*The file has e.g. conv1.weight"):
        model.load_backbone_weights(tmp_path / "part.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
