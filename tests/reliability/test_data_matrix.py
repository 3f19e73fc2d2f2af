"""The data are the same, bit for bit, however they are built and read: one digest in every cell of the matrix."""

import hashlib
import itertools
import os
import shutil

import datasets
import numpy as np
import pytest
from torch.utils.data import DataLoader

from avsbench_robust_dataset import SUBSETS
from avsbench_robust_dataset.sources import read_clips
from avsbench_robust_dataset.synthetic import write_demo

SPLITS = ("train_noise", "test_off_screen")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """The same clips twice: files written in one order, and in the opposite one with the table's rows reversed."""
    trees = [tmp_path_factory.mktemp(name) for name in ("forwards", "backwards")]
    write_demo(trees[0], seed=5, sizes={"train": 7, "val": 2, "test": 6}, num_proc=1)
    for path in sorted((path for path in trees[0].rglob("*") if path.is_file()), reverse=True):
        target = trees[1] / path.relative_to(trees[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    table = trees[1] / "Single-source/s4_meta_data.csv"
    first, *rows = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text(first + "".join(rows[::-1]), encoding="utf-8")
    return trees


def digest(row: dict) -> str:
    """SHA-256 of all that a row holds, decoded."""
    parts = [row["clip_id"], row["category"], str(row["condition"]), row["audio_source"], row["audio_category"]]
    content = hashlib.sha256("/".join(parts).encode())
    for image in (*row["frames"], *row["masks"]):
        content.update(np.asarray(image).tobytes())
    content.update(np.asarray(row["audio"]["array"], dtype=np.float32).tobytes())
    return f"{row['clip_id']} {content.hexdigest()}"


def digests(rows: list[dict]) -> list[str]:
    return [digest(row) for row in rows]


def read(dataset, workers: int, batch_size: int, shuffled: bool) -> list[str]:
    """Through a DataLoader; a shuffled reading is put into the order of clip ids, a plain one must have it."""
    options = {"num_workers": workers, "batch_size": batch_size, "collate_fn": digests}
    if workers:
        options["multiprocessing_context"] = "fork"
    if shuffled and not isinstance(dataset, datasets.IterableDataset):
        options["shuffle"] = True
    seen = [row for batch in DataLoader(dataset, **options) for row in batch]
    return sorted(seen) if shuffled else seen


@pytest.mark.slow
def test_every_way_to_build_and_read_gives_the_same_rows(trees, tmp_path, monkeypatch):
    """(num_proc and file order, streaming) x workers x batch size x shuffling."""
    loaded, listdir = {}, os.listdir
    for tree, num_proc in zip(trees, (None, 2), strict=True):
        if num_proc:  # a file system that lists the other way round
            monkeypatch.setattr(os, "listdir", lambda *args: sorted(listdir(*args), reverse=True))
        name = f"{tree.name}, {num_proc} processes"
        loaded[name] = datasets.load_dataset(
            "avsbench_robust", "demo", data_dir=str(tree), num_proc=num_proc, cache_dir=str(tmp_path / name)
        )
        monkeypatch.undo()
    for tree in trees:
        loaded[f"{tree.name}, stream"] = datasets.load_dataset(
            "avsbench_robust", "demo", data_dir=str(tree), streaming=True
        )
    for split in SPLITS:
        expected = digests(loaded["forwards0, None processes"][split])
        clips = [clip for clip in read_clips(SUBSETS["demo"], trees[0]) if split.startswith(clip.split)]
        assert [line.split()[0] for line in expected] == sorted(clip.clip_id for clip in clips)
        assert len(set(expected)) == len(clips)
        for name, ways in loaded.items():
            for workers, (batch_size, shuffled) in itertools.product((0, 2), ((1, False), (4, True))):
                if "stream" in name:  # each worker reads its shards: their order is that of the workers
                    shuffled = shuffled or workers > 0
                cell = f"{split} of {name}, {workers} workers, batches of {batch_size}, shuffled: {shuffled}"
                seen = read(ways[split], workers, batch_size, shuffled)
                assert seen == (sorted(expected) if shuffled else expected), cell
