"""Clips to click on: scenes and sounds of the demo subset, as videos."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from avsbench_robust_dataset.synthetic import draw_scene, make_sound
from modeling_avsegformer.video.video import VideoInfo, VideoWriter

SIDE = 384  # pixels; the demo's pictures have 64
SCENES = {  # file name -> what is visible; the first one sounds
    "a dog barks beside a silent bird": ("dog_barking", "mynah_bird_singing"),
    "the bird sings beside a silent dog": ("mynah_bird_singing", "dog_barking"),
    "a piano plays": ("playing_piano",),
    "a helicopter": ("helicopter",),
}


def write_clips(folder: Path) -> list[Path]:
    """Writes a video for each of `SCENES`, five pictures in five seconds."""
    return [_write(folder / f"{name}.mp4", categories) for name, categories in SCENES.items()]


def _write(path: Path, categories: tuple[str, ...]) -> Path:
    rng = np.random.default_rng(7)
    frames, _, _ = draw_scene(list(categories), rng)
    sound = make_sound(categories[0], rng)
    info = VideoInfo(path, SIDE, SIDE, 0, Fraction(1), Fraction(1, 1000), 0.0, Fraction(1), len(frames), None, True)
    writer = VideoWriter(path, info, (SIDE, SIDE), audio=(16000, sound.reshape(50, -1)))
    for second, frame in enumerate(frames):
        writer.write(np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BICUBIC)), float(second))
    writer.finish()
    writer.publish()
    return path
