"""`avs-data audio`: the data set's waveforms as files in AVSBench's layout."""

import numpy as np
import pytest
import soundfile

from avs_engine import log_mel_files
from avsbench_robust_dataset import sounds
from avsbench_robust_dataset.__main__ import main
from modeling_avsegformer.log_mel import log_mel


def export(tree, out, *options):
    return main(["audio", "--subset", "s4", "--data_dir", str(tree), "--out", str(out), *map(str, options)])


def test_files_are_the_splits_waveforms(write_s4, load, tmp_path):
    tree, out = write_s4(tmp_path / "tree"), tmp_path / "out"
    assert export(tree, out) == 0
    splits = load("s4", tree)
    count = 0
    for name, split in splits.items():
        split_name, _, condition = name.partition("_")
        split_name = {"validation": "val"}.get(split_name, split_name)
        for clip in split:
            place = f"Single-source/s4_data/audio_wav/{split_name}/{clip['category']}/{clip['clip_id']}.wav"
            samples, rate = soundfile.read(out / condition / place, dtype="int16")
            info = soundfile.info(out / condition / place)
            assert (info.subtype, rate, samples.shape, info.format) == ("PCM_16", 16000, (80000,), "WAV")
            expected = np.array(clip["audio"]["array"], np.float64) * 32768
            error = np.abs(samples - expected).max()
            assert error == 0 if condition != "noise" else error < 1  # 1 only where a sample is clipped at the top
            count += 1
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) == count == 40  # and no temporary ones


def test_some_conditions_and_splits_and_log_mel(write_s4, load, tmp_path):
    tree, out = write_s4(tmp_path / "tree"), tmp_path / "audio_wav"  # a folder of an unlucky name
    (tmp_path / "unseen").mkdir()
    soundfile.write(tmp_path / "unseen/rain.wav", np.full((48000 * 5, 2), [0.5, 0.25]), 48000, subtype="PCM_16")
    options = [
        "--conditions",
        "silence",
        "unseen",
        "mixed_snr_0",
        "noise_snr_20",
        "--splits",
        "validation",
        "--unseen_dir",
        tmp_path / "unseen",
    ]
    assert export(tree, out, *options) == 0
    assert log_mel_files.main(["--data_dir", str(tree), "--out", str(out), *map(str, options)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["mixed_snr_0", "noise_snr_20", "silence", "unseen"]
    media = out / "{}/Single-source/s4_data/{}/val/race_car/car00000001.{}"

    def read(condition):
        return soundfile.read(str(media).format(condition, "audio_wav", "wav"))[0]

    assert not read("silence").any()
    assert read("unseen")[20000:60000] == pytest.approx(0.375, abs=1e-3)
    own = soundfile.read(tree / "Single-source/s4_data/audio_wav/val/race_car/car00000001.wav")[0]
    added = read("noise_snr_20") - own * (scale := read("noise_snr_20") @ own / (own @ own))
    assert 10 * np.log10(np.mean((scale * own) ** 2) / np.mean(added**2)) == pytest.approx(20, abs=0.2)
    for condition in ("silence", "mixed_snr_0"):
        mel = np.load(str(media).format(condition, "audio_log_mel", "npy"), allow_pickle=False)
        assert mel.shape == (5, 1, 96, 64) and mel.dtype == np.float32
        np.testing.assert_allclose(mel, log_mel(read(condition).astype(np.float32)), atol=2e-2)  # 16 bits' rounding
    assert len([path for path in out.rglob("*") if path.is_file()]) == 4 * 2 * 2


def test_a_failed_write_leaves_what_was_there(write_s4, tmp_path, monkeypatch, capsys):
    tree, out = write_s4(tmp_path / "tree"), tmp_path / "out"
    assert export(tree, out, "--conditions", "silence") == 0
    before = {path: path.read_bytes() for path in out.rglob("*.wav")}

    def fails(file, *_, **__):
        file.write(b"RIFF")
        raise OSError("disk full")

    monkeypatch.setattr(sounds.soundfile, "write", fails)
    assert export(tree, out, "--conditions", "silence") == 1
    assert "avs-data audio: disk full" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_refusals_write_nothing(write_s4, tmp_path, capsys):
    tree, out = write_s4(tmp_path / "tree"), tmp_path / "out"
    for options, message in (
        (["--conditions", "slience"], "slience"),
        (["--conditions", "recorded"], "--negative_dir"),
        (["--unseen_dir", tmp_path], "--unseen_dir"),
        (["--conditions", "unseen", "--unseen_dir", tmp_path / "no"], "there is no such folder"),
    ):
        assert export(tree, out, *options) == 1
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_old_call_for_log_mel_says_where_it_is(tmp_path, capsys):
    assert export(tmp_path, tmp_path / "out", "--log_mel") == 2 and "call avs-log-mel" in capsys.readouterr().err
    assert log_mel_files.main(["--data_dir", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 1
    assert "avs-log-mel: Expected AVSBench's subset s4" in capsys.readouterr().err
