"""How fast the metric is, against the threshold loop of the released evaluator; both give the same numbers.

    python benchmarks/benchmark_metric.py --sizes 224 512

`released` is written from the description of that evaluator: for each frame a loop over 255 thresholds, each of
which binarises the frame and sums three times over its pixels (PyTorch, float32), then mIoU and the predicted area.
`ours` is `metric.add_batch` of the same clip. Times are of one clip of five frames and one condition, in one thread,
the two in turn in one process, medians.
"""

import argparse
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import evaluate
import numpy as np
import torch

METRIC = Path(__file__).resolve().parents[1] / "evaluate_metrics" / "avs_robust"
FRAMES = 5
KINDS = {"random": 0.3, "saturated": 8.0}  # deviation of the logits: all greys, or nearly 0 and 1


def released(probabilities: torch.Tensor, masks: torch.Tensor) -> dict[str, float]:
    """mIoU, F and predicted area of a batch of frames, `(N, H, W)` each, with the loop of the released evaluator."""
    predicted = (probabilities > 0.5).float()
    union = torch.maximum(predicted, masks).sum((1, 2))
    intersection = (predicted * masks).sum((1, 2))
    is_empty = masks.sum((1, 2)) == 0
    intersection[is_empty] = ((1 - predicted) * (1 - masks)).sum((1, 2))[is_empty]
    union[is_empty] = float(masks[0].numel())
    thresholds = torch.linspace(0, 1 - 1e-10, 255)
    curves = []
    for frame, mask in zip(probabilities, masks, strict=True):
        if mask.mean() == 0:
            continue
        precision, recall = torch.zeros(255), torch.zeros(255)
        for place, threshold in enumerate(thresholds):
            above = (frame >= threshold).float()
            hit = (above * mask).sum()
            precision[place], recall[place] = hit / (above.sum() + 1e-20), hit / (mask.sum() + 1e-20)
        curves.append((1.3 * precision * recall / (0.3 * precision + recall)).nan_to_num(0))
    return {
        "miou": float((intersection / (union + 1e-7)).mean()),
        "f_score": float(torch.stack(curves).mean(0).max()) if curves else 0.0,
        "fpr": float((predicted.sum((1, 2)) / masks[0].numel()).mean()),
    }


def clip(size: int, deviation: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and masks `(FRAMES, size, size)`; the probabilities are higher on the mask."""
    draw = torch.Generator().manual_seed(0)
    masks = torch.zeros(FRAMES, size, size)
    masks[:, size // 4 : size // 2, size // 4 : 3 * size // 4] = 1
    logits = torch.randn(masks.shape, generator=draw) + 2 * masks - 1
    return (deviation * logits).sigmoid(), masks


def compare(size: int, kind: str, repeats: int) -> dict[str, float]:
    """Milliseconds a clip of both, and the largest difference between their scores."""
    probabilities, masks = clip(size, KINDS[kind])
    metric = evaluate.load(str(METRIC))
    inputs = {
        "predictions": probabilities[None].numpy(),
        "references": masks[None].numpy(),
        "conditions": ["positive"],
    }
    metric.add_batch(**inputs, clip_ids=["first"])  # not timed
    seconds = {"released": [], "ours": []}
    for repeat in range(repeats):
        start = time.perf_counter()
        expected = released(probabilities, masks)
        seconds["released"].append(time.perf_counter() - start)
        for part in range(10):  # a clip of ours alone would be too short for the clock of a busy machine
            start = time.perf_counter()
            metric.add_batch(**inputs, clip_ids=[f"{repeat}_{part}"])
            seconds["ours"].append(time.perf_counter() - start)
    scores = metric.compute()
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()} | {
        "difference": max(abs(scores[f"{name}_positive"] - value) for name, value in expected.items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512], help="sides of the frames in pixels")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, {platform.processor() or platform.machine()}, one thread, median of {args.repeats} rounds")
    print(f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}\n")
    print("| frames | probabilities | released, ms a clip | ours, ms a clip | faster | largest difference |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for size in args.sizes:
        for kind in KINDS:
            found = compare(size, kind, args.repeats)
            print(
                f"| {FRAMES} x {size} x {size} | {kind} | {found['released']:.1f} | {found['ours']:.2f} "
                f"| {found['released'] / found['ours']:.0f}x | {found['difference']:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
