"""`pipeline("audio-visual-segmentation")` on clips: frames and their sound in, one mask a frame out."""

import os
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline
from transformers.utils import ModelOutput


class AudioVisualSegmentationPipeline(Pipeline):
    """Segments what is heard in frames with their sound, which passes VGGish's log-mel, whatever the `front_end`.

    Args of a call:
        inputs: a clip as the data set has it, `{"frames": [image, …], "audio": waveform, "sampling_rate": Hz}`, one
            frame a second, any number of them; or a list or an iterator of clips.
        threshold (`float`, defaults to 0.5): a pixel belongs to the mask above this probability.

    Returns:
        For a clip: a list with `{"timestamp": seconds, "mask": PIL image, 0 or 255, of the frames' size, "similarity":
        cosine of sound and frame in [-1, 1], None without a similarity head}` for each frame. For a list, a list of
        these, and for an iterator a generator.

    Raises:
        ValueError: an input or an argument that does not fit; a video's path, for which the package has to be
            installed.

    Example:

    ```python
    segment = pipeline("audio-visual-segmentation", model="runs/s4")
    segment({"frames": five_images, "audio": waveform, "sampling_rate": 16000})
    ```"""

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Compare names: with `trust_remote_code` the class is a different object.
        found = type(self.processor).__name__
        if found != "AVSegFormerProcessor":
            raise ValueError(
                f"Expected an AVSegFormerProcessor for audio-visual segmentation, got {found}. Save the model's own "
                "beside it: AVSegFormerProcessor().save_pretrained(folder)."
            )
        if not hasattr(self.model, "get_image_embeddings"):
            raise ValueError(f"Expected an AVSegFormerForSegmentation, got {type(self.model).__name__}.")
        self.model.eval()

    def _sanitize_parameters(self, threshold: float | None = None):
        if threshold is None:
            return {}, {}, {}
        if not 0 < threshold < 1:
            raise ValueError(f"Expected a `threshold` between 0 and 1, got {threshold}.")
        return {}, {}, {"threshold": threshold}

    def __call__(self, inputs, *, threshold: float | None = None, num_workers: int | None = None, **options):
        if isinstance(inputs, list | tuple | Iterator):
            results = (self(item, threshold=threshold, **options) for item in inputs)
            return results if isinstance(inputs, Iterator) else list(results)
        if isinstance(inputs, str | os.PathLike):
            raise ValueError(
                f"Expected a clip {{'frames': [image, …], 'audio': waveform, 'sampling_rate': Hz}}, got the path "
                f"{os.fspath(inputs)!r}. Videos need this project's package with PyAV: clone the project, run "
                "`pip install '.[video]'` in it, and `import modeling_avsegformer` before `pipeline(…)`."
            )
        if unknown := sorted(options.keys() - {"batch_size", "progress"}):
            raise ValueError(
                f"Expected no `{unknown[0]}` for a clip, which has its sound with it; it is an argument for videos."
            )
        return super().__call__(inputs, threshold=threshold, batch_size=1, num_workers=num_workers)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Saves model and processor; the pipeline's code goes with the model's."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def preprocess(self, clip):
        if not isinstance(clip, dict) or not {"frames", "audio"} <= set(clip):
            got = type(clip).__name__ + (f" with {', '.join(map(str, clip))}" if isinstance(clip, dict) else "")
            raise ValueError(
                "Expected a video's path or a clip {'frames': [image, …], 'audio': waveform, 'sampling_rate': Hz}, "
                f"got {got}."
            )
        audio = clip["audio"] if isinstance(clip["audio"], dict) else np.asarray(clip["audio"])
        frames = list(clip["frames"])
        inputs = self.processor(frames=[frames])
        extractor = type(self.processor.feature_extractor)(num_seconds=len(frames))
        inputs |= extractor([audio], sampling_rate=clip.get("sampling_rate"), return_tensors="pt")
        size = frames[0].shape[-2:] if isinstance(frames[0], torch.Tensor) else np.shape(frames[0])[:2]
        return inputs | {"target_size": tuple(size)}

    def _forward(self, model_inputs):
        """`logits (sounds, frames, height, width)` and, with its head, `similarity (sounds, frames)` of `pixel_values
        (1, frames, …)`, which pass the encoders once, and `input_features (sounds, …)`."""
        embeddings = self.model.get_image_embeddings(model_inputs["pixel_values"])
        sounds = model_inputs["input_features"]
        outputs = [
            self.model(image_embeddings=embeddings, input_features=sound[None], return_dict=True) for sound in sounds
        ]
        names = [name for name in ("logits", "similarity") if name in outputs[0]]
        joined = {name: torch.cat([output[name] for output in outputs]) for name in names}
        return joined | {"target_size": model_inputs.get("target_size")}

    def postprocess(self, model_outputs, threshold: float = 0.5):
        (masks,) = self._threshold(model_outputs["logits"], model_outputs["target_size"], threshold)
        similarity = model_outputs["similarity"][0].tolist() if "similarity" in model_outputs else [None] * len(masks)
        images = [Image.fromarray(mask * np.uint8(255)) for mask in masks]
        seconds = enumerate(zip(images, similarity, strict=True))
        return [{"timestamp": float(t), "mask": image, "similarity": value} for t, (image, value) in seconds]

    def _threshold(self, logits: torch.Tensor, size: tuple[int, int], threshold: float) -> np.ndarray:
        """bool `(clips, frames, height, width)` of logits of any size."""
        masks = self.processor.post_process_segmentation(
            ModelOutput(logits=logits), threshold, target_sizes=[size] * len(logits)
        )
        return np.stack([mask.numpy() for mask in masks])


__all__ = ["AudioVisualSegmentationPipeline"]
