"""The benchmarks run and print what their heads promise."""

import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_avsegformer import AVSegFormerConfig, VGGishConfig
from ms_deform_attn import backends, ms_deform_attn

BENCHMARKS = Path(__file__).parents[2] / "kernels" / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cpu():
    if not backends()["cpu"]:
        pytest.skip(backends()["cpu"])


@pytest.mark.slow
def test_a_tiny_benchmark(cpu):
    script = str(BENCHMARKS / "benchmark_deform_attn.py")
    command = [sys.executable, script, "--preset", "encoder", "--image_size", "32", "--batch", "1", "--rounds", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    head, columns, _, *rows = result.stdout.splitlines()
    assert "a copy moves" in head and columns.count("|") == 13
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[4] for row in cells] == sorted(
        ["fwd", "bwd", "fwd+bwd"] * (len(cells) // 3), key=["fwd", "bwd", "fwd+bwd"].index
    )
    assert {"cpu", "reference"} <= {row[5] for row in cells}
    for row in cells:
        milliseconds, ratio, megabytes, floor = map(float, row[6:10])
        assert milliseconds > floor >= 0 and ratio > 0 and megabytes > 0 and row[10:] == ["-", "-"]
        assert row[5] != "cpu" or ratio == 1.0
    # 21 pixels and queries, 8 heads, 3 levels, 4 points, 32 channels: value and output 21504 bytes each, locations
    # 16128, weights 8064; with the backward pass the inputs again, their gradients, and the output's gradient.
    assert {row[4]: row[8] for row in cells} == {"fwd": "0.1", "bwd": "0.1", "fwd+bwd": "0.2"}


def test_the_presets():
    benchmark = load("benchmark_deform_attn")
    value, shapes, locations, weights = benchmark.make_inputs(2, ((4, 6), (2, 3)), torch.bfloat16, "cpu")
    assert value.shape == (2, 30, 8, 32) and locations.shape == (2, 30, 8, 2, 4, 2) and value.dtype == torch.bfloat16
    torch.testing.assert_close(weights.sum((3, 4)), torch.ones(2, 30, 8))
    # Offsets are 2 pixels, around the centres of the pixels: (x, y) of the second one is (1.5 / 6, 0.5 / 4).
    offsets = (locations - torch.tensor([0.25, 0.125]))[:, 1] * torch.tensor([[6.0, 4.0], [3.0, 2.0]])[:, None]
    assert offsets.mean().abs() < 0.5 and abs(offsets.std() - 2) < 0.3

    decoder = benchmark.DECODER | {"shapes": ((5, 8), (3, 4))}
    locations = benchmark.make_inputs(dtype=torch.float32, device="cpu", **decoder)[2]
    assert locations.shape == (4, 300, 8, 2, 4, 2)
    assert sum(height * width for height, width in benchmark.DECODER["shapes"]) == 22223


def test_the_floors(make_inputs):
    benchmark = load("benchmark_deform_attn")
    inputs = make_inputs(queries=9, heads=8, channels=32)
    # All points at the centre of a map: four corners are inside, or two in a map of one column or row.
    central = (inputs[0], torch.tensor([[4, 4], [1, 4]]), torch.full((1, 5, 8, 2, 4, 2), 0.5), None)
    assert benchmark.corners_inside(central) == 5 * 8 * 4 * (4 + 2)
    speed = {"copy": 1e9, "gather": 1e9, "add": 1e9}
    value, _, locations, weights = inputs
    rows = benchmark.corners_inside(inputs)
    assert 0 < rows < 4 * weights.numel()
    found = {of: benchmark.floors(inputs, of, speed) for of in ("fwd", "bwd", "fwd+bwd")}
    assert found["fwd"]["gather"] == pytest.approx(rows * 128 / 1e9) and "add" not in found["fwd"]
    assert found["bwd"]["add"] == found["fwd+bwd"]["add"] == pytest.approx(rows * 128 / 1e9)
    for floor in ("copy", "gather"):
        assert found["fwd+bwd"][floor] == pytest.approx(found["fwd"][floor] + found["bwd"][floor])
    assert benchmark.floors(inputs, "fwd", {"copy": 1e9}).keys() == {"copy"}


class Gpu:
    """Stands in for the GPU's queue: spins for some calls' time, and says what was queued while it did."""

    def __init__(self, monkeypatch, calls_while_spinning):
        self.left, self.order = 0, []
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.spin(cycles // 4_000_000 * calls_while_spinning))
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: self)

    def spin(self, calls):
        self.left = calls
        self.order.append("spin")

    def call(self):
        self.left -= 1
        self.order.append("call")

    def record(self):
        self.order.append("record")

    def query(self):
        return self.left < 0

    def synchronize(self):
        self.order.append("synchronize")

    def elapsed_time(self, end):
        return 6.0


def test_times_on_a_gpu_begin_behind_a_spinning_kernel(monkeypatch):
    benchmark = load("benchmark_deform_attn")
    gpu = Gpu(monkeypatch, calls_while_spinning=3)
    assert benchmark.seconds(gpu.call, "cuda", count=2) == pytest.approx(3e-3)
    assert gpu.order == ["spin", "record", "call", "call", "record", "synchronize"]
    # The first time the GPU was done before the last call was queued: again, with more to spin.
    gpu.order.clear()
    assert benchmark.seconds(gpu.call, "cuda", count=5) == pytest.approx(6e-3 / 5)
    assert gpu.order.count("spin") == 2
    never = Gpu(monkeypatch, calls_while_spinning=0)
    with pytest.raises(RuntimeError, match="do not wait for the GPU"):
        benchmark.seconds(never.call, "cuda")


@pytest.mark.slow
def test_a_tiny_model(cpu, monkeypatch, capsys):
    benchmark = load("benchmark_model")
    audio = VGGishConfig(conv_channels=[4, 4, 6, 8], fc_size=16, embedding_size=11)
    sizes = {"hidden_size": 64, "encoder_layers": 1, "encoder_ffn_size": 40, "decoder_layers": 1, "num_queries": 7}
    config = functools.partial(AVSegFormerConfig, **sizes, query_generator_layers=1, audio_config=audio)
    monkeypatch.setattr(benchmark, "AVSegFormerConfig", config)
    before = torch.get_num_threads()
    benchmark.main(["--backbone", "test_resnet", "--image_size", "64", "--rounds", "1"])
    torch.set_num_threads(before)
    head, logits, *lines = capsys.readouterr().out.splitlines()
    assert "test_resnet, 64 pixels, cpu, 1 thread," in head and f"torch {torch.__version__}" in head
    difference, largest = re.search(r"largest difference (\S+) of (\S+)$", logits).groups()
    assert float(difference) <= 1e-5 * max(1, float(largest))
    pattern = r"(forward|training step), (reference|cpu): (\d+) ms, (\d+\.\d\d) times as fast as with the reference"
    found = [re.fullmatch(pattern, line).groups() for line in lines]
    assert [row[:2] for row in found] == [
        ("forward", "reference"),
        ("forward", "cpu"),
        ("training step", "reference"),
        ("training step", "cpu"),
    ]
    assert found[0][3] == found[2][3] == "1.00"


# Stand-ins with the signatures of the real ones; `call` checks what it is given and computes with the reference.
CALL = """
from ms_deform_attn import ms_deform_attn as ours
def call(value, shapes, starts, locations, weights, step):
    assert starts.tolist() == [0, 16, 20] and value.shape[0] % step == 0
    assert value.dtype == locations.dtype == weights.dtype
    return ours(value.float(), shapes, locations.float(), weights.float(), backend="reference")
"""
STAND_INS = {
    "mmcv/__init__.py": "",
    "mmcv/ops/__init__.py": "",
    "mmcv/ops/multi_scale_deform_attn.py": CALL
    + "class MultiScaleDeformableAttnFunction:\n    apply = staticmethod(call)\n",
    "torch_ms_deform_attn/__init__.py": CALL + "ms_deform_attn = call\n",
    "MultiScaleDeformableAttention.py": CALL + "ms_deform_attn_forward = call\n",
    "msda_triton/__init__.py": "",
    "msda_triton/frontend.py": """
from ms_deform_attn import ms_deform_attn
def triton_multiscale_deformable_attention(img, img_shapes, sampling_points, attention_weights, padding, align):
    assert (padding, align) == ("zeros", False)
    output = ms_deform_attn(img, img_shapes, sampling_points, attention_weights, backend="reference")
    return output.unflatten(2, (8, 32))
""",
}


def test_peers_are_called_as_they_want(tmp_path, monkeypatch, capsys):
    for name, text in STAND_INS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    benchmark = load("benchmark_deform_attn")
    del benchmark.PEERS["kernels-community"]  # would be downloaded
    inputs = benchmark.make_inputs(2, benchmark.LEVELS[32], torch.float32, "cpu")
    peers = benchmark.installed_peers(batch=2, device="cuda")
    assert list(peers) == ["torch-ms-deform-attn", "mmcv", "Deformable DETR", "msda-triton"]
    assert list(benchmark.installed_peers(batch=2, device="cpu")) == ["torch-ms-deform-attn"]
    expected = ms_deform_attn(*inputs, backend="reference")
    assert all(torch.equal(peer(*inputs), expected) for peer in peers.values())

    (tmp_path / "mmcv" / "ops" / "__init__.py").write_text("raise ImportError('no mmcv._ext')\n")
    for name in [name for name in sys.modules if name.startswith("mmcv")]:
        monkeypatch.delitem(sys.modules, name)
    assert "mmcv" not in benchmark.installed_peers(batch=2, device="cuda")
    assert capsys.readouterr().out == "mmcv: skipped (no mmcv._ext)\n"
