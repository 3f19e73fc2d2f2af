"""What the op does for AVSegFormer: the same logits with every backend, and how much faster the model gets.

    python kernels/benchmarks/benchmark_model.py --backbone resnet50

A model with random weights, one clip of five frames. A training step is forward, backward and AdamW. Backends take
turns in one process; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from modeling_avsegformer import AVSegFormerConfig, AVSegFormerForSegmentation
from ms_deform_attn import backends


def seconds(run, device: str) -> float:
    begin = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    print(f"{options.backbone}, {options.image_size} pixels, {options.device}, {threads}, torch {torch.__version__}")
    names = [name for name in ("reference", options.device) if backends()[name]]
    torch.manual_seed(0)
    model = AVSegFormerForSegmentation(AVSegFormerConfig(backbone=options.backbone)).to(options.device)
    attentions = [module for module in model.modules() if type(module).__name__ == "DeformableAttention"]
    frames, size = model.config.num_frames, options.image_size
    clip = {
        "pixel_values": torch.randn(1, frames, 3, size, size, device=options.device),
        "input_features": torch.randn(1, frames, 1, 96, 64, device=options.device),
    }
    labels = torch.zeros(1, frames, size, size, device=options.device)
    labels[..., size // 4 : size // 2, size // 4 : size // 2] = 1

    def use(name: str) -> None:
        for attention in attentions:
            attention.backend = name

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(**clip).logits

    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)

    def training_step() -> None:
        optimizer.zero_grad()
        model(**clip, labels=labels, audio_labels=torch.ones(1, device=options.device)).loss.backward()
        optimizer.step()

    model.eval()
    logits = {}
    for name in names:
        use(name)
        logits[name] = forward()
    for name in names[1:]:
        difference = (logits[name] - logits["reference"]).abs().max()
        print(
            f"logits, {name} against reference: largest difference {difference:.1e} of {logits[name].abs().max():.2f}"
        )
    for label, run in (("forward", forward), ("training step", training_step)):
        model.train(run is training_step)
        taken: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(options.rounds + 1):  # the first is for warming up
            for name in names:
                use(name)
                elapsed = seconds(run, options.device)
                if turn > 0:
                    taken[name].append(elapsed)
        medians = {name: statistics.median(times) for name, times in taken.items()}
        for name, median in medians.items():
            ratio = medians["reference"] / median
            print(
                f"{label}, {name}: {median * 1e3:.0f} ms, {ratio:.2f} times as fast as with the reference", flush=True
            )


if __name__ == "__main__":
    main()
