"""`pipeline("audio-visual-segmentation")` on videos: masks at the video's own size and rate."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging

from ..log_mel import SAMPLE_RATE, log_mel
from ..pipeline_avsegformer import AudioVisualSegmentationPipeline
from .overlay import Panels, draw_overlay, draw_transparent
from .sounds import Noise, Recording, Silence, Siren, as_chunks, hear
from .video import MaskFolderWriter, VideoWriter, check_mask_output, check_suffix, read_frames, read_info, to_rgb

logger = logging.get_logger(__name__)

CONDITIONS = ("positive", "silence", "noise", "off_screen")
BATCH = 5  # frames that pass the model together, AVSBench's clip; frames are independent of each other
CUT_OFF = 0.5  # seconds; a warning names a video that ends this much earlier than its header says
NOISE_GAIN = 0.1  # the model's noise has full scale; the written video contains a tenth of it


class VideoSegmentationPipeline(AudioVisualSegmentationPipeline):
    """Segments what is heard in a video; clips of frames and sound as `AudioVisualSegmentationPipeline` does.

    The model runs on `masks_per_second` frames a second, each with the 0.975 s of sound around it. Between two of them
    the mask of a frame comes from the logits of both, interpolated linearly in time; after the last one it stays.
    Times, size and rotation of the video are kept, and a few frames at most are held in memory. A video without a
    sound track is heard as silence. Every sound passes VGGish's log-mel, in every condition and whatever the
    processor's `front_end`.

    Args of a call:
        inputs: the path of a video; a clip as `AudioVisualSegmentationPipeline` takes it; or a list or an iterator of
            either.
        output (path, *optional*): the video with the mask drawn over it (.mp4, .mov, .mkv, .webm), with the sound that
            the model heard.
        masks (path, *optional*): the masks, opaque on transparent ground: a video (.webm, .mov) or a new folder, which
            is filled with PNG files.
        panels (path, *optional*): a video of the four conditions side by side, with the video's own sound.
        condition (`str`, defaults to `"positive"`, with `audio` to `"off_screen"`): what the model hears: positive
            (the video's own sound), silence, noise or off_screen. `panels` always shows all four.
        audio (path, *optional*): the off-screen sound, repeated until the video ends. Without it, it is a siren.
        threshold (`float`, defaults to 0.5): a pixel belongs to the mask above this probability.
        masks_per_second (`float`, defaults to 4): how often the model looks; above the video's rate, at every frame.
        max_seconds (`float`, *optional*): a longer video is refused.
        batch_size (`int`, defaults to 5): frames of a video that pass the model together.
        progress (`bool` or a class like `tqdm`, defaults to False): shows a progress bar, of that class.

    Returns:
        For a video: a dict of the paths that were asked for; without any, a list with `{"timestamp": seconds,
        "mask": PIL image, 0 or 255, of the video's size}` for each of its frames (for long videos use `stream`).
        For a clip: the same list, one mask a frame. For a list, a list of these, and for an iterator a generator.

    Raises:
        FileNotFoundError, ValueError: no such video, one that cannot be read, or an argument that does not fit. Then
            nothing is written.

    Example:

    ```python
    segment = pipeline("audio-visual-segmentation", model="runs/s4")
    segment("clip.mp4", output="out.mp4", panels="panels.mp4")
    ```"""

    def __call__(
        self,
        inputs,
        *,
        output: str | os.PathLike | None = None,
        masks: str | os.PathLike | None = None,
        panels: str | os.PathLike | None = None,
        condition: str | None = None,
        audio: str | os.PathLike | None = None,
        threshold: float | None = None,
        masks_per_second: float = 4.0,
        max_seconds: float = math.inf,
        batch_size: int | None = None,
        num_workers: int | None = None,
        progress: bool | type[tqdm] = False,
    ):
        outputs = {
            name: Path(path)
            for name, path in (("output", output), ("masks", masks), ("panels", panels))
            if path is not None
        }
        options = {
            "audio": audio,
            "threshold": threshold,
            "masks_per_second": masks_per_second,
            "max_seconds": max_seconds,
            "batch_size": batch_size,
            "progress": progress,
        }
        if isinstance(inputs, list | tuple | Iterator):
            if outputs:
                raise ValueError("Expected one video with `output`, `masks` or `panels`; call once for each video.")
            results = (self(item, condition=condition, **options) for item in inputs)
            return results if isinstance(inputs, Iterator) else list(results)
        if not isinstance(inputs, str | os.PathLike):
            if outputs or audio is not None or condition is not None:
                raise ValueError(
                    "Expected a video's path with `output`, `masks`, `panels`, `condition` or `audio`; a clip has its "
                    "sound with it."
                )
            return super().__call__(inputs, threshold=threshold, num_workers=num_workers)
        condition = _condition(condition, audio)
        if audio is not None and condition != "off_screen" and panels is None:
            raise ValueError(f"Expected condition='off_screen', which hears `audio`, or none; got {condition!r}.")
        if outputs:
            self._write(inputs, outputs, condition, **options)
            return outputs
        return [
            {"timestamp": moment["timestamp"], "mask": Image.fromarray(moment["mask"] * np.uint8(255))}
            for moment in self.stream(inputs, condition=condition, **options)
        ]

    def stream(
        self,
        video: str | os.PathLike,
        *,
        condition: str | None = None,
        audio: str | os.PathLike | None = None,
        **options,
    ) -> Iterator[dict]:
        """Each frame of a video with its mask, held in memory one at a time; arguments as in a call.

        Yields:
            `{"timestamp": seconds, "frame": uint8 (height, width, 3), "mask": bool (height, width)}`
        """
        sounds = _open_sounds(read_info(video), [_condition(condition, audio)], audio)
        for time, frame, (mask,) in self._masks(video, sounds, **options):
            yield {"timestamp": time, "frame": frame, "mask": mask}

    def _write(self, video, outputs: dict[str, Path], condition: str, audio, **options) -> None:
        if len({path.resolve() for path in (Path(video), *outputs.values())}) <= len(outputs):
            raise ValueError(f"Expected outputs unlike each other and unlike the video, {video}.")
        for name, path in outputs.items():
            check_mask_output(path) if name == "masks" else check_suffix(path)
        info = read_info(video)
        heard = [condition] if "output" in outputs or "masks" in outputs else []
        if "panels" in outputs:
            heard += [name for name in CONDITIONS if name not in heard]
        sounds = _open_sounds(info, heard, audio)
        size = (info.width, info.height)
        with ExitStack() as stack:
            writers = {}

            def add(name: str, writer) -> None:
                writers[name] = writer
                stack.callback(writer.abandon)

            if "output" in outputs:
                # A second reader of the same sound: the writer reads at another position than the model.
                gain = NOISE_GAIN if condition == "noise" else 1.0
                played = None
                if condition not in ("positive", "silence"):
                    played = (SAMPLE_RATE, as_chunks(_open_sounds(info, [condition], audio)[0], gain))
                own = condition == "positive"
                add("output", VideoWriter(outputs["output"], info, size, copy_audio=own, audio=played))
            if "masks" in outputs:
                path = outputs["masks"]
                add("masks", VideoWriter(path, info, size, alpha=True) if path.suffix else MaskFolderWriter(path))
            if "panels" in outputs:
                layout = Panels([_label(name, info, audio) for name in CONDITIONS], size)
                add("panels", VideoWriter(outputs["panels"], info, layout.size, copy_audio=True))
            for time, frame, masks in self._masks(video, sounds, **options):
                drawn = dict(zip(heard, masks, strict=True))
                if "output" in writers:
                    writers["output"].write(draw_overlay(frame, drawn[condition]), time)
                if "masks" in writers:
                    writers["masks"].write(draw_transparent(drawn[condition]), time)
                if "panels" in writers:
                    panels = [draw_overlay(frame, drawn[name]) for name in CONDITIONS]
                    writers["panels"].write(layout.draw(panels), time)
            for writer in writers.values():
                writer.finish()
            for writer in writers.values():
                writer.publish()
            stack.pop_all()

    def _masks(
        self,
        video,
        sounds: Sequence,
        threshold: float | None = None,
        masks_per_second: float = 4.0,
        max_seconds: float = math.inf,
        batch_size: int | None = None,
        progress: bool | type[tqdm] = False,
    ) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
        """Each frame's time, picture and masks, bool `(sounds, height, width)`.

        Two readers of the video run side by side: one ahead, for the model, and one for the pictures. So a frame need
        not be held until the model has seen the next one.
        """
        if not masks_per_second > 0:
            raise ValueError(f"Expected `masks_per_second` above 0, got {masks_per_second}.")
        parameters = self._postprocess_params | self._sanitize_parameters(threshold)[2]
        if batch_size is None:
            batch_size = self._batch_size or BATCH
        if batch_size < 1:
            raise ValueError(f"Expected a `batch_size` of at least 1, got {batch_size}.")
        info = read_info(video)
        samples = self._sampled_logits(info, sounds, masks_per_second, max_seconds, batch_size)
        before = after = next(samples)
        show = progress if isinstance(progress, type) else tqdm
        with show(desc=Path(video).name, total=info.num_frames, unit=" frames", disable=not progress) as bar:
            for time, frame in read_frames(info, max_seconds):
                while after[0] < time and (following := next(samples, None)) is not None:
                    before, after = after, following
                if after[0] < time:
                    before = after
                span = after[0] - before[0]
                weight = (time - before[0]) / span if span else 1.0
                logits = torch.lerp(before[1], after[1], weight)
                masks = self._threshold(logits[:, None], (info.height, info.width), parameters.get("threshold", 0.5))
                yield time, to_rgb(frame, info), masks[:, 0]
                bar.update()
            bar.total = bar.n  # `num_frames` is often an estimate
        over = time + max(float(1 / info.rate), float((frame.duration or 0) * info.time_base))
        if info.end is not None and over < info.end - CUT_OFF:
            logger.warning(f"{video} ends after {over:.1f} s but says {info.end:.1f} s: it may be cut off.")

    def _sampled_logits(
        self, info, sounds: Sequence, rate: float, max_seconds: float, batch_size: int
    ) -> Iterator[tuple[float, torch.Tensor]]:
        """Time and logits `(sounds, height, width)` of the first frame of each `1 / rate` seconds."""
        times, frames, features = [], [], []

        def run():
            inputs = self.processor(frames=[frames])
            # (frames, sounds, 1, 96, 64) to (sounds, frames, …)
            inputs["input_features"] = torch.from_numpy(np.stack(features)).transpose(0, 1)
            logits = self.forward(inputs)["logits"].float()
            yield from zip(times, logits.transpose(0, 1), strict=True)

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


def _condition(condition: str | None, audio) -> str:
    if condition is None:
        return "positive" if audio is None else "off_screen"
    if condition not in CONDITIONS:
        raise ValueError(f"Expected one of {', '.join(CONDITIONS)} for `condition`, got {condition!r}.")
    return condition


def _open_sounds(info, conditions: Sequence[str], audio) -> list:
    """A reader of each condition's sound."""
    makers = {
        "positive": lambda: Recording(info.path, info.start) if info.has_audio else Silence(),
        "silence": Silence,
        "noise": Noise,
        "off_screen": lambda: Siren() if audio is None else Recording(audio, loop=True),
    }
    return [makers[condition]() for condition in conditions]


def _label(condition: str, info, audio) -> str:
    """What stands above a panel."""
    if condition == "positive":
        return "own sound" if info.has_audio else "own sound (none)"
    if condition == "off_screen":
        return f"off-screen: {'siren' if audio is None else Path(audio).stem}"
    return condition


__all__ = ["VideoSegmentationPipeline"]
