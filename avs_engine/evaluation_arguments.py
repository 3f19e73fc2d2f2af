"""Scores a model on AVSBench-Robust: the same clips with their own sound, silence, noise and another clip's sound.

    accelerate launch evaluate_accelerate.py --model runs/s4 --subset s4 --data_dir data --output_dir runs/s4/eval
    python evaluate_accelerate.py --predictions masks --subset s4 --data_dir data --output_dir masks_eval
    python evaluate_accelerate.py --predictions positive=run1 silence=run2 --subset s4 --output_dir eval
    python evaluate_accelerate.py --model-fn my_model:predict --subset s4 --data_dir data --output_dir my_eval

The model is a `from_pretrained` folder of this project (`--model`), any model whose masks are PNG files as public
codes write them, 1-bit, one colour on black or 8-bit grey where 255 is probability 1 (`--predictions`, which needs
the ground-truth masks only; see docs/howto/score-masks.md), or any Python callable (`--model-fn`)

    (frames (T, H, W, 3) uint8 RGB, waveform (80000,) float32, sampling rate) -> probabilities (T, H, W)

The same file runs on one CPU (`--cpu`), one GPU, or several processes (`torchrun --nproc_per_node N`, with `--cpu` for
CPU processes). Masks are scored at their own resolution.

Conditions beyond the four are values of `--conditions`: `unseen` (sounds that no training hears: wav files of
`--unseen_dir`, else built-in ones), `timbre` (random sounds, to train on), `mixed_snr_<dB>` (own and off-screen
sound), `noise_snr_<dB>` (own sound and noise).

`results.json` holds the scores and breakdowns, `clips.jsonl` the statistics of every clip behind them. An interrupted
run resumes where it stopped and ends with exactly the scores of an uninterrupted one; SIGTERM ends it with exit code
0. The number of processes does not change the scores if each process has the same number of threads.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL.ImageColor import getrgb

from avsbench_robust_dataset import CONDITIONS, __version__
from avsbench_robust_dataset.conditions import get_condition
from evaluate_metrics.mask_folders import named_folders

from .arguments import HelpFormatter, add_data_arguments, add_device_arguments, add_hub_arguments, count, use_layout


def condition_name(name: str) -> str:
    try:
        return get_condition(name).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="from_pretrained folder or Hub id")
    source.add_argument(
        "--predictions",
        nargs="+",
        metavar="DIR",
        help="PNG masks to score instead of a model: a folder with one folder a condition, or CONDITION=DIR ...",
    )
    source.add_argument("--model-fn", "--model_fn", metavar="MODULE:FUNCTION", help="callable to score instead")
    add_data_arguments(parser)
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw of negative sounds")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"), help="which clips")
    parser.add_argument(
        "--conditions",
        nargs="+",
        type=condition_name,
        metavar="CONDITION",
        help=f"{', '.join(CONDITIONS)} (default: these four); unseen, muted, timbre, mixed_snr_<dB>, noise_snr_<dB>",
    )
    parser.add_argument("--unseen_dir", type=Path, help="folder of wav files for unseen; default: built-in sounds")
    parser.add_argument("--output_dir", required=True, help="receives results.json, clips.jsonl and predictions/")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace another run's results")
    parser.add_argument(
        "--front_end",
        choices=("vggish", "released"),
        help="released: that of the released code, which reveals negative sounds; default: the model's own",
    )
    parser.add_argument("--grey_of_one", type=int, choices=(1, 255), help="value of probability 1; default: detected")
    parser.add_argument("--resize", choices=("nearest",), help="scale --predictions of another size; default: refuse")
    parser.add_argument("--mask_pattern", help="which --predictions to score where several lie in one folder")
    parser.add_argument("--background", type=getrgb, metavar="COLOUR", help="that of the background; default: black")
    parser.add_argument("--batch_size", type=count, default=4, help="clips per process")
    parser.add_argument("--max_clips", type=count, help="score only this many clips, evenly spaced over the split")
    parser.add_argument("--save_predictions", action="store_true", help="write 8-bit PNG probability masks")
    add_device_arguments(parser)
    add_hub_arguments(parser)
    args = parser.parse_args(argv)
    masks = named_folders(args.predictions) if args.predictions else None
    if args.conditions is None:
        args.conditions = list(masks if isinstance(masks, dict) else CONDITIONS)
    elif isinstance(masks, dict) and set(masks) != set(args.conditions):
        parser.error("argument --conditions: not with --predictions CONDITION=DIR, which names the conditions")
    extra = [condition for condition in dict.fromkeys(args.conditions) if condition not in CONDITIONS]
    args.conditions = [condition for condition in CONDITIONS if condition in args.conditions] + extra
    check_arguments(parser, args, extra)
    use_layout(args)
    return args


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace, extra: Sequence[str]) -> None:
    """Ends the program if arguments contradict each other."""
    if args.push_to_hub and args.model is None:
        parser.error("argument --push_to_hub: only with argument --model; publish other models with their own tools")
    for name in ("grey_of_one", "resize", "mask_pattern", "background"):
        if getattr(args, name) is not None and args.predictions is None:
            parser.error(f"argument --{name}: only with argument --predictions")
    if args.front_end is not None and args.model is None:
        parser.error("argument --front_end: only with argument --model; other models have their own front end")
    if args.predictions:
        for name in ("save_predictions", "unseen_dir"):
            if getattr(args, name):
                parser.error(f"argument --{name}: not allowed with argument --predictions")
    else:
        if extra and "positive" not in args.conditions:
            parser.error(f"argument --conditions: {extra[0]} is compared with positive; add positive")
        if args.unseen_dir is not None and "unseen" not in extra:
            parser.error("argument --unseen_dir: goes together with --conditions unseen")
        if "recorded" in extra:
            parser.error(
                "argument --conditions: recorded is for training; score a folder with unseen and --unseen_dir"
            )
