"""The benchmark of recipes: what its rows train on, and that it goes on where it was stopped."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

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
        if "evaluate" in program:
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


@pytest.fixture
def variants():
    spec = importlib.util.spec_from_file_location("recipe_variants", FILE.with_name("recipe_variants.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_with_a_variant_runs_it(benchmark, tmp_path):
    benchmark.main(["--out", str(tmp_path), "--rows", "gate", "listen", "--seeds", "0"])
    programs = [program for program, _ in benchmark.called if "pretrain" not in program]
    gate = ["benchmarks/recipe_variants.py gate train", "benchmarks/recipe_variants.py gate evaluate"]
    assert programs == [*gate, "train_accelerate.py", "evaluate_accelerate.py"]


def test_a_gated_mask_has_the_product_of_both_probabilities(variants):
    logits = torch.linspace(-30, 30, 24).reshape(1, 2, 3, 4)
    similarity = torch.tensor([[40.0, -1.5, 7.0]])  # of three frames, of which two have masks
    expected = logits.double().sigmoid() * similarity.double().sigmoid()[:, :2, None, None]
    torch.testing.assert_close(variants.gated(logits, similarity).double().sigmoid(), expected, rtol=1e-5, atol=2e-6)


def test_a_mixture_is_heard_of_two_sounds(variants, monkeypatch):
    monkeypatch.setattr(variants.epochs.TrainingClips, "_sound", lambda *_: next(names))
    monkeypatch.setattr(variants.sounds.Sounds, "__getitem__", lambda self, key: self.features[key])
    variants.use_mixtures()
    choose, compute = variants.epochs.TrainingClips._sound, variants.sounds.Sounds.__getitem__
    names = iter("abcdefgh")
    always, never = (SimpleNamespace(random=lambda value=value: value) for value in (0.0, 1.0))
    assert [choose(None, "off_screen", [0], always), choose(None, "off_screen", [0], never)] == ["a + b", "c"]
    assert choose(None, "silence", [0], always) == "d"

    clips = [{"audio": {"array": np.full(4, value, np.float32), "sampling_rate": 16000}} for value in (0.25, -0.5)]
    sounds = SimpleNamespace(features={"a": "a"}, _places={"a": ("off_screen", 0), "b": ("off_screen", 1)})
    sounds._audio = {"off_screen": clips}
    sounds.processor = lambda audio, conditions: SimpleNamespace(input_features=torch.tensor(audio[0]["array"])[None])
    sounds.encoder = torch.clone
    assert compute(sounds, "a") == "a"
    assert compute(sounds, "a + b").tolist() == [0.0] * 4  # as loud as each other, so that these two cancel
