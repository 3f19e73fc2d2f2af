"""Small trees in AVSBench's layout, and nothing of the machine: no network, no cache, no data folder of the user."""

import csv
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

import avsbench_robust_dataset.sources as sources
from avsbench_robust_dataset.categories import CATEGORY_OF_OBJECT
from tests.loopback import client, hub, start_hub  # noqa: F401  (fixtures)

S4_ROWS = [  # (clip id, category, split); two or more of the four groups in each split
    ("dog00000000", "dog_barking", "train"),
    ("car00000000", "race_car", "train"),
    ("piano000000", "playing_piano", "train"),
    ("speech00000", "male_speech", "train"),
    ("heli0000000", "helicopter", "train"),
    ("-og_000001x", "dog_barking", "val"),  # ids of YouTube may begin with a dash
    ("car00000001", "race_car", "val"),
    ("dog00000002", "dog_barking", "test"),
    ("car00000002", "race_car", "test"),
    ("violin00002", "playing_violin", "test"),
]
MS3_ROWS = [  # (clip id, objects, split)
    ("aaaaaaaaaaa_0", "dog_car", "train"),
    ("aaaaaaaaaaa_3", "guitar", "train"),
    ("bbbbbbbbbbb_1", "man", "train"),
    ("ccccccccccc", "piano", "train"),
    ("ddddddddddd_0", "cat", "val"),
    ("eeeeeeeeeee_0", "violin", "val"),
    ("fffffffffff_2", "dog", "test"),
    ("ggggggggggg_2", "background", "test"),
]


def pixels(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 noise that depends on the name only."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, size=shape, dtype=np.uint8)


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_table(path: Path, header: list[str], rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_media(subset, root: Path, size=(6, 4)) -> None:
    """Every file that the subset's table asks for: frames and masks of (width, height), 5 s of sound."""
    width, height = size
    for clip in sources.read_clips(subset, root):
        frames, masks, wav = sources.media_files(subset, root, clip)
        for path in frames:
            write_image(path, pixels(path.name, (height, width, 3)))
        for path in masks:
            write_image(path, pixels(path.name, (height, width)) > 127)
        wav.parent.mkdir(parents=True, exist_ok=True)
        samples = (pixels(wav.name, (80000,)).astype(np.int16) - 128) * 100
        soundfile.write(wav, samples, 16000, subtype="PCM_16")


@pytest.fixture
def write_s4():
    def write(root: Path, rows=S4_ROWS, subset="s4", media=True) -> Path:
        table = [(clip_id, 0, category, split) for clip_id, category, split in rows]
        write_table(root / "Single-source/s4_meta_data.csv", ["name", "start", "category", "split"], table)
        if media:
            write_media(sources_subset(subset), root)
        return root

    return write


@pytest.fixture
def write_ms3():
    def write(root: Path, rows=MS3_ROWS, metadata=True, media=True) -> Path:
        table = [(clip_id, split) for clip_id, _, split in rows]
        write_table(root / "Multi-sources/ms3_meta_data.csv", ["video_id", "split"], table)
        if metadata:
            objects = [(clip_id, "v1m", split, names) for clip_id, names, split in rows]
            write_table(root / "AVSS/metadata.csv", ["vid", "label", "split", "a_obj"], objects)
        if media:
            write_media(sources_subset("ms3"), root)
        return root

    return write


def sources_subset(name: str):
    from avsbench_robust_dataset import SUBSETS

    return SUBSETS[name]


@pytest.fixture
def load(tmp_path):
    """load_dataset with a cache of the test's own."""

    def load(subset: str, root: Path, **kwargs):
        kwargs.setdefault("cache_dir", str(tmp_path / "cache"))
        return datasets.load_dataset("avsbench_robust", subset, data_dir=str(root), **kwargs)

    return load


@pytest.fixture
def built(tmp_path):
    """What lies ready to be loaded in the cache of `load`."""
    return lambda: sorted((tmp_path / "cache").rglob("dataset_info.json"))


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path_factory):
    """An empty working directory, no $AVSBENCH_DIR, no network, nothing warned of yet."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_cache"))
    monkeypatch.delenv("AVSBENCH_DIR", raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    sources._warn_once.cache_clear()
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def semantic_mask():
    """uint8 (height, width), 1 at the objects of a clip of `write_semantic` in frame `k`: a box of the clip's own."""

    def mask(vid: str, k: int, size=(32, 24)) -> np.ndarray:
        left, top = pixels(f"{vid}_{k}_box", (2,)) % 12
        inside = np.zeros((size[1], size[0]), dtype=np.uint8)
        inside[top : top + 10, left : left + 14] = 1
        return inside

    return mask


@pytest.fixture
def write_semantic(semantic_mask):
    """AVSBench-semantic with the clips of `S4_ROWS` and `MS3_ROWS`; the masks are those of `semantic_mask`."""

    def write(root: Path, size=(32, 24), media=True) -> Path:
        objects = {category: name for name, category in CATEGORY_OF_OBJECT.items()}
        rows = [("v1s", f"{clip}_1000_6000", clip, objects[name], split) for clip, name, split in S4_ROWS]
        rows += [("v1m", clip, clip, names, split) for clip, names, split in MS3_ROWS]
        rows += [("v2", "other_0_10000", "other", "off-the-screen_dog", "train")]
        table = [(vid, uid, 0, 1, names, split, label) for label, uid, vid, names, split in rows]
        write_table(root / "metadata.csv", ["vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"], table)
        for label, uid, vid, _, split in rows if media else ():
            folder = root / label / uid
            for k in range(5):
                write_image(folder / "frames" / f"{k}.jpg", pixels(f"{vid}_{k}", (size[1], size[0], 3)))
            for k in range(1 if (label, split) == ("v1s", "train") else 5):
                colour = np.array([128, 0, 3], dtype=np.uint8)
                write_image(folder / "labels_rgb" / f"{k}.png", semantic_mask(vid, k, size)[..., None] * colour)
            soundfile.write(folder / "audio.wav", (pixels(vid, (80000,)) - 128.0) / 1000, 16000)
        return root

    return write
