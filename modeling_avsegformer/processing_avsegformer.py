"""AVSegFormer's processor: frames and sound to tensors, logits to masks."""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, is_valid_image
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging

from .log_mel import MIN_SAMPLES, NUM_MEL_BINS, SAMPLE_RATE, log_mel, released_log_mel, resample, to_mono

logger = logging.get_logger(__name__)

FRONT_ENDS = ("vggish", "released")


class AVSegFormerImageProcessor(TorchvisionBackend):
    """Resizes frames with an antialiased bilinear filter (as PIL, within one grey level of 255), scales them to [0, 1]
    and normalises them. `size={"height": …, "width": …}` here or in the call chooses another size.

    Integers, and floats of which one is above 1, are grey levels from 0 to 255. Floats that all lie in [0, 1], as
    torchvision's `ToTensor` gives them, are taken as scaled already; all frames of a call are judged together."""

    _auto_class = "AutoImageProcessor"  # checkpoints carry their code, for `trust_remote_code=True`
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    model_input_names = ["pixel_values"]

    def _preprocess(self, images: list[Tensor], **options):
        images = [image.float() if image.dtype == torch.bool else image for image in images]
        others = [image.float() for image in images if image.dtype != torch.uint8]
        if options["do_rescale"] and others:
            lowest = torch.stack([image.min() for image in others]).min().item()  # NaN if one is
            highest = torch.stack([image.max() for image in others]).max().item()
            are_whole = all((image == image.round()).all() for image in others)
            if not (lowest >= 0 and highest <= 255) or (1 < highest < 2 and not are_whole):
                raise ValueError(
                    "Expected frames of integers from 0 to 255, or of floats in [0, 1] or [0, 255], got values from "
                    f"{lowest:.3g} to {highest:.3g}. Give the frames as they were before any normalisation, 16-bit "
                    "ones divided by 257, floats cut off at 1 (np.clip), or pass do_rescale=False."
                )
            if highest <= 1:
                factor = options["rescale_factor"]
                images = [image / factor if image.is_floating_point() else image for image in images]
        return super()._preprocess(images, **options)


class VGGishFeatureExtractor(SequenceFeatureExtractor):
    """The log-mel front end of VGGish for clips of `num_seconds` seconds: longer sounds are cut, of shorter ones the
    last whole example is repeated, as in AVSBench's preprocessing.

    Args:
        num_seconds (`int`, defaults to 5): examples of a clip, each of 0.96 s.
        sampling_rate (`int`, defaults to 16000): Hz; VGGish knows no other. Sounds at other rates are resampled.
        front_end (`str`, defaults to "vggish"): "released" gives positive sounds VGGish's log-mel and all others
            `released_log_mel`, as the released AVSBench-Robust pipeline does, so that its numbers can be compared
            with. The input then says by itself whether the sound is a positive one; a warning repeats this.
    """

    _auto_class = "AutoFeatureExtractor"  # checkpoints carry their code, for `trust_remote_code=True`
    model_input_names = ["input_features"]

    def __init__(
        self,
        feature_size: int = NUM_MEL_BINS,
        sampling_rate: int = SAMPLE_RATE,
        padding_value: float = 0.0,
        num_seconds: int = 5,
        front_end: str = "vggish",
        **kwargs,
    ):
        if sampling_rate != SAMPLE_RATE or feature_size != NUM_MEL_BINS:
            raise ValueError(
                f"Expected sampling_rate={SAMPLE_RATE} and feature_size={NUM_MEL_BINS}, which VGGish is made for, got "
                f"{sampling_rate} and {feature_size}. Give the recording's rate to the call; it is resampled there."
            )
        if front_end not in FRONT_ENDS:
            raise ValueError(f"Expected one of {', '.join(FRONT_ENDS)} for `front_end`, got {front_end!r}.")
        _check_num_seconds(num_seconds, front_end)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.num_seconds = num_seconds
        self.front_end = front_end

    @classmethod
    def from_dict(cls, feature_extractor_dict, **kwargs):
        # The base class lets an argument replace only what the file names; files from before this option lack it.
        return super().from_dict({"front_end": "vggish"} | feature_extractor_dict, **kwargs)

    def __call__(
        self,
        raw_speech,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        conditions: list[str] | None = None,
        num_seconds: int | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Log-mel examples of one or several waveforms.

        Args:
            raw_speech: one waveform, of shape `(samples,)`, or a list of them, each `(samples,)` or
                `(samples, channels)`, as arrays, tensors or lists; or dicts `{"array": …, "sampling_rate": …}` as
                `datasets` gives them. An array with two axes is a batch of mono waveforms. Floats in [-1, 1], or
                signed integers at full scale.
            sampling_rate (`int`): Hz, of all waveforms; if not given, 16000, with a warning.
            return_tensors (`str`, *optional*): "pt" or "np".
            conditions (`list[str]`): one a waveform, for `front_end="released"` only.
            num_seconds (`int`): examples of a clip in this call, instead of the extractor's own.

        Returns:
            `BatchFeature` with `input_features` of shape `(clips, num_seconds, 1, 96, 64)`, float32

        Raises:
            ValueError: no waveform, one shorter than an example (0.975 s), samples that are not finite or far outside
                [-1, 1], sampling rates that disagree, or not one condition a waveform.
        """
        seconds = self.num_seconds if num_seconds is None else num_seconds
        _check_num_seconds(seconds, self.front_end)
        waveforms = _as_list(raw_speech)
        if not waveforms:
            raise ValueError("Expected at least one waveform, got an empty list.")
        if sampling_rate is None and not all(isinstance(waveform, dict) for waveform in waveforms):
            logger.warning_once(
                f"It is strongly recommended to pass `sampling_rate` to `{type(self).__name__}`: "
                f"{self.sampling_rate} Hz is assumed, and a wrong rate shows in nothing but worse masks."
            )
        features = np.stack(
            [
                self._extract(waveform, sampling_rate, place, negative, seconds)
                for place, (waveform, negative) in enumerate(
                    zip(waveforms, self._negatives(conditions, len(waveforms)), strict=True)
                )
            ]
        )
        return BatchFeature({"input_features": features}, tensor_type=return_tensors)

    def _negatives(self, conditions: list[str] | None, count: int) -> list[bool]:
        """Which of `count` waveforms pass the released pipeline's front end for negative sounds."""
        if self.front_end != "released":
            return [False] * count
        if isinstance(conditions, str | None) or len(conditions) != count:
            got = repr(conditions) if isinstance(conditions, str | None) else f"{len(conditions)} of them"
            raise ValueError(
                f"Expected `conditions`, one str for each of {count} waveforms, got {got}: front_end='released' "
                "treats positive and negative sounds differently. Pass them, or use front_end='vggish'."
            )
        for condition in conditions:
            if not isinstance(condition, str):
                raise ValueError(
                    f"Expected str in `conditions`, got {condition!r}. A ClassLabel gives its name by `int2str`."
                )
        logger.warning_once(
            "front_end='released' is for comparing with published numbers only: negative sounds pass another front "
            "end than positive ones, so that the input alone tells them apart, without listening or looking. Measure "
            "with front_end='vggish'; `avs-audit --front_end released` shows the difference."
        )
        return [condition != "positive" for condition in conditions]

    def _extract(
        self, waveform, sampling_rate: int | None, place: int, negative: bool, num_seconds: int
    ) -> np.ndarray:
        """The examples `(num_seconds, 1, 96, 64)` of one waveform."""
        if isinstance(waveform, dict):
            own_rate = waveform.get("sampling_rate", sampling_rate)
            if sampling_rate is not None and own_rate != sampling_rate:
                raise ValueError(
                    f"Expected one sampling rate, but waveform {place} says {own_rate} Hz and `sampling_rate` "
                    f"{sampling_rate} Hz. Leave `sampling_rate` out to use each waveform's own."
                )
            waveform, sampling_rate = waveform["array"], own_rate
        if isinstance(waveform, Tensor):
            waveform = waveform.detach().cpu()
            waveform = waveform.float() if waveform.dtype == torch.bfloat16 else waveform
        rate = self.sampling_rate if sampling_rate is None else sampling_rate
        try:
            original = to_mono(waveform)
            waveform = resample(original, rate, self.sampling_rate)
        except ValueError as error:
            raise ValueError(f"Waveform {place}: {error}") from error
        if len(waveform) < MIN_SAMPLES:
            raise ValueError(
                f"Expected at least {MIN_SAMPLES} samples at {self.sampling_rate} Hz "
                f"({MIN_SAMPLES / self.sampling_rate} s) in each waveform, but waveform {place} has {len(waveform)}. "
                "Pad it with silence; or, if it is (channels, samples), transpose it."
            )
        if negative:
            return released_log_mel(original, rate)
        examples = log_mel(waveform[: num_seconds * self.sampling_rate])
        missing = num_seconds - len(examples)
        return np.concatenate([examples, np.repeat(examples[-1:], missing, axis=0)])


def _check_num_seconds(num_seconds: int, front_end: str) -> None:
    if num_seconds < 1:
        raise ValueError(f"Expected `num_seconds` of at least 1, got {num_seconds}.")
    if front_end == "released" and num_seconds != 5:
        raise ValueError(f"Expected num_seconds=5 with front_end='released', got {num_seconds}.")


def _as_list(raw_speech) -> list:
    """The waveforms of a batch, or of a batch of one."""
    if isinstance(raw_speech, dict):
        return [raw_speech]
    if isinstance(raw_speech, list | tuple):
        return [raw_speech] if len(raw_speech) and np.isscalar(raw_speech[0]) else list(raw_speech)
    return list(raw_speech) if raw_speech.ndim > 1 else [raw_speech]


class AVSegFormerAudioKwargs(AudioKwargs, total=False):
    conditions: list[str] | None


class AVSegFormerProcessorKwargs(ProcessingKwargs, total=False):
    audio_kwargs: AVSegFormerAudioKwargs
    _defaults = {"common_kwargs": {"return_tensors": "pt"}}


class AVSegFormerProcessor(ProcessorMixin):
    """An `AVSegFormerImageProcessor` and a `VGGishFeatureExtractor` in one, each with its defaults if not given.

    `front_end`, "vggish" or "released", is the feature extractor's; also an argument of `from_pretrained`.
    """

    _auto_class = "AutoProcessor"  # checkpoints carry their code, for `trust_remote_code=True`
    valid_processor_kwargs = AVSegFormerProcessorKwargs
    # transformers' `Trainer` asks the tokenizer of a processor for special tokens.
    tokenizer = SimpleNamespace(eos_token_id=None, bos_token_id=None, pad_token_id=None, init_kwargs={})

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
        """`ProcessorMixin.from_pretrained`, but FileNotFoundError where there is no processor, and ValueError for that
        of another model."""
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
                Integers from 0 to 255, or floats in [0, 1] or [0, 255]. `images` and `videos` are other names for it.
            audio: for each clip its waveform, floats in [-1, 1] or signed integers, see `VGGishFeatureExtractor`.
                `sampling_rate` in Hz goes with it. With `frames`, as many seconds are used as a clip has frames.
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
            ValueError: no frames, or numbers of clips, frames or masks that disagree.
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
            if given:  # a second of sound for each frame
                options["audio_kwargs"]["num_seconds"] = len(clips[0])
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

    def save_pretrained(self, save_directory, **kwargs):
        """See `ProcessorMixin.save_pretrained`; the processor itself stays as it is."""
        files = super().save_pretrained(str(save_directory), **kwargs)  # with `push_to_hub` it takes no `Path`
        self.__dict__.pop("auto_map", None)  # transformers leaves here where that folder's code lies
        return files

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
    first = images
    while isinstance(first, list | tuple) and first:
        first = first[0]
    images = np.asarray(images) if np.isscalar(first) else images  # lists of numbers
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


__all__ = ["AVSegFormerImageProcessor", "AVSegFormerProcessor", "VGGishFeatureExtractor"]
