"""Waveforms to VGGish log-mel examples, one a second."""

import numpy as np
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

from .log_mel import MIN_SAMPLES, NUM_MEL_BINS, SAMPLE_RATE, log_mel, released_log_mel, resample, to_mono

logger = logging.get_logger(__name__)

FRONT_ENDS = ("vggish", "released")


class VGGishFeatureExtractor(SequenceFeatureExtractor):
    """The log-mel front end of VGGish for clips of `num_seconds` seconds.

    Longer sounds are cut; of shorter ones the last whole example is repeated, as in AVSBench's preprocessing. (The
    data set of this project repeats the samples of that window, which gives the same examples.)

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
        if num_seconds < 1:
            raise ValueError(f"Expected `num_seconds` of at least 1, got {num_seconds}.")
        if front_end not in FRONT_ENDS:
            raise ValueError(f"Expected one of {', '.join(FRONT_ENDS)} for `front_end`, got {front_end!r}.")
        if front_end == "released" and num_seconds != 5:
            raise ValueError(f"Expected num_seconds=5 with front_end='released', got {num_seconds}.")
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
        **kwargs,
    ) -> BatchFeature:
        """Log-mel examples of one or several waveforms.

        Args:
            raw_speech: one waveform, of shape `(samples,)`, or a list of them, each `(samples,)` or
                `(samples, channels)`, as arrays, tensors or lists; or dicts `{"array": …, "sampling_rate": …}` as
                `datasets` gives them. An array with two axes is a batch of mono waveforms. In [-1, 1], or signed
                integers at full scale.
            sampling_rate (`int`): Hz, of all waveforms. Without it 16000 is assumed and a warning says so.
            return_tensors (`str`, *optional*): "pt" or "np".
            conditions (`list[str]`): one a waveform, "positive" or anything else. Only `front_end="released"` looks at
                them, and needs them.

        Returns:
            `BatchFeature` with `input_features` of shape `(clips, num_seconds, 1, 96, 64)`, float32

        Raises:
            ValueError: no waveform, one shorter than an example (0.975 s), samples that are not finite, or two
                sampling rates that disagree; the message gives the waveform's place in the list. Not one condition a
                waveform with `front_end="released"`.
        """
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
                self._extract(waveform, sampling_rate, place, negative)
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
            "with front_end='vggish'; `avs-data audit --front_end released` shows the difference."
        )
        return [condition != "positive" for condition in conditions]

    def _extract(self, waveform, sampling_rate: int | None, place: int, negative: bool) -> np.ndarray:
        """The examples `(num_seconds, 1, 96, 64)` of one waveform."""
        if isinstance(waveform, dict):
            own_rate = waveform.get("sampling_rate", sampling_rate)
            if sampling_rate is not None and own_rate != sampling_rate:
                raise ValueError(
                    f"Expected one sampling rate, but waveform {place} says {own_rate} Hz and `sampling_rate` "
                    f"{sampling_rate} Hz. Leave `sampling_rate` out to use each waveform's own."
                )
            waveform, sampling_rate = waveform["array"], own_rate
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
        examples = log_mel(waveform[: self.num_seconds * self.sampling_rate])
        missing = self.num_seconds - len(examples)
        return np.concatenate([examples, np.repeat(examples[-1:], missing, axis=0)])


def _as_list(raw_speech) -> list:
    """The waveforms of a batch, or of a batch of one."""
    if isinstance(raw_speech, dict):
        return [raw_speech]
    if isinstance(raw_speech, list | tuple):
        return [raw_speech] if len(raw_speech) and np.isscalar(raw_speech[0]) else list(raw_speech)
    return list(raw_speech) if raw_speech.ndim > 1 else [raw_speech]


__all__ = ["VGGishFeatureExtractor"]
