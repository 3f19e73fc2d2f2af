"""Scores a model on AVSBench-Robust: the same clips with their own sound, silence, noise and another clip's sound.

    accelerate launch evaluate_accelerate.py --model runs/s4 --subset s4 --data_dir data --output_dir runs/s4/eval
    python evaluate_accelerate.py --predictions masks --subset s4 --data_dir data --output_dir masks_eval
    python evaluate_accelerate.py --model-fn my_model:predict --subset s4 --data_dir data --output_dir my_eval

The model is a `from_pretrained` folder of this project (`--model`), any model whose masks are PNG files in
DIR/<condition>/<category>/<clip>/<clip>_<k>.png, <k> from 0 or 1, category optional, 1-bit or 8-bit grey where 255 is
probability 1 (`--predictions`, which needs the ground-truth masks only), or any Python callable (`--model-fn`)

    (frames (T, H, W, 3) uint8 RGB, waveform (80000,) float32, sampling rate) -> probabilities (T, H, W)

The same file runs on one CPU (`--cpu`), one GPU, or several processes (`torchrun --nproc_per_node N`, with `--cpu` for
CPU processes). Each clip's frames pass the backbone once, each distinct sound passes the audio encoder once; only the
head runs once per clip and condition. Masks are scored at their own resolution.

Conditions beyond the four are values of `--conditions`: `unseen` (sounds that no training hears: wav files of
`--unseen_dir`, else built-in ones), `timbre` (random sounds, to train on), `mixed_snr_<dB>` (own and off-screen
sound), `noise_snr_<dB>` (own sound and noise).

`--push_to_hub` publishes the model of `--model` with these scores in its card.

`results.json` holds the scores and breakdowns, `clips.jsonl` the statistics of every clip behind them;
`--save_predictions` writes the probability masks beside them. An interrupted run resumes where it stopped and ends
with exactly the scores of an uninterrupted one; SIGTERM ends it with exit code 0. A second run in the same output
folder is refused. The number of processes does not change the scores if each process has the same number of threads.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from transformers.utils.logging import disable_progress_bar

from avs_engine.clips import Splits, load_conditions
from avs_engine.data_facts import data_facts, find_mute_clips
from avs_engine.hub import add_hub_arguments, publish
from avs_engine.journal import Journal
from avs_engine.models import check_model_path
from avs_engine.predict import AVSegFormerSegmenter, Noted, load_segmenter, predict, save_predictions
from avs_engine.provenance import encoders_of, git_revision, library_versions, weights_of, write_json
from avs_engine.scoring import (
    add_heard_frames,
    count_source_videos,
    find_silent_masks,
    format_scores,
    score,
    score_masks,
)
from avs_engine.signals import ends_on_sigterm
from avsbench_robust_dataset import CONDITIONS, SUBSETS
from avsbench_robust_dataset.conditions import get_condition
from avsbench_robust_dataset.files import OutputError, only_run_in
from avsbench_robust_dataset.hub_access import check_hub_access
from avsbench_robust_dataset.unseen import unseen_source
from evaluate_metrics.avs_robust import avs_robust as metric
from evaluate_metrics.clip_rows import have_two_values, results, write_rows
from evaluate_metrics.data_notes import data_notes
from evaluate_metrics.mask_files import PredictionsError, predictions_digest
from evaluate_metrics.results import read_json


class Scored(NamedTuple):
    """Rows in the order of the data set, their journal, the splits, and which weights `args.model` holds."""

    rows: list[dict]
    journal: Journal
    splits: Splits
    weights: dict | None


def score_model(args: argparse.Namespace, accelerator: Accelerator, settings: dict) -> Scored:
    """Scores `args.model` or what `args.model_fn` names.

    Args:
        settings: what names this run's journal, beside the model and the data.
    """
    weights = None
    if args.model_fn:
        segmenter = load_segmenter(args.model_fn)
    else:
        segmenter = AVSegFormerSegmenter.from_pretrained(
            args.model, args.front_end, args.batch_size, accelerator.device
        )
        args.front_end = segmenter.identity["front_end"]
        weights = weights_of(args.model) | {"encoders": encoders_of(args.model)}
    with accelerator.main_process_first():  # one process builds the data, the others read its cache
        splits, data = load_conditions(
            args.subset,
            args.data_dir,
            args.seed,
            args.split,
            args.conditions,
            {"unseen_dir": args.unseen_dir},
            args.max_clips,
            args.num_workers or None,
        )
    subset = SUBSETS[args.subset]
    silent_masks = find_silent_masks(subset, args.data_dir)
    if silent_masks:
        settings = settings | {"clips_with_silent_masks": len(silent_masks)}
    output_dir = Path(args.output_dir)
    clip_ids = next(iter(splits.values()))["clip_id"][:]
    identity = settings | segmenter.identity | {"data": data}
    with Journal(output_dir, identity, accelerator.is_main_process) as journal:
        accelerator.wait_for_everyone()  # all processes read the journal before one writes to it
        done = journal.rows.keys() & set(clip_ids)
        if done and accelerator.is_main_process:
            print(
                f"resumed: {len(done)} of {len(clip_ids)} clips were scored before, in {journal.path}. Remove this "
                "file to score them again, for example where the model has changed.",
                flush=True,
            )
        predictions = predict(segmenter, splits, accelerator, args.num_workers, done)
        if args.save_predictions:
            predictions = save_predictions(predictions, list(splits), output_dir / "predictions")
        with Noted(f"while scoring {args.model or args.model_fn}"):
            left = len(clip_ids) - len(done)
            score(predictions, list(splits), accelerator, subset, journal, left, silent_masks)
    return Scored([journal.rows[clip_id] for clip_id in clip_ids], journal, splits, weights)


def is_condition(name: str) -> bool:
    try:
        condition_name(name)
    except argparse.ArgumentTypeError:
        return False
    return True


def condition_name(name: str) -> str:
    try:
        return get_condition(name).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="from_pretrained folder or Hub id")
    source.add_argument("--predictions", metavar="DIR", help="folder of PNG masks to score instead of a model")
    source.add_argument(
        "--model-fn", "--model_fn", metavar="MODULE:FUNCTION", help="callable to score instead of a model"
    )
    parser.add_argument("--subset", required=True, choices=list(SUBSETS))
    parser.add_argument("--data_dir", help="the AVSBench download; default: $AVSBENCH_DIR, else ./data")
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw of negative sounds")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument(
        "--conditions",
        nargs="+",
        type=condition_name,
        default=list(CONDITIONS),
        metavar="CONDITION",
        help=f"{', '.join(CONDITIONS)} (the default); unseen, muted, timbre, mixed_snr_<dB>, noise_snr_<dB>",
    )
    parser.add_argument("--unseen_dir", type=Path, help="folder of wav files for unseen; default: built-in sounds")
    parser.add_argument(
        "--output_dir", required=True, help="receives results.json, clips.jsonl and, if asked for, predictions/"
    )
    parser.add_argument(
        "--overwrite_output_dir", action="store_true", help="replace another run's results that are there"
    )
    parser.add_argument(
        "--front_end",
        choices=("vggish", "released"),
        help="front end of --model; released: that of the released code, which reveals negative sounds to the model; "
        "default: the model's own",
    )
    parser.add_argument(
        "--grey_of_one",
        type=int,
        choices=(1, 255),
        help="grey value of probability 1 in --predictions; default: detected",
    )
    parser.add_argument("--batch_size", type=int, default=4, help="clips per process")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read the data")
    parser.add_argument("--max_clips", type=int, help="score only this many clips, evenly spaced over the split")
    parser.add_argument("--save_predictions", action="store_true", help="write 8-bit PNG probability masks")
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: accelerate's own setting")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    add_hub_arguments(parser)
    args = parser.parse_args(argv)
    extra = [condition for condition in dict.fromkeys(args.conditions) if condition not in CONDITIONS]
    args.conditions = [condition for condition in CONDITIONS if condition in args.conditions] + extra
    check_arguments(parser, args, extra)
    return args


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace, extra: Sequence[str]) -> None:
    """Ends the program if arguments contradict each other."""
    if args.push_to_hub and args.model is None:
        parser.error("argument --push_to_hub: only with argument --model; publish other models with their own tools")
    for name in ("batch_size", "max_clips"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"argument --{name}: expected at least 1, got {getattr(args, name)}")
    if args.grey_of_one is not None and args.predictions is None:
        parser.error("argument --grey_of_one: only with argument --predictions")
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


def check_output_dir(args: argparse.Namespace) -> None:
    """Raises ValueError where `args.output_dir` has another run's finished results; the same command may be repeated.

    With `args.overwrite_output_dir` they stay until those of this run are written in their place.
    """
    path = Path(args.output_dir) / "results.json"
    if args.overwrite_output_dir or not path.is_file():
        return
    old = read_json(path)
    old = old if isinstance(old, dict) else {}
    settings = old.get("settings") or {}
    ours = {"model": args.model or args.model_fn or args.predictions, "subset": args.subset, "split": args.split}
    theirs = {name: old.get(name) for name in ours}
    for name in ("seed", "conditions", "max_clips"):
        ours[name], theirs[name] = getattr(args, name), settings.get(name)
    if args.front_end:
        ours["front_end"], theirs["front_end"] = args.front_end, settings.get("front_end")
    differing = [f"{name} {theirs[name]!r} (now {ours[name]!r})" for name in ours if ours[name] != theirs[name]]
    if differing:
        raise ValueError(
            f"Expected an --output_dir without the results of another run, but {path} is of {', '.join(differing)}. "
            "Replace it with --overwrite_output_dir, or name another folder."
        )


def evaluate(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Scores what `args` name and, in the main process, writes and prints the results."""
    source = args.model or args.model_fn or args.predictions
    settings = {"seed": args.seed, "conditions": args.conditions, "max_clips": args.max_clips}
    if "unseen" in args.conditions and not args.predictions:
        settings |= unseen_source(args.unseen_dir)
    journal = splits = weights = None
    if args.predictions:
        rows = []
        if accelerator.is_main_process:
            rows, settings["grey_of_one"] = score_masks(
                Path(args.predictions),
                args.conditions,
                SUBSETS[args.subset],
                args.data_dir,
                args.split,
                args.max_clips,
                args.grey_of_one,
                is_condition,
            )
    else:
        settings |= {"mixed_precision": accelerator.mixed_precision, "device": accelerator.device.type}
        run = {"source": source, "subset": args.subset, "split": args.split, "saved": args.save_predictions}
        rows, journal, splits, weights = score_model(args, accelerator, settings | run)
        settings |= {"batch_size": args.batch_size, "num_processes": accelerator.num_processes}
        settings |= {"front_end": args.front_end} if args.model else {}
    if not accelerator.is_main_process:
        return
    output_dir = Path(args.output_dir)
    extra = [name for name in args.conditions if name not in metric.CONDITIONS]
    add_heard_frames(rows, args.conditions, args.subset, args.split, args.seed)
    found = results(rows, [name for name in extra if get_condition(name).heard == "none"])
    settings["prediction_levels"] = "1-bit" if have_two_values(rows) else "8-bit" if args.predictions else "float"
    found["source_videos"] = count_source_videos(SUBSETS[args.subset], args.data_dir)
    found |= data_facts(SUBSETS[args.subset], args.data_dir, args.split, args.seed, args.conditions)
    if splits is not None:
        found["mute_clips"] = find_mute_clips(splits)
    write_rows(output_dir / "clips.jsonl", rows)
    head = {"model": source, "subset": args.subset, "split": args.split}
    masks = args.predictions or (output_dir / "predictions" if args.save_predictions else None)
    rest = {"settings": settings, "clips_file": "clips.jsonl", "versions": library_versions()}
    rest |= {"git_revision": git_revision(), "arguments": arguments_of(args)}
    if weights is not None:
        rest["weights"] = weights
    rest["predictions_dir"] = None if masks is None else os.path.relpath(masks, output_dir)
    if masks is not None:
        rest["predictions_digest"] = predictions_digest(Path(masks), args.conditions)
    write_json(output_dir / "results.json", head | rest | found)
    if journal is not None:
        journal.remove()
    print(f"{source} on {args.subset}, {args.split} split, {len(rows)} clips")
    fixed = [condition for condition in args.conditions if condition in metric.CONDITIONS]
    print(format_scores(found["scores"], fixed, found["extra_conditions"]))
    for name, (low, high) in found["intervals"].items():
        if name in ("g_miou", "g_f_score", "g_fpr"):
            print(f"{name:<20}95 % interval over the choice of clips: {low:.4f} to {high:.4f}")
    if "g_miou_released" in found["scores"]:
        print(
            f"g_miou_released     {found['scores']['g_miou_released']:.4f}, where frames without an object count too"
        )
    print(*data_notes(head | found), sep="\n")
    if settings["prediction_levels"] == "1-bit":
        print(
            "warning: the predictions hold two values only. F is the maximum over thresholds and is higher for such "
            "masks: compare F and G-F only with other 1-bit masks, or score 8-bit probabilities.",
            file=sys.stderr,
        )
    print(f"written to {output_dir / 'results.json'}")


def arguments_of(args: argparse.Namespace) -> dict:
    """The command's options for `results.json`, without the token and the folder that the file lies in."""
    kept = {name: value for name, value in vars(args).items() if name not in ("hub_token", "output_dir")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.model:
        check_model_path(args.model)
    disable_progress_bar()  # that of transformers
    accelerator = Accelerator(cpu=args.cpu or bool(args.predictions), mixed_precision=args.mixed_precision)
    publishes = args.push_to_hub and accelerator.is_main_process
    if publishes:  # checked now, because the evaluation may take hours
        name = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
        hub_model_id = check_hub_access(args.hub_model_id or name, args.hub_token)
    again = "Nothing is written yet" if args.predictions else f"What is scored is kept in {args.output_dir}"
    alone = only_run_in(args.output_dir) if accelerator.is_main_process else nullcontext()
    try:
        with ends_on_sigterm(f"{again}: repeat the command to go on."), alone:
            if accelerator.is_main_process:
                check_output_dir(args)
            evaluate(args, accelerator)
    except PredictionsError as error:
        print(*error.problems, error, sep="\n", file=sys.stderr)
        raise SystemExit(2) from None
    accelerator.wait_for_everyone()  # without it, processes have been seen to abort at shutdown
    accelerator.end_training()
    if publishes:
        publish(args.model, hub_model_id, args, Path(args.output_dir) / "results.json")


def cli() -> None:
    """Runs `main` and prints errors that the user can fix without a traceback; the exit code is then 2.

    An exception with notes comes from scoring or from the user's module, and keeps its traceback.
    """
    try:
        main()
    except (OSError, ValueError, ModuleNotFoundError) as error:
        notes = getattr(error, "__notes__", [])
        no_such_module = isinstance(error, ModuleNotFoundError) and f"importing {error.name!r} for" in "".join(notes)
        if notes and not no_such_module and not isinstance(error, OutputError):
            raise
        print(f"avs-evaluate: error: {error}", *notes, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    cli()
