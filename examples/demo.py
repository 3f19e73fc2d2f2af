"""The demo: from data on disk to a robustness report, on two cores in minutes.

Trains a small AVSegFormer without and with negative audio, several seeds each, evaluates every model under the four
conditions and under sounds that no training hears, and writes a report. Every step is a command of its own that this
file only starts and prints; copy one to run it alone.

    make demo                               # procedurally made clips; results in outputs/demo
    make demo DATA=path SUBSET=s4           # the same on a real AVSBench download; results in outputs/demo_s4
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from datasets import load_dataset

from avsbench_robust_dataset import CONDITIONS as BENCHMARK_CONDITIONS
from avsbench_robust_dataset.files import write_whole
from avsbench_robust_dataset.processes import available_cpus
from avsbench_robust_dataset.synthetic import demo_digest
from evaluate_metrics.report import Clip, Run, read_run, results_table, write_report

ROOT = Path(__file__).resolve().parents[1]

# glibc gives large blocks back to the system at once, and a training step asks for them anew: a sixth of its time.
KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}

# Both models alike: optimiser, steps, frames an item, augmentation, loss.
TRAINING = dict(
    max_steps=1200,
    frames_per_clip=1,
    learning_rate=2e-3,
    weight_decay=0.01,
    lr_scheduler="onecycle",
    max_grad_norm=1.0,
    augment=True,
    validation_every=0,
    checkpointing_steps=10**9,
)
POSITIVE_ITEMS = 12  # of a step, for both models: what negative sounds teach comes on top
# What differs: negative items, and clips that show two clips of the data in one picture.
MODELS = {
    "baseline": dict(recipe="paper", negative_ratio=0.0, batch_size=POSITIVE_ITEMS),
    "robust": dict(recipe="listen", negative_ratio=0.5, batch_size=2 * POSITIVE_ITEMS),
}
CONDITIONS = (*BENCHMARK_CONDITIONS, "unseen", "muted")
RECORDINGS = "eval_recordings"  # folder of the scores with the sounds of --unseen_dir

SYNTHETIC_NOTE = (
    "The clips are drawn and synthesised by this repository: figures on them show that the path works and that "
    "negative audio teaches a small model to listen. They say nothing about AVSBench."
)
REAL_NOTE = (
    "A model of about 1 million parameters, its encoders pre-trained on these training clips alone: figures show that "
    "the path works on these clips. They say nothing about the models of the papers."
)
NOISE_NOTE = (
    "Noise is never a training target of the masks and never paired with a picture. The audio encoder's pre-training "
    "hears coloured noise (1/f^0.3 to 1/f^2, never white) and random timbres as belonging to no category."
)
UNSEEN_NOTE = (
    "Unseen sounds are of ten synthetic kinds (alarms, wails, rain, engines, choirs, clocks, animals, sweeps, bells, "
    "plucked strings) that no training hears, neither of the masks nor of the encoders."
)


def command(program: str, **options) -> list[str]:
    """The argument list of one of our programs; None and False are left out, True is a bare flag."""
    words = [sys.executable, *program.split()]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if isinstance(value, list | tuple):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    return words


def run(words: Sequence[str], log: Path) -> None:
    """Runs a command to its end on one thread, its output going to `log`; on failure the end of the log is shown.

    One thread, so that neither the number of cores nor --jobs changes what is computed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    shown = " ".join(shlex.quote(word) for word in ["python", *words[1:]])
    print(f"  {shown}", flush=True)
    environment = {**KEEPS_MEMORY, **os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as file:
        file.write(f"{shown}\n")
        file.flush()
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise SystemExit(
            f"This command failed with exit code {done.returncode} (its output is in {log}):\n{shown}\n{tail}"
        )


def mean_scores(runs: Sequence[Run]) -> dict[str, float]:
    """The mean over seeds of each score that every run has."""
    names = [name for name in runs[0].scores if all(name in run.scores for run in runs)]
    return {name: float(np.mean([run.scores[name] for run in runs])) for name in names}


def items_seen(name: str, steps: int) -> dict[str, int]:
    """How many positive and negative items a model is trained on, on average over the order of an epoch."""
    items = steps * MODELS[name]["batch_size"]
    negatives = round(items * MODELS[name]["negative_ratio"])
    return {"positive": items - negatives, "negative": negatives}


def gallery_clips(subset: str, data_dir: Path, split: str) -> Iterator[Clip]:
    """What the report shows of each clip, read from the data set one at a time."""
    data = dict(path="avsbench_robust", name=subset, data_dir=str(data_dir))
    positive = load_dataset(**data, split=f"{split}_positive").remove_columns("audio")
    off_screen = load_dataset(**data, split=f"{split}_off_screen")["audio_category"]
    for clip, sound in zip(positive, off_screen, strict=True):
        yield Clip(clip["clip_id"], clip["category"], clip["frames"], clip["masks"], {"off_screen": sound})


def print_stage(started: float, title: str) -> None:
    print(f"[{time.perf_counter() - started:5.0f} s] {title}", flush=True)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--subset", default="demo", choices=["demo", "s4", "ms3"])
    parser.add_argument("--data_dir", type=Path, help="an AVSBench download; the demo clips are made without one")
    parser.add_argument("--data_seed", type=int, default=2028, help="seed of the demo clips")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="training seeds")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--max_steps", type=int, default=TRAINING["max_steps"])
    parser.add_argument("--split", default="test", choices=["test", "validation"], help="evaluated at the end")
    parser.add_argument("--unseen_dir", type=Path, help="recordings (wav) to score as further unseen sounds")
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="trainings at a time, one thread each")
    args = parser.parse_args(argv)
    if args.subset != "demo" and args.data_dir is None:
        parser.error(f"--data_dir: expected the folder of an AVSBench download for --subset {args.subset}.")
    return args


def train_and_evaluate(args: argparse.Namespace, out: Path, data_dir: Path, name: str, seed: int) -> None:
    """One model of one training seed, in OUT/<name>_seed<seed>, and its scores in eval/ there."""
    data = dict(subset=args.subset, data_dir=data_dir)
    folder = out / f"{name}_seed{seed}"
    train = command(
        "train_accelerate.py",
        **data,
        model=out / "init",
        output_dir=folder,
        seed=seed,
        overwrite_output_dir=True,
        **{**TRAINING, "max_steps": args.max_steps},
        **MODELS[name],
    )
    run(train, out / "logs" / f"train_{name}_seed{seed}.log")
    evaluate = dict(**data, model=folder / "last", split=args.split)
    scored = {"eval": dict(conditions=CONDITIONS, save_predictions=True)}
    if args.unseen_dir is not None:
        scored[RECORDINGS] = dict(conditions=("positive", "unseen"), unseen_dir=args.unseen_dir.resolve())
    for place, options in scored.items():
        words = command("evaluate_accelerate.py", **evaluate, output_dir=folder / place, **options)
        run(words, out / "logs" / f"{place}_{name}_seed{seed}.log")


def report(args: argparse.Namespace, out: Path, data_dir: Path) -> Path:
    """Writes the report and results.json, prints the table; the page of the report."""
    trained = {name: [read_run(name, out / f"{name}_seed{seed}" / "eval") for seed in args.seeds] for name in MODELS}
    settings = {
        "subset": args.subset,
        "split": args.split,
        "data_seed": None if args.data_dir else args.data_seed,
        "image_size": args.image_size,
        "training": {**TRAINING, "max_steps": args.max_steps},
        "models": MODELS,
        "items": {name: items_seen(name, args.max_steps) for name in MODELS},
        "conditions": list(CONDITIONS),
    }
    seen = "; ".join(
        f"{name}: {items['positive']} with their own sound, {items['negative']} with another"
        for name, items in settings["items"].items()
    )
    page = write_report(
        out / "report",
        [run for runs in trained.values() for run in runs],
        gallery_clips(args.subset, data_dir, args.split),
        notes=[
            SYNTHETIC_NOTE if args.data_dir is None else REAL_NOTE,
            f"Items of the training, {args.max_steps} steps: {seen}.",
            NOISE_NOTE,
            UNSEEN_NOTE,
        ],
        settings=settings,
    )
    scores = {name: mean_scores(runs) for name, runs in trained.items()}
    if args.unseen_dir is not None:
        for name, values in scores.items():
            heard = mean_scores([read_run(name, out / f"{name}_seed{seed}" / RECORDINGS) for seed in args.seeds])
            values |= {f"{key}_unseen_recordings": heard[f"{key}_unseen"] for key in ("miou", "f_score", "fpr")}
    results = {
        **scores,
        "seeds": args.seeds,
        "settings": settings,
    }
    write_whole(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    print(results_table([run for runs in trained.values() for run in runs]))
    return page


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    started = time.perf_counter()
    out = args.out.resolve()
    # A folder of its own for each seed and recipe: nothing made otherwise is ever taken for these clips.
    made = out / f"data_seed{args.data_seed}_{demo_digest()[:8]}"
    data_dir = args.data_dir.resolve() if args.data_dir else made
    if args.data_dir is None and not (data_dir / "Single-source").exists():
        print_stage(started, "making the demo clips")
        make = command("-m avsbench_robust_dataset demo", out=data_dir, seed=args.data_seed)
        run(make, out / "logs" / "data.log")

    print_stage(started, "pre-training the encoders by classification (stand-ins for VGGish and ImageNet weights)")
    options = dict(subset=args.subset, data_dir=data_dir, output_dir=out / "init", image_size=args.image_size)
    run(command("examples/pretrain_encoders.py", **options), out / "logs" / "pretrain.log")

    print_stage(started, f"training {len(MODELS)} models x {len(args.seeds)} seeds, {args.jobs} at a time")
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        longest_first = [(name, seed) for name in reversed(MODELS) for seed in args.seeds]  # no core waits at the end
        runs = [pool.submit(train_and_evaluate, args, out, data_dir, *model) for model in longest_first]
        for finished in runs:
            finished.result()

    print_stage(started, "writing the report")
    page = report(args, out, data_dir)
    print(f"{page}\n{out / 'results.json'}\n{(time.perf_counter() - started) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
