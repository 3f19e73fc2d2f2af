"""How fast a training step is and what memory it needs, against a plain loop.

    python benchmarks/benchmark_training.py --backbones resnet50 pvt_v2_b5 --batch_sizes 1 2 4

`plain` does what the original's loop does: float32; the reference deformable attention; the layers in the original's
order; PyTorch's AdamW as it is; VGGish in each step and every frame through the whole model; masks made and resized in
each step; each part of the loss read from the device for the log. `ours` is a step of train_accelerate.py: the
compiled deformable attention, cheaper orders of the same sums in the model, fused AdamW, the sounds' embeddings from
the cache that the trainer fills before its first step, and only frames with a mask through the transformer.
`--changes` adds variants that leave one of these out or add what the trainer leaves out, each beside `ours`.

Times, in milliseconds: two in one process, step by step in turn after `--warmup` steps, medians; of the clock (a GPU
is waited for after each step), and of the processor (all threads), which other work on the machine disturbs less.
Memory: a process of its own for each figure; the highest resident set (VmHWM on the CPU, the allocator's peak on CUDA)
over two steps, less what there was before the model was made. `--tf32 off on`: a GPU's float32 products in full
precision, the default here, and in TF32. Random weights, random frames, one mask for five frames (`--masks 1`, as S4)
or five (as MS3).
"""

import argparse
import dataclasses
import functools
import gc
import itertools
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from avs_engine.step import train_batch
from modeling_avsegformer import AVSegFormerConfig, AVSegFormerForSegmentation

FRAMES = 5


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a step is made."""

    compiled_op: bool = True
    fused_adamw: bool = True
    cached_sounds: bool = True
    masked_frames_only: bool = True
    channels_last: bool = False
    checkpointing: bool = False
    bfloat16: bool = False
    compiled_model: bool = False


OURS = Variant()
CHANGES = {
    "ours, reference attention": Variant(compiled_op=False),
    "ours, plain AdamW": Variant(fused_adamw=False),
    "ours, VGGish in each step": Variant(cached_sounds=False),
    "ours, all frames": Variant(masked_frames_only=False),
    "ours + channels_last": Variant(channels_last=True),
    "ours + gradient checkpointing": Variant(checkpointing=True),
    "ours + bfloat16": Variant(bfloat16=True),
    "ours + torch.compile": Variant(compiled_model=True),
}


@dataclasses.dataclass(frozen=True)
class Case:
    backbone: str
    batch_size: int
    masks: int  # K, of the first frames of a clip
    frozen: bool  # the backbone, as in the first epochs
    image_size: int
    device: str
    tf32: bool = False  # float32 products of matrices and convolutions on a GPU


def set_tf32(on: bool) -> None:
    """PyTorch's own default is TF32 in convolutions and not in products of matrices."""
    precision = "tf32" if on else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision


def clips(case: Case) -> dict[str, torch.Tensor]:
    """A batch as the loader gives it; the masks are the 8-bit pictures that they are decoded to."""
    size, batch = case.image_size, case.batch_size
    draw = torch.Generator().manual_seed(0)
    masks = torch.zeros(batch, case.masks, size, size, dtype=torch.uint8)
    masks[..., size // 4 : size // 2, size // 4 : size // 2] = 255
    return {
        "pixel_values": torch.randn(batch, FRAMES, 3, size, size, generator=draw),
        "input_features": torch.randn(batch, FRAMES, 1, 96, 64, generator=draw),
        "masks": masks,
        "audio_labels": torch.ones(batch),
    }


def new_model(case: Case, compiled_op: bool) -> AVSegFormerForSegmentation:
    torch.manual_seed(0)
    backend = "auto" if compiled_op else "reference"
    model = AVSegFormerForSegmentation(AVSegFormerConfig(backbone=case.backbone, deform_attn_backend=backend))
    model.to(case.device).freeze_backbone(case.frozen)
    return model.train()


def plain_mask_head(head: torch.nn.Module, queries: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
    query_maps = (queries @ mask_features.flatten(2)).unflatten(2, mask_features.shape[-2:])
    features = head.reduce(mask_features + head.mlp(query_maps))
    return head.predict(F.interpolate(features, scale_factor=4, mode="bilinear"))[:, 0]


def plain_query_layer(layer: torch.nn.Module, queries: torch.Tensor, audio_tokens: torch.Tensor) -> torch.Tensor:
    queries = layer.norm1(queries + layer.self_attn(queries, queries, queries, need_weights=False)[0])
    queries = layer.norm2(queries + layer.cross_attn(queries, audio_tokens, audio_tokens, need_weights=False)[0])
    return layer.norm3(queries + layer.ffn(queries))


def in_the_original_order(model: AVSegFormerForSegmentation) -> AVSegFormerForSegmentation:
    """The same numbers up to rounding, by the layers as the paper lists them and without work in place."""
    model.mask_head.forward = functools.partial(plain_mask_head, model.mask_head)
    for layer in model.model.query_generator.layers:
        layer.forward = functools.partial(plain_query_layer, layer)
    for part in (model.mask_head, model.model.pixel_decoder):
        for module in part.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False
    return model


def plain_step(case: Case) -> Callable[[], None]:
    model = in_the_original_order(new_model(case, compiled_op=False))
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=2e-5)
    loaded = clips(case)

    def step() -> None:
        batch = {name: tensor.to(case.device) for name, tensor in loaded.items()}
        masks = batch.pop("masks").float() / 255
        batch["labels"] = F.interpolate(masks, size=(case.image_size, case.image_size))
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
        for part in (output.loss, *output.loss_dict.values()):
            part.item()

    return step


def our_step(case: Case, variant: Variant) -> Callable[[], None]:
    accelerator = Accelerator(cpu=case.device == "cpu")
    network = new_model(case, variant.compiled_op)
    if variant.channels_last:
        network.to(memory_format=torch.channels_last)
    if variant.checkpointing:
        network.activation_checkpointing_enable()
    if variant.compiled_model:
        network.compile()
    loaded = clips(case)
    loaded["labels"] = (loaded.pop("masks") > 0).long()  # once, in the loader
    if variant.cached_sounds:
        features = loaded.pop("input_features").to(case.device)
        loaded["audio_embeddings"] = network.get_audio_embeddings(features).cpu()
    if case.device == "cuda":  # as the trainer's loader
        loaded = {name: tensor.pin_memory() for name, tensor in loaded.items()}
    optimizer = torch.optim.AdamW(
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        lr=2e-5,
        fused=variant.fused_adamw,
    )
    model = network
    if variant.bfloat16 or not variant.masked_frames_only:
        model = Changed(network, variant)
    model, optimizer = accelerator.prepare(model, optimizer)
    steps = 0

    def step() -> None:
        nonlocal steps
        batch = {name: tensor.to(case.device, non_blocking=True) for name, tensor in loaded.items()}
        losses = train_batch(accelerator, model, optimizer, batch | {"clips": ["benchmark"]}, 0.0, steps)
        steps += 1
        if steps % 10 == 0:  # the trainer's --logging_steps
            accelerator.reduce(torch.stack(list(losses.values()))).tolist()

    return step


class Changed(torch.nn.Module):
    """The model under autocast, or without the trainer's `frames_to_segment`."""

    def __init__(self, network: AVSegFormerForSegmentation, variant: Variant):
        super().__init__()
        self.network = network
        self.variant = variant

    def forward(self, frames_to_segment, **batch):
        if self.variant.masked_frames_only:
            batch["frames_to_segment"] = frames_to_segment
        with torch.autocast(self.network.device.type, torch.bfloat16, enabled=self.variant.bfloat16):
            return self.network(**batch)


def make_step(name: str, case: Case) -> Callable[[], None]:
    set_tf32(case.tf32)
    return plain_step(case) if name == "plain" else our_step(case, OURS if name == "ours" else CHANGES[name])


def seconds(step: Callable[[], None], device: str) -> tuple[float, float]:
    """Of the clock and of the processor."""
    begin = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def times(names: list[str], case: Case, rounds: int, warmup: int) -> dict[str, tuple[float, float]]:
    """Medians in seconds, of clock and processor, without those for which the memory does not suffice."""
    gc.collect()
    steps = {}
    for name in names:
        try:
            step = make_step(name, case)
            for _ in range(warmup):
                seconds(step, case.device)
            steps[name] = step
        except RuntimeError as error:
            if not is_out_of_memory(str(error)):
                raise
    taken = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(seconds(step, case.device))
    return {name: tuple(map(statistics.median, zip(*found, strict=True))) for name, found in taken.items()}


def is_out_of_memory(text: str) -> bool:
    return any(words in text.lower() for words in ("can't allocate memory", "out of memory", "memoryerror"))


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes. (ru_maxrss would count what the parent had before this one began.)"""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = [line for line in file if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def peak_memory(name: str, case: Case) -> int:
    """In bytes, of this process."""
    if case.device == "cuda":
        step = make_step(name, case)
        for _ in range(2):
            step()
        return torch.cuda.max_memory_allocated()
    before = resident("VmRSS")
    step = make_step(name, case)
    for _ in range(2):
        step()
    return resident("VmHWM") - before


def peak_memory_in_its_own_process(name: str, case: Case) -> int | None:
    """None where the process was ended, as it is where the machine has not enough."""
    content = json.dumps([name, dataclasses.asdict(case), torch.get_num_threads()])
    done = subprocess.run([sys.executable, __file__, "--one_memory", content], capture_output=True, text=True)
    if done.returncode < 0 or is_out_of_memory(done.stderr):
        return None
    if done.returncode:
        raise RuntimeError(f"Expected the memory of {name!r}, but its process failed:\n{done.stderr}")
    return int(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["pvt_v2_b5", "resnet50"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--masks", nargs="+", type=int, choices=range(1, FRAMES + 1), default=[1], help="a clip")
    parser.add_argument("--frozen", action="store_true", help="the epochs in which the backbone is frozen")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--changes", nargs="*", choices=list(CHANGES), help="none named: all of them")
    parser.add_argument("--beside", choices=("ours", "plain"), default="ours", help="what --changes are compared with")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="on the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, help="steps before the rounds; default: 1 on the CPU, 5 on a GPU")
    parser.add_argument("--tf32", nargs="+", choices=("off", "on"), default=["off"], help="on a GPU")
    parser.add_argument("--what", nargs="+", choices=("time", "memory"), default=["time", "memory"])
    parser.add_argument("--memory_limit", type=float, help="GiB of address space; what does not fit is left out")
    parser.add_argument("--one_memory", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one_memory:
        name, case, threads = json.loads(options.one_memory)
        torch.set_num_threads(threads)
        print(peak_memory(name, Case(**case)))
        return
    torch.set_num_threads(options.threads)
    changes = [] if options.changes is None else options.changes or list(CHANGES)
    if options.memory_limit is not None:
        limit = int(options.memory_limit * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # the subprocesses have it too
    on = f"{options.threads} CPU threads" if options.device == "cpu" else torch.cuda.get_device_name()
    print(f"{date.today()}, {on}, torch {torch.__version__}, Python {platform.python_version()}")
    warmup = (5 if options.device == "cuda" else 1) if options.warmup is None else options.warmup
    print(f"{options.image_size} x {options.image_size}, {FRAMES} frames a clip, {warmup} + {options.rounds} rounds")
    columns = "backbone", "clips", "masks a clip", "it", "TF32", "step", "ms", "as fast as", "CPU ms", "as fast as"
    print(f"| {' | '.join(columns)} | peak MB | as large as |")
    print("| --- " * (len(columns) + 2) + "|")
    settings = itertools.product(options.backbones, options.batch_sizes, options.masks, options.tf32)
    for backbone, batch_size, masks, tf32 in settings:
        case = Case(backbone, batch_size, masks, options.frozen, options.image_size, options.device, tf32 == "on")
        for names in (["plain", "ours"], *([options.beside, change] for change in changes)):
            memory = {}
            if "memory" in options.what:  # first, while this process is small
                memory = {name: peak_memory_in_its_own_process(name, case) for name in names}
            found = times(names, case, options.rounds, warmup) if "time" in options.what else {}
            for name in names:
                print(row(name, names[0], case, found, memory), flush=True)


def row(name: str, base: str, case: Case, found: dict[str, tuple[float, float]], memory: dict[str, int | None]) -> str:
    tf32 = "-" if case.device == "cpu" else "on" if case.tf32 else "off"
    columns = [case.backbone, case.batch_size, case.masks, "frozen" if case.frozen else "learns", tf32, name]
    both = name in found and base in found
    for which in (0, 1):
        columns += [f"{found[name][which] * 1e3:.1f}" if name in found else "-"]
        columns += [f"{found[base][which] / found[name][which]:.2f} × {base}" if both else "-"]
    peak, least = memory.get(name), memory.get(base)
    columns += ["-" if peak is None else f"{peak / 2**20:.0f}"]
    columns += [f"{peak / least:.2f} × {base}" if peak and least else "-"]
    return f"| {' | '.join(map(str, columns))} |"


if __name__ == "__main__":
    main()
