"""Unseen sounds are drawn the same everywhere; further conditions are made from the splits' waveforms."""

import hashlib

import numpy as np
import pytest
import soundfile

from avsbench_robust_dataset.conditions import further_condition, generator, mix, noise
from avsbench_robust_dataset.further import FurtherSounds, draw_unseen, find_wavs, unseen_digest


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
    with pytest.raises(FileNotFoundError, match="is no folder"):
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
    before = unseen_digest(wavs, find_wavs(wavs))
    assert before == unseen_digest(wavs, find_wavs(wavs))
    (wavs / "b.wav").rename(wavs / "d.wav")
    renamed = unseen_digest(wavs, find_wavs(wavs))
    soundfile.write(wavs / "d.wav", np.zeros(8), 16000)
    assert len({before, renamed, unseen_digest(wavs, find_wavs(wavs))}) == 3


def test_sounds_are_made_of_the_splits(write_s4, load, wavs, tmp_path):
    write_s4(tmp_path / "tree")
    names = ["test_positive", "test_off_screen", "test_noise"]
    positive, off_screen, noises = load("s4", tmp_path / "tree", split=names)
    key = (42, "s4", "test")

    def heard(name, partner=None, indices=None):
        sounds = FurtherSounds(further_condition(name), positive, partner, *key)
        assert len(sounds) == 3 and sounds.clip_ids == positive["clip_id"][:]
        sounds = sounds if indices is None else sounds.select(indices)
        assert len(set(sounds.keys)) == len(sounds)
        audio = [sounds[i]["audio"] for i in range(len(sounds))]
        assert {clip["sampling_rate"] for clip in audio} == {16000}
        return [clip["array"] for clip in audio]

    own, other, white = (
        [np.array(clip["audio"]["array"], np.float32) for clip in split] for split in (positive, off_screen, noises)
    )
    for got, *pair in zip(heard("mixed_snr_3", off_screen), own, other, strict=True):
        np.testing.assert_array_equal(got, mix(*pair, 3))
    for got, *pair in zip(heard("noise_snr_-3"), own, white, strict=True):  # the noise of the clip's noise condition
        np.testing.assert_array_equal(got, mix(*pair, -3))
    np.testing.assert_array_equal(
        white[0], noise(own[0], generator(42, "s4", "test", "noise", positive[0]["clip_id"]))
    )
    levels = {"a.WAV": 2 / 8, "b.wav": 1 / 8, "c.wav": 3 / 8}
    drawn = draw_unseen(positive["clip_id"], find_wavs(wavs), *key)
    unseen = heard("unseen", find_wavs(wavs))
    for clip_id, got in zip(positive["clip_id"], unseen, strict=True):
        assert set(got.tolist()) == {levels[drawn[clip_id].name]}
    np.testing.assert_array_equal(heard("unseen", find_wavs(wavs), [2, 0]), [unseen[2], unseen[0]])
    np.testing.assert_array_equal(heard("noise_snr_-3", None, [1]), [mix(own[1], white[1], -3)])
