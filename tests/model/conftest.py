"""One tiny AVSegFormer for all tests of the model."""

import importlib.util
from pathlib import Path

import pytest
import torch

from modeling_avsegformer import AVSegFormerConfig, AVSegFormerForSegmentation, VGGishConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"


def tiny_config(**changes) -> AVSegFormerConfig:
    settings = {
        "backbone": "test_resnet",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_points": 3,
        "num_queries": 7,
        "query_generator_layers": 2,
        "query_generator_ffn_size": 24,
        "encoder_layers": 2,
        "encoder_ffn_size": 40,
        "decoder_layers": 2,
        "decoder_ffn_size": 32,
        "mask_mlp_size": 20,
        "prediction_channels": [12, 5],
        "audio_config": VGGishConfig(conv_channels=[4, 4, 6, 8], fc_size=16, embedding_size=11),
        "deform_attn_backend": "reference",
    }
    return AVSegFormerConfig(**settings | changes)


@pytest.fixture
def make_config():
    return tiny_config


@pytest.fixture
def model() -> AVSegFormerForSegmentation:
    torch.manual_seed(0)
    return AVSegFormerForSegmentation(tiny_config()).eval()


@pytest.fixture
def clips() -> dict[str, torch.Tensor]:
    """Two clips of three frames, higher than wide."""
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(2, 3, 3, 96, 64, generator=generator),
        "input_features": torch.randn(2, 3, 1, 96, 64, generator=generator),
    }


@pytest.fixture(scope="session")
def weight_fill():
    path = Path(__file__).parent / "weight_fill.py"
    spec = importlib.util.spec_from_file_location("weight_fill", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
