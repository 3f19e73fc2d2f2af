"""Times ms_deform_attn against what else is there: one process, interleaved, medians.

    python kernels/benchmarks/benchmark_deform_attn.py                       # CPU, 1 thread
    python kernels/benchmarks/benchmark_deform_attn.py --threads 2 --batch 5 20
    python kernels/benchmarks/benchmark_deform_attn.py --device cuda --dtype float32 bfloat16

The setting is a deformable encoder's: a query at every pixel of three levels (1/8, 1/16, 1/32 of the input), 8 heads,
4 points, 32 channels a head, offsets of about 2 pixels (24 % of the points fall outside). Compared are our backend,
`reference` (one grid_sample per level), transformers' grid_sample path, and on CUDA the design of 2020 and, where they
are installed, the kernels of kernels-community, mmcv, Deformable DETR and msda-triton. `ratio` is the time in units of
ours; `floor` is the time that a copy of the bytes that have to be moved would take.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from ms_deform_attn import backends, ms_deform_attn

LEVELS = {224: ((28, 28), (14, 14), (7, 7)), 512: ((64, 64), (32, 32), (16, 16)), 32: ((4, 4), (2, 2), (1, 1))}
HEADS, CHANNELS, POINTS = 8, 32, 4


def make_inputs(batch: int, image_size: int, dtype: torch.dtype, device: str) -> tuple:
    """value, spatial_shapes, sampling_locations, attention_weights of an encoder layer."""
    shapes = LEVELS[image_size]
    generator = torch.Generator().manual_seed(0)
    pixels, levels = sum(height * width for height, width in shapes), len(shapes)
    centres = [
        torch.stack(
            torch.meshgrid((torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height, indexing="xy"),
            dim=-1,
        ).reshape(-1, 2)
        for height, width in shapes
    ]
    offsets = 2 * torch.randn(batch, pixels, HEADS, levels, POINTS, 2, generator=generator)  # pixels
    sizes = torch.tensor([[width, height] for height, width in shapes])
    locations = torch.cat(centres)[None, :, None, None, None] + offsets / sizes[:, None]
    weights = torch.randn(batch, pixels, HEADS, levels * POINTS, generator=generator).softmax(-1)
    value = torch.randn(batch, pixels, HEADS, CHANNELS, generator=generator).to(dtype)
    weights = weights.view(batch, pixels, HEADS, levels, POINTS)
    return value.to(device), torch.tensor(shapes), locations.to(device), weights.to(device)


def transformers_path(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    value = value.to(locations.dtype)  # grid_sample takes one dtype
    return MultiScaleDeformableAttention()(
        value, spatial_shapes, spatial_shapes.tolist(), None, locations, weights, 64
    )


def kernels_community():
    from kernels import get_kernel

    layer = get_kernel("kernels-community/deformable-detr", version=1).layers.MultiScaleDeformableAttention()
    return lambda value, shapes, *others: layer(value, shapes, None, *others)


def mmcv():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    return MultiScaleDeformableAttnFunction.apply


def deformable_detr():
    import MultiScaleDeformableAttention as extension  # built from the `ops` folder of its repository

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, shapes, starts, locations, weights, step):
            ctx.step = step
            ctx.save_for_backward(value, shapes, starts, locations, weights)
            return extension.ms_deform_attn_forward(value, shapes, starts, locations, weights, step)

        @staticmethod
        def backward(ctx, grad_output):
            inputs = ctx.saved_tensors
            grads = extension.ms_deform_attn_backward(*inputs, grad_output.contiguous(), ctx.step)
            return grads[0], None, None, *grads[1:], None

    return Function.apply


def msda_triton():
    # Not the public function, which falls back to grid_sample without a word.
    from msda_triton.frontend import triton_multiscale_deformable_attention as function

    def call(value, shapes, starts, locations, weights, step):
        return function(value, shapes, locations, weights, "zeros", False).flatten(2)

    return call


# Name -> the module that has to be there, how to load it. All are for CUDA.
PEERS = {
    "kernels-community": ("kernels", kernels_community),
    "mmcv": ("mmcv", mmcv),
    "Deformable DETR": ("MultiScaleDeformableAttention", deformable_detr),
    "msda-triton": ("msda_triton", msda_triton),
}


def installed_peers(batch: int) -> dict:
    """Name -> function of (value, spatial_shapes, locations, weights) for each of `PEERS` that is installed."""
    found = {}
    for name, (module, load) in PEERS.items():
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:  # a namespace is no package: our own folder `kernels`
            continue
        try:
            peer = load()
        except (ImportError, OSError, ValueError) as error:
            print(f"{name}: skipped ({error})")
            continue

        def call(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor, peer=peer) -> Tensor:
            shapes = spatial_shapes.to(value.device)
            areas = shapes.prod(1)
            starts = torch.cat([areas.new_zeros(1), areas.cumsum(0)[:-1]])
            # One dtype for all; and the step has to divide the batch.
            return peer(value, shapes, starts, locations.to(value.dtype), weights.to(value.dtype), batch)

        found[name] = call
    return found


class Design2020(torch.autograd.Function):
    """The design of 2020, float32 and 32 channels: see design_2020.cu."""

    kernels = None

    @classmethod
    def load(cls):
        from ms_deform_attn import cuda

        source = Path(__file__).with_name("design_2020.cu").read_bytes()
        major, minor = torch.cuda.get_device_capability()
        cls.kernels = cuda.Kernels(
            torch.cuda.current_device(), cuda.nvrtc_compile(source, f"sm_{major}{minor}") + b"\0"
        )

    @staticmethod
    def forward(ctx, value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        from ms_deform_attn import cuda

        output = value.new_empty(value.shape[0], locations.shape[1], HEADS * CHANNELS)
        ctx.save_for_backward(value, locations, weights)
        ctx.sizes = spatial_shapes.flatten().tolist()
        params = cuda.parameters(value, ctx.sizes, locations, weights=weights, output=output)
        stream = torch.cuda.current_stream().cuda_stream
        Design2020.kernels.launch("design_2020_forward", -(-output.numel() // 1024), params, stream, threads=1024)
        return output

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple:
        from ms_deform_attn import cuda

        value, locations, weights = ctx.saved_tensors
        grads = {
            "grad_value": torch.zeros_like(value),
            "grad_locations": torch.empty_like(locations),
            "grad_weights": torch.empty_like(weights),
        }
        grad_output = grad_output.contiguous()
        params = cuda.parameters(value, ctx.sizes, locations, weights=weights, grad_output=grad_output, **grads)
        rows = value.shape[0] * locations.shape[1] * HEADS
        stream = torch.cuda.current_stream().cuda_stream
        Design2020.kernels.launch("design_2020_backward", rows, params, stream, threads=CHANNELS)
        return grads["grad_value"], None, grads["grad_locations"], grads["grad_weights"]


def bytes_moved(inputs: tuple, backward: bool) -> int:
    """Bytes that have to be read and written once, whatever the algorithm."""
    value, _, locations, weights = inputs
    reads = sum(tensor.numel() * tensor.element_size() for tensor in (value, locations, weights))
    output = locations.shape[0] * locations.shape[1] * HEADS * CHANNELS * value.element_size()
    return reads + output + (2 * reads + output if backward else 0)


def bandwidth(device: str) -> float:
    """Bytes per second of a copy that is larger than the caches, reads and writes counted."""
    source = torch.zeros((256 if device == "cuda" else 64) * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(seconds(lambda: target.copy_(source), device) for _ in range(9))


def seconds(run, device: str) -> float:
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def one_pass(function, inputs: tuple, leaves: list[Tensor], grad: Tensor, backward: bool):
    if not backward:
        with torch.no_grad():
            return function(*inputs)
    output = function(leaves[0], inputs[1], *leaves[1:])
    return torch.autograd.grad(output, leaves, grad.to(output.dtype))


def measure(runs: dict, rounds: int, device: str) -> dict[tuple[str, str], float]:
    """Median seconds of each (dtype, implementation), taken in turns: a slow moment of the machine meets them all."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for turn in range(rounds + 1):  # the first is for warming up
        for key, run in runs.items():
            for _ in range(1 if key[1] in ("reference", "transformers") else 5):
                elapsed = seconds(run, device)
                if turn > 0:
                    times[key].append(elapsed)
    return {key: statistics.median(taken) for key, taken in times.items()}


def competitors(dtype: torch.dtype, device: str, batch: int) -> dict:
    """Name -> function of (value, spatial_shapes, locations, weights)."""
    found = {
        device: lambda *inputs: ms_deform_attn(*inputs, backend=device),
        "reference": lambda *inputs: ms_deform_attn(*inputs, backend="reference"),
    }
    if importlib.util.find_spec("transformers") is not None:
        found["transformers"] = transformers_path
    if device == "cuda":
        found |= installed_peers(batch)
        if dtype == torch.float32:
            Design2020.load()
            found["design of 2020"] = Design2020.apply
    return found


def machine(device: str, threads: int) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32"], choices=("float32", "float64", "bfloat16", "float16")
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[5])
    parser.add_argument("--image_size", nargs="+", type=int, default=[224, 512], choices=sorted(LEVELS))
    parser.add_argument("--threads", type=int, default=1, help="on the CPU")
    parser.add_argument("--rounds", type=int, default=7, help="the reference is timed once in each, we five times")
    options = parser.parse_args(arguments)

    device = options.device
    if not backends()[device]:
        parser.error(f"the {device} backend does not work here: {backends()[device]}")
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    speed = bandwidth(device)
    print(f"{machine(device, options.threads)}; a copy moves {speed / 1e9:.1f} GB/s")
    print("| dtype | N | S | pass | implementation | ms | ratio | MB | floor ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for image_size, batch in itertools.product(options.image_size, options.batch):
        problems = {}
        for name in options.dtype:
            dtype = getattr(torch, name)
            inputs = make_inputs(batch, image_size, dtype, device)
            leaves = [tensor.clone().requires_grad_() for tensor in (inputs[0], *inputs[2:])]
            grad = torch.randn_like(ms_deform_attn(*inputs))
            problems[name] = (inputs, leaves, grad, competitors(dtype, device, batch))
        for backward in (False, True):
            runs = {
                (name, label): functools.partial(one_pass, function, inputs, leaves, grad, backward)
                for name, (inputs, leaves, grad, functions) in problems.items()
                for label, function in functions.items()
            }
            taken = measure(runs, options.rounds, device)
            for (name, label), elapsed in taken.items():
                inputs = problems[name][0]
                size = bytes_moved(inputs, backward)
                print(
                    f"| {name} | {batch} | {inputs[0].shape[1]} | {'fwd+bwd' if backward else 'fwd'} "
                    f"| {label} | {elapsed * 1e3:.3f} | {elapsed / taken[name, device]:.1f} "
                    f"| {size / 1e6:.1f} | {size / speed * 1e3:.3f} |",
                    flush=True,
                )
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()
