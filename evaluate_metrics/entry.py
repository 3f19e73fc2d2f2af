"""An evaluation as an entry of others' tables: the Hub's evaluation results, a card's `model-index`, a table's row.

The Hub reads `.eval_results/*.yaml` of a model's repository (https://huggingface.co/docs/hub/eval-results) and, older,
the `model-index` in the front matter of its README.md. `docs/standing.md` has rows of the third kind.
"""

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml

from avsbench_robust_dataset.check import PUBLISHED_CLIPS
from avsbench_robust_dataset.files import printable, write_whole

from .avs_robust.avs_robust import CONDITIONS, METRICS, PARTLY_HEARD, SELECTIVITY, partly_heard_conditions
from .results import read_results, read_run

__all__ = [
    "TASK",
    "entry_main",
    "evaluation_results",
    "hub_entry",
    "partial_reasons",
    "sound_name",
    "standing_row",
    "with_model_index",
    "write_entry",
]

logger = logging.getLogger(__name__)

TASK = "audio-visual-segmentation"
DATASET = "avsbench_robust"
# What a leaderboard orders models by, and the positive scores behind it.
HEADLINE = ("g_miou", "g_f_score", "g_fpr", "miou_positive", "f_score_positive")
STANDING_HEAD = "| model | subset, masks | mIoU | F | floor | G-mIoU | G-F | G-FPR | source |"


def partial_reasons(results: Mapping) -> list[str]:
    """Why an evaluation's `results.json` is not of a whole split under the four conditions; [] where it is."""
    settings, subset, split = results.get("settings") or {}, results.get("subset"), results.get("split")
    reasons = []
    whole = PUBLISHED_CLIPS.get(str(subset), {}).get(str(split))
    clips = results.get("clips")
    if whole is None:
        reasons.append(f"the {split} split of {subset} is none of the benchmark's ({', '.join(PUBLISHED_CLIPS)})")
    elif clips != whole:
        reasons.append(f"{'an unknown number' if clips is None else clips} of {whole} clips")
    absent = [name for name in CONDITIONS if f"miou_{name}" not in results["scores"]]
    if absent:
        reasons.append(f"without {', '.join(absent)}")
    if settings.get("front_end") == "released":
        reasons.append("with the released front end, which tells a model which sounds are negative")
    return reasons


def hub_entry(
    results: Mapping, dataset_id: str = DATASET, source_url: str | None = None, date: str | None = None
) -> tuple[str, str]:
    """(path, content) of the file of a model's repository that holds this evaluation: `.eval_results/….yaml`.

    Each of `HEADLINE` is one value of the task `<subset>_<metric>`; scores on AVSBench-semantic's masks, another
    annotation, and on other splits than test are tasks of their own, and their file is another one.

    Args:
        dataset_id: the data set on the Hub whose `eval.yaml` names these tasks.
        source_url: where the evaluation can be read.
        date: of the evaluation, ISO 8601; the Hub takes the commit's without it.
    """
    _check(results)
    scores, settings = results["scores"], results.get("settings") or {}
    words = [results["subset"]]
    words += [results["split"]] if results["split"] != "test" else []
    words += ["semantic"] if results.get("annotation") == "semantic" else []
    name = "_".join(words)
    notes = [f"{results.get('clips', '?')} clips", f"seed {settings.get('seed', '?')}"]
    notes += [f"masks of AVSBench-{results.get('annotation') or 'object'}"]
    if "audio_blind_floor" in scores:
        notes.append(f"audio-blind floor of G-mIoU {scores['audio_blind_floor']:.4f}")
    partial = partial_reasons(results)
    notes += [f"PARTIAL: {reason}" for reason in partial]
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id,
            task_id=f"{name}_{key}",
            value=scores[key],
            date=date,
            source_url=source_url,
            notes=", ".join(notes),
        )
        for key in HEADLINE
        if scores.get(key) is not None and math.isfinite(scores[key])
    ]
    path = f".eval_results/{DATASET}_{name}{'_partial' if partial else ''}.yaml"
    return path, yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=1000)


def evaluation_results(results: Mapping) -> list[EvalResult]:
    """One `EvalResult` for each score, fractions in [0, 1]; extra conditions' scores are `miou_unseen` and so on.

    Raises:
        ValueError: `results` lacks what every `results.json` has.
    """
    _check(results)
    subset, split, settings = results["subset"], results["split"], results.get("settings", {})
    # These settings distinguish evaluations of the same clips.
    names = ("seed", "max_clips", "unseen_sha256")
    arguments = {name: settings[name] for name in names if settings.get(name) is not None}
    clips = results.get("clips")
    if clips is not None and clips != PUBLISHED_CLIPS.get(subset, {}).get(split, clips):
        arguments["clips"] = clips
    if settings.get("front_end") == "released":
        arguments["front_end"] = "released"
    if results.get("annotation") == "semantic":
        arguments["annotation"] = "semantic"
    scores = dict(results["scores"])
    for condition, of_condition in (results.get("extra_conditions") or {}).items():
        scores |= {f"{name}_{condition}": value for name, value in of_condition.items()}
    partly = {
        row.key.format(c): f"{row.label}, {sound_name(c)}"
        for c in partly_heard_conditions(scores)
        for row in PARTLY_HEARD
    }
    return [
        EvalResult(
            task_type=TASK,
            task_name="Audio-Visual Segmentation",
            dataset_type=DATASET,
            dataset_name=f"AVSBench-Robust ({subset})",
            dataset_config=subset,
            dataset_split=split,
            dataset_args=arguments or None,
            metric_type=name,
            metric_name=partly.get(name) or _metric_name(name),
            metric_value=value,
        )
        for name, value in scores.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def _metric_name(key: str) -> str:
    """`g_miou_off_screen` as "G-mIoU, off-screen sound"."""
    labels = {metric.key: metric.label for metric in SELECTIVITY} | {
        "audio_blind_floor": "audio-blind floor of G-mIoU"
    }
    for metric in METRICS:
        labels |= {metric.key: metric.label, f"g_{metric.key}": metric.general}
    if key in labels:
        return labels[key]
    for name in sorted(labels, key=len, reverse=True):  # `miou_released` before `miou`
        if key.startswith(f"{name}_"):
            return f"{labels[name]}, {sound_name(key.removeprefix(f'{name}_'))}"
    return key


def sound_name(condition: str) -> str:
    if condition.startswith("with_"):
        return f"with {sound_name(condition.removeprefix('with_'))}"
    return {"positive": "positive sound", "off_screen": "off-screen sound"}.get(condition, condition)


def _check(results: Mapping) -> None:
    missing = [name for name in ("subset", "split", "scores") if not results.get(name)]
    if missing:
        raise ValueError(
            "Expected `results` to be the content of an evaluation's results.json (of evaluate_accelerate.py), but it "
            f"has no {' and no '.join(missing)}."
        )


def with_model_index(card: ModelCard, results: Mapping) -> ModelCard:
    """The card with the evaluation in its `model-index`; one of the same split is replaced, by one of fewer clips only
    if it had fewer clips, too."""
    new = evaluation_results(results)
    metadata: Any = card.data
    earlier = metadata.eval_results or []
    kept = [old for old in earlier if old.unique_identifier != new[0].unique_identifier]
    if _has_fewer_clips(new[0]) and not all(map(_has_fewer_clips, [old for old in earlier if old not in kept])):
        logger.warning("The model-index keeps the evaluation of the whole split, not that of fewer clips.")
        return card
    metadata.model_name = metadata.model_name or next(
        (line[2:] for line in card.text.splitlines() if line.startswith("# ")), "unnamed"
    )
    metadata.eval_results = kept + new
    return ModelCard(str(card))


def _has_fewer_clips(result: EvalResult) -> bool:
    return not {"max_clips", "clips"}.isdisjoint(result.dataset_args or {})


def standing_row(results: Mapping, name: str, source: str = "") -> str:
    """The row of `docs/standing.md`, a Markdown table with the columns of `STANDING_HEAD`; scores in percent."""
    scores = results["scores"]
    keys = ("miou_positive", "f_score_positive", "audio_blind_floor", "g_miou", "g_f_score", "g_fpr")
    partial = partial_reasons(results)
    model = name + (f" (partial: {'; '.join(partial)})" if partial else "")
    subset = f"{str(results['subset']).upper()}, {results.get('annotation') or 'object'}"
    cells = [f"{100 * scores[key]:.2f}" if scores.get(key) is not None else "" for key in keys]
    return f"| {' | '.join([model.replace('|', '/'), subset, *cells, source])} |"


def write_entry(results: Mapping, folder: Path, name: str, **options: Any) -> list[Path]:
    """Writes the evaluation into a model's repository: the file of `hub_entry` and the `model-index` of README.md.

    Args:
        folder: its README.md keeps all that is in it; without one it gets a new one.
        name: the model's, where the card has none.
        options: as in `hub_entry`.

    Raises:
        ValueError: README.md has a front matter that cannot be read.
        OutputError: the folder cannot be written to.
    """
    readme = folder / "README.md"
    try:
        card = ModelCard.load(readme) if readme.is_file() else ModelCard(f"---\ntags: [{TASK}]\n---\n\n# {name}\n")
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"Expected a model card at {readme}: {error}. Correct its front matter.") from error
    path, content = hub_entry(results, **options)
    write_whole(folder / path, content.encode())
    write_whole(readme, str(with_model_index(card, results)).encode())
    return [folder / path, readme]


def entry_main(argv: Sequence[str]) -> None:
    """`avs-report entry`: writes an evaluation into a model's repository and prints its row of docs/standing.md."""
    parser = argparse.ArgumentParser(
        prog="avs-report entry",
        description="Write an evaluation into a model's repository: the Hub's .eval_results/*.yaml and README.md's "
        "model-index. Prints the row of docs/standing.md.",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="results.json of the evaluation, or its folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the repository; default: entry/ beside RESULTS")
    parser.add_argument("--name", help="the model's name; default: as results.json has it")
    parser.add_argument("--dataset_id", default=DATASET, help="the benchmark's data set on the Hub, as user/name")
    parser.add_argument("--source_url", metavar="URL", help="where the evaluation can be read")
    parser.add_argument("--date", metavar="YYYY-MM-DD", help="of the evaluation; default: the Hub takes the commit's")
    parser.add_argument("--partial", action="store_true", help="also of a partial run; the entry is marked as such")
    args = parser.parse_args(argv)
    path = args.results / "results.json" if args.results.is_dir() else args.results
    try:
        read_run("entry", path)  # checks the file
        results = read_results(path)
        _check(results)
        if (reasons := partial_reasons(results)) and not args.partial:
            raise ValueError(
                f"{path}: expected an evaluation of a whole split of {' or '.join(PUBLISHED_CLIPS)} under the four "
                f"conditions, got one {'; '.join(reasons)}. Evaluate the whole split, or pass --partial, which marks "
                "the entry."
            )
        name = args.name or Path(str(results.get("model") or "unnamed")).name
        options = {"dataset_id": args.dataset_id, "source_url": args.source_url, "date": args.date}
        written = write_entry(results, args.out or path.parent / "entry", name, **options)
    except (OSError, ValueError) as error:
        parser.exit(1, f"avs-report entry: {printable(error)}\n")
    for file in written:
        print(f"written to {file}")
    print("the row of docs/standing.md:", STANDING_HEAD, standing_row(results, name, args.source_url or ""), sep="\n")
