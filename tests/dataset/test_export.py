"""`avs-data export`: Parquet that loads with no import, equal to the builder row by row, whole or not there."""

import collections
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from datasets import load_dataset

import avsbench_robust_dataset.export as exporting
from avsbench_robust_dataset import CONDITIONS, SUBSETS
from avsbench_robust_dataset.__main__ import main
from avsbench_robust_dataset.builder import row_features
from avsbench_robust_dataset.export import SHARDS, export
from avsbench_robust_dataset.sources import media_files, read_clips
from avsbench_robust_dataset.upload import push

REPOSITORY = Path(__file__).resolve().parents[2]
SPLITS = [f"{s}_{c}" for s in ("train", "validation", "test") for c in ("positive", "silence", "noise", "off_screen")]

FEW = [("dog00000002", "dog_barking", "test"), ("car00000002", "race_car", "test")]  # the other splits are left out

# Run beside the folder by a process that does not import this package. Prints what it saw as one line of JSON.
READER = """
import hashlib, json, sys
import datasets
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node

name, subset, cache = sys.argv[1:]
loaded = load_dataset(name, subset, cache_dir=cache)
stream = load_dataset(name, subset, cache_dir=cache, streaming=True)

def digests(dataset):
    for column in ("frames", "masks"):
        dataset = dataset.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return [hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest() for row in dataset]

seen = {"splits": {}, "streamed": {}, "nodes": {}, "features": repr(dict(loaded["test_noise"].features))}
for split in loaded:
    seen["splits"][split] = digests(loaded[split])
    seen["streamed"][split] = digests(stream[split])
    assert stream[split].features == loaded[split].features, split
ids = stream["train_off_screen"].select_columns(["clip_id"])
seen["num_shards"] = ids.num_shards
for world in (*range(1, 9), 11):
    seen["nodes"][world] = [[r["clip_id"] for r in split_dataset_by_node(ids, rank, world)] for rank in range(world)]
seen["modes"] = [[i.mode for i in loaded["train_noise"][0][column]] for column in ("frames", "masks")]
seen["imported"] = sorted(m for m in sys.modules if m.startswith("avsbench_robust"))
print(json.dumps(seen))
"""


def digests(dataset):
    """SHA-256 of every row with all columns, images as the bytes of their files; as in READER."""
    for column in ("frames", "masks"):
        dataset = dataset.cast_column(column, datasets.List(datasets.Image(decode=False)))
    rows = list(dataset)
    for row in rows:  # a build names the files of frames, and reads sounds as arrays
        row["frames"] = [
            {"bytes": image["bytes"] or Path(image["path"]).read_bytes(), "path": None} for image in row["frames"]
        ]
        row["audio"]["array"] = np.asarray(row["audio"]["array"], dtype=np.float32).tolist()
    return [hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest() for row in rows]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def beside(out):
    """Names in the folder of `out`, without the lock file, which stays."""
    return sorted(path.name for path in out.parent.iterdir() if path.name != f".{out.name}.lock")


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


@pytest.fixture
def out(tmp_path):
    return tmp_path / "exported" / "avsbench_robust"


# --- what comes out ---


@pytest.mark.slow
def test_equals_the_builder_and_loads_with_no_import(write_s4, load, out, tmp_path):
    root = write_s4(tmp_path / "data")
    assert main(["export", "--subset", "s4", "--data_dir", str(root), "--out", str(out), "--num_proc", "1"]) == 0
    built = load("s4", root)

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", READER, "avsbench_robust", "s4", str(tmp_path / "reader_cache")],
        cwd=out.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["imported"] == []
    assert list(seen["splits"]) == list(built) == SPLITS
    for split in SPLITS:
        assert seen["splits"][split] == seen["streamed"][split] == digests(built[split]), split
    assert seen["features"] == repr(dict(row_features(CONDITIONS)))
    assert seen["modes"] == [["RGB"] * 5, ["L"]]
    assert seen["num_shards"] == SHARDS
    ids = built["train_off_screen"]["clip_id"][:]
    for world, nodes in seen["nodes"].items():
        assert len(nodes) == int(world)
        assert collections.Counter(sum(nodes, [])) == collections.Counter(ids), world  # each row on one node


def test_wav_files_in_a_column_that_the_viewer_plays(write_s4, write_ms3, load, out, tmp_path):
    root = write_ms3(write_s4(tmp_path / "data", rows=FEW))
    options = ["--data_dir", str(root), "--out", str(out), "--num_proc", "1"]
    assert main(["export", "--subset", "s4", "--audio", "wav", *options]) == 0
    assert main(["export", "--subset", "ms3", *options]) == 0
    wav, array = (load_dataset(str(out), name, cache_dir=str(tmp_path / "cache")) for name in ("s4", "ms3"))
    assert wav["test_noise"].features["audio"] == datasets.Audio(sampling_rate=16000)
    assert len(array["test_noise"][0]["audio"]["array"]) == 80000
    built = load("s4", root)
    for name, split in wav.items():
        split = split.cast_column("audio", datasets.Audio(decode=False))  # nothing of FFmpeg
        for row, own in zip(split, built[name], strict=True):
            samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
            assert rate == 16000 and row["audio"]["path"] == f"{row['clip_id']}.wav"
            np.testing.assert_allclose(samples, own["audio"]["array"], rtol=0, atol=1 / 32768)
            if name == "test_positive":  # AVSBench's own files have 16 bits
                np.testing.assert_array_equal(samples, own["audio"]["array"])
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| `audio` | `Audio`, 16 kHz |" in card and "(`ms3`) |" in card
    with pytest.raises(SystemExit):
        main(["export", "--audio", "mp3", *options])
    with pytest.raises(ValueError, match="Expected one of array, wav for `audio`, got 'mp3'"):
        export("s4", out, root, audio="mp3")


@pytest.mark.slow
def test_second_subset_joins_the_first_and_each_is_replaced_alone(write_s4, write_ms3, load, out, tmp_path):
    s4, ms3 = write_s4(tmp_path / "s4"), write_ms3(tmp_path / "ms3")
    export("ms3", out, ms3)
    assert front_matter(out)["dataset_info"]["config_name"] == "ms3"
    export("s4", out, s4)
    matter = front_matter(out)
    assert [config["config_name"] for config in matter["configs"]] == ["ms3", "s4"]
    assert [config["config_name"] for config in matter["configs"] if config.get("default")] == ["s4"]
    before = contents(out)
    export("s4", out, s4, seed=43)
    after = contents(out)
    differing = {name for name in before if before[name] != after[name]}
    assert set(before) == set(after) and not any(name.startswith("ms3/") for name in differing)
    assert "s4/train_noise-00000-of-00008.parquet" in differing
    assert "s4/train_positive-00000-of-00008.parquet" not in differing
    for subset, root, seed in (("ms3", ms3, 42), ("s4", s4, 43)):
        loaded = load_dataset(str(out), subset, cache_dir=str(tmp_path / "folder"))
        built = load(subset, root, seed=seed)
        for split in SPLITS:
            assert digests(loaded[split]) == digests(built[split])
            assert loaded[split].features == row_features(CONDITIONS)


@pytest.mark.slow
def test_other_content_is_never_read_from_the_cache(write_s4, out, tmp_path):
    """`datasets` names its cache after the patterns in the YAML, which are the same for every content."""
    root, cache = write_s4(tmp_path / "data", FEW), str(tmp_path / "folder")
    frames = sorted(root.rglob("visual_frames/test/race_car/*/*.png"))
    first, other = (path.read_bytes() for path in frames[:2])
    rows = []
    for content in (first, other, first):
        frames[0].write_bytes(content)
        export("s4", out, root)
        rows.append(digests(load_dataset(str(out), "s4", split="test_noise", cache_dir=cache)))
    assert rows[0] == rows[2] != rows[1]


@pytest.fixture
def umask():
    """Sets the umask, and has it as before in the end."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.slow
def test_equal_bytes_for_every_number_of_processes(write_s4, tmp_path, umask):
    root = write_s4(tmp_path / "data", FEW)
    umask(0o022)
    one = export("s4", tmp_path / "by_1" / "out", root, num_proc=1)
    umask(0o077)
    two = export("s4", tmp_path / "by_2" / "out", root, num_proc=2)
    assert contents(one) == contents(two)
    assert [oct(out.stat().st_mode)[-3:] for out in (one, two)] == ["755", "700"]


def test_content_hash_is_what_sha256sum_says(write_s4, out, tmp_path):
    export("s4", out, write_s4(tmp_path / "data", FEW))
    names = sorted(path.name for path in (out / "s4").iterdir())
    listing = "".join(f"{hashlib.sha256((out / 's4' / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    [config] = front_matter(out)["configs"]
    assert config["description"] == f"seed 42, draw matched, sha256 {hashlib.sha256(listing.encode()).hexdigest()}"


@pytest.mark.slow
def test_number_of_files_is_a_multiple_of_eight(write_s4, out, tmp_path):
    root = write_s4(
        tmp_path / "data", [(f"clip{i:07d}", ("dog_barking", "race_car")[i % 2], "test") for i in range(19)]
    )
    for size, count in (("500MB", 8), (700_000, 16)):  # 19 clips of 320 kB: 6.1 MB, over 8 x 0.7
        export("s4", out, root, max_shard_size=size)
        files = sorted((out / "s4").glob("test_noise-*"))
        assert [path.name[-14:-8] for path in files] == [f"-{count:05d}"[-6:]] * count
        rows = [pq.read_metadata(path).num_rows for path in files]
        assert sum(rows) == 19 and max(rows) - min(rows) <= 1
        assert len(list((out / "s4").iterdir())) == 4 * count  # the other splits have no clips


def column_chunks(path, column):
    """The bytes of a column as they lie in the file, one string for each group of rows."""
    data, chunks = path.read_bytes(), []
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(k) for k in range(metadata.num_columns)]
        [chunk] = [chunk for chunk in columns if chunk.path_in_schema == column]
        chunks.append(data[chunk.data_page_offset : chunk.data_page_offset + chunk.total_compressed_size])
    return chunks


def test_images_are_the_same_bytes_in_every_condition(write_s4, out, tmp_path):
    """What lets the Hub's storage keep them once."""
    root = write_s4(
        tmp_path / "data", [(f"clip{i:07d}", ("dog_barking", "race_car")[i % 2], "test") for i in range(17)]
    )
    export("s4", out, root)
    for shard in range(8):
        for column in ("frames", "masks"):
            [positive, *others] = [
                column_chunks(
                    out / f"s4/test_{condition}-{shard:05d}-of-00008.parquet", f"{column}.list.element.bytes"
                )
                for condition in ("positive", "silence", "noise", "off_screen")
            ]
            assert positive and all(other == positive for other in others)


@pytest.mark.slow
def test_symbolic_links_are_followed_and_an_export_holds_what_they_lead_to(write_s4, out, tmp_path, capsys):
    root = write_s4(tmp_path / "data", FEW)
    frame = media_files(SUBSETS["s4"], root, read_clips(SUBSETS["s4"], root)[0])[0][0]
    content = frame.read_bytes()
    frame.rename(tmp_path / "elsewhere.png")
    frame.symlink_to(tmp_path / "elsewhere.png")
    export("s4", out, root, num_proc=1)
    shards = (out / "s4").glob("test_positive-*")
    stored = [frames for shard in shards for frames in pq.read_table(shard).column("frames").to_pylist()]
    assert content in [image["bytes"] for frames in stored for image in frames]
    (tmp_path / "elsewhere.png").write_text("root:x:0:0")
    assert main(["export", "--subset", "s4", "--data_dir", str(root), "--out", str(tmp_path / "second")]) == 1
    assert str(frame) in capsys.readouterr().err and not (tmp_path / "second").exists()


def test_card_says_columns_and_terms(write_s4, out, tmp_path, capsys):
    root = write_s4(tmp_path / "data")
    assert main(["export", "--data_dir", str(root), "--out", str(out), "--num_proc", "1"]) == 0
    assert "must not be published without permission" in capsys.readouterr().out
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "must not be published without permission" in card and front_matter(out)["license"] == "other"
    for column in datasets.load_dataset_builder(str(out), "s4").info.features:
        assert f"| `{column}` |" in card
    assert "| `s4` | 5 / 2 / 3 |" in card
    demo = write_s4(tmp_path / "demo", FEW, subset="demo")
    export("demo", tmp_path / "free", demo)
    assert front_matter(tmp_path / "free")["license"] == "apache-2.0"
    export("demo", out, demo)
    assert front_matter(out)["license"] == "other"


# --- whole or not there ---


@pytest.mark.slow
def test_a_broken_file_leaves_nothing(write_s4, out, tmp_path, capsys):
    root = write_s4(tmp_path / "data")
    mask = root / "Single-source/s4_data/gt_masks/test/race_car/car00000002/car00000002_3.png"
    mask.write_bytes(mask.read_bytes()[:40])
    arguments = ["export", "--data_dir", str(root), "--out", str(out)]
    for num_proc in ("1", "2"):
        assert main([*arguments, "--num_proc", num_proc]) == 1
        assert str(mask) in capsys.readouterr().err
        assert beside(out) == []
    mask.unlink()
    assert main([*arguments, "--num_proc", "1"]) == 1
    assert "1 are missing" in capsys.readouterr().err and beside(out) == []


def test_a_failed_export_keeps_the_earlier_one(write_s4, out, tmp_path, monkeypatch):
    root = write_s4(tmp_path / "data", FEW)
    export("s4", out, root)
    before = contents(out)
    rename = Path.rename

    def fail(path, target):
        if target == out and ".partial-" in path.name:
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        export("s4", out, root, seed=7)
    assert contents(out) == before and out.name in beside(out) and not (out.parent / f".{out.name}.old").exists()


# What a SIGKILL at any moment leaves is the matter of tests/reliability/test_killed_export.py.


@pytest.mark.slow
def test_an_interrupted_export_goes_on_where_it_was(write_s4, out, tmp_path, monkeypatch, caplog):
    root, undisturbed = write_s4(tmp_path / "data", FEW), tmp_path / "undisturbed"
    export("s4", undisturbed, root)
    write = exporting._write_shard
    written = []

    def interrupt(shard):
        if len(written) == 20:
            raise KeyboardInterrupt
        written.append(shard.path.name)
        return write(shard)

    monkeypatch.setattr(exporting, "_write_shard", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export("s4", out, root)
    [partial] = [name for name in beside(out) if ".partial-s4-" in name]
    assert not out.exists()
    (out.parent / partial / "s4" / ".half.parquet.123").write_bytes(b"PAR1")
    finished = {path.name: path.stat().st_ino for path in (out.parent / partial / "s4").glob("[!.]*.parquet")}
    assert sorted(finished) == sorted(written)

    monkeypatch.setattr(exporting, "_write_shard", write)
    with caplog.at_level(logging.WARNING, "avsbench_robust_dataset.export"):
        export("demo", out, write_s4(tmp_path / "demo", FEW, subset="demo"))
        assert f"{partial} is of an interrupted export" in caplog.text and partial in beside(out)
        assert front_matter(out)["dataset_info"]["config_name"] == "demo"
        export("s4", out, root)
        assert "Going on with the export" in caplog.text
    assert beside(out) == [out.name]
    assert {name: (out / "s4" / name).stat().st_ino for name in finished} == finished  # not written again
    assert {path.name: path.read_bytes() for path in (out / "s4").iterdir()} == {
        path.name: path.read_bytes() for path in (undisturbed / "s4").iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("change", ["data", "seed", "size"])
def test_what_was_begun_of_something_else_is_not_used(write_s4, out, tmp_path, monkeypatch, change):
    root = write_s4(tmp_path / "data", FEW)
    write, count = exporting._write_shard, iter(range(99))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(exporting, "_write_shard", lambda shard: write(shard) if next(count) < 20 else 1 / 0)
        export("s4", out, root)
    assert any(".partial-s4-" in name for name in beside(out))
    frame = sorted(root.rglob("visual_frames/test/race_car/*/*.png"))
    options = {}
    if change == "data":
        frame[0].write_bytes(frame[1].read_bytes())
    else:
        options = {"seed": {"seed": 43}, "size": {"max_shard_size": "75KB"}}[change]
    export("s4", out, root, **options)
    export("s4", tmp_path / "undisturbed", root, **options)
    assert contents(out) == contents(tmp_path / "undisturbed") and beside(out) == [out.name]


def test_a_second_export_at_the_same_time_is_refused(write_s4, out, tmp_path, capsys):
    root = write_s4(tmp_path / "data", FEW)
    command = ["export", "--data_dir", str(root), "--out", str(out), "--num_proc", "1"]
    with exporting._alone(out):
        assert main(command) == 1
        assert "Expected an output folder of this run alone" in capsys.readouterr().err and not out.exists()
    assert main(command) == 0


def test_what_is_not_an_export_is_not_touched(write_s4, tmp_path, capsys):
    root = write_s4(tmp_path / "data", FEW)
    file, folder, card = tmp_path / "file", tmp_path / "folder", tmp_path / "card"
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    card.mkdir()
    (card / "README.md").write_text("---\ntags: [other]\n---\nmine")
    exported = export("s4", tmp_path / "exported", root)
    (exported / "mine.txt").write_text("mine")
    for place, what in ((file, "a file"), (folder, "README.md"), (card, "another README.md"), (exported, "mine.txt")):
        before = contents(place) if place.is_dir() else place.read_text(encoding="utf-8")
        assert main(["export", "--data_dir", str(root), "--out", str(place), "--num_proc", "1"]) == 1
        assert f"Expected {place}" in (message := capsys.readouterr().err) and what in message
        assert before == (contents(place) if place.is_dir() else place.read_text(encoding="utf-8"))
    (exported / "mine.txt").unlink()
    (exported / "s4/test_noise-00000-of-00008.parquet").unlink()
    with pytest.raises(FileExistsError, match="bytes in .*s4, as its card says"):
        export("ms3", exported, root)


def test_an_empty_folder_is_filled(write_s4, out, tmp_path):
    out.mkdir(parents=True)
    export("s4", out, write_s4(tmp_path / "data", FEW))
    assert (out / "README.md").is_file()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--public"], "--public together with --push_to_hub"),
        (["--max_shard_size", "0MB"], "size as 500MB for `max_shard_size`, got '0MB'"),
        (["--max_shard_size", "big"], "size as 500MB for `max_shard_size`, got 'big'"),
        (["--num_proc", "-1"], "one process or more"),
    ],
)
def test_bad_arguments(write_s4, out, tmp_path, capsys, options, message):
    root = write_s4(tmp_path / "data", media=False)
    assert main(["export", "--data_dir", str(root), "--out", str(out), *options]) == 1
    assert message in capsys.readouterr().err and not out.parent.exists()


# --- the upload ---


@pytest.mark.slow
def test_push_is_one_commit_to_a_private_repository(write_s4, load, out, tmp_path, client, capsys):
    root = write_s4(tmp_path / "data", FEW)
    command = ["export", "--data_dir", str(root), "--out", str(out), "--num_proc", "1", "--push_to_hub", "me/avs"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "private unless you pass --public" in printed and "Pushed to me/avs: " in printed
    repository = client.repositories()["datasets/me/avs"]
    assert repository["private"] is True
    [_, (_, title, paths)] = repository["commits"]
    assert title == "Upload AVSBench-Robust: s4" and paths == sorted(contents(out))
    code = (
        "import sys, datasets\n"
        "d = datasets.load_dataset('me/avs', 's4', split='test_silence', cache_dir=sys.argv[1], streaming=True)\n"
        "d = d.cast_column('frames', datasets.List(datasets.Image(decode=False)))\n"
        "print([row['frames'][4]['bytes'].hex() for row in d])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "reader")],
        env=client.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    clips = [clip for clip in read_clips(SUBSETS["s4"], root) if clip.split == "test"]
    expected = [media_files(SUBSETS["s4"], root, clip)[0][4].read_bytes().hex() for clip in clips]
    assert done.stdout.strip() == str(expected)

    # The same again changes nothing; another number of files leaves none of the earlier.
    assert main(command) == 0
    assert len(client.repositories()["datasets/me/avs"]["commits"]) == 2
    assert main([*command, "--max_shard_size", "75KB"]) == 0
    assert client.repositories()["datasets/me/avs"]["commits"][-1][2] == sorted(contents(out))
    assert len(contents(out)) > len(paths)


def test_push_refuses_what_would_publish_or_overwrite(write_s4, out, tmp_path, client, capsys):
    export("s4", out, write_s4(tmp_path / "data", FEW))
    demo = export("demo", tmp_path / "demo_out", write_s4(tmp_path / "demo", FEW, subset="demo"))
    api = huggingface_hub.HfApi()
    api.create_repo("me/public", repo_type="dataset", private=False)
    with pytest.raises(
        ValueError, match="me/public exists and is public.*must not be published.*Nothing was uploaded"
    ):
        push(out, "me/public")
    command = ["export", "--data_dir", str(tmp_path / "data"), "--out", str(tmp_path / "new"), "--num_proc", "1"]
    assert main([*command, "--push_to_hub", "me/public"]) == 1
    assert "exists and is public" in capsys.readouterr().err and not (tmp_path / "new").exists()  # before the work
    push(demo, "me/public")  # nothing of AVSBench's
    push(out, "me/public", public=True)
    push(out, "me/also_public", public=True)
    assert client.repositories()["datasets/me/also_public"]["private"] is False
    push(demo, "me/demo")
    assert client.repositories()["datasets/me/demo"]["private"] is True
    api.create_repo("me/mine", repo_type="dataset", private=True)
    api.upload_file(path_or_fileobj=b"a", path_in_repo="a.csv", repo_id="me/mine", repo_type="dataset")
    with pytest.raises(ValueError, match="got other files"):
        push(out, "me/mine")
    assert client.repositories()["datasets/me/mine"]["commits"][-1][2] == ["a.csv"]
    assert [len(client.repositories()[f"datasets/me/{name}"]["commits"]) for name in ("public", "mine")] == [3, 2]


@pytest.mark.slow
def test_push_without_token_or_connection(write_s4, out, tmp_path, client, monkeypatch, capsys):
    root = write_s4(tmp_path / "data", FEW)
    command = ["export", "--data_dir", str(root), "--out", str(out), "--num_proc", "1", "--push_to_hub", "me/avs"]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(command) == 1
    assert "token" in capsys.readouterr().err and not out.exists()  # said before the work
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    client.fail("PUT", "/__lfs/", "drop")
    assert main(command) == 1
    assert "me/avs was not published" in (message := capsys.readouterr().err) and "Repeat" in message
    assert len(client.repositories()["datasets/me/avs"]["commits"]) == 1  # nothing half there
    client.heal()
    assert main(command) == 0
    assert len(client.repositories()["datasets/me/avs"]["commits"]) == 2
