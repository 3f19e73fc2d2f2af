"""What `save_to_disk` and `to_parquet` write loads in a fresh process, with this package and without it."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from avsbench_robust_dataset import portable

ROOT = Path(__file__).resolve().parents[2]

READER = """
import hashlib, json, sys
import datasets
if sys.argv[1] == "with":
    sys.path.insert(0, {root!r})
    import avsbench_robust_dataset
else:
    sys.modules["avsbench_robust_dataset"] = None  # an import of it fails
rows = {{}}
for name, loaded in (("saved", datasets.load_from_disk(sys.argv[2])),
                     ("dict", datasets.load_from_disk(sys.argv[3])["test_off_screen"]),
                     ("parquet", datasets.load_dataset("parquet", data_files=sys.argv[4], split="train")),
                     ("stream", datasets.load_dataset("parquet", data_files=sys.argv[5], split="train"))):
    rows[name] = [[row["clip_id"], len(row["audio"]["array"]), row["audio"]["sampling_rate"],
                   hashlib.sha256(__import__("numpy").array(row["audio"]["array"], "float32").tobytes()).hexdigest(),
                   [hashlib.sha256(image.tobytes()).hexdigest() for image in row["frames"] + row["masks"]],
                   loaded.features["condition"].int2str(row["condition"])] for row in loaded]
print(json.dumps(rows))
"""


def digests(split):
    import hashlib

    return [
        [
            row["clip_id"],
            80000,
            16000,
            hashlib.sha256(np.array(row["audio"]["array"], np.float32).tobytes()).hexdigest(),
            [hashlib.sha256(image.tobytes()).hexdigest() for image in row["frames"] + row["masks"]],
            split.features["condition"].int2str(row["condition"]),
        ]
        for row in split
    ]


@pytest.mark.slow
@pytest.mark.parametrize("package", ["with", "without"])
def test_a_fresh_process_reads_what_was_written(write_s4, load, tmp_path, package, monkeypatch):
    loaded = load("s4", write_s4(tmp_path / "tree"))
    split = loaded["test_off_screen"]
    places = [str(tmp_path / name) for name in ("saved", "dict", "rows.parquet", "stream.parquet")]
    split.save_to_disk(places[0])
    datasets.DatasetDict({name: loaded[name] for name in ("test_silence", "test_off_screen")}).save_to_disk(places[1])
    split.to_parquet(places[2])
    load("s4", tmp_path / "tree", split="test_off_screen", streaming=True).to_parquet(places[3])
    expected = digests(split)
    (tmp_path / "tree").rename(tmp_path / "gone")  # nothing of the download is needed
    program = READER.format(root=str(ROOT))
    command = [sys.executable, "-c", program, package, *places]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows == dict.fromkeys(("saved", "dict", "parquet", "stream"), expected)
    assert not list((tmp_path / "cache").rglob(".portable*"))


def test_rows_are_those_of_the_export_and_stay_what_they_are_here(write_s4, load, tmp_path):
    split = load("s4", write_s4(tmp_path / "tree"))["test_noise"]
    whole = portable(split.select([2, 0]).with_format("numpy"))
    assert whole.features["audio"] == {
        "array": datasets.List(datasets.Value("float32")),
        "sampling_rate": datasets.Value("int32"),
    }
    assert whole.format["type"] == "numpy" and whole["clip_id"][:].tolist() == split["clip_id"][:][::-2]
    np.testing.assert_array_equal(whole[0]["audio"]["array"], split[2]["audio"]["array"])
    assert isinstance(split[0]["audio"]["array"], np.ndarray)  # as before
    other = datasets.Dataset.from_dict({"a": [1]})
    assert portable(other) is other


def test_a_file_that_is_gone_is_named(write_s4, load, tmp_path):
    split = load("s4", write_s4(tmp_path / "tree"))["test_positive"]
    (wav,) = (tmp_path / "tree").rglob(f"{split[0]['clip_id']}.wav")
    wav.unlink()
    with pytest.raises(FileNotFoundError, match=wav.name):
        split.save_to_disk(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
