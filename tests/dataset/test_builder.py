"""`load_dataset("avsbench_robust", …)`: what comes out, in which splits, when it is built anew, what it refuses."""

import ast
import os
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset, load_dataset_builder
from PIL import Image

from avsbench_robust_dataset import CONDITIONS, SUBSETS, AvsbenchRobust, sources, synthetic
from avsbench_robust_dataset.conditions import generator, noise
from avsbench_robust_dataset.draw import draw_off_screen
from avsbench_robust_dataset.sources import media_files, read_clips
from avsbench_robust_dataset.waveform import Waveform

REAL_MINI = Path(__file__).resolve().parents[3] / "shared" / "real_mini"
SPLITS = [f"{s}_{c}" for s in ("train", "validation", "test") for c in ("positive", "silence", "noise", "off_screen")]
COLUMNS = ["clip_id", "category", "condition", "frames", "masks", "audio", "audio_source", "audio_category"]


def undecoded(dataset):
    """The rows with the images' files instead of pictures, and waveforms as lists: what `==` compares."""
    for column in ("frames", "masks"):
        dataset = dataset.cast_column(column, datasets.List(datasets.Image(decode=False)))
    rows = list(dataset)
    for row in rows:
        for column in ("frames", "masks"):
            row[column] = [image["bytes"] or Path(image["path"]).read_bytes() for image in row[column]]
        row["audio"]["array"] = np.asarray(row["audio"]["array"], dtype=np.float32).tolist()
    return rows


def check_contract(subset, root, loaded, seed=42, draw="matched"):
    """Every cell against the files, the draw and the conditions."""
    assert list(loaded) == SPLITS
    clips = read_clips(subset, root)
    for name in ("train", "validation", "test"):
        split = {"validation": "val"}.get(name, name)
        pairs = draw_off_screen([clip for clip in clips if clip.split == split], subset, seed, draw)
        for condition in CONDITIONS:
            rows = undecoded(loaded[f"{name}_{condition}"])
            assert [row["clip_id"] for row in rows] == sorted(clip.clip_id for clip in clips if clip.split == split)
            for pair, row in zip(pairs, rows, strict=True):
                frames, masks, wav = media_files(subset, root, pair.clip)
                assert list(row) == COLUMNS
                assert row["category"] == pair.clip.category
                assert row["condition"] == list(CONDITIONS).index(condition)
                assert row["frames"] == [path.read_bytes() for path in frames]
                assert row["masks"] == [path.read_bytes() for path in masks]
                heard = {"positive": pair.clip, "off_screen": pair.partner}.get(condition)
                assert row["audio_source"] == (heard.clip_id if heard else "")
                assert row["audio_category"] == (heard.category if heard else "")
                assert row["audio"]["sampling_rate"] == 16000
                if heard:
                    expected = soundfile.read(media_files(subset, root, heard)[2], dtype="float32")[0]
                elif condition == "silence":
                    expected = np.zeros(80000, dtype=np.float32)
                else:
                    key = (seed, subset.name, split, "noise", pair.clip.clip_id)
                    expected = noise(np.zeros(80000, dtype=np.float32), generator(*key))
                np.testing.assert_array_equal(np.array(row["audio"]["array"], dtype=np.float32), expected)


# --- what comes out ---


@pytest.mark.parametrize("draw", ["matched", "released"])
def test_s4(write_s4, load, tmp_path, draw):
    root = write_s4(tmp_path / "data")
    loaded = load("s4", root, draw=draw)
    check_contract(SUBSETS["s4"], root, loaded, draw=draw)
    assert len(loaded["train_noise"][0]["masks"]) == 1
    assert len(loaded["test_noise"][0]["masks"]) == 5


def test_ms3(write_ms3, load, tmp_path):
    root = write_ms3(tmp_path / "data")
    loaded = load("ms3", root, seed=3)
    check_contract(SUBSETS["ms3"], root, loaded, seed=3)
    row = next(row for row in loaded["train_positive"] if row["clip_id"] == "aaaaaaaaaaa_0")
    assert row["category"] == row["audio_category"] == "dog_car" and len(row["masks"]) == 5


def test_ms3_without_avss(write_ms3, load, tmp_path):
    root = write_ms3(tmp_path / "data", metadata=False)
    loaded = load("ms3", root)
    check_contract(SUBSETS["ms3"], root, loaded)
    for row in loaded["train_off_screen"]:
        assert row["audio_source"][:11] != row["clip_id"][:11]


@pytest.mark.slow
def test_demo_reads_five_masks_in_train(write_s4, load, tmp_path):
    root = write_s4(tmp_path / "data", subset="demo")
    check_contract(SUBSETS["demo"], root, load("demo", root))
    assert len(load("demo", root, split="train_positive")[0]["masks"]) == 5
    assert len(load("s4", root, split="train_positive")[0]["masks"]) == 1


def test_features_and_decoding(write_s4, load, tmp_path):
    root = write_s4(tmp_path / "data")
    dataset = load("s4", root, split="test_off_screen")
    assert list(dataset.features) == COLUMNS
    assert dataset.features["condition"] == datasets.ClassLabel(names=["positive", "silence", "noise", "off_screen"])
    assert dataset.features["frames"] == datasets.List(datasets.Image(mode="RGB"))
    assert dataset.features["masks"] == datasets.List(datasets.Image(mode="L"))
    assert dataset.features["audio"] == Waveform()
    row = dataset[0]
    assert row["audio"]["array"].dtype == np.float32 and row["audio"]["array"].shape == (80000,)
    assert [image.mode for image in row["frames"]] == ["RGB"] * 5 and row["frames"][0].size == (6, 4)
    assert [image.mode for image in row["masks"]] == ["L"] * 5
    clip = next(clip for clip in read_clips(SUBSETS["s4"], root) if clip.clip_id == row["clip_id"])
    frames, masks, _ = media_files(SUBSETS["s4"], root, clip)
    for image, path in zip(row["frames"], frames, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(path)))
    for image, path in zip(row["masks"], masks, strict=True):
        np.testing.assert_array_equal(np.asarray(image) > 0, np.asarray(Image.open(path)))


def test_conditions_differ_in_the_waveform_only(write_s4, load, tmp_path):
    loaded = load("s4", write_s4(tmp_path / "data"))
    for split in ("train", "validation", "test"):
        rows = {condition: undecoded(loaded[f"{split}_{condition}"]) for condition in CONDITIONS}
        for column in ("clip_id", "category", "frames", "masks"):
            assert all([r[column] for r in rows[c]] == [r[column] for r in rows["positive"]] for c in CONDITIONS)
        for of_clip in zip(*rows.values(), strict=True):
            waveforms = [np.array(row["audio"]["array"], dtype=np.float32) for row in of_clip]
            assert {len(waveform) for waveform in waveforms} == {80000}
            assert all((a != b).any() for i, a in enumerate(waveforms) for b in waveforms[:i])


def test_the_working_directory_does_not_matter(write_s4, load, tmp_path, monkeypatch):
    root = write_s4(tmp_path / "data")
    monkeypatch.chdir(root.parent)
    dataset = load("s4", "data")
    monkeypatch.chdir("/")
    check_contract(SUBSETS["s4"], root, dataset)


def test_a_moved_download_is_built_anew(write_s4, load, tmp_path):
    """The same files, times included, elsewhere: rows name files by their whole path."""
    root = write_s4(tmp_path / "data")
    load("s4", root)
    root = root.rename(tmp_path / "moved")
    check_contract(SUBSETS["s4"], root, load("s4", root))


def test_what_leaves_the_machine_holds_frames_and_sounds(write_s4, load, tmp_path):
    root = write_s4(tmp_path / "data")
    rows = {condition: undecoded(load("s4", root, split=f"test_{condition}")) for condition in CONDITIONS}
    for condition in CONDITIONS:
        load("s4", root, split=f"test_{condition}").save_to_disk(tmp_path / condition)
    shutil.rmtree(root)
    for condition in CONDITIONS:
        assert undecoded(datasets.load_from_disk(tmp_path / condition)) == rows[condition]


def test_formats_and_maps_see_the_sound(write_s4, load, tmp_path):
    dataset = load("s4", write_s4(tmp_path / "data"), split="test_noise")
    expected = np.stack([row["audio"]["array"] for row in dataset])
    for style in ("numpy", "torch"):
        of_style = dataset.with_format(style)
        assert (np.stack([np.asarray(row["audio"]["array"]) for row in of_style]) == expected).all()
    doubled = dataset.map(
        lambda row: {"audio": {**row["audio"], "array": 2 * row["audio"]["array"]}}, keep_in_memory=True
    )
    assert doubled.features == dataset.features and (doubled[1]["audio"]["array"] == 2 * expected[1]).all()
    assert (dataset.select([2, 0])["audio"][0]["array"] == expected[2]).all()
    other = {"array": [0.0], "sampling_rate": 8000}
    for store in (Waveform().encode_example, lambda value: Waveform().cast_storage(pa.array([value]))):
        with pytest.raises(ValueError, match="sound at 16000 Hz, got 8000 Hz"):
            store(other)


def test_a_dark_palette_mask_keeps_its_object(write_s4, load, tmp_path):
    root = write_s4(tmp_path / "data")
    clip = next(clip for clip in read_clips(SUBSETS["s4"], root) if clip.split == "test")
    _, masks, _ = media_files(SUBSETS["s4"], root, clip)
    inside = np.asarray(Image.open(masks[2]))
    image = Image.fromarray(inside.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, 0, 0, 1])
    image.save(masks[2])
    row = next(row for row in load("s4", root)["test_silence"] if row["clip_id"] == clip.clip_id)
    np.testing.assert_array_equal(np.asarray(row["masks"][2]) > 0, inside)


# --- ways to load ---


@pytest.mark.slow
def test_streaming_and_processes_give_the_same_rows(write_s4, load, tmp_path):
    root = write_s4(tmp_path / "data")
    one = load("s4", root)
    two = load("s4", root, num_proc=2, cache_dir=str(tmp_path / "two"))
    stream = load("s4", root, streaming=True)
    assert list(stream) == SPLITS
    for name in SPLITS:
        rows = undecoded(one[name])
        assert rows == undecoded(two[name])
        assert rows == undecoded(stream[name])


def test_a_stream_is_sharded_and_reads_only_what_it_needs(write_s4, load, tmp_path):
    root = write_s4(
        tmp_path / "data", [(f"clip{i:05d}", ("dog_barking", "race_car")[i % 2], "test") for i in range(70)]
    )
    shutil.rmtree(root / "Single-source/s4_data/visual_frames/test/race_car")
    stream = load("s4", root, streaming=True, split="test_noise")
    assert stream.num_shards == 64
    assert next(iter(stream))["clip_id"] == "clip00000"
    with pytest.raises(FileNotFoundError, match="clip00001_1.png"):
        list(stream)


def test_names_slices_and_sums(write_s4, load, tmp_path):
    root = write_s4(tmp_path / "data")
    assert get_dataset_config_names("avsbench_robust") == ["s4", "ms3", "demo"]
    assert get_dataset_split_names("avsbench_robust", "s4", data_dir=str(root)) == SPLITS
    dataset = load("s4", root, split="test_silence+train_noise[:40%]")
    assert dataset["condition"][:] == [1, 1, 1, 2, 2]
    assert load_dataset("avsbench_robust", data_dir=str(root), cache_dir=str(tmp_path / "cache")).keys() == set(SPLITS)


def test_the_builder_pickles(write_s4, tmp_path):
    root = write_s4(tmp_path / "data")
    builder = AvsbenchRobust(config_name="s4", data_dir=str(root), cache_dir=str(tmp_path / "cache"), seed=5)
    again = pickle.loads(pickle.dumps(builder))
    assert again.cache_dir == builder.cache_dir and again.config == builder.config
    again.download_and_prepare()
    check_contract(SUBSETS["s4"], root, again.as_dataset(), seed=5)


def test_the_class_and_load_dataset_agree(write_s4, load, tmp_path):
    root = write_s4(tmp_path / "data")
    builder = AvsbenchRobust(config_name="s4", data_dir=str(root), cache_dir=str(tmp_path / "other"))
    builder.download_and_prepare()
    ours, theirs = builder.as_dataset(), load("s4", root)
    assert all(undecoded(ours[name]) == undecoded(theirs[name]) for name in SPLITS)


def test_a_split_without_clips_is_left_out(write_s4, load, tmp_path, caplog):
    root = write_s4(tmp_path / "data", [("aaa", "dog_barking", "test"), ("bbb", "race_car", "test")])
    assert {name: len(dataset) for name, dataset in load("s4", root).items()} == dict.fromkeys(SPLITS[8:], 2)
    assert "no clips of train" in caplog.text and "no clips of val" in caplog.text
    assert list(load("s4", root, streaming=True)) == SPLITS[8:]


def test_a_draw_that_is_not_one_to_one_is_explained_once(write_s4, load, tmp_path, caplog):
    load("s4", write_s4(tmp_path / "whole"))
    assert "one to one" not in caplog.text
    rows = [(f"clip{i:07d}", ("dog_barking", "cat_meowing", "race_car")[i % 3], "test") for i in range(3)]
    load("s4", write_s4(tmp_path / "small", rows))
    (note,) = [record.getMessage() for record in caplog.records if "one to one" in record.getMessage()]
    assert note.startswith("s4: Off-screen sounds are not one to one:") and "1 of 3 in test" in note


# --- where the data is ---


def test_data_dir_then_variable_then_data_folder(write_s4, tmp_path, monkeypatch):
    def found(**kwargs):
        return load_dataset_builder(
            "avsbench_robust", "s4", cache_dir=str(tmp_path / "cache"), **kwargs
        ).config.data_dir

    roots = {name: write_s4(tmp_path / name / "data", media=False) for name in ("argument", "variable", "folder")}
    monkeypatch.chdir(tmp_path / "folder")
    assert found() == str(roots["folder"])
    monkeypatch.setenv("AVSBENCH_DIR", str(roots["variable"]))
    assert found() == str(roots["variable"])
    assert found(data_dir=str(roots["argument"])) == str(roots["argument"])
    assert found(data_dir=str(roots["argument"] / "Single-source")) == str(roots["argument"] / "Single-source")
    assert found(data_dir=os.path.relpath(roots["argument"])) == str(roots["argument"])


@pytest.mark.parametrize("subset", ["s4", "ms3"])
def test_no_data_names_what_was_looked_for_and_the_demo(load, tmp_path, subset, monkeypatch):
    row = SUBSETS[subset]
    with pytest.raises(FileNotFoundError, match=rf"\./data .*{row.folder}/{row.table}.*demo"):
        load_dataset("avsbench_robust", subset)
    monkeypatch.setenv("AVSBENCH_DIR", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"\$AVSBENCH_DIR.*gone does not exist"):
        load_dataset("avsbench_robust", subset)
    with pytest.raises(FileNotFoundError, match=r"Ask for AVSBench.*avs-data demo --out data_demo"):
        load(subset, tmp_path)


def test_demo_writes_itself_once_where_there_is_none(monkeypatch, tmp_path, write_s4):
    calls = []

    def write_demo(out_dir, seed=0, sizes=None, num_proc=None):
        calls.append(Path(out_dir))
        write_s4(Path(out_dir), subset="demo")

    monkeypatch.setattr(synthetic, "write_demo", write_demo)
    Path("data").mkdir()
    write_s4(Path("data"))  # a download of S4, not a demo tree: one mask in train
    for _ in range(2):
        loaded = load_dataset("avsbench_robust", "demo", cache_dir=str(tmp_path / "cache"))
    assert len(calls) == 1 and calls[0].is_relative_to(tmp_path / "cache")
    check_contract(SUBSETS["demo"], calls[0], loaded)

    write_s4(Path("data"), subset="demo")
    builder = load_dataset_builder("avsbench_robust", "demo", cache_dir=str(tmp_path / "cache"))
    assert builder.config.data_dir == str(Path("data").resolve())
    assert len(calls) == 1


def test_demo_with_a_data_dir_that_holds_nothing_is_an_error(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="avs-data demo"):
        load("demo", tmp_path)


@pytest.mark.slow
def test_the_real_recipe_of_the_demo_is_read(monkeypatch, load, tmp_path):
    synthetic.write_demo(tmp_path / "data", sizes={"train": 8, "val": 4, "test": 4}, num_proc=1)
    check_contract(SUBSETS["demo"], tmp_path / "data", load("demo", tmp_path / "data"))


# --- freshness ---


def cache_folder(root, tmp_path, subset="s4", **kwargs):
    return load_dataset_builder(
        "avsbench_robust", subset, data_dir=str(root), cache_dir=str(tmp_path / "cache"), **kwargs
    ).cache_dir


def test_the_same_again_comes_from_the_cache(write_s4, load, tmp_path, built, monkeypatch):
    root = write_s4(tmp_path / "data")
    first = load("s4", root)
    monkeypatch.setattr(AvsbenchRobust, "_generate_examples", None)  # would fail if called
    second = load("s4", root, seed=42, draw="matched")
    assert len(built()) == 1
    assert undecoded(first["test_noise"]) == undecoded(second["test_noise"])


@pytest.mark.parametrize("kind", ["frame", "mask", "wav"])
def test_a_changed_file_is_seen_even_with_size_and_time_kept(write_s4, tmp_path, kind):
    root = write_s4(tmp_path / "data")
    before = cache_folder(root, tmp_path)
    frames, masks, wav = media_files(SUBSETS["s4"], root, read_clips(SUBSETS["s4"], root)[-1])
    path = {"frame": frames[3], "mask": masks[-1], "wav": wav}[kind]
    state = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert cache_folder(root, tmp_path) != before


def test_a_changed_wav_is_heard(write_s4, load, tmp_path, built):
    root = write_s4(tmp_path / "data")
    load("s4", root)
    clip = read_clips(SUBSETS["s4"], root)[0]
    soundfile.write(media_files(SUBSETS["s4"], root, clip)[2], np.full(80000, 0.25), 16000)
    rows = load("s4", root)[{"val": "validation"}.get(clip.split, clip.split) + "_positive"]
    assert next(row for row in rows if row["clip_id"] == clip.clip_id)["audio"]["array"].tolist() == [0.25] * 80000
    assert len(built()) == 2


@pytest.mark.slow
def test_table_metadata_seed_draw_and_code_each_make_it_fresh(write_s4, write_ms3, tmp_path, monkeypatch):
    root = write_ms3(write_s4(tmp_path / "data"))
    folders = [cache_folder(root, tmp_path, "ms3")]
    table = root / "AVSS/metadata.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("dog_car", "cat_car"))
    folders.append(cache_folder(root, tmp_path, "ms3"))
    table.unlink()
    folders.append(cache_folder(root, tmp_path, "ms3"))
    folders.append(cache_folder(root, tmp_path))
    table = root / "Single-source/s4_meta_data.csv"
    table.write_text("\n".join(table.read_text(encoding="utf-8").splitlines()[:-1]) + "\n")
    folders.append(cache_folder(root, tmp_path))
    folders.append(cache_folder(root, tmp_path, seed=43))
    folders.append(cache_folder(root, tmp_path, draw="released"))
    monkeypatch.setattr("avsbench_robust_dataset.sources.code_digest", lambda: "other code")
    folders.append(cache_folder(root, tmp_path))
    assert len(set(folders)) == len(folders)


def test_a_file_that_arrives_or_goes_is_seen(write_s4, tmp_path):
    root = write_s4(tmp_path / "data")
    before = cache_folder(root, tmp_path)
    path = media_files(SUBSETS["s4"], root, read_clips(SUBSETS["s4"], root)[0])[0][0]
    path.unlink()
    assert cache_folder(root, tmp_path) != before


@pytest.mark.slow
def test_the_code_digest_covers_what_decides_content_and_nothing_else(tmp_path, monkeypatch):
    """A copy of the package, in which one file after the other gets a comment, a docstring and a statement."""
    package = tmp_path / "avsbench_robust_dataset"
    shutil.copytree(Path(sources.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    code_digest = sources.code_digest.__wrapped__  # without its cache
    whole = code_digest()
    monkeypatch.setattr(sources, "__file__", str(package / "sources.py"))
    assert code_digest() == whole
    for path in package.glob("*.py"):
        before = path.read_text(encoding="utf-8")
        path.write_text(before.replace('"""', '"""Otherwise: ', 1) + "\n# a comment\n", encoding="utf-8")
        assert code_digest() == whole, path.name
        path.write_text(before + "\nSTATEMENT = 1\n", encoding="utf-8")
        assert (code_digest() != whole) == (path.stem in sources.DECIDING_MODULES), path.name
        path.write_text(before, encoding="utf-8")
    # What a deciding module imports decides too, but for what names, writes or shows files; what `semantic` and
    # `synthetic` write is read as files, in a folder whose name has a version or a digest.
    imported = {
        name
        for module in sources.DECIDING_MODULES
        for node in ast.walk(ast.parse((package / f"{module}.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for name in ([node.module] if node.module else [alias.name for alias in node.names])
    }
    assert imported - {"files", "semantic", "synthetic"} <= set(sources.DECIDING_MODULES)


def test_force_redownload_builds_again(write_s4, load, tmp_path, built):
    root = write_s4(tmp_path / "data")
    load("s4", root)
    before = built()[0].stat().st_mtime_ns
    load("s4", root, download_mode="force_redownload")
    assert len(built()) == 1 and built()[0].stat().st_mtime_ns > before


# --- bad input: named, and nothing is left in the cache ---


@pytest.mark.parametrize("seed", [True, 4.0, "42", None, [1]])
def test_a_seed_that_is_no_integer_is_refused(write_s4, load, tmp_path, seed):
    with pytest.raises(ValueError, match="Expected an integer for `seed`, got"):
        load("s4", write_s4(tmp_path / "data", media=False), seed=seed)


def test_a_numpy_integer_is_a_seed(write_s4, tmp_path):
    root = write_s4(tmp_path / "data", media=False)
    assert cache_folder(root, tmp_path, seed=np.int64(7)) == cache_folder(root, tmp_path, seed=7)


def test_unknown_names_are_refused_with_those_there_are(write_s4, load, tmp_path):
    root = write_s4(tmp_path / "data")
    with pytest.raises(ValueError, match="'s5' not found. Available:.*'s4', 'ms3', 'demo'"):
        load("s5", root)
    with pytest.raises(ValueError, match="one of matched, released for `draw`, got 'random'"):
        load("s4", root, draw="random")
    with pytest.raises(ValueError, match="test_off-screen"):
        load("s4", root, split="test_off-screen")
    with pytest.raises(ValueError, match="sead"):
        load("s4", root, sead=1)


def break_file(kind, path):
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "size":
        Image.new("1", (7, 4)).save(path)
    elif kind == "gone":
        path.unlink()
    elif kind == "empty":
        soundfile.write(path, np.zeros(0), 16000)
    elif kind == "nan":
        soundfile.write(path, np.full(80000, np.nan), 16000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("which", "kind", "error", "message"),
    [
        ("frame", "gone", FileNotFoundError, "1 are missing: .*{name}.*avs-data check"),
        ("mask", "gone", FileNotFoundError, "1 are missing: .*{name}.*avs-data check"),
        ("wav", "gone", FileNotFoundError, "1 are missing: .*{name}.*avs-data check"),
        ("frame", "truncated", ValueError, "complete PNG at .*{name}"),
        ("mask", "truncated", ValueError, "complete PNG at .*{name}"),
        ("mask", "size", ValueError, "mask of 6 x 4 pixels at .*{name}, as its frame, got 7 x 4"),
        ("wav", "empty", ValueError, "without samples"),
        ("wav", "nan", ValueError, "finite samples at .*{name}"),
    ],
)
def test_a_bad_file_is_named_and_nothing_is_left(write_s4, load, built, tmp_path, which, kind, error, message):
    root = write_s4(tmp_path / "data")
    clip = next(clip for clip in read_clips(SUBSETS["s4"], root) if clip.clip_id == "piano000000")
    frames, masks, wav = media_files(SUBSETS["s4"], root, clip)
    path = {"frame": frames[2], "mask": masks[0], "wav": wav}[which]
    break_file(kind, path)
    for num_proc in (None, 2) if which == "wav" else (None,):
        with pytest.raises(error, match=message.format(name=path.name)):
            load("s4", root, num_proc=num_proc)
        assert built() == []
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".arrow", ".incomplete")]


@pytest.mark.parametrize(("rate", "channels", "subtype"), [(8000, 1, "PCM_16"), (96000, 2, "PCM_24")])
def test_other_wavs_are_handled(write_s4, load, tmp_path, rate, channels, subtype):
    root = write_s4(tmp_path / "data")
    clip = next(clip for clip in read_clips(SUBSETS["s4"], root) if clip.clip_id == "piano000000")
    tone = 0.5 * np.sin(2 * np.pi * 100 * np.arange(3 * rate) / rate)  # 3 s
    soundfile.write(
        media_files(SUBSETS["s4"], root, clip)[2], np.stack([tone] * channels, axis=1), rate, subtype=subtype
    )
    row = next(row for row in load("s4", root, split="train_positive") if row["clip_id"] == clip.clip_id)
    waveform = np.array(row["audio"]["array"])
    # Its last whole window is repeated. 15,360 samples are 96 periods, so the tone goes on.
    expected = 0.5 * np.sin(2 * np.pi * 100 * np.arange(80000) / 16000)
    np.testing.assert_allclose(waveform[800:], expected[800:], atol=1e-3)


def test_s4_in_a_demo_s_clothes_says_which_masks_are_missing(write_s4, load, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"20 are missing: .*_2.png"):
        load("demo", write_s4(tmp_path / "data"))


def test_one_source_video_in_a_split_is_refused(write_s4, load, tmp_path):
    with pytest.raises(ValueError, match="at least two source videos in split 'train' of s4"):
        load("s4", write_s4(tmp_path / "data", [("aaa", "dog_barking", "train")]))


# --- real photographs and recordings ---


@pytest.mark.parametrize("subset", ["s4", "ms3"])
def test_real_mini(load, subset):
    if not REAL_MINI.is_dir():
        pytest.skip("needs the real photographs and sounds in ../shared/real_mini")
    loaded = load(subset, REAL_MINI)
    check_contract(SUBSETS[subset], REAL_MINI, loaded)
    assert len(loaded["test_noise"]) == {"s4": 3, "ms3": 5}[subset]
    row = loaded["test_positive"][0]
    assert row["frames"][0].size == row["masks"][0].size == (224, 224)
    assert 0.01 < np.mean(np.asarray(row["masks"][0]) > 0) < 0.9
    assert np.std(row["audio"]["array"]) > 1e-3
