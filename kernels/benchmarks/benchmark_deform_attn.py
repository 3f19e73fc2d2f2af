"""Times ms_deform_attn against what else is there: one process, interleaved, medians.

    python kernels/benchmarks/benchmark_deform_attn.py                       # CPU, 1 thread
    python kernels/benchmarks/benchmark_deform_attn.py --threads 2 --batch 5 20 --preset encoder
    python kernels/benchmarks/benchmark_deform_attn.py --device cuda --dtype float32 bfloat16

Presets, all with 8 heads of 32 channels and 4 points, at offsets of about 2 pixels. `encoder`: a query at every pixel
of three levels (1/8, 1/16, 1/32 of the input; 24 % of the points fall outside). `decoder`: N = 4, 300 queries at
random places of four levels of an 800 x 1333 picture, as Deformable DETR has them.

Compared are our backend, `reference` (one grid_sample per level), transformers' grid_sample path, and, where they are
installed, torch-ms-deform-attn and on CUDA the design of 2020 and the kernels of kernels-community, mmcv, Deformable
DETR and msda-triton. `ratio` is the time in units of ours. Passes: `fwd`, `bwd` (the gradients of all three inputs),
`fwd+bwd`.

On the CPU, times of one thread are the processor's, which other work on the machine disturbs less; else the clock's.
On CUDA every timed call waits in the stream behind a kernel that only spins, so that the times are the GPU's alone:
Python needs longer for a call than the GPU. All calls of a row get the same inputs, as a layer finds them that has
just made its values. Floors: `copy` is a copy of the bytes that have to be moved once; on CUDA `gather` reads the rows
of all corners that lie inside at the speed of L1, and `add` adds the gradient's rows at the speed of memory's atomics
(floors.cu).
"""

from __future__ import annotations

import argparse
import ctypes
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
DECODER = {"batch": 4, "queries": 300, "shapes": ((100, 167), (50, 84), (25, 42), (13, 21))}

# Microseconds that msda-triton publishes for an H100 at the preset `decoder`.
PUBLISHED = {"float32": {"fwd": 12, "bwd": 92}, "bfloat16": {"fwd": 8, "bwd": 56}}


def make_inputs(
    batch: int, shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: str, queries: int | None = None
) -> tuple:
    """value, spatial_shapes, sampling_locations, attention_weights; queries at every pixel or at `queries` places."""
    draw = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    pixels, levels = sum(height * width for height, width in shapes), len(shapes)
    if queries is None:
        centres = [
            torch.cartesian_prod((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width).flip(1)
            for height, width in shapes
        ]
        places = torch.cat(centres).to(device)[None]
    else:
        places = torch.rand(batch, queries, 2, **draw)
    count = places.shape[1]
    offsets = 2 * torch.randn(batch, count, HEADS, levels, POINTS, 2, **draw)  # pixels
    sizes = torch.tensor([[width, height] for height, width in shapes], device=device)
    locations = places[:, :, None, None, None] + offsets / sizes[:, None]
    weights = torch.randn(batch, count, HEADS, levels * POINTS, **draw).softmax(-1)
    value = torch.randn(batch, pixels, HEADS, CHANNELS, **draw).to(dtype)
    return value, torch.tensor(shapes), locations, weights.view(batch, count, HEADS, levels, POINTS)


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


def torch_ms_deform_attn():
    from torch_ms_deform_attn import ms_deform_attn as function

    return function


# Name -> the module that has to be there, how to load it.
CPU_PEERS = {"torch-ms-deform-attn": ("torch_ms_deform_attn", torch_ms_deform_attn)}
PEERS = CPU_PEERS | {
    "kernels-community": ("kernels", kernels_community),
    "mmcv": ("mmcv", mmcv),
    "Deformable DETR": ("MultiScaleDeformableAttention", deformable_detr),
    "msda-triton": ("msda_triton", msda_triton),
}


def installed_peers(batch: int, device: str) -> dict:
    """Name -> function of (value, spatial_shapes, locations, weights) for each peer that is installed."""
    found = {}
    for name, (module, load) in (PEERS if device == "cuda" else CPU_PEERS).items():
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:  # a namespace is not a package: our own folder `kernels`
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


def bytes_moved(inputs: tuple, of_pass: str) -> int:
    """Bytes that have to be read and written once, whatever the algorithm."""
    value, _, locations, weights = inputs
    reads = sum(tensor.numel() * tensor.element_size() for tensor in (value, locations, weights))
    output = locations.shape[0] * locations.shape[1] * HEADS * CHANNELS * value.element_size()
    moved = {"fwd": reads + output, "bwd": 2 * reads + output}
    return moved.get(of_pass) or sum(moved.values())


def corners_inside(inputs: tuple) -> int:
    """How many rows of `CHANNELS` channels are read."""
    _, spatial_shapes, locations, _ = inputs
    sizes = spatial_shapes.flip(1).to(locations.device)[:, None]  # (levels, 1, 2): width, height
    first = (locations * sizes - 0.5).floor()
    inside = ((first >= 0) & (first < sizes)).int() + ((first >= -1) & (first < sizes - 1)).int()
    return int(inside.prod(-1).sum())


class Floor(ctypes.Structure):
    """`Floor` of floors.cu."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("sink", ctypes.c_void_p),
        ("bits", ctypes.c_uint),
        ("turns", ctypes.c_uint),
    ]


def speeds(device: str) -> dict[str, float]:
    """Bytes a second of a copy that is larger than the caches (reads and writes counted), and on CUDA of rows that are
    gathered from L1 and of rows that are added to."""
    source = torch.randn((256 if device == "cuda" else 64) * 2**18, device=device)
    target = torch.empty_like(source)
    taken = statistics.median(seconds(lambda: target.copy_(source), device) for _ in range(9))
    found = {"copy": 2 * source.nbytes / taken}
    if device == "cpu":
        return found
    from ms_deform_attn import cuda

    major, minor = torch.cuda.get_device_capability()
    image = cuda.nvrtc_compile(Path(__file__).with_name("floors.cu").read_bytes(), f"sm_{major}{minor}")
    kernels = cuda.Kernels(torch.cuda.current_device(), image + b"\0")
    sink, stream = torch.zeros(1, device=device), torch.cuda.current_stream().cuda_stream
    blocks, turns = torch.cuda.get_device_properties(device).multi_processor_count * 32, 64
    # 64 rows for each block, which stay in its L1; 16 MB for all blocks to add to.
    for name, kernel, bits, rows in (("gather", "gather_rows", 6, blocks << 6), ("add", "add_rows", 17, 1 << 17)):
        data = torch.randn(rows, 32, device=device)
        floor = Floor(data.data_ptr(), sink.data_ptr(), bits, turns)
        run = functools.partial(kernels.launch, kernel, blocks, floor, stream)
        taken = statistics.median(seconds(run, device, 5) for _ in range(9))
        found[name] = blocks * 256 / 8 * turns * 4 * 128 / taken
    return found


def floors(inputs: tuple, of_pass: str, speed: dict[str, float]) -> dict[str, float]:
    """Seconds: see the head."""
    value = inputs[0]
    found = {"copy": bytes_moved(inputs, of_pass) / speed["copy"]}
    if "gather" in speed:
        rows, channels = corners_inside(inputs), 4 * CHANNELS  # sums are float32
        found["gather"] = rows * CHANNELS * value.element_size() * (2 if of_pass == "fwd+bwd" else 1) / speed["gather"]
        if of_pass != "fwd":
            found["add"] = rows * channels / speed["add"]
    return found


def seconds(run, device: str, count: int = 1) -> float:
    """Of one of `count` calls."""
    if device == "cpu":
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        begin = clock()
        for _ in range(count):
            run()
        return (clock() - begin) / count
    cycles = 4_000_000  # 2 ms
    while True:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(cycles)
        begin.record()
        for _ in range(count):
            run()
        waited = begin.query()  # the spinning kernel has ended: the GPU may have waited for a launch
        end.record()
        end.synchronize()
        if not waited:
            return begin.elapsed_time(end) / 1e3 / count
        if cycles > 2_000_000_000:
            raise RuntimeError("Expected calls that do not wait for the GPU, but this one does: it cannot be timed.")
        cycles *= 4


def passes(function, inputs: tuple, leaves: list[Tensor], grad: Tensor) -> dict:
    """Name of a pass -> function that runs it."""

    def forward():
        with torch.no_grad():
            return function(*inputs)

    def both():
        output = function(leaves[0], inputs[1], *leaves[1:])
        return torch.autograd.grad(output, leaves, grad.to(output.dtype))

    output = function(leaves[0], inputs[1], *leaves[1:])
    given = grad.to(output.dtype)

    def backward():
        return torch.autograd.grad(output, leaves, given, retain_graph=True)

    return {"fwd": forward, "bwd": backward, "fwd+bwd": both}


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
    found |= installed_peers(batch, device)
    if device == "cuda" and dtype == torch.float32:
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


def cases(options: argparse.Namespace) -> list[tuple[str, dict]]:
    """(preset, arguments of `make_inputs`) of each problem."""
    found = []
    if "encoder" in options.preset:
        for image_size, batch in itertools.product(options.image_size, options.batch):
            found.append(("encoder", {"batch": batch, "shapes": LEVELS[image_size]}))
    if "decoder" in options.preset:
        found.append(("decoder", DECODER))
    return found


def rows_of(preset: str, case: dict, options: argparse.Namespace, speed: dict[str, float]) -> list[str]:
    """The table's rows of one problem."""
    device, problems = options.device, {}
    for name in options.dtype:
        dtype = getattr(torch, name)
        inputs = make_inputs(dtype=dtype, device=device, **case)
        leaves = [tensor.clone().requires_grad_() for tensor in (inputs[0], *inputs[2:])]
        grad = torch.randn_like(ms_deform_attn(*inputs))
        functions = competitors(dtype, device, case["batch"])
        problems[name] = inputs, {label: passes(run, inputs, leaves, grad) for label, run in functions.items()}
    rows = []
    for of_pass in ("fwd", "bwd", "fwd+bwd"):
        runs = {(name, label): run[of_pass] for name, (_, of) in problems.items() for label, run in of.items()}
        taken = measure(runs, options.rounds, device)
        if preset == "decoder" and device == "cuda":
            for name in problems.keys() & PUBLISHED.keys():
                if of_pass in PUBLISHED[name]:
                    taken[name, "msda-triton, published (H100)"] = PUBLISHED[name][of_pass] / 1e6
        for (name, label), elapsed in taken.items():
            inputs = problems[name][0]
            queries, pixels = inputs[2].shape[1], inputs[0].shape[1]
            found = floors(inputs, of_pass, speed)
            shown = " | ".join(
                f"{found[floor] * 1e3:.3f}" if floor in found else "-" for floor in ("copy", "gather", "add")
            )
            rows.append(
                f"| {name} | {case['batch']} | {queries} | {pixels} | {of_pass} | {label} | {elapsed * 1e3:.3f} "
                f"| {elapsed / taken[name, device]:.1f} | {bytes_moved(inputs, of_pass) / 1e6:.1f} | {shown} |"
            )
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32"], choices=("float32", "float64", "bfloat16", "float16")
    )
    parser.add_argument("--preset", nargs="+", choices=("encoder", "decoder"), default=["encoder", "decoder"])
    parser.add_argument("--batch", nargs="+", type=int, default=[5], help="of the encoder")
    parser.add_argument("--image_size", nargs="+", type=int, default=[224, 512], choices=sorted(LEVELS))
    parser.add_argument("--threads", type=int, default=1, help="on the CPU")
    parser.add_argument("--rounds", type=int, default=7, help="the reference is timed once in each, we five times")
    options = parser.parse_args(arguments)

    device = options.device
    if not backends()[device]:
        parser.error(f"the {device} backend does not work here: {backends()[device]}")
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    speed = speeds(device)
    told = {"copy": "a copy moves", "gather": "L1 gathers", "add": "atomics add"}
    print(
        f"{machine(device, options.threads)}; " + ", ".join(f"{told[k]} {v / 1e9:.1f} GB/s" for k, v in speed.items())
    )
    print("| dtype | N | Q | S | pass | implementation | ms | ratio | MB | copy ms | gather ms | add ms |")
    print("| --- " * 12 + "|")
    for preset, case in cases(options):
        print("\n".join(rows_of(preset, case, options, speed)), flush=True)
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()
