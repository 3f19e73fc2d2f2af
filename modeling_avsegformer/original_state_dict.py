"""The state dict of our model from one of an original AVSegFormer or AVSBench-Robust checkpoint.

Every original name falls under one rule of `RULES`, and the tensors keep their shapes and values.
"""

import re

import torch
from torch import Tensor
from transformers.utils import logging

from .checkpoint_reader import plain_name
from .configuration_avsegformer import AVSegFormerConfig
from .encoder_weights import check_fit, renamed, timm_backbone_name
from .modeling_avsegformer import AVSegFormerForSegmentation

logger = logging.get_logger(__name__)

# Original name (a regular expression) to ours; the first that matches counts. `encoder_weights.py` has the backbone's.
RULES = [
    (r"vggish\.(features|embeddings)\.", r"model.audio_encoder.\1."),
    (r"audio_proj\.", r"model.audio_projection."),
    (r"cosine_sim\.audio_proj\.", r"similarity_head.audio_projection."),
    (r"head\.in_proj\.", r"model.input_projections."),
    (r"head\.level_embed$", r"model.encoder.level_embed"),
    (r"head\.transformer\.encoder\.layers\.", r"model.encoder.layers."),
    (r"head\.transformer\.decoder\.layers\.", r"model.decoder."),
    (r"head\.query_generator\.", r"model.query_generator."),
    (r"head\.learnable_query\.", r"model.query_embed."),
    (r"head\.(lateral_conv|out_conv)\.", r"model.pixel_decoder.\1."),
    (r"head\.fusion_block\.", r"model.audio_gate."),
    (r"head\.mlp\.layers\.([0-2])\.", lambda m: f"mask_head.mlp.{2 * int(m[1])}."),
    (r"head\.fc\.0\.", r"mask_head.reduce."),
    (r"head\.fc\.2\.", r"mask_head.predict.0."),
    (r"head\.fc\.4\.", r"mask_head.predict.2."),
]

# What the original creates and never uses: a feature pyramid, an attention head, and ResNet's second branch.
UNUSED = re.compile(r"head\.(fpn|attn_fc)\.|backbone\.layer[34]_2\.|vggish\.pproc\.")


def detect_backbone(state_dict: dict[str, Tensor]) -> str | None:
    """The timm name of the original backbone whose names are in a state dict, None if neither's are."""
    names = set(map(plain_name, state_dict))
    if "backbone.patch_embed1.proj.weight" in names:
        return "pvt_v2_b5"
    return "resnet50" if "backbone.layer4_1.0.conv1.weight" in names else None


def convert_original_state_dict(state_dict: dict[str, Tensor], config: AVSegFormerConfig) -> dict[str, Tensor]:
    """The state dict of our model from an original one; the log names what was left out.

    Args:
        state_dict: tensors by original name, with or without what DataParallel or torch.compile puts before it.
        config (`AVSegFormerConfig`): of the model that is to take them. With `use_similarity_head=False` the
            similarity head's tensors are left out.

    Returns:
        `dict[str, Tensor]`: the same tensors (not copies) for `AVSegFormerForSegmentation.load_state_dict`

    Raises:
        ValueError: the state dict has another backbone than the configuration, lacks a tensor, or has one of another
            shape; the message names it.
    """
    return convert_and_report(state_dict, config)[0]


def convert_and_report(
    state_dict: dict[str, Tensor], config: AVSegFormerConfig
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """`convert_original_state_dict`, the names that the original never uses, and those that no rule knows."""
    found = detect_backbone(state_dict)
    if found is None or config.backbone.split(".")[0] != found:
        raise ValueError(
            f"Expected an original checkpoint with the backbone {config.backbone!r}, but this one has "
            f"{repr(found) if found else 'neither PVT-v2-b5 nor ResNet-50'}. "
            + (f"Use AVSegFormerConfig(backbone={found!r})." if found else "It is not an AVSegFormer checkpoint.")
        )
    converted, unused, unknown = {}, [], []
    for name, tensor in state_dict.items():
        name = plain_name(name)
        if UNUSED.match(name) or (name.startswith("cosine_sim.") and not config.use_similarity_head):
            unused.append(name)
        elif (new_name := _our_name(name)) is None:
            unknown.append(name)
        else:
            converted[new_name] = tensor
    _check_complete(converted, config)
    if unused:
        logger.info(f"{len(unused)} tensors that the original never uses were left out: {unused}")
    if unknown:
        logger.warning(f"{len(unknown)} tensors are unknown and were left out: {unknown}")
    return converted, unused, unknown


def _our_name(name: str) -> str | None:
    if name.startswith("backbone."):
        timm_name = timm_backbone_name(name.removeprefix("backbone."))
        return timm_name and f"model.backbone.timm_model.{timm_name}"
    return renamed(name, RULES)


def _check_complete(converted: dict[str, Tensor], config: AVSegFormerConfig) -> None:
    """Raise where names or shapes are not those of the model that `config` describes."""
    classes = len(converted.get("mask_head.predict.2.weight", [0]))
    if classes > 1:
        raise ValueError(
            f"Expected a checkpoint of S4 or MS3, which predicts one mask a frame, but this one predicts {classes} "
            "classes (AVSS), which AVSBench-Robust does not score."
        )
    with torch.device("meta"):
        expected = AVSegFormerForSegmentation(config).state_dict()
    missing = expected.keys() - converted.keys()
    if missing and all(name.startswith("similarity_head.") for name in missing):
        raise ValueError(
            "Expected a checkpoint of AVSBench-Robust with the similarity head (`cosine_sim.*`), but this one is a "
            "plain AVSegFormer. Use AVSegFormerConfig(use_similarity_head=False)."
        )
    check_fit(
        converted,
        expected,
        f"the tensors of an AVSegFormer with the given configuration (backbone {config.backbone!r})",
        "Set the sizes in `AVSegFormerConfig` as the checkpoint's.",
    )
