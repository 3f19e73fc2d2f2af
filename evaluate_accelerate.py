"""Scores a model on AVSBench-Robust: the same clips with their own sound, silence, noise and another clip's sound.

    accelerate launch evaluate_accelerate.py --model runs/s4 --subset s4 --data_dir data --output_dir runs/s4/eval
    python evaluate_accelerate.py --predictions masks --subset s4 --data_dir data --output_dir masks_eval
    python evaluate_accelerate.py --model-fn my_model:predict --subset s4 --data_dir data --output_dir my_eval

The model is a `from_pretrained` folder of this project (`--model`); any model whose masks lie as PNG files in
DIR/<condition>/<category>/<clip>/<clip>_<k>.png, <k> from 0 or 1, category optional, 1-bit or 8-bit grey where 255 is
probability 1 (`--predictions`, needs the ground-truth masks only); or any Python callable (`--model-fn`)

    (frames (T, H, W, 3) uint8 RGB, waveform (80000,) float32, sampling rate) -> probabilities (T, H, W)

The same file runs on one CPU (`--cpu`), one GPU, or several processes (`torchrun --nproc_per_node N`, with `--cpu` for
CPU processes). Each clip's frames pass the backbone once, each distinct sound passes the audio encoder once; only the
head runs once per clip and condition. Masks are scored at their own resolution.

Conditions beyond the four are values of `--conditions`: `unseen` (wav files of `--unseen_dir`), `mixed_snr_<dB>` (own
and off-screen sound), `noise_snr_<dB>` (own sound and noise).

`--push_to_hub` publishes the model of `--model` with these scores in its card.

`results.json` holds the scores and breakdowns, `clips.jsonl` the statistics of every clip that they are made from;
`--save_predictions` writes the probability masks beside them. An interrupted run goes on where it stopped, and ends
with the scores of an undisturbed one to the last digit; SIGTERM ends it with exit code 0. A second run in the same
output folder is refused. The number of processes does not change a digit either, if each has as many threads.
"""

import argparse
import importlib
import io
import itertools
import json
import math
import operator
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, load_dataset
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar

from avsbench_robust_dataset import CONDITIONS, SPLITS, SUBSETS, Subset
from avsbench_robust_dataset.builder import locate
from avsbench_robust_dataset.conditions import SAMPLING_RATE, further_condition
from avsbench_robust_dataset.files import BROKEN_IMAGE, OutputError, only_run_in, write_whole, writing
from avsbench_robust_dataset.further import FurtherSounds, find_wavs, unseen_digest
from avsbench_robust_dataset.hub_access import check_hub_access
from avsbench_robust_dataset.masks import object_mask
from avsbench_robust_dataset.progress import progress_bar
from avsbench_robust_dataset.sources import media_files, read_clips, read_masks
from avsbench_robust_dataset.subsets import FRAMES_PER_CLIP, Clip
from evaluate_metrics.avs_robust.avs_robust import as_numpy
from evaluate_metrics.clip_rows import clip_row, results, scores, write_rows
from evaluate_metrics.journal import Journal
from evaluate_metrics.mask_files import PredictionsError, Target, score_predictions
from evaluate_metrics.uncertainty import shared_source_videos
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor

Splits = dict[str, Dataset | FurtherSounds]  # condition -> the same clips in the same order; the first is a Dataset

SOUND_BATCH = 16  # clips that pass the audio encoder together; fixed, so that no setting of a run changes their bits

ROUNDING = 1e-6  # how far outside [0, 1] a callable's probabilities are still taken for 0 and 1


def spread(count: int, limit: int | None) -> list[int]:
    """`limit` of `count` indices, evenly spaced: where clips are sorted by category, a prefix would be biased."""
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def decode_clip(split: Dataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """A row's frames, (T, H, W, 3) uint8 RGB, and its masks, (K, H, W) uint8 with 1 = object.

    Raises:
        ValueError: an image cannot be decoded, though a build found its checksums right; the message names the file.
    """
    try:
        clip = split[index]
    except BROKEN_IMAGE as error:  # what Pillow raises does not say of which file
        stored = split.with_format("arrow")[index : index + 1]
        files = [file for column in ("frames", "masks") for file in stored[column].to_pylist()[0]]
        names = [file["path"] or f"image {place} of row {index}" for place, file in enumerate(files)]
        broken = [name for name, file in zip(names, files, strict=True) if not is_image(file)]
        raise ValueError(
            f"Expected images that can be decoded, got {', '.join(broken or names)}: {error}. Download or extract the "
            "file again, then build the data anew."
        ) from error
    frames = np.stack([np.asarray(frame.convert("RGB")) for frame in clip["frames"]])
    masks = np.stack([object_mask(mask) for mask in clip["masks"]])
    return frames, masks


def is_image(file: dict) -> bool:
    """Whether Pillow can decode a file of `datasets`' `Image`, {"path", "bytes"}."""
    try:
        with Image.open(file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"])) as image:
            image.load()
    except BROKEN_IMAGE:
        return False
    return True


def sound_keys(condition: str, split: Dataset | FurtherSounds, by_condition: bool = False) -> list[str]:
    """One key per clip, equal where the features are: a clip's own sound is also another clip's off-screen sound.

    Args:
        by_condition: equal waveforms have other features in another condition, as with the released front end.
    """
    if by_condition:
        return [f"{condition} {key}" for key in sound_keys(condition, split)]
    if isinstance(split, FurtherSounds):
        return split.keys
    if condition == "silence":
        return ["silence"] * len(split)
    rows = split.select_columns(["clip_id", "audio_source"])
    return [f"clip {row['audio_source']}" if row["audio_source"] else f"{condition} {row['clip_id']}" for row in rows]


def sounds_of(split: Dataset | FurtherSounds) -> Dataset | FurtherSounds:
    """What gives {"audio": …} of clip i at [i], and reads nothing else for it."""
    return split if isinstance(split, FurtherSounds) else split.select_columns(["audio"]).with_format("numpy")


def encode_sounds(
    processor: AVSegFormerProcessor,
    splits: Splits,
    encoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
    wanted: Collection[int] | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, torch.Tensor]:
    """The features of every distinct sound of `splits`, keyed as in `sound_keys`.

    Positive and negative sounds pass the same front end, each once; only a processor with `front_end="released"`
    treats them differently, as the released code does.

    Args:
        encoder: log-mel (N, T, 1, 96, 64) on `device` -> embeddings (N, T, 128), run without gradients and in the
            precision of its weights. None keeps the log-mel.
        wanted: the clips whose sounds are needed; others may be missing. All by default.
        accelerator: its processes share the work, and each has all the features; None works alone.

    Returns:
        Tensors on the CPU: (T, 128) with an encoder, (T, 1, 96, 64) without.
    """
    by_condition = processor.feature_extractor.front_end == "released"
    places: dict[str, tuple[str, int]] = {}
    needed: set[str] = set()
    for condition, split in splits.items():
        keys = sound_keys(condition, split, by_condition)
        for index, key in enumerate(keys):
            places.setdefault(key, (condition, index))
        needed.update(keys if wanted is None else map(keys.__getitem__, wanted))
    audio = {condition: sounds_of(split) for condition, split in splits.items()}
    keys = list(places)
    # The same batches whatever is wanted and however many processes there are: an embedding's last bits may depend on
    # what it was computed with.
    batches = [keys[start : start + SOUND_BATCH] for start in range(0, len(keys), SOUND_BATCH)]
    batches = [batch for batch in batches if not needed.isdisjoint(batch)]
    is_shared = accelerator is not None and accelerator.num_processes > 1
    if is_shared:
        batches = batches[accelerator.process_index :: accelerator.num_processes]
    sounds = {}
    for batch in progress_bar(batches, desc="sounds", show=progress, leave=False):
        rows = [audio[condition][index]["audio"] for condition, index in map(places.get, batch)]
        conditions = [condition for condition, _ in map(places.get, batch)]
        features = processor(audio=rows, conditions=conditions).input_features
        if encoder is not None:
            with torch.no_grad():
                features = encoder(features.to(device)).float().cpu()
        sounds.update(zip(batch, features, strict=True))
    if is_shared:
        sounds = dict(itertools.chain.from_iterable(part.items() for part in gather_object([sounds])))
    return sounds


class DecodedClips(torch.utils.data.Dataset):
    """The clips of a split, decoded: (index, frames, masks)."""

    def __init__(self, split: Dataset):
        self.split = split.select_columns(["frames", "masks"])  # the waveforms are read once, by `encode_sounds`

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        return (index, *decode_clip(self.split, index))


def batches_of(
    split: Dataset, accelerator: Accelerator, batch_size: int, num_workers: int, done: Collection[str]
) -> tuple[list[int], Iterator[list[tuple[int, np.ndarray, np.ndarray]]]]:
    """The clips that are not `done`: the indices of all of them, and decoded batches of this process's share.

    Every process has the same number of batches; the last ones may be empty. A clip has the same neighbours in its
    batch whatever is done and however many processes there are, since its last bits may depend on them: a batch comes
    as a whole, with clips that are done already.
    """
    clip_ids = split["clip_id"][:]
    batches = [range(start, min(start + batch_size, len(clip_ids))) for start in range(0, len(clip_ids), batch_size)]
    left = [list(batch) for batch in batches if not all(clip_ids[index] in done for index in batch)]
    share = left[accelerator.process_index :: accelerator.num_processes]
    loader = DataLoader(
        DecodedClips(split),
        batch_sampler=share,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=leave_sigterm_to_parent,
        generator=torch.Generator(),  # else the loader draws from the global generator, which a training run owns
    )
    rounds = math.ceil(len(left) / accelerator.num_processes)
    indices = [index for batch in left for index in batch]
    return indices, itertools.islice(itertools.chain(loader, itertools.repeat([])), rounds)


def predict(
    model: AVSegFormerForSegmentation,
    processor: AVSegFormerProcessor,
    splits: Splits,
    accelerator: Accelerator,
    batch_size: int = 4,
    num_workers: int = 0,
    sounds: dict[str, torch.Tensor] | None = None,
    done: Collection[str] = (),
) -> Iterator[list[dict]]:
    """This process's share of the clips, batch by batch; every process yields the same number of batches.

    A clip is a dict: `clip_id`, `category`, `masks` (K, H, W) uint8, `probabilities` (C, K, H, W) float32 in [0, 1],
    of the C conditions in the order of `splits` and the K frames that have a mask, and `similarity`, condition -> a
    number a frame, None without the similarity head; the logits are resized bilinearly to the masks' resolution.
    Batches of clips whose ids are all in `done` are left out.
    """
    first = next(iter(splits.values()))
    clip_ids, categories = first["clip_id"][:], first["category"][:]
    left, batches = batches_of(first, accelerator, batch_size, num_workers, done)
    if sounds is None:
        sounds = encode_sounds(
            processor,
            splits,
            model.get_audio_embeddings,
            accelerator.device,
            accelerator.is_main_process,
            left,
            accelerator,
        )
    by_condition = processor.feature_extractor.front_end == "released"
    keys = {condition: sound_keys(condition, split, by_condition) for condition, split in splits.items()}
    for batch in batches:
        clips = [
            {"clip_id": clip_ids[i], "category": categories[i], "masks": masks, "probabilities": [], "similarity": {}}
            for i, _, masks in batch
        ]
        if clips:
            pixel_values = processor(frames=[list(frames) for _, frames, _ in batch]).pixel_values.to(
                accelerator.device
            )
            with torch.no_grad(), accelerator.autocast():
                image_embeddings = model.get_image_embeddings(pixel_values)
                for condition in splits:
                    audio_embeddings = torch.stack([sounds[keys[condition][i]] for i, _, _ in batch])
                    output = model(
                        image_embeddings=image_embeddings, audio_embeddings=audio_embeddings.to(accelerator.device)
                    )
                    for place, (clip, clip_logits) in enumerate(zip(clips, output.logits.float(), strict=True)):
                        count, *size = clip["masks"].shape
                        resized = F.interpolate(
                            clip_logits[None, :count], size=size, mode="bilinear", align_corners=False
                        )
                        clip["probabilities"].append(resized[0].sigmoid())
                        if output.similarity is not None:
                            clip["similarity"][condition] = output.similarity[place].float()
            for clip in clips:  # only now: a GPU is asked once all conditions are on their way
                clip["probabilities"] = torch.stack(clip["probabilities"]).cpu().numpy()
                similarity = {condition: values.tolist() for condition, values in clip["similarity"].items()}
                clip["similarity"] = similarity or None
        yield clips


class _Noted:
    """Adds a note to whatever exception passes, which keeps its type and traceback."""

    def __init__(self, note: str):
        self.note = note

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None:
            error.add_note(self.note)


def load_function(name: str) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray | torch.Tensor]:
    """The callable that `module:function` names; modules of the working directory come first.

    Raises:
        ValueError: not of that form, or no callable of that name.
        ImportError: no such module.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"Expected module:function for --model-fn, for example my_model:predict, got {name!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with _Noted(f"while importing {module_name!r} for --model-fn {name}; looked first in {os.getcwd()}"):
        module = importlib.import_module(module_name)
    try:
        function = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise ValueError(f"Expected a callable {attribute!r} in {module.__file__} for --model-fn: {error}.") from error
    if not callable(function):
        raise ValueError(f"Expected a callable for --model-fn {name}, got {type(function).__name__}.")
    return function


def predict_by(
    function: Callable[[np.ndarray, np.ndarray, int], np.ndarray | torch.Tensor],
    name: str,
    splits: Splits,
    accelerator: Accelerator,
    num_workers: int = 0,
    done: Collection[str] = (),
) -> Iterator[list[dict]]:
    """As `predict`, clip by clip, of a callable (frames (T, H, W, 3) uint8, waveform (80000,) float32, sampling rate)
    -> probabilities (T, H, W), numpy or torch, called once a clip and condition.

    Raises:
        ValueError: another shape, numbers that are NaN or outside [0, 1] by more than rounding (`ROUNDING`); names
            clip and condition.
        Whatever `function` raises, with a note that names clip and condition.
    """
    first = next(iter(splits.values()))
    clip_ids, categories = first["clip_id"][:], first["category"][:]
    audio = {condition: sounds_of(split) for condition, split in splits.items()}
    _, batches = batches_of(first, accelerator, 1, num_workers, done)
    for batch in batches:
        clips = []
        for index, frames, masks in batch:
            probabilities = []
            for condition, sounds in audio.items():
                waveform = np.array(sounds[index]["audio"]["array"], dtype=np.float32)
                clip = f"clip {clip_ids[index]!r} ({condition})"
                with _Noted(f"in {name} at {clip}"):
                    predicted = as_numpy(function(frames.copy(), waveform, SAMPLING_RATE))
                if predicted.shape != frames.shape[:3] or predicted.dtype.kind not in "bfiu":
                    raise ValueError(
                        f"Expected probabilities of shape (T, H, W) = {frames.shape[:3]} from {name}, got "
                        f"{predicted.dtype} of shape {predicted.shape} for {clip}."
                    )
                low, high = predicted.min(), predicted.max()
                if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # written so that NaN fails it
                    raise ValueError(
                        f"Expected probabilities in [0, 1] from {name}, got {low} to {high} for {clip}. Apply a "
                        "sigmoid to logits, divide 8-bit masks by 255, and look for NaN in the model."
                    )
                probabilities.append(predicted[: len(masks)].astype(np.float32).clip(0, 1))
            clips.append(
                {
                    "clip_id": clip_ids[index],
                    "category": categories[index],
                    "masks": masks,
                    "probabilities": np.stack(probabilities),
                    "similarity": None,
                }
            )
        yield clips


def about(clip: Clip, subset: Subset) -> dict[str, str | None]:
    """What a row of `clips.jsonl` says of a clip itself; the group is None where its objects are unknown."""
    return {
        "clip_id": clip.clip_id,
        "category": clip.category,
        "group": "_".join(subset.groups_of(clip)) or None,
        "source_video": clip.source_video,
    }


def score(
    batches: Iterable[list[dict]],
    conditions: Sequence[str],
    accelerator: Accelerator,
    subset: Subset | None = None,
    journal: Journal | None = None,
    total: int | None = None,
) -> list[dict]:
    """The rows (see `evaluate_metrics.clip_rows`) of all processes' clips, as `predict` yields them, in every process.

    Each process reduces its own clips; rows are gathered as objects: exact, without the duplicates that padding would
    bring, whatever the masks' sizes.

    Args:
        subset: tells groups and source videos; without it a row has no group and is of a video of its own.
        journal: receives the rows as they come; a clip that it has already is left out.
    """
    rows = []
    known_ids = set() if journal is None else set(journal.rows)
    bar = progress_bar(total=total, desc="clips", unit="clip", show=accelerator.is_main_process, leave=False)
    for clips in batches:
        reduced = []
        for clip in clips:
            if clip["clip_id"] in known_ids:
                continue
            known = {"clip_id": clip["clip_id"], "category": clip["category"], "group": None}
            known["source_video"] = clip["clip_id"]
            if subset is not None:
                several = subset.category_column is None
                labels = tuple(filter(None, clip["category"].split("_"))) if several else (clip["category"],)
                source = subset.source_video(clip["clip_id"])
                known = about(Clip(clip["clip_id"], "", clip["category"], labels, source), subset)
            probabilities = dict(zip(conditions, clip["probabilities"], strict=True))
            reduced.append(clip_row(known, clip["masks"], probabilities, clip["similarity"]))
        reduced = gather_object(reduced) if accelerator.num_processes > 1 else reduced
        if journal is not None:
            journal.append(reduced)
        rows += reduced
        bar.update(len(reduced))
    bar.close()
    return rows


def save_predictions(batches: Iterable[list[dict]], conditions: Sequence[str], folder: Path) -> Iterator[list[dict]]:
    """Passes `batches` on and writes them: FOLDER/<condition>/<category>/<clip>/<clip>_<k>.png, k from 1.

    A probability p is stored as 255 p, rounded to the nearest, halves down: `value / 255 > 0.5` exactly where p > 0.5.
    """
    for clips in batches:
        for clip in clips:
            for condition, frames in zip(conditions, clip["probabilities"], strict=True):
                target = folder / condition / clip["category"] / clip["clip_id"]
                with writing(target):
                    target.mkdir(parents=True, exist_ok=True)
                for k, frame in enumerate(np.ceil(frames * 255 - 0.5).astype(np.uint8), start=1):
                    png = io.BytesIO()
                    Image.fromarray(frame).save(png, "PNG")
                    write_whole(target / f"{clip['clip_id']}_{k}.png", png.getvalue())
        yield clips


def check_splits(splits: Splits) -> None:
    """Raises ValueError where the conditions are of different clips."""
    conditions = list(splits)
    first = splits[conditions[0]]
    for condition in conditions[1:]:
        split = splits[condition]
        clip_ids = split.clip_ids if isinstance(split, FurtherSounds) else split["clip_id"][:]
        if clip_ids != first["clip_id"][:]:
            raise ValueError(
                f"Expected the same clips in the same order in every condition, but those of {conditions[0]!r} and "
                f"{condition!r} differ. Take the splits of one load_dataset call."
            )


def evaluate_model(
    model: AVSegFormerForSegmentation,
    processor: AVSegFormerProcessor,
    splits: Splits,
    accelerator: Accelerator,
    batch_size: int = 4,
    num_workers: int = 0,
    sounds: dict[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """The robustness scores of `model` over `splits`, the same in every process.

    Args:
        model: on the accelerator's device, not wrapped for distributed training. Its training mode is restored.
        splits: condition -> Dataset, the same clips in the same order, as `load_dataset("avsbench_robust", …)` gives.
        sounds: embeddings from `encode_sounds` to reuse; None computes them.

    Returns:
        The metric's keys (`miou_positive`, …, `g_miou`, …), fractions in [0, 1].

    Raises:
        ValueError: splits of different clips.
    """
    check_splits(splits)
    was_training = model.training
    model.eval()
    batches = predict(model, processor, splits, accelerator, batch_size, num_workers, sounds)
    rows = score(batches, list(splits), accelerator, total=len(next(iter(splits.values()))))
    model.train(was_training)
    return scores(rows)


def format_scores(
    scores: dict[str, float], conditions: Sequence[str], further: dict[str, dict[str, float]] | None = None
) -> str:
    """An aligned table: a row per condition, then the G-metrics and the score of a model that ignores audio.

    Args:
        further: condition beyond the four -> its miou, f_score, fpr.
    """

    def row(name: str, values: Sequence[float | None]) -> str:
        return f"{name:<20}" + "".join(f"{'-' if value is None else f'{value:.4f}':>10}" for value in values)

    lines = [f"{'condition':<20}{'mIoU':>10}{'F':>10}{'FPR':>10}"]
    lines += [row(c, [scores.get(f"{name}_{c}") for name in ("miou", "f_score", "fpr")]) for c in conditions]
    lines += [row("G (all negatives)", [scores.get(f"g_{name}") for name in ("miou", "f_score", "fpr")])]
    negatives = [c for c in conditions if c != "positive"]
    if len(negatives) > 1:
        lines += [
            row(f"G {c}", [scores.get(f"g_{name}_{c}") for name in ("miou", "f_score")] + [None]) for c in negatives
        ]
    lines += [row("audio-blind floor", [scores.get("audio_blind_floor"), None, None])]
    for condition, of_condition in (further or {}).items():
        lines += [row(condition, [of_condition[name] for name in ("miou", "f_score", "fpr")])]
        if "g_miou" in of_condition:
            lines += [row(f"G {condition}", [of_condition.get(f"g_{name}") for name in ("miou", "f_score", "fpr")])]
    return "\n".join(lines)


def write_json(path: Path, content: dict) -> None:
    """Writes whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def library_versions() -> dict[str, str]:
    names = ("torch", "transformers", "datasets", "accelerate", "evaluate", "timm", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def git_revision() -> str | None:
    """The commit of the checkout that holds this file, "-dirty" if files differ from it; None outside of one."""
    folder = Path(__file__).resolve().parent
    git = ["git", "-C", str(folder)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, timeout=10)
        describe = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        found = subprocess.run(describe, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    installed_elsewhere = top.returncode or Path(top.stdout.strip()) != folder
    return None if installed_elsewhere or found.returncode else found.stdout.strip()


def load_splits(
    subset: str,
    data_dir: str | None,
    seed: int,
    splits: Sequence[str],
    conditions: Sequence[str],
    num_proc: int | None = None,
) -> list[dict[str, Dataset]]:
    """For each of `splits` of the subset, condition -> clips; `num_proc` processes build what is not cached yet.

    Raises:
        ValueError: a split without clips; an unknown subset.
        FileNotFoundError: missing data; the builder's message says what.
    """
    names = [f"{split}_{condition}" for split in splits for condition in conditions]
    loaded = load_dataset("avsbench_robust", subset, data_dir=data_dir, seed=seed, split=names, num_proc=num_proc)
    for name, clips in zip(names, loaded, strict=True):
        if not len(clips):
            raise ValueError(
                f"Expected clips in the split {name} of {subset}, but there are none. See `avs-data check`."
            )
    clips = iter(loaded)
    return [{condition: next(clips) for condition in conditions} for _ in splits]


def check_model_path(model: str) -> None:
    """Raises FileNotFoundError if `model` is neither a folder that `save_pretrained` wrote nor a possible Hub id."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"Expected a model in {path}, but it holds no config.json. Name the folder that train_accelerate.py "
                "or save_pretrained wrote."
            )
    elif path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2:
        raise FileNotFoundError(
            f"Expected the folder of a model or its Hub id as --model, but the folder {model} does not exist."
        )


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    hub = parser.add_argument_group("Hub")
    hub.add_argument("--push_to_hub", action="store_true", help="publish model, processor, card, code")
    hub.add_argument("--hub_model_id", help="user/name; default: your user name and the model's folder")
    hub.add_argument("--hub_private", action="store_true", help="never to a public repository")
    hub.add_argument("--hub_token", help="with write permission; default: HF_TOKEN, or that of `hf auth login`")


def publish(model: str | Path, repo_id: str, args: argparse.Namespace, results_file: Path | None = None) -> None:
    """Publishes a `from_pretrained` folder or Hub id with its processor and its scores; for one process.

    Raises:
        PermissionError, ConnectionError, ValueError: with a note how to repeat what failed.
    """
    again = f"AVSegFormerForSegmentation.from_pretrained({str(model)!r}).push_to_hub({repo_id!r}"
    again += ", private=True" if args.hub_private else ""
    again += f", results=json.load(open({str(results_file)!r}))" if results_file else ""
    with _Noted(f"All that was computed is saved. To publish it later, in Python: {again})"):
        network = AVSegFormerForSegmentation.from_pretrained(model)
        processor = AVSegFormerProcessor.from_pretrained(model)
        commit = network.push_to_hub(
            repo_id,
            processor=processor,
            results=json.loads(results_file.read_text(encoding="utf-8")) if results_file else None,
            private=args.hub_private or None,
            token=args.hub_token,
            commit_message="Upload AVSegFormer and its robustness scores" if results_file else "Upload AVSegFormer",
        )
    print(f"published: {commit.commit_url}")


def add_further(
    splits: dict[str, Dataset], names: Iterable[str], seed: int, subset: str, split: str, unseen: Sequence[Path]
) -> dict[str, FurtherSounds]:
    """The sounds of the conditions beyond the four, made from the positive and off-screen splits."""
    further = {}
    for condition in map(further_condition, names):
        partner = unseen if condition.partner == "unseen" else splits.get(condition.partner)
        further[condition.name] = FurtherSounds(condition, splits["positive"], partner, seed, subset, split)
    return further


def score_folder(args: argparse.Namespace) -> tuple[list[dict], int]:
    """(the rows of the PNG masks in `args.predictions`, compared with the masks of the download; the grey of
    probability 1, 1 or 255). No sound is read.

    Raises:
        PredictionsError: what is missing, extra, broken or of another size.
        FileNotFoundError, ValueError: from the download.
    """
    subset = SUBSETS[args.subset]
    root = locate(subset, args.data_dir)
    targets = [
        Target(**about(clip, subset), masks=tuple(media_files(subset, root, clip)[1]), frames=FRAMES_PER_CLIP)
        for clip in read_clips(subset, root)
        if clip.split == SPLITS[args.split]
    ]
    if not targets:
        raise ValueError(f"Expected clips in the split {args.split} of {args.subset}, but there are none.")
    kept = spread(len(targets), args.max_clips)
    return score_predictions(
        Path(args.predictions),
        args.conditions,
        targets,
        read_masks,
        kept,
        is_condition=is_condition,
        grey_of_one=args.grey_of_one,
        progress=partial(progress_bar, leave=False),
    )


def score_model(
    args: argparse.Namespace, accelerator: Accelerator, unseen: Sequence[Path], run: dict
) -> tuple[list[dict], Journal]:
    """The rows of `args.model` or of the callable `args.model_fn`, in the order of the data set, and their journal.

    Args:
        run: settings that name this run's journal, beside those that are added here.
    """
    function = load_function(args.model_fn) if args.model_fn else None
    fixed = [condition for condition in args.conditions if condition in CONDITIONS]
    further = [condition for condition in args.conditions if condition not in CONDITIONS]
    needed = [*fixed]
    if "off_screen" not in fixed and any(further_condition(name).partner == "off_screen" for name in further):
        needed.append("off_screen")
    with accelerator.main_process_first():  # one process builds the data, the others read its cache
        (loaded,) = load_splits(args.subset, args.data_dir, args.seed, [args.split], needed, args.num_workers or None)
    kept = spread(len(loaded[needed[0]]), args.max_clips)
    splits: Splits = {condition: loaded[condition].select(kept) for condition in fixed}
    for condition, sounds in add_further(loaded, further, args.seed, args.subset, args.split, unseen).items():
        splits[condition] = sounds.select(kept)
    check_splits(splits)
    data = {condition: [file["filename"] for file in loaded[condition].cache_files] for condition in needed}
    if function is None:
        model, loading = AVSegFormerForSegmentation.from_pretrained(args.model, output_loading_info=True)
        if loading["missing_keys"] or loading["unexpected_keys"]:
            raise ValueError(
                f"Expected the weights of a whole AVSegFormer in {args.model}, but {len(loading['missing_keys'])} are "
                f"missing and {len(loading['unexpected_keys'])} are unknown, e.g. "
                f"{sorted([*loading['missing_keys'], *loading['unexpected_keys']])[0]}. Train it first, or load the "
                "weights with the configuration that they were saved with."
            )
        model.to(accelerator.device).eval()
        front_end = {} if args.front_end is None else {"front_end": args.front_end}
        processor = AVSegFormerProcessor.from_pretrained(args.model, **front_end)
        if args.front_end not in (None, processor.feature_extractor.front_end):
            raise ValueError(
                f"Expected the front end {args.front_end!r} of --front_end, but the processor of {args.model} has "
                f"{processor.feature_extractor.front_end!r}."
            )
        args.front_end = processor.feature_extractor.front_end
        # An embedding's last bits may depend on what shares its batch.
        run = run | {"front_end": args.front_end, "batch_size": args.batch_size}
        files = sorted(path for path in Path(args.model).glob("*") if path.suffix in (".safetensors", ".bin"))
        state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        run = run | {"weights": state or getattr(model.config, "_commit_hash", None)}
    output_dir = Path(args.output_dir)
    clip_ids = splits[fixed[0]]["clip_id"][:]
    with Journal(output_dir, run | {"data": data}, accelerator.is_main_process) as journal:
        accelerator.wait_for_everyone()  # all have read the journal before one writes to it
        done = journal.rows.keys() & set(clip_ids)
        if done and accelerator.is_main_process:
            print(
                f"resumed: {len(done)} of {len(clip_ids)} clips were scored before, in {journal.path}. Remove this "
                "file to score them again, for example where the model has changed.",
                flush=True,
            )
        if function is None:
            batches = predict(model, processor, splits, accelerator, args.batch_size, args.num_workers, done=done)
        else:
            batches = predict_by(function, args.model_fn, splits, accelerator, args.num_workers, done)
        if args.save_predictions:
            batches = save_predictions(batches, list(splits), output_dir / "predictions")
        with _Noted(f"while scoring {args.model or args.model_fn}"):
            score(batches, list(splits), accelerator, SUBSETS[args.subset], journal, len(clip_ids) - len(done))
    return [journal.rows[clip_id] for clip_id in clip_ids], journal


def count_source_videos(subset: Subset, data_dir: str | None) -> dict:
    """How many source videos the splits of the subset's table share."""
    videos: dict[str, list[str]] = {split: [] for split in SPLITS.values()}
    for clip in read_clips(subset, locate(subset, data_dir)):
        videos[clip.split].append(clip.source_video)
    return shared_source_videos(videos)


def is_condition(name: str) -> bool:
    try:
        condition_name(name)
    except argparse.ArgumentTypeError:
        return False
    return True


def condition_name(name: str) -> str:
    if name not in CONDITIONS:
        try:
            further_condition(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return name


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
    parser.add_argument("--seed", type=int, default=42, help="of the draw of negative sounds")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument(
        "--conditions",
        nargs="+",
        type=condition_name,
        default=list(CONDITIONS),
        metavar="CONDITION",
        help=f"{', '.join(CONDITIONS)} (the default); unseen, mixed_snr_<dB>, noise_snr_<dB>",
    )
    parser.add_argument("--unseen_dir", type=Path, help="folder of wav files for the condition unseen")
    parser.add_argument(
        "--output_dir", required=True, help="receives results.json, clips.jsonl and, if asked for, predictions/"
    )
    parser.add_argument(
        "--front_end",
        choices=("vggish", "released"),
        help="of --model; released: that of the released code, which gives negative sounds away; default: the model's",
    )
    parser.add_argument(
        "--grey_of_one",
        type=int,
        choices=(1, 255),
        help="of --predictions: the grey of probability 1; found by default",
    )
    parser.add_argument("--batch_size", type=int, default=4, help="clips per process")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read the data")
    parser.add_argument("--max_clips", type=int, help="score only so many clips, evenly spaced over the split")
    parser.add_argument("--save_predictions", action="store_true", help="write 8-bit PNG probability masks")
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: accelerate's own setting")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    add_hub_arguments(parser)
    args = parser.parse_args(argv)
    if args.push_to_hub and args.model is None:
        parser.error("argument --push_to_hub: only with argument --model; other models have their own ways to the Hub")
    for name in ("batch_size", "max_clips"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"argument --{name}: expected at least 1, got {getattr(args, name)}")
    further = [condition for condition in dict.fromkeys(args.conditions) if condition not in CONDITIONS]
    args.conditions = [condition for condition in CONDITIONS if condition in args.conditions] + further
    if args.grey_of_one is not None and args.predictions is None:
        parser.error("argument --grey_of_one: only with argument --predictions")
    if args.front_end is not None and args.model is None:
        parser.error("argument --front_end: only with argument --model; other models bring their own")
    if args.predictions:
        for name in ("save_predictions", "unseen_dir"):
            if getattr(args, name):
                parser.error(f"argument --{name}: not allowed with argument --predictions")
    else:
        if further and "positive" not in args.conditions:
            parser.error(f"argument --conditions: {further[0]} is compared with positive; add positive")
        if ("unseen" in further) != (args.unseen_dir is not None):
            parser.error("argument --unseen_dir: goes together with --conditions unseen")
    return args


def leave_sigterm_to_parent(worker: int) -> None:
    """For a worker of a `DataLoader`: schedulers send SIGTERM to all processes at once, but the main process still
    needs its workers until it has saved what it has to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Terminated(BaseException):  # as KeyboardInterrupt: nothing that handles errors may hold it up
    """SIGTERM came where it may cut work short."""


@contextmanager
def ends_on_sigterm(hint: str) -> Iterator[None]:
    """SIGTERM, with which schedulers take a machine away, ends the block with `hint` and exit code 0."""
    if threading.current_thread() is not threading.main_thread():  # Python allows no other
        yield
        return

    def end(number, frame) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise Terminated

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Terminated:
        print(f"Stopped by SIGTERM. {hint}", flush=True)
        raise SystemExit(0) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def evaluate(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Scores what `args` name and, in the main process, writes and prints the results."""
    source = args.model or args.model_fn or args.predictions
    settings = {"seed": args.seed, "conditions": args.conditions, "max_clips": args.max_clips}
    unseen = find_wavs(args.unseen_dir) if args.unseen_dir is not None else []
    if unseen:
        settings["unseen_sha256"] = unseen_digest(args.unseen_dir, unseen)
    journal = None
    if args.predictions:
        rows, settings["grey_of_one"] = score_folder(args) if accelerator.is_main_process else ([], None)
    else:
        settings |= {"mixed_precision": accelerator.mixed_precision, "device": accelerator.device.type}
        run = {"source": source, "subset": args.subset, "split": args.split, "saved": args.save_predictions}
        rows, journal = score_model(args, accelerator, unseen, settings | run)
        settings |= {"batch_size": args.batch_size, "num_processes": accelerator.num_processes}
        settings |= {"front_end": args.front_end} if args.model else {}
    if not accelerator.is_main_process:
        return
    output_dir = Path(args.output_dir)
    further = [further_condition(name) for name in args.conditions if name not in CONDITIONS]
    found = results(rows, [condition.name for condition in further if not condition.is_heard])
    found["source_videos"] = count_source_videos(SUBSETS[args.subset], args.data_dir)
    write_rows(output_dir / "clips.jsonl", rows)
    head = {"model": source, "subset": args.subset, "split": args.split}
    masks = args.predictions or (output_dir / "predictions" if args.save_predictions else None)
    rest = {"settings": settings, "clips_file": "clips.jsonl", "versions": library_versions()}
    rest |= {"git_revision": git_revision(), "arguments": arguments_of(args)}
    rest["predictions_dir"] = None if masks is None else os.path.relpath(masks, output_dir)
    write_json(output_dir / "results.json", head | rest | found)
    if journal is not None:
        journal.remove()
    print(f"{source} on {args.subset}, {args.split} split, {len(rows)} clips")
    fixed = [condition for condition in args.conditions if condition in CONDITIONS]
    print(format_scores(found["scores"], fixed, found["extra_conditions"]))
    for name, (low, high) in found["intervals"].items():
        if name in ("g_miou", "g_f_score", "g_fpr"):
            print(f"{name:<20}95 % of resamples of the clips lie in {low:.4f} to {high:.4f}")
    print(f"written to {output_dir / 'results.json'}")


def arguments_of(args: argparse.Namespace) -> dict:
    """The command's options for `results.json`, without the token and the folder that the file lies in."""
    kept = {name: value for name, value in vars(args).items() if name not in ("hub_token", "output_dir")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.model:
        check_model_path(args.model)
    disable_progress_bar()  # transformers' own
    accelerator = Accelerator(cpu=args.cpu or bool(args.predictions), mixed_precision=args.mixed_precision)
    publishes = args.push_to_hub and accelerator.is_main_process
    if publishes:  # before the work, not after it
        name = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
        hub_model_id = check_hub_access(args.hub_model_id or name, args.hub_token)
    again = "Nothing is written yet" if args.predictions else f"What is scored is kept in {args.output_dir}"
    alone = only_run_in(args.output_dir) if accelerator.is_main_process else nullcontext()
    try:
        with ends_on_sigterm(f"{again}: repeat the command to go on."), alone:
            evaluate(args, accelerator)
    except PredictionsError as error:
        print(*error.problems, error, sep="\n", file=sys.stderr)
        raise SystemExit(2) from None
    accelerator.wait_for_everyone()  # without it, processes have been seen to abort at shutdown
    accelerator.end_training()
    if publishes:
        publish(args.model, hub_model_id, args, Path(args.output_dir) / "results.json")


def cli() -> None:
    """`main` for the command line: what the user can mend is one line and exit code 2, not a traceback.

    An exception with notes comes from scoring or from a module of the user's, and keeps its traceback.
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
