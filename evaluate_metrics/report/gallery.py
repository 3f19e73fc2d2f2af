"""The report's gallery: which clips it shows and why, and each model's masks on them."""

import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from avsbench_robust_dataset.files import BROKEN_IMAGE
from avsbench_robust_dataset.masks import object_mask
from avsbench_robust_dataset.subsets import FRAMES_PER_CLIP, SPLITS, SUBSETS

from ..avs_robust.avs_robust import clip_statistics, harmonic_mean
from ..mask_files import predictions_digest, read_prediction
from ..mask_folders import condition_folders, find_masks, mask_files
from ..results import Run, read_json
from . import overlay
from .markup import render
from .tables import conditions_of, has_seeds, is_negative, mean, number, sound_of


@dataclass(frozen=True)
class Clip:
    """One clip of the gallery.

    Attributes:
        clip_id, category: as in the data set; `category` may be "".
        frames: images, in order.
        masks: ground truth of the visible object for the first `len(masks)` frames, see `object_mask`.
        sounds: condition -> what is heard in it, e.g. {"off_screen": "dog_barking"}; optional.
    """

    clip_id: str
    category: str
    frames: Sequence[Image.Image]
    masks: Sequence[Image.Image]
    sounds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipScore:
    """What the clips are ranked by: `bias` of the first model and `g_miou` of the last, both of this clip alone."""

    clip_id: str
    category: str
    bias: float
    g_miou: float


# --- reading ---------------------------------------------------------------------------------------------------------


class _ImageFiles(Sequence):
    """Images on disk, opened when they are asked for: of most clips no frame is shown."""

    def __init__(self, paths):
        self.paths = list(paths)
        for path in self.paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: not found. Expected an image of a clip of the gallery.")

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return _open_image(self.paths[index])


def read_gallery(path: str | os.PathLike) -> Iterator[Clip]:
    """The clips that a JSON file lists; images are opened when they are looked at.

    The file is a list of {"clip_id", "category", "frames": [path, …], "masks": [path, …], "sounds": {…}}; paths are
    relative to the file; `category` and `sounds` may be left out.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found. Expected a JSON list of clips.")
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of clips, got {type(entries).__name__}.")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"clip_id", "frames", "masks"} <= entry.keys():
            raise ValueError(f'{path}: expected "clip_id", "frames" and "masks" in entry {position}, got {entry!r}.')
        yield Clip(
            clip_id=str(entry["clip_id"]),
            category=str(entry.get("category", "")),
            frames=_ImageFiles(path.parent / name for name in entry["frames"]),
            masks=_ImageFiles(path.parent / name for name in entry["masks"]),
            sounds=entry.get("sounds") or {},
        )


def read_download(data_dir: str | os.PathLike, run: Run) -> Iterator[Clip]:
    """Every clip that `run` was scored on, its frames and masks from an AVSBench download in the official layout.

    Raises:
        ValueError: a run without `clips.jsonl`, or clip names that cannot be folder names.
        FileNotFoundError: no such download, or a clip that it lacks; the message names the folder.
    """
    if not run.clips:
        raise ValueError(f"Expected clips.jsonl beside the results of {run.name!r}: it says which clips were scored.")
    subset = SUBSETS.get(run.subset, SUBSETS["s4"])
    media = Path(data_dir) / subset.folder / subset.media
    if not media.is_dir():
        raise FileNotFoundError(f"{media}: not found. Expected an AVSBench download in the official layout.")
    for row in run.clips:
        names = {"clip_id": row["clip_id"], "category": row.get("category") or ""}
        _check_names(**names)
        split = SPLITS.get(run.split, run.split)
        frames, masks = (
            [media / pattern.format(**names, split=split, number=k) for k in range(1, FRAMES_PER_CLIP + 1)]
            for pattern in (subset.frame, subset.mask)
        )
        annotated = [path for path in masks if path.is_file()]
        if not annotated:
            raise FileNotFoundError(f"{masks[0].parent}: no masks found. Expected those of clip {names['clip_id']!r}.")
        yield Clip(**names, frames=_ImageFiles(frames), masks=_ImageFiles(annotated))


def _open_image(path):
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found.") from None
    except BROKEN_IMAGE as error:
        raise ValueError(f"{path}: cannot be read as an image ({error}). Write it again.") from error


def _check_names(clip_id, category):
    for name, part in (("clip_id", clip_id), ("category", category)):
        if part in (".", "..") or re.search(r"[/\\\0]", part) or (name == "clip_id" and not part):
            raise ValueError(f"Expected a plain folder name for `{name}`, got {part!r}.")


# --- choosing --------------------------------------------------------------------------------------------------------


def choose_clips(scores: Sequence[ClipScore], count: int = 12) -> list[tuple[int, str]]:
    """Which clips the gallery shows under every sound, and why: (index into `scores`, rule) in the order shown.

    A quarter of `count` each: the most biased (`bias` highest), then of the rest the best (`g_miou` highest), then of
    the rest the worst (`g_miou` lowest). The remaining places go to clips at equal distances in the list of all others
    sorted by category and id. Ties go to the smaller (clip id, category). Nothing is drawn at random.
    """
    count = min(count, len(scores))
    chosen = choose_extremes(scores, count // 4)
    taken = {i for i, _ in chosen}
    rest = [i for i in range(len(scores)) if i not in taken]
    rest.sort(key=lambda i: (scores[i].category, scores[i].clip_id))
    places = count - len(chosen)
    return chosen + [(rest[(2 * j + 1) * len(rest) // (2 * places)], "evenly spread") for j in range(places)]


def choose_extremes(scores: Sequence[ClipScore], each: int) -> list[tuple[int, str]]:
    """`each` most biased clips, of the rest the best, of the rest the worst; as in `choose_clips`."""
    rest = sorted(range(len(scores)), key=lambda i: (scores[i].clip_id, scores[i].category))
    chosen = []
    for rule, key in (
        ("most biased", lambda i: -scores[i].bias),
        ("best", lambda i: -scores[i].g_miou),
        ("worst", lambda i: scores[i].g_miou),
    ):
        ranked = sorted((i for i in rest if math.isfinite(key(i))), key=key)[:each]
        chosen += [(i, rule) for i in ranked]
        rest = [i for i in rest if i not in ranked]
    return chosen


@dataclass(frozen=True)
class _Scored:
    """A clip as kept while the others are read: what each model did, and one frame as JPEG; b"" if there is none."""

    clip_id: str
    category: str
    sounds: Mapping[str, str]
    miou: Mapping[str, Mapping[str, float]]  # model -> condition -> mean over frames
    frame: bytes = b""
    index: int = 0  # of the frame shown
    frames: int = 0  # how many the clip has
    truth: np.ndarray | None = None  # bool, of the frame shown


@dataclass(frozen=True)
class _View:
    """What the gallery shows: each model's masks, the conditions, those in which the object is not heard, colours."""

    folders: Mapping[str, "_Predictions"]
    conditions: Sequence[str]
    negatives: Sequence[str]
    colors: Mapping[str, str]
    first: str
    last: str

    def ranked(self, clip, conditions):
        """The bias is the mIoU under negative conditions. Under another one, mIoU stands in the place of G-mIoU."""
        first, last = clip.miou[self.first], clip.miou[self.last]
        if conditions and conditions[0] not in self.negatives:
            return ClipScore(clip.clip_id, clip.category, math.nan, last.get(conditions[0], math.nan))
        bias, negative = (mean([of.get(c, math.nan) for c in conditions]) for of in (first, last))
        g_miou = harmonic_mean(last.get("positive", math.nan), 1 - negative)
        return ClipScore(clip.clip_id, clip.category, bias, float(g_miou))


def _score_clip(clip, folders, conditions, known):
    """A clip's mIoU, known or read from its masks; keeps its middle frame, or the largest object if that is empty."""
    if not clip.masks or len(clip.masks) > len(clip.frames):
        raise ValueError(
            f"Expected 1 to {len(clip.frames)} masks for the {len(clip.frames)} frames of clip {clip.clip_id!r}, "
            f"got {len(clip.masks)}."
        )
    truths = [object_mask(mask).astype(bool) for mask in clip.masks]
    index = len(truths) // 2
    if not truths[index].any():
        index = int(np.argmax([truth.sum() for truth in truths]))
    miou = {}
    for model, folder in folders.items():
        found = known[model].get(clip.clip_id)
        if found is None:
            found = {c: folder.miou(c, clip, truths) for c in conditions if c in folder.folders}
        miou[model] = {c: found[c] for c in conditions if math.isfinite(found.get(c, math.nan))}
    buffer = io.BytesIO()
    overlay.fit_tile(clip.frames[index]).save(buffer, "JPEG", quality=95, subsampling=0)
    frame = buffer.getvalue()
    return _Scored(clip.clip_id, clip.category, clip.sounds, miou, frame, index, len(clip.frames), truths[index])


def _check_own_masks(run: Run) -> None:
    """Raises ValueError where the folder's masks are not those that the run's scores are of, as far as they say."""
    if run.predictions is None or not run.predictions_digest:
        return
    conditions = run.settings.get("conditions") or ()
    if predictions_digest(run.predictions, conditions) != run.predictions_digest:
        raise ValueError(
            f"{run.predictions}: expected the masks that the scores of {run.name!r} are of, but they are others or "
            "have changed since. Evaluate again with --save_predictions, or name the folder with --predictions."
        )


class _Predictions:
    """One model's saved masks, read as the evaluator reads them."""

    def __init__(self, run, conditions):
        self.reading = run.reading
        self.folders, *_ = condition_folders(run.predictions, run.settings.get("conditions") or conditions)
        self.clip_ids = [row["clip_id"] for row in run.clips]
        self.categories = {}
        self._found = {}

    def miou(self, condition, clip, truths):
        masks = [self.read(condition, clip, len(clip.frames), k, truth.shape) for k, truth in enumerate(truths)]
        frames = (np.stack(masks) / np.float32(255)).reshape(len(masks), -1)
        statistics, _ = clip_statistics(frames, np.stack(truths).reshape(frames.shape))
        return float(np.mean(statistics["iou"]))

    def read(self, condition, clip, frames, index, shape):
        """uint8 (H, W), 255 for probability 1: frame `index` (from 0) of a clip of `frames` frames."""
        _check_names(clip.clip_id, clip.category)
        self.categories[clip.clip_id] = clip.category
        found = self._masks(condition, frames)
        path = found.paths.get(clip.clip_id, {}).get(index)
        if path is None:
            raise FileNotFoundError(
                f"{found.expected(clip.clip_id, index)}: not found. Expected this clip's masks; evaluate with its "
                "masks saved."
            )
        values, is_grey, _ = read_prediction(path, shape, self.reading)
        return np.minimum(values, 1) * np.uint8(255) if is_grey and self.reading.grey_of_one == 1 else values

    def _masks(self, condition, frames):
        key = condition, frames
        if key not in self._found:
            root = self.folders[condition]
            clip_ids = self.clip_ids or {path.parent.name for path in mask_files(root)}
            frames_of = dict.fromkeys(clip_ids, frames)
            self._found[key] = find_masks(root, frames_of, self.reading.pattern, self.categories)
        return self._found[key]


# --- the section of the page -----------------------------------------------------------------------------------------


def gallery_html(
    runs: Sequence[Run],
    models: Mapping[str, Sequence[Run]],
    clips: Iterable[Clip],
    colors: Mapping[str, str],
    size: int,
) -> str:
    """Best, worst and most biased clip under each condition, then `size` clips under all of them.

    Without pictures the clips are only named; "" where no clips are known at all.
    """
    shown = {}
    for name, seeds in models.items():
        if with_masks := [run for run in seeds if run.predictions is not None]:
            shown[name] = with_masks[0]
            _check_own_masks(with_masks[0])
    folders = {name: _Predictions(run, conditions_of([run])) for name, run in shown.items()}
    known = {name: _known_miou(run) for name, run in shown.items()}
    conditions = [c for c in conditions_of(runs) if any(c in folder.folders for folder in folders.values())]
    scored = [_score_clip(clip, folders, conditions, known) for clip in clips] if shown else []
    if not scored:
        return _names_html(runs, models, colors)
    negatives = [c for c in conditions if is_negative(c, runs)]
    view = _View(folders, conditions, negatives, colors, next(iter(folders)), next(reversed(folders)))
    hint = (
        "Chosen by rule and not by hand. The figure under a mask is its mIoU over the clip's annotated frames: high "
        "is right under positive audio and wrong elsewhere."
    )
    if has_seeds(models):
        hint += " Of several seeds the first with saved masks is shown."
    return render(
        "gallery.html",
        hint=hint,
        names=[(name, colors[name]) for name in folders],
        extremes=_extremes(scored, view),
        sounds=[sound_of(c) for c in conditions],
        **_all_conditions(scored, view, size),
    )


def _known_miou(run):
    """clip id -> condition -> mIoU, from the run's clips."""
    return {
        row["clip_id"]: {c: float(np.mean(values["iou"])) for c, values in row["conditions"].items()}
        for row in run.clips
    }


def _extremes(scored, view):
    """(what is heard, cards of the most biased, the best and the worst clip) of each condition that has some."""
    first, last = view.first, view.last
    groups = []
    for condition in view.conditions:
        scores = [view.ranked(clip, [condition]) for clip in scored]
        ties = _ties(scores)
        cards = []
        for i, rule in choose_extremes(scores, 1):
            if rule == "worst" and rule in ties:
                continue  # no worse than the one called best
            clip, score = scored[i], scores[i]
            if rule == "most biased":
                why = f"{first} has a mIoU of {number(score.bias, 2)} with the silent object"
            elif condition in view.negatives:
                miou = clip.miou[last]
                why = (
                    f"{last} has a G-mIoU of {number(score.g_miou, 2)}: mIoU {number(miou['positive'], 2)} under "
                    f"positive and {number(miou[condition], 2)} under {sound_of(condition)}"
                )
            else:
                why = f"{last} has a mIoU of {number(score.g_miou, 2)}"
            if rule in ties:
                why += f"; so it is on all {len(scores)} clips, of which this is the first by name"
                rule = "equally biased" if rule == "most biased" else "equally good"
            card = {"rule": rule, "clip_id": clip.clip_id, "category": clip.category, "why": why, "tiles": []}
            card["sound"] = clip.sounds.get(condition)
            if clip.frame:
                frame = _frame_of(clip)
                truth = overlay.truth_tile(frame, clip.truth)
                card["tiles"] = [_tile(truth, f"Ground truth of {_described(clip)}", "ground truth")]
                card["tiles"] += _prediction_tiles(clip, condition, frame, view)
            said = [f"{name} {number(miou[condition], 2)}" for name, miou in clip.miou.items() if condition in miou]
            cards.append(card | {"said": ", ".join(said)})
        if cards:
            groups.append((sound_of(condition), cards))
    return groups


def _ties(scores):
    """The rules by which all of several clips are equal: their order is that of the names."""
    ties = set()
    for rules, values in (
        ({"most biased"}, [score.bias for score in scores]),
        ({"best", "worst"}, [score.g_miou for score in scores]),
    ):
        values = [value for value in values if math.isfinite(value)]
        if len(values) > 1 and max(values) - min(values) <= 1e-6:
            ties |= rules
    return ties


def _names_html(runs, models, colors):
    """The extremes by name, for results without saved masks or frames."""
    known = {name: _known_miou(seeds[0]) for name, seeds in models.items() if seeds[0].clips}
    if not known:
        return ""
    rows = [row for row in models[next(iter(known))][0].clips if all(row["clip_id"] in of for of in known.values())]
    scored = []
    for row in rows:
        miou = {name: of[row["clip_id"]] for name, of in known.items()}
        scored.append(_Scored(row["clip_id"], row.get("category") or "", {}, miou))
    conditions = [c for c in conditions_of(runs) if any(c in row["conditions"] for row in rows)]
    negatives = [c for c in conditions if is_negative(c, runs)]
    view = _View({}, conditions, negatives, colors, next(iter(known)), next(reversed(known)))
    hint = "Chosen by rule and not by hand. Pictures need each model's saved masks and the data set (--data_dir)."
    if has_seeds(models):
        hint += " Of several seeds the first is shown."
    return render("gallery.html", hint=hint, names=[], extremes=_extremes(scored, view), rows=[])


def _all_conditions(scored, view, size):
    """{"intro": how the clips were chosen, "rows": one a clip}."""
    first, last = view.first, view.last
    scores = [view.ranked(clip, view.negatives) for clip in scored]
    chosen = choose_clips(scores, size)
    ties = _ties(scores)
    rows = [_clip_row(scored[i], rule, scores[i], view, rule in ties) for i, rule in chosen]
    quarter = min(size, len(scored)) // 4
    intro = f"{len(chosen)} of {len(scored)} clips" if len(chosen) < len(scored) else f"All {len(scored)} clips"
    if quarter:
        intro += (
            f": the {quarter} on which {first} is most biased (highest mean mIoU under negative audio); of the rest "
            f"the {quarter} best, then the {quarter} worst of {last} (the clip's own G-mIoU); the others at equal "
            "distances in the list sorted by category and id"
        )
        if ties:
            intro += ". Where all clips are equal, the first by name are taken"
    return {"intro": intro, "rows": rows}


def _clip_row(clip, rule, score, view, is_tie):
    first, last = view.first, view.last
    why = {
        "most biased": f"most biased: {first} has a mean mIoU of {number(score.bias, 2)} under negative audio",
        "best": f"best: {last} has a G-mIoU of {number(score.g_miou, 2)}",
        "worst": f"worst: {last} has a G-mIoU of {number(score.g_miou, 2)}",
    }.get(rule, rule)
    if is_tie:
        why = f"by name: all clips are equal;{why.partition(':')[2]}"
    frame = _frame_of(clip)
    shown = f"frame {clip.index + 1}"
    truth = overlay.truth_tile(frame, clip.truth)
    return {
        "clip_id": clip.clip_id,
        "category": clip.category,
        "why": why,
        "tiles": [
            _tile(frame, f"{shown} of {_described(clip)}", shown),
            _tile(truth, f"Ground truth of {_described(clip)}", "ground truth"),
        ],
        "cells": [
            (sound_of(condition), _prediction_tiles(clip, condition, frame, view), clip.sounds.get(condition))
            for condition in view.conditions
        ],
    }


def _frame_of(clip):
    with Image.open(io.BytesIO(clip.frame)) as image:
        return image.convert("RGB")


def _described(clip):
    return f"clip {clip.clip_id}" + (f" ({clip.category})" if clip.category else "")


def _prediction_tiles(clip, condition, frame, view):
    """One tile a model."""
    tiles = []
    for name, folder in view.folders.items():
        if condition not in clip.miou[name] or condition not in folder.folders:
            tiles.append({"src": "", "caption": name, "value": "", "color": ""})
            continue
        source = folder.read(condition, clip, clip.frames, clip.index, clip.truth.shape)
        value = number(clip.miou[name][condition], 2)
        empty = "" if (source >= 128).any() else ", empty mask"
        alt = f"{name} on {_described(clip)}, {sound_of(condition)}: mIoU {value}{empty}"
        image = overlay.prediction_tile(frame, source, clip.truth, view.colors[name])
        tiles.append(_tile(image, alt, name, value, view.colors[name]))
    return tiles


def _tile(image, alt, caption, value="", color=""):
    width, height = image.size
    shown = {"src": overlay.data_uri(image), "alt": alt, "width": width, "height": height}
    return shown | {"caption": caption, "value": value, "color": color}
