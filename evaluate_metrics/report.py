"""Robustness scores as evidence: a table, charts, training curves and pictures in one self-contained HTML page.

    avs-report --run baseline=runs/a/eval --run robust=runs/b/eval --out report

reads each folder's `results.json`, prints the table and writes `index.html`, `table.md` and `table.tex`. Runs of one
name are the training seeds of one model. The page needs no network and no script; nothing of ours is imported but the
pictures in `overlay.py`.
"""

import argparse
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from . import overlay

__all__ = [
    "Clip",
    "ClipScore",
    "Run",
    "choose_clips",
    "latex_table",
    "main",
    "markdown_table",
    "read_gallery",
    "read_run",
    "results_table",
    "write_report",
]

CONDITIONS = ("positive", "silence", "noise", "off_screen")
NEGATIVES = CONDITIONS[1:]
MISSING = "–"


@dataclass(frozen=True)
class Run:
    """One evaluated checkpoint. Runs with equal `name` are the seeds of one model.

    Attributes:
        name: the model's name in every table and picture.
        scores: metric -> fraction in [0, 1]; None or NaN where it is not defined.
        log: lines of the training log, {"step", "loss", …} or {"step", "validation": {metric: value}}.
        predictions: folder of mask PNGs, `<condition>/<category>/<clip>/<clip>_<k>.png`, k from 1 (or from 0), the
            category level optional; 8-bit probabilities. None: no pictures of this run.
        subset, split: what was evaluated; "" if unknown.
        settings, versions: as `results.json` has them.
    """

    name: str
    scores: Mapping[str, float | None]
    log: Sequence[Mapping] = ()
    predictions: Path | None = None
    subset: str = ""
    split: str = ""
    settings: Mapping = field(default_factory=dict)
    versions: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Clip:
    """One clip of the gallery; any object with these attributes will do.

    Attributes:
        clip_id, category: as in the data set; `category` may be "".
        frames: images, in order.
        masks: ground truth of the visible object for the first `len(masks)` frames; nonzero is the object.
        sounds: condition -> what is heard in it, e.g. {"off_screen": "dog_barking"}; optional.
    """

    clip_id: str
    category: str
    frames: Sequence[Image.Image]
    masks: Sequence[Image.Image]
    sounds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipScore:
    """What `choose_clips` looks at: `bias` of the first model and `g_miou` of the last, both of this clip alone."""

    clip_id: str
    category: str
    bias: float
    g_miou: float


# --- reading ---------------------------------------------------------------------------------------------------------


def read_run(name: str, directory: str | os.PathLike, log: str | os.PathLike | None = None) -> Run:
    """The run evaluated in `directory`, with its training log and predictions where they exist.

    Args:
        name: the model's name; give the seeds of one model the same name.
        directory: has `results.json` and perhaps `predictions/`.
        log: the training run's `train_log.jsonl`; by default the one in `directory` or in the folder above it.

    Raises:
        FileNotFoundError: no `results.json`, or no file at `log`.
        ValueError: a file that is not what it should be; the message names it, and the line of a log.
    """
    directory = Path(directory)
    path = directory / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found. Expected a folder that evaluate_accelerate.py wrote.")
    results = _read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("scores"), dict):
        raise ValueError(f'{path}: expected {{"scores": {{metric: value}}, …}}, as evaluate_accelerate.py writes it.')
    for key, value in results["scores"].items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"{path}: expected a number or null for scores[{key!r}], got {value!r}.")
    for key in ("settings", "versions"):
        if not isinstance(results.get(key, {}), dict):
            raise ValueError(f"{path}: expected an object for {key!r}, got {results[key]!r}.")
    if log is None:
        beside = [folder / "train_log.jsonl" for folder in (directory, directory.resolve().parent)]
        log = next((candidate for candidate in beside if candidate.is_file()), None)
    predictions = directory / "predictions"
    return Run(
        name=name,
        scores=results["scores"],
        log=() if log is None else _read_log(Path(log)),
        predictions=predictions if predictions.is_dir() else None,
        subset=str(results.get("subset", "")),
        split=str(results.get("split", "")),
        settings=results.get("settings", {}),
        versions=results.get("versions", {}),
    )


def read_gallery(path: str | os.PathLike) -> Iterator[Clip]:
    """The clips that a JSON file lists, read one at a time.

    The file is a list of {"clip_id", "category", "frames": [path, …], "masks": [path, …], "sounds": {…}}; paths are
    relative to the file; `category` and `sounds` may be left out.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found. Expected a JSON list of clips.")
    entries = _read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of clips, got {type(entries).__name__}.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"clip_id", "frames", "masks"} <= entry.keys():
            raise ValueError(f'{path}: expected "clip_id", "frames" and "masks" in entry {number}, got {entry!r}.')
        yield Clip(
            clip_id=str(entry["clip_id"]),
            category=str(entry.get("category", "")),
            frames=[_open_image(path.parent / name) for name in entry["frames"]],
            masks=[_open_image(path.parent / name) for name in entry["masks"]],
            sounds=entry.get("sounds", {}),
        )


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path}: not valid JSON ({error}). Evaluate again, or remove the file.") from error


def _read_log(path):
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found. Expected a training log, one JSON object a line.")
    records = []
    # Bytes, so that a line of another encoding is an error of that line.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON ({error}).") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f'{path}, line {number}: expected an object with an integer "step", got {line[:80]!r}.')
        records.append(record)
    return records


def _open_image(path):
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found.") from None
    except (OSError, SyntaxError) as error:  # Pillow raises either for a damaged file
        raise ValueError(f"{path}: cannot be read as an image ({error}). Write it again.") from error


# --- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Metric:
    key: str
    label: str
    better: str  # "higher", "lower", or "" where neither is
    digits: int = 3


# Section -> what it says, in one line each.
_EXPLANATIONS = {
    "Robustness": (
        "G-mIoU is the harmonic mean of P, the positive mIoU, and 1 − N, where N is the mean mIoU over the negative "
        "conditions; G-F is the same for F. The audio-blind floor 2P(1 − P) is the G-mIoU of an equally good "
        "segmenter whose masks do not react to the sound at all. G-FPR is the mean FPR over the negative conditions."
    ),
    "mIoU": (
        "Intersection over union of the predicted mask (probability above 0.5) and the visible object's mask, per "
        "frame, averaged; a frame without an object scores its share of pixels left empty. Under negative audio the "
        "visible object is not heard, so overlap with it is an error."
    ),
    "F": (
        "F-measure with β² = 0.3: the maximum over 255 thresholds of the curve averaged over a clip's frames, then "
        "averaged over clips. It cannot fall to 0 under negative audio: the lowest threshold admits every pixel."
    ),
    "FPR": (
        "Share of the picture that the predicted mask covers, averaged over frames. Under negative audio nothing "
        "visible is heard, so all of it is false; under positive audio it is only the predicted area."
    ),
    "Robustness by condition": (
        "The harmonic means with N of one negative condition alone: which sound the model is fooled by."
    ),
}


def results_table(runs: Iterable[Run]) -> str:
    """The scores as aligned plain ASCII text: metrics by row, models by column, means and half-ranges over seeds."""
    names, sections = _cells(runs, missing="-", spread=" +/- ")
    rows = [["metric", "better", *names]]
    for title, lines in sections:
        rows += [None, *([_full_label(title, label), *rest] for label, *rest in lines)]
    widths = [max(len(row[i]) for row in rows if row) for i in range(len(rows[0]))]
    rule = "  ".join("-" * width for width in widths)
    text = [rule if row is None else "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in text) + "\n"


def markdown_table(runs: Iterable[Run]) -> str:
    """The scores as a GitHub Markdown table; arrows say which direction is better."""
    names, sections = _cells(runs, missing=MISSING, spread=" ± ")
    head = " | ".join(map(_escape_markdown, names))
    lines = [f"| metric | {head} |", "| --- |" + " ---: |" * len(names)]
    for title, rows in sections:
        for label, better, *values in rows:
            lines.append(
                f"| {_full_label(title, label)} {_ARROWS[better]}".rstrip() + " | " + " | ".join(values) + " |"
            )
    return "\n".join(lines) + "\n"


def latex_table(runs: Iterable[Run]) -> str:
    r"""The scores as a LaTeX `tabular`; needs `\usepackage{booktabs}`."""
    names, sections = _cells(runs, missing="--", spread=r"\,$\pm$\,")
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "": ""}
    lines = [r"\begin{tabular}{l" + "r" * len(names) + "}", r"\toprule"]
    lines.append(" & ".join(["metric", *map(_escape_latex, names)]) + r" \\")
    for title, rows in sections:
        lines.append(r"\midrule")
        for label, better, *values in rows:
            label = _escape_latex(_full_label(title, label))
            lines.append(" & ".join([label + arrows[better], *values]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _full_label(section, label):
    return label if section.startswith("Robustness") else f"{section}, {label}"


_ARROWS = {"higher": "↑", "lower": "↓", "": ""}


def _group(runs):
    """Model -> its runs, in the order of first appearance."""
    models = {}
    for run in runs:
        models.setdefault(run.name, []).append(run)
    if not models:
        raise ValueError("Expected at least one run, got none.")
    return models


def _conditions(runs):
    """The four conditions, then every further one that the scores name in all three base metrics, sorted."""
    keys = {key for run in runs for key in run.scores}
    further = {key.removeprefix("miou_") for key in keys if key.startswith("miou_")} - set(CONDITIONS)
    return [*CONDITIONS, *sorted(c for c in further if {f"f_score_{c}", f"fpr_{c}"} <= keys)]


def _is_negative(condition, runs):
    # A further condition is negative where the metric gave it a harmonic mean with the positives.
    return condition in NEGATIVES or any(f"g_miou_{condition}" in run.scores for run in runs)


def _sections(runs):
    """[(section, [_Metric, …]), …] in the order of every table."""
    conditions = _conditions(runs)
    negatives = [c for c in conditions if _is_negative(c, runs)]
    robustness = [
        _Metric("g_miou", "G-mIoU", "higher"),
        _Metric("audio_blind_floor", "audio-blind floor of G-mIoU", ""),
        _Metric("g_f_score", "G-F", "higher"),
        _Metric("g_fpr", "G-FPR", "lower", 4),
    ]
    sections = [("Robustness", robustness)]
    for title, prefix, digits in (("mIoU", "miou", 3), ("F", "f_score", 3), ("FPR", "fpr", 4)):
        metrics = []
        for condition in conditions:
            better = "lower" if condition in negatives else "higher"
            if prefix == "fpr" and condition not in negatives:
                better = ""  # the predicted area
            metrics.append(_Metric(f"{prefix}_{condition}", _label(condition), better, digits))
        sections.append((title, metrics))
    by_condition = [_Metric(f"g_miou_{c}", f"G-mIoU, {_label(c)}", "higher") for c in negatives]
    by_condition += [_Metric(f"g_f_score_{c}", f"G-F, {_label(c)}", "higher") for c in negatives]
    return [*sections, ("Robustness by condition", by_condition)]


def _label(condition):
    return condition.replace("_", "-")


def _seed_values(runs, key):
    """One float a run; NaN where the run has no finite value."""
    values = [run.scores.get(key) for run in runs]
    return [float(v) if v is not None and math.isfinite(v) else math.nan for v in values]


def _mean(values):
    finite = [v for v in values if math.isfinite(v)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _half_range(values):
    finite = [v for v in values if math.isfinite(v)]
    return (max(finite) - min(finite)) / 2 if len(finite) > 1 else math.nan


def _number(value, digits, missing=MISSING):
    return f"{value:.{digits}f}" if math.isfinite(value) else missing


def _cells(runs, missing, spread):
    runs = list(runs)
    models = _group(runs)
    sections = []
    for title, metrics in _sections(runs):
        rows = []
        for metric in metrics:
            row = [metric.label, metric.better]
            for seeds in models.values():
                values = _seed_values(seeds, metric.key)
                cell = _number(_mean(values), metric.digits, missing)
                if math.isfinite(half := _half_range(values)):
                    cell += spread + _number(half, metric.digits)
                row.append(cell)
            rows.append(row)
        sections.append((title, rows))
    names = [name if len(seeds) == 1 else f"{name} ({len(seeds)} seeds)" for name, seeds in models.items()]
    return names, sections


def _escape_markdown(text):
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text).replace("\n", " ")


def _escape_latex(text):
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


# --- the gallery -----------------------------------------------------------------------------------------------------


def choose_clips(scores: Sequence[ClipScore], count: int = 12) -> list[tuple[int, str]]:
    """Which clips the gallery shows, and why: (index into `scores`, rule) in the order shown.

    A quarter of `count` each: the most biased (`bias` highest), then of the rest the best (`g_miou` highest), then of
    the rest the worst (`g_miou` lowest). The remaining places go to clips at equal distances in the list of all others
    sorted by category and id. Ties go to the smaller (clip id, category). Nothing is drawn at random.
    """
    count = min(count, len(scores))
    rest = sorted(range(len(scores)), key=lambda i: (scores[i].clip_id, scores[i].category))
    chosen = []
    for rule, key in (
        ("most biased", lambda i: -scores[i].bias),
        ("best", lambda i: -scores[i].g_miou),
        ("worst", lambda i: scores[i].g_miou),
    ):
        ranked = sorted((i for i in rest if math.isfinite(key(i))), key=key)[: count // 4]
        chosen += [(i, rule) for i in ranked]
        rest = [i for i in rest if i not in ranked]
    rest.sort(key=lambda i: (scores[i].category, scores[i].clip_id))
    places = count - len(chosen)
    return chosen + [(rest[(2 * j + 1) * len(rest) // (2 * places)], "evenly spread") for j in range(places)]


@dataclass(frozen=True)
class _Scored:
    """A clip as kept while the others are read: one frame as JPEG, and what each model did."""

    clip_id: str
    category: str
    sounds: Mapping[str, str]
    index: int  # of the frame shown, from 0
    frame: bytes
    truth: np.ndarray  # bool, of the frame shown
    miou: Mapping[str, Mapping[str, float]]  # model -> condition -> mean over frames

    def ranked(self, first, last, negatives):
        bias = _mean([self.miou[first].get(c, math.nan) for c in negatives])
        positive = self.miou[last].get("positive", math.nan)
        negative = _mean([self.miou[last].get(c, math.nan) for c in negatives])
        return ClipScore(self.clip_id, self.category, bias, _harmonic(positive, 1 - negative))


def _harmonic(a, b):
    return 2 * a * b / (a + b) if a + b != 0 else 0.0


def _score_clip(clip, folders, conditions):
    """Reads a clip's predictions; keeps its middle frame, or that with the largest object if the middle is empty."""
    if not clip.masks or len(clip.masks) > len(clip.frames):
        raise ValueError(
            f"Expected 1 to {len(clip.frames)} masks for the {len(clip.frames)} frames of clip {clip.clip_id!r}, "
            f"got {len(clip.masks)}."
        )
    truths = [_read_truth(mask) for mask in clip.masks]
    index = len(truths) // 2
    if not truths[index].any():
        index = int(np.argmax([truth.sum() for truth in truths]))
    miou = {}
    for model, folder in folders.items():
        miou[model] = {}
        for condition in conditions:
            if (folder / condition).is_dir():
                pairs = [
                    (_read_prediction(folder, condition, clip, k, truth.shape) >= 128, truth)
                    for k, truth in enumerate(truths)
                ]
                miou[model][condition] = float(np.mean([_iou(*pair) for pair in pairs]))
    buffer = io.BytesIO()
    overlay.fit_tile(clip.frames[index]).save(buffer, "JPEG", quality=95, subsampling=0)
    sounds = dict(getattr(clip, "sounds", {}) or {})
    return _Scored(clip.clip_id, clip.category, sounds, index, buffer.getvalue(), truths[index], miou)


def _read_truth(mask):
    """Nonzero is the object, in any mode; of a palette image the index counts, as in the data set."""
    pixels = np.asarray(mask if mask.mode in ("1", "L", "P") else mask.convert("RGB"))
    return pixels > 0 if pixels.ndim == 2 else (pixels > 0).any(axis=-1)


def _iou(predicted, truth):
    """mIoU of one frame as the metric defines it, empty-target rule included."""
    if not truth.any():
        return 1.0 - float(predicted.mean())
    return np.count_nonzero(predicted & truth) / np.count_nonzero(predicted | truth)


def _read_prediction(folder, condition, clip, index, shape):
    """uint8 probabilities of frame `index` (from 0)."""
    for name, part in (("clip_id", clip.clip_id), ("category", clip.category)):
        if part in (".", "..") or re.search(r"[/\\\0]", part) or (name == "clip_id" and not part):
            raise ValueError(f"Expected a plain folder name for `{name}`, got {part!r}.")
    clip_folder = folder / condition / clip.category / clip.clip_id
    if not clip_folder.is_dir():
        clip_folder = folder / condition / clip.clip_id  # MS3 has no category level
    if not clip_folder.is_dir():
        expected = folder / condition / clip.category / clip.clip_id
        raise FileNotFoundError(f"{expected}: not found. Expected this clip's masks; evaluate with its masks saved.")
    first = 0 if (clip_folder / f"{clip.clip_id}_0.png").is_file() else 1
    path = clip_folder / f"{clip.clip_id}_{index + first}.png"
    image = _open_image(path)
    if image.mode not in ("1", "L"):
        raise ValueError(f"{path}: expected an 8-bit greyscale or binary PNG, got mode {image.mode!r}.")
    if image.size != (shape[1], shape[0]):
        raise ValueError(
            f"{path}: expected the ground truth's size {shape[1]} x {shape[0]}, got {image.size[0]} x {image.size[1]}."
        )
    return np.asarray(image.convert("L"))


# --- the page --------------------------------------------------------------------------------------------------------


def write_report(
    out_dir: str | os.PathLike,
    runs: Iterable[Run],
    clips: Iterable[Clip] = (),
    *,
    title: str = "Does the model listen?",
    notes: Sequence[str] = (),
    settings: Mapping | None = None,
    gallery_size: int = 12,
) -> Path:
    """Writes `out_dir/index.html`, one self-contained page, and returns its path.

    Args:
        out_dir: made if it is missing. An existing page is replaced in one step, or left alone on an error.
        runs: two or more seeds of a model are runs of equal name. The order of first appearance is the order of the
            columns. The gallery shows the first run of each model that has predictions, and ranks the clips by the
            bias of the first model and the G-mIoU of the last (`choose_clips`).
        clips: read once, one at a time; memory holds one small JPEG a clip.
        title: the page's headline.
        notes: what the reader should know before believing the numbers; plain text, one paragraph each.
        settings: of the whole experiment; shown beside each run's own.
        gallery_size: clips shown.

    Raises:
        ValueError, FileNotFoundError: no runs, a missing prediction, one of another size; the message names the file.
    """
    runs = list(runs)
    models = _group(runs)
    colors = {name: overlay.COLORS[i % len(overlay.COLORS)] for i, name in enumerate(models)}
    gallery = _gallery_html(runs, models, clips, colors, gallery_size)  # first: it reads files, and may find one bad
    sections = [
        ("results", "Scores", _table_html(runs, models)),
        ("charts", "By condition", _charts_html(runs, models)),
        ("curves", "Training", _curves_html(models)),
        ("gallery", "Clips", gallery),
        ("notes", "Notes and limits", "".join(f"<p>{_text(note)}</p>" for note in notes)),
        ("settings", "Settings and versions", _settings_html(runs, settings or {})),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name, _ in sections)
    body = "".join(f'<section id="{anchor}"><h2>{name}</h2>{html}</section>\n' for anchor, name, html in sections)
    page = _PAGE.format(
        title=_text(title),
        style=files(__package__).joinpath("report.css").read_text(encoding="utf-8"),
        headline=_text(_headline(runs, models)).replace("G-mIoU", '<span class="word">G-mIoU</span>'),
        cards=_cards_html(models, colors),
        links=links,
        body=body,
    )
    path = Path(out_dir) / "index.html"
    _write_atomically(path, page)
    return path


# The policy makes it the browser's promise too: nothing is fetched and no script runs.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="headline">{headline}</p>
<div class="cards">{cards}</div>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}</main>
</body>
</html>
"""


def _text(value):
    return escape(str(value), quote=True)


def _write_atomically(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _join(words):
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _headline(runs, models):
    places = list(dict.fromkeys(" ".join(filter(None, (run.subset.upper(), run.split))) for run in runs))
    where = f" on {_join(places)}" if all(places) else ""
    measured = [c for c in _conditions(runs) if any(math.isfinite(v) for v in _seed_values(runs, f"miou_{c}"))]
    figures = _join(f"{name} {_number(_mean(_seed_values(seeds, 'g_miou')), 3)}" for name, seeds in models.items())
    under = f" under {_join(_label(c) for c in measured)} audio" if measured else ""
    counts = sorted({len(seeds) for seeds in models.values()})
    means = f" (means over {' or '.join(map(str, counts))} training seeds)" if counts[-1] > 1 else ""
    return (
        f"Measured{where}{under}: does a model segment the object that it hears, and nothing when that object is "
        f"silent? G-mIoU{means}: {figures}."
    )


def _cards_html(models, colors):
    cards = []
    for name, seeds in models.items():
        values = _seed_values(seeds, "g_miou")
        mean, floor = _mean(values), _mean(_seed_values(seeds, "audio_blind_floor"))
        half = _half_range(values)
        spread = f"<small> ± {_number(half, 3)}</small>" if math.isfinite(half) else ""
        bar = ""
        if math.isfinite(mean):
            tick = f'<span class="floor" style="left:{100 * floor:.1f}%"></span>' if math.isfinite(floor) else ""
            fill = f'<span class="fill" style="width:{100 * mean:.1f}%;background:{colors[name]}"></span>'
            bar = f'<div class="bar" aria-hidden="true">{fill}{tick}</div>'
        cards.append(
            f'<div class="card"><div class="name">{_swatch(colors[name])}{_text(name)}</div>'
            f'<div class="figure">{_number(mean, 3)}{spread}</div>{bar}'
            f'<div class="under">G-mIoU; audio-blind floor {_number(floor, 3)}</div></div>'
        )
    return "".join(cards)


def _swatch(color):
    return f'<span class="swatch" style="background:{color}" aria-hidden="true"></span>'


def _table_html(runs, models):
    pair = list(models.values()) if len(models) == 2 else None
    head = "".join(
        f'<th scope="col">{_text(name)}'
        + (f"<small>mean of {len(seeds)} seeds ± half-range</small>" if len(seeds) > 1 else "")
        + "</th>"
        for name, seeds in models.items()
    )
    if pair:
        first, second = map(_text, models)
        head += f'<th scope="col">difference<small>{second} − {first}</small></th>'
    body = []
    for title, metrics in _sections(runs):
        span = 1 + len(models) + bool(pair)
        text = _text(_EXPLANATIONS[title])
        body.append(
            f'<tr class="section"><th colspan="{span}" scope="colgroup"><div class="sticky">{title}'
            f"<p>{text}</p></div></th></tr>"
        )
        body += [_row_html(metric, models, pair) for metric in metrics]
    return (
        '<p class="hint">↑ higher is better, ↓ lower is better. Small figures: the seeds, in one order throughout. '
        f"{MISSING}: not measured.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of scores"><table class="scores">'
        f'<thead><tr><th scope="col">metric</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _row_html(metric, models, pair):
    arrow = ""
    if metric.better:
        arrow = f'&nbsp;<span class="arrow" title="{metric.better} is better">{_ARROWS[metric.better]}</span>'
    css = {"g_miou": ' class="main"', "audio_blind_floor": ' class="aside"'}.get(metric.key, "")
    cells = []
    for seeds in models.values():
        values = _seed_values(seeds, metric.key)
        cell = f"<b>{_number(_mean(values), metric.digits)}</b>"
        if math.isfinite(half := _half_range(values)):
            cell += f" ± {_number(half, metric.digits)}"
        if len(seeds) > 1 and any(map(math.isfinite, values)):
            cell += f"<small>{' · '.join(_number(v, metric.digits) for v in values)}</small>"
        cells.append(f"<td>{cell}</td>")
    if pair:
        difference = _mean(_seed_values(pair[1], metric.key)) - _mean(_seed_values(pair[0], metric.key))
        text = f"{difference:+.{metric.digits}f}".replace("-", "−") if math.isfinite(difference) else MISSING
        cells.append(f"<td>{text}</td>")
    return f'<tr{css}><th scope="row">{_text(metric.label)}{arrow}</th>{"".join(cells)}</tr>'


def _charts_html(runs, models):
    conditions = _conditions(runs)
    labels = [_label(c) for c in conditions]
    charts = []
    for title, prefix, digits in (
        ("mIoU: high under positive, low elsewhere", "miou", 2),
        ("F: high under positive, low elsewhere", "f_score", 2),
        ("FPR: predicted area, low except under positive", "fpr", 3),
    ):
        values = {name: [_seed_values(seeds, f"{prefix}_{c}") for c in conditions] for name, seeds in models.items()}
        if not any(math.isfinite(v) for groups in values.values() for group in groups for v in group):
            continue
        said = []
        for name, groups in values.items():
            means = [_number(_mean(group), digits, "not measured") for group in groups]
            said.append(f"{name}: " + ", ".join(f"{c} {mean}" for c, mean in zip(labels, means, strict=True)))
        svg = overlay.bar_chart(title, labels, values, digits=digits, top=None if prefix == "fpr" else 1)
        charts.append((svg, f"Bar chart. {title}. {'; '.join(said)}."))
    seeds = "Bars are means over the seeds, dots the seeds. " if any(len(s) > 1 for s in models.values()) else ""
    return _figures_html(charts, f"{seeds}FPR has a scale of its own.")


def _curves_html(models):
    charts = []
    for title, key, place in (
        ("Training loss", "loss", None),
        ("Validation G-mIoU ↑", "g_miou", "validation"),
        ("Validation mIoU, positive ↑", "miou_positive", "validation"),
        ("Validation FPR, silence ↓", "fpr_silence", "validation"),
    ):
        curves = {name: [_curve(run.log, key, place) for run in seeds] for name, seeds in models.items()}
        curves = {name: [c for c in seeds if len(c[0])] for name, seeds in curves.items()}
        curves = {name: seeds for name, seeds in curves.items() if seeds}
        if not curves:
            continue
        ends = "; ".join(
            f"{name} ends at {', '.join(_number(seed[1][-1], 3) for seed in seeds)} after {int(seeds[0][0][-1])} steps"
            for name, seeds in curves.items()
        )
        charts.append((overlay.curve_chart(title, curves), f"Line chart. {title} over training steps. {ends}."))
    if not charts:
        return ""
    caption = f"Logs of more than {overlay.MAX_POINTS} points are averaged in that many bins of steps."
    if any(len(seeds) > 1 for seeds in models.values()):
        caption = f"Thin lines are the seeds, thick lines their means. {caption}"
    return _figures_html(charts, caption)


def _curve(log, key, place):
    """(steps, values), steps ascending; of a step logged twice (a resumed run) the later line counts."""
    points = {}
    for record in log:
        source = record.get(place) if place else record
        value = source.get(key) if isinstance(source, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            points[record["step"]] = float(value)
    steps = sorted(points)
    return np.array(steps, float), np.array([points[step] for step in steps], float)


def _figures_html(charts, caption):
    if not charts:
        return ""
    images = "".join(f'<img src="{overlay.data_uri(svg)}" alt="{_text(alt)}">' for svg, alt in charts)
    css = "charts" if len(charts) % 2 else "charts even"
    return f'<p class="hint">{_text(caption)}</p><div class="{css}">{images}</div>'


def _gallery_html(runs, models, clips, colors, size):
    folders = {}
    for name, seeds in models.items():
        folder = next((run.predictions for run in seeds if run.predictions is not None), None)
        if folder is not None:
            folders[name] = Path(folder)
    if not folders:
        return ""
    conditions = [c for c in _conditions(runs) if any((folder / c).is_dir() for folder in folders.values())]
    # Four conditions of predictions are thousands of small PNGs: zlib releases the interpreter, so threads help.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        scored = list(_bounded_map(pool, lambda clip: _score_clip(clip, folders, conditions), clips))
    if not scored:
        return ""
    first, last = next(iter(folders)), next(reversed(folders))
    negatives = [c for c in conditions if _is_negative(c, runs)]
    scores = [clip.ranked(first, last, negatives) for clip in scored]
    chosen = choose_clips(scores, size)
    rows = "".join(
        _clip_row_html(scored[i], rule, scores[i], (first, last), folders, conditions, colors) for i, rule in chosen
    )
    head = "".join(f'<th scope="col">{_text(_label(c))} audio</th>' for c in conditions)
    seeds = (
        " Of several seeds the first with saved masks is shown." if any(len(s) > 1 for s in models.values()) else ""
    )
    names = "".join(f"<li>{_swatch(colors[name])}mask of {_text(name)}</li>" for name in folders)
    quarter = min(size, len(scored)) // 4
    intro = f"{len(chosen)} of {len(scored)} clips" if len(chosen) < len(scored) else f"All {len(scored)} clips"
    if quarter:
        intro += (
            f", chosen by rule and not by hand: the {quarter} on which {first} is most biased (highest mean mIoU "
            f"under negative audio); of the rest the {quarter} best, then the {quarter} worst of {last} (the clip's "
            f"own G-mIoU); the others at equal distances in the list sorted by category and id"
        )
    intro += (
        ". The figure under a mask is its mIoU over the clip's annotated frames: high is right under positive "
        f"audio and wrong elsewhere.{seeds}"
    )
    truth = '<span class="swatch truth" aria-hidden="true"></span>white outline: the visible object (ground truth)'
    return (
        f'<p class="hint">{_text(intro)}</p><ul class="legend">{names}<li>{truth}</li></ul>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Clips by condition"><table class="gallery">'
        f'<thead><tr><th scope="col">clip</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _bounded_map(pool, function, items):
    """`pool.map` that never holds more than a few inputs: the clips' frames are large."""
    pending = []
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= 8:
            yield pending.pop(0).result()
    for future in pending:
        yield future.result()


def _clip_row_html(clip, rule, score, ends, folders, conditions, colors):
    first, last = ends
    why = {
        "most biased": f"most biased: {first} has a mean mIoU of {_number(score.bias, 2)} under negative audio",
        "best": f"best: {last} has a G-mIoU of {_number(score.g_miou, 2)}",
        "worst": f"worst: {last} has a G-mIoU of {_number(score.g_miou, 2)}",
    }.get(rule, rule)
    with Image.open(io.BytesIO(clip.frame)) as image:
        frame = image.convert("RGB")
    about = f"clip {clip.clip_id}" + (f" ({clip.category})" if clip.category else "")
    number = f"frame {clip.index + 1}"
    tiles = _tile_html(frame, f"{number} of {about}", number)
    tiles += _tile_html(overlay.truth_tile(frame, clip.truth), f"Ground truth of {about}", "ground truth")
    cells = [
        f'<th scope="row"><div class="first"><div class="clip"><b>{_text(clip.clip_id)}</b>'
        + (f"<span>{_text(clip.category)}</span>" if clip.category else "")
        + f'<span class="why">{_text(why)}</span></div><div class="tiles">{tiles}</div></div></th>'
    ]
    for condition in conditions:
        tiles = ""
        for name, folder in folders.items():
            if condition not in clip.miou[name]:
                tiles += f'<figure><div class="none">{MISSING}</div><figcaption>{_text(name)}</figcaption></figure>'
                continue
            source = _read_prediction(folder, condition, clip, clip.index, clip.truth.shape)
            value = _number(clip.miou[name][condition], 2)
            empty = "" if (source >= 128).any() else ", empty mask"
            alt = f"{name} on {about}, {_label(condition)} audio: mIoU {value}{empty}"
            image = overlay.prediction_tile(frame, source, clip.truth, colors[name])
            tiles += _tile_html(image, alt, name, value, colors[name])
        sound = clip.sounds.get(condition)
        heard = f'<div class="sound">sound: {_text(sound)}</div>' if sound else ""
        cells.append(f'<td data-label="{_text(_label(condition))} audio"><div class="tiles">{tiles}</div>{heard}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _tile_html(image, alt, caption, value="", color=None):
    width, height = image.size
    swatch = _swatch(color) if color else ""
    value = f" <b>{_text(value)}</b>" if value else ""
    return (
        f'<figure><img src="{overlay.data_uri(image)}" alt="{_text(alt)}" width="{width}" height="{height}">'
        f"<figcaption>{swatch}{_text(caption)}{value}</figcaption></figure>"
    )


def _settings_html(runs, settings):
    """Every setting once: in the first column where all runs agree, else by run."""
    numbers = {}
    columns = []
    for run in runs:
        numbers[run.name] = numbers.get(run.name, 0) + 1
        many = sum(other.name == run.name for other in runs) > 1
        columns.append(f"{run.name} #{numbers[run.name]}" if many else run.name)
    common = _flatten(settings)
    own = [{**_flatten(run.settings), **_flatten({"versions": run.versions})} for run in runs]
    differing = {}
    for key in dict.fromkeys(key for values in own for key in values):
        values = [each.get(key, MISSING) for each in own]
        if len(set(values)) == 1 and common.get(key, values[0]) == values[0]:
            common[key] = values[0]
        else:
            differing[key] = values
    html = ""
    if common:
        rows = "".join(f'<tr><th scope="row">{_text(k)}</th><td>{_text(v)}</td></tr>' for k, v in common.items())
        html += _settings_table_html(rows, "Settings of all runs")
    if differing:
        head = "".join(f'<th scope="col">{_text(column)}</th>' for column in columns)
        rows = f'<tr><th scope="col">setting</th>{head}</tr>'
        for key, values in differing.items():
            rows += f'<tr><th scope="row">{_text(key)}</th>{"".join(f"<td>{_text(v)}</td>" for v in values)}</tr>'
        html += "<h3>Where the runs differ</h3>" + _settings_table_html(rows, "Settings by run")
    return html


def _settings_table_html(rows, label):
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="settings">'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _flatten(mapping, prefix=""):
    flat = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            flat[f"{prefix}{key}"] = text
    return flat


# --- the command -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """`avs-report`: prints the table, writes `index.html`, `table.md` and `table.tex`."""
    parser = argparse.ArgumentParser(
        prog="avs-report", description="Scores of one or several models, as a page and tables."
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
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument("--gallery", type=Path, metavar="FILE.json", help="clips to show: ids, frame and mask files")
    parser.add_argument("--title", default="Does the model listen?")
    parser.add_argument("--note", action="append", default=[], help="a paragraph for the page's notes; repeatable")
    args = parser.parse_args(argv)

    logs = {}
    for name, path in args.log:
        logs.setdefault(name, []).append(path)
    names = [name for name, _ in args.run]
    for name, paths in logs.items():
        if len(paths) > names.count(name):
            parser.error(f"--log {name}: {len(paths)} given, but {names.count(name)} --run of this name.")
    try:
        runs = [read_run(name, path, logs[name].pop(0) if logs.get(name) else None) for name, path in args.run]
        clips = read_gallery(args.gallery) if args.gallery else ()
        page = write_report(args.out, runs, clips, title=args.title, notes=args.note)
        _write_atomically(args.out / "table.md", markdown_table(runs))
        _write_atomically(args.out / "table.tex", latex_table(runs))
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"avs-report: {error}\n")
    print(results_table(runs))
    print(page)


def _named_path(text):
    name, separator, path = text.partition("=")
    if not (name.strip() and separator and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {text!r}")
    return name.strip(), Path(path)


if __name__ == "__main__":
    main()
