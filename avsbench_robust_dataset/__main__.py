"""`avs-data`: what a download holds, who gets whose sound, sounds as files, and a demo tree.

avs-data manifest --subset s4 --seed 42 --data_dir data     the off-screen draw as JSON lines, from the CSV alone
avs-data manifest --verify FILE --data_dir data             whether this machine draws the same; exit code 1 if not
avs-data audio    --subset s4 --data_dir data --out DIR     each condition's wav files, in AVSBench's layout
avs-data check    --subset s4 --data_dir data               what the download lacks; exit code 1 if anything
avs-data demo     --out data_demo                           a synthetic tree in AVSBench's layout
avs-data export   --subset s4 --data_dir data --out DIR     Parquet files that load with no import, also on the Hub
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, draw
from .audio_files import add_audio_arguments, audio_rows, write_audio
from .builder import locate, locate_download
from .check import check
from .data_card import FORBIDDEN
from .export import SOUNDS, export
from .files import printable
from .processes import available_cpus
from .sources import read_clips
from .subsets import LAYOUTS, SPLITS, SUBSETS
from .synthetic import write_demo
from .upload import check_repository, push


def _manifest(args: argparse.Namespace) -> int:
    subset, root = locate_download(SUBSETS[args.subset], args.data_dir, layout=args.layout)
    published, is_whole = (None, True) if args.verify is None else draw.read_manifest(args.verify)
    clips = read_clips(subset, root)
    pairs, statistics = [], {}
    for split in SPLITS.values():
        of_split = draw.draw_off_screen([clip for clip in clips if clip.split == split], subset, args.seed, args.draw)
        if of_split:
            statistics[split] = draw.draw_statistics(of_split, subset)
            print(f"{split}: {draw.summarize(statistics[split])}", file=sys.stderr)
        pairs += of_split
    if note := draw.explain(statistics, args.draw):
        print(note, file=sys.stderr)
    if published is None:
        sys.stdout.writelines(draw.manifest(pairs, subset))
        return 0
    *lines, digest = draw.manifest(pairs, subset)
    differing = draw.compare_manifests(published, map(json.loads, lines))
    for line in differing:
        print(printable(line))
    if not is_whole:
        print(f"{args.verify} does not end with the SHA-256 of its own rows: it was changed or cut off")
    if differing or not is_whole:
        if differing:
            count = f"{len(differing)} row{'s differ' if len(differing) > 1 else ' differs'}"
            print(f"{count} between {args.verify} and the draw here ({digest.strip()})")
        if is_whole and 2 * len(differing) > max(len(published), len(lines)):
            print("is it of another --subset, --seed or --draw?")
        return 1
    print(f"all {len(lines)} rows of {args.verify} equal the draw here: {digest.strip()}")
    return 0


def _audio(args: argparse.Namespace) -> int:
    subset = SUBSETS[args.subset]
    root = locate(subset, args.data_dir, layout=args.layout)
    rows = audio_rows(subset, root, args)
    write_audio(rows, subset, args.out)
    print(f"Wrote {len(rows)} sounds under {args.out}/<condition>/{subset.folder}/{subset.media}/.")
    return 0


def _check(args: argparse.Namespace) -> int:
    lines, complete = check(*locate_download(SUBSETS[args.subset], args.data_dir, layout=args.layout))
    print("\n".join(lines))
    return 0 if complete else 1


def _demo(args: argparse.Namespace) -> int:
    is_new = write_demo(args.out, seed=args.seed)
    how = f"load_dataset('avsbench_robust', 'demo', data_dir={args.out!r})"
    print(f"{'Wrote' if is_new else 'This demo is there already:'} {args.out}. Load it with {how}.")
    return 0


def _export(args: argparse.Namespace) -> int:
    if args.public and args.push_to_hub is None:
        raise ValueError("Expected --public together with --push_to_hub REPO, got it alone. Nothing was written.")
    if args.push_to_hub is not None:
        check_repository(args.push_to_hub, [args.subset], args.public)  # before the work, not after it
    num_proc = args.num_proc or min(8, available_cpus())
    data_dir = args.data_dir
    if args.layout is not None:
        data_dir = locate(SUBSETS[args.subset], data_dir, layout=args.layout)
    out = export(args.subset, args.out, data_dir, args.seed, args.draw, num_proc, args.max_shard_size, args.audio)
    print(f"Wrote {out}. Beside it: load_dataset({out.name!r}, {args.subset!r})")
    if args.subset != "demo":
        print(f"{FORBIDDEN} A repository on the Hub is private unless you pass --public.")
    if args.push_to_hub is not None:
        commit = push(out, args.push_to_hub, args.public)
        print(f"Pushed to {args.push_to_hub}: {commit.commit_url}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avs-data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--subset", choices=list(SUBSETS), default="s4")
    where.add_argument("--data_dir", help="the download; default: $AVSBENCH_DIR, else ./data")
    where.add_argument(
        "--layout", choices=LAYOUTS, help="AVSBench-object or AVSBench-semantic; default: the one that is there"
    )

    drawn = argparse.ArgumentParser(add_help=False)
    drawn.add_argument("--seed", type=int, default=42)
    drawn.add_argument("--draw", choices=draw.DRAWS, default="matched")

    command = commands.add_parser("manifest", parents=[where, drawn], help="print the off-screen draw and its SHA-256")
    command.add_argument(
        "--verify",
        type=Path,
        metavar="FILE",
        help="compare with this manifest row by row; exit code 1 if one differs",
    )
    command.set_defaults(run=_manifest)

    command = commands.add_parser("audio", parents=[where], help="write each condition's wav files")
    add_audio_arguments(command)
    command.set_defaults(run=_audio)

    command = commands.add_parser("check", parents=[where], help="say what a download has and lacks")
    command.set_defaults(run=_check)

    command = commands.add_parser("demo", help="write the synthetic demo tree")
    command.add_argument("--out", required=True, help="folder to write Single-source/ into")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_demo)

    command = commands.add_parser("export", parents=[where, drawn], help="write Parquet files that load anywhere")
    command.add_argument(
        "--out", type=Path, required=True, help="folder; a subset that an earlier export wrote there stays"
    )
    command.add_argument("--num_proc", type=int, help="processes; default: one per processor, at most 8")
    command.add_argument("--max_shard_size", default="500MB", help="of a file; a split has 8, 16, 24, ... of them")
    command.add_argument(
        "--audio",
        choices=list(SOUNDS),
        default="array",
        help="sounds as float32 samples, the default, or as wav files in a column that the Hub's viewer plays",
    )
    command.add_argument("--push_to_hub", metavar="REPO", help="also upload to this dataset repository, made private")
    command.add_argument(
        "--public",
        action="store_true",
        help="make the repository public; AVSBench's media must not be published without its authors' permission",
    )
    command.set_defaults(run=_export)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["audit"] or (argv[:1] == ["audio"] and "--log_mel" in argv):
        old, new = ("audit", "avs-audit") if argv[0] == "audit" else ("audio --log_mel", "avs-log-mel")
        print(f"avs-data {old} needs the model's front end and is a command of its own: call {new}.", file=sys.stderr)
        return 2
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:
        # `avs-data manifest | head`: nobody reads on, and Python's flush at exit must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as error:
        print(f"avs-data {args.command}: {printable(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
