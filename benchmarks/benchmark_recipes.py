"""Which lesson makes a model listen? Trains and scores the demo's small model by each row of a table.

    python benchmarks/benchmark_recipes.py --out outputs/recipes --unseen_dir recordings

Every row has the same clips, encoders (but where it says otherwise), steps and positive items, and as many negative
items as positive ones (but the baseline, which has none); they differ in the options of the trainer that stand in
`ROWS`. A row's figures are means over training seeds, with the value of each seed. Every finished training is kept in
OUT/results.json: a call that is repeated goes on with the next one.
"""

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avsbench_robust_dataset import CONDITIONS, synthetic
from avsbench_robust_dataset.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}  # see examples/demo.py
USUAL = synthetic.DISTRACTOR_SHARES["train"]
POSITIVE_ITEMS = 12  # of a step
TRAINING = {
    "frames_per_clip": 1,
    "learning_rate": 2e-3,
    "lr_scheduler": "onecycle",
    "max_grad_norm": 1.0,
    "augment": True,
    "validation_every": 0,
    "checkpointing_steps": 10**9,
    "negative_ratio": 0.5,
    "batch_size": 2 * POSITIVE_ITEMS,
}
TIMBRES = ["silence=1", "off_screen=4", "timbre=7"]


@dataclasses.dataclass(frozen=True)
class Row:
    """What a model learns from.

    Attributes:
        training: options of train_accelerate.py, over those of `TRAINING`.
        encoders: options of pretrain_encoders.py.
        two_objects: share of the training clips that show a second, silent object.
        variant: of recipe_variants.py, where the project has no option for it.
    """

    label: str
    training: dict
    encoders: dict = dataclasses.field(default_factory=dict)
    two_objects: float = USUAL
    variant: str | None = None

    def program(self, task: str) -> str:
        """The program that trains ("train") or scores ("evaluate") the row's model, with its first arguments."""
        if self.variant is None:
            return f"{task}_accelerate.py"
        return f"benchmarks/recipe_variants.py {self.variant} {task}"


ROWS = {
    "baseline": Row("positives alone", {"recipe": "paper", "negative_ratio": 0.0, "batch_size": POSITIVE_ITEMS}),
    "paper": Row("`--recipe paper`: silence and off-screen sounds", {"recipe": "paper"}),
    "listen": Row("`--recipe listen`: all", {"recipe": "listen"}),
    "timbres": Row("paper + timbres", {"recipe": "paper", "negative_conditions": TIMBRES}),
    "composition": Row("paper + composition", {"recipe": "paper", "compose_share": 0.5}),
    "two_objects": Row("paper, half of the training clips show two objects", {"recipe": "paper"}, two_objects=0.5),
    "no_objectosphere": Row("all, encoder without objectosphere", {"recipe": "listen"}, {"nothing_weight": 0}),
    "no_redraw": Row("all, off-screen sounds drawn once", {"recipe": "listen", "no-redraw_sounds": True}),
    "gate": Row("all, mask gated by the similarity", {"recipe": "listen"}, variant="gate"),
    "mixtures": Row(
        "paper + mixtures of two categories", {"recipe": "paper", "redraw_sounds": True}, variant="mixtures"
    ),
    "paper_no_timbres_heard": Row("paper, encoder that heard no timbres", {"recipe": "paper"}, {"timbres": 0}),
    "listen_no_timbres_heard": Row("all, encoder that heard no timbres", {"recipe": "listen"}, {"timbres": 0}),
    "paper_one_object": Row("paper, no training clip shows two objects", {"recipe": "paper"}, two_objects=0.0),
    "listen_one_object": Row("all, no training clip shows two objects", {"recipe": "listen"}, two_objects=0.0),
}
SCORES = {  # key in results.json -> digits
    "miou_positive": 3,
    "miou_off_screen": 3,
    "g_miou": 3,
    "miou_unseen": 3,
    "fpr_unseen": 4,
    "miou_unseen_recordings": 3,
    "fpr_unseen_recordings": 4,
    "selectivity_miou": 3,
    "selectivity_silent": 3,
}


def words(name: str, value: object) -> list[str]:
    """An option as the command line has it; True is a flag."""
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{name}", *(map(str, values) if value is not True else ())]


def run(program: str, options: dict, log: Path) -> None:
    """Runs one of our programs on one thread, its output going to `log`."""
    command = [sys.executable, *program.split(), *itertools.chain.from_iterable(map(words, options, options.values()))]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=KEEPS_MEMORY | os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed with exit code {done.returncode}; see {log}.")


def write_clips(out: Path, seed: int, two_objects: float) -> Path:
    """The folder of the demo's clips, of which a share `two_objects` of those to train on show a second object."""
    folder = out / f"clips_{two_objects}"
    if two_objects == USUAL:
        synthetic.write_demo(folder, seed)
    elif not folder.is_dir():
        synthetic.DISTRACTOR_SHARES["train"] = two_objects
        try:
            synthetic.write_demo(folder, seed, num_proc=1)  # other processes would not know of the other share
        finally:
            synthetic.DISTRACTOR_SHARES["train"] = USUAL
    return folder


def train_and_score(row: Row, seed: int, name: str, args: argparse.Namespace) -> dict[str, float]:
    """The scores of the row's model of one training seed."""
    out = args.out.resolve()
    data = {"subset": "demo", "data_dir": write_clips(out, args.data_seed, row.two_objects)}
    init = out / "_".join(["init", *(f"{option}_{value}" for option, value in row.encoders.items())])
    if not (init / "processor_config.json").is_file():  # of the usual clips, whatever the clips of the training
        usual = {"data_dir": write_clips(out, args.data_seed, USUAL)}
        options = {"subset": "demo", **usual, "output_dir": init, **row.encoders}
        run("examples/pretrain_encoders.py", options, out / "logs" / f"{init.name}.log")
    folder = out / f"{name}_seed{seed}"
    options = {**data, "model": init, "output_dir": folder, "seed": seed, "overwrite_output_dir": True}
    options |= {**TRAINING, "max_steps": args.max_steps, **row.training}
    run(row.program("train"), options, out / "logs" / f"{folder.name}_training.log")
    scores = {}
    for suffix, sounds in {"": {}, "_recordings": {"unseen_dir": args.unseen_dir}}.items():
        if None in sounds.values():
            continue
        place = folder / f"eval{suffix}"
        conditions = ["positive", "unseen"] if sounds else [*CONDITIONS, "unseen"]
        options = {**data, "model": folder / "last", "output_dir": place, "conditions": conditions, **sounds}
        run(row.program("evaluate"), options, out / "logs" / f"{folder.name}_{place.name}.log")
        found = json.loads((place / "results.json").read_text(encoding="utf-8"))
        unseen = found["extra_conditions"]["unseen"]
        scores |= {f"{key}_unseen{suffix}": unseen[key] for key in ("miou", "fpr")}
        scores |= {} if sounds else found["scores"]
    return {key: scores[key] for key in SCORES if key in scores}


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The Markdown table of results: row -> seed -> score -> value."""
    shown = [key for key in SCORES if all(key in scores for of_row in results.values() for scores in of_row.values())]
    lines = [f"| training | {' | '.join(shown)} |", f"| --- |{' ---: |' * len(shown)}"]
    for name, of_row in results.items():
        cells = []
        for key in shown:
            values = [scores[key] for scores in of_row.values()]
            each = ", ".join(f"{value:.{SCORES[key]}f}" for value in values)
            cells.append(f"{np.mean(values):.{SCORES[key]}f}" + (f" ({each})" if len(values) > 1 else ""))
        lines.append(f"| {ROWS[name].label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/recipes"))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="training seeds")
    parser.add_argument("--data_seed", type=int, default=2027)
    parser.add_argument("--max_steps", type=int, default=800)
    parser.add_argument("--unseen_dir", type=Path, help="recordings (wav) to score as further unseen sounds")
    args = parser.parse_args(argv)
    if args.unseen_dir is not None:
        args.unseen_dir = args.unseen_dir.resolve()
    file = args.out / "results.json"
    settings = {"data_seed": args.data_seed, "max_steps": args.max_steps, "positive_items": POSITIVE_ITEMS}
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"settings": settings, "rows": {}}
    if kept["settings"] != settings:
        raise SystemExit(f"{file} has rows of {kept['settings']}, this call asks for {settings}. Name another --out.")
    for name in args.rows:
        for seed in map(str, args.seeds):
            of_row = kept["rows"].setdefault(name, {})
            if seed not in of_row:
                of_row[seed] = train_and_score(ROWS[name], int(seed), name, args)
                write_whole(file, (json.dumps(kept, indent=2) + "\n").encode())
    print(table({name: kept["rows"][name] for name in args.rows}))


if __name__ == "__main__":
    main()
