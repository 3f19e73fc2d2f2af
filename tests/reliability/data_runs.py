"""What the harness kills in `test_data_killed.py`: a build and a demo of a few clips. Not a test module."""

import sys

import datasets

import avsbench_robust_dataset  # noqa: F401  (registers the data set)
from avsbench_robust_dataset.synthetic import write_demo


def build() -> None:
    """data_runs.py DATA_DIR CACHE_DIR NUM_PROC [SEED]"""
    data_dir, cache_dir, num_proc, *seed = sys.argv[1:]
    datasets.load_dataset(
        "avsbench_robust",
        "s4",
        data_dir=data_dir,
        cache_dir=cache_dir,
        num_proc=int(num_proc) if num_proc != "1" else None,
        seed=int(*seed or [42]),
    )


def demo() -> None:
    """data_runs.py OUT"""
    write_demo(sys.argv[1], sizes={"train": 4, "val": 2, "test": 2}, num_proc=1)
