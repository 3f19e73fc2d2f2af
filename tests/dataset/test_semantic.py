"""AVSBench-semantic and AVSBench-object: one set of clips, one draw, two annotations."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avsbench_robust_dataset import SUBSETS, semantic
from avsbench_robust_dataset.__main__ import main
from avsbench_robust_dataset.builder import locate
from avsbench_robust_dataset.sources import annotation, find_download, media_files, read_clips

METADATA = Path(__file__).resolve().parents[3] / "shared" / "avsbench_metadata"


def manifest(capsys, *options):
    assert main(["manifest", *map(str, options)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("subset", ["s4", "ms3"])
def test_both_layouts_have_one_manifest(write_s4, write_ms3, write_semantic, tmp_path, capsys, subset):
    ours = {"s4": write_s4, "ms3": write_ms3}[subset](tmp_path / "object", media=False)
    semantic = write_semantic(tmp_path / "download" / "AVSS", media=False)
    expected = manifest(capsys, "--subset", subset, "--data_dir", ours)
    assert manifest(capsys, "--subset", subset, "--data_dir", semantic) == expected
    assert manifest(capsys, "--subset", subset, "--data_dir", semantic.parent, "--layout", "semantic") == expected


@pytest.mark.parametrize(("subset", "digest"), [("s4", "b0689a4f"), ("ms3", "64d5ee10")])
def test_the_real_table_of_avss_gives_the_published_manifests(tmp_path, capsys, subset, digest):
    """4932 and 424 real rows, one of which reads "h orse"."""
    if not METADATA.is_dir():
        pytest.skip("needs AVSBench's real tables in ../shared/avsbench_metadata")
    shutil.copy(METADATA / "avss_metadata.csv", tmp_path / "metadata.csv")
    lines = manifest(capsys, "--subset", subset, "--data_dir", tmp_path)
    assert lines.splitlines()[-1].startswith(f"sha256 {digest}")


@pytest.mark.slow
@pytest.mark.parametrize(("subset", "label"), [("s4", "v1s"), ("ms3", "v1m")])
def test_rows_at_avsbench_object_s_size(write_semantic, semantic_mask, load, tmp_path, subset, label):
    root = write_semantic(tmp_path / "AVSS")
    loaded = load(subset, root)
    assert loaded["test_noise"].info.description.endswith("Masks: AVSBench-semantic.")
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        rows = loaded[f"{split}_positive"]
        with (root / "metadata.csv").open(encoding="utf-8") as file:
            expected = [row["vid"] for row in csv.DictReader(file) if (row["label"], row["split"]) == (label, name)]
        assert list(rows["clip_id"]) == sorted(expected)
        for row in rows:
            assert len(row["masks"]) == (1 if (subset, split) == ("s4", "train") else 5)
            for k, mask in enumerate(row["masks"]):
                expected = Image.fromarray(semantic_mask(row["clip_id"], k)).resize((224, 224), Image.NEAREST)
                np.testing.assert_array_equal(np.asarray(mask) > 0, np.asarray(expected) > 0)
            assert {frame.size for frame in row["frames"]} == {(224, 224)}
            (wav,) = root.glob(f"{label}/{row['clip_id']}*/audio.wav")
            np.testing.assert_array_equal(row["audio"]["array"], soundfile.read(wav, dtype="float32")[0])
            frame = Image.open(wav.with_name("frames") / "0.jpg").resize((224, 224), Image.BILINEAR)
            np.testing.assert_array_equal(np.asarray(row["frames"][0]), np.asarray(frame))


def test_rows_at_their_own_size(write_semantic, semantic_mask, load, tmp_path):
    row = load("s4", write_semantic(tmp_path / "AVSS"), image_size=None)["test_positive"][1]
    assert row["frames"][2].size == row["masks"][2].size == (32, 24)
    assert ((np.asarray(row["masks"][2]) > 0) == semantic_mask(row["clip_id"], 2)).all()


def test_class_indices_serve_where_there_are_no_colours(write_semantic, semantic_mask, load, tmp_path):
    root = write_semantic(tmp_path / "AVSS")
    for folder in root.glob("v1s/*/labels_rgb"):
        for path in folder.glob("*.png"):
            colours = np.asarray(Image.open(path))
            folder.with_name("labels_semantic").mkdir(exist_ok=True)
            Image.fromarray(colours[..., 2]).save(folder.with_name("labels_semantic") / path.name)  # class 3
        shutil.rmtree(folder)
    row = load("s4", root, image_size=None)["test_positive"][0]
    assert ((np.asarray(row["masks"][4]) > 0) == semantic_mask(row["clip_id"], 4)).all()


@pytest.mark.slow
def test_it_is_written_once_and_anew_when_a_file_changes(write_semantic, tmp_path):
    root = write_semantic(tmp_path / "AVSS")
    first = locate(SUBSETS["ms3"], str(root), tmp_path / "cache")
    assert annotation(first) == "semantic" and annotation(root) == "object"
    assert locate(SUBSETS["ms3"], str(root), tmp_path / "cache") == first
    assert locate(SUBSETS["ms3"], str(first), tmp_path / "cache", layout="semantic") == first
    assert locate(SUBSETS["ms3"], str(root), tmp_path / "cache", image_size=None) != first
    write = root / "v1m/ggggggggggg_2/labels_rgb/0.png"
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(write)
    second = locate(SUBSETS["ms3"], str(root), tmp_path / "cache")
    assert second != first
    (clip,) = [clip for clip in read_clips(SUBSETS["ms3"], second) if clip.clip_id == "ggggggggggg_2"]
    assert not np.asarray(Image.open(media_files(SUBSETS["ms3"], second, clip)[1][0])).any()


def test_a_call_that_is_stopped_is_taken_up_where_it_was(write_semantic, tmp_path, monkeypatch):
    root = write_semantic(tmp_path / "AVSS")
    read, seen = semantic.sources.read_frames, []

    def stop_at_the_fifth(paths):
        seen.append(paths[0].parent.parent.name)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return read(paths)

    monkeypatch.setattr(semantic, "available_cpus", lambda: 1)
    monkeypatch.setattr(semantic.sources, "read_frames", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        locate(SUBSETS["ms3"], str(root), tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    before = list(seen)  # eight clips at most: the others may have been in the queue
    out = locate(SUBSETS["ms3"], str(root), tmp_path / "cache")
    again = seen[len(before) :]
    assert before[4] in again and not set(again) & set(before[:4])
    assert len(list(out.rglob("*.wav"))) == 8


def test_a_broken_file_is_named(write_semantic, tmp_path):
    root = write_semantic(tmp_path / "AVSS")
    broken = root / "v1m/ggggggggggg_2/frames/3.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"ggggggggggg_2/frames/3\.jpg"):
        locate(SUBSETS["ms3"], str(root), tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    broken.write_bytes(whole)
    assert annotation(locate(SUBSETS["ms3"], str(root), tmp_path / "cache")) == "semantic"


def test_a_folder_that_is_cut_short_lists_what_is_missing(write_semantic, load, tmp_path, capsys):
    root = write_semantic(tmp_path / "AVSS")
    shutil.rmtree(root / "v1s/dog00000002_1000_6000")
    with pytest.raises(FileNotFoundError, match=r"11 are missing: .*dog00000002_1000_6000/frames/0\.jpg"):
        load("s4", root)
    assert main(["check", "--data_dir", str(root)]) == 1
    out = capsys.readouterr().out
    assert "10 clips, layout: AVSBench-semantic" in out
    assert "test: 3 clips, missing: 5 frames, 5 masks, 1 wavs, unreadable: 0" in out
    assert "metadata.csv: 0 names with a blank, read without it; 1 rows with an object that sounds outside" in out


def test_where_both_layouts_lie_the_object_masks_are_read_and_that_is_said(write_s4, write_semantic, tmp_path, caplog):
    root = write_s4(tmp_path)
    write_semantic(tmp_path / "AVSS")
    assert locate(SUBSETS["s4"], str(root), tmp_path / "cache") == root
    assert "in both layouts: the masks of AVSBench-object are read" in caplog.text
    named = locate(SUBSETS["s4"], str(root), tmp_path / "cache", layout="semantic")
    assert annotation(named) == "semantic"


def test_a_layout_that_is_not_there_or_unknown(write_s4, tmp_path):
    root = write_s4(tmp_path, media=False)
    with pytest.raises(FileNotFoundError, match=r"s4 in the layout 'semantic' in .*, found object"):
        find_download(SUBSETS["s4"], root, "semantic")
    with pytest.raises(ValueError, match="Expected one of object, semantic for `layout`, got 'avss'"):
        find_download(SUBSETS["s4"], root, "avss")


def test_a_folder_that_is_neither_is_described(write_s4, tmp_path, capsys):
    for name in ("v2", "notes.txt"):
        (tmp_path / "a" / name).mkdir(parents=True)
    assert main(["check", "--data_dir", str(tmp_path / "a")]) == 1
    assert "It holds notes.txt, v2." in capsys.readouterr().err
    write_s4(tmp_path / "a" / "v2" / "inner", media=False)
    assert main(["check", "--data_dir", str(tmp_path / "a" / "v2")]) == 1
    assert f"Its folder inner looks like a download: pass {tmp_path / 'a/v2/inner'}." in capsys.readouterr().err


def test_a_table_without_rows_of_the_subset(write_semantic, write_ms3, tmp_path, caplog, capsys):
    root = write_semantic(tmp_path / "AVSS", media=False)
    rows = list(csv.reader((root / "metadata.csv").open()))
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(row for row in rows if row[-1] != "v1m")
    assert main(["check", "--subset", "ms3", "--data_dir", str(root)]) == 1
    assert "Expected rows of ms3, label v1m, in" in capsys.readouterr().err
    write_ms3(tmp_path, metadata=False)  # AVSS/metadata.csv is there, but does not name MS3's objects
    assert {clip.category for clip in read_clips(SUBSETS["ms3"], tmp_path)} == {""}
    assert "metadata.csv has no row of label v1m. Categories are empty" in caplog.text
    assert main(["check", "--subset", "ms3", "--data_dir", str(tmp_path)]) == 0
    assert "has no row of MS3, so off-screen sounds ignore the group rule" in capsys.readouterr().out


def test_what_sounds_outside_the_picture_has_no_group(write_ms3, tmp_path, caplog):
    rows = [("a_0", "dog_off-the-screen", "test"), ("b_0", "off-the-screen", "test"), ("c_0", "car", "test")]
    clips = read_clips(SUBSETS["ms3"], write_ms3(tmp_path, rows, media=False))
    assert [clip.labels for clip in clips] == [("dog",), (), ("car",)]
    assert "in 2 rows of v1m something sounds off-the-screen" in caplog.text
