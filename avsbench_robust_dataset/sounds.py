"""Sound files: read as the waveform of a clip, and written from one."""

import io
import math
from pathlib import Path

import numpy as np
import soundfile

from .conditions import SAMPLES, SAMPLING_RATE, STEP
from .subsets import FRAMES_PER_CLIP

MAX_CHANNELS, MAX_RATE = 8, 384_000  # of a sound; Hz
MAX_FILTER = 2**24  # entries of the resampling filter: 70,560 from 44,100 Hz, 700 million from 44,099 Hz
MUTE_PEAK = 1e-3  # -60 dB: below the background of any recording, above a decoder's rounding
OPEN_LENGTH = 0x7FFFF000  # bytes; programs that write a wav into a pipe put this or more into its header
WINDOW = 15600  # samples, 0.975 s: what one example of VGGish's front end hears


def _as_clip(waveform: np.ndarray) -> np.ndarray:
    """float32 (80000,): the first 5 seconds of a 16 kHz waveform; the last whole window of a shorter one is repeated.

    AVSBench's preprocessing does so with log-mel examples: S4's 14 clips of 4 s give four, and the fourth comes twice.
    What a file holds behind that window is not heard. A sound that fills all five windows, or none, ends in silence.
    """
    clip = np.zeros(SAMPLES, dtype=np.float32)
    clip[: len(waveform)] = waveform[:SAMPLES]
    windows = 1 + (len(waveform) - WINDOW) // STEP
    if 0 < windows < FRAMES_PER_CLIP:
        for begin in range((windows - 1) * STEP + WINDOW, SAMPLES, STEP):
            end = min(begin + STEP, SAMPLES)
            clip[begin:end] = clip[begin - STEP : end - STEP]
    return clip


def read_waveform(path: Path) -> np.ndarray:
    """float32 (80000,): the file's first 5 seconds at 16 kHz, mean of its channels, [-1, 1] where it holds integers.

    The last whole window of 0.975 s of a shorter sound is repeated, as in AVSBench.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it cannot be read, has no samples, or has samples that are NaN or infinite.
    """
    if not path.is_file():  # also a pipe, which one could wait for without end
        raise FileNotFoundError(
            f"Expected a file at {path}, got none. Complete the download; `avs-data check` lists all that is missing."
        )
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            common = math.gcd(rate, SAMPLING_RATE)
            if (
                file.channels > MAX_CHANNELS
                or rate > MAX_RATE
                or SAMPLING_RATE // common * (rate // common) > MAX_FILTER
            ):
                raise ValueError(
                    f"Expected sound of at most {MAX_CHANNELS} channels at a common rate (16,000, 22,050, 44,100, "
                    f"48,000 Hz, …) at {path}, got {file.channels} channels at {rate} Hz. Resample it to "
                    f"{SAMPLING_RATE} Hz, mono."
                )
            # A tenth of a second more than a clip, so that the resampling filter does not see where we cut.
            channels = file.read(frames=round(5.1 * rate), dtype="float64", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"Expected a sound file at {path}: {error}. Download it again.") from error
    if len(channels) == 0:
        raise ValueError(f"Expected sound at {path}, got a file without samples. Download it again.")
    if not np.isfinite(channels).all():
        raise ValueError(f"Expected finite samples at {path}, got NaN or infinity. Download it again.")
    waveform = channels.mean(axis=1)
    if rate != SAMPLING_RATE:
        waveform = _resample(waveform, rate)
    return _as_clip(waveform)


def _resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """float32 (samples,) at 16 kHz: Kaiser-windowed sinc interpolation with the parameters of resampy's "kaiser_best",
    which AVSBench's preprocessing uses.

    Source: https://docs.pytorch.org/audio/stable/tutorials/audio_resampling_tutorial.html
    """
    # Here, because torch takes seconds to import and recordings at 16 kHz do not need it.
    import torch
    from torchaudio.functional import resample

    resampled = resample(
        torch.from_numpy(waveform.astype(np.float32)),
        rate,
        SAMPLING_RATE,
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )
    return resampled.numpy()


def is_mute(waveform: np.ndarray) -> bool:
    """Whether a waveform in [-1, 1] is silent, or so nearly that nobody hears it."""
    return bool(np.abs(waveform).max(initial=0) < MUTE_PEAK)


def missing_share(path: Path) -> float:
    """The share in [0, 1] of its samples that a wav file lacks, by its own header: above 0 if it was cut off.

    0 for other formats (their readers find it out) and for headers that do not say a length.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        riff = file.read(12)
        if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
            return 0.0
        for _ in range(100):  # chunks; sound files have a few
            chunk = file.read(8)
            length = int.from_bytes(chunk[4:], "little")
            if len(chunk) < 8 or length >= OPEN_LENGTH:
                return 0.0
            if chunk[:4] == b"data":
                return max(0, file.tell() + length - size) / max(1, length)
            file.seek(length + length % 2, 1)
    return 0.0


def encode_wav(samples: np.ndarray) -> bytes:
    """A wav file of 16 bits at 16 kHz; `samples` are int16, or float in [-1, 1]."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def encode_clip(waveform: np.ndarray) -> bytes:
    """The wav file of a clip's waveform, rounded to 16 bits: exactly what a file of 16 bits holds."""
    # libsndfile reads 32768 as 1, so this factor writes 16-bit sounds unchanged.
    samples = np.round(waveform.astype(np.float64) * 32768)
    return encode_wav(np.clip(samples, -32768, 32767).astype(np.int16))
