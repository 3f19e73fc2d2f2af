"""How long the first import of each package takes, beyond PyTorch's.

    python benchmarks/benchmark_imports.py [--repeats 7]

Each import is timed in a process of its own that has imported torch already; all packages in turn, medians. `used` is
the first thing that one does with the package, which then loads what it needs.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time

import torch

IMPORTS = {
    "avsbench_robust_dataset": ("import avsbench_robust_dataset", "from datasets import load_dataset"),
    "modeling_avsegformer": ("import modeling_avsegformer", "modeling_avsegformer.AVSegFormerForSegmentation"),
    "ms_deform_attn": ("import ms_deform_attn", "ms_deform_attn.ms_deform_attn"),
    "evaluate_metrics": ("import evaluate_metrics", "from evaluate_metrics import clip_rows"),
}
CODE = """
import time, torch
start = time.perf_counter()
{first}
middle = time.perf_counter()
{then}
print(middle - start, time.perf_counter() - middle)
"""


def seconds(first: str, then: str) -> list[float]:
    """[import, first use]"""
    code = CODE.format(first=first, then=then)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(value) for value in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    times = {name: [] for name in IMPORTS}
    for _ in range(args.repeats + 1):  # the first turn fills the cache of the file system
        for name, statements in IMPORTS.items():
            times[name].append(seconds(*statements))
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print("| package | import, s | and first use, s |\n| --- | --- | --- |")
    for name, runs in times.items():
        imported, used = (statistics.median(column) for column in zip(*runs[1:], strict=True))
        print(f"| `{name}` | {imported:.3f} | {used:.2f} |")


if __name__ == "__main__":
    main()
