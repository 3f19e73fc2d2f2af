"""The model with every backend: the same logits and gradients."""

import pytest
import torch

from modeling_avsegformer import AVSegFormerConfig, AVSegFormerForSegmentation, VGGishConfig
from ms_deform_attn import backends


def test_logits_and_gradients_are_the_same_with_every_backend():
    names = [name for name in ("reference", "cpu", "auto") if name == "auto" or backends()[name]]
    if len(names) < 3:
        pytest.skip(backends()["cpu"])
    results = {}
    clips = {"pixel_values": torch.randn(2, 3, 3, 96, 64), "input_features": torch.randn(2, 3, 1, 96, 64)}
    for name in names:
        torch.manual_seed(0)
        config = AVSegFormerConfig(
            backbone="test_resnet",
            hidden_size=64,
            num_attention_heads=4,
            num_points=3,
            num_queries=7,
            query_generator_layers=1,
            encoder_layers=2,
            encoder_ffn_size=40,
            decoder_layers=1,
            mask_mlp_size=20,
            prediction_channels=[12, 5],
            audio_config=VGGishConfig(conv_channels=[4, 4, 6, 8], fc_size=16, embedding_size=11),
            deform_attn_backend=name,
        )
        model = AVSegFormerForSegmentation(config).eval()
        with torch.no_grad():
            # A new model looks at centres of pixels, where a bilinear sample has a kink and its gradient two values.
            for key, parameter in model.named_parameters():
                if "sampling_offsets" in key:
                    parameter += 0.2 * torch.randn_like(parameter)
        logits = model(**clips).logits
        logits.square().mean().backward()
        offsets = [parameter.grad for key, parameter in model.named_parameters() if "sampling_offsets" in key]
        assert offsets and all(grad.any() for grad in offsets)
        results[name] = [logits.detach(), *offsets]
    for name in names[1:]:
        torch.testing.assert_close(results[name][0], results["reference"][0], rtol=0, atol=1e-5)
        for got, expected in zip(results[name][1:], results["reference"][1:], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
