"""What tests of several folders need: a tiny model, written where `from_pretrained` finds it."""

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


@pytest.fixture(scope="session")
def write_model(tmp_path_factory):
    """write_model(backbone, size of the frames, changes of the configuration): a `from_pretrained` folder."""

    def write_model(backbone: str = "test_resnet", size: int = 64, **changes) -> str:
        folder = tmp_path_factory.mktemp("tiny_model")
        torch.manual_seed(0)
        config = AVSegFormerConfig(
            backbone=backbone,
            audio_config=VGGishConfig(conv_channels=[4, 4, 8, 8], fc_size=32),
            hidden_size=32,
            num_attention_heads=4,
            norm_groups=8,
            num_queries=8,
            query_generator_layers=1,
            query_generator_ffn_size=32,
            encoder_layers=1,
            encoder_ffn_size=32,
            decoder_layers=1,
            decoder_ffn_size=32,
            mask_mlp_size=32,
            prediction_channels=[16, 8],
            **changes,
        )
        AVSegFormerForSegmentation(config).save_pretrained(folder)
        image_processor = AVSegFormerImageProcessor(size={"height": size, "width": size})
        AVSegFormerProcessor(image_processor, VGGishFeatureExtractor()).save_pretrained(folder)
        return str(folder)

    return write_model
