"""The probabilities of a model, or of any callable, for the same clips under each condition."""

import importlib
import io
import operator
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch.nn import functional as F

from avsbench_robust_dataset.conditions import SAMPLING_RATE
from avsbench_robust_dataset.files import write_whole, writing
from evaluate_metrics.avs_robust.avs_robust import as_numpy
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor

from .clips import Splits
from .clips import batches as batches_of
from .sounds import encode_sounds, sound_keys, sounds_of

ROUNDING = 1e-6  # how far outside [0, 1] a callable's probabilities are still taken for 0 and 1


class Noted:
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
    with Noted(f"while importing {module_name!r} for --model-fn {name}; looked first in {os.getcwd()}"):
        module = importlib.import_module(module_name)
    try:
        function = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise ValueError(f"Expected a callable {attribute!r} in {module.__file__} for --model-fn: {error}.") from error
    if not callable(function):
        raise ValueError(f"Expected a callable for --model-fn {name}, got {type(function).__name__}.")
    return function


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
                with Noted(f"in {name} at {clip}"):
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
