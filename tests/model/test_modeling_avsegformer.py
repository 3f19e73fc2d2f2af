"""A tiny AVSegFormer: shapes, what may replace what, freezing, saving, loading, errors."""

import doctest
import importlib.metadata
import importlib.util
import json
import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModel

import modeling_avsegformer.backbone_avsegformer as backbone
import modeling_avsegformer.configuration_avsegformer as configuration
import modeling_avsegformer.modeling_avsegformer as modeling
from modeling_avsegformer import (
    AVSegFormerConfig,
    AVSegFormerForSegmentation,
    AVSegFormerModel,
    VGGishConfig,
    VGGishModel,
)
from modeling_avsegformer.modeling_avsegformer import reference_points, sine_positions


@torch.no_grad()
def test_shapes(model, clips):
    output = model(**clips)
    assert output.logits.shape == (2, 3, 96, 64)
    assert output.similarity.shape == (2, 3)
    assert output.similarity.abs().max() <= 1
    assert output.mask_features.shape == (6, 64, 24, 16)
    assert (output.mask_features >= 0).all()
    assert output.loss is None and output.loss_dict is None
    assert len(model(**clips, return_dict=False)) == 3


@torch.no_grad()
def test_frames_are_independent(model, clips):
    whole = model(**clips)
    single = model(clips["pixel_values"][1:, 2:], clips["input_features"][1:, 2:])  # B = T = 1
    torch.testing.assert_close(single.logits, whole.logits[1:, 2:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(single.similarity, whole.similarity[1:, 2:])
    torch.testing.assert_close(single.mask_features, whole.mask_features[5:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_sound_changes_the_mask(model, clips):
    other = model(clips["pixel_values"], clips["input_features"].flip(0))
    assert (other.logits - model(**clips).logits).abs().max() > 1e-4


@torch.no_grad()
def test_embeddings_replace_the_inputs(model, clips):
    expected = model(**clips)
    image = model.get_image_embeddings(clips["pixel_values"])
    audio = model.get_audio_embeddings(clips["input_features"])
    assert audio.shape == (2, 3, 11)
    for inputs in (
        {"image_embeddings": image, "audio_embeddings": audio},
        {"image_embeddings": image, "input_features": clips["input_features"]},
        {"pixel_values": clips["pixel_values"], "audio_embeddings": audio},
    ):
        output = model(**inputs)
        assert torch.equal(output.logits, expected.logits), "not bit for bit"
        assert torch.equal(output.similarity, expected.similarity)


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (33, 50), (100, 36), (62, 95)])
def test_logits_have_the_size_of_the_frames(model, size):
    output = model(torch.zeros(1, 2, 3, *size), torch.zeros(1, 2, 1, 96, 64))
    assert output.logits.shape == (1, 2, *size)


def test_loss_parts(model, clips):
    labels = (torch.rand(2, 1, 96, 64, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    audio_labels = torch.tensor([1, 0])
    output = model(**clips, labels=labels, audio_labels=audio_labels)
    assert list(output.loss_dict) == ["mask", "mix", "similarity"]
    parts = output.loss_dict
    torch.testing.assert_close(output.loss, parts["mask"] + 0.1 * parts["mix"] + parts["similarity"])
    assert list(model(**clips, labels=labels).loss_dict) == ["mask", "mix"]
    assert list(model(**clips, audio_labels=audio_labels).loss_dict) == ["similarity"]


def test_weights_of_the_loss_are_the_configuration_s(make_config, clips):
    config = make_config(mask_weight=2.0, mix_weight=0.0, similarity_weight=0.5)
    output = AVSegFormerForSegmentation(config)(
        **clips, labels=torch.ones(2, 3, 96, 64), audio_labels=torch.tensor([1, 1])
    )
    torch.testing.assert_close(output.loss, 2 * output.loss_dict["mask"] + 0.5 * output.loss_dict["similarity"])


def test_only_the_supervised_frames_count(model, clips):
    labels = torch.ones(2, 1, 96, 64)
    logits = model(**clips, labels=labels)
    gradient = torch.autograd.grad(logits.loss, logits.logits)[0]
    assert gradient[:, 0].any() and not gradient[:, 1:].any()


def test_every_parameter_that_may_learn_gets_a_gradient(model, clips):
    model.train()
    output = model(**clips, labels=torch.ones(2, 3, 96, 64), audio_labels=torch.tensor([1, 0]))
    output.loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without and all(name.startswith("model.audio_encoder.") for name in without)


def test_without_the_similarity_head(make_config, clips):
    model = AVSegFormerForSegmentation(make_config(use_similarity_head=False))
    output = model(**clips, labels=torch.ones(2, 3, 96, 64), audio_labels=torch.tensor([1, 0]))
    assert output.similarity is None and list(output.loss_dict) == ["mask", "mix"]
    with pytest.raises(ValueError, match="which this model lacks"):
        model(**clips, audio_labels=torch.tensor([1, 0]))


def test_any_backbone_with_four_levels(make_config, clips):
    for name, kwargs in (
        ("pvt_v2_b0", None),
        ("resnet10t", {"drop_rate": 0.1}),
        # channels last, and buffers that are not in the checkpoint
        ("swin_tiny_patch4_window7_224", {"img_size": (96, 64), "embed_dim": 12, "depths": (1, 1, 1, 1)}),
    ):
        model = AVSegFormerForSegmentation(make_config(backbone=name, backbone_kwargs=kwargs)).eval()
        with torch.no_grad():
            output = model(**clips)
        assert output.logits.shape == (2, 3, 96, 64), name
        assert output.similarity.isfinite().all(), name


def test_drop_path_of_pvt_is_the_original_s(make_config):
    def rates(config):
        with torch.device("meta"):
            backbone = AVSegFormerModel(config).backbone
        return [module.drop_prob for module in backbone.modules() if type(module).__name__ == "DropPath"]

    default = rates(make_config(backbone="pvt_v2_b0"))
    assert default[0] == pytest.approx(0.1 / 7) and default[-1] == pytest.approx(0.1)  # 8 blocks; the first has none
    assert rates(make_config(backbone="pvt_v2_b0", backbone_kwargs={"drop_path_rate": 0.0})) == []


def test_unknown_backbone(make_config):
    with pytest.raises(ValueError, match=r"timm 1\..*got 'resnet5O'.*Close names: resnet50"):
        AVSegFormerForSegmentation(make_config(backbone="resnet5O"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("test_vit", r"strides \[16, 16, 16, 16\]"), ("nest_tiny", "gives no four levels .* for 'nest_tiny'")],
)
def test_backbone_without_the_levels(make_config, name, message):
    with pytest.raises(ValueError, match=message):
        AVSegFormerForSegmentation(make_config(backbone=name))


def test_initialisation(make_config):
    torch.manual_seed(0)
    model = AVSegFormerForSegmentation(make_config(hidden_size=96, num_attention_heads=8, num_points=4))
    # timm's own initialisation of the backbone is kept: normal with He's deviation, not the default 0.02
    conv = model.model.backbone.timm_model["layer4"][0].conv2
    fan_out = conv.out_channels * 9
    assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    # each head's points lie in its direction on the square, 1 to 4 pixels away, alike on the three levels
    attention = model.model.encoder.layers[0].self_attn
    offsets = attention.sampling_offsets.bias.view(8, 3, 4, 2)
    directions = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]).float()
    for point in range(4):
        torch.testing.assert_close(
            offsets[:, :, point], (point + 1) * directions[:, None].expand(8, 3, 2), atol=1e-5, rtol=0
        )
    assert not attention.sampling_offsets.weight.any() and not attention.attention_weights.weight.any()
    # Xavier: uniform, deviation sqrt(2 / (fan_in + fan_out)); the three projections of an attention count as one
    self_attn = model.model.decoder[0].self_attn
    assert self_attn.in_proj_weight.std().item() == pytest.approx((2 / (96 + 3 * 96)) ** 0.5, rel=0.05)
    assert not self_attn.in_proj_bias.any() and not self_attn.out_proj.bias.any()
    assert model.model.encoder.level_embed.std().item() == pytest.approx(1, abs=0.15)
    # torch's default outside the head: uniform within 1 / sqrt(fan_in)
    assert model.model.audio_projection.weight.abs().max().item() == pytest.approx(11**-0.5, rel=0.02)
    assert model.model.query_embed.weight.abs().max() <= (6 / (96 + 7)) ** 0.5


def test_sine_positions_by_hand():
    positions = sine_positions(2, 3, 8).view(2, 3, 8)
    row, column = 2.0, 3.0  # of the last cell, counted from 1
    expected = [angle / period for angle in (row, column) for period in (1, 1, 100, 100)]
    expected = [torch.tensor(a).sin() if i % 2 == 0 else torch.tensor(a).cos() for i, a in enumerate(expected)]
    torch.testing.assert_close(positions[1, 2], torch.stack(expected))


def test_reference_points_by_hand():
    expected = [[0.25, 1 / 6], [0.75, 1 / 6], [0.25, 0.5], [0.75, 0.5], [0.25, 5 / 6], [0.75, 5 / 6]]
    torch.testing.assert_close(reference_points(3, 2), torch.tensor(expected))


def test_what_the_encoder_knows_of_the_sizes_is_made_once(model, clips, monkeypatch):
    modeling.grid_constants.cache_clear()
    with torch.inference_mode():  # its tensors can never take part in a backward pass
        expected = model(**clips).logits.clone()
    made = modeling.grid_constants.cache_info().currsize
    assert made == 1
    logits = model(**clips).logits
    logits.sum().backward()
    torch.testing.assert_close(logits, expected)
    assert modeling.grid_constants.cache_info().currsize == made
    other = {**clips, "pixel_values": clips["pixel_values"][..., :-32]}
    assert model(**other).logits.shape[-1] == logits.shape[-1] - 32
    assert modeling.grid_constants.cache_info().currsize == 2


@torch.no_grad()
def test_works_without_the_package_of_the_op(model, clips, monkeypatch):
    expected = model(**clips).logits
    monkeypatch.setattr(modeling, "ms_deform_attn", None)
    torch.testing.assert_close(model(**clips).logits, expected)


def test_the_op_s_backend_is_the_configuration_s(make_config, clips):
    with pytest.raises(ValueError, match="nonsense"):
        AVSegFormerForSegmentation(make_config(deform_attn_backend="nonsense"))(**clips)


def test_frozen_audio_encoder(model, clips, make_config):
    model.train()
    assert not model.get_audio_encoder().training
    assert not model.get_audio_embeddings(clips["input_features"]).requires_grad
    model.requires_grad_(True)  # a trainer that thaws everything does not thaw this
    assert not model.get_audio_embeddings(clips["input_features"]).requires_grad
    learning = AVSegFormerForSegmentation(make_config(freeze_audio_encoder=False))
    assert learning.train().get_audio_encoder().training
    assert learning.get_audio_embeddings(clips["input_features"]).requires_grad


@pytest.mark.parametrize("name", ["test_resnet", "pvt_v2_b0"])
def test_frozen_backbone_keeps_weights_statistics_and_paths(make_config, clips, name):
    model = AVSegFormerForSegmentation(make_config(backbone=name, dropout=0.0))
    model.freeze_backbone()
    model.train()
    before = {key: value.clone() for key, value in model.get_backbone().state_dict().items()}
    first, second = model(**clips, labels=torch.ones(2, 3, 96, 64)), model(**clips)
    first.loss.backward()
    assert all(p.grad is None for p in model.get_backbone().parameters())
    for key, value in model.get_backbone().state_dict().items():
        assert torch.equal(value, before[key]), key
    torch.testing.assert_close(first.logits, second.logits)  # no drop path

    model.freeze_backbone(False)
    assert model.get_backbone().training
    model(**clips, labels=torch.ones(2, 3, 96, 64)).loss.backward()
    assert all(p.grad is not None for p in model.get_backbone().parameters())
    model.eval().freeze_backbone(False)
    assert not model.get_backbone().training


def test_save_and_load(model, clips, tmp_path):
    model.save_pretrained(tmp_path)
    for loaded in (AVSegFormerForSegmentation.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is AVSegFormerForSegmentation
        for (name, ours), (other, theirs) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
            assert name == other and torch.equal(ours, theirs)
        with torch.no_grad():
            torch.testing.assert_close(loaded(**clips).logits, model(**clips).logits)
        assert not any(p.requires_grad for p in loaded.get_audio_encoder().parameters())
        assert loaded.get_backbone().timm_model["conv1"][0].weight.requires_grad
    loaded, info = AVSegFormerForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_save_and_load_buffers_that_are_not_in_the_checkpoint(make_config, clips, tmp_path):
    kwargs = {"img_size": (96, 64), "embed_dim": 12, "depths": (1, 2, 1, 1)}
    config = make_config(backbone="swin_tiny_patch4_window7_224", backbone_kwargs=kwargs)
    model = AVSegFormerForSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            AVSegFormerForSegmentation.from_pretrained(tmp_path)(**clips).logits, model(**clips).logits
        )


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_resnet", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": (96, 64), "embed_dim": 12, "depths": (1, 2, 1, 1)}),
    ],
)
def test_buffers_after_loading(make_config, clips, tmp_path, name, kwargs):
    """Loading starts on the meta device, where no buffer has a content."""
    model = AVSegFormerForSegmentation(make_config(backbone=name, backbone_kwargs=kwargs)).train()
    model(**clips)  # batch norms have statistics of their own now
    model.save_pretrained(tmp_path)
    loaded = AVSegFormerForSegmentation.from_pretrained(tmp_path)
    buffers, ours = dict(loaded.named_buffers()), dict(model.named_buffers())
    assert buffers.keys() == ours.keys() and buffers
    for buffer in buffers:
        assert torch.equal(buffers[buffer], ours[buffer]), buffer
    if name == "test_resnet":
        assert max(ours[buffer].abs().max() for buffer in ours if buffer.endswith("running_mean")) > 0


def test_saved_configuration_names_the_code(model, tmp_path):
    model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_avsegformer.AVSegFormerConfig",
        "AutoModel": "modeling_avsegformer.AVSegFormerForSegmentation",
    }
    assert all((tmp_path / f"{name.split('.')[0]}.py").is_file() for name in auto_map.values())


def test_auto_model_from_a_configuration(make_config):
    assert type(AutoModel.from_config(make_config())) is AVSegFormerForSegmentation


@pytest.mark.slow
@pytest.mark.parametrize("module", [configuration, modeling])
def test_examples_of_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_the_bare_model_saves_and_loads(model, clips, tmp_path):
    model.model.save_pretrained(tmp_path / "bare")
    bare = AVSegFormerModel.from_pretrained(tmp_path / "bare")
    with torch.no_grad():
        output = bare(**clips)
        torch.testing.assert_close(output.mask_features, model(**clips).mask_features)
    assert output.queries.shape == (6, 7, 64) and output.audio_tokens.shape == (6, 1, 64)
    # A new head on a trained body is fine.
    fine_tuned = AVSegFormerForSegmentation.from_pretrained(tmp_path / "bare")
    assert torch.equal(fine_tuned.model.query_embed.weight, model.model.query_embed.weight)


def test_configuration_round_trip(make_config, tmp_path):
    config = make_config(backbone_kwargs={"drop_rate": 0.25}, loss_type="dice")
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is AVSegFormerConfig and type(loaded.audio_config) is VGGishConfig
    assert loaded.to_json_string() == config.to_json_string()
    assert loaded.backbone_kwargs == {"drop_rate": 0.25} and loaded.audio_config.fc_size == 16


def test_default_configuration_is_the_paper_s():
    config = AVSegFormerConfig()
    assert (config.backbone, config.num_queries, config.hidden_size) == ("pvt_v2_b5", 300, 256)
    assert config.use_similarity_head and config.loss_type == "bce_dice"
    with torch.device("meta"):
        audio_encoder = VGGishModel(config.audio_config)
    assert audio_encoder.num_parameters() == 72141184


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 48}, "`hidden_size` to be a multiple of norm_groups, got hidden_size=48 and 32"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads, got hidden_size=64 and 5"),
        ({"hidden_size": 66, "num_attention_heads": 2, "norm_groups": 2}, r"sine positions \(4\)"),
        ({"loss_type": "focal"}, "one of bce_dice, dice, bce for `loss_type`, got 'focal'"),
        ({"prediction_channels": [8]}, "two widths"),
        ({"num_frames": 0}, "between 1 and 4096 for `num_frames`, got 0"),
        ({"num_queries": 5_000_000}, "between 1 and 10000 for `num_queries`, got 5000000"),
        ({"encoder_layers": 100_000}, "between 0 and 100 for `encoder_layers`, got 100000"),
        ({"decoder_ffn_size": -1}, "for `decoder_ffn_size`, got -1"),
        ({"num_attention_heads": 0}, "for `num_attention_heads`, got 0"),
        ({"prediction_channels": [8, -8]}, "for `prediction_channels`, got -8"),
        ({"dropout": float("nan")}, "between 0 and 1 for `dropout`, got nan"),
        ({"mix_weight": float("inf")}, "for `mix_weight`, got inf"),
        ({"audio_config": {"fc_size": 10**9}}, "for `fc_size`, got 1000000000"),
        ({"audio_config": {"conv_channels": [4, 4, 8, 0]}}, "for `conv_channels`, got 0"),
        ({"audio_config": {"conv_channels": [4, 4]}}, "four widths"),
        ({"audio_config": {"num_frames": 90}}, "multiples of 16"),
        ({"backbone_kwargs": {"pretrained": True}}, "`backbone_kwargs` .*got 'pretrained'"),
        ({"backbone_kwargs": {"checkpoint_path": "secret"}}, "`backbone_kwargs` .*got 'checkpoint_path'"),
        ({"backbone_kwargs": {"depths": [2, 10**5, 2, 2]}}, "for `backbone_kwargs.depths`, got 100000"),
        ({"backbone_kwargs": {"depths": [1] * 1000}}, "at most 16 numbers in `backbone_kwargs.depths`, got 1000"),
        ({"backbone_kwargs": {"embed_dim": "wide"}}, "for `backbone_kwargs.embed_dim`, got 'wide'"),
    ],
)
def test_bad_configuration(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_configuration_of_another_type(make_config):
    with pytest.raises(StrictDataclassFieldValidationError, match="'num_queries' expected int, got str"):
        make_config(num_queries="many")
    assert make_config(dropout=0, bce_weight=2).bce_weight == 2


@pytest.mark.parametrize("other", [{"backbone": "resnet10t"}, {"backbone": "test_resnet", "hidden_size": 32}])
def test_checkpoint_of_other_shapes(model, make_config, tmp_path, other):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another backbone or of other sizes"):
        AVSegFormerForSegmentation.from_pretrained(tmp_path, config=make_config(**other))


def test_checkpoint_of_a_backbone_with_other_tensors(make_config, tmp_path):
    AVSegFormerForSegmentation(make_config(backbone="resnet18")).save_pretrained(tmp_path)
    # The same widths, more blocks: no shape disagrees, some tensors are missing.
    with pytest.raises(ValueError, match="with the backbone 'resnet34'.* missing or unknown, e.g. model.backbone"):
        AVSegFormerForSegmentation.from_pretrained(tmp_path, config=make_config(backbone="resnet34"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": torch.zeros(2, 0, 3, 64, 64), "input_features": torch.zeros(2, 0, 1, 96, 64)}, "one frame"),
        ({"pixel_values": torch.zeros(2, 3, 64, 64)}, r"\(clips, frames, 3, height, width\).*got \(2, 3, 64, 64\)"),
        ({"pixel_values": torch.zeros(2, 3, 1, 64, 64)}, r"got \(2, 3, 1, 64, 64\)"),
        ({"pixel_values": torch.zeros(2, 3, 3, 24, 64)}, "at least 32x32 pixels.*got 24x64"),
        ({"input_features": torch.zeros(2, 2, 1, 96, 64)}, r"begin with \(2, 3\) and the sound with \(2, 2\)"),
        ({"input_features": torch.zeros(2, 3, 96, 64)}, r"got \(2, 3, 96, 64\)"),
        ({"input_features": torch.zeros(2, 3, 1, 64, 96)}, r"\(..., 1, 96, 64\), got \(2, 3, 1, 64, 96\)"),
        ({"input_features": None}, "either `input_features` or `audio_embeddings`, got neither"),
        ({"audio_embeddings": torch.zeros(2, 3, 11)}, "either `input_features` or `audio_embeddings`, got both"),
        ({"labels": torch.zeros(2, 4, 96, 64)}, r"K from 1 to 3, got \(2, 4, 96, 64\)"),
        ({"labels": torch.zeros(2, 0, 96, 64)}, r"got \(2, 0, 96, 64\)"),
        ({"labels": torch.zeros(1, 3, 96, 64)}, r"got \(1, 3, 96, 64\)"),
        ({"labels": torch.zeros(2, 3, 64, 96)}, "size of the frames, 96x64, got 64x96"),
        ({"audio_labels": torch.zeros(2, 3)}, r"`audio_labels` of shape \(2,\), got \(2, 3\)"),
    ],
)
def test_bad_inputs(model, clips, changes, message):
    with pytest.raises(ValueError, match=message):
        model(**clips | changes)


@pytest.mark.slow
@torch.no_grad()
def test_compiles_without_graph_breaks(make_config, clips):
    # one layer of each, since tracing takes seconds a layer
    config = make_config(query_generator_layers=1, encoder_layers=1, decoder_layers=1, deform_attn_backend="auto")
    model = AVSegFormerForSegmentation(config).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**clips).logits, model(**clips).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_bfloat16(model, clips, tmp_path):
    expected = model(**clips).logits
    model.save_pretrained(tmp_path)
    half = AVSegFormerForSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    labels = torch.ones(2, 3, 96, 64)
    output = half(**clips, labels=labels, audio_labels=torch.tensor([1, 0]))
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    assert (output.logits.float() - expected).abs().mean() < 0.05 * expected.std()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**clips, labels=labels, audio_labels=torch.tensor([1, 0]))
    assert (mixed.logits.float() - expected).abs().mean() < 0.05 * expected.std()
    assert mixed.loss.dtype == torch.float32


def test_gradient_checkpointing_gives_the_same_gradients(make_config, clips):
    torch.manual_seed(0)
    model = AVSegFormerForSegmentation(make_config(dropout=0.0)).train()
    model.freeze_backbone()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        layers = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
        assert len(layers) >= 6 and all(layer.gradient_checkpointing == checkpointing for layer in layers)
        model.zero_grad()
        model(**clips, labels=torch.ones(2, 3, 96, 64)).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_pretrained_backbone(make_config, monkeypatch):
    config = make_config(backbone="test_resnet")
    create = backbone._create_timm_features

    def with_sevens(config, pretrained):
        features = create(config, pretrained=False)
        if pretrained:
            features.load_state_dict({key: torch.full_like(value, 7) for key, value in features.state_dict().items()})
        return features

    monkeypatch.setattr(backbone, "_create_timm_features", with_sevens)
    model = AVSegFormerForSegmentation.from_backbone_pretrained(config)
    assert all((value == 7).all() for value in model.get_backbone().state_dict().values())
    assert not (model.model.query_embed.weight == 7).any()


def test_pretrained_backbone_that_cannot_be_reached(model, monkeypatch, caplog):
    def unreachable(config, pretrained):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(backbone, "_create_timm_features", unreachable)
    before = {key: value.clone() for key, value in model.get_backbone().state_dict().items()}
    logging.getLogger("transformers").propagate = True
    try:
        with caplog.at_level(logging.WARNING):
            assert model.load_pretrained_backbone() is False
    finally:
        logging.getLogger("transformers").propagate = False
    assert sum("'test_resnet' could not be fetched" in record.message for record in caplog.records) == 1
    assert all(torch.equal(value, before[key]) for key, value in model.get_backbone().state_dict().items())


def test_pretrained_backbone_that_does_not_exist(make_config):
    model = AVSegFormerForSegmentation(make_config(backbone="resnet10t", backbone_kwargs={"in_chans": 3}))
    model.config.backbone = "resnetv2_50d"  # timm has no weights for it
    with pytest.raises(ValueError, match="pretrained weights in timm .* got 'resnetv2_50d'"):
        model.load_pretrained_backbone()


def test_an_older_transformers_is_refused_by_name(monkeypatch):
    file = Path(modeling.__file__).with_name("configuration_avsegformer.py")
    spec = importlib.util.spec_from_file_location("configuration_of_today", file)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.22.0")
    with pytest.raises(ImportError, match=r"transformers>=5\.23.*found transformers==5\.22\.0"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
