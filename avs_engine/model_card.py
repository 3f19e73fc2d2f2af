"""The card of a published AVSegFormer: what it is, how it was trained, how it scored, and what it cannot do.

Text between two markers describes one evaluation and is replaced by the next one of the same data; all other edits of
a card stay.
"""

import html
import re

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from evaluate_metrics.avs_robust.avs_robust import METRICS, PARTLY_HEARD, SELECTIVITY, partly_heard_conditions
from evaluate_metrics.data_notes import data_notes
from evaluate_metrics.entry import TASK, evaluation_results, sound_name, with_model_index

TAGS = [TASK, "avsegformer", "avsbench-robust", "robustness"]
MARKER = "<!-- robustness: results are inserted here -->"
COLUMNS = [metric for metric in METRICS if not metric.variant_of]

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

Audio-visual segmentation: frames and their sound in, the masks of the objects that are heard out. AVSegFormer with
the backbone `{{ backbone }}`{{ similarity }}, for clips of {{ frames }} frames, one a second;
{{ parameters }} parameters as safetensors.

## Use

Needs `transformers` 5.23 and `timm` 1.0.31 or newer; the code comes with this repository, read it before you trust it.

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{{ repo_id }}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{{ repo_id }}", trust_remote_code=True)
inputs = processor(frames=[five_pil_images], audio=[waveform], sampling_rate=16000, return_tensors="pt")
masks = processor.post_process_segmentation(model(**inputs), target_sizes=[(height, width)])
masks[0]  # bool, (frames, height, width)
```

Sounds of another rate than 16 kHz are resampled by `torchaudio`. With the package `ms_deform_attn` installed,
deformable attention runs on its compiled kernels; without it, in plain PyTorch.

## Training

{{ training }}

## Robustness

AVSBench-Robust plays each clip with its own sound (positive), with silence, with noise and with an off-screen sound.
On positive sound higher is better; on the others the masks are compared with the visible object, so lower is better.
G-mIoU and G-F are harmonic means of the positive score and one minus the mean negative score; G-FPR is the mean FPR
over the negative conditions. A model that never listens reaches the audio-blind floor. mIoU counts each frame once,
the pooled IoU divides all intersections by all unions: large objects count more. Fractions, from 0 to 1.

{{ marker }}

## Limits

- Frames are segmented one by one, with the second of sound that belongs to each: no temporal context, and nothing
  above 7.5 kHz is heard.
- A model that was trained on positive sound alone segments what is visible, whatever it hears: the positive score
  alone does not show it.
- AVSBench shows a few dozen kinds of objects, mostly one at a time; other objects and scenes were not measured.
- The sounds of the negative conditions are drawn; another draw gives slightly other scores.
- Not for decisions about people, nor for surveillance.

## Licence

The code in this repository is Apache-2.0. The data and encoders that weights are learned from (AVSBench, ImageNet,
AudioSet) have terms of their own; whoever publishes or uses the weights has to keep them.

## Citation

```bibtex
@article{li2025avsbenchrobust,
  title={Do Audio-Visual Segmentation Models Truly Segment Sounding Objects?},
  author={Li, Jia and Zhao, Wenjie and Huang, Ziru and Guo, Yunhui and Tian, Yapeng},
  journal={arXiv preprint arXiv:2502.00358},
  year={2025}
}
@inproceedings{gao2024avsegformer,
  title={AVSegFormer: Audio-Visual Segmentation with Transformer},
  author={Gao, Shengyi and Chen, Zhe and Chen, Guo and Wang, Wenhai and Lu, Tong},
  booktitle={AAAI Conference on Artificial Intelligence},
  year={2024}
}
@inproceedings{zhou2022avs,
  title={Audio-Visual Segmentation},
  author={Zhou, Jinxing and Wang, Jianyuan and Zhang, Jiayi and Sun, Weixuan and Zhang, Jing and Birchfield, Stan and
          Guo, Dan and Kong, Lingpeng and Wang, Meng and Zhong, Yiran},
  booktitle={European Conference on Computer Vision},
  year={2022}
}
```
"""


def model_card(
    model, repo_id: str, training: dict | None = None, note: str | None = None, base_model: str | None = None
) -> ModelCard:
    """The card of `model` as `repo_id`, without results.

    Args:
        model (`AVSegFormerForSegmentation`)
        repo_id (`str`): what a user of the card gives to `from_pretrained`.
        training (`dict`, *optional*): a run's `trainer_state.json`: settings, position, command, versions.
        note (`str`, *optional*): where the weights are from, in place of `training`.
        base_model (`str`, *optional*): the repository that this model was loaded from.
    """
    config = model.config
    data = ModelCardData(
        library_name="transformers", tags=list(TAGS), datasets=["avsbench_robust"], base_model=base_model
    )
    unknown = "Not recorded: these weights were published without the folder of a training run."
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        backbone=config.backbone,
        frames=config.num_frames,
        parameters=f"{model.num_parameters():,}",
        similarity=" and the similarity head of AVSBench-Robust" if config.use_similarity_head else "",
        training=_training_section(training) if training else note or unknown,
        marker=MARKER,
    )


def is_own_card(card: ModelCard) -> bool:
    """Whether `model_card` wrote the card, so that results can be inserted."""
    return MARKER in card.text


def with_results(card: ModelCard, results: dict) -> ModelCard:
    """The card with an evaluation in its `model-index` and as a table; it replaces an earlier one of the same data.

    Args:
        card (`ModelCard`): by `model_card`.
        results (`dict`): an evaluation's `results.json`: subset, split, settings, scores, intervals, versions.
    """
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
    scores, intervals, settings = results["scores"], results.get("intervals") or {}, results.get("settings", {})
    partly_heard = partly_heard_conditions(scores)
    rows = {
        plain(sound_name(condition)): _cells(scores, intervals, condition)
        for condition in settings.get("conditions", [])
        if condition not in partly_heard
    }
    extra = results.get("extra_conditions") or {}
    for condition, of_condition in extra.items():
        flat = {f"{name}_{condition}": value for name, value in of_condition.items()}
        rows[plain(sound_name(condition))] = _cells(flat, intervals, condition)
    rows["**G**, all negatives"] = _general_cells(scores, intervals, "")
    for condition in extra:
        if f"g_miou_with_{condition}" in scores:
            rows[f"**G**, {plain(sound_name(condition))} too"] = _general_cells(
                scores, intervals, f"_with_{condition}"
            )
    rows["audio-blind floor"] = [_cell(scores.get("audio_blind_floor")), *[""] * (len(COLUMNS) - 1)]
    clips = f", {results['clips']} clips" if "clips" in results else ""
    lines = [f"### {plain(results['subset'])}, {plain(results['split'])} split{clips}", ""]
    lines += [f"| sound | {' | '.join(metric.label for metric in COLUMNS)} |", "| --- |" + " --- |" * len(COLUMNS)]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    if "g_miou_released" in scores:
        released = _cell(scores["g_miou_released"], intervals.get("g_miou_released"))
        lines += [
            "",
            f"G-mIoU {released} by the released rule, which counts frames without an object as negatives too.",
        ]
    for condition in partly_heard:
        keys = {m.label: m.key.format(condition) for m in PARTLY_HEARD}
        found = [f"{label} {_cell(scores.get(key), intervals.get(key))}" for label, key in keys.items()]
        lines += ["", f"Own sound silent in some seconds ({plain(sound_name(condition))}): {', '.join(found)}."]
    if "selectivity_clips" in scores:
        selectivity = [f"{m.label} {_cell(scores.get(m.key), intervals.get(m.key))}" for m in SELECTIVITY]
        clips = scores["selectivity_clips"]
        lines += ["", f"On {clips} clips with several labelled objects: {', '.join(selectivity)}."]
    lines += [line for note in data_notes(results) for line in ("", plain(note))]
    if results.get("weights"):
        lines += ["", f"Weights that were scored: {_weights({'model': results['weights']})}."]
    made_with = {name: settings.get(name) for name in ("seed", "max_clips", "front_end", "mixed_precision")}
    made_with |= results.get("versions", {})
    words = plain(", ".join(f"{name} {value}" for name, value in made_with.items() if value is not None))
    brackets = " In brackets: 95 % intervals over the choice of clips." if intervals else ""
    return "\n".join([*lines, "", f"Made with {words or 'unrecorded settings'}.{brackets}"])


def _cells(scores: dict, intervals: dict, condition: str) -> list[str]:
    keys = [f"{metric.key}_{condition}" for metric in COLUMNS]
    return [_cell(scores.get(key), intervals.get(key)) for key in keys]


def _general_cells(scores: dict, intervals: dict, suffix: str) -> list[str]:
    keys = [f"g_{metric.key}{suffix}" for metric in COLUMNS]
    return [_cell(scores.get(key), intervals.get(key)) for key in keys]


def _cell(value: float | None, interval: list[float] | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _training_section(training: dict) -> str:
    settings, best = training["settings"], training.get("best")
    text = f"Trained on the train split of AVSBench-Robust `{settings['subset']}`, {training['step']} steps"
    if best:
        text += (
            f"; the weights are those of the best validation G-mIoU ({best['g_miou']:.4f}), after step {best['step']}"
        )
    media = "AVSBench's media are not in this repository; its authors give them on request."
    if settings["subset"] == "demo":
        media = "The clips of this subset are drawn and synthesised: scores on them say nothing about real videos."
    lines = [f"{text}. {media}"]
    if training.get("command"):
        # On one line, so that it cannot contain the end of the block.
        lines += ["", "```", " ".join(training["command"].split()), "```"]
    lines += ["", "| setting | value |", "| --- | --- |"]
    lines += [f"| {plain(name)} | {plain(value)} |" for name, value in settings.items() if value is not None]
    versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
    lines += ["", f"Versions: {plain(versions)}. SHA-256 of clips and sounds: `{training['data']}`."]
    if training.get("weights"):
        lines += ["", f"Weights at the start: {_weights(training['weights'])}."]
    return "\n".join(lines)


def _weights(weights: dict[str, dict | None]) -> str:
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
