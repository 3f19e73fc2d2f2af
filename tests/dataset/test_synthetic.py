"""The demo tree: AVSBench's layout, deterministic, and made so that hearing is necessary."""

import csv
import hashlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from avsbench_robust_dataset import sounds
from avsbench_robust_dataset.sources import read_clips, silent_mask_files
from avsbench_robust_dataset.subsets import SUBSETS
from avsbench_robust_dataset.synthetic import (
    DEMO_CATEGORIES,
    DEMO_SIZES,
    LOOKS,
    _plan,
    _start_clip,
    draw_scene,
    make_sound,
    write_demo,
)

SIZES = {"train": 9, "val": 2, "test": 3}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    write_demo(root, seed=3, sizes=SIZES, num_proc=1)
    return root


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(root):
    with (root / "Single-source" / "s4_meta_data.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tree_has_the_layout_of_s4(tree):
    rows = rows_of(tree)
    assert {split: sum(row["split"] == split for row in rows) for split in SIZES} == SIZES
    assert len({row["name"] for row in rows}) == len(rows)
    assert {row["category"] for row in rows} == set(DEMO_CATEGORIES)  # 9 training clips: every category at least once
    for row in rows:
        place = f"{row['split']}/{row['category']}/{row['name']}"
        data = tree / "Single-source" / "s4_data"
        for number in range(1, 6):
            with Image.open(data / "visual_frames" / place / f"{row['name']}_{number}.png") as frame:
                assert (frame.mode, frame.size) == ("RGB", (64, 64))
            with Image.open(data / "gt_masks" / place / f"{row['name']}_{number}.png") as mask:
                assert set(np.unique(mask)) == {0, 255}
        info = soundfile.info(data / "audio_wav" / f"{place}.wav")
        assert (info.samplerate, info.channels, info.frames, info.subtype) == (16000, 1, 80000, "PCM_16")
    assert not list(tree.glob(".demo-*"))


@pytest.mark.slow
def test_same_seed_same_bytes_whatever_the_number_of_processes(tree, tmp_path):
    write_demo(tmp_path / "again", seed=3, sizes=SIZES, num_proc=2)
    assert digest(tmp_path / "again") == digest(tree)


def test_another_seed_shares_no_clip(tree, tmp_path):
    write_demo(tmp_path, seed=4, sizes={"train": 2, "val": 1, "test": 1}, num_proc=1)
    assert not set(digest(tmp_path).values()) & set(digest(tree).values())


def test_a_clip_does_not_depend_on_how_many_there_are(tree, tmp_path):
    write_demo(tmp_path, seed=3, sizes={"train": 3, "val": 0, "test": 0}, num_proc=1)
    small, large = digest(tmp_path), digest(tree)
    media = [name for name in small if not name.endswith(".csv")]
    assert len([name for name in media if "silent_masks" not in name]) == 3 * 11
    assert all(small[name] == large[name] for name in media)


def test_existing_tree_is_never_touched(tree):
    before = digest(tree)
    with pytest.raises(FileExistsError, match="Choose another folder or remove it"):
        write_demo(tree, seed=5, sizes=SIZES)
    assert digest(tree) == before
    assert write_demo(tree, seed=3, sizes=SIZES) is False
    assert digest(tree) == before


def test_a_tree_that_lacks_a_file_is_not_taken_for_whole(tmp_path):
    assert write_demo(tmp_path, sizes={"test": 2}, num_proc=1) is True
    next(tmp_path.rglob("*_3.png")).unlink()
    with pytest.raises(FileExistsError, match="a part of it"):
        write_demo(tmp_path, sizes={"test": 2}, num_proc=1)


def test_nothing_half_written_is_left_behind(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(sounds.soundfile, "write", fails)
    with pytest.raises(OSError, match="No space left"):
        write_demo(tmp_path, sizes=SIZES, num_proc=1)
    assert list(tmp_path.iterdir()) == []


def test_silent_object_is_of_the_same_group_and_mutual():
    # S4's groups, written out here on purpose: an off-screen sound, drawn from another group, is then never visible.
    group = {
        "playing_piano": "music",
        "playing_violin": "music",
        "male_speech": "human",
        "baby_laughter": "human",
        "dog_barking": "animal",
        "mynah_bird_singing": "animal",
        "helicopter": "device",
        "ambulance_siren": "device",
    }
    for category, (partner, *_) in LOOKS.items():
        assert partner != category
        assert LOOKS[partner][0] == category
        assert group[partner] == group[category]


@pytest.mark.parametrize("category", DEMO_CATEGORIES)
def test_sound_is_heard_in_every_second_and_never_clips(category):
    sound = make_sound(category, np.random.default_rng(1))
    assert sound.shape == (80000,) and sound.dtype == np.float32
    assert np.abs(sound).max() < 1
    loudness = np.sqrt((sound.reshape(5, 16000) ** 2).mean(1))
    assert loudness.min() > 0.25 * loudness.max()


def test_mask_marks_the_first_object_where_it_is_seen():
    frames, masks, _ = draw_scene(["ambulance_siren", "helicopter"], np.random.default_rng(2))
    assert frames.shape == (5, 64, 64, 3) and masks.shape == (5, 64, 64)
    for frame, mask in zip(frames.astype(int), masks, strict=True):
        inside = mask > 0
        assert 0.03 < inside.mean() < 0.2
        magenta = np.minimum(frame[..., 0], frame[..., 2]) - frame[..., 1]  # the siren's hue
        assert magenta[inside].mean() > 60 > 30 > abs(magenta[~inside].mean())


def test_silent_mask_marks_the_other_object_where_it_is_seen():
    categories = ["ambulance_siren", "helicopter"]
    for seed in range(20):
        frames, masks, silent_masks = draw_scene(categories, np.random.default_rng(seed))
        assert silent_masks.shape == masks.shape and set(np.unique(silent_masks)) == {0, 255}
        assert not (masks.astype(bool) & silent_masks.astype(bool)).any()
        blue = (frames[..., 2].astype(int) - frames[..., 0])[silent_masks > 0]  # the helicopter's hue
        magenta = (frames[..., 2].astype(int) - frames[..., 0])[masks > 0]
        assert blue.mean() > 80 > 40 > abs(magenta.mean())
    _, _, none = draw_scene(categories[:1], np.random.default_rng(2))
    assert none.shape == (5, 64, 64) and not none.any()


@pytest.mark.parametrize("seed", range(5))
def test_half_of_the_test_clips_and_a_tenth_of_the_others_show_two_objects(seed):
    shows_two = dict.fromkeys(DEMO_SIZES, 0)
    for clip in _plan(seed, DEMO_SIZES):
        shows_two[clip.split] += len(_start_clip(seed, clip)[0]) - 1
    assert 60 <= shows_two["test"] <= 100  # of 160
    assert 50 <= shows_two["train"] <= 110 and 1 <= shows_two["val"] <= 18  # of 800 and 80


@pytest.mark.slow
def test_silent_masks_lie_beside_the_masks_of_the_clips_that_show_two(tmp_path):
    sizes = {"train": 24, "val": 2, "test": 12}
    write_demo(tmp_path, seed=3, sizes=sizes, num_proc=1)
    shows_two = {clip.clip_id: len(_start_clip(3, clip)[0]) > 1 for clip in _plan(3, sizes)}
    found = {
        clip.clip_id: silent_mask_files(SUBSETS["demo"], tmp_path, clip)
        for clip in read_clips(SUBSETS["demo"], tmp_path)
    }
    assert {clip_id: bool(files) for clip_id, files in found.items()} == shows_two
    assert any(shows_two.values()) and not all(shows_two.values())
    for clip_id, files in found.items():
        assert [path.name for path in files] == [f"{clip_id}_{k}.png" for k in range(1, 6) if shows_two[clip_id]]
        for path in files:
            sounding = str(path).replace("/silent_masks/", "/gt_masks/")
            with Image.open(path) as silent, Image.open(sounding) as mask:
                assert not (np.asarray(silent).astype(bool) & np.asarray(mask).astype(bool)).any()
    assert all(not silent_mask_files(SUBSETS["s4"], tmp_path, clip) for clip in read_clips(SUBSETS["s4"], tmp_path))
    next(path for files in found.values() for path in files).unlink()
    with pytest.raises(FileExistsError, match="a part of it"):
        write_demo(tmp_path, seed=3, sizes=sizes, num_proc=1)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", "c089767a51aa9f7b13287e0e548194f02a0048747c314b3cb88e8ae802b852c5"),
        ("val", "9c3d9c6042a5998a46b1dafbbaf770bee37041eaab86015748b963f7c360316e"),
    ],
)
def test_training_and_validation_clips_are_those_of_earlier_versions(tmp_path, split, expected):
    write_demo(tmp_path, seed=3, sizes={split: 12}, num_proc=1)
    content = hashlib.sha256()
    media = tmp_path / "Single-source" / "s4_data"
    for kind in ("visual_frames", "gt_masks"):
        for path in sorted((media / kind).rglob("*.png")):
            with Image.open(path) as image:
                content.update(np.asarray(image).tobytes())
    for path in sorted((media / "audio_wav").rglob("*.wav")):
        content.update(soundfile.read(path, dtype="int16")[0].tobytes())
    assert content.hexdigest() == expected
