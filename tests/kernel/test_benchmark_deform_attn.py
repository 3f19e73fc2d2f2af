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
    command = [sys.executable, script, "--image_size", "32", "--batch", "1", "--rounds", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    head, columns, _, *rows = result.stdout.splitlines()
    assert "a copy moves" in head and columns.count("|") == 10
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[3] for row in cells] == sorted(["fwd", "fwd+bwd"] * (len(cells) // 2))
    assert {"cpu", "reference"} <= {row[4] for row in cells}
    for row in cells:
        milliseconds, ratio, megabytes, floor = map(float, row[5:])
        assert milliseconds > floor >= 0 and ratio > 0 and megabytes > 0
        assert row[4] != "cpu" or ratio == 1.0
    # 21 pixels and queries, 8 heads, 3 levels, 4 points, 32 channels: value and output 21504 bytes each, locations
    # 16128, weights 8064; with the backward pass the inputs again, their gradients, and the output's gradient.
    assert {row[3]: row[7] for row in cells} == {"fwd": "0.1", "fwd+bwd": "0.2"}


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
from ms_deform_attn import ms_deform_attn
def call(value, shapes, starts, locations, weights, step):
    assert starts.tolist() == [0, 16, 20] and value.shape[0] % step == 0
    assert value.dtype == locations.dtype == weights.dtype
    return ms_deform_attn(value.float(), shapes, locations.float(), weights.float(), backend="reference")
"""
STAND_INS = {
    "mmcv/__init__.py": "",
    "mmcv/ops/__init__.py": "",
    "mmcv/ops/multi_scale_deform_attn.py": CALL
    + "class MultiScaleDeformableAttnFunction:\n    apply = staticmethod(call)\n",
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
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    benchmark = load("benchmark_deform_attn")
    del benchmark.PEERS["kernels-community"]  # would be downloaded
    inputs = benchmark.make_inputs(2, 32, torch.float32, "cpu")
    peers = benchmark.installed_peers(batch=2)
    assert list(peers) == ["mmcv", "Deformable DETR", "msda-triton"]
    expected = ms_deform_attn(*inputs, backend="reference")
    assert all(torch.equal(peer(*inputs), expected) for peer in peers.values())

    (tmp_path / "mmcv" / "ops" / "__init__.py").write_text("raise ImportError('no mmcv._ext')\n")
    for name in [name for name in sys.modules if name.startswith("mmcv")]:
        monkeypatch.delitem(sys.modules, name)
    assert "mmcv" not in benchmark.installed_peers(batch=2)
    assert capsys.readouterr().out == "mmcv: skipped (no mmcv._ext)\n"
