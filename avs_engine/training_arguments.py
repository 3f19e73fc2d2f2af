"""Trains AVSegFormer on AVSBench-Robust, with matching sounds and a share of sounds that do not match the frames.

    accelerate launch train_accelerate.py --subset s4 --data_dir data --backbone pvt_v2_b5 \\
        --backbone_weights pvt_v2_b5.pth --vggish_weights vggish-10086976.pth --output_dir runs/s4

The same file runs on one CPU (`--cpu`), one GPU, or several processes (`torchrun --nproc_per_node N`, with `--cpu` for
CPU processes; `accelerate launch --cpu --num_processes 2` starts only one), in float32 or mixed precision.

An epoch contains every positive clip once, and negative items that are drawn anew: the same frames with another sound
and empty masks. `--negative_ratio` is their share of all items. `--compose_share` of the items show two clips in one
picture, of which one sounds, or neither. An option that is given wins over `--recipe`.

`--resume_from_checkpoint latest` continues an interrupted run, which ends with the same weights as an uninterrupted
one, bit for bit (on a GPU as far as its kernels are deterministic). SIGTERM saves a checkpoint and ends the run with
exit code 0.

`--output_dir` receives the model with the best validation G-mIoU as a `from_pretrained` folder, `last/` (the model
after the last step), `train_log.jsonl`, `trainer_state.json` and `checkpoints/`.
"""

import argparse
import dataclasses
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from avsbench_robust_dataset import __version__
from avsbench_robust_dataset import conditions as audio_conditions
from avsbench_robust_dataset.conditions import EXTRA_CONDITIONS

from .arguments import (
    HelpFormatter,
    add_data_arguments,
    add_device_arguments,
    add_hub_arguments,
    count,
    natural,
    number,
    use_layout,
)


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

# The options that a new model's configuration takes over.
LOSS_SETTINGS = ("loss_type", "bce_weight", "mask_weight", "mix_weight", "similarity_weight")
LOSS_TYPES = ("bce_dice", "dice", "bce")  # those of AVSegFormerConfig, whose import takes seconds


def negative_conditions(texts: Sequence[str]) -> dict[str, float]:
    """{"silence": 1.0, …} from ["silence=1", "off_screen", …], in the data set's order of conditions.

    Raises:
        ValueError: an unknown condition, one named twice, or a weight that is not a positive number.
    """
    # `unseen` is held out of every training.
    extra = [name for name, known in EXTRA_CONDITIONS.items() if known.heard == "none" and name != "unseen"]
    known = (*audio_conditions.negative_conditions(), *extra)
    weights: dict[str, float] = {}
    for text in texts:
        name, _, weight = text.partition("=")
        if name not in known:
            raise ValueError(f"expected NAME or NAME=WEIGHT with NAME one of {', '.join(known)}, got {text!r}")
        if name in weights:
            raise ValueError(f"expected each condition once, got {name!r} twice")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise ValueError(f"expected a positive number as the weight of {name}, got {weight!r}")
    return {name: weights[name] for name in known if name in weights}


def command_line(argv: Sequence[str], secret: str | None) -> str:
    """The command for a model card, without the token and with absolute paths shortened to their names."""
    words = []
    for word in argv:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if secret:
            value = value.replace(secret, "HF_TOKEN")
        words.append(option + equals + (Path(value).name if Path(value).is_absolute() else value))
    return shlex.join(["train_accelerate.py", *words])


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The trainer's arguments, checked, with the subset's defaults; None reads the command line.

    Raises:
        SystemExit: an argument is refused; the message names it.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_data(parser)
    _add_model(parser)
    _add_training(parser)
    _add_output(parser)
    add_hub_arguments(parser)
    args = parser.parse_args(argv)
    args.command = command_line(sys.argv[1:] if argv is None else argv, args.hub_token)
    _fill_in_presets(parser, args)
    _check(parser, args)
    use_layout(args)
    return args


def _defaults(table: Mapping[str, Preset] | Mapping[str, Recipe], name: str) -> str:
    """For the help of an option: its default of each subset or recipe."""
    values = {key: getattr(defaults, name) for key, defaults in table.items()}
    values = {key: " ".join(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return "default: " + ", ".join(f"{value} ({key})" for key, value in values.items())


_by_subset, _by_recipe = partial(_defaults, PRESETS), partial(_defaults, RECIPES)


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    add_data_arguments(data)
    data.add_argument("--data_seed", type=natural, default=42, help="seed of negative sounds; avs-evaluate's --seed")
    data.add_argument("--cache_frames_gb", type=float, default=2, help="keep decoded frames in this much memory, GiB")
    data.add_argument("--frames_per_clip", type=count, help="random frames of an item, masked first; default: all")
    data.add_argument("--augment", action="store_true", help="flip clips left to right at random; not in the original")
    data.add_argument("--recipe", choices=list(RECIPES), default="listen", help="defaults of the next four options")
    data.add_argument("--negative_ratio", type=float, help=f"share of negative items; {_by_recipe('negative_ratio')}")
    data.add_argument(
        "--negative_conditions",
        nargs="+",
        metavar="NAME[=WEIGHT]",
        help=f"noise is not trained on unless it is named; {_by_recipe('negative_conditions')}",
    )
    data.add_argument("--compose_share", type=float, help=f"share of composed items; {_by_recipe('compose_share')}")
    data.add_argument(
        "--redraw_sounds",
        action=argparse.BooleanOptionalAction,
        help=f"negative items hear other sounds each epoch; {_by_recipe('redraw_sounds')}",
    )
    data.add_argument("--negative_dir", type=Path, help="wav files for recorded, one of --negative_conditions")


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="from_pretrained folder or Hub id to start from; default: a new model")
    model.add_argument("--backbone", help=f"timm name of a new model's backbone; {_by_subset('backbone')}")
    backbone = model.add_mutually_exclusive_group()
    backbone.add_argument("--pretrained_backbone", action="store_true", help="download timm's ImageNet weights")
    backbone.add_argument("--backbone_weights", metavar="FILE", help=".pth or .safetensors file for --backbone")
    backbone.add_argument("--random_backbone", action="store_true", help="random weights for a new model's backbone")
    vggish = model.add_mutually_exclusive_group()
    vggish.add_argument("--vggish_weights", help="file, folder or Hub id; default: those of --model")
    vggish.add_argument("--random_vggish", action="store_true", help="random weights for a new model's audio encoder")
    model.add_argument("--image_size", type=count, help=f"pixels; {_by_subset('image_size')}, or that of --model")
    model.add_argument("--loss_type", choices=LOSS_TYPES, help="default: bce_dice, or that of --model")
    for name in LOSS_SETTINGS[1:]:
        model.add_argument(f"--{name}", type=float, help="see AVSegFormerConfig; default: its own, or that of --model")


def _add_training(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("training")
    run.add_argument("--seed", type=natural, default=42, help="seed of new weights, the order of clips and dropout")
    run.add_argument("--epochs", type=count, help=_by_subset("epochs"))
    run.add_argument("--max_steps", type=count, help="optimizer steps, instead of --epochs; default: --epochs decides")
    run.add_argument("--batch_size", type=count, help=f"clips per process and step; {_by_subset('batch_size')}")
    run.add_argument("--gradient_accumulation_steps", type=count, default=1, help="batches of an optimizer step")
    run.add_argument("--learning_rate", type=number, help=_by_subset("learning_rate"))
    run.add_argument("--weight_decay", type=number, default=0.01, help="of AdamW")
    schedules = ("constant", "linear", "cosine", "onecycle")
    run.add_argument("--lr_scheduler", default="constant", choices=schedules, help="how the learning rate changes")
    run.add_argument("--warmup_steps", type=natural, default=0, help="steps in which the learning rate rises")
    run.add_argument("--max_grad_norm", type=number, default=0.0, help="0: no clipping")
    run.add_argument("--freeze_backbone_epochs", type=natural, help=_by_subset("freeze_backbone_epochs"))
    add_device_arguments(run)
    run.add_argument("--validation_every", type=natural, default=1, help="epochs; 0: never")
    run.add_argument("--validation_clips", type=count, help="clips of a validation, evenly spaced; default: all")


def _add_output(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", required=True, help="receives the model, its log and checkpoints")
    out.add_argument("--overwrite_output_dir", action="store_true", help="replace the run that is there")
    out.add_argument("--checkpointing_steps", default="epoch", help="a number of steps, or 'epoch'")
    out.add_argument("--keep_checkpoints", type=natural, default=2, help="the newest ones; 0: all")
    out.add_argument("--resume_from_checkpoint", help="a folder, 'latest', or 'auto': the latest, else a new run")
    out.add_argument("--logging_steps", type=count, default=10, help="steps from one line of the log to the next")
    out.add_argument("--with_tracking", action="store_true", help="send the log to the tracker of --report_to")
    out.add_argument("--report_to", default="all", help="a tracker that accelerate knows")


def _fill_in_presets(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Sets missing arguments to the defaults of subset and recipe, except those that `--model` decides."""
    preset = dataclasses.asdict(PRESETS[args.subset]) | dataclasses.asdict(RECIPES[args.recipe])
    if args.model is not None:
        new = ("backbone", "pretrained_backbone", "backbone_weights", "random_backbone", "random_vggish")
        if given := [f"--{name}" for name in new if getattr(args, name)]:
            parser.error(f"--model brings its own backbone and audio encoder: leave {', '.join(given)} out")
        preset |= {"backbone": None, "image_size": None}
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
    if args.resume_from_checkpoint is not None and args.overwrite_output_dir:
        parser.error("--resume_from_checkpoint continues a run, --overwrite_output_dir replaces it: give one of them")
