"""The builder behind `load_dataset("avsbench_robust", …)`: AVSBench on disk, four audio conditions, twelve splits.

A build reads every file once, to find what is missing or broken, and stores where frames and sounds are: they are not
copied. A cache is used for the very files that it was built from (path, size, times) and built anew otherwise.
"""

import errno
import functools
import logging
import numbers
import os
from dataclasses import dataclass
from pathlib import Path

import datasets
import soundfile
from datasets.exceptions import DatasetGenerationError

from .conditions import CONDITIONS, SAMPLING_RATE, generator
from .draw import DRAWS, Pair, draw_off_screen, draw_statistics, explain
from .sounds import read_waveform
from .sources import (
    code_digest,
    content_digest,
    demo_root,
    find_root,
    media_files,
    media_folder,
    missing_files,
    read_clips,
    read_frames,
    read_masks,
)
from .subsets import SPLITS, SUBSETS, Clip, Subset
from .waveform import Waveform

__all__ = ["AvsbenchRobust", "AvsbenchRobustConfig", "locate"]

logger = logging.getLogger(__name__)

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Parts that a split can be read in, by processes (`num_proc`) or by ranks and workers (streaming).
MAX_SHARDS = 64

# of rows that hold all of their content, as `avs-data export` writes them
FEATURES = datasets.Features(
    {
        "clip_id": datasets.Value("string"),
        "category": datasets.Value("string"),
        "condition": datasets.ClassLabel(names=list(CONDITIONS)),
        "frames": datasets.List(datasets.Image(mode="RGB")),
        "masks": datasets.List(datasets.Image(mode="L")),
        "audio": {"array": datasets.List(datasets.Value("float32")), "sampling_rate": datasets.Value("int32")},
        "audio_source": datasets.Value("string"),
        "audio_category": datasets.Value("string"),
    }
)

# of rows that name the files they come from: what is read from them is the same
STORED_FEATURES = datasets.Features(FEATURES | {"audio": Waveform()})


@dataclass
class AvsbenchRobustConfig(datasets.BuilderConfig):
    """A subset, where it lies, and the draw.

    Attributes:
        seed (int): of the off-screen draw and the noise.
        draw (str): "matched" (each sound once off screen) or "released" (class first, then clip).
    """

    version: datasets.Version = datasets.Version("1.0.0")
    seed: int = 42
    draw: str = "matched"

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Names the cache folder after all that decides the content, not after how it was asked for."""
        root = find_root(SUBSETS[self.name], self.data_dir)
        content = {
            "seed": self.seed,
            "draw": self.draw,
            "files": content_digest(SUBSETS[self.name], root),
            "folder": str(media_folder(SUBSETS[self.name], root)),
            "code": code_digest(),
        }
        return super().create_config_id(content, custom_features)


def locate(subset: Subset, data_dir: str | None, cache_dir: str | None = None):
    """`find_root`, where the demo subset writes itself into the cache of `datasets` if there is none."""

    def synthesize():
        return demo_root(cache_dir or datasets.config.HF_DATASETS_CACHE)

    return find_root(subset, data_dir, synthesize if subset.name == "demo" else None)


class AvsbenchRobust(datasets.GeneratorBasedBuilder):
    """Builds `{train,validation,test}_{positive,silence,noise,off_screen}` of one subset.

    Args (as in `load_dataset`):
        config_name: "s4" (the default), "ms3" or "demo".
        data_dir: the download, or the subset's folder in it; $AVSBENCH_DIR, else ./data, when None.
        seed (int), draw (str): see `AvsbenchRobustConfig`.

    Raises:
        FileNotFoundError: no such data; files that the CSV names are missing.
        ValueError: a bad argument, a bad row, a broken file.
    """

    BUILDER_CONFIG_CLASS = AvsbenchRobustConfig
    BUILDER_CONFIGS = [AvsbenchRobustConfig(name=name) for name in SUBSETS]
    DEFAULT_CONFIG_NAME = "s4"
    DEFAULT_WRITER_BATCH_SIZE = 100

    def __init__(self, cache_dir=None, dataset_name=None, config_name=None, data_dir=None, data_files=None, **kwargs):
        if data_files:
            raise ValueError("Expected no `data_files`: pass the folder that holds AVSBench as `data_dir`.")
        config_name = config_name or self.DEFAULT_CONFIG_NAME
        seed, draw = kwargs.get("seed", AvsbenchRobustConfig.seed), kwargs.get("draw", AvsbenchRobustConfig.draw)
        if not isinstance(seed, numbers.Integral) or isinstance(seed, bool):
            raise ValueError(f"Expected an integer for `seed`, got {seed!r}. Pass for example seed=42.")
        kwargs["seed"] = int(seed)  # always given, so that `datasets` copies the shared config before it writes to it
        if draw not in DRAWS:
            raise ValueError(f"Expected one of {', '.join(DRAWS)} for `draw`, got {draw!r}.")
        if config_name in SUBSETS:  # else `datasets` says which there are
            data_dir = str(locate(SUBSETS[config_name], data_dir, cache_dir))
        super().__init__(
            cache_dir=cache_dir,
            dataset_name=dataset_name or "avsbench_robust",
            config_name=config_name,
            data_dir=data_dir,
            **kwargs,
        )
        # What the files of a clip were found to be, so that its four conditions read them once.
        self._images: dict[str, tuple[list[dict], list[dict]]] = {}
        self._sounds: dict[str, dict] = {}

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="AVSBench under four audio conditions: positive, silence, noise, off-screen sound.",
            features=STORED_FEATURES,
            homepage="https://arxiv.org/abs/2502.00358",
        )

    @property
    def _subset(self) -> Subset:
        return SUBSETS[self.config.name]

    @functools.cached_property
    def _root(self) -> Path:
        return find_root(self._subset, self.config.data_dir)

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        clips = read_clips(self._subset, self._root)
        if not dl_manager.is_streaming:  # a stream reads a clip when it comes to it
            missing = missing_files(self._subset, self._root, clips)
            if missing:
                raise FileNotFoundError(
                    f"Expected every file of the {len(clips)} clips of {self.config.name} in {self._root}, but "
                    f"{len(missing)} are missing: {', '.join(map(str, missing[:3]))}"
                    f"{', …' if len(missing) > 3 else ''}. Complete the download; `avs-data check --subset "
                    f"{self.config.name} --data_dir {self.config.data_dir}` lists what each split lacks."
                )
        generators, statistics = [], {}
        for name, split in SPLITS.items():
            of_split = [clip for clip in clips if clip.split == split]
            if not of_split:  # `datasets` has no empty splits
                logger.warning("%s has no clips of %s: the four %s splits are left out.", self._root, split, name)
                continue
            pairs = draw_off_screen(of_split, self._subset, self.config.seed, self.config.draw)
            statistics[name] = draw_statistics(pairs, self._subset)
            count = min(MAX_SHARDS, len(pairs))
            edges = [len(pairs) * k // count for k in range(count + 1)]
            shards = [pairs[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]
            for condition in CONDITIONS:
                parts = {"condition": condition, "shards": shards, "as_files": True}
                generators.append(datasets.SplitGenerator(f"{name}_{condition}", parts))
                generators[-1].split_info.num_examples = len(pairs)  # so that the progress bar knows when it ends
        if note := explain(statistics, self.config.draw):
            logger.warning("%s: %s", self.config.name, note)
        return generators

    def _generate_examples(self, condition: str, shards: list[list[Pair]], as_files: bool = False):
        """Rows of `STORED_FEATURES` where `as_files`, else of `FEATURES`."""
        make = self._example_of_files if as_files else self._example
        for pairs in shards:
            for pair in pairs:
                yield pair.clip.clip_id, make(condition, pair)

    def _example_of_files(self, condition: str, pair: Pair) -> dict:
        clip, partner = pair.clip, pair.partner
        if clip.clip_id not in self._images:
            self._images[clip.clip_id] = self._stored_images(clip)
        frames, masks = self._images[clip.clip_id]
        heard = {"positive": clip, "off_screen": partner}.get(condition)
        if heard is not None and heard.clip_id not in self._sounds:
            self._sounds[heard.clip_id] = self._stored_sound(heard)
        if condition == "noise":
            audio = {"noise": "/".join(map(str, self._key(condition, clip)))}
        else:
            audio = self._sounds[heard.clip_id] if heard else {}
        return {
            "clip_id": clip.clip_id,
            "category": clip.category,
            "condition": condition,
            "frames": frames,
            "masks": masks,
            "audio": audio,
            "audio_source": heard.clip_id if heard else "",
            "audio_category": heard.category if heard else "",
        }

    def _stored_images(self, clip: Clip) -> tuple[list[dict], list[dict]]:
        """Frames as their paths, once they are found to be whole; masks as bytes, which are few."""
        frames, masks, _ = media_files(self._subset, self._root, clip)
        _, size = read_frames(frames)
        return (
            [{"bytes": None, "path": str(path)} for path in frames],
            [{"bytes": data, "path": None} for data in read_masks(masks, size)],
        )

    def _stored_sound(self, clip: Clip) -> dict:
        """The path of a sound; its samples where it would have to be resampled at each reading."""
        _, _, wav = media_files(self._subset, self._root, clip)
        waveform = read_waveform(wav)
        return {"path": str(wav)} if soundfile.info(wav).samplerate == SAMPLING_RATE else {"array": waveform}

    def _key(self, condition: str, clip: Clip) -> tuple:
        return self.config.seed, self.config.name, clip.split, condition, clip.clip_id

    def _example(self, condition: str, pair: Pair) -> dict:
        clip, partner = pair.clip, pair.partner
        frames, masks, wav = media_files(self._subset, self._root, clip)
        frame_bytes, size = read_frames(frames)
        partner_waveform = None
        if condition == "off_screen":
            partner_waveform = read_waveform(media_files(self._subset, self._root, partner)[2])
        rng = generator(*self._key(condition, clip))
        waveform = CONDITIONS[condition](read_waveform(wav), rng, partner_waveform)
        heard = {"positive": clip, "off_screen": partner}.get(condition)
        # Bytes without a path: `datasets` drops the bytes where a file of that name lies in the working directory.
        return {
            "clip_id": clip.clip_id,
            "category": clip.category,
            "condition": condition,
            "frames": [{"bytes": data, "path": None} for data in frame_bytes],
            "masks": [{"bytes": data, "path": None} for data in read_masks(masks, size)],
            "audio": {"array": waveform.tolist(), "sampling_rate": SAMPLING_RATE},  # Arrow takes NumPy scalars slowly
            "audio_source": heard.clip_id if heard else "",
            "audio_category": heard.category if heard else "",
        }

    def _download_and_prepare(self, *args, **kwargs):
        """As in the base class, which calls any failed access, a full disk too, a missing data file."""
        try:
            super()._download_and_prepare(*args, **kwargs)
        except OSError as error:
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            if cause.errno not in NO_SPACE:
                raise cause from None
            raise OSError(
                cause.errno,
                f"Expected room for the built data set in {self._cache_dir_root}, got: {os.strerror(cause.errno)}. "
                "Make room, or pass another folder as `cache_dir` (or in $HF_DATASETS_CACHE). Nothing was stored",
            ) from cause

    def _prepare_split_single(self, *args, **kwargs):
        """As in the base class, but a broken file is reported as such and not as "An error occurred"."""
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, (ValueError, OSError)):
                raise error.__cause__ from None
            raise
