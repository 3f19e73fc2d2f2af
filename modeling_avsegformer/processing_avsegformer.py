"""AVSegFormer's processor: frames and sound to tensors, logits to masks."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import is_valid_image
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, ProcessorMixin, Unpack

from .feature_extraction_vggish import VGGishFeatureExtractor
from .image_processing_avsegformer import AVSegFormerImageProcessor


class AVSegFormerAudioKwargs(AudioKwargs, total=False):
    conditions: list[str] | None


class AVSegFormerProcessorKwargs(ProcessingKwargs, total=False):
    audio_kwargs: AVSegFormerAudioKwargs
    _defaults = {"common_kwargs": {"return_tensors": "pt"}}


class AVSegFormerProcessor(ProcessorMixin):
    """An `AVSegFormerImageProcessor` and a `VGGishFeatureExtractor` in one, each with its defaults if not given.

    Args:
        image_processor, feature_extractor: the parts.
        front_end (`str`, *optional*): of the feature extractor, "vggish" or "released", see `VGGishFeatureExtractor`;
            also an argument of `from_pretrained`.

    Raises:
        ValueError: a feature extractor of another front end.
    """

    _auto_class = "AutoProcessor"  # checkpoints carry their code, for `trust_remote_code=True`
    valid_processor_kwargs = AVSegFormerProcessorKwargs

    def __init__(self, image_processor=None, feature_extractor=None, front_end: str | None = None, **kwargs):
        _check_part("image_processor", image_processor, "AVSegFormerImageProcessor")
        _check_part("feature_extractor", feature_extractor, "VGGishFeatureExtractor")
        if feature_extractor is None:
            feature_extractor = VGGishFeatureExtractor(front_end=front_end or "vggish")
        elif front_end not in (None, feature_extractor.front_end):
            raise ValueError(
                f"Expected a feature extractor with front_end={front_end!r}, got one with "
                f"{feature_extractor.front_end!r}. Leave one of the two out."
            )
        super().__init__(
            AVSegFormerImageProcessor() if image_processor is None else image_processor,
            feature_extractor,
            **kwargs,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """`ProcessorMixin.from_pretrained`, but where there is no processor, or another model's, the error says so.

        Raises:
            FileNotFoundError: no such folder or repository, or no processor in it.
            ValueError: the processor of another model.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (OSError, ValueError) as error:
            missing = isinstance(error, OSError)
            if not missing and "Unrecognized" not in str(error):  # transformers' word for files of another model
                raise
            raise (FileNotFoundError if missing else ValueError)(
                f"Expected the folder or the Hub id of an AVSegFormer processor (processor_config.json), but "
                f"{pretrained_model_name_or_path} {'has none or cannot be reached' if missing else 'has another'}: "
                f"{str(error).splitlines()[0][:300]} `AVSegFormerProcessor()` makes the default one."
            ) from error

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_features"]

    def __call__(
        self,
        images=None,
        text=None,
        videos=None,
        audio=None,
        *,
        frames=None,
        masks=None,
        **kwargs: Unpack[AVSegFormerProcessorKwargs],
    ) -> BatchFeature:
        """The model's inputs.

        Args:
            frames (`list[list[image]]`): for each clip its frames, as PIL images, `(height, width, 3)` arrays or
                `(3, height, width)` tensors; every clip has the same number. A single clip or image may stand alone.
                `images` and `videos` are other names for it.
            audio: for each clip its waveform, see `VGGishFeatureExtractor`. `sampling_rate` in Hz goes with it.
            masks (`list[list[image]]`, *optional*): for each clip the masks of its first frames; anything above 0
                belongs to the object.
            text: this model reads none.
            kwargs: `sampling_rate`; `conditions`, one str a waveform, which only the feature extractor's
                `front_end="released"` reads; `size` and the image processor's other options; `return_tensors`, "pt" by
                default.

        Returns:
            `BatchFeature` with `pixel_values` of shape `(clips, frames, 3, height, width)`, `input_features` of shape
            `(clips, seconds, 1, 96, 64)` and, with `masks`, `labels` of shape `(clips, masks, height, width)`, 0.0 or
            1.0, resized by the nearest neighbour to the size of `pixel_values`.

        Raises:
            ValueError: nothing to process, no frames, clips with unequal numbers of frames or masks, or numbers of
                clips that disagree.
        """
        given = [value for value in (frames, images, videos) if value is not None]
        if len(given) > 1 or text is not None:
            raise ValueError("Expected the frames once, as `frames` (or `images`, `videos`), and no `text`.")
        if not given and audio is None:
            raise ValueError("Expected `frames`, `audio` or both, got neither.")
        options = self._merge_kwargs(AVSegFormerProcessorKwargs, **kwargs)
        return_tensors = options["images_kwargs"].pop("return_tensors")
        options["audio_kwargs"].pop("return_tensors")

        data = {}
        if given:
            clips = _as_clips(given[0])
            flat = [frame for clip in clips for frame in clip]
            pixels = self.image_processor(flat, return_tensors="pt", **options["images_kwargs"])["pixel_values"]
            data["pixel_values"] = pixels.unflatten(0, (len(clips), -1))
        if audio is not None:
            data.update(self.feature_extractor(audio, return_tensors="pt", **options["audio_kwargs"]))
        if len(data) == 2 and len(data["input_features"]) != len(clips):
            raise ValueError(
                f"Expected one waveform a clip, got {len(clips)} clips of frames and {len(data['input_features'])} "
                "waveforms."
            )
        if masks is not None:
            if not given:
                raise ValueError("Expected `frames` with `masks`, which are resized to the frames' size.")
            data["labels"] = _labels(masks, data["pixel_values"])
        return BatchFeature(data, tensor_type=return_tensors)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """See `ProcessorMixin.save_pretrained`; the processor itself stays as it is.

        With `push_to_hub=True` it is then published, with the arguments of `push_to_hub`; `repo_id` is by default the
        name of the folder.
        """
        files = super().save_pretrained(save_directory)
        self.__dict__.pop("auto_map", None)  # where its code lies in that folder; left behind by transformers
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return files

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ):
        """Publish the processor and its code alone; `AVSegFormerForSegmentation.push_to_hub` sends it with a model.

        Arguments, return value and errors are as there.
        """
        from .publishing import push_processor

        return push_processor(
            self,
            repo_id,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    def post_process_segmentation(
        self, outputs, threshold: float = 0.5, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Masks of each clip: where the sigmoid of the logits is above the threshold.

        Args:
            outputs (`AVSegFormerOutput`): `logits` of shape `(clips, frames, height, width)`.
            threshold (`float`, defaults to 0.5): in [0, 1]; a pixel at the threshold is background.
            target_sizes (`list[tuple[int, int]]`, *optional*): (height, width) for each clip; the logits are resized
                to it bilinearly before the threshold.

        Returns:
            `list[Tensor]`: one of shape `(frames, height, width)` for each clip, bool

        Raises:
            ValueError: a threshold outside [0, 1], or another number of sizes than clips.
        """
        logits = outputs.logits.detach().float()
        if not 0 <= threshold <= 1:
            raise ValueError(f"Expected a `threshold` in [0, 1], got {threshold}.")
        if target_sizes is None:
            return list(logits.sigmoid() > threshold)
        if len(target_sizes) != len(logits):
            raise ValueError(
                f"Expected one (height, width) a clip in `target_sizes`, got {len(target_sizes)} for {len(logits)} "
                "clips."
            )
        masks = []
        for clip, size in zip(logits, target_sizes, strict=True):
            size = tuple(int(side) for side in size)
            clip = F.interpolate(clip[None], size=size, mode="bilinear", align_corners=False)[0]
            masks.append(clip.sigmoid() > threshold)
        return masks


def _check_part(name: str, part, expected: str) -> None:
    # By name: a checkpoint's own code (`trust_remote_code`) defines these classes once more.
    if part is not None and expected not in [base.__name__ for base in type(part).__mro__]:
        raise ValueError(
            f"Expected `{name}` to be {expected}, got {type(part).__name__}, which belongs to another model. Load the "
            "processor beside the model's weights with `AVSegFormerProcessor.from_pretrained`, or leave it out for "
            "the default."
        )


def _as_clips(images) -> list[list]:
    """A list of clips, each a list of images; a single clip or image becomes a batch."""
    images = [images] if _is_single_image(images) else list(images)
    clips = [images] if images and _is_single_image(images[0]) else [list(clip) for clip in images]
    _check_lengths([len(clip) for clip in clips], "frames")
    return clips


def _is_single_image(value) -> bool:
    return is_valid_image(value) and getattr(value, "ndim", 3) <= 3


def _check_lengths(lengths: list[int], name: str) -> None:
    if not lengths or min(lengths) == 0:
        raise ValueError(f"Expected at least one image in every clip of `{name}`, got {lengths} of them.")
    if min(lengths) != max(lengths):
        raise ValueError(
            f"Expected the same number of images in every clip of `{name}`, got {lengths}. Process such clips one by "
            "one."
        )


def _labels(masks, pixel_values: Tensor) -> Tensor:
    """0.0 or 1.0, `(clips, masks, height, width)`, at the size of the frames."""
    clips, frames, _, height, width = pixel_values.shape
    masks = [list(clip) for clip in masks]
    _check_lengths([len(clip) for clip in masks], "masks")
    if len(masks) != clips or len(masks[0]) > frames:
        raise ValueError(
            f"Expected the masks of the first frames of {clips} clips of {frames} frames, got {len(masks)} clips of "
            f"{len(masks[0])} masks."
        )
    labels = [[_resize_mask(mask, height, width) for mask in clip] for clip in masks]
    return torch.from_numpy(np.array(labels, dtype=np.float32))


def _resize_mask(mask, height: int, width: int) -> np.ndarray:
    """Whether each pixel of the resized mask is above 0, bool of shape `(height, width)`."""
    mask = np.asarray(mask) > 0
    if mask.ndim == 3:
        mask = mask[..., : 1 if mask.shape[-1] == 2 else 3].any(-1)  # any colour counts, alpha does not
    if mask.ndim != 2:
        raise ValueError(f"Expected masks of shape (height, width), got one of {mask.shape}.")
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) > 0


__all__ = ["AVSegFormerProcessor"]
