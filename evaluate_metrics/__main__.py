"""`avs-report`: the scores of one or several models as a page and tables, and which differences stand.

    avs-report --run baseline=runs/a/eval --run robust=runs/b/eval --out report
    avs-report compare runs/a/eval/results.json runs/b/eval/results.json

The first reads each folder's `results.json` and `clips.jsonl`, prints the table and writes `index.html`, `table.md`
and `table.tex`; runs of one name are the training seeds of one model. The second is `compare.py`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from avsbench_robust_dataset.files import OutputError, write_whole

from . import compare
from .report import latex_table, markdown_table, read_download, read_gallery, results_table, write_report
from .results import read_run


def main(argv: Sequence[str] | None = None) -> None:
    """`avs-report`: prints the table, writes `index.html`, `table.md` and `table.tex`; or `avs-report compare`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["compare"]:
        compare.main(argv[1:])
        return
    parser = argparse.ArgumentParser(
        prog="avs-report",
        description="Scores of one or several models, as a page and tables.",
        epilog="avs-report compare A B: which differences between two results stand; see avs-report compare --help.",
    )
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
    parser.add_argument("--title", default="Does the model listen?")
    parser.add_argument("--note", action="append", default=[], help="a paragraph for the page's notes; repeatable")
    args = parser.parse_args(argv)

    logs = {}
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
        clips = ()
        if args.gallery:
            clips = read_gallery(args.gallery)
        elif args.data_dir:
            clips = read_download(args.data_dir, runs[0])
        page = write_report(args.out, runs, clips, title=args.title, notes=args.note)
        write_whole(args.out / "table.md", markdown_table(runs).encode())
        write_whole(args.out / "table.tex", latex_table(runs).encode())
    except (FileNotFoundError, ValueError, OutputError) as error:
        parser.exit(1, f"avs-report: {error}\n")
    print(results_table(runs))
    print(page)


def _named_path(argument):
    name, separator, path = argument.partition("=")
    if not (name.strip() and separator and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {argument!r}")
    return name.strip(), Path(path)


if __name__ == "__main__":
    main()
