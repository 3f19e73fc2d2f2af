"""A loopback Hub, a small model and its processor."""

import pytest
import torch

from modeling_avsegformer import (
    AVSegFormerConfig,
    AVSegFormerForSegmentation,
    AVSegFormerImageProcessor,
    AVSegFormerProcessor,
    VGGishConfig,
    VGGishFeatureExtractor,
)
from tests.loopback import client, hub, start_hub  # noqa: F401  (fixtures)


@pytest.fixture
def model() -> AVSegFormerForSegmentation:
    torch.manual_seed(0)
    config = AVSegFormerConfig(
        backbone="test_resnet",
        audio_config=VGGishConfig(conv_channels=[4, 4, 6, 8], fc_size=16, embedding_size=11),
        hidden_size=32,
        num_attention_heads=4,
        norm_groups=8,
        num_queries=7,
        query_generator_layers=1,
        query_generator_ffn_size=24,
        encoder_layers=1,
        encoder_ffn_size=40,
        decoder_layers=1,
        decoder_ffn_size=32,
        mask_mlp_size=20,
        prediction_channels=[12, 5],
    )
    return AVSegFormerForSegmentation(config).eval()


@pytest.fixture
def processor() -> AVSegFormerProcessor:
    return AVSegFormerProcessor(
        AVSegFormerImageProcessor(size={"height": 64, "width": 96}), VGGishFeatureExtractor(num_seconds=1)
    )
