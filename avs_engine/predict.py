"""The masks that a model, seen through the protocol `Segmenter`, predicts for the same clips under each condition."""

import contextlib
import importlib
import io
import operator
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch.nn import functional as F

from avsbench_robust_dataset.conditions import SAMPLING_RATE
from avsbench_robust_dataset.files import write_whole
from evaluate_metrics.avs_robust.avs_robust import as_numpy
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor

from .clips import DecodedClip, Splits, batches
from .provenance import weight_files
from .sounds import Sounds, sounds_of

ROUNDING = 1e-6  # probabilities of a callable that lie outside [0, 1] by at most this are clipped


class Segmented(NamedTuple):
    """What a model predicts for one clip.

    Attributes:
        probabilities: (C, K, H, W) float32 in [0, 1], of the C conditions in the order of the splits and the K frames
            that have a mask, at the masks' resolution.
        similarity: condition -> similarity of sound and picture, a number a frame; None without such a head.
    """

    probabilities: np.ndarray
    similarity: dict[str, list[float]] | None = None


Predictions = list[tuple[DecodedClip, Segmented]]  # of a batch


@runtime_checkable
class Segmenter(Protocol):
    """A model that can be scored; an adapter of this shape is all that another model needs.

    Attributes:
        batch_size: how many clips `segment` gets at most.
        identity: JSON values that identify the model, for example a digest of its weights. An interrupted evaluation
            resumes only if they are equal.
    """

    batch_size: int
    identity: dict

    def hear(self, splits: Splits, wanted: Sequence[int], accelerator: Accelerator) -> None:
        """Called once, before `segment`: prepares the sounds of the clips with the indices `wanted`."""

    def segment(self, clips: Sequence[DecodedClip]) -> list[Segmented]:
        """The predictions for these clips, each under every condition."""


@contextlib.contextmanager
def noted(note: str) -> Iterator[None]:
    """Adds a note to an exception of the block and lets it pass."""
    try:
        yield
    except BaseException as error:
        error.add_note(note)
        raise


def predict(
    segmenter: Segmenter,
    splits: Splits,
    accelerator: Accelerator,
    num_workers: int = 0,
    done: Collection[str] = (),
) -> Iterator[Predictions]:
    """This process's share of the clips, batch by batch; every process yields the same number of batches.

    Batches of clips whose ids are all in `done` are left out.
    """
    first = next(iter(splits.values()))
    left, shared = batches(first, accelerator, segmenter.batch_size, num_workers, done)
    segmenter.hear(splits, left, accelerator)
    for clips in shared:
        yield list(zip(clips, segmenter.segment(clips) if clips else [], strict=True))


class AVSegFormerSegmenter:
    """AVSegFormer: each clip's frames pass the backbone once, each distinct sound passes the audio encoder once.

    Args:
        model: in evaluation mode on the accelerator's device, not wrapped for distributed training.
        sounds: of the splits that are predicted; None makes them of the splits that `hear` gets.
    """

    def __init__(
        self,
        model: AVSegFormerForSegmentation,
        processor: AVSegFormerProcessor,
        batch_size: int = 4,
        sounds: Sounds | None = None,
    ):
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self.known_sounds = sounds
        # An embedding's last bits may depend on the other items of its batch.
        self.identity = {"front_end": processor.feature_extractor.front_end, "batch_size": batch_size}

    @classmethod
    def from_pretrained(
        cls, model: str, front_end: str | None = None, batch_size: int = 4, device: torch.device | str = "cpu"
    ) -> "AVSegFormerSegmenter":
        """Loads a `from_pretrained` folder or Hub id.

        Args:
            front_end: replaces that of the processor; None keeps the saved one.

        Raises:
            ValueError: weights are missing or unknown.
        """
        network, loading = AVSegFormerForSegmentation.from_pretrained(model, output_loading_info=True)
        missing, unknown = loading["missing_keys"], loading["unexpected_keys"]
        if missing or unknown:
            raise ValueError(
                f"Expected the weights of a whole AVSegFormer in {model}, but {len(missing)} are missing and "
                f"{len(unknown)} are unknown, e.g. {sorted([*missing, *unknown])[0]}. Train it first, or load the "
                "weights with the configuration that they were saved with."
            )
        changes = {} if front_end is None else {"front_end": front_end}
        processor = AVSegFormerProcessor.from_pretrained(model, **changes)
        segmenter = cls(network.to(device).eval(), processor, batch_size)
        state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(model)]
        segmenter.identity["weights"] = state
        return segmenter

    def hear(self, splits: Splits, wanted: Sequence[int], accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.sounds = self.known_sounds or Sounds(
            self.processor, splits, self.model.get_audio_embeddings, accelerator.device
        )
        self.sounds.prepare(wanted, accelerator, accelerator.is_main_process)

    def segment(self, clips: Sequence[DecodedClip]) -> list[Segmented]:
        """The logits are resized bilinearly to the masks' resolution."""
        device = self.accelerator.device
        pixel_values = self.processor(frames=[list(clip.frames) for clip in clips]).pixel_values.to(device)
        outputs = {}
        with torch.no_grad(), self.accelerator.autocast():
            image_embeddings = self.model.get_image_embeddings(pixel_values)
            for condition, keys in self.sounds.keys.items():
                audio_embeddings = torch.stack([self.sounds[keys[clip.index]] for clip in clips]).to(device)
                outputs[condition] = self.model(image_embeddings=image_embeddings, audio_embeddings=audio_embeddings)
        # Copied to the host only now, after a GPU has received the work of all conditions.
        found = []
        for place, clip in enumerate(clips):
            count, *size = clip.masks.shape
            logits = torch.stack([output.logits[place, :count].float() for output in outputs.values()])  # (C, K, h, w)
            probabilities = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).sigmoid()
            similar = {c: output.similarity for c, output in outputs.items() if output.similarity is not None}
            similarity = {condition: values[place].float().tolist() for condition, values in similar.items()}
            found.append(Segmented(probabilities.cpu().numpy(), similarity or None))
        return found


class CallableSegmenter:
    """A callable (frames (T, H, W, 3) uint8, waveform (80000,) float32, sampling rate) -> probabilities (T, H, W),
    numpy or torch, called once a clip and condition.

    `segment` raises ValueError for another shape and for numbers that are NaN or outside [0, 1] by more than
    `ROUNDING`; the message names clip and condition, as does a note that exceptions of the callable get.
    """

    batch_size = 1
    identity: dict = {}

    def __init__(self, function: Callable[[np.ndarray, np.ndarray, int], np.ndarray | torch.Tensor], name: str):
        self.function = function
        self.name = name

    def hear(self, splits: Splits, wanted: Sequence[int], accelerator: Accelerator) -> None:
        self.audio = {condition: sounds_of(split) for condition, split in splits.items()}

    def segment(self, clips: Sequence[DecodedClip]) -> list[Segmented]:
        return [Segmented(np.stack([self._call(clip, condition) for condition in self.audio])) for clip in clips]

    def _call(self, clip: DecodedClip, condition: str) -> np.ndarray:
        waveform = np.array(self.audio[condition][clip.index]["audio"]["array"], dtype=np.float32)
        where = f"clip {clip.clip_id!r} ({condition})"
        with noted(f"in {self.name} at {where}"):
            predicted = as_numpy(self.function(clip.frames.copy(), waveform, SAMPLING_RATE))
        if predicted.shape != clip.frames.shape[:3] or predicted.dtype.kind not in "bfiu":
            raise ValueError(
                f"Expected probabilities of shape (T, H, W) = {clip.frames.shape[:3]} from {self.name}, got "
                f"{predicted.dtype} of shape {predicted.shape} for {where}."
            )
        low, high = predicted.min(), predicted.max()
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also true for NaN
            raise ValueError(
                f"Expected probabilities in [0, 1] from {self.name}, got {low} to {high} for {where}. Apply a sigmoid "
                "to logits, divide 8-bit masks by 255, and look for NaN in the model."
            )
        return predicted[: len(clip.masks)].astype(np.float32).clip(0, 1)


def load_segmenter(name: str) -> Segmenter:
    """The callable or `Segmenter` that `module:name` names; the working directory is searched first.

    Raises:
        ValueError: the name has another form, or the object is neither a callable nor a segmenter.
        ImportError: there is no such module.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"Expected module:function for --model-fn, for example my_model:predict, got {name!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with noted(f"while importing {module_name!r} for --model-fn {name}; looked first in {os.getcwd()}"):
        module = importlib.import_module(module_name)
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise ValueError(f"Expected a callable {attribute!r} in {module.__file__} for --model-fn: {error}.") from error
    if isinstance(found, Segmenter):
        return found
    if not callable(found):
        raise ValueError(
            f"Expected a function or another callable for --model-fn {name}, got {type(found).__name__}. Name a "
            "function that takes (frames, waveform, sampling_rate)."
        )
    return CallableSegmenter(found, name)


def save_predictions(batches: Iterable[Predictions], conditions: Sequence[str], folder: Path) -> Iterator[Predictions]:
    """Yields `batches` unchanged and writes them: FOLDER/<condition>/<category>/<clip>/<clip>_<k>.png, k from 1.

    A probability p is stored as 255 p, rounded to the nearest integer, halves down, so that `value / 255 > 0.5`
    exactly where p > 0.5.
    """
    for batch in batches:
        for clip, segmented in batch:
            for condition, frames in zip(conditions, segmented.probabilities, strict=True):
                target = folder / condition / clip.category / clip.clip_id
                for k, frame in enumerate(np.ceil(frames * 255 - 0.5).astype(np.uint8), start=1):
                    png = io.BytesIO()
                    Image.fromarray(frame).save(png, "PNG")
                    write_whole(target / f"{clip.clip_id}_{k}.png", png.getvalue())
        yield batch
