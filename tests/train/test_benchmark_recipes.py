"""The benchmark of recipes: what its rows train on, and that it goes on where it was stopped."""

import importlib.util
import json
from pathlib import Path

import pytest

from avs_engine.training_arguments import parse_args

FILE = Path(__file__).resolve().parents[2] / "benchmarks/benchmark_recipes.py"


@pytest.fixture
def benchmark(monkeypatch):
    """The module; its programs and clips are not made, but each training scores 0.5 + its seed / 10."""
    spec = importlib.util.spec_from_file_location("benchmark_recipes", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.called = []

    def run(program, options, log):
        module.called.append((program, options))
        if program == "evaluate_accelerate.py":
            seed = int(str(options["model"].parent)[-1])
            unseen = {"miou": 0.1, "fpr": 0.01}
            found = {"scores": {"miou_positive": 0.5 + seed / 10}, "extra_conditions": {"unseen": unseen}}
            options["output_dir"].mkdir(parents=True)
            (options["output_dir"] / "results.json").write_text(json.dumps(found))

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(
        module.synthetic, "write_demo", lambda folder, *_, **__: folder.mkdir(parents=True, exist_ok=True)
    )
    return module


def test_every_row_sees_as_many_items_with_their_own_sound(benchmark, tmp_path):
    for name, row in benchmark.ROWS.items():
        options = {"subset": "demo", "output_dir": tmp_path, **benchmark.TRAINING, **row.training}
        words = [word for option in options.items() for word in benchmark.words(*option)]
        args = parse_args([*words, "--random_backbone", "--random_vggish"])
        assert args.batch_size * (1 - args.negative_ratio) == benchmark.POSITIVE_ITEMS, name
        assert args.negative_ratio == (0 if name == "baseline" else 0.5)


def test_a_repeated_call_goes_on_and_prints_means(benchmark, tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--rows", "paper", "two_objects", "--seeds"]
    benchmark.main([*arguments, "0"])
    capsys.readouterr()
    benchmark.called.clear()
    benchmark.main([*arguments, "0", "2", "--unseen_dir", str(tmp_path)])
    trained = [options["output_dir"].name for program, options in benchmark.called if program == "train_accelerate.py"]
    assert trained == ["paper_seed2", "two_objects_seed2"]
    heard = [options.get("unseen_dir") for program, options in benchmark.called if "evaluate" in program]
    assert heard == [None, tmp_path] * 2
    header, _, paper, two_objects = capsys.readouterr().out.splitlines()
    assert header == "| training | miou_positive | miou_unseen | fpr_unseen |"
    assert paper.endswith("| 0.600 (0.500, 0.700) | 0.100 (0.100, 0.100) | 0.0100 (0.0100, 0.0100) |")
    with pytest.raises(SystemExit, match="Name another --out"):
        benchmark.main([*arguments, "0", "--max_steps", "3"])
