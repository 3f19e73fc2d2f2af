"""Streaming what `avs-data export` wrote: one node alone reads each file, and a stream goes on where it stopped."""

import json
import os
import subprocess
import sys

import pytest

from avsbench_robust_dataset.export import export

# Run beside the folder, without this package. Counts how often each file is opened, by every node and its workers.
NODES = """
import json, os, sys
import datasets
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # workers are forked and write to it too
def count(event, details):
    if event == "open" and str(details[0]).endswith(".parquet"):
        os.write(log, (os.path.basename(details[0]) + "\\n").encode())
sys.addaudithook(count)

def opened():
    with open(sys.argv[1]) as file:
        names = file.read().split()
    os.truncate(sys.argv[1], 0)
    return names

def node(rank, world):
    stream = load_dataset("avsbench_robust", "s4", split="test_noise", streaming=True)
    return split_dataset_by_node(stream, rank, world)

seen = {"nodes": {}, "workers": {}}
for world in (1, 2, 4, 8):
    opened()
    rows = [[row["clip_id"] for row in node(rank, world)] for rank in range(world)]
    seen["nodes"][world] = [opened(), rows]
for world in (2,):
    loaders = [DataLoader(node(rank, world), batch_size=None, num_workers=2) for rank in range(world)]
    rows = [[row["clip_id"] for row in loader] for loader in loaders]
    seen["workers"][world] = [opened(), rows]

seen["resumed"] = {}
for stop in (0, 1, 9, 10):
    stream, begin = node(1, 2), []
    rows = iter(stream)
    for _ in range(stop):
        begin.append(next(rows)["clip_id"])
    state = json.loads(json.dumps(stream.state_dict()))
    again = node(1, 2)
    again.load_state_dict(state)
    opened()
    rest = [row["clip_id"] for row in again]
    seen["resumed"][stop] = [begin, rest, opened()]
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """20 clips in 8 files of the split."""
    from avsbench_robust_dataset.synthetic import write_demo

    folder = tmp_path_factory.mktemp("streamed")
    write_demo(folder / "data", sizes={"test": 20}, num_proc=1)
    export("s4", folder / "avsbench_robust", folder / "data")
    done = subprocess.run(
        [sys.executable, "-c", NODES, str(folder / "opened.txt")],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


FILES = [f"test_noise-{k:05d}-of-00008.parquet" for k in range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("readers", ["nodes", "workers"])
def test_each_file_is_opened_once(seen, readers):
    [all_rows] = seen["nodes"]["1"][1]
    assert len(set(all_rows)) == 20
    for world, (opened, rows) in seen[readers].items():
        assert sorted(opened) == FILES, world
        assert len(rows) == int(world) and sorted(sum(rows, [])) == sorted(all_rows), world
        assert max(map(len, rows)) - min(map(len, rows)) <= 1, world


@pytest.mark.slow
def test_a_stream_goes_on_where_it_stopped(seen):
    rows = seen["nodes"]["2"][1][1]
    assert len(rows) == 10
    for stop, (begin, rest, opened) in seen["resumed"].items():
        assert begin + rest == rows and len(begin) == int(stop)
        assert set(opened) <= set(FILES[1::2])  # the other node's files stay closed
    assert len(seen["resumed"]["9"][2]) < 4  # nor does it begin again
