"""`avs-report`: the scores of one or several models as a page and tables, and which differences stand.

    avs-report --run baseline=runs/a/eval --run robust=runs/b/eval --out report
    avs-report compare runs/a/eval/results.json runs/b/eval/results.json
    avs-report entry runs/a/eval/results.json --out runs/a

Runs of one name are the training seeds of one model.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from avsbench_robust_dataset import __version__
from avsbench_robust_dataset.files import OutputError, printable, write_whole

from . import uncertainty
from .compare import compare_runs
from .entry import entry_main
from .report import (
    Clip,
    latex_paper_table,
    latex_table,
    markdown_paper_table,
    markdown_table,
    read_download,
    read_gallery,
    results_table,
    write_report,
)
from .report.compare_tables import FORMATS, comparison_text
from .results import read_run


def main(argv: Sequence[str] | None = None) -> None:
    """`avs-report`: prints the table, writes `index.html`, `table.md` and `table.tex`; or `avs-report compare`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    commands = {"compare": compare_main, "entry": entry_main}
    if argv[:1] and argv[0] in commands:
        commands[argv[0]](argv[1:])
        return
    parser = _parser()
    args = parser.parse_args(argv)

    logs: dict[str, list[Path]] = {}
    for name, path in args.log:
        logs.setdefault(name, []).append(path)
    names = [name for name, _ in args.run]
    for name, path in args.predictions:
        if name not in names:
            parser.error(f"--predictions {name}: there is no --run of this name.")
        if not path.is_dir():
            parser.error(f"--predictions {name}: {path} is not a folder.")
    for name, paths in logs.items():
        if len(paths) > names.count(name):
            parser.error(f"--log {name}: {len(paths)} given, but {names.count(name)} --run of this name.")
    try:
        runs = [read_run(name, path, logs[name].pop(0) if logs.get(name) else None) for name, path in args.run]
        for name, path in args.predictions:
            runs[names.index(name)] = replace(runs[names.index(name)], predictions=path)
        clips: Iterable[Clip] = ()
        if args.gallery:
            clips = read_gallery(args.gallery)
        elif args.data_dir:
            clips = read_download(args.data_dir, runs[0])
        page = write_report(
            args.out, runs, clips, title=args.title, notes=args.note, mixed_annotations=args.mixed_annotations
        )
        is_paper = args.markdown == "paper"
        markdown = markdown_paper_table(runs, args.intervals) if is_paper else markdown_table(runs)
        is_paper = args.latex == "paper"
        latex = latex_paper_table(runs, args.intervals) if is_paper else latex_table(runs)
        write_whole(args.out / "table.md", markdown.encode())
        write_whole(args.out / "table.tex", latex.encode())
    except (FileNotFoundError, ValueError, OutputError) as error:
        parser.exit(1, f"avs-report: {printable(error)}\n")
    print(results_table(runs))
    print(page)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avs-report",
        description="Scores of one or several models, as a page and tables.",
        epilog="avs-report compare A B: which differences between two results stand; avs-report entry RESULTS: the "
        "Hub's evaluation results and the row of a table. Each has a --help.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--run",
        action="append",
        required=True,
        type=_named_path,
        metavar="NAME=DIR",
        help="an evaluated model's folder with results.json; repeat for more models, and with one NAME for its seeds",
    )
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        type=_named_path,
        metavar="NAME=FILE",
        help="a run's train_log.jsonl, in the order of the --run of this NAME; by default the one in DIR or above it",
    )
    parser.add_argument(
        "--predictions",
        action="append",
        default=[],
        type=_named_path,
        metavar="NAME=DIR",
        help="the masks of the first --run of this NAME, for the gallery; by default predictions/ in its folder",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument("--data_dir", type=Path, metavar="DIR", help="the AVSBench download, for the gallery")
    pictures.add_argument("--gallery", type=Path, metavar="FILE.json", help="clips to show: ids, frame and mask files")
    tables = ("full", "paper")
    for name, file in (("latex", "table.tex"), ("markdown", "table.md")):
        parser.add_argument(
            f"--{name}",
            choices=tables,
            default="full",
            help=f"what {file} holds: every score of every model (full), or models as rows and subsets side by side",
        )
    parser.add_argument("--intervals", action="store_true", help="95 %% intervals in the tables of a paper")
    parser.add_argument("--title", default="Does the model listen?")
    parser.add_argument("--note", action="append", default=[], help="a paragraph for the page's notes; repeatable")
    _add_mixed_annotations(parser)
    return parser


def _add_mixed_annotations(parser):
    parser.add_argument(
        "--mixed_annotations",
        action="store_true",
        help="show results on AVSBench-object's masks beside results on AVSBench-semantic's",
    )


def _named_path(argument):
    name, separator, path = argument.partition("=")
    if not (name.strip() and separator and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {argument!r}")
    return name.strip(), Path(path)


def compare_main(argv: Sequence[str]) -> None:
    """`avs-report compare`: prints both scores, their difference, its interval and p, and which differences stand."""
    parser = argparse.ArgumentParser(
        prog="avs-report compare", description="Which differences between two results stand."
    )
    parser.add_argument("a", type=Path, metavar="A", help="results.json of the first model, or its folder")
    parser.add_argument("b", type=Path, metavar="B", help="results.json of the second model, or its folder")
    parser.add_argument("--more_a", type=Path, nargs="+", default=[], metavar="A2", help="more seeds of A")
    parser.add_argument("--more_b", type=Path, nargs="+", default=[], metavar="B2", help="more seeds of B")
    parser.add_argument("--names", nargs=2, metavar=("A", "B"), help="what to call them; default: their folders")
    parser.add_argument("--format", choices=list(FORMATS), default="text")
    parser.add_argument("--resamples", type=int, default=uncertainty.RESAMPLES, metavar="N")
    parser.add_argument("--level", type=float, default=uncertainty.LEVEL, metavar="P", help="of the intervals")
    parser.add_argument("--seed", type=int, default=uncertainty.SEED, help="of the resamples")
    parser.add_argument(
        "--mixed_levels", action="store_true", help="compare F and G-F of masks with different numbers of grey levels"
    )
    _add_mixed_annotations(parser)
    args = parser.parse_args(argv)
    if args.resamples < 1:
        parser.error(f"argument --resamples: expected at least 1, got {args.resamples}")
    if not 0 < args.level < 1:
        parser.error(f"argument --level: expected a number between 0 and 1, got {args.level}")
    try:
        sides = [
            [read_run(str(path), path) for path in paths] for paths in ([args.a, *args.more_a], [args.b, *args.more_b])
        ]
        options = dict(resamples=args.resamples, level=args.level, seed=args.seed)
        options |= dict(mixed_levels=args.mixed_levels, mixed_annotations=args.mixed_annotations)
        found = compare_runs(*sides, **options)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"avs-report compare: {printable(error)}\n")
    names = args.names or _folder_names(args.a, args.b)
    print(comparison_text(found, [*sides[0], *sides[1]], names, args.format), end="")
    if args.format == "text":
        for name, runs in zip(names, sides, strict=True):
            print(f"{name}: {', '.join(run.name for run in runs)}" + (" (mean of seeds)" if len(runs) > 1 else ""))


def _folder_names(a: Path, b: Path) -> tuple[str, str]:
    """The last folder's name in which two results' paths differ, of each; "a" and "b" where there is none."""
    parts = [(path.parent if path.is_file() else path).resolve().parts[::-1] for path in (a, b)]
    return next(((first, second) for first, second in zip(*parts, strict=False) if first != second), ("a", "b"))


if __name__ == "__main__":
    main()
