"""The process that reads strangers' files and runs the model. The page stops it when it takes too long."""

import resource
from functools import cache
from pathlib import Path

from tqdm.auto import tqdm

from modeling_avsegformer.video import read_info
from modeling_avsegformer.video.explain import Heard, trained_on
from modeling_avsegformer.video.segment_video import load_pipeline

MAX_SECONDS = 20
MAX_SIZE = (4096, 2304)  # pixels, either way round
MAX_MEMORY = 8 * 2**30  # bytes
PROGRESS = "progress"  # a file in the job's folder


@cache
def segmenter(model: str | None):
    """The pipeline, loaded once in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, hard))
    return load_pipeline(model)


def describe(model: str | None) -> str:
    """What the model was trained on."""
    return trained_on(segmenter(model).model.name_or_path)


def run(model: str | None, video: str, folder: str, sound: str | None, unseen: str) -> dict[str, Heard]:
    """Writes `folder/{condition}.mp4` for each sound; returns what was marked with it.

    Raises:
        ValueError, OSError: a file that cannot be read, or a clip over the limits.
    """
    info = read_info(video)
    if info.width * info.height > MAX_SIZE[0] * MAX_SIZE[1]:
        raise ValueError(
            f"Expected a clip of at most {MAX_SIZE[0]} x {MAX_SIZE[1]} pixels, but {video} has {info.width} x "
            f"{info.height}. Scale it down."
        )

    class Bar(tqdm):
        def update(self, n=1):
            shown = super().update(n)
            (Path(folder) / PROGRESS).write_text(str(self.n / (self.total or self.n)))
            return shown

    sounds = {"audio": sound, "unseen": unseen, "muted": True}
    return segmenter(model).compare(video, folder, **sounds, max_seconds=MAX_SECONDS, progress=Bar)
