"""The VGGish log-mel front end: a 16 kHz waveform to examples of 96 frames x 64 mel bands.

Sounds of all conditions pass `log_mel`, so that only the waveform distinguishes the conditions. `released_log_mel`
reproduces the features that the released AVSBench-Robust pipeline gives to negative sounds, for comparison only.

Source: Hershey et al. 2017, https://arxiv.org/abs/1609.09430, and the constants of AudioSet's `vggish_params`.
"""

from functools import lru_cache

import numpy as np
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16000  # Hz
WINDOW_LENGTH = 400  # samples, 25 ms
HOP_LENGTH = 160  # samples, 10 ms
FFT_LENGTH = 512  # the next power of two; the window is padded with zeros at its end
NUM_MEL_BINS = 64
MIN_FREQUENCY = 125.0  # Hz
MAX_FREQUENCY = 7500.0  # Hz
LOG_OFFSET = 0.01  # added before the logarithm: digital silence becomes log(0.01) = -4.60517
NUM_FRAMES = 96  # frames of an example, 0.96 s
RELEASED_RATE = 22050  # Hz, of `released_log_mel`
MIN_SAMPLES = WINDOW_LENGTH + (NUM_FRAMES - 1) * HOP_LENGTH  # 15600, the shortest sound with one example
LOUDEST = 100.0  # floats are in [-1, 1]; mixing may pass 1, and 16 bits below 100 are quieter than -50 dB
STEP = NUM_FRAMES * HOP_LENGTH  # 15360, samples from one example to the next; two neighbours share 240


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Log-mel examples of a waveform.

    Five seconds give 498 frames and thus five examples; what follows the last whole example is dropped, and fewer than
    `MIN_SAMPLES` samples give none. Where a waveform repeats its last window, as this project's data set lengthens
    clips of 4 s, the example is repeated exactly, the two frames at the seam too.

    Args:
        waveform (`np.ndarray` of shape `(samples,)` or `(samples, channels)`): at 16 kHz, in [-1, 1] or signed
            integers at full scale; channels are averaged.

    Returns:
        `np.ndarray` of shape `(examples, 1, 96, 64)`, float32: time before mel, natural logarithm.

    Raises:
        ValueError: another number of axes, or samples that are not finite.
    """
    waveform = to_mono(waveform)
    num_frames = max(0, 1 + (len(waveform) - WINDOW_LENGTH) // HOP_LENGTH)
    num_examples = num_frames // NUM_FRAMES
    if num_examples == 0:
        return np.zeros((0, 1, NUM_FRAMES, NUM_MEL_BINS), dtype=np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW_LENGTH)[::HOP_LENGTH]
    frames = frames[: num_examples * NUM_FRAMES]
    magnitudes = np.abs(np.fft.rfft(frames * _hann_window(WINDOW_LENGTH), FFT_LENGTH))  # (frames, 257), not squared
    logs = np.log(magnitudes @ mel_matrix() + LOG_OFFSET)
    examples = logs.astype(np.float32).reshape(num_examples, 1, NUM_FRAMES, NUM_MEL_BINS)
    for index in range(1, num_examples):
        behind_the_seam = slice(index * STEP + MIN_SAMPLES - STEP, index * STEP + MIN_SAMPLES)
        earlier = slice(behind_the_seam.start - STEP, behind_the_seam.stop - STEP)
        if waveform[behind_the_seam].any() and np.array_equal(waveform[behind_the_seam], waveform[earlier]):
            examples[index] = examples[index - 1]
    return examples


@lru_cache(maxsize=1)
def mel_matrix() -> np.ndarray:
    """The filter bank `(257, 64)`, float64: triangles of height 1, linear in mel, on HTK's mel scale. Read only."""
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, FFT_LENGTH // 2 + 1)
    edges = np.linspace(_hertz_to_mel(MIN_FREQUENCY), _hertz_to_mel(MAX_FREQUENCY), NUM_MEL_BINS + 2)
    lower, center, upper = edges[:-2], edges[1:-1], edges[2:]
    mel = _hertz_to_mel(frequencies)[:, None]
    matrix = np.maximum(0.0, np.minimum((mel - lower) / (center - lower), (upper - mel) / (upper - center)))
    matrix[0] = 0.0  # no band takes the constant component
    matrix.setflags(write=False)
    return matrix


def to_mono(waveform: np.ndarray) -> np.ndarray:
    """The mean over channels, float64, of a waveform of shape `(samples,)` or `(samples, channels)`.

    Signed integers are taken as full scale: int16 is divided by 32768, as in VGGish's front end.

    Raises:
        ValueError: another number of axes, unsigned integers, or samples that are not finite or above `LOUDEST`; the
            numbers of 16-bit samples as floats or as 64-bit integers.
    """
    waveform = np.asarray(waveform)
    if waveform.dtype == np.int64 and waveform.size and np.abs(waveform).max() < 2**31:
        raise ValueError(
            "Expected a waveform of floats in [-1, 1], np.int16 or np.int32, got integers of 64 bits, as a list of "
            "whole numbers gives them. Say what they are, for example np.asarray(waveform, dtype=np.int16)."
        )
    if waveform.dtype.kind == "i":
        waveform = waveform / -float(np.iinfo(waveform.dtype).min)
    elif waveform.dtype.kind != "f":
        raise ValueError(f"Expected a waveform of floats or signed integers, got {waveform.dtype}.")
    waveform = waveform.astype(np.float64)
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=1)
    if waveform.ndim != 1:
        raise ValueError(f"Expected a waveform of shape (samples,) or (samples, channels), got {waveform.shape}.")
    if not np.isfinite(waveform).all():
        raise ValueError(
            f"Expected finite samples, got {np.count_nonzero(~np.isfinite(waveform))} NaN or infinite ones of "
            f"{len(waveform)}; read the recording again or leave it out."
        )
    peak = np.abs(waveform).max(initial=0)
    if peak > LOUDEST or (peak > 1 and (waveform == np.rint(waveform)).all()):
        raise ValueError(
            f"Expected samples of floats in [-1, 1], got one of {peak:.6g}: these are the numbers of integers. Divide "
            "them by 32768 if they come from 16 bits, or give them as np.int16."
        )
    return waveform


def resample(waveform: np.ndarray, original_rate: int, new_rate: int = SAMPLE_RATE) -> np.ndarray:
    """The waveform at another sample rate; itself where the rates agree.

    Kaiser-windowed sinc interpolation with the parameters of resampy's "kaiser_best", which AVSBench's preprocessing
    uses (https://docs.pytorch.org/audio/stable/tutorials/audio_resampling_tutorial.html).

    Args:
        waveform (`np.ndarray` of shape `(samples,)` or `(samples, channels)`): the result has as many axes, in float32
            unless the rates agree.
        original_rate (`int`), new_rate (`int`): Hz.

    Raises:
        ValueError: a rate that is not a positive whole number.
        ImportError: the rates differ and there is no torchaudio.
    """
    for name, rate in (("original_rate", original_rate), ("new_rate", new_rate)):
        if int(rate) != rate or rate <= 0:
            raise ValueError(f"Expected a positive whole number of Hz for `{name}`, got {rate!r}.")
    if original_rate == new_rate:
        return waveform
    import torch

    try:  # a checkpoint's code runs where transformers and timm alone are installed
        from torchaudio.functional import resample as torchaudio_resample
    except ImportError as error:
        raise ImportError(
            f"Resampling from {original_rate} to {new_rate} Hz needs torchaudio: `pip install torchaudio`, or give "
            f"the sound at {new_rate} Hz."
        ) from error

    resampled = torchaudio_resample(
        torch.from_numpy(np.ascontiguousarray(np.asarray(waveform, dtype=np.float32).T)),
        int(original_rate),
        int(new_rate),
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )
    return np.ascontiguousarray(resampled.numpy().T)


def released_log_mel(waveform: np.ndarray, sampling_rate: int = SAMPLE_RATE) -> np.ndarray:
    """The features that the released AVSBench-Robust pipeline gives to negative sounds, unlike its positive ones.

    Written from its description: 5 seconds at 22050 Hz, cut or padded with zeros; for each second a power spectrogram
    (periodic Hann window and FFT of 1024 samples, hop 512, centred), 64 mel bands on Slaney's scale, decibels of at
    least -100 and at most 80 below the second's maximum, z-normalised over the second unless it is constant. That
    makes 44 frames a second, and zeros fill up the 96, by which alone a model can tell negative sounds from those of
    `log_mel`. The resampling is not the release's (soxr's, which differs near the band's end), nor is its noise, made
    at 44.1 kHz, which therefore reaches 11 kHz.

    Args:
        waveform (`np.ndarray` of shape `(samples,)` or `(samples, channels)`): as in `log_mel`.
        sampling_rate (`int`): Hz.

    Returns:
        `np.ndarray` of shape `(5, 1, 96, 64)`, float32: time before mel. Digital silence is -100 in the first 44
        frames of each example and 0 in the others.

    Raises:
        ValueError: as in `log_mel` and `resample`.
    """
    waveform = np.asarray(resample(to_mono(waveform), sampling_rate, RELEASED_RATE), dtype=np.float64)
    clip = np.zeros(5 * RELEASED_RATE)
    clip[: len(waveform)] = waveform[: len(clip)]
    examples = np.zeros((5, 1, NUM_FRAMES, NUM_MEL_BINS), dtype=np.float32)
    window = _hann_window(1024)
    mel = mel_filter_bank(513, NUM_MEL_BINS, 0.0, RELEASED_RATE / 2, RELEASED_RATE, norm="slaney", mel_scale="slaney")
    for example, second in zip(examples[:, 0], clip.reshape(5, RELEASED_RATE), strict=True):
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(second, 512), 1024)[::512]  # (44, 1024)
        power = np.abs(np.fft.rfft(frames * window)) ** 2
        decibels = 10 * np.log10(np.maximum(power @ mel, 1e-10))
        decibels = np.maximum(decibels, decibels.max() - 80)
        if np.ptp(decibels) > 0:
            decibels = (decibels - decibels.mean()) / decibels.std()
        example[: len(frames)] = decibels
    return examples


def _hann_window(length: int) -> np.ndarray:
    """Periodic, not symmetric: the divisor is the length."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def _hertz_to_mel(hertz):
    return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)


__all__ = ["MIN_SAMPLES", "NUM_FRAMES", "NUM_MEL_BINS", "SAMPLE_RATE"]
__all__ += ["log_mel", "mel_matrix", "released_log_mel", "resample", "to_mono"]
