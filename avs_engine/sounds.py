"""Finds equal sounds in the splits and computes the features of each once."""

import itertools
from collections.abc import Callable, Collection

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset

from avsbench_robust_dataset import waveform
from avsbench_robust_dataset.progress import progress_bar
from modeling_avsegformer import AVSegFormerProcessor

from .clips import Splits

SOUND_BATCH = 16  # sounds that pass the audio encoder together; fixed, so that the run's settings do not change bits


def sound_keys(condition: str, split: Dataset, by_condition: bool = False) -> list[str]:
    """One key per clip; equal keys mean equal features. One clip's own sound is another clip's off-screen sound.

    Args:
        by_condition: whether the features depend on the condition too, as with the released front end.
    """
    keys = waveform.sound_keys(split)
    return [f"{condition} {key}" for key in keys] if by_condition else keys


def sounds_of(split: Dataset) -> Dataset:
    """The split's `audio` column alone, as numpy arrays."""
    return split.select_columns(["audio"]).with_format("numpy")


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

    Positive and negative sounds pass the same front end; only a processor with `front_end="released"` treats them
    differently, as the released code does.

    Args:
        encoder: log-mel (N, T, 1, 96, 64) on `device` -> embeddings (N, T, 128), called without gradients in the
            precision of its weights. None returns the log-mel.
        wanted: indices of the clips whose sounds are needed; others may be missing. None needs all.
        accelerator: its processes share the work, and each gets all features. None uses this process alone.

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
    # The batches depend neither on `wanted` nor on the number of processes: an embedding's last bits may depend on the
    # other items of its batch.
    batches = [keys[start : start + SOUND_BATCH] for start in range(0, len(keys), SOUND_BATCH)]
    batches = [batch for batch in batches if not needed.isdisjoint(batch)]
    shared_by = accelerator if accelerator is not None and accelerator.num_processes > 1 else None
    if shared_by is not None:
        batches = batches[shared_by.process_index :: shared_by.num_processes]
    sounds: dict[str, torch.Tensor] = {}
    for batch in progress_bar(batches, desc="sounds", show=progress, leave=False):
        conditions, indices = zip(*(places[key] for key in batch), strict=True)
        rows = [audio[condition][index]["audio"] for condition, index in zip(conditions, indices, strict=True)]
        features = processor(audio=rows, conditions=list(conditions)).input_features  # type: ignore[call-arg]
        if encoder is not None:
            with torch.no_grad():
                features = encoder(features.to(device)).float().cpu()
        sounds.update(zip(batch, features, strict=True))
    if shared_by is not None:
        sounds = dict(itertools.chain.from_iterable(part.items() for part in gather_object([sounds])))
    return sounds
