"""`pipeline("audio-visual-segmentation")` on videos: masks at the video's own size and rate."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging

from ..log_mel import SAMPLE_RATE, log_mel
from ..pipeline_avsegformer import AudioVisualSegmentationPipeline
from .explain import Heard
from .overlay import Panels, draw_overlay, draw_transparent
from .sounds import Muted, Noise, Recording, Silence, Siren, Unseen, as_chunks, hear
from .video import VideoInfo, VideoWriter, mask_writer, read_frames, read_info, to_rgb

logger = logging.get_logger(__name__)

CONDITIONS = ("positive", "silence", "noise", "off_screen")
OUTPUTS = ("output", "masks", "panels")
BATCH = 5  # frames that pass the model together, AVSBench's clip; frames are independent of each other
CUT_OFF = 0.5  # seconds; a warning names a video that ends this much earlier than its header says
NOISE_GAIN = 0.1  # the model's noise has full scale; the written video contains a tenth of it


class VideoSegmentationPipeline(AudioVisualSegmentationPipeline):
    """Segments what is heard in a video; clips of frames and sound as `AudioVisualSegmentationPipeline` does.

    The model runs on `masks_per_second` frames a second, each with the 0.975 s of sound around it. Between two of them
    the mask of a frame comes from the logits of both, interpolated linearly in time; after the last one it stays.
    Times, size and rotation of the video are kept, and a few frames at most are held in memory. A video without a
    sound track is heard as silence. Every sound passes VGGish's log-mel, whatever the processor's `front_end`.

    Args of a call:
        inputs: the path of a video; a clip as `AudioVisualSegmentationPipeline` takes it; or a list or an iterator of
            either.
        output (path, *optional*): the video with the mask drawn over it (.mp4, .mov, .mkv, .webm), with the sound that
            the model heard.
        masks (path, *optional*): the masks, opaque on transparent ground: a video (.webm, .mov) or a new folder, which
            is filled with PNG files.
        panels (path, *optional*): a video of the four conditions side by side, with the video's own sound; with
            `unseen`, of five.
        condition (`str`, defaults to `"positive"`, with `audio` to `"off_screen"`, with `unseen` to `"unseen"`): what
            the model hears: positive (the video's own sound), silence, noise, off_screen or unseen.
        audio (path, *optional*): the off-screen sound, repeated until the video ends. Without it, it is a siren.
        unseen (`str`, *optional*): a sound that no training of this project uses, one of
            `avsbench_robust_dataset.timbres.UNSEEN_KINDS`: alarm, wail, rain, engine, choir, clock, animal, sweeps,
            bells or guitar.
        threshold (`float`, defaults to 0.5): a pixel belongs to the mask above this probability.
        masks_per_second (`float`, defaults to 4): how often the model looks; above the video's rate, at every frame.
        max_seconds (`float`, *optional*): a longer video is refused.
        batch_size (`int`, defaults to 5): frames of a video that pass the model together.
        progress (`bool` or a class like `tqdm`, defaults to False): shows a progress bar, of that class.

    Returns:
        For a video: a dict of the paths that were asked for (`write` returns what was marked); without any, a list
        with `{"timestamp": seconds, "mask": PIL image, 0 or 255, of the video's size, "similarity": cosine of sound
        and picture in [-1, 1], None without a similarity head}` for each of its frames (for long videos use `stream`).
        For a clip: the same list, one mask a frame. For a list, a list of these, and for an iterator a generator.

    Raises:
        FileNotFoundError, ValueError: no such video, one that cannot be read, or an argument that does not fit. Then
            nothing is written.

    Example:

    ```python
    segment = pipeline("audio-visual-segmentation", model="runs/s4")
    segment("clip.mp4", output="out.mp4", panels="panels.mp4")
    ```"""

    def __call__(self, inputs, **options):
        paths = {name: Path(options[name]) for name in OUTPUTS if options.get(name) is not None}
        if isinstance(inputs, list | tuple | Iterator):
            if paths:
                raise ValueError("Expected one video with `output`, `masks` or `panels`; call once for each video.")
            return super().__call__(inputs, **options)
        num_workers = options.pop("num_workers", None)
        if not isinstance(inputs, str | os.PathLike):
            if paths or any(options.get(name) is not None for name in ("audio", "condition", "unseen")):
                raise ValueError(
                    "Expected a video's path with `output`, `masks`, `panels`, `condition`, `audio` or `unseen`; a "
                    "clip has its sound with it."
                )
            return super().__call__(inputs, threshold=options.get("threshold"), num_workers=num_workers)
        if paths:
            self.write(inputs, **options)
            return paths
        return [
            {
                "timestamp": moment["timestamp"],
                "mask": Image.fromarray(moment["mask"] * np.uint8(255)),
                "similarity": moment["similarity"],
            }
            for moment in self.stream(inputs, **options)
        ]

    def stream(
        self,
        video: str | os.PathLike,
        *,
        condition: str | None = None,
        audio: str | os.PathLike | None = None,
        unseen: str | None = None,
        **options,
    ) -> Iterator[dict]:
        """Each frame of a video with its mask, held in memory one at a time; arguments as in a call.

        Yields:
            `{"timestamp": seconds, "frame": uint8 (height, width, 3), "mask": bool (height, width), "similarity":
            float or None}`
        """
        condition = _condition(condition, audio, unseen)
        info = read_info(video)
        sound = _Sounds(info, audio, unseen).open(condition)
        for time, frame, (mask,), (similarity,) in self._masks(info, [sound], **options):
            similarity = None if math.isnan(similarity) else float(similarity)
            yield {"timestamp": time, "frame": frame, "mask": mask, "similarity": similarity}

    def write(
        self,
        video: str | os.PathLike,
        *,
        output: str | os.PathLike | None = None,
        masks: str | os.PathLike | None = None,
        panels: str | os.PathLike | None = None,
        condition: str | None = None,
        audio: str | os.PathLike | None = None,
        unseen: str | None = None,
        **options,
    ) -> dict[str, Heard]:
        """Writes what a call writes; arguments as in a call. Returns what was marked with each sound, by condition."""
        condition = _condition(condition, audio, unseen, alone=panels is None)
        paths = [Path(path).resolve() for path in (video, output, masks, panels) if path is not None]
        if len(set(paths)) < len(paths):
            raise ValueError(f"Expected outputs unlike each other and unlike the video, {video}.")
        info = read_info(video)
        sounds = _Sounds(info, audio, unseen)
        size = (info.width, info.height)
        views = []
        if output is not None:
            track = sounds.track(condition)
            views.append(([condition], partial(VideoWriter, output, info, size, **track), draw_overlay))
        if masks is not None:
            views.append(
                ([condition], partial(mask_writer, masks, info, size), lambda _, mask: draw_transparent(mask))
            )
        if panels is not None:
            names = sounds.conditions()
            layout = Panels([sounds.label(name) for name in names], size)
            writer = partial(VideoWriter, panels, info, layout.size, copy_audio=True)
            views.append((names, writer, layout.draw_overlays))
        return self._write(sounds, views, **options)

    def compare(
        self,
        video: str | os.PathLike,
        folder: str | os.PathLike,
        *,
        audio: str | os.PathLike | None = None,
        unseen: str | None = None,
        muted: bool = False,
        **options,
    ) -> dict[str, Heard]:
        """Writes a video for each sound, `folder/{condition}.mp4`: the masks, and the sound that the model heard.

        Arguments as in a call, and `muted`: the own sound again, silent in two of each five seconds. Videos are at
        most 960 pixels wide. Returns what was marked with each sound, by condition.
        """
        info = read_info(video)
        sounds = _Sounds(info, audio, unseen, muted)
        views = []
        for name in sounds.conditions():
            layout = Panels([sounds.label(name)], (info.width, info.height))
            path, size, track = Path(folder) / f"{name}.mp4", layout.size, sounds.track(name)
            views.append(([name], partial(VideoWriter, path, info, size, **track), layout.draw_overlays))
        # Pictures and masks in the size that is shown: of a large video, most of the work is in those of its own size.
        width, height = layout.panel_size
        return self._write(sounds, views, shown=replace(info, width=width, height=height), **options)

    def _write(self, sounds: "_Sounds", views: Sequence[tuple], **options) -> dict[str, Heard]:
        """Writes views: the conditions of each, what opens its writer, and what draws a frame with their masks."""
        names = list(dict.fromkeys(name for conditions, _, _ in views for name in conditions))
        heard = {name: Heard(sounds.label(name)) for name in names}
        opened = [sounds.open(name) for name in names]
        with ExitStack() as stack:
            writers = []
            for _, open_writer, _ in views:
                writers.append(open_writer())
                stack.callback(writers[-1].abandon)
            for time, frame, masks, similarities in self._masks(sounds.info, opened, **options):
                drawn = dict(zip(names, masks, strict=True))
                for name, similarity in zip(names, similarities, strict=True):
                    heard[name].areas.append(float(drawn[name].mean()))
                    heard[name].similarities.append(float(similarity))
                for (conditions, _, draw), writer in zip(views, writers, strict=True):
                    writer.write(draw(frame, *(drawn[name] for name in conditions)), time)
            for writer in writers:
                writer.finish()
            for writer in writers:
                writer.publish()
            stack.pop_all()
        return heard

    def _masks(
        self,
        info: VideoInfo,
        sounds: Sequence,
        shown: VideoInfo | None = None,
        threshold: float | None = None,
        masks_per_second: float = 4.0,
        max_seconds: float = math.inf,
        batch_size: int | None = None,
        progress: bool | type[tqdm] = False,
    ) -> Iterator[tuple[float, np.ndarray, np.ndarray, np.ndarray]]:
        """Each frame's time, picture, masks, bool `(sounds, height, width)`, and similarities, `(sounds,)`.

        Pictures and masks have the size of `shown`, else the video's own, which the model sees in any case. Two
        readers of the video run side by side, one ahead for the model, so that no frame is held until the next look.
        """
        if not masks_per_second > 0:
            raise ValueError(f"Expected `masks_per_second` above 0, got {masks_per_second}.")
        parameters = self._postprocess_params | self._sanitize_parameters(threshold)[2]
        if batch_size is None:
            batch_size = self._batch_size or BATCH
        if batch_size < 1:
            raise ValueError(f"Expected a `batch_size` of at least 1, got {batch_size}.")
        shown = shown or info
        samples = self._sampled_logits(info, sounds, masks_per_second, max_seconds, batch_size)
        before = after = next(samples)
        show = progress if isinstance(progress, type) else tqdm
        with show(desc=info.path.name, total=info.num_frames, unit=" frames", disable=not progress) as bar:
            for time, frame in read_frames(info, max_seconds):
                while after[0] < time and (following := next(samples, None)) is not None:
                    before, after = after, following
                if after[0] < time:
                    before = after
                span = after[0] - before[0]
                weight = (time - before[0]) / span if span else 1.0
                logits, similarity = (torch.lerp(before[part], after[part], weight) for part in (1, 2))
                masks = self._threshold(logits[:, None], (shown.height, shown.width), parameters.get("threshold", 0.5))
                yield time, to_rgb(frame, shown), masks[:, 0], similarity.numpy()
                bar.update()
            bar.total = bar.n  # `num_frames` is often an estimate
        over = time + max(float(1 / info.rate), float((frame.duration or 0) * info.time_base))
        if info.end is not None and over < info.end - CUT_OFF:
            logger.warning(f"{info.path} ends after {over:.1f} s but says {info.end:.1f} s: it may be cut off.")

    def _sampled_logits(
        self, info, sounds: Sequence, rate: float, max_seconds: float, batch_size: int
    ) -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:
        """Time, logits `(sounds, height, width)`, similarity `(sounds,)` of the first frame of each `1 / rate` s."""
        times, frames, features = [], [], []

        def run():
            inputs = self.processor(frames=[frames])
            # (frames, sounds, 1, 96, 64) to (sounds, frames, …)
            inputs["input_features"] = torch.from_numpy(np.stack(features)).transpose(0, 1)
            outputs = self.forward(inputs)
            logits, similarity = outputs["logits"].float(), outputs.get("similarity")
            similarity = torch.full(logits.shape[:2], math.nan) if similarity is None else similarity.float()
            yield from zip(times, logits.transpose(0, 1), similarity.transpose(0, 1), strict=True)

        due = 0.0
        for time, frame in read_frames(info, max_seconds):
            if time < due - 1e-6:
                continue
            due = (np.floor(time * rate + 1e-6) + 1) / rate
            times.append(time)
            frames.append(to_rgb(frame, info))
            features.append(np.concatenate([log_mel(hear(sound, time)) for sound in sounds]))
            if len(times) == batch_size:
                yield from run()
                times, frames, features = [], [], []
        if times:
            yield from run()


def _condition(condition: str | None, audio, unseen: str | None, alone: bool = True) -> str:
    if condition is None:
        return "off_screen" if audio is not None else "unseen" if unseen is not None else "positive"
    if condition not in (*CONDITIONS, "unseen"):
        raise ValueError(f"Expected one of {', '.join(CONDITIONS)}, unseen for `condition`, got {condition!r}.")
    for name, argument, value in (("off_screen", "audio", audio), ("unseen", "unseen", unseen)):
        if alone and value is not None and condition != name:
            raise ValueError(f"Expected condition={name!r}, which hears `{argument}`, or none; got {condition!r}.")
    if condition == "unseen" and unseen is None:
        raise ValueError("Expected `unseen`, a kind of sound, with condition='unseen'.")
    return condition


@dataclass(frozen=True)
class _Sounds:
    """What the model can hear with a video."""

    info: VideoInfo
    audio: str | os.PathLike | None
    unseen: str | None
    muted: bool = False

    def conditions(self) -> tuple[str, ...]:
        extra = {"unseen": self.unseen is not None, "muted": self.muted}
        return (*CONDITIONS, *(name for name, wanted in extra.items() if wanted))

    def open(self, condition: str) -> Silence:
        """A reader of its own; the model and each writer read at another position."""
        if condition in ("positive", "muted"):
            own = Recording(self.info.path, self.info.start) if self.info.has_audio else Silence()
            return Muted(own) if condition == "muted" else own
        if condition == "off_screen":
            return Siren() if self.audio is None else Recording(self.audio, loop=True)
        return Unseen(self.unseen) if condition == "unseen" else Noise() if condition == "noise" else Silence()

    def track(self, condition: str) -> dict:
        """The arguments of a `VideoWriter` for the sound that the model heard."""
        if condition in ("positive", "silence"):
            return {"copy_audio": condition == "positive"}
        gain = NOISE_GAIN if condition == "noise" else 1.0
        return {"audio": (SAMPLE_RATE, as_chunks(self.open(condition), gain))}

    def label(self, condition: str) -> str:
        """What stands above a panel."""
        if condition == "positive":
            return "own sound" if self.info.has_audio else "own sound (none)"
        if condition == "off_screen":
            return f"off-screen: {'siren' if self.audio is None else Path(self.audio).stem}"
        labels = {"unseen": f"unseen: {self.unseen}", "muted": "own sound, 3 of 5 s"}
        return labels.get(condition, condition)


__all__ = ["VideoSegmentationPipeline"]
