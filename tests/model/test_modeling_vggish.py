"""The audio encoder alone, and reading its weights."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from modeling_avsegformer import AVSegFormerForSegmentation, VGGishConfig, VGGishModel


@pytest.fixture
def encoder() -> VGGishModel:
    torch.manual_seed(0)
    return VGGishModel(VGGishConfig(conv_channels=[3, 4, 5, 6], fc_size=10, embedding_size=7)).eval()


def test_shapes_for_any_leading_axes(encoder):
    examples = torch.randn(2, 3, 1, 96, 64)
    output = encoder(examples)
    assert output.embeddings.shape == (2, 3, 7) and output.feature_map.shape == (2, 3, 6, 6, 4)
    assert (output.embeddings >= 0).all() and output.embeddings.any()
    torch.testing.assert_close(encoder(examples[1, 2][None]).embeddings[0], output.embeddings[1, 2])


def test_published_names_and_sizes():
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in VGGishModel(VGGishConfig()).state_dict().items()}
    assert len(shapes) == 18
    assert shapes["features.13.weight"] == (512, 512, 3, 3)
    assert shapes["embeddings.0.weight"] == (4096, 12288)
    assert shapes["embeddings.4.weight"] == (128, 4096)


def test_save_and_load(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    loaded = VGGishModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_wrong_shape(encoder):
    with pytest.raises(ValueError, match=r"\(..., 1, 96, 64\), got \(5, 96, 64\)"):
        encoder(torch.zeros(5, 96, 64))


@pytest.mark.parametrize("form", ["pth", "parallel", "compiled", "safetensors", "folder"])
def test_load_weights(encoder, make_config, tmp_path, form):
    state_dict = {name: value.clone() for name, value in encoder.state_dict().items()}
    path = tmp_path / f"vggish.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "folder":
        path = tmp_path
        encoder.save_pretrained(path)
    elif form == "safetensors":
        save_file(state_dict, path)
    elif form == "pth":
        torch.save(state_dict | {"pproc.pca_means": torch.zeros(7, 1)}, path)
    elif form == "compiled":
        torch.save({"params": {f"_orig_mod.{name}": value for name, value in state_dict.items()}, "epoch": 3}, path)
    else:
        torch.save({"state_dict": {f"module.{name}": value for name, value in state_dict.items()}}, path)
    model = AVSegFormerForSegmentation(make_config(audio_config=encoder.config))
    model.load_vggish_weights(path)
    for name, value in model.get_audio_encoder().state_dict().items():
        assert torch.equal(value, state_dict[name])


@pytest.mark.parametrize(
    ("containers", "prefix"),
    [
        (["net"], "module."),
        (["model_state"], "_orig_mod.module."),
        (["model", "state_dict"], "module._orig_mod."),
        (["checkpoint", "params_ema"], "module.module."),
        (["module"], "_forward_module.vggish."),
        (["state_dict"], "model.audio_encoder."),
    ],
)
def test_where_training_scripts_keep_weights(encoder, tmp_path, containers, prefix):
    state_dict = {name: value.clone() for name, value in encoder.state_dict().items()}
    content = {prefix + name: value for name, value in state_dict.items()}
    if prefix.startswith("model."):
        content["model.backbone.conv.weight"] = torch.ones(2)
    for container in reversed(containers):
        content = {container: content, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "lr": 0.1}}
    torch.save(content, tmp_path / "w.pth")
    for value in encoder.parameters():
        torch.nn.init.zeros_(value)
    encoder.load_vggish_weights(tmp_path / "w.pth")
    assert all(torch.equal(value, state_dict[name]) for name, value in encoder.state_dict().items())


def test_weights_of_another_network(encoder, tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"in .*other.pth, but 18 are missing.* has e.g. conv1.weight"):
        encoder.load_vggish_weights(tmp_path / "other.pth")


def test_a_file_without_a_state_dict_names_its_keys(encoder, tmp_path):
    torch.save({"ema": {"a": torch.zeros(1)}, "teacher": {}, "epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"under one of state_dict, .*params.*, got the keys ema, teacher, epoch\. "):
        encoder.load_vggish_weights(tmp_path / "other.pth")


def test_a_file_with_code_is_not_run(encoder, tmp_path):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "made_by_code"), "w"))

    (tmp_path / "code.pth").write_bytes(pickle.dumps({"weight": Code()}, protocol=2))
    with pytest.raises(ValueError, match="code.pth cannot be read"):
        encoder.load_vggish_weights(tmp_path / "code.pth")
    assert not (tmp_path / "made_by_code").exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_damaged_file(encoder, tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ValueError, match=name):
        encoder.load_vggish_weights(tmp_path / name)


def test_no_such_file(encoder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="'nobody/nothing' does not exist here"):
        encoder.load_vggish_weights("nobody/nothing")
    with pytest.raises(FileNotFoundError, match="does not exist here"):
        encoder.load_vggish_weights("no/such/folder/vggish.pth")
