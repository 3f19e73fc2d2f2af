"""Builds the model of a run, and lists the settings that define it."""

import argparse
import json
from pathlib import Path

from transformers import PreTrainedConfig

from modeling_avsegformer import (
    AVSegFormerConfig,
    AVSegFormerForSegmentation,
    AVSegFormerImageProcessor,
    AVSegFormerProcessor,
    VGGishFeatureExtractor,
)

from .provenance import tensors_digest, weights_of
from .training_arguments import LOSS_SETTINGS


def check_encoders(args: argparse.Namespace) -> None:
    """Raises ValueError if the arguments do not say with which weights the encoders of a new model start.

    The audio encoder is frozen by default: with random weights a model would learn nothing from it, without an error.
    """
    if args.model is not None:
        return
    if not (args.pretrained_backbone or args.backbone_weights or args.random_backbone):
        raise ValueError(
            "Expected weights for the backbone of a new model: give --backbone_weights FILE, --pretrained_backbone "
            "(from the network), --model, or --random_backbone for random ones."
        )
    if not (args.vggish_weights or args.random_vggish):
        raise ValueError(
            "Expected weights for the audio encoder of a new model: give --vggish_weights FILE (the published "
            "vggish-10086976.pth), --model, or --random_vggish for random ones."
        )


def build_model(
    args: argparse.Namespace, load_weights: bool
) -> tuple[AVSegFormerForSegmentation, AVSegFormerProcessor, dict | None]:
    """The model to train, new or from `--model`, its processor, and the sources of its initial weights.

    Args:
        load_weights: False does not read the encoders' weights, because those of a checkpoint are loaded later.
    """
    losses = {name: getattr(args, name) for name in LOSS_SETTINGS if getattr(args, name) is not None}
    if args.model is not None:
        check_model_path(args.model)
        model = AVSegFormerForSegmentation.from_pretrained(args.model, **losses)
        processor = AVSegFormerProcessor.from_pretrained(args.model)
        weights: dict[str, dict | None] = {"model": weights_of(args.model)}
    else:
        model = AVSegFormerForSegmentation(AVSegFormerConfig(backbone=args.backbone, **losses))
        processor = AVSegFormerProcessor(AVSegFormerImageProcessor(), VGGishFeatureExtractor())
        weights = {"backbone": load_backbone(model, args) if load_weights else None}
    if args.vggish_weights is not None and load_weights:
        weights["audio_encoder"] = model.load_vggish_weights(args.vggish_weights)
    elif args.random_vggish:
        weights["audio_encoder"] = {"source": "random"}
    if args.image_size is not None:
        processor.image_processor.size = {"height": args.image_size, "width": args.image_size}
    return model, processor, weights


def load_backbone(model: AVSegFormerForSegmentation, args: argparse.Namespace) -> dict[str, str]:
    """Loads the weights that `args` name into the backbone of a new model; returns their source and SHA-256."""
    if args.backbone_weights is not None:
        return model.load_backbone_weights(args.backbone_weights)
    if not args.pretrained_backbone:
        return {"source": "random"}
    if not model.load_pretrained_backbone():
        raise ConnectionError(
            f"Expected timm's weights of {args.backbone} for --pretrained_backbone, but they could not be fetched. "
            "Connect to the network, give --backbone_weights FILE, or --random_backbone for random ones."
        )
    return {"source": f"timm's {args.backbone}", "sha256": tensors_digest(model.get_backbone().state_dict())}


def model_settings(config: PreTrainedConfig) -> dict:
    """The fields that a configuration adds to those of transformers, as JSON values."""
    own = config.to_dict().keys() - PreTrainedConfig().to_dict().keys() - {"auto_map"}
    values = {name: getattr(config, name) for name in sorted(own - {"audio_config"})}
    if hasattr(config, "audio_config"):
        values["audio_config"] = model_settings(config.audio_config)
    return json.loads(json.dumps(values))


def check_model_path(model: str) -> None:
    """Raises FileNotFoundError if `model` is neither a folder that `save_pretrained` wrote nor a possible Hub id."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"Expected a model in {path}, but it holds no config.json. Name the folder that train_accelerate.py "
                "or save_pretrained wrote."
            )
    elif path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2:
        raise FileNotFoundError(
            f"Expected the folder of a model or its Hub id as --model, but the folder {model} does not exist. Look at "
            "its spelling; a Hub id has the form user/name."
        )
