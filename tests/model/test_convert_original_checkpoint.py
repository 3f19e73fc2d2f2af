"""Original checkpoints: names, what is left out, the command."""

import hashlib
import json
import pickle
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling_avsegformer import AVSegFormerConfig, AVSegFormerForSegmentation, AVSegFormerProcessor
from modeling_avsegformer.checkpoint_reader import read_tensors
from modeling_avsegformer.convert_original_checkpoint import convert_original_state_dict, detect_backbone, main
from modeling_avsegformer.original_state_dict import convert_and_report

FIXTURES = Path(__file__).parents[1] / "fixtures"


def original(backbone: str, module: str = "") -> dict[str, torch.Tensor]:
    """An original state dict without memory behind it."""
    shapes = json.loads((FIXTURES / f"original_{backbone}_state_dict.json").read_text(encoding="utf-8"))
    return {module + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "parameters", "unused"), [("pvt_v2_b5", 184082880, 11), ("resnet50", 127263552, 185)]
)
@pytest.mark.parametrize("module", ["", "module."])
def test_every_tensor_finds_its_place(backbone, parameters, unused, module):
    # parameters: the paper's model less what it never uses, spec of the original; ResNet-50 with the repaired head
    state_dict = original(backbone, module)
    config = AVSegFormerConfig(backbone=backbone)
    converted, left_out, unknown = convert_and_report(state_dict, config)
    with torch.device("meta"):
        model = AVSegFormerForSegmentation(config)
    model.load_state_dict(converted, assign=True)  # strict
    assert model.num_parameters() == parameters
    assert len(left_out) == unused and unknown == []
    assert len(converted) + unused == len(state_dict)
    assert {id(tensor) for tensor in converted.values()} <= {id(tensor) for tensor in state_dict.values()}
    assert all(name.startswith(("head.fpn.", "head.attn_fc.", "backbone.layer")) for name in left_out)


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
    _, _, unknown = convert_and_report(state_dict, config)
    assert unknown == ["head.novelty.weight"]


def test_detect_backbone():
    assert detect_backbone(original("pvt_v2_b5", "module.")) == "pvt_v2_b5"
    assert detect_backbone(original("resnet50")) == "resnet50"
    assert detect_backbone({"weight": torch.zeros(1)}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state_dict: {}, "neither PVT-v2-b5 nor ResNet-50. It is not an AVSegFormer checkpoint"),
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


def small_file(backbone: str) -> dict[str, torch.Tensor]:
    """An original state dict whose tensors are each one number of its own, repeated: saved, it takes little space."""
    names = original(backbone)
    values = torch.linspace(0.5, 1, len(names))
    state_dict = {}
    for value, (name, tensor) in zip(values, names.items(), strict=True):
        if tensor.dim() > 1:
            value = value / tensor[0].numel()
        state_dict[name] = value.clone().expand(tensor.shape)
    return state_dict


@pytest.mark.slow
def test_command(tmp_path, capsys, monkeypatch):
    """A plain AVSegFormer, as a user converts it."""
    checkpoint = tmp_path / "S4_res50.pth"
    state_dict = {name: value for name, value in small_file("resnet50").items() if not name.startswith("cosine_sim.")}
    state_dict["head.novelty.weight"] = torch.zeros(2)
    torch.save({f"module.{name}": value for name, value in state_dict.items()}, checkpoint)
    monkeypatch.setattr(sys, "argv", ["", str(checkpoint), str(tmp_path / "out" / "s4"), "--image_size", "96"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was imported before
        runpy.run_module("modeling_avsegformer.convert_original_checkpoint", run_name="__main__")
    printed = capsys.readouterr().out
    assert "668 tensors, backbone resnet50, without the similarity head; 185 tensors" in printed
    assert "never used by the original: backbone.layer3_2 114, backbone.layer4_2 60, head.attn_fc 5" in printed
    assert "backbone.layer4_1 60, head.fc 5" in printed.split("dropped")[0]
    assert "dropped, unknown: head.novelty.weight" in printed
    assert "verified: a forward at 96x96" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["s4"]

    model = AVSegFormerForSegmentation.from_pretrained(tmp_path / "out" / "s4")
    assert model.config.backbone == "resnet50" and model.config.loss_type == "dice"
    assert not model.config.use_similarity_head
    assert torch.equal(model.model.query_embed.weight, state_dict["head.learnable_query.weight"])
    processor = AVSegFormerProcessor.from_pretrained(tmp_path / "out" / "s4")
    assert dict(processor.image_processor.size) == {"height": 96, "width": 96}
    made_from = json.loads((tmp_path / "out" / "s4" / "conversion.json").read_text(encoding="utf-8"))
    assert made_from["file"] == "S4_res50.pth"
    assert made_from["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


@pytest.mark.slow
def test_avsbench_robust_with_pvt(tmp_path, capsys):
    """The largest: 184 million parameters, with the similarity head."""
    state_dict = small_file("pvt_v2_b5")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state_dict.items()}}, tmp_path / "s4.pth")
    main([str(tmp_path / "s4.pth"), str(tmp_path / "out"), "--image_size", "128"])
    printed = capsys.readouterr().out
    assert "1404 tensors, backbone pvt_v2_b5, with the similarity head; 11 tensors" in printed
    assert "verified: a forward at 128x128" in printed and "dropped, unknown: none" in printed

    model = AVSegFormerForSegmentation.from_pretrained(tmp_path / "out").state_dict()
    converted = convert_original_state_dict(state_dict, AVSegFormerConfig())
    assert converted.keys() == model.keys()
    assert all(torch.equal(tensor, model[name]) for name, tensor in converted.items())
    size = AVSegFormerProcessor.from_pretrained(tmp_path / "out").image_processor.size
    assert dict(size) == {"height": 128, "width": 128}


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("hidden", ["value", "entry", "metadata"])
def test_hostile_pickles_are_refused_and_never_run(zipped, hidden, tmp_path):
    bait, checkpoint = tmp_path / "bait", tmp_path / "S4_res50.pth"
    tensors = {name: torch.zeros(1) for name in original("resnet50")}
    content = {
        "value": {"state_dict": tensors | {"audio_proj.bias": Hostile(bait)}},
        "entry": tensors | {"epoch": Hostile(bait)},
        "metadata": Hostile(bait),
    }[hidden]
    torch.save(content, checkpoint, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SystemExit, match=r"error: .*it has io\.open, which .*holds code, which is never run here"):
        main([str(checkpoint), str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["S4_res50.pth"]
    torch.load(checkpoint, weights_only=False)  # the bait works where code is run
    assert bait.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
        b"\x80\x02.",
        pickle.dumps({"weight": [1, 2]}),
        b"PK\x03\x04 cut off",
    ],
)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_other_files_are_refused(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=f"error: Expected a .* file.*{name}"):
        main([str(tmp_path / name), str(tmp_path / "out")])


def test_damaged_files_are_refused(tmp_path):
    """Whatever byte of those tried is damaged: the tensors come, or a ValueError that names the file."""
    torch.save(
        {"audio_proj.bias": torch.zeros(3), "n": 1}, tmp_path / "whole.pth", _use_new_zipfile_serialization=False
    )
    whole = (tmp_path / "whole.pth").read_bytes()
    refused = 0
    for place in range(0, len(whole), 7):
        (tmp_path / "x.pth").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read_tensors(tmp_path / "x.pth")
        except ValueError as error:
            assert "x.pth" in str(error)
            refused += 1
    assert refused > len(whole) / 7 / 4


def test_only_named_dense_tensors_count(tmp_path):
    tensors = {"a": torch.ones(2), 1: torch.ones(2), "sparse": torch.ones(2).to_sparse(), "epoch": 3}
    torch.save(tensors, tmp_path / "x.pth")
    assert list(read_tensors(tmp_path / "x.pth")) == ["a"]


def test_safetensors_of_data_parallel(tmp_path):
    save_file({"module.a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert list(read_tensors(tmp_path / "x.safetensors")) == ["a"]


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(SystemExit, match=f"error: Expected a checkpoint file, but {tmp_path} is a folder"):
        main([str(tmp_path), str(tmp_path / "out")])


def test_semantic_checkpoints_are_another_task():
    state_dict = original("resnet50") | {"head.fc.4.weight": torch.empty(71, 32, 1, 1, device="meta")}
    with pytest.raises(ValueError, match="one mask a frame, but this one predicts 71 classes"):
        convert_original_state_dict(state_dict, AVSegFormerConfig(backbone="resnet50"))


def test_command_refuses_and_leaves_nothing(tmp_path):
    checkpoint = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(2)}, checkpoint)
    with pytest.raises(SystemExit, match="error: .*It is not an AVSegFormer checkpoint"):
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
    with pytest.raises(SystemExit, match="at least 32 pixels, got 16"):
        main([str(checkpoint), str(tmp_path / "out"), "--image_size", "16"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "other.pth"]
