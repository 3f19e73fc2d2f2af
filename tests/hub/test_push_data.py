"""`push_to_hub` of what `load_dataset` gives, read back without this package: a loopback Hub shows the client side."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from avsbench_robust_dataset.synthetic import write_demo

ROOT = Path(__file__).resolve().parents[2]
DIGESTS = """
import hashlib, json, sys
import numpy as np

def digests(split):
    return [[row["clip_id"], row["audio"]["sampling_rate"],
             hashlib.sha256(np.array(row["audio"]["array"], np.float32).tobytes()).hexdigest(),
             [hashlib.sha256(image.tobytes()).hexdigest() for image in row["frames"] + row["masks"]]] for row in split]
"""
PUSH = f"""{DIGESTS}
sys.path.insert(0, {str(ROOT)!r})
import avsbench_robust_dataset
from datasets import DatasetDict, load_dataset
loaded = load_dataset("avsbench_robust", "demo", data_dir=sys.argv[1])
loaded["test_off_screen"].push_to_hub("me/one", split="test")
DatasetDict({{name: loaded[name] for name in ("test_noise", "test_positive")}}).push_to_hub("me/two", "demo")
stream = load_dataset("avsbench_robust", "demo", data_dir=sys.argv[1], split="test_positive", streaming=True)
stream.push_to_hub("me/stream", split="test")
print(json.dumps({{name: digests(loaded[name]) for name in ("test_off_screen", "test_noise", "test_positive")}}))
"""
PULL = f"""{DIGESTS}
sys.modules["avsbench_robust_dataset"] = None  # an import of it fails
from datasets import load_dataset
print(json.dumps({{
    "test_off_screen": digests(load_dataset("me/one", split="test")),
    "test_noise": digests(load_dataset("me/two", "demo", split="test_noise", streaming=True)),
    "test_positive": digests(load_dataset("me/two", "demo", split="test_positive")),
    "stream": digests(load_dataset("me/stream", split="test")),
}}))
"""


@pytest.mark.slow
def test_what_was_pushed_loads_without_the_package(hub, tmp_path):
    write_demo(tmp_path / "tree", seed=3, sizes={"train": 4, "val": 4, "test": 4}, num_proc=1)
    answers = []
    for program, cache in ((PUSH, "one"), (PULL, "two")):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "tree")],
            env=hub.environment(tmp_path / cache),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout.splitlines()[-1]))
        (tmp_path / "tree").exists() and (tmp_path / "tree").rename(tmp_path / "gone")
    pushed, pulled = answers
    stream = pulled.pop("stream")
    assert pulled == pushed and sorted(stream) == sorted(pushed["test_positive"])
