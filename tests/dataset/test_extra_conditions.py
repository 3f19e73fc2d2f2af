"""Splits of conditions beyond the benchmark's four, and of a condition that is new to the project."""

import hashlib
import itertools

import datasets
import numpy as np
import pytest
import soundfile

from avsbench_robust_dataset.__main__ import main
from avsbench_robust_dataset.conditions import CONDITIONS, Condition, generator, get_condition, mix, noise
from avsbench_robust_dataset.unseen import draw_unseen, find_wavs, folder_digest, unseen_source
from avsbench_robust_dataset.waveform import sound_keys


@pytest.fixture
def wavs(tmp_path):
    """Three sounds of different content, one in a folder below, and files that are none."""
    folder = tmp_path / "unseen"
    (folder / "rain").mkdir(parents=True)
    for k, name in enumerate(("b.wav", "a.WAV", "rain/c.wav")):
        soundfile.write(folder / name, np.full(80000, (k + 1) / 8), 16000, subtype="PCM_16", format="WAV")
    (folder / "notes.txt").write_text("")
    (folder / "._b.wav").write_text("")
    return folder


def test_wavs_are_sorted_by_name(wavs):
    assert [path.relative_to(wavs).as_posix() for path in find_wavs(wavs)] == ["a.WAV", "b.wav", "rain/c.wav"]
    with pytest.raises(FileNotFoundError, match="holds none"):
        find_wavs((wavs / "empty").mkdir() or wavs / "empty")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        find_wavs(wavs / "nowhere")


def test_the_draw_is_even_and_of_its_arguments_alone(wavs):
    files, clip_ids = find_wavs(wavs), [f"clip{k}" for k in range(8)]
    drawn = draw_unseen(clip_ids, files, 42, "s4", "test")
    assert draw_unseen(clip_ids[::-1], files, 42, "s4", "test") == drawn
    uses = sorted(list(drawn.values()).count(path) for path in files)
    assert uses == [2, 3, 3]
    others = [
        draw_unseen(clip_ids, files, *key) for key in ((43, "s4", "test"), (42, "ms3", "test"), (42, "s4", "val"))
    ]
    assert all(other != drawn for other in others)
    # of names, not of places: the same folder elsewhere gives the same names
    moved = draw_unseen(clip_ids, [path.relative_to(wavs) for path in files], 42, "s4", "test")
    assert {k: wavs / v for k, v in moved.items()} == drawn
    words = np.random.PCG64(int(hashlib.sha256(b"42/s4/test/unseen").hexdigest(), 16)).random_raw(9).tolist()
    rounds = [sorted(range(3), key=words[start : start + 3].__getitem__) for start in (0, 3, 6)]
    assert list(drawn.values()) == [files[place] for order in rounds for place in order][:8]


def test_the_digest_is_of_names_and_content(wavs):
    before = folder_digest(wavs)
    assert before == folder_digest(wavs)
    (wavs / "b.wav").rename(wavs / "d.wav")
    renamed = folder_digest(wavs)
    soundfile.write(wavs / "d.wav", np.zeros(8), 16000)
    assert len({before, renamed, folder_digest(wavs)}) == 3


def heard(split) -> list[np.ndarray]:
    assert {row["audio"]["sampling_rate"] for row in split} == {16000}
    return [np.array(row["audio"]["array"], np.float32) for row in split]


def test_extra_conditions_are_splits(write_s4, load, wavs, tmp_path):
    root = write_s4(tmp_path / "tree")
    four = load("s4", root)
    names = ("unseen", "mixed_snr_3", "noise_snr_-3", "noise_snr_20", "positive")
    extra = load("s4", root, conditions=names, unseen_dir=wavs)
    expected = ["unseen", "mixed_snr_3", "noise_snr_m3", "noise_snr_20", "positive"]
    assert list(extra) == [f"{split}_{name}" for split in ("train", "validation", "test") for name in expected]
    own, other, white = (heard(four[f"test_{name}"]) for name in ("positive", "off_screen", "noise"))
    for got, *pair in zip(heard(extra["test_mixed_snr_3"]), own, other, strict=True):
        np.testing.assert_array_equal(got, mix(*pair, 3))
    for name, snr in (("noise_snr_m3", -3), ("noise_snr_20", 20)):  # the noise of the clip's noise condition
        for got, *pair in zip(heard(extra[f"test_{name}"]), own, white, strict=True):
            np.testing.assert_array_equal(got, mix(*pair, snr))
    np.testing.assert_array_equal(heard(extra["test_positive"]), own)
    np.testing.assert_array_equal(
        white[0], noise(None, generator(42, "s4", "test", "noise", four["test_noise"][0]["clip_id"]))
    )
    unseen = extra["test_unseen"]
    levels = {"a.WAV": 2 / 8, "b.wav": 1 / 8, "rain/c.wav": 3 / 8}
    drawn = draw_unseen(unseen["clip_id"], find_wavs(wavs), 42, "s4", "test")
    for row, waveform in zip(unseen, heard(unseen), strict=True):
        assert row["audio_source"] == drawn[row["clip_id"]].relative_to(wavs).as_posix()
        assert set(waveform.tolist()) == {levels[row["audio_source"]]} and row["audio_category"] == ""
    mixed = extra["test_mixed_snr_3"]
    assert mixed["audio_source"][:] == mixed["clip_id"][:] == four["test_positive"]["clip_id"][:]
    assert mixed.features["condition"].names == [*CONDITIONS, *names[:-1]]  # the four keep their numbers
    assert [mixed.features["condition"].int2str(row["condition"]) for row in mixed] == ["mixed_snr_3"] * 3
    assert extra["test_positive"]["condition"][:] == [0, 0, 0]


def test_unseen_without_a_folder_and_timbres_are_made_from_their_keys(write_s4, load, tmp_path):
    loaded = load("s4", write_s4(tmp_path / "tree"), conditions=("unseen", "timbre"), seed=7)
    for name in ("unseen", "timbre"):
        split = loaded[f"test_{name}"]
        for row, waveform in zip(split, heard(split), strict=True):
            rng = generator(7, "s4", "test", name, row["clip_id"])
            np.testing.assert_array_equal(waveform, get_condition(name).make(None, rng, None))
            assert (row["audio_source"], row["audio_category"]) == ("", "")
        assert len(set(sound_keys(split))) == len(split)


def test_muted_is_a_split_that_says_which_frames_are_heard(write_s4, load, tmp_path):
    root = write_s4(tmp_path / "tree")
    loaded = load("s4", root, conditions=("positive", "muted"), seed=7)
    stream = load("s4", root, conditions=("positive", "muted"), seed=7, streaming=True)
    assert "heard" not in load("s4", root)["test_positive"].features
    for row, own, streamed in zip(loaded["test_muted"], loaded["test_positive"], stream["test_muted"], strict=True):
        rng = generator(7, "s4", "test", "muted", row["clip_id"])
        expected = get_condition("muted").make(np.array(own["audio"]["array"], np.float32), rng, None)
        np.testing.assert_array_equal(row["audio"]["array"], expected)
        np.testing.assert_array_equal(streamed["audio"]["array"], expected)
        seconds = np.reshape(row["audio"]["array"], (5, 16000))
        assert row["heard"] == streamed["heard"] == seconds.any(axis=1).tolist() and sum(row["heard"]) == 3
        assert own["heard"] == [True] * 5 and row["audio_source"] == row["clip_id"]
    assert len(set(sound_keys(loaded["test_muted"]))) == 3


def test_recorded_sounds_come_from_their_own_folder_by_a_draw_of_their_own(write_s4, load, wavs, tmp_path):
    root = write_s4(tmp_path / "tree")
    loaded = load("s4", root, conditions=("unseen", "recorded"), unseen_dir=wavs, negative_dir=wavs)
    for name in ("unseen", "recorded"):
        split = loaded[f"test_{name}"]
        drawn = draw_unseen(split["clip_id"], find_wavs(wavs), 42, "s4", "test", name)
        assert split["audio_source"][:] == [drawn[clip].relative_to(wavs).as_posix() for clip in split["clip_id"]]
    assert set(sound_keys(loaded["test_unseen"])) == set(sound_keys(loaded["test_recorded"]))  # the same three files


def test_the_source_of_unseen_sounds(wavs):
    assert unseen_source(wavs) == {
        "unseen_source": "unseen",
        "unseen_sha256": folder_digest(wavs),
    }
    built_in = unseen_source(None)
    assert built_in["unseen_source"] == "built-in" and len(built_in["unseen_sha256"]) == 64


@pytest.mark.slow
def test_each_way_to_load_gives_the_same_sounds(write_s4, load, wavs, tmp_path):
    root = write_s4(tmp_path / "tree")
    options = dict(conditions=["unseen", "mixed_snr_0", "noise_snr_0"], unseen_dir=str(wavs))
    loaded, stream = load("s4", root, **options), load("s4", root, streaming=True, **options)
    for name in loaded:
        loaded[name].save_to_disk(tmp_path / name)
        saved = datasets.load_from_disk(tmp_path / name)
        np.testing.assert_array_equal(heard(loaded[name]), heard(stream[name]))
        np.testing.assert_array_equal(heard(loaded[name]), heard(saved))


def test_what_is_asked_for_decides_the_cache(write_s4, load, wavs, tmp_path, built):
    root = write_s4(tmp_path / "tree")
    load("s4", root)
    load("s4", root, conditions=["positive", "silence", "noise", "off_screen"])
    assert len(built()) == 1
    load("s4", root, conditions=["positive"])
    load("s4", root, conditions=["unseen"], unseen_dir=wavs)
    load("s4", root, conditions=("unseen",), unseen_dir=str(wavs))
    assert len(built()) == 3
    soundfile.write(wavs / "b.wav", np.full(80000, 7 / 8), 16000, subtype="PCM_16")
    again = load("s4", root, conditions=["unseen"], unseen_dir=wavs)
    assert len(built()) == 4 and 7 / 8 in {waveform[0] for waveform in heard(again["train_unseen"])}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"conditions": ["slience"]}, "got 'slience'"),
        ({"conditions": "silence"}, "as names.*got 'silence'"),
        ({"conditions": []}, "as names"),
        ({"conditions": ["silence", "silence"]}, "once, got silence, silence"),
        ({"conditions": ["noise_snr_-5", "noise_snr_m5"]}, "once, got noise_snr_-5"),
        ({"conditions": ["recorded"]}, "`negative_dir`.* for the condition `recorded`"),
        ({"negative_dir": "sounds"}, "`negative_dir`.*together with .*recorded"),
        ({"unseen_dir": "sounds"}, "`unseen_dir`.*together with .*unseen"),
        ({"conditions": ["unseen"], "unseen_dir": "nowhere"}, "nowhere, but there is no such folder"),
    ],
)
def test_wrong_conditions(write_s4, load, tmp_path, options, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        load("s4", write_s4(tmp_path / "tree", media=False), **options)


def test_keys_are_equal_exactly_where_sounds_are(write_s4, load, wavs, tmp_path):
    root = write_s4(tmp_path / "tree")
    wav = next((root / "Single-source/s4_data/audio_wav/test").rglob("*.wav"))
    soundfile.write(wav, np.sin(np.arange(220500) / 50) / 2, 44100)  # stored as samples
    names = (*CONDITIONS, "unseen", "mixed_snr_0", "mixed_snr_10", "noise_snr_0")
    loaded = load("s4", root, conditions=names, unseen_dir=wavs)
    rows = [
        (key, waveform.tobytes())
        for name in names
        for key, waveform in zip(sound_keys(loaded[f"test_{name}"]), heard(loaded[f"test_{name}"]), strict=True)
    ]
    for (key, sound), (other_key, other_sound) in itertools.combinations(rows, 2):
        assert (key == other_key) == (sound == other_sound), (key, other_key)
    assert sound_keys(loaded["test_noise"].select([2, 0])) == [sound_keys(loaded["test_noise"])[k] for k in (2, 0)]
    loaded["test_positive"].save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(tmp_path / "saved")
    assert len(set(sound_keys(saved))) == 3 and sound_keys(saved) != sound_keys(loaded["test_positive"])


def hum(own, rng, partner):
    """A procedural sound that uses nothing of a file."""
    return (np.sin(np.arange(80000) * (rng.bit_generator.random_raw() / 2**66)) / 2).astype(np.float32)


def louder(own, rng, partner):
    return np.float32(0.5) * own + np.float32(0.25) * partner


@pytest.fixture
def toys(monkeypatch):
    """Two conditions that are nowhere but in `CONDITIONS`."""
    monkeypatch.setitem(CONDITIONS, "hum", Condition("hum", hum, is_random=True))
    monkeypatch.setitem(
        CONDITIONS, "louder", Condition("louder", louder, needs_own=True, partner="off_screen", heard="all")
    )


@pytest.mark.slow
def test_a_new_condition_is_one_entry(write_s4, load, toys, tmp_path):
    root = write_s4(tmp_path / "tree")
    loaded, stream = load("s4", root), load("s4", root, streaming=True)
    assert [name for name in loaded if name.startswith("test_")] == [f"test_{name}" for name in CONDITIONS]
    own, other = heard(loaded["test_positive"]), heard(loaded["test_off_screen"])
    expected = {
        "hum": [hum(None, generator(42, "s4", "test", "hum", name), None) for name in loaded["test_hum"]["clip_id"]],
        "louder": [louder(a, None, b) for a, b in zip(own, other, strict=True)],
    }
    assert main(["audio", "--data_dir", str(root), "--out", str(tmp_path / "wav"), "--conditions", *expected]) == 0
    assert main(["export", "--data_dir", str(root), "--out", str(tmp_path / "parquet"), "--num_proc", "1"]) == 0
    exported = datasets.load_dataset(str(tmp_path / "parquet"), "s4")
    for name, sounds in expected.items():
        assert loaded[f"test_{name}"][0]["condition"] == list(CONDITIONS).index(name)
        for way in (loaded, stream, exported):
            np.testing.assert_array_equal(heard(way[f"test_{name}"]), sounds)
        for row, sound in zip(loaded[f"test_{name}"], sounds, strict=True):
            [wav] = (tmp_path / "wav" / name).rglob(f"test/*/{row['clip_id']}.wav")
            np.testing.assert_allclose(soundfile.read(wav)[0], sound, atol=1 / 32768)
        assert len(set(sound_keys(loaded[f"test_{name}"]))) == 3
