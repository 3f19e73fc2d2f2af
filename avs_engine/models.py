"""The model of a run: where it comes from, and which settings make it this model."""

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

LOSS_SETTINGS = ("loss_type", "bce_weight", "mask_weight", "mix_weight", "similarity_weight")


def build_model(
    args: argparse.Namespace, load_weights: bool
) -> tuple[AVSegFormerForSegmentation, AVSegFormerProcessor]:
    """The model to train, new or from `--model`. Without `load_weights` no encoder's weights are looked for."""
    losses = {name: getattr(args, name) for name in LOSS_SETTINGS if getattr(args, name) is not None}
    if args.model is not None:
        check_model_path(args.model)
        model = AVSegFormerForSegmentation.from_pretrained(args.model, **losses)
        processor = AVSegFormerProcessor.from_pretrained(args.model)
    else:
        model = AVSegFormerForSegmentation(AVSegFormerConfig(backbone=args.backbone, **losses))
        processor = AVSegFormerProcessor(AVSegFormerImageProcessor(), VGGishFeatureExtractor())
        if args.pretrained_backbone and load_weights:
            model.load_pretrained_backbone()
    if args.vggish_weights is not None and load_weights:
        model.load_vggish_weights(args.vggish_weights)
    if args.image_size is not None:
        processor.image_processor.size = {"height": args.image_size, "width": args.image_size}
    return model, processor


def model_settings(config: PreTrainedConfig) -> dict:
    """What a configuration adds to transformers' own fields, as JSON has it."""
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
            f"Expected the folder of a model or its Hub id as --model, but the folder {model} does not exist."
        )
