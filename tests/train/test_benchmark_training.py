"""The benchmark of the training step compares steps that learn the same."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).resolve().parents[2] / "benchmarks/benchmark_training.py"


@pytest.fixture(autouse=True)
def precision_as_before():
    """The benchmark sets it for its process; torch.export, which other tests call, refuses some combinations."""
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_training", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(benchmark, write_model, monkeypatch):
    """A case of a tiny model without dropout; the list receives each model that is made."""
    from modeling_avsegformer import AVSegFormerForSegmentation

    folder, made = write_model(dropout=0.0), []

    def new_model(case, compiled_op):
        model = AVSegFormerForSegmentation.from_pretrained(folder)
        model.freeze_backbone(case.frozen)
        # Inductor takes minutes for a whole model; the kernel's tests have it compile the op.
        model.compile = functools.partial(model.compile, backend="aot_eager")
        made.append(model)
        return model.train()

    monkeypatch.setattr(benchmark, "new_model", new_model)
    return benchmark.Case("test_resnet", 2, 1, False, 64, "cpu"), made


@pytest.mark.slow
def test_all_variants_learn_the_same(benchmark, tiny):
    case, made = tiny
    names = ["plain", "ours", *(name for name in benchmark.CHANGES if "bfloat16" not in name)]
    for name in names:
        step = benchmark.make_step(name, case)
        step()
    before = benchmark.new_model(case, True)
    plain, *others = made[:-1]
    moved = torch.cat([(p - q).abs().flatten() for p, q in zip(plain.parameters(), before.parameters(), strict=True)])
    assert moved.max() > 1e-5
    for name, model in zip(names[1:], others, strict=True):
        # Adam's first step is as long where a gradient is nothing but rounding: compare means.
        pairs = zip(plain.parameters(), model.parameters(), strict=True)
        difference = torch.cat([(p - q).abs().flatten() for p, q in pairs])
        assert difference.mean() < 0.05 * moved.mean(), name


def test_the_table(benchmark, tiny, capsys, monkeypatch):
    monkeypatch.setattr(
        benchmark, "peak_memory_in_its_own_process", lambda name, case: 2**21 if name == "ours" else 2**22
    )
    threads = torch.get_num_threads()
    arguments = ["--backbones", "tiny", "--batch_sizes", "1", "--image_size", "64", "--rounds", "1", "--threads", "1"]
    benchmark.main(arguments)
    torch.set_num_threads(threads)
    plain, ours = capsys.readouterr().out.splitlines()[-2:]
    assert plain.startswith("| tiny | 1 | 1 | learns | - | plain |") and plain.endswith("| 4 | 1.00 × plain |")
    assert ours.startswith("| tiny | 1 | 1 | learns | - | ours |") and ours.endswith("| 2 | 0.50 × plain |")
    assert ours.split("|")[8].endswith("× plain ")
    assert 1 < float(ours.split("|")[7]) < 1e5, "not in milliseconds"


def test_tf32_is_said_and_set(benchmark, tiny):
    case, _ = tiny
    case = dataclasses.replace(case, device="cuda", tf32=True)
    assert "| on | ours | 48.3 |" in benchmark.row("ours", "plain", case, {"ours": (0.0483, 0.1)}, {})
    for on, precision in ((True, "tf32"), (False, "ieee")):
        benchmark.set_tf32(on)
        assert torch.backends.cuda.matmul.fp32_precision == precision == torch.backends.cudnn.conv.fp32_precision
