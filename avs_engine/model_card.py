"""The card of a published AVSegFormer: what it is, how it was trained, how it scored, and what it cannot do.

Text between two markers describes one evaluation and is replaced by the next one of the same data; all other edits of
a card stay.
"""

import html
import re
from importlib.resources import files

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from evaluate_metrics.avs_robust.avs_robust import METRICS, PARTLY_HEARD, SELECTIVITY, partly_heard_conditions
from evaluate_metrics.data_notes import data_notes
from evaluate_metrics.entry import TASK, evaluation_results, sound_name, with_model_index

TAGS = [TASK, "avsegformer", "avsbench-robust", "robustness"]
MARKER = "<!-- robustness: results are inserted here -->"
COLUMNS = [metric for metric in METRICS if not metric.variant_of]


def model_card(
    model, repo_id: str, training: dict | None = None, note: str | None = None, base_model: str | None = None
) -> ModelCard:
    """The card of `model` as `repo_id`, without results.

    Args:
        training: a run's `trainer_state.json`: settings, position, command, versions.
        note: where the weights are from, in place of `training`.
        base_model: the repository that this model was loaded from.
    """
    return ModelCard.from_template(
        ModelCardData(
            library_name="transformers", tags=list(TAGS), datasets=["avsbench_robust"], base_model=base_model
        ),
        template_path=str(files(__package__).joinpath("model_card.md")),
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        config=model.config,
        parameters=f"{model.num_parameters():,}",
        training=training,
        note=note,
        marker=MARKER,
        plain=plain,
        describe_weights=_describe_weights,
    )


def with_results(card: ModelCard, results: dict) -> ModelCard:
    """The card with an evaluation's `results.json` in its `model-index` and as a table, in place of an earlier one of
    the same data."""
    text = card.content
    start, end = _block_markers(evaluation_results(results)[0])
    text = re.sub(rf"{re.escape(start)}.*?{re.escape(end)}\n\n", "", text, flags=re.DOTALL)
    text = text.replace(MARKER, f"{start}\n{_results_section(results)}\n{end}\n\n{MARKER}", 1)
    return with_model_index(ModelCard(text, ignore_metadata_errors=True), results)


def _block_markers(result: EvalResult) -> tuple[str, str]:
    arguments = ", ".join(f"{name} {value}" for name, value in (result.dataset_args or {}).items())
    key = f"{result.dataset_config} {result.dataset_split}" + (f" ({arguments})" if arguments else "")
    return f"<!-- results of {plain(key)} -->", f"<!-- end of {plain(key)} -->"


def _results_section(results: dict) -> str:
    """The scores as a table, and the settings and versions behind them."""
    scores, intervals, settings = dict(results["scores"]), results.get("intervals") or {}, results.get("settings", {})
    partly_heard = partly_heard_conditions(scores)
    extra = results.get("extra_conditions") or {}
    for condition, of_condition in extra.items():
        scores |= {f"{name}_{condition}": value for name, value in of_condition.items()}

    def shown(key: str) -> str:
        if scores.get(key) is None:
            return ""
        interval = intervals.get(key)
        return f"{scores[key]:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")

    heard = [condition for condition in settings.get("conditions", []) if condition not in partly_heard]
    keys = {plain(sound_name(c)): [f"{metric.key}_{c}" for metric in COLUMNS] for c in [*heard, *extra]}
    keys["**G**, all negatives"] = [f"g_{metric.key}" for metric in COLUMNS]
    for condition in [condition for condition in extra if f"g_miou_with_{condition}" in scores]:
        keys[f"**G**, {plain(sound_name(condition))} too"] = [f"g_{metric.key}_with_{condition}" for metric in COLUMNS]
    keys["audio-blind floor"] = ["audio_blind_floor", *[""] * (len(COLUMNS) - 1)]
    clips = f", {results['clips']} clips" if "clips" in results else ""
    lines = [f"### {plain(results['subset'])}, {plain(results['split'])} split{clips}", ""]
    lines += [f"| sound | {' | '.join(metric.label for metric in COLUMNS)} |", "| --- |" + " --- |" * len(COLUMNS)]
    lines += [f"| {name} | {' | '.join(map(shown, of_row))} |" for name, of_row in keys.items()]
    notes = []
    if "g_miou_released" in scores:
        rule = "by the released rule, which counts frames without an object as negatives too"
        notes.append(f"G-mIoU {shown('g_miou_released')} {rule}.")
    for condition in partly_heard:
        found = ", ".join(f"{metric.label} {shown(metric.key.format(condition))}" for metric in PARTLY_HEARD)
        notes.append(f"Own sound silent in some seconds ({plain(sound_name(condition))}): {found}.")
    if "selectivity_clips" in scores:
        found = ", ".join(f"{metric.label} {shown(metric.key)}" for metric in SELECTIVITY)
        notes.append(f"On {scores['selectivity_clips']} clips with several labelled objects: {found}.")
    notes += map(plain, data_notes(results))
    if results.get("weights"):
        notes.append(f"Weights that were scored: {_describe_weights({'model': results['weights']})}.")
    made_with = {name: settings.get(name) for name in ("seed", "max_clips", "front_end", "mixed_precision")}
    made_with |= results.get("versions", {})
    words = plain({name: value for name, value in made_with.items() if value is not None})
    brackets = " In brackets: 95 % intervals over the choice of clips." if intervals else ""
    notes.append(f"Made with {words or 'unrecorded settings'}.{brackets}")
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes)


def _describe_weights(weights: dict[str, dict | None]) -> str:
    """The source and SHA-256 of each part's weights as text."""
    words = []
    for part, known in weights.items():
        digests = (known or {}).get("sha256") or {}
        digests = ", ".join(digests.values()) if isinstance(digests, dict) else digests
        source = plain((known or {}).get("source", "unknown"))
        words.append(
            f"{plain(part.replace('_', ' '))}: {source}" + (f" (SHA-256 {plain(digests)})" if digests else "")
        )
    return "; ".join(words)


def plain(value) -> str:
    """`value` as text, {"silence": 1.0} as "silence 1.0", with Markdown and HTML escaped."""
    if isinstance(value, dict):
        value = ", ".join(f"{name} {entry}" for name, entry in value.items())
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(" ".join(str(value).split()), quote=False))
