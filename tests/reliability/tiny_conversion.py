"""The conversion of an original checkpoint, with a model so small that a run takes a second. Not a test module.

All is the command's own but the sizes of the configuration and the backbone, timm's `test_resnet`, whose names fall
under the rules for ResNet-50.
"""

import re
import sys
from functools import partial

import torch

from modeling_avsegformer import AVSegFormerConfig, AVSegFormerForSegmentation, VGGishConfig, original_state_dict
from modeling_avsegformer import convert_original_checkpoint as conversion

SIZES = dict(
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

# Ours to the original's, the reverse of `conversion.RULES`.
ORIGINAL = [
    (r"model\.backbone\.timm_model\.layer([34])\.", r"backbone.layer\1_1."),
    (r"model\.backbone\.timm_model\.", "backbone."),
    (r"model\.audio_encoder\.", "vggish."),
    (r"model\.audio_projection\.", "audio_proj."),
    (r"similarity_head\.audio_projection\.", "cosine_sim.audio_proj."),
    (r"model\.input_projections\.", "head.in_proj."),
    (r"model\.encoder\.level_embed", "head.level_embed"),
    (r"model\.encoder\.layers\.", "head.transformer.encoder.layers."),
    (r"model\.decoder\.", "head.transformer.decoder.layers."),
    (r"model\.query_generator\.", "head.query_generator."),
    (r"model\.query_embed\.", "head.learnable_query."),
    (r"model\.pixel_decoder\.", "head."),
    (r"model\.audio_gate\.", "head.fusion_block."),
    (r"mask_head\.mlp\.([024])\.", lambda m: f"head.mlp.layers.{int(m[1]) // 2}."),
    (r"mask_head\.reduce\.", "head.fc.0."),
    (r"mask_head\.predict\.0\.", "head.fc.2."),
    (r"mask_head\.predict\.2\.", "head.fc.4."),
]


def write_original(path) -> None:
    """A checkpoint as the original would write it, with three tensors that it never uses."""
    torch.manual_seed(0)
    state_dict = AVSegFormerForSegmentation(AVSegFormerConfig(backbone="test_resnet", **SIZES)).state_dict()
    names = {}
    for name in state_dict:
        pattern, original = next(rule for rule in ORIGINAL if re.match(rule[0], name))
        names[name] = "module." + re.sub(f"^{pattern}", original, name)
    unused = {f"module.head.attn_fc.{index}.weight": torch.ones(3, 3) for index in range(3)}
    torch.save({names[name]: tensor for name, tensor in state_dict.items()} | unused, path)


def shrink() -> None:
    conversion.AVSegFormerConfig = partial(AVSegFormerConfig, **SIZES)
    for module in (conversion, original_state_dict):
        module.detect_backbone = lambda state_dict: "test_resnet"


def main() -> None:
    shrink()
    conversion.main(sys.argv[1:])
