"""The command line: manifest and its verification, check, demo."""

import gzip
import hashlib
import json
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avsbench_robust_dataset import SUBSETS
from avsbench_robust_dataset.__main__ import main
from avsbench_robust_dataset.draw import read_manifest
from avsbench_robust_dataset.sounds import is_mute, missing_share
from avsbench_robust_dataset.sources import media_files, read_clips

MANIFESTS = Path(sys.modules["avsbench_robust_dataset"].__file__).with_name("manifests")
PUBLISHED = MANIFESTS / "s4_seed42.jsonl.gz"
PUBLISHED_MS3 = MANIFESTS / "ms3_seed42.jsonl.gz"  # with AVSS's labels
MS3_DIGEST = "sha256 64d5ee101b8b009c39b66d36cfee5ae48ce18d805b338ab2cfc7aa2a1f28a6ba\n"
METADATA = Path(__file__).resolve().parents[3] / "shared" / "avsbench_metadata"


def test_manifest_needs_the_table_only(write_s4, tmp_path, capsys):
    write_s4(tmp_path, media=False)
    assert main(["manifest", "--subset", "s4", "--seed", "42", "--data_dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    *lines, last = out.splitlines(keepends=True)
    assert last == f"sha256 {hashlib.sha256(''.join(lines).encode()).hexdigest()}\n"
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 10
    assert [(row["split"], row["clip_id"]) for row in rows] == sorted((row["split"], row["clip_id"]) for row in rows)
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert "val: 2 clips, every sound used once, relaxed: none" in err


def test_manifest_depends_on_seed_and_draw_but_not_on_the_order_of_the_rows(write_s4, tmp_path, capsys):
    rows = [(f"clip{i:05d}", ("dog_barking", "race_car", "playing_piano")[i % 3], "train") for i in range(30)]

    def digest(rows, *options):
        write_s4(tmp_path, rows, media=False)
        assert main(["manifest", "--data_dir", str(tmp_path), *options]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    base = digest(rows)
    assert digest(rows[::-1]) == base == digest(rows, "--seed", "42", "--draw", "matched")
    assert len({base, digest(rows, "--seed", "43"), digest(rows, "--draw", "released")}) == 3


@pytest.fixture
def own_manifest(write_s4, tmp_path, capsys):
    """A small tree and the file that `avs-data manifest` prints of it."""
    write_s4(tmp_path, media=False)
    assert main(["manifest", "--data_dir", str(tmp_path)]) == 0
    path = tmp_path / "manifest.jsonl"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


def verify(path, *options):
    return main(["manifest", "--verify", str(path), "--data_dir", str(path.parent), *options])


def test_verify_the_same_draw(own_manifest, capsys):
    assert verify(own_manifest) == 0
    assert f"all 10 rows of {own_manifest} equal" in capsys.readouterr().out
    own_manifest.write_bytes(gzip.compress(own_manifest.read_bytes()))
    assert verify(own_manifest) == 0


def test_verify_names_rows_and_both_values(own_manifest, capsys):
    *lines, _ = own_manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    place = next(i for i, row in enumerate(rows) if row["clip_id"] == "car00000002")
    before = rows[place]["off_screen_source"]
    rows[place]["off_screen_source"] = "elsewhere00"
    removed = rows.pop(place - 1)
    rows.append({**removed, "clip_id": "another0000"})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    own_manifest.write_text(text + f"sha256 {hashlib.sha256(text.encode()).hexdigest()}\n", encoding="utf-8")
    assert verify(own_manifest) == 1
    out = capsys.readouterr().out
    assert f'test car00000002: off_screen_source "elsewhere00" in the file, "{before}" here\n' in out
    assert f"{removed['split']} another0000: only in the file\n" in out
    assert f"{removed['split']} {removed['clip_id']}: only in the draw here\n" in out
    assert "3 rows differ" in out and out.count("\n") == 4
    rows[-1] = removed
    text = "".join(json.dumps(row) + "\n" for row in rows)
    own_manifest.write_text(text + f"sha256 {hashlib.sha256(text.encode()).hexdigest()}\n", encoding="utf-8")
    assert verify(own_manifest) == 1 and "\n1 row differs between" in capsys.readouterr().out


def test_verify_of_another_seed_and_of_a_stale_digest(write_s4, own_manifest, capsys):
    rows = [(f"clip{i:05d}", ("dog_barking", "race_car", "playing_piano")[i % 3], "train") for i in range(30)]
    write_s4(own_manifest.parent, rows, media=False)
    assert main(["manifest", "--data_dir", str(own_manifest.parent)]) == 0
    text = capsys.readouterr().out
    own_manifest.write_text(text, encoding="utf-8")
    assert verify(own_manifest) == 0 and verify(own_manifest, "--seed", "43") == 1
    assert capsys.readouterr().out.endswith(")\nis it of another --subset, --seed or --draw?\n")
    for cut in (text.replace("sha256 ", "sha256 0"), text[: text.index("sha256")]):
        own_manifest.write_text(cut, encoding="utf-8")
        assert verify(own_manifest) == 1
        out = capsys.readouterr().out
        assert out.endswith("does not end with the SHA-256 of its own rows: it was changed or cut off\n")
    own_manifest.write_text(text[: text.index("\n") + 1])  # most rows are cut off: no doubt about --seed
    assert verify(own_manifest) == 1
    out = capsys.readouterr().out
    assert "29 rows differ" in out and "--seed" not in out


def test_verify_of_something_else(own_manifest, capsys):
    for content, message in (("[1, 2]\n", "line 1"), ('{"split": "test"}\n', "clip_id"), ("{\n", "line 1")):
        own_manifest.write_text(content, encoding="utf-8")
        assert verify(own_manifest) == 1
        assert message in capsys.readouterr().err
    own_manifest.write_bytes(gzip.compress(b"{}" * 100)[:-9])
    assert verify(own_manifest) == 1 and "gzip" in capsys.readouterr().err
    own_manifest.unlink()
    assert verify(own_manifest) == 1 and str(own_manifest) in capsys.readouterr().err


def test_the_published_manifest_is_reproduced(write_s4, tmp_path, capsys):
    """It holds clip ids, splits and categories: all that the draw depends on."""
    rows, is_whole = read_manifest(PUBLISHED)
    assert is_whole and len(rows) == 4932
    write_s4(tmp_path, [(row["clip_id"], row["category"], row["split"]) for row in rows[::-1]], media=False)
    assert main(["manifest", "--verify", str(PUBLISHED), "--data_dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.endswith("sha256 b0689a4fa7fe72404f30f755e0e0c9cfc8207038319b23ea86fed1f837d69689\n")


def test_the_published_ms3_manifest_is_reproduced(write_ms3, tmp_path, capsys):
    rows, is_whole = read_manifest(PUBLISHED_MS3)
    assert is_whole and Counter(row["split"] for row in rows) == {"train": 296, "val": 64, "test": 64}
    assert all(row["category"] for row in rows)
    write_ms3(tmp_path, [(row["clip_id"], row["category"], row["split"]) for row in rows[::-1]], media=False)
    assert main(["manifest", "--subset", "ms3", "--data_dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out == gzip.decompress(PUBLISHED_MS3.read_bytes()).decode() and out.endswith(MS3_DIGEST)
    assert "test: 64 clips, 8 sounds unused, one used up to 2 times, relaxed: none" in err
    assert "human > music 16, music > human 16, human+music > animal 6" in err
    assert err.count("not one to one") == 1 and "AUC of 0.55 in train, 0.61 in val, 0.61 in test" in err


def test_the_published_ms3_manifest_is_that_of_the_real_tables(tmp_path, capsys):
    if not METADATA.is_dir():
        pytest.skip("needs AVSBench's real tables in ../shared/avsbench_metadata")
    (tmp_path / "AVSS").mkdir()
    (tmp_path / "AVSS/metadata.csv").write_bytes((METADATA / "avss_metadata.csv").read_bytes())
    (tmp_path / "ms3_meta_data.csv").write_bytes((METADATA / "ms3_meta_data.csv").read_bytes())
    command = ["manifest", "--subset", "ms3", "--verify", str(PUBLISHED_MS3), "--data_dir", str(tmp_path)]
    assert main(command) == 0
    assert capsys.readouterr().out.endswith(MS3_DIGEST)


def test_check_of_a_whole_tree(write_s4, write_ms3, tmp_path, capsys):
    write_s4(tmp_path)
    assert main(["check", "--subset", "s4", "--data_dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "train: 5 clips, missing: nothing, unreadable: 0" in out
    assert "AVSBench's own table has 4932 clips of s4: this one was cut short or is another" in out
    write_ms3(tmp_path)
    assert main(["check", "--subset", "ms3", "--data_dir", str(tmp_path)]) == 0
    assert "AVSS/metadata.csv" in capsys.readouterr().out


def test_check_counts_what_is_missing_or_broken(write_ms3, tmp_path, capsys):
    write_ms3(tmp_path, metadata=False)
    clips = {clip.clip_id: clip for clip in read_clips(SUBSETS["ms3"], tmp_path)}
    frames, masks, wav = media_files(SUBSETS["ms3"], tmp_path, clips["ddddddddddd_0"])
    frames[1].unlink()
    for path in masks:
        path.unlink()
    frames[0].write_bytes(frames[0].read_bytes()[:60])
    soundfile.write(wav, [], 16000)
    (wav.parent / ".DS_Store").write_bytes(b"")
    assert main(["check", "--subset", "ms3", "--data_dir", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "no AVSS metadata.csv" in out
    assert "val: 2 clips, missing: 1 frames, 5 masks, unreadable: 2" in out
    assert f"{frames[1]}\n" in out and "… and 2 more" in out and str(frames[0]) in out and str(wav) in out
    assert "train: 4 clips, missing: nothing, unreadable: 0" in out
    assert ".DS_Store" not in out


def spoil_sounds(root):
    """The wav files of the three test clips of `write_s4`: cut off, mute and short."""
    clips = {clip.clip_id: clip for clip in read_clips(SUBSETS["s4"], root)}
    names = ("dog00000002", "car00000002", "violin00002")
    cut, mute, short = (media_files(SUBSETS["s4"], root, clips[name])[2] for name in names)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 3])
    soundfile.write(mute, np.full(80000, 20, dtype=np.int16), 16000)  # of 32768
    samples, rate = soundfile.read(short)
    soundfile.write(short, samples[:4800], rate)
    return cut, mute, short


def test_check_names_cut_mute_and_short_sounds(write_s4, tmp_path, capsys):
    cut, mute, short = spoil_sounds(write_s4(tmp_path))
    assert main(["check", "--data_dir", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "test: 3 clips, missing: nothing, unreadable: 0" in out
    assert f"cut off: 1. Download them again:\n    {cut}: ends after 1.67 of the 5.00 s" in out
    assert "mute: 1. A mute clip's own sound is its silence condition once more" in out
    assert f"hears silence:\n    {mute}\n" in out
    assert f"shorter than a second: 1. The rest of the 5 seconds is made up:\n    {short}: 0.30 s\n" in out
    assert out.count(": 1.") == 3 and out.count(".wav") == 3
    soundfile.write(cut, np.full((72000, 2), 0.1), 16000, subtype="FLOAT")
    assert main(["check", "--data_dir", str(tmp_path)]) == 0  # AVSBench itself has mute and short sounds
    out = capsys.readouterr().out
    assert str(cut) not in out and str(mute) in out and str(short) in out


@pytest.mark.parametrize("peak, mute", [(0.0, True), (1e-5, True), (-1e-5, True), (0.5, False), (-0.5, False)])
def test_a_sound_below_zero_is_a_sound(peak, mute):
    assert is_mute(np.full(16000, peak, dtype=np.float32)) == mute


def test_mute_clips_of_the_rows_that_a_model_hears(write_s4, load, tmp_path):
    _, mute, _ = spoil_sounds(write_s4(tmp_path / "data"))
    loaded = load("s4", tmp_path / "data")

    def found(name):
        return [row["clip_id"] for row in loaded[name] if is_mute(row["audio"]["array"])]

    assert found("test_positive") == [mute.stem] and found("train_positive") == []
    hears_it = [row["clip_id"] for row in loaded["test_off_screen"] if row["audio_source"] == mute.stem]
    assert found("test_off_screen") == hears_it and hears_it
    assert len(found("test_silence")) == 3 and found("test_noise") == []


@pytest.mark.parametrize(
    ("header_length", "missing"), [(200, 0.0), (400, 0.5), (201, 1 / 201), (2**32 - 1, 0.0), (0x7FFFF000, 0.0)]
)
def test_what_a_wav_lacks_by_its_header(tmp_path, header_length, missing):
    path = tmp_path / "a.wav"
    chunks = b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"data" + struct.pack("<I", header_length) + bytes(200)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    assert missing_share(path) == missing


def test_other_formats_are_not_judged_by_a_header(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 16000, format="FLAC")
    assert missing_share(tmp_path / "a.wav") == 0
    (tmp_path / "b.wav").write_bytes(b"RIFF\0\0\0\0WAVE" + bytes(10**6))  # chunks of no length, without end
    assert missing_share(tmp_path / "b.wav") == 0


@pytest.mark.parametrize(
    "options", [{"subtype": "PCM_16"}, {"subtype": "FLOAT"}, {"format": "WAVEX", "subtype": "PCM_24"}]
)
def test_a_wav_that_lost_half_of_its_samples(tmp_path, options):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16000), 16000, **options)
    assert missing_share(path) == 0
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert missing_share(path) == pytest.approx(0.5, abs=0.01)


def test_check_names_what_was_looked_for(tmp_path, capsys):
    assert main(["check", "--subset", "s4", "--data_dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "Single-source/s4_meta_data.csv" in err and "avs-data demo --out data_demo" in err


def test_bad_tables_are_reported_without_a_traceback(tmp_path, capsys):
    (tmp_path / "s4_meta_data.csv").write_text("name,split\n")
    assert main(["manifest", "--data_dir", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Add category" in err


def test_demo_writes_a_tree_that_check_accepts(tmp_path, monkeypatch, capsys):
    from avsbench_robust_dataset import synthetic

    monkeypatch.setattr(synthetic, "DEMO_SIZES", {"train": 8, "val": 4, "test": 4})
    assert main(["demo", "--out", str(tmp_path / "data_demo")]) == 0
    for subset in ("demo", "s4"):
        assert main(["check", "--subset", subset, "--data_dir", str(tmp_path / "data_demo")]) == 0
    assert main(["demo", "--out", str(tmp_path / "data_demo")]) == 0  # after a kill at the very end, say
    assert "This demo is there already: " in capsys.readouterr().out
    assert main(["demo", "--out", str(tmp_path / "data_demo"), "--seed", "1"]) == 1  # never over another tree
    assert "Single-source" in capsys.readouterr().err


@pytest.mark.slow
def test_manifest_of_the_real_s4_is_one_to_one_and_pinned():
    """4932 real rows, in a process of its own, within 5 s of processor time."""
    if not METADATA.is_dir():
        pytest.skip("needs AVSBench's real tables in ../shared/avsbench_metadata")
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "avsbench_robust_dataset", "manifest", "--seed", "42", "--data_dir", str(METADATA)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{time.perf_counter() - started:.1f} s, {spent:.1f} s of processor time")
    assert spent < 5
    *lines, last = done.stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 4932
    for split, count in {"train": 3452, "val": 740, "test": 740}.items():
        of_split = [row for row in rows if row["split"] == split]
        ids = {row["clip_id"] for row in of_split}
        assert len(ids) == count
        assert {row["off_screen_source"] for row in of_split} == ids
    assert {row["relaxation"] for row in rows} == {None}
    assert last == "sha256 b0689a4fa7fe72404f30f755e0e0c9cfc8207038319b23ea86fed1f837d69689"


def test_real_ms3_without_labels_is_one_to_one(capsys):
    if not METADATA.is_dir():
        pytest.skip("needs AVSBench's real tables in ../shared/avsbench_metadata")
    assert main(["manifest", "--subset", "ms3", "--data_dir", str(METADATA)]) == 0
    *lines, _ = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 424 and {row["category"] for row in rows} == {""}
    assert len({row["off_screen_source"] for row in rows}) == 424
    subset = SUBSETS["ms3"]
    sources = {
        split: {subset.source_video(r["clip_id"]) for r in rows if r["split"] == split}
        for split in ("train", "val", "test")
    }
    shared = [v for v in set.union(*sources.values()) if sum(v in videos for videos in sources.values()) > 1]
    assert len(set.union(*sources.values())) == 219 and len(shared) == 56  # the leak that the data card states
    for row in rows:
        assert subset.source_video(row["clip_id"]) != subset.source_video(row["off_screen_source"])


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(write_s4, tmp_path):
    write_s4(
        tmp_path, [(f"clip{i:05d}", ("dog_barking", "race_car")[i % 2], "train") for i in range(2000)], media=False
    )
    command = f"{sys.executable} -m avsbench_robust_dataset manifest --data_dir {tmp_path} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
