"""The sounds that a model can hear with a video: the video's own sound, silence, noise, or another recording.

A sound is read forwards, second by second; earlier samples are dropped.
"""

import os
from collections.abc import Iterator

import numpy as np

from ..log_mel import MIN_SAMPLES, SAMPLE_RATE
from .video import decode, open_media, placed_samples


class Silence:
    """Zeros, and the base of the other sounds. `length` is that of a sound that ends, in samples."""

    length: int | None = None

    def read(self, start: int, stop: int) -> np.ndarray:
        """float32 samples `start` to `stop`, both counted at 16 kHz from the video's first frame."""
        return np.zeros(stop - start, np.float32)


class Noise(Silence):
    """White noise, uniform in [-1, 1) as in the benchmark; a second of it depends on the seed and its place alone."""

    def __init__(self, seed: int = 42):
        self.seed = seed

    def read(self, start: int, stop: int) -> np.ndarray:
        first = start // SAMPLE_RATE
        seconds = [
            np.random.default_rng([self.seed, second]).uniform(-1, 1, SAMPLE_RATE).astype(np.float32)
            for second in range(first, max(first, (stop - 1) // SAMPLE_RATE) + 1)
        ]
        return np.concatenate(seconds)[start - first * SAMPLE_RATE : stop - first * SAMPLE_RATE]


class Siren(Silence):
    """A two-tone siren, 0.6 s of 960 Hz and 0.6 s of 770 Hz in turn: the off-screen sound where no other is given."""

    def read(self, start: int, stop: int) -> np.ndarray:
        time = np.arange(start, stop) / SAMPLE_RATE
        pitch = np.where(time % 1.2 < 0.6, 960.0, 770.0)  # Hz
        tone = sum(np.sin(2 * np.pi * harmonic * pitch * time) / harmonic for harmonic in (1, 2, 3))
        return (0.3 * tone).astype(np.float32)


class Unseen(Silence):
    """A sound that no training of this project uses, one of `UNSEEN_KINDS`: five seconds of it, repeated."""

    def __init__(self, kind: str, seed: int = 42):
        # Only here: who loads a model need not have the data set's package.
        from avsbench_robust_dataset.timbres import UNSEEN_KINDS, unseen_sound

        if kind not in UNSEEN_KINDS:
            raise ValueError(f"Expected one of {', '.join(UNSEEN_KINDS)} as unseen sound, got {kind!r}.")
        self._samples = unseen_sound(kind, np.random.default_rng(seed))

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._samples.take(range(start, stop), mode="wrap")


class Muted(Silence):
    """Another sound, silent in two of each five seconds, which are drawn as those of the condition `muted`."""

    def __init__(self, sound: Silence, seed: int = 42):
        self._sound, self._seed = sound, seed

    @property
    def length(self) -> int | None:
        return self._sound.length

    def is_heard(self, second: int) -> bool:
        """Whether the sound is there from `second` to `second + 1`, counted from the video's first frame."""
        # Only here: who loads a model need not have the data set's package.
        from avsbench_robust_dataset.conditions import draw_heard_frames

        heard = draw_heard_frames(np.random.default_rng([self._seed, second // 5]))
        return bool(heard[second % 5])

    def read(self, start: int, stop: int) -> np.ndarray:
        samples = self._sound.read(start, stop).copy()
        for second in range(start // SAMPLE_RATE, (stop - 1) // SAMPLE_RATE + 1):
            if not self.is_heard(second):
                samples[max(0, second * SAMPLE_RATE - start) : (second + 1) * SAMPLE_RATE - start] = 0
        return samples


class Recording(Silence):
    """The sound of a file, at 16 kHz, averaged over its channels; zeros before and after it.

    Args:
        path: anything that FFmpeg reads, with sound; else FileNotFoundError or ValueError.
        start: seconds; the file's time that is time 0 here. None: its first sample's.
        loop: begins again at its end.
    """

    def __init__(self, path: str | os.PathLike, start: float | None = None, loop: bool = False):
        self.path, self.start, self.loop = path, start, loop
        with open_media(path) as container:
            if not container.streams.audio:
                raise ValueError(f"Expected a file with sound, but {path} has no audio track.")
        self._offset = 0  # of the buffer's first sample
        self._buffer = np.zeros(0, np.float32)
        self._chunks = self._decode()
        self._next = None  # of `_chunks`, read but not yet in the buffer

    def read(self, start: int, stop: int) -> np.ndarray:
        """As `Silence.read`; `start` may go back by a second, not more. `length` is known once the end was read."""
        while self.length is None and self._offset + len(self._buffer) < stop:
            self._read_chunk()
        keep = max(0, min(start - 2 * MIN_SAMPLES - self._offset, len(self._buffer)))
        self._buffer, self._offset = self._buffer[keep:], self._offset + keep
        samples = self._buffer[max(0, start - self._offset) : max(0, stop - self._offset)]
        return np.pad(samples, (0, stop - start - len(samples)))

    def _read_chunk(self) -> None:
        end = self._offset + len(self._buffer)
        position, chunk = self._next or next(self._chunks, (None, None))
        self._next = None
        if chunk is None:
            self.length = end
            return
        if position > end + SAMPLE_RATE:  # a long hole, a second at a time
            self._next = position, chunk
            position, chunk = end, np.zeros(SAMPLE_RATE, np.float32)
        # A hole becomes zeros; what lies before time 0 or is there already is left out.
        gap = np.zeros(max(0, position - end), np.float32)
        self._buffer = np.concatenate([self._buffer, gap, chunk[max(0, end - position) :]])

    def _decode(self) -> Iterator[tuple[int, np.ndarray]]:
        """The place of the first sample, and samples."""
        begin = 0
        while True:
            end = begin
            for position, chunk in self._decode_once():
                end = max(end, begin + position + len(chunk))
                yield begin + position, chunk
            if not self.loop:
                return
            if end == begin:
                raise ValueError(f"Expected a file with sound, but the audio track of {self.path} is empty.")
            begin = end
            if begin < SAMPLE_RATE:  # `_buffer` holds it all; a file of one sample, opened for each, takes minutes
                repeated = np.tile(self._buffer, SAMPLE_RATE // begin + 1)
                while True:
                    yield begin, repeated
                    begin += len(repeated)

    def _decode_once(self) -> Iterator[tuple[int, np.ndarray]]:
        with open_media(self.path) as container:
            frames = decode(container, container.streams.best("audio"), self.path)
            # The channels stay apart: FFmpeg's own mix of floats is not their mean but louder.
            for position, samples in placed_samples(frames, SAMPLE_RATE, self.start):
                yield position, samples.mean(0, dtype=np.float32)


def hear(sound: Silence, time: float) -> np.ndarray:
    """The 0.975 s around `time` seconds, float32 `(15600,)` at 16 kHz: one log-mel example.

    At the sound's beginning and end the window moves inwards, so that no moment of a sound hears half silence. Of a
    sound that is shorter than the window, or over, what there is comes with zeros.
    """
    center = round(time * SAMPLE_RATE)
    start = max(0, center - MIN_SAMPLES // 2)
    window = sound.read(start, start + MIN_SAMPLES)
    if sound.length is not None and center < sound.length < start + MIN_SAMPLES:
        start = max(0, sound.length - MIN_SAMPLES)
        window = sound.read(start, start + MIN_SAMPLES)
    return window


def as_chunks(sound: Silence, gain: float = 1.0) -> Iterator[np.ndarray]:
    """The sound from time 0 on in tenths of a second, without end, for a `VideoWriter`."""
    position, size = 0, SAMPLE_RATE // 10
    while True:
        yield gain * sound.read(position, position + size)
        position += size
