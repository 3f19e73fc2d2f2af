"""Finds equal sounds in the splits and computes the features of each once, when they are asked for."""

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset

from avsbench_robust_dataset import waveform
from avsbench_robust_dataset.progress import progress_bar
from modeling_avsegformer import AVSegFormerProcessor

from .clips import Splits

SOUND_BATCH = 16  # sounds that pass the audio encoder together; fixed, so that the run's settings do not change bits


def sounds_of(split: Dataset) -> Dataset:
    """The split's `audio` column alone, as numpy arrays."""
    return split.select_columns(["audio"]).with_format("numpy")


class Sounds:
    """The features of every distinct sound of `splits`: `sounds[key]` computes them when it is first called.

    An embedding's last bits may depend on the other items of its batch. So the batches are those of all sounds in the
    order of `splits`; neither what is asked for first nor the number of processes changes them.

    Args:
        encoder: log-mel (N, T, 1, 96, 64) on `device` -> embeddings (N, T, 128). None keeps the log-mel.

    Attributes:
        keys: condition -> one key per clip; equal keys mean equal features. One clip's own sound is another clip's
            off-screen sound.
        features: key -> what has been computed, on the CPU: (T, 128) with an encoder, (T, 1, 96, 64) without.
    """

    def __init__(
        self,
        processor: AVSegFormerProcessor,
        splits: Splits,
        encoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
        device: torch.device | str = "cpu",
    ):
        self.processor = processor
        self.encoder = encoder
        self.device = device
        self.keys = {condition: waveform.sound_keys(split) for condition, split in splits.items()}
        if processor.feature_extractor.front_end == "released":  # features depend on the condition too
            self.keys = {condition: [f"{condition} {key}" for key in keys] for condition, keys in self.keys.items()}
        self.features: dict[str, torch.Tensor] = {}
        self._places: dict[str, tuple[str, Dataset, int]] = {}
        for condition, keys in self.keys.items():
            sounds = sounds_of(splits[condition])
            for index, key in enumerate(keys):
                self._places.setdefault(key, (condition, sounds, index))
        distinct = list(self._places)
        self._batches = [distinct[start : start + SOUND_BATCH] for start in range(0, len(distinct), SOUND_BATCH)]
        self._batch_of = {key: batch for batch in self._batches for key in batch}

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self.features:
            self._encode(self._batch_of[key])
        return self.features[key]

    def stacked(self, items: Iterable[tuple[str, Sequence[int]]]) -> torch.Tensor:
        """The features of each item's sound, by its key, in the item's seconds: (B, T, …) on the device."""
        features = torch.stack([self[key][list(seconds)] for key, seconds in items])
        if torch.device(self.device).type == "cuda":
            features = features.pin_memory()  # whose copy need not be waited for
        return features.to(self.device, non_blocking=True)

    def prepare(
        self, wanted: Collection[int] | None = None, accelerator: Accelerator | None = None, progress: bool = False
    ) -> None:
        """Computes the features of the clips with the indices `wanted`, None: of all clips, under each condition.

        The processes of `accelerator` share the work, and each gets all features.
        """
        needed = {
            key for keys in self.keys.values() for key in (keys if wanted is None else [keys[k] for k in wanted])
        } - self.features.keys()
        rank, count = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
        batches = [batch for batch in self._batches if not needed.isdisjoint(batch)][rank::count]
        for batch in progress_bar(batches, desc="sounds", show=progress, leave=False):
            self._encode(batch)
        if count > 1:
            for of_process in gather_object([{key: self.features[key] for batch in batches for key in batch}]):
                self.features |= of_process

    def _encode(self, batch: list[str]) -> None:
        places = [self._places[key] for key in batch]
        rows = [sounds[index]["audio"] for _, sounds, index in places]
        conditions = [condition for condition, _, _ in places]
        features = self.processor(audio=rows, conditions=conditions).input_features  # type: ignore[call-arg]
        if self.encoder is not None:
            with torch.no_grad():
                features = self.encoder(features.to(self.device)).float().cpu()
        self.features.update(zip(batch, features, strict=True))
