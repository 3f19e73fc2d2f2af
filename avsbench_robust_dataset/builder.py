"""The builder behind `load_dataset("avsbench_robust", …)`: AVSBench on disk, a split for each audio condition.

A build reads every file once, to find what is missing or broken, and stores where frames are and how each sound is
made: media are not copied. A cache serves for the very files that it was built from.
"""

import itertools
import logging
import numbers
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import soundfile
from datasets.exceptions import DatasetGenerationError

from . import sources
from .conditions import CONDITIONS, FOLDERS, SAMPLING_RATE, get_condition, split_name
from .draw import draw_statistics, explain
from .files import NO_SPACE
from .recipes import Folders, Row, Sound, check_conditions, make_sound, plan
from .semantic import IMAGE_SIZE, as_object_layout
from .sounds import read_waveform
from .subsets import SPLITS, SUBSETS, Clip, Subset
from .synthetic import demo_root
from .unseen import folder_digest
from .waveform import SAMPLES_FEATURES, Waveform

logger = logging.getLogger(__name__)

# Parts that a split can be read in, by processes (`num_proc`) or by ranks and workers (streaming).
MAX_SHARDS = 64


def row_features(conditions: Iterable[str]) -> datasets.Features:
    """The columns of rows that hold all of their content; `heard` where a condition is heard in some of the frames."""
    conditions = list(conditions)
    extra = [name for name in conditions if name not in CONDITIONS]
    columns = datasets.Features(
        {
            "clip_id": datasets.Value("string"),
            "category": datasets.Value("string"),
            "condition": datasets.ClassLabel(names=[*CONDITIONS, *extra]),
            "frames": datasets.List(datasets.Image(mode="RGB")),
            "masks": datasets.List(datasets.Image(mode="L")),
            "audio": SAMPLES_FEATURES,
            "audio_source": datasets.Value("string"),
            "audio_category": datasets.Value("string"),
        }
    )
    if any(get_condition(name).heard == "some" for name in conditions):
        columns["heard"] = datasets.List(datasets.Value("bool"))
    return columns


@dataclass
class AvsbenchRobustConfig(datasets.BuilderConfig):
    """A subset, where it lies, the draw and the conditions.

    Attributes (besides those of the base class):
        seed (int): of the draws and the noise.
        draw (str): "matched" (each sound once off screen where that is possible) or "released" (class first, then
            clip).
        conditions (tuple of str): which have splits, see `get_condition`; None means the benchmark's.
        unseen_dir (str): a folder of wav files for the condition `unseen`; None: its built-in sounds.
        negative_dir (str): the folder of wav files for the condition `recorded`.
    """

    version: datasets.Version = datasets.Version("1.0.0")
    seed: int = 42
    draw: str = "matched"
    conditions: tuple[str, ...] | None = None
    unseen_dir: str | None = None
    negative_dir: str | None = None

    @property
    def folders(self) -> Folders:
        return {argument: getattr(self, argument) for argument in FOLDERS}

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Derives the name of the cache folder from the content, so that equivalent arguments share a cache."""
        subset, root = SUBSETS[self.name], Path(str(self.data_dir))  # where the builder has located it
        content = {
            "seed": self.seed,
            "draw": self.draw,
            "conditions": self.conditions,
            **{
                argument: folder and (folder, folder_digest(Path(folder))) for argument, folder in self.folders.items()
            },
            "files": sources.content_digest(subset, root),
            "folder": str(sources.media_folder(subset, root)),
            "code": sources.code_digest(),
        }
        return super().create_config_id(content, custom_features)


def locate_download(
    subset: Subset, data_dir: str | None, cache_dir: str | None = None, layout: str | None = None
) -> tuple[Subset, Path]:
    """`sources.find_download`, but the demo subset writes itself into the cache of `datasets` if there is none."""
    if subset.name == "demo" and data_dir is None and not sources.holds_demo(subset):
        data_dir = str(demo_root(cache_dir or datasets.config.HF_DATASETS_CACHE))
    return sources.find_download(subset, data_dir, layout)


def locate(
    subset: Subset,
    data_dir: str | None,
    cache_dir: str | None = None,
    layout: str | None = None,
    image_size: int | None = IMAGE_SIZE,
) -> Path:
    """A root that holds the subset in AVSBench-object's layout: the download, or what `as_object_layout` makes of it.

    Args:
        layout: "object" or "semantic"; None reads what is there.
        image_size: of frames and masks that come from AVSBench-semantic; None keeps their own.
    """
    found, root = locate_download(subset, data_dir, cache_dir, layout)
    if found.layout == "object":
        return root
    return as_object_layout(found, root, Path(cache_dir or datasets.config.HF_DATASETS_CACHE), image_size)


class AvsbenchRobust(datasets.GeneratorBasedBuilder):
    """Builds the splits of one subset, `{train,validation,test}_{positive,silence,noise,off_screen}` by default.

    Args (as in `load_dataset`):
        config_name: "s4" (the default), "ms3" or "demo".
        data_dir: the download, or the subset's folder in it; $AVSBENCH_DIR, else ./data, when None.
        seed, draw, conditions, unseen_dir, negative_dir: see `AvsbenchRobustConfig`. Each condition has splits:
            `conditions=("positive", "mixed_snr_0")` gives `test_positive`, `test_mixed_snr_0` and so on.
        layout (str): "object" or "semantic", the download to read; None reads what is there. `info.description` says
            whose masks the rows have.
        image_size (int): of frames and masks that come from AVSBench-semantic; None keeps their own.

    Raises:
        FileNotFoundError: no such data; files that the CSV names are missing.
        ValueError: a bad argument, a bad row, a broken file.
    """

    BUILDER_CONFIG_CLASS = AvsbenchRobustConfig
    BUILDER_CONFIGS = [AvsbenchRobustConfig(name=name) for name in SUBSETS]
    DEFAULT_CONFIG_NAME = "s4"
    DEFAULT_WRITER_BATCH_SIZE = 100

    def __init__(
        self, cache_dir=None, dataset_name=None, config_name=None, layout=None, image_size=IMAGE_SIZE, **kwargs
    ):
        if kwargs.pop("data_files", None):
            raise ValueError("Expected no `data_files`: pass the folder that holds AVSBench as `data_dir`.")
        config_name = config_name or self.DEFAULT_CONFIG_NAME
        seed = kwargs.get("seed", AvsbenchRobustConfig.seed)
        if not isinstance(seed, numbers.Integral) or isinstance(seed, bool):
            raise ValueError(f"Expected an integer for `seed`, got {seed!r}. Pass for example seed=42.")
        kwargs["conditions"] = check_conditions(kwargs.get("conditions"), kwargs)
        for argument in FOLDERS:
            if kwargs.get(argument) is not None:
                kwargs[argument] = str(Path(kwargs[argument]).expanduser().resolve())
        kwargs["seed"] = int(seed)  # always given, so that `datasets` copies the shared config before it writes to it
        if config_name in SUBSETS:  # else `datasets` says which there are
            root = locate(SUBSETS[config_name], kwargs.get("data_dir"), cache_dir, layout, image_size)
            kwargs["data_dir"] = str(root)
        super().__init__(cache_dir, dataset_name or "avsbench_robust", config_name, **kwargs)
        # What was found in the files of a clip, so that its conditions read them once.
        self._images: dict[str, tuple[list[dict], list[dict]]] = {}
        self._sounds: dict[str, Sound] = {}

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=f"AVSBench under the audio conditions {', '.join(self.config.conditions)}. Masks: "
            f"AVSBench-{sources.annotation(Path(self.config.data_dir))}.",
            # Rows name the files that they come from; what is read from them is as in `row_features`.
            features=datasets.Features(self.features | {"audio": Waveform()}),
            homepage="https://arxiv.org/abs/2502.00358",
        )

    @property
    def features(self) -> datasets.Features:
        """Of rows that hold all of their content."""
        return row_features(self.config.conditions)

    @property
    def _subset(self) -> Subset:
        return SUBSETS[self.config.name]

    @property
    def _root(self) -> Path:
        return Path(self.config.data_dir)

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        clips = sources.read_clips(self._subset, self._root)
        if not dl_manager.is_streaming:  # a stream reads a clip when it comes to it
            sources.check_complete(self._subset, self._root, clips)
        generators, statistics, config = [], {}, self.config
        planned = plan(self._subset, self._root, clips, config.conditions, config.seed, config.draw, config.folders)
        for name, pairs, rows in planned:
            if not rows:  # `datasets` has no empty splits
                logger.warning("%s has no clips of %s: the %s splits are left out.", self._root, SPLITS[name], name)
            if pairs:
                statistics[name] = draw_statistics(pairs, self._subset)
            for condition, of_condition in rows.items():
                count = min(MAX_SHARDS, len(of_condition))
                edges = [len(of_condition) * k // count for k in range(count + 1)]
                shards = [of_condition[begin:end] for begin, end in itertools.pairwise(edges)]
                generators.append(datasets.SplitGenerator(split_name(name, condition), {"shards": shards}))
                generators[-1].split_info.num_examples = len(of_condition)  # so that the bar knows when it ends
        if note := explain(statistics, self.config.draw):
            logger.warning("%s: %s", self.config.name, note)
        return generators

    def _generate_examples(self, shards: list[list[Row]]) -> Iterator[tuple[str, dict]]:
        for row in itertools.chain.from_iterable(shards):
            yield row.clip.clip_id, self.example(row)

    def example(self, row: Row, embed: bool = False) -> dict:
        """The columns of a row, with the content of all files in it where `embed`, see `row_features`."""
        frames, masks = self._read_images(row.clip, embed)
        recipe = row.recipe
        audio: dict[str, Any]
        if embed:  # as a list, because Arrow takes NumPy scalars slowly
            audio = {"array": make_sound(recipe).tolist(), "sampling_rate": SAMPLING_RATE}
        else:
            own, partner = self._read_sound(recipe["own"]), self._read_sound(recipe["partner"])
            audio = {**recipe, "own": own, "partner": partner}
        source, category = row.source
        example = {
            "clip_id": row.clip.clip_id,
            "category": row.clip.category,
            "condition": row.condition,
            "frames": frames,
            "masks": masks,
            "audio": audio,
            "audio_source": source,
            "audio_category": category,
        }
        return example | ({"heard": row.heard} if "heard" in self.features else {})

    def _read_images(self, clip: Clip, embed: bool) -> tuple[list[dict], list[dict]]:
        """Frames, once they are found to be whole, as bytes or as their paths; masks as bytes, which are few."""
        if clip.clip_id in self._images:
            return self._images[clip.clip_id]
        paths, mask_paths, _ = sources.media_files(self._subset, self._root, clip)
        files, size = sources.read_frames(paths)
        # Bytes without a path: `datasets` drops the bytes where a file of that name lies in the working directory.
        frames = [
            {"bytes": data, "path": None} if embed else {"bytes": None, "path": str(path)}
            for data, path in zip(files, paths, strict=True)
        ]
        masks = [{"bytes": data, "path": None} for data in sources.read_masks(mask_paths, size)]
        if not embed:
            self._images[clip.clip_id] = frames, masks
        return frames, masks

    def _read_sound(self, sound: Sound | None) -> Sound | None:
        """The sound, once it is found to be whole, with its samples where each reading would have to resample it."""
        if sound is None or sound["path"] is None:
            return sound
        path = sound["path"]
        if path not in self._sounds:
            waveform = read_waveform(Path(path))
            is_file = soundfile.info(path).samplerate == SAMPLING_RATE
            self._sounds[path] = sound if is_file else {"path": None, "array": waveform}
        return self._sounds[path]

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
