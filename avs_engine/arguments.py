"""What the arguments of both scripts share. Neither this file nor those that parse them import torch: `--help` is
answered at once."""

import argparse
import math
from collections.abc import Callable

from avsbench_robust_dataset import SUBSETS
from avsbench_robust_dataset.builder import locate
from avsbench_robust_dataset.subsets import LAYOUTS

Parser = argparse.ArgumentParser | argparse._ArgumentGroup


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines and shows each option's default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default is None or default is False or default is argparse.SUPPRESS or "default:" in text:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


def at_least(minimum: int, number: type[int] | type[float] = int) -> Callable[[str], float]:
    """The type of an argument that is a finite number, not below `minimum`."""

    def parse(text: str) -> float:
        value = number(text)
        if not minimum <= value < math.inf:
            raise argparse.ArgumentTypeError(f"expected at least {minimum}, got {value}")
        return value

    parse.__name__ = number.__name__  # which argparse names where the text is not a number
    return parse


count, natural, number = at_least(1), at_least(0), at_least(0, float)


def add_data_arguments(parser: Parser) -> None:
    parser.add_argument("--subset", required=True, choices=list(SUBSETS), help="demo is what `avs-data demo` writes")
    parser.add_argument("--data_dir", help="the AVSBench download; default: $AVSBENCH_DIR, else ./data")
    parser.add_argument("--layout", choices=LAYOUTS, help="AVSBench-object or -semantic; default: what is there")
    help_text = "processes that read the data; default: 0 on a CPU; on a GPU as many as processors, at most 8"
    parser.add_argument("--num_workers", type=natural, help=help_text)


def add_device_arguments(parser: Parser) -> None:
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: accelerate's own setting")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")


def use_layout(args: argparse.Namespace) -> None:
    """Where `args.layout` names one, lets `args.data_dir` be the folder in it that has this layout."""
    if args.layout is not None:
        args.data_dir = str(locate(SUBSETS[args.subset], args.data_dir, layout=args.layout))


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    hub = parser.add_argument_group("Hub")
    hub.add_argument("--push_to_hub", action="store_true", help="publish model, processor, card, code")
    hub.add_argument("--hub_model_id", help="user/name; default: your user name and the model's folder")
    hub.add_argument("--hub_private", action="store_true", help="refuse to publish to a public repository")
    hub.add_argument("--hub_token", help="token that may write; default: HF_TOKEN, or that of `hf auth login`")
