"""The arguments of the trainer: their definitions, the defaults of each subset, and their checks."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from modeling_avsegformer.configuration_avsegformer import LOSS_TYPES

from .epochs import negative_conditions
from .hub import add_hub_arguments
from .models import LOSS_SETTINGS
from .provenance import command_line


@dataclasses.dataclass(frozen=True)
class Preset:
    """Defaults that depend on the subset."""

    epochs: int
    freeze_backbone_epochs: int  # the first ones
    learning_rate: float
    batch_size: int  # clips per process and step
    image_size: int  # pixels
    backbone: str


# s4 and ms3: AVSegFormer's recipe (AdamW, constant rate, batch 2), frames at AVSBench's own resolution.
PRESETS = {
    "s4": Preset(30, 5, 2e-5, 2, 224, "pvt_v2_b5"),
    "ms3": Preset(60, 10, 2e-5, 2, 224, "pvt_v2_b5"),
    "demo": Preset(10, 0, 1e-3, 12, 64, "resnet10t"),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Defaults of what a model learns to listen from."""

    negative_ratio: float
    negative_conditions: tuple[str, ...]
    compose_share: float
    redraw_sounds: bool


# paper: AVSBench-Robust's. listen: docs/listening.md compares it with others.
RECIPES = {
    "listen": Recipe(0.5, ("silence=1", "off_screen=4", "timbre=7"), 0.5, True),
    "paper": Recipe(0.1, ("silence=1", "off_screen=1"), 0.0, False),
}

# The smallest value of each number.
LEAST = dict.fromkeys(
    (
        "epochs",
        "max_steps",
        "batch_size",
        "gradient_accumulation_steps",
        "frames_per_clip",
        "validation_clips",
        "logging_steps",
        "image_size",
    ),
    1,
) | dict.fromkeys(
    (
        "seed",
        "data_seed",
        "num_workers",
        "warmup_steps",
        "max_grad_norm",
        "freeze_backbone_epochs",
        "validation_every",
        "keep_checkpoints",
        "learning_rate",
        "weight_decay",
    ),
    0,
)


def parse_args(argv: Sequence[str] | None, description: str | None = None) -> argparse.Namespace:
    """The trainer's arguments, checked, with the subset's defaults; None reads the command line.

    Raises:
        SystemExit: an argument is refused; the message names it.
    """
    parser = argparse.ArgumentParser(description=description)
    _add_data(parser)
    _add_model(parser)
    _add_training(parser)
    _add_output(parser)
    add_hub_arguments(parser)
    args = parser.parse_args(argv)
    args.command = command_line(sys.argv[1:] if argv is None else argv, args.hub_token)
    _fill_in_presets(parser, args)
    _check(parser, args)
    return args


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--subset", required=True, choices=list(PRESETS))
    data.add_argument("--data_dir", help="the AVSBench download; default: $AVSBENCH_DIR, else ./data")
    data.add_argument("--data_seed", type=int, default=42, help="seed of the negative sounds; avs-evaluate's --seed")
    data.add_argument("--num_workers", type=int, default=0, help="processes that read the data")
    data.add_argument("--cache_frames_gb", type=float, default=2, help="keep decoded frames in this much memory, GiB")
    data.add_argument("--frames_per_clip", type=int, help="random frames of an item, masked ones first; default: all")
    data.add_argument("--augment", action="store_true", help="flip clips left to right at random; not in the original")
    data.add_argument(
        "--recipe",
        choices=list(RECIPES),
        default="listen",
        help="defaults of the next four: a model that listens, or as in the paper",
    )
    data.add_argument("--negative_ratio", type=float, help="share of negative items; 0: the baseline")
    data.add_argument(
        "--negative_conditions",
        nargs="+",
        metavar="NAME[=WEIGHT]",
        help="conditions of negative items; noise is not trained on unless it is named",
    )
    data.add_argument(
        "--compose_share", type=float, metavar="SHARE", help="of the items shows two clips, one sounding"
    )
    data.add_argument(
        "--redraw_sounds",
        action=argparse.BooleanOptionalAction,
        help="negative items hear other sounds each epoch, off screen under the benchmark's rule",
    )
    data.add_argument(
        "--negative_dir", type=Path, help="folder of wav files for recorded, one of --negative_conditions"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="from_pretrained folder or Hub id to start from; default: a new model")
    model.add_argument("--backbone", help="timm name of a new model's backbone")
    model.add_argument("--pretrained_backbone", action="store_true", help="download timm's ImageNet weights")
    model.add_argument("--backbone_weights", metavar="FILE", help=".pth or .safetensors file for --backbone")
    model.add_argument("--random_backbone", action="store_true", help="random weights for a new model's backbone")
    model.add_argument("--vggish_weights", help="file, folder or Hub id; default: those of --model")
    model.add_argument("--random_vggish", action="store_true", help="random weights for a new model's audio encoder")
    model.add_argument("--image_size", type=int, help="pixels; default: by subset, or that of --model")
    model.add_argument("--loss_type", choices=LOSS_TYPES)
    for name in LOSS_SETTINGS[1:]:
        model.add_argument(f"--{name}", type=float, help="see AVSegFormerConfig")


def _add_training(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("training (defaults by subset where none is given)")
    run.add_argument("--seed", type=int, default=42, help="seed of new weights, the order of clips and dropout")
    run.add_argument("--epochs", type=int)
    run.add_argument("--max_steps", type=int, help="optimizer steps, instead of --epochs")
    run.add_argument("--batch_size", type=int, help="clips per process and step")
    run.add_argument("--gradient_accumulation_steps", type=int, default=1)
    run.add_argument("--learning_rate", type=float)
    run.add_argument("--weight_decay", type=float, default=0.01)
    run.add_argument("--lr_scheduler", default="constant", choices=("constant", "linear", "cosine", "onecycle"))
    run.add_argument("--warmup_steps", type=int, default=0)
    run.add_argument("--max_grad_norm", type=float, default=0.0, help="0: no clipping")
    run.add_argument("--freeze_backbone_epochs", type=int, help="the first epochs, in which the backbone is frozen")
    run.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: accelerate's own setting")
    run.add_argument("--cpu", action="store_true", help="stay on the CPU")
    run.add_argument("--validation_every", type=int, default=1, help="epochs; 0: never")
    run.add_argument("--validation_clips", type=int, help="clips of a validation, evenly spaced; default: all")


def _add_output(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", required=True)
    out.add_argument("--overwrite_output_dir", action="store_true", help="replace the run that is there")
    out.add_argument("--checkpointing_steps", default="epoch", help="a number of steps, or 'epoch'")
    out.add_argument("--keep_checkpoints", type=int, default=2, help="the newest ones; 0: all")
    out.add_argument(
        "--resume_from_checkpoint",
        help="a checkpoint folder, 'latest' in --output_dir, or 'auto': the latest if there is one, else a new run",
    )
    out.add_argument("--logging_steps", type=int, default=10)
    out.add_argument("--with_tracking", action="store_true")
    out.add_argument("--report_to", default="all", help="a tracker that accelerate knows")


def _fill_in_presets(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Sets missing arguments to the defaults of subset and recipe, except those that `--model` decides."""
    backbone = ("backbone", "pretrained_backbone", "backbone_weights", "random_backbone")
    given = [f"--{name}" for name in backbone if getattr(args, name)]
    if args.model is not None and given:
        parser.error(f"--model brings its own backbone: leave {', '.join(given)} out")
    if args.model is not None and args.random_vggish:
        parser.error("--model brings its own audio encoder: leave --random_vggish out")
    if len([name for name in given if name != "--backbone"]) > 1 or (args.vggish_weights and args.random_vggish):
        parser.error(
            "expected one of --pretrained_backbone, --backbone_weights and --random_backbone, and one of "
            "--vggish_weights and --random_vggish"
        )
    preset = dataclasses.asdict(PRESETS[args.subset])
    if args.model is not None:
        preset |= {"backbone": None, "image_size": None}
    preset |= dataclasses.asdict(RECIPES[args.recipe])
    for name, value in preset.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program if an argument is invalid; parses conditions and checkpointing steps."""
    try:
        args.negative_conditions = negative_conditions(args.negative_conditions)
    except ValueError as error:
        parser.error(f"argument --negative_conditions: {error}")
    if ("recorded" in args.negative_conditions) != (args.negative_dir is not None):
        parser.error("argument --negative_dir: goes together with recorded, one of --negative_conditions")
    if not 0 <= args.compose_share <= 1:
        parser.error(f"argument --compose_share: expected a number in [0, 1], got {args.compose_share}")
    if not 0 <= args.negative_ratio < 1:
        parser.error(f"argument --negative_ratio: expected a number in [0, 1), got {args.negative_ratio}")
    if args.checkpointing_steps != "epoch":
        if not args.checkpointing_steps.isdecimal() or int(args.checkpointing_steps) < 1:
            parser.error(
                f"argument --checkpointing_steps: expected a number or 'epoch', got {args.checkpointing_steps!r}"
            )
        args.checkpointing_steps = int(args.checkpointing_steps)
    for name, minimum in LEAST.items():
        value = getattr(args, name)
        if value is not None and not minimum <= value < math.inf:
            parser.error(f"argument --{name}: expected at least {minimum}, got {value}")
    if args.resume_from_checkpoint is not None and args.overwrite_output_dir:
        parser.error("--resume_from_checkpoint continues a run, --overwrite_output_dir replaces it: give one of them")
