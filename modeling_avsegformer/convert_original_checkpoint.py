"""Read an original AVSegFormer or AVSBench-Robust checkpoint and write a `from_pretrained` folder.

    python -m modeling_avsegformer.convert_original_checkpoint CKPT OUT_DIR [--backbone pvt_v2_b5] [--image_size 512]

The file is read as tensors only; code in it is never run. Every original name falls under one rule of `RULES`, and the
tensors keep their shapes and values. What matched and what was dropped is printed; the written folder is read again
and has to give the same masks.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import logging

from .checkpoint_reader import read_tensors
from .configuration_avsegformer import AVSegFormerConfig

logger = logging.get_logger(__name__)

# Original name (a regular expression) to ours; the first that matches counts.
RULES = [
    # timm's features-only models put "_" where the whole model has "."
    (r"backbone\.patch_embed1\.", r"model.backbone.timm_model.patch_embed."),
    (r"backbone\.patch_embed([2-4])\.", lambda m: f"model.backbone.timm_model.stages_{int(m[1]) - 1}.downsample."),
    (
        r"backbone\.block([1-4])\.(\d+)\.(mlp\.dwconv\.)?(?:dwconv\.)?",
        lambda m: f"model.backbone.timm_model.stages_{int(m[1]) - 1}.blocks.{m[2]}.{m[3] or ''}",
    ),
    (r"backbone\.norm([1-4])\.", lambda m: f"model.backbone.timm_model.stages_{int(m[1]) - 1}.norm."),
    (r"backbone\.layer([34])_1\.", r"model.backbone.timm_model.layer\1."),
    (r"backbone\.(conv1|bn1|layer1|layer2)\.", r"model.backbone.timm_model.\1."),
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


@dataclass
class ConversionReport:
    """
    unused (`list[str]`): original names that the original never uses and that are left out.
    unknown (`list[str]`): names that no rule knows; nothing was made of them.
    """

    unused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def detect_backbone(state_dict: dict[str, Tensor]) -> str | None:
    """The timm name of the original backbone whose names are in a state dict, None if neither's are."""
    names = {key.removeprefix("module.") for key in state_dict}
    if "backbone.patch_embed1.proj.weight" in names:
        return "pvt_v2_b5"
    return "resnet50" if "backbone.layer4_1.0.conv1.weight" in names else None


def convert_original_state_dict(
    state_dict: dict[str, Tensor], config: AVSegFormerConfig, return_report: bool = False
) -> dict[str, Tensor] | tuple[dict[str, Tensor], ConversionReport]:
    """The state dict of our model from an original one.

    Args:
        state_dict: tensors by original name, with or without "module." before it.
        config (`AVSegFormerConfig`): of the model that is to take them. With `use_similarity_head=False` the
            similarity head's tensors are left out.
        return_report (`bool`, defaults to `False`): also return what was not used. It is logged in any case.

    Returns:
        `dict[str, Tensor]`: the same tensors (not copies) for `AVSegFormerForSegmentation.load_state_dict`

    Raises:
        ValueError: the state dict has another backbone than the configuration, lacks a tensor, or has one of another
            shape; the message names it.
    """
    found = detect_backbone(state_dict)
    if found is None or config.backbone.split(".")[0] != found:
        raise ValueError(
            f"Expected an original checkpoint with the backbone {config.backbone!r}, but this one has "
            f"{repr(found) if found else 'neither PVT-v2-b5 nor ResNet-50'}. "
            + (f"Use AVSegFormerConfig(backbone={found!r})." if found else "It is no AVSegFormer checkpoint.")
        )
    converted, report = {}, ConversionReport()
    for name, tensor in state_dict.items():
        name = name.removeprefix("module.")
        if UNUSED.match(name) or (name.startswith("cosine_sim.") and not config.use_similarity_head):
            report.unused.append(name)
            continue
        for pattern, replacement in RULES:
            new_name, count = re.subn(rf"^{pattern}", replacement, name)
            if count:
                converted[new_name] = tensor
                break
        else:
            report.unknown.append(name)
    _check_complete(converted, config)
    if report.unused:
        logger.info(f"{len(report.unused)} tensors that the original never uses were left out: {report.unused}")
    if report.unknown:
        logger.warning(f"{len(report.unknown)} tensors are unknown and were left out: {report.unknown}")
    return (converted, report) if return_report else converted


def _check_complete(converted: dict[str, Tensor], config: AVSegFormerConfig) -> None:
    """Raise where names or shapes are not those of the model that `config` describes."""
    from .modeling_avsegformer import AVSegFormerForSegmentation

    classes = len(converted.get("mask_head.predict.2.weight", [0]))
    if classes > 1:
        raise ValueError(
            f"Expected a checkpoint of S4 or MS3, which predicts one mask a frame, but this one predicts {classes} "
            "classes (AVSS), which AVSBench-Robust does not score."
        )
    with torch.device("meta"):
        expected = AVSegFormerForSegmentation(config).state_dict()
    missing = sorted(expected.keys() - converted.keys())
    if missing and all(name.startswith("similarity_head.") for name in missing):
        raise ValueError(
            "Expected a checkpoint of AVSBench-Robust with the similarity head (`cosine_sim.*`), but this one is a "
            "plain AVSegFormer. Use AVSegFormerConfig(use_similarity_head=False)."
        )
    other_shape = sorted(
        f"{name} {tuple(converted[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in converted and converted[name].shape != tensor.shape
    )
    unexpected = sorted(converted.keys() - expected.keys())
    for problem, names in (("missing", missing), ("of another shape", other_shape), ("too many", unexpected)):
        if names:
            raise ValueError(
                f"Expected the tensors of an AVSegFormer with the given configuration (backbone {config.backbone!r}), "
                f"but {len(names)} are {problem}, e.g. {', '.join(names[:3])}. Set the sizes in `AVSegFormerConfig` "
                "as the checkpoint's."
            )


def convert_original_checkpoint(
    checkpoint: str | Path, out_dir: str | Path, backbone: str | None = None, image_size: int = 224
) -> None:
    """Write the `from_pretrained` folder of an original checkpoint: model, configuration, processor, and
    `conversion.json`, which says what it was made from.

    Args:
        checkpoint: a `.pth` or `.safetensors` file.
        out_dir: is made, whole or not at all; left as it is if it has this conversion of this file already.
        backbone (`str`, *optional*): timm name; found out from the checkpoint if not given.
        image_size (`int`, defaults to 224): pixels of the processor's frames. The weights do not tell: the released
            configurations use 224 and 512.

    Raises:
        FileNotFoundError: no such checkpoint.
        FileExistsError: `out_dir` has other content, or another process is converting into it.
        ValueError: not an original checkpoint, another backbone, or masks that are not finite or not the same after
            reading the folder again.
    """
    from .feature_extraction_vggish import VGGishFeatureExtractor
    from .image_processing_avsegformer import AVSegFormerImageProcessor
    from .modeling_avsegformer import SMALLEST_IMAGE, AVSegFormerForSegmentation
    from .processing_avsegformer import AVSegFormerProcessor

    checkpoint, out_dir = Path(checkpoint), Path(out_dir)
    if image_size < SMALLEST_IMAGE:
        raise ValueError(f"Expected an `image_size` of at least {SMALLEST_IMAGE} pixels, got {image_size}.")
    state_dict = read_tensors(checkpoint)
    with open(checkpoint, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    made_from = {"file": checkpoint.name, "sha256": digest, "image_size": image_size}
    if _has_conversion(out_dir, made_from):
        print(f"{out_dir}: has been converted from {checkpoint} already")
        return
    config = AVSegFormerConfig(
        backbone=backbone or detect_backbone(state_dict) or AVSegFormerConfig.backbone,
        use_similarity_head="cosine_sim.audio_proj.weight" in state_dict,
        loss_type="dice",
    )
    converted, report = convert_original_state_dict(state_dict, config, return_report=True)
    model = AVSegFormerForSegmentation(config).eval()
    model.load_state_dict(converted)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(1, 1, 3, image_size, image_size, generator=generator),
        "input_features": torch.randn(1, 1, 1, 96, 64, generator=generator),
    }
    with torch.no_grad():
        logits = model(**inputs).logits
    if not logits.isfinite().all():
        raise ValueError(f"Expected finite masks from the converted model, but {checkpoint} gives NaN or infinity.")

    matched = state_dict.keys() - {*report.unused, *report.unknown}
    with _new_folder(out_dir) as partial:
        model.save_pretrained(partial)
        image_processor = AVSegFormerImageProcessor(size={"height": image_size, "width": image_size})
        AVSegFormerProcessor(image_processor, VGGishFeatureExtractor()).save_pretrained(partial)
        (partial / "conversion.json").write_text(json.dumps(made_from, indent=2) + "\n", encoding="utf-8")
        del model, converted, state_dict  # room for the model that is read again
        with torch.no_grad():
            again = AVSegFormerForSegmentation.from_pretrained(partial).eval()(**inputs).logits
        difference = (again - logits).abs().max().item()
        # Sums over tensors at other addresses may differ in their last bits.
        if not difference <= 1e-4 * max(1.0, logits.abs().max().item()):
            raise ValueError(f"The written model differs from {checkpoint} by {difference} in its logits.")
    print(f"matched: {_by_part(matched)}")
    print(f"dropped, never used by the original: {_by_part(report.unused)}")
    print(f"dropped, unknown: {', '.join(report.unknown) or 'none'}")
    print(
        f"verified: a forward at {image_size}x{image_size}; the largest difference after reading is {difference:.1g}"
    )
    print(
        f"{out_dir}: {len(matched)} tensors, backbone {config.backbone}, "
        f"{'with' if config.use_similarity_head else 'without'} the similarity head; {len(report.unused)} tensors "
        f"that the original never uses and {len(report.unknown)} unknown ones were left out."
    )


def _has_conversion(out_dir: Path, made_from: dict) -> bool:
    """Whether `out_dir` has what is to be made; False if it is new or empty."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    record = out_dir / "conversion.json"
    whole = record.is_file() and (out_dir / "model.safetensors").is_file()
    if whole and record.read_text(encoding="utf-8") == json.dumps(made_from, indent=2) + "\n":
        return True
    raise FileExistsError(f"Expected a new or empty folder, but {out_dir} has content. Name another.")


@contextmanager
def _new_folder(out_dir: Path) -> Iterator[Path]:
    """A folder beside `out_dir` that becomes it at the end, unless something fails. A killed run's is used again."""
    import fcntl

    partial = out_dir.parent / f".{out_dir.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    folder = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
        except BlockingIOError as error:
            raise FileExistsError(
                f"Expected no other process that converts into {out_dir}, but there is one."
            ) from error
        try:
            for path in partial.iterdir():
                path.unlink()
            yield partial
            os.replace(partial, out_dir)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(folder)


def _by_part(names: Collection[str]) -> str:
    """How many of the original names begin alike, as "backbone.layer1 60, head.fc 5"."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{part} {count}" for part, count in sorted(counts.items())) or "none"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="original .pth file")
    parser.add_argument("out_dir", help="folder to make")
    parser.add_argument("--backbone", help="timm name, e.g. pvt_v2_b5; found out from the checkpoint if not given")
    parser.add_argument("--image_size", type=int, default=224, help="pixels of the frames: 224 or 512, as in training")
    arguments = parser.parse_args(argv)
    try:
        convert_original_checkpoint(arguments.checkpoint, arguments.out_dir, arguments.backbone, arguments.image_size)
    except (OSError, ValueError, SafetensorError) as error:  # the last for a full disk, too
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
