"""What `avs-data export` costs, and what its layout costs and saves. Needs no data; writes to a temporary folder.

    python benchmarks/benchmark_export.py                      all tables
    python benchmarks/benchmark_export.py growth --clips 25 50 100

growth   processor time, memory and bytes against the number of clips, at AVSBench's size (224 x 224), one process
nodes    files that each node opens, and whether the nodes together open each one once
storage  bytes that the Hub's storage keeps of the four conditions' files: hf_xet, writing to a local store
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node
from PIL import Image

from avsbench_robust_dataset import SUBSETS
from avsbench_robust_dataset.conditions import CONDITIONS
from avsbench_robust_dataset.sources import media_files, read_clips
from avsbench_robust_dataset.synthetic import write_demo

EXPORT = """
import resource, sys, time
from avsbench_robust_dataset.export import export
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
export("s4", sys.argv[1], sys.argv[2])
seconds = time.process_time() - start
print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def write_s4(folder: Path, clips: int) -> int:
    """A test split of S4 whose frames, 224 x 224, are the demo's, enlarged and with noise. Returns its bytes."""
    write_demo(folder, sizes={"test": clips}, num_proc=1)
    subset, rng, size = SUBSETS["s4"], np.random.default_rng(0), 0
    for clip in read_clips(subset, folder):
        frames, masks, wav = media_files(subset, folder, clip)
        for path in (*frames, *masks):
            large = Image.open(path).resize((224, 224), Image.Resampling.NEAREST)
            if path in frames:  # noise, so that a PNG file is as large as AVSBench's
                noise = rng.integers(-9, 10, (224, 224, 3), dtype=np.int16)
                large = Image.fromarray(np.clip(np.asarray(large, np.int16) + noise, 0, 255).astype(np.uint8))
            large.save(path)
        size += sum(path.stat().st_size for path in (*frames, *masks, wav))
    return size


def size_of(paths) -> int:
    return sum(path.stat().st_size for path in paths)


def growth(folder: Path, counts: list[int]) -> None:
    print("\n| clips | data | Parquet | CPU seconds | rows per CPU second | peak memory beyond the imports |")
    print("| --- " * 6 + "|")
    for clips in counts:
        data, out = folder / f"data_{clips}", folder / f"out_{clips}"
        read = write_s4(data, clips)
        command = [sys.executable, "-c", EXPORT, str(out), str(data)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds, memory = map(float, done.stdout.split())
        written = size_of((out / "s4").iterdir())
        print(
            f"| {clips} | {read / 1e6:.0f} MB | {written / 1e6:.0f} MB | {seconds:.1f} | {4 * clips / seconds:.0f} "
            f"| {memory:.0f} MiB |"
        )


def export_demo(folder: Path, clips: int = 160) -> Path:
    from avsbench_robust_dataset.export import export

    if not (folder / "demo").exists():
        write_demo(folder / "demo_data", sizes={"test": clips})
        export("demo", folder / "demo", folder / "demo_data")
    return folder / "demo"


def nodes(folder: Path, _) -> None:
    out, opened = export_demo(folder), []
    sys.addaudithook(lambda event, details: event == "open" and opened.append(str(details[0])))
    print("\n| nodes | files each opens | opened by just one node | seconds, all nodes |\n| --- | --- | --- | --- |")
    for world in range(1, 9):
        per_node, start = [], time.perf_counter()
        for rank in range(world):
            opened.clear()
            stream = load_dataset(str(out), "demo", split="test_off_screen", streaming=True)
            for _ in split_dataset_by_node(stream, rank, world).select_columns("clip_id"):
                pass
            per_node.append({name for name in opened if name.endswith(".parquet")})
        seconds = time.perf_counter() - start
        once = sum(count == 1 for count in Counter(name for names in per_node for name in names).values())
        numbers = " or ".join(str(number) for number in sorted({len(names) for names in per_node}))
        print(f"| {world} | {numbers} of 8 | {once} of 8 | {seconds:.2f} |")


def stored(batches: list[list[Path]], folder: Path) -> int:
    """Bytes that hf_xet keeps when the batches of files come one after the other."""
    import hf_xet

    with tempfile.TemporaryDirectory(dir=folder) as store:
        for batch in batches:
            commit = hf_xet.XetSession().new_upload_commit(endpoint=f"local://{store}")
            for path in batch:
                commit.start_upload_file(str(path))
            commit.wait_to_finish()
        return size_of(path for path in Path(store).rglob("*") if path.is_file())


def storage(folder: Path, _) -> None:
    files = sorted((export_demo(folder) / "demo").iterdir())
    in_turn = [[path for path in files if f"_{condition}-" in path.name] for condition in CONDITIONS]
    print("\n| 160 clips, four conditions | bytes |\n| --- | --- |")
    for name, size in {
        "in the folder": size_of(files),
        "on the Hub, conditions one after the other (`--push_to_hub`)": stored(in_turn, folder),
        "on the Hub, all at once": stored([files], folder),
        "one condition alone (positive)": size_of(in_turn[0]),
    }.items():
        print(f"| {name} | {size / 1e6:.1f} MB |")


TABLES = {"growth": growth, "nodes": nodes, "storage": storage}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=list(TABLES), metavar="table", help="default: all")
    parser.add_argument("--clips", type=int, nargs="+", default=[25, 50, 100, 200])
    args = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("datasets", "pyarrow", "huggingface_hub", "hf_xet"))
    print(f"Python {platform.python_version()}, {packages}, {os.cpu_count()} processors, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory(prefix="benchmark-export-") as temporary:
        folder = Path(temporary)
        os.environ["HF_XET_CACHE"] = str(folder / "xet_cache")
        for table in args.tables:
            TABLES[table](folder, args.clips)


if __name__ == "__main__":
    main()
