"""Video files in and out, a few frames at a time, at their own times, sizes and rotation, by PyAV."""

import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.format import ContainerFormat
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

# Suffix of an output -> its codecs of pictures and sound.
CODECS = {
    ".mp4": ("libx264", "aac"),
    ".m4v": ("libx264", "aac"),
    ".mov": ("libx264", "aac"),
    ".mkv": ("libx264", "aac"),
    ".webm": ("libvpx-vp9", "libopus"),
}
# Sounds that are taken over as they are, if the output's format allows; others are encoded anew. FFmpeg would also put
# Vorbis into .mp4 and PCM into nearly everything, which players do not expect.
COPIED_CODECS = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}
EDIT_LISTS = {".mp4", ".m4v", ".mov"}  # formats that can begin before time 0
# Suffix of an output with transparency -> codec and pixel format. qtrle is lossless.
ALPHA_CODECS = {".webm": ("libvpx-vp9", "yuva420p"), ".mov": ("qtrle", "argb")}
CODEC_OPTIONS = {
    # Without B-frames the last packet tells how long an .mp4 lasts, also where frames come at uneven times.
    "libx264": {"crf": "18", "preset": "veryfast", "bf": "0"},
    "libvpx-vp9": {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"},
}
# FFmpeg's names of formats that name other files, addresses or devices; their readers are never run.
PLAYLISTS = set("hls dash concat sdp imf webm_dash_manifest vobsub mlv rtp rtsp sap lavfi".split())
MAX_PIXELS = 2**25  # of a picture, as for the data set: 8K has 33,177,600
MAX_GAP = 0.1  # seconds; a longer hole between the times of two audio frames becomes silence
MAX_JUMP = 86400.0  # seconds; times that go forward further are damage: years of sound would have to be written
STEP_BACK = 1.0  # seconds; times that go back further begin anew, as in joined files
DEFAULT_RATE = Fraction(25)  # frames per second, where a file names neither a rate nor times


@dataclass(frozen=True)
class VideoInfo:
    """What is the same for all frames of a video.

    Attributes:
        width, height: pixels, upright: after the rotation.
        rotation: degrees counterclockwise that make the stored frames upright, one of 0, 90, 180, 270.
        rate: mean frames per second.
        time_base: seconds; all times are multiples of it.
        start: seconds; the first frame's time in the file, which is time 0 here.
        pixel_aspect: width of a pixel over its height, upright.
        num_frames: as far as the file says, else None.
        end: seconds from the first frame until the last one is over, as far as the file says, else None.
        has_audio: whether there is a sound track.
    """

    path: Path
    width: int
    height: int
    rotation: int
    rate: Fraction
    time_base: Fraction
    start: float
    pixel_aspect: Fraction
    num_frames: int | None
    end: float | None
    has_audio: bool


@contextmanager
def open_media(path: str | os.PathLike) -> Iterator[av.container.InputContainer]:
    """An opened file; FileNotFoundError where there is none, ValueError where FFmpeg does not read it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a video or audio file, but {path} does not exist or is a folder.")
    try:
        # `max_pixels` holds for the frames that FFmpeg decodes to learn about a stream.
        options = {"protocol_whitelist": "file", "format_whitelist": _formats(), "max_pixels": str(MAX_PIXELS)}
        # FFmpeg reads the part of a bare name before a colon as a protocol.
        container = av.open(os.path.abspath(path), options=options, metadata_errors="replace")
    except av.ArgumentError as error:  # not on the list of formats
        raise ValueError(
            f"Expected a video or audio file, but {path} is a playlist, which names other files. Give the file."
        ) from error
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"Expected a video or audio file, but FFmpeg cannot open {path} ({_reason(error)}). It may be damaged, "
            "cut off or something else; if no player opens it either, copy or record it again."
        ) from error
    with container:
        kind = container.format.name
        if kind == "tty":  # FFmpeg draws letters
            raise ValueError(f"Expected a video or audio file, but {path} is a text file.")
        if kind == "image2" or kind.endswith("_pipe"):  # FFmpeg shows it for 40 ms
            raise ValueError(
                f"Expected a video or audio file, but {path} is a still picture. The pipeline takes pictures as a "
                "clip, {'frames': [image, …], 'audio': waveform, 'sampling_rate': Hz}, with a second of sound each."
            )
        yield container


def decode(container, stream, path: str | os.PathLike) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """The frames of a stream, in the order in which they are shown.

    Raises ValueError for damaged data, with the time of the last good frame, and for a jump of over a day.
    """
    time = None
    frames = container.decode(stream)
    while True:
        try:
            frame = next(frames)
        except StopIteration:
            return
        except (av.FFmpegError, OSError) as error:
            raise ValueError(
                f"Expected readable {stream.type} in {path}, but its data are damaged after {time or 0:.2f} s "
                f"({_reason(error)}). Copy it again, or leave out what cannot be read: "
                f"ffmpeg -i {Path(path).name} repaired.mp4"
            ) from error
        if frame.time is not None:
            _check_jump(path, time, frame.time)
            time = frame.time
        yield frame


def _check_jump(path: str | os.PathLike, before: float | None, time: float) -> None:
    if before is not None and time - before > MAX_JUMP:
        raise ValueError(
            f"Expected the times of {path} to be less than a day apart, but {time:.1f} s follows {before:.1f} s. "
            "They are damaged; record the file again, or cut it where it breaks off."
        )


@cache
def _formats() -> str:
    names = {name for known in av.formats_available for name in ContainerFormat(known).name.split(",")}
    return ",".join(names - PLAYLISTS)


def placed_samples(
    frames: Iterable[av.AudioFrame], rate: int, start: float | None = None, layout: str | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """The samples of a sound at `rate` Hz, float32 `(channels, samples)`, and the place of the first of each chunk.

    Places are counted from `start` seconds, None for the first frame's time; a hole in the times is left out. Where
    rate, layout or sample format change midway a new resampler begins; `layout` None keeps the frames'.
    """
    resampler = setup = position = None
    expected = 0.0  # time of the next frame
    for frame in chain(frames, [None]):
        following = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
        chunks = resampler.resample(None) if resampler is not None and following != setup else []
        if frame is not None:
            if following != setup:
                resampler, setup = av.AudioResampler(format="fltp", layout=layout, rate=rate), following
            chunks += resampler.resample(frame)
            time = expected if frame.time is None else frame.time
            if position is None:
                position = round((time - start) * rate) if start is not None else 0
            elif time - expected > MAX_GAP:
                position += round((time - expected) * rate)
            expected = time + frame.samples / frame.sample_rate
        for chunk in chunks:
            yield position, chunk.to_ndarray()
            position += chunk.samples


def read_info(path: str | os.PathLike) -> VideoInfo:
    """What is the same for all frames of a video; raises as `open_media`, and ValueError where it has no frame."""
    with open_media(path) as container:
        stream = _video_stream(container, path)
        frame = next(decode(container, stream, path), None)
        if frame is None:
            raise ValueError(
                f"Expected a video, but {path} has a video track without a single frame. It may be cut off; copy or "
                "record it again."
            )
        rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
        start = frame.time or 0.0
        end = float(stream.duration * stream.time_base) if stream.duration else _matroska_end(stream, start)
        pixel_aspect = stream.sample_aspect_ratio or Fraction(1)
        rotation = round(frame.rotation / 90) * 90 % 360
        turned = rotation % 180 == 90
        return VideoInfo(
            path=Path(path),
            width=frame.height if turned else frame.width,
            height=frame.width if turned else frame.height,
            rotation=rotation,
            rate=rate,
            time_base=stream.time_base or 1 / rate,
            start=start,
            pixel_aspect=1 / pixel_aspect if turned else pixel_aspect,
            num_frames=stream.frames or (end and round(end * rate)) or None,
            end=end,
            has_audio=bool(container.streams.audio),
        )


def read_frames(info: VideoInfo, max_seconds: float = math.inf) -> Iterator[tuple[float, av.VideoFrame]]:
    """Each frame and its time in seconds, from 0 and strictly increasing.

    Frames that say no time, and the first of those whose times begin anew, as in joined files, follow at the mean
    rate; frames that do not go forward are left out. Raises ValueError for damaged data and more than `max_seconds`.
    """
    _check_length(info, info.end or 0, max_seconds)
    last, start = -1.0, info.start
    with open_media(info.path) as container:
        for frame in decode(container, _video_stream(container, info.path), info.path):
            following = max(0.0, last + float(1 / info.rate))
            time = frame.time - start if frame.time is not None else following
            if time < last - STEP_BACK:
                start, time = frame.time - following, following
            if time > last:
                _check_length(info, time, max_seconds)
                yield time, frame
                last = time


def _check_length(info: VideoInfo, seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise ValueError(
            f"Expected a clip of at most {max_seconds} s, but {info.path} lasts {seconds:.1f} s. Cut it: "
            f"ffmpeg -i {info.path.name} -t {max_seconds} short.mp4"
        )


def to_rgb(frame: av.VideoFrame, info: VideoInfo) -> np.ndarray:
    """The upright picture, uint8 `(height, width, 3)` of `info`, from any depth and colour format."""
    turned = info.rotation % 180 == 90
    # A size that changes within the video becomes that of its first frame.
    width, height = (info.height, info.width) if turned else (info.width, info.height)
    rgb = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(rgb, info.rotation // 90))


class VideoWriter:
    """Writes frames at their own times, and a sound beside them; the file appears whole, at the end, or not at all.

    Args:
        path: `CODECS` (with `alpha`: `ALPHA_CODECS`) lists the suffixes; others are a ValueError.
        info: of the video that the frames come from; gives times and the pixels' aspect.
        size: (width, height) of the frames. With an odd one H.264 keeps the full colour resolution (4:4:4), which
            some players do not know.
        copy_audio: take over the sound of `info.path`: unchanged if the file format allows, else encoded anew.
        audio: (rate in Hz, chunks of mono float32 samples from time 0 on) instead; only read as far as the frames go.
        alpha: frames are RGBA.

    Every method raises OSError where FFmpeg cannot write.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        info: VideoInfo,
        size: tuple[int, int],
        copy_audio: bool = False,
        audio: tuple[int, Iterable[np.ndarray]] | None = None,
        alpha: bool = False,
    ):
        self.path = Path(path)
        check_suffix(self.path, alpha)
        self._info = info
        self._format = "rgba" if alpha else "rgb24"
        self._partial = _partial(self.path)
        self._source = ExitStack()  # closes the file whose sound is copied
        self._sound = None
        self._encodes_sound = False
        self._audio = iter(())
        self._last = 0.0
        with self._writing():
            self._container = av.open(os.path.abspath(self._partial), "w")
        try:
            with self._writing():
                self._add_video(size, alpha)
                if copy_audio and info.has_audio:
                    self._copy_audio()
                elif audio is not None:
                    rate, chunks = audio
                    self._add_sound(rate, layout="mono")
                    self._audio = self._encoded_packets(_one_after_the_other(chunks))
                # The next packets of sound, held until the pictures have come as far.
                self._waiting = next(self._audio, None)
        except BaseException:
            self.abandon()
            raise
        self._plays_on = audio is None

    def write(self, frame: np.ndarray, time: float) -> None:
        """Adds a frame, uint8 `(height, width, 3 or 4)`, at `time` seconds, later than the one before."""
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=self._format)
        if self._video.pix_fmt.startswith("yuv"):
            # BT.709 and limited range, and said so: players guess differently by size where nothing is said.
            picture = picture.reformat(
                format=self._video.pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
        picture.time_base = self._info.time_base
        picture.pts = round(time / self._info.time_base)
        with self._writing():
            self._container.mux(self._video.encode(picture))
        self._write_audio_until(time)
        self._last = time

    def finish(self) -> None:
        """Writes what is left, a copied sound to its end, and closes the file."""
        self._write_audio_until(math.inf if self._plays_on else self._last + float(1 / self._info.rate))
        with self._writing():
            self._container.mux(self._video.encode(None))
            if self._encodes_sound:
                self._container.mux(self._sound.encode(None))
            self._container.close()
        self._source.close()

    def publish(self) -> None:
        """Puts the finished file in its place."""
        os.replace(self._partial, self.path)

    def abandon(self) -> None:
        """Leaves nothing behind."""
        try:
            self._container.close()
        except (av.FFmpegError, OSError):
            pass  # nothing was written yet, or the disk is full
        self._source.close()
        self._partial.unlink(missing_ok=True)

    def _add_video(self, size: tuple[int, int], alpha: bool) -> None:
        suffix = self.path.suffix.lower()
        codec = ALPHA_CODECS[suffix][0] if alpha else CODECS[suffix][0]
        rate = self._info.rate
        self._video = self._container.add_stream(codec, rate=rate, options=dict(CODEC_OPTIONS.get(codec, {})))
        self._video.width, self._video.height = size
        self._video.codec_context.time_base = self._info.time_base
        self._video.codec_context.sample_aspect_ratio = self._info.pixel_aspect
        if alpha:
            self._video.pix_fmt = ALPHA_CODECS[suffix][1]
        elif codec == "libx264" and (size[0] % 2 or size[1] % 2):
            self._video.pix_fmt = "yuv444p"
        else:
            self._video.pix_fmt = "yuv420p"
        if self._video.pix_fmt.startswith("yuv"):
            context = self._video.codec_context
            context.colorspace = Colorspace.ITU709
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            context.color_range = ColorRange.MPEG

    def _copy_audio(self) -> None:
        container = self._source.enter_context(open_media(self._info.path))
        stream = container.streams.best("audio")
        if stream.codec.canonical_name in COPIED_CODECS & self._container.supported_codecs:
            self._sound = self._container.add_stream_from_template(stream)
            self._audio = self._copied_packets(container, stream)
        else:
            # A rate that both AAC and Opus take.
            self._add_sound(stream.rate if stream.rate in (8000, 12000, 16000, 24000, 48000) else 48000)
            frames = decode(container, stream, self._info.path)
            placed = placed_samples(frames, self._sound.rate, self._info.start, self._sound.layout.name)
            self._audio = self._encoded_packets(placed)

    def _copied_packets(self, container, stream):
        offset, last = round(self._info.start / stream.time_base), -math.inf
        for packet in container.demux(stream):
            if packet.dts is None:
                continue  # the end of the stream
            if packet.dts - offset < last - STEP_BACK / stream.time_base:
                offset = packet.dts - last - (packet.duration or 1)  # times begin anew, as in joined files
            if packet.dts - offset <= last:
                continue  # a time that does not go forward
            packet.pts = packet.pts - offset if packet.pts is not None else packet.dts - offset
            packet.dts -= offset
            if math.isfinite(last):
                _check_jump(self._info.path, *(float(time * stream.time_base) for time in (last, packet.dts)))
            last = packet.dts
            if packet.pts + (packet.duration or 0) <= 0 and self.path.suffix.lower() not in EDIT_LISTS:
                continue  # what only prepares AAC's decoder would move all times, since none may lie before 0
            packet.stream = self._sound
            yield float(packet.pts * stream.time_base), [packet]

    def _add_sound(self, rate: int, **options) -> None:
        self._sound = self._container.add_stream(CODECS[self.path.suffix.lower()][1], rate=rate, **options)
        self._encodes_sound = True

    def _encoded_packets(self, placed: Iterable[tuple[int, np.ndarray]]):
        """The time and the packets of samples and their places; samples before the first picture are left out."""
        for position, samples in placed:
            before = max(0, -position)
            if before >= samples.shape[1]:
                continue
            samples = np.ascontiguousarray(samples[:, before:], np.float32)
            frame = av.AudioFrame.from_ndarray(samples, "fltp", self._sound.layout.name)
            frame.sample_rate, frame.pts = self._sound.rate, position + before
            frame.time_base = Fraction(1, frame.sample_rate)
            yield float(frame.pts * frame.time_base), self._sound.encode(frame)

    def _write_audio_until(self, time: float) -> None:
        while self._waiting is not None and self._waiting[0] <= time:
            with self._writing():
                self._container.mux(self._waiting[1])
                self._waiting = next(self._audio, None)

    @contextmanager
    def _writing(self):
        try:
            yield
        except av.FFmpegError as error:
            raise OSError(
                f"FFmpeg cannot write {self.path} ({_reason(error)}). Is the folder writable, is there space? Another "
                "suffix chooses another format: .mp4, .mkv, .webm."
            ) from error


class MaskFolderWriter:
    """Writes RGBA frames as `000000.png`, `000001.png`, … into a new folder, which appears whole or not at all."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        check_mask_output(self.path)
        self._partial = _partial(self.path)
        self._partial.mkdir()
        self._count = 0

    def write(self, frame: np.ndarray, time: float) -> None:
        Image.fromarray(frame).save(self._partial / f"{self._count:06d}.png", compress_level=1)
        self._count += 1

    def finish(self) -> None:
        pass

    def publish(self) -> None:
        os.replace(self._partial, self.path)  # an empty folder may be there already

    def abandon(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)


def mask_writer(path: str | os.PathLike, info: VideoInfo, size: tuple[int, int]) -> VideoWriter | MaskFolderWriter:
    """Writes transparent masks: a video where the path has a suffix, else a folder."""
    return VideoWriter(path, info, size, alpha=True) if Path(path).suffix else MaskFolderWriter(path)


def check_suffix(path: Path, alpha: bool = False) -> None:
    """Raises ValueError where the suffix names no format that can be written, or the path is a folder's."""
    if path.suffix.lower() not in (ALPHA_CODECS if alpha else CODECS):
        wanted = f"a video ({', '.join(CODECS)}) as output"
        if alpha:
            wanted = f"{', '.join(ALPHA_CODECS)} (videos with transparency) or a folder for PNG files"
        raise ValueError(f"Expected {wanted}, got {path}.")
    if path.is_dir():
        raise ValueError(f"Expected a file's name as output, but {path} is a folder.")


def check_mask_output(path: Path) -> None:
    """Raises ValueError where masks cannot be written: neither a known suffix nor a new or empty folder."""
    if path.suffix:
        check_suffix(path, alpha=True)
    elif path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"Expected a new or empty folder for the masks, but {path} holds something. Name another.")


def _partial(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")


def _video_stream(container, path: str | os.PathLike):
    # A song's cover picture is a video stream, too.
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        if container.streams.audio:
            raise ValueError(
                f"Expected a video, but {path} has only sound. A video may be shown with this sound: `audio` names it."
            )
        raise ValueError(
            f"Expected a video, but {path} has neither picture nor sound. It may be cut off; copy or record it again."
        )
    stream = streams[0]
    if stream.width * stream.height > MAX_PIXELS:
        raise ValueError(
            f"Expected pictures of usual size, but {path} has {stream.width} x {stream.height} pixels, more than "
            f"{MAX_PIXELS}. Scale it down: ffmpeg -i {Path(path).name} -vf scale=1920:-2 smaller.mp4"
        )
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # a later picture may have another size
    stream.thread_type = "AUTO"
    return stream


def _matroska_end(stream, start: float) -> float | None:
    """`VideoInfo.end` of .mkv and .webm files, which many programs tag with the time of each track's end."""
    try:
        hours, minutes, seconds = map(float, stream.metadata["DURATION"].split(":"))
    except (KeyError, ValueError):
        return None
    return 3600 * hours + 60 * minutes + seconds - start


def _one_after_the_other(chunks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    position = 0
    for chunk in chunks:
        yield position, chunk[None]
        position += len(chunk)


def _reason(error: Exception) -> str:
    return error.strerror or str(error)
