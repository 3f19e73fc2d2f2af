"""Synthetic clips of any kind, and one tiny model."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

# 3x3 matrices of an mp4 track's header, 16.16 fixed point; degrees clockwise
MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model(write_model) -> str:
    """A `from_pretrained` folder of a model without training: its masks mean nothing."""
    return write_model(deform_attn_backend="reference")


@pytest.fixture(scope="session")
def pipe(tiny_model):
    from transformers import pipeline

    return pipeline("audio-visual-segmentation", model=tiny_model, device="cpu")


def picture(index: int, width: int, height: int) -> np.ndarray:
    """A dark picture whose red corner, a quarter of it at the top left, says which frame it is by its blue."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[: height // 2, : width // 2] = (200, 30, 10 * index % 250)
    return image


def write_clip(
    path: Path,
    seconds: float = 1.0,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    audio: str | None = "aac",
    audio_rate: int = 44100,
    waveform: np.ndarray | None = None,
    times: list[float] | None = None,
    rotation: int = 0,
    pixel_aspect: Fraction = Fraction(1),
    start: float = 0.0,
    group: int = 12,
) -> Path:
    """A clip of red corners and a tone of 440 Hz, or `waveform` (channels, samples); `times` are the frames' own.

    Every `group`th frame at least can be read by itself.
    """
    import av

    times = [index / rate for index in range(round(seconds * rate))] if times is None else times
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        time_base = Fraction(1, rate if path.suffix == ".avi" else 1000)  # avi has nothing but a rate
        stream.codec_context.time_base, stream.codec_context.gop_size = time_base, group
        stream.codec_context.sample_aspect_ratio = pixel_aspect
        sound = container.add_stream(audio, rate=audio_rate, layout="stereo") if audio else None
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.time_base, frame.pts = time_base, round((time + start) / time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            if waveform is None:
                tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * audio_rate)) / audio_rate)
                waveform = np.stack([tone, tone])
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform, np.float32), "fltp", "stereo")
            frame.sample_rate, frame.time_base = audio_rate, Fraction(1, audio_rate)
            frame.pts = round(start * audio_rate)
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    if rotation:
        data = bytearray(path.read_bytes())
        place = data.index(b"tkhd") + 4 + 40  # of the first track, the video
        a, b, c, d = (value << 16 for value in MATRICES[rotation])
        data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
    return path


@pytest.fixture
def clip(tmp_path):
    """clip(name, …): a clip in the test's folder."""
    return lambda name="clip.mp4", **options: write_clip(tmp_path / name, **options)


@pytest.fixture
def read():
    """read(path): (times, upright RGB frames) as FFmpeg shows them, without our reader. Alpha stays: RGBA."""

    def read(path, decoder: str | None = None):
        import av

        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if decoder:
                context = av.CodecContext.create(decoder, "r")
                packets = [packet for packet in container.demux(stream) if packet.dts is not None]
                frames = [frame for packet in [*packets, None] for frame in context.decode(packet)]
            else:
                frames = list(container.decode(stream))
            times = [float(frame.pts * stream.time_base) for frame in frames]
        alpha = "a" in frames[0].format.name
        return times, np.stack([frame.to_ndarray(format="rgba" if alpha else "rgb24") for frame in frames])

    return read


@pytest.fixture
def read_sound():
    """read_sound(path): (codec, rate, samples (n,)) of the sound track, or None."""

    def read_sound(path):
        import av

        with av.open(str(path)) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp")
            frames = [resampled for frame in container.decode(stream) for resampled in resampler.resample(frame)]
            samples = np.concatenate([frame.to_ndarray().mean(0) for frame in frames])
            return stream.codec.canonical_name, stream.rate, samples

    return read_sound
