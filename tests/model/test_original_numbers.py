"""The ResNet-50 model against numbers that the original code gave, see tests/fixtures/README.md."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_avsegformer import AVSegFormerConfig, AVSegFormerForSegmentation
from modeling_avsegformer.convert_original_checkpoint import convert_original_state_dict
from modeling_avsegformer.loss_avsegformer import avsegformer_loss
from modeling_avsegformer.modeling_avsegformer import AVSegFormerOutput

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parents[1] / "fixtures"
REFERENCE = np.load(FIXTURES / "avsegformer_resnet50.npz")
LOGITS_TOLERANCE = 1e-4  # the original differs from its own float64 by 2e-5

# Fixture name to the module of ours whose output it is.
STAGES = {
    "vggish_features": "model.audio_encoder.features",
    "vggish": "model.audio_encoder.embeddings",
    "audio_proj": "model.audio_projection",
    **{f"in_proj{i}": f"model.input_projections.{i}" for i in range(4)},
    "encoder_layer0_msdeform_out": "model.encoder.layers.0.self_attn",
    **{f"encoder_layer{i}": f"model.encoder.layers.{i}" for i in range(6)},
    "memory": "model.encoder",
    **{f"query_generator_layer{i}": f"model.query_generator.layers.{i}" for i in range(6)},
    **{f"decoder_layer{i}": f"model.decoder.{i}" for i in range(6)},
    "lateral_conv": "model.pixel_decoder.lateral_conv",
    "out_conv": "model.pixel_decoder",
    "fusion_proj_pre_sigmoid": "model.audio_gate.proj",
    "mask_feature": "model.audio_gate",
    "pred_feature_mlp": "mask_head.mlp",
    "cosine_audio_proj": "similarity_head.audio_projection",
}


@pytest.fixture(scope="module")
def original(weight_fill):
    """Our model with the filled weights, and the name of ours for each original name."""
    shapes = json.loads((FIXTURES / "original_resnet50_state_dict.json").read_text(encoding="utf-8"))
    state_dict = weight_fill.state_dict(shapes)
    config = AVSegFormerConfig(backbone="resnet50", loss_type="dice")
    converted = convert_original_state_dict(state_dict, config)
    model = AVSegFormerForSegmentation(config).eval()
    model.load_state_dict(converted)
    ours_by_id = {id(tensor): name for name, tensor in converted.items()}
    names = {name: ours_by_id[id(tensor)] for name, tensor in state_dict.items() if id(tensor) in ours_by_id}
    return model, names


def with_stages(model, images, audio, **labels):
    """The image embeddings and the outputs for one clip, and what the stages gave on the way."""
    stages = {}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _, __, output, name=name: stages.update({name: output.detach()})
        )
        for name, path in STAGES.items()
    ]
    image_embeddings = model.get_image_embeddings(images[None])
    output = model(image_embeddings=image_embeddings, input_features=audio[None], **labels)
    for hook in hooks:
        hook.remove()
    return image_embeddings, output, stages


@pytest.fixture(scope="module")
def first_clip(original, weight_fill):
    """Of the first five frames, with the graph of their gradients."""
    images, audio = weight_fill.inputs(10)
    labels, audio_labels = targets(weight_fill, "ms3_b1_pos")
    return with_stages(original[0], images[:5], audio[:5], labels=labels, audio_labels=audio_labels)


@pytest.fixture(scope="module")
def ten_frames(original, weight_fill, first_clip):
    """The outputs for two clips of five frames, and what the stages gave on the way."""
    images, audio = weight_fill.inputs(10)
    _, first, first_stages = first_clip
    with torch.no_grad():
        _, second, second_stages = with_stages(original[0], images[5:], audio[5:])
    names = ("logits", "similarity", "mask_features")
    output = AVSegFormerOutput(**{name: torch.cat([first[name].detach(), second[name]]) for name in names})
    return output, {name: torch.cat([stage, second_stages[name]]) for name, stage in first_stages.items()}


def test_the_weight_fill_is_the_fixture_s(weight_fill):
    np.testing.assert_allclose(
        weight_fill.weight("audio_proj.weight", [256, 128])[0, :3], [-0.04512678, -0.03621396, 0.00139934], atol=1e-8
    )
    images, audio = weight_fill.inputs(10)
    assert images.double().sum() == pytest.approx(-700.83853, abs=1e-3)
    assert audio.double().sum() == pytest.approx(-92105.57159, abs=1e-2)


def test_logits_and_similarity(ten_frames):
    output, _ = ten_frames
    logits = output.logits.flatten(0, 1)
    np.testing.assert_allclose(logits[:, 3::7, 3::7], REFERENCE["slice/logits"], atol=LOGITS_TOLERANCE)
    np.testing.assert_allclose(logits[0], REFERENCE["full/logits_frame0"], atol=LOGITS_TOLERANCE)
    np.testing.assert_allclose(output.similarity.flatten(), REFERENCE["full/similarity"], atol=1e-6)
    np.testing.assert_allclose(samples(output.mask_features), REFERENCE["smp/mask_feature_out"], atol=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_stages(ten_frames, name):
    _, stages = ten_frames
    stage, spread = stages[name], REFERENCE[f"stat/{name}"][2]
    assert list(stage.shape) == REFERENCE[f"shape/{name}"].tolist()
    np.testing.assert_allclose(samples(stage), REFERENCE[f"smp/{name}"], atol=1e-4 * max(spread, 1e-3))


def test_other_audio_with_the_same_image_embeddings(original, first_clip, weight_fill):
    model, _ = original
    image_embeddings, _, _ = first_clip
    _, audio = weight_fill.inputs(10)
    other = 0.5 * audio.flip(0)[None, :5] - 1
    with torch.no_grad():
        output = model(image_embeddings=image_embeddings, input_features=other)
    np.testing.assert_allclose(
        output.logits[0, :, 3::7, 3::7], REFERENCE["slice/audioB_logits"][:5], atol=LOGITS_TOLERANCE
    )
    np.testing.assert_allclose(output.similarity[0], REFERENCE["full/audioB_similarity"][:5], atol=1e-6)


def test_another_size(original, weight_fill):
    model, _ = original
    images, audio = weight_fill.inputs(2, 256, 320)
    with torch.no_grad():
        output = model(images[None], audio[None])
    np.testing.assert_allclose(
        output.logits[0, :, 4::8, 5::10], REFERENCE["slice/rect_256x320_logits"], atol=LOGITS_TOLERANCE
    )
    np.testing.assert_allclose(output.similarity[0], REFERENCE["full/rect_256x320_similarity"], atol=1e-6)


def targets(weight_fill, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and audio labels of a case: S4 supervises the first frame, MS3 all five."""
    return {
        "s4_b2": (weight_fill.discs(2, empty=(1,))[:, None], torch.tensor([1, 0])),
        "s4_b1": (weight_fill.discs(1)[:, None], torch.tensor([1])),
        "ms3_b1_pos": (weight_fill.discs(5, empty=(3,))[None], torch.tensor([1])),
        "ms3_b1_neg": (torch.zeros(1, 5, 224, 224), torch.tensor([0])),
    }[case]


@pytest.mark.parametrize("loss_type", ["dice", "bce"])
@pytest.mark.parametrize("case", ["s4_b2", "s4_b1", "ms3_b1_pos", "ms3_b1_neg"])
def test_losses(ten_frames, weight_fill, case, loss_type):
    output, _ = ten_frames
    labels, audio_labels = targets(weight_fill, case)
    clips = len(labels)
    config = AVSegFormerConfig(loss_type=loss_type)
    features = output.mask_features[: 5 * clips]
    loss, parts = avsegformer_loss(
        output.logits[:clips], features, output.similarity[:clips], labels, audio_labels, config
    )
    similarity = REFERENCE[f"loss/{case}/sim_bce"]
    assert parts["similarity"].item() == pytest.approx(similarity, rel=1e-5)
    assert parts["mask"].item() == pytest.approx(REFERENCE[f"loss/{case}/{loss_type}_iou"], rel=1e-5)
    assert 0.1 * parts["mix"].item() == pytest.approx(REFERENCE[f"loss/{case}/{loss_type}_mix_weighted"], rel=1e-5)
    assert loss.item() == pytest.approx(REFERENCE[f"loss/{case}/{loss_type}_total"] + similarity, rel=1e-5)


# Behind these, a gradient takes the same way in both cases.
HEADS = ("mask_head.", "similarity_head.", "model.audio_gate.", "model.decoder.5.")


@pytest.mark.parametrize("case", ["s4_b1", "ms3_b1_pos"])
def test_gradients(original, first_clip, weight_fill, case):
    model, names = original
    _, output, _ = first_clip
    labels, audio_labels = targets(weight_fill, case)
    loss, parameters = output.loss, {name: p for name, p in model.named_parameters() if p.requires_grad}
    if case == "s4_b1":
        loss, _ = avsegformer_loss(
            output.logits, output.mask_features, output.similarity, labels, audio_labels, model.config
        )
        parameters = {name: p for name, p in parameters.items() if name.startswith(HEADS)}
    assert loss.item() == pytest.approx(REFERENCE[f"loss/{case}/total"], rel=1e-5)
    gradients = torch.autograd.grad(loss, parameters.values(), retain_graph=True, allow_unused=True)
    gradients = dict(zip(parameters, gradients, strict=True))

    global_norm = REFERENCE[f"grad/{case}/global_norm"]
    if case == "ms3_b1_pos":
        norm = torch.stack([g.double().norm() for g in gradients.values() if g is not None]).norm()
        assert norm.item() == pytest.approx(global_norm, rel=1e-3)
    compared = 0
    for name, expected_norm, expected_samples in zip(
        REFERENCE[f"grad/{case}/names"],
        REFERENCE[f"grad/{case}/norm"],
        REFERENCE[f"grad/{case}/sample8"],
        strict=True,
    ):
        if names[str(name)] in gradients and expected_norm > 1e-6 * global_norm:
            gradient = gradients[names[str(name)]]
            assert gradient.norm().item() == pytest.approx(expected_norm, rel=1e-3), name
            largest = gradient.abs().max().item()
            np.testing.assert_allclose(samples(gradient, 8), expected_samples, atol=1e-3 * largest, err_msg=name)
            compared += 1
    assert compared >= 12
    # What the original never uses does not exist here; what exists is used.
    assert not set(REFERENCE[f"grad/{case}/none_names"].tolist()) & names.keys()
    assert [name for name, gradient in gradients.items() if gradient is None] == []


def samples(tensor: torch.Tensor, count: int = 64) -> np.ndarray:
    flat = tensor.detach().flatten().numpy()
    return flat[(np.arange(count) * flat.size) // count]
