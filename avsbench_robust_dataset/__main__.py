"""`avs-data`: what a download holds, who gets whose sound, and a demo tree.

avs-data manifest --subset s4 --seed 42 --data_dir data     the off-screen draw as JSON lines, from the CSV alone
avs-data check    --subset s4 --data_dir data               what the download lacks; exit code 1 if anything
avs-data demo     --out data_demo                           a synthetic tree in AVSBench's layout
"""

import argparse
import os
import sys

from .builder import locate
from .check import check
from .draw import DRAWS, draw_off_screen, manifest, summarize
from .sources import read_clips
from .subsets import SPLITS, SUBSETS


def _manifest(args: argparse.Namespace) -> int:
    subset = SUBSETS[args.subset]
    clips = read_clips(subset, locate(subset, args.data_dir))
    pairs = []
    for split in SPLITS.values():
        of_split = draw_off_screen([clip for clip in clips if clip.split == split], subset, args.seed, args.draw)
        if of_split:
            print(f"{split}: {summarize(of_split)}", file=sys.stderr)
        pairs += of_split
    sys.stdout.writelines(manifest(pairs, subset))
    return 0


def _check(args: argparse.Namespace) -> int:
    subset = SUBSETS[args.subset]
    lines, complete = check(subset, locate(subset, args.data_dir))
    print("\n".join(lines))
    return 0 if complete else 1


def _demo(args: argparse.Namespace) -> int:
    from .synthetic import write_demo

    write_demo(args.out, seed=args.seed)
    print(f"Wrote {args.out}. Load it with load_dataset('avsbench_robust', 'demo', data_dir={args.out!r}).")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="avs-data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--subset", choices=list(SUBSETS), default="s4")
    where.add_argument("--data_dir", help="the download; default: $AVSBENCH_DIR, else ./data")

    command = commands.add_parser("manifest", parents=[where], help="print the off-screen draw and its SHA-256")
    command.add_argument("--seed", type=int, default=42)
    command.add_argument("--draw", choices=DRAWS, default="matched")
    command.set_defaults(run=_manifest)

    command = commands.add_parser("check", parents=[where], help="say what a download has and lacks")
    command.set_defaults(run=_check)

    command = commands.add_parser("demo", help="write the synthetic demo tree")
    command.add_argument("--out", required=True, help="folder to write Single-source/ into")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_demo)

    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        print(f"avs-data {args.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `avs-data manifest | head`: nobody reads on, and Python's flush at exit must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
