"""What four conditions cost against one, as evaluate_accelerate.py scores them.

    python benchmarks/benchmark_evaluation.py --backbones pvt_v2_b5 resnet50

Times are of the whole way from PNG and wav files to rows of `clips.jsonl`, of the positives alone and of all four
conditions, in milliseconds, in turn in one process after `--warmup` rounds, medians; a GPU is waited for. `--tf32 on`
lets a GPU multiply float32 numbers in TF32. The parts are of the same model on one clip: what is done once a clip
(backbone, deformable encoder, pixel decoder), once a distinct sound (VGGish), once a clip and condition (queries,
decoder, mask head). The multiply-adds (MAC), counted by PyTorch, say what ratio a machine has that takes as long for
each of them, wherever it is made. Random weights, generated clips.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from avs_engine.clips import Splits, load_splits
from avs_engine.predict import AVSegFormerSegmenter, predict
from avs_engine.scoring import score
from avsbench_robust_dataset import CONDITIONS
from avsbench_robust_dataset.synthetic import write_demo
from modeling_avsegformer import (
    AVSegFormerConfig,
    AVSegFormerForSegmentation,
    AVSegFormerImageProcessor,
    AVSegFormerProcessor,
    VGGishFeatureExtractor,
)

FRAMES = 5


def clips_of(folder: Path, count: int, size: int) -> Splits:
    """The test split of a generated data set whose frames and masks have AVSBench's size."""
    write_demo(folder, sizes={"train": 2, "val": 2, "test": count}, num_proc=1)
    for path in folder.rglob("*.png"):
        Image.open(path).resize((size, size), Image.Resampling.NEAREST).save(path)
    splits = load_splits("demo", str(folder), 42, "test", CONDITIONS)
    return splits


def new_model(backbone: str) -> AVSegFormerForSegmentation:
    torch.manual_seed(0)
    return AVSegFormerForSegmentation(AVSegFormerConfig(backbone=backbone)).eval().requires_grad_(False)


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def medians(works: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, float]:
    """Seconds of each, in turn, after `warmup` rounds."""
    taken = {name: [] for name in works}
    for repeat in range(warmup + rounds):
        for name, work in works.items():
            found = seconds(work)
            if repeat >= warmup:
                taken[name].append(found)
    return {name: statistics.median(values) for name, values in taken.items()}


def operations(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def measure(
    model: AVSegFormerForSegmentation,
    size: int,
    splits: Splits,
    accelerator: Accelerator,
    batch_size: int,
    rounds: int,
    warmup: int,
) -> str:
    """A row of the table."""
    model.to(accelerator.device)
    processor = AVSegFormerProcessor(
        AVSegFormerImageProcessor(size={"height": size, "width": size}), VGGishFeatureExtractor()
    )

    def evaluate(conditions: tuple[str, ...]) -> None:
        segmenter = AVSegFormerSegmenter(model, processor, batch_size)
        used = {condition: splits[condition] for condition in conditions}
        score(predict(segmenter, used, accelerator), conditions, accelerator)

    draw = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, FRAMES, 3, size, size, generator=draw).to(accelerator.device)
    input_features = torch.randn(1, FRAMES, 1, 96, 64, generator=draw).to(accelerator.device)
    with torch.no_grad(), accelerator.autocast():
        image, audio = model.get_image_embeddings(pixel_values), model.get_audio_embeddings(input_features)
        parts = {
            "image": lambda: model.get_image_embeddings(pixel_values),
            "sound": lambda: model.get_audio_embeddings(input_features),
            "condition": lambda: model(image_embeddings=image, audio_embeddings=audio),
        }
        cost = {name: operations(work) for name, work in parts.items()}
        taken = medians(parts, rounds, warmup)
    whole = medians({"one": lambda: evaluate(["positive"]), "four": lambda: evaluate(CONDITIONS)}, rounds, warmup)
    clips = len(splits["positive"])
    bound = (cost["image"] + 4 * cost["condition"]) / (cost["image"] + cost["condition"])
    columns = [model.config.backbone, *(f"{whole[name] * 1e3 / clips:.1f}" for name in ("one", "four"))]
    columns += [f"{whole['four'] / whole['one']:.2f}"]
    columns += [f"{taken[name] * 1e3:.1f} ({cost[name] / 2e9:.0f})" for name in parts] + [f"{bound:.2f}"]
    return f"| {' | '.join(columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["pvt_v2_b5", "resnet50"])
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--clips", type=int, default=2, help="at least 2: the one is heard with the other")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default="no")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="on the CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them")
    parser.add_argument("--tf32", choices=("off", "on"), default="off", help="on a GPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.fp32_precision = "tf32" if args.tf32 == "on" else "ieee"
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision
    datasets.disable_progress_bars()
    accelerator = Accelerator(cpu=args.device == "cpu", mixed_precision=args.mixed_precision)
    on = f"{args.threads} CPU threads" if args.device == "cpu" else torch.cuda.get_device_name()
    precision = args.mixed_precision if args.device == "cpu" else f"{args.mixed_precision}, TF32 {args.tf32}"
    print(f"{date.today()}, {on}, precision {precision}, median of {args.rounds} rounds after {args.warmup}")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {args.image_size} x {args.image_size}\n")
    print(
        "| backbone | 1 condition, ms a clip | 4 conditions | ratio | once a clip, ms (10⁹ MAC) | once a sound ",
        end="",
    )
    print("| once a condition | ratio by operations |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        splits = clips_of(Path(folder) / "data", args.clips, args.image_size)
        for backbone in args.backbones:
            model = new_model(backbone)
            batch_size, rounds, warmup = args.batch_size, args.rounds, args.warmup
            print(measure(model, args.image_size, splits, accelerator, batch_size, rounds, warmup), flush=True)


if __name__ == "__main__":
    main()
