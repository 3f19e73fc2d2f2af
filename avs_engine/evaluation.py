"""An evaluation: scores a model, a callable or predicted masks under each condition, and writes the results."""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers.utils.logging import disable_progress_bar

from avsbench_robust_dataset.conditions import get_condition
from avsbench_robust_dataset.files import only_run_in, printable
from avsbench_robust_dataset.hub_access import check_hub_access
from avsbench_robust_dataset.unseen import unseen_source
from evaluate_metrics.avs_robust import avs_robust as metric
from evaluate_metrics.clip_rows import have_two_values, results, write_rows
from evaluate_metrics.data_notes import data_notes
from evaluate_metrics.mask_files import PredictionsError, Reading, predictions_digest
from evaluate_metrics.mask_folders import Source, named_folders, relative_to
from evaluate_metrics.results import read_results

from .accelerator import worker_count
from .clips import Splits, load_splits
from .data_facts import Download, data_facts, find_mute_clips, open_download
from .hub import publish
from .journal import Journal
from .models import check_model_path
from .predict import AVSegFormerSegmenter, load_segmenter, noted, predict, save_predictions
from .provenance import encoders_of, git_revision, library_versions, weights_of, write_json
from .scoring import add_heard_frames, find_silent_masks, format_scores, score, score_masks
from .signals import Terminated, Termination


def score_model(
    args: argparse.Namespace, accelerator: Accelerator, download: Download, settings: dict
) -> tuple[list[dict], Journal, Splits]:
    """The rows of `args.model` or `args.model_fn` in the order of the data set, their journal, and the splits.

    Args:
        settings: what names this run's journal, beside the model and the data.
    """
    if args.model_fn:
        segmenter = load_segmenter(args.model_fn)
    else:
        segmenter = AVSegFormerSegmenter.from_pretrained(
            args.model, args.front_end, args.batch_size, accelerator.device
        )
        args.front_end = segmenter.identity["front_end"]
    with accelerator.main_process_first():  # one process builds the data, the others read its cache
        which = args.subset, args.data_dir, args.seed, args.split, args.conditions
        splits = load_splits(*which, args.num_workers or None, {"unseen_dir": args.unseen_dir}, args.max_clips)
    data = {name: [file["filename"] for file in split.cache_files] for name, split in splits.items()}
    silent_masks = find_silent_masks(download)
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
        with noted(f"while scoring {args.model or args.model_fn}"):
            left = len(clip_ids) - len(done)
            score(predictions, list(splits), accelerator, download, journal, left, silent_masks)
    return [journal.rows[clip_id] for clip_id in clip_ids], journal, splits


def source_of(args: argparse.Namespace) -> str:
    return args.model or args.model_fn or " ".join(args.predictions)


def check_output_dir(args: argparse.Namespace) -> None:
    """Raises ValueError where `args.output_dir` has another run's finished results; the same command may be repeated.

    With `args.overwrite_output_dir` they stay until those of this run are written in their place.
    """
    path = Path(args.output_dir) / "results.json"
    if args.overwrite_output_dir or not path.is_file():
        return
    old = read_results(path)
    old = old if isinstance(old, dict) else {}
    now = {"model": source_of(args), "subset": args.subset, "split": args.split}
    before = (old.get("settings") or {}) | {name: old.get(name) for name in now}
    now |= {"seed": args.seed, "conditions": args.conditions, "max_clips": args.max_clips}
    if args.front_end:
        now["front_end"] = args.front_end
    differing = [f"{name} {before.get(name)!r} (now {now[name]!r})" for name in now if before.get(name) != now[name]]
    if differing:
        raise ValueError(
            f"Expected an --output_dir without the results of another run, but {path} is of {', '.join(differing)}. "
            "Replace it with --overwrite_output_dir, or name another folder."
        )


def evaluate(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Scores what `args` name and, in the main process, writes and prints the results."""
    source = source_of(args)
    settings = {"seed": args.seed, "conditions": args.conditions, "max_clips": args.max_clips}
    if "unseen" in args.conditions and not args.predictions:
        settings |= unseen_source(args.unseen_dir)
    with accelerator.main_process_first():  # one process writes the demo's files where there are none
        download = open_download(args.subset, args.data_dir)
    journal = splits = None
    if args.predictions:
        rows: list[dict] = []
        if accelerator.is_main_process:
            reading = Reading(args.grey_of_one, args.resize == "nearest", args.background, args.mask_pattern)
            rows, facts = score_masks(
                named_folders(args.predictions), args.conditions, download, args.split, args.max_clips, reading
            )
            settings |= facts
            print(f"predictions: {printable(facts['layout'])}")
    else:
        settings |= {"mixed_precision": accelerator.mixed_precision, "device": accelerator.device.type}
        run = {"source": source, "subset": args.subset, "split": args.split, "saved": args.save_predictions}
        rows, journal, splits = score_model(args, accelerator, download, settings | run)
        settings |= {"batch_size": args.batch_size, "num_processes": accelerator.num_processes}
        settings |= {"front_end": args.front_end} if args.model else {}
    if not accelerator.is_main_process:
        return
    output_dir = Path(args.output_dir)
    masks: Source | None = output_dir / "predictions" if args.save_predictions else None
    masks = named_folders(args.predictions) if args.predictions else masks
    add_heard_frames(rows, args.conditions, args.subset, args.split, args.seed)
    settings["prediction_levels"] = "1-bit" if have_two_values(rows) else "8-bit" if args.predictions else "float"
    extra = [name for name in args.conditions if name not in metric.CONDITIONS]
    found = results(rows, [name for name in extra if get_condition(name).heard == "none"])
    found |= data_facts(download, args.split, args.seed, args.conditions)
    if splits is not None:
        found["mute_clips"] = find_mute_clips(splits, args.unseen_dir)
    head: dict[str, Any] = {"model": source, "subset": args.subset, "split": args.split, "settings": settings}
    head |= {"clips_file": "clips.jsonl", "versions": library_versions(), "git_revision": git_revision()}
    head["arguments"] = arguments_of(args)
    if args.model:
        head["weights"] = weights_of(args.model) | {"encoders": encoders_of(args.model)}
    head["predictions_dir"] = None if masks is None else relative_to(masks, output_dir)
    if masks is not None:
        head["predictions_digest"] = predictions_digest(masks, args.conditions)
    write_rows(output_dir / "clips.jsonl", rows)
    write_json(output_dir / "results.json", head | found)
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


def run_evaluation(args: argparse.Namespace) -> None:
    """Runs the evaluation that `args` describe, from start to end."""
    if args.model:
        check_model_path(args.model)
    disable_progress_bar()  # that of transformers
    accelerator = Accelerator(cpu=args.cpu or bool(args.predictions), mixed_precision=args.mixed_precision)
    args.num_workers = worker_count(args.num_workers, accelerator)
    publishes = args.push_to_hub and accelerator.is_main_process
    if publishes:  # checked now, because the evaluation may take hours
        name = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
        hub_model_id = check_hub_access(args.hub_model_id or name, args.hub_token)
    alone = only_run_in(args.output_dir) if accelerator.is_main_process else nullcontext()
    with Termination() as termination:
        try:
            with termination.cuts_short(), alone:
                if accelerator.is_main_process:
                    check_output_dir(args)
                evaluate(args, accelerator)
        except Terminated:
            kept = "Nothing is written yet" if args.predictions else f"What is scored is kept in {args.output_dir}"
            print(f"Stopped by SIGTERM. {kept}: repeat the command to go on.", flush=True)
            raise SystemExit(0) from None
        except PredictionsError as error:
            print(error.told(Path(args.output_dir) / "problems.txt"), file=sys.stderr)
            raise SystemExit(2) from None
    accelerator.wait_for_everyone()  # without it, processes have been seen to abort at shutdown
    accelerator.end_training()
    if publishes:
        publish(args.model, hub_model_id, args, Path(args.output_dir) / "results.json")
