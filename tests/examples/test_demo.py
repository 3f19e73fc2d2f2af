"""The demo's own parts; its programs are tested where they live."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from avs_engine.training_arguments import RECIPES
from evaluate_metrics.report import Run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo, pretraining = load("demo"), load("pretrain_encoders")


def test_command_leaves_out_what_is_not_set():
    words = demo.command("-m tool run", size=64, names=["a=1", "b=4"], flag=True, off=False, none=None)
    assert words == [sys.executable, "-m", "tool", "run", "--size", "64", "--names", "a=1", "b=4", "--flag"]


def test_a_failing_command_ends_the_demo_with_its_output(tmp_path):
    with pytest.raises(SystemExit, match="(?s)exit code 3.*what went wrong"):
        demo.run([sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"], tmp_path / "log")


def test_every_command_computes_on_one_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    demo.run([sys.executable, "-c", "import os; print('threads:', os.environ['OMP_NUM_THREADS'])"], tmp_path / "log")
    assert "threads: 1" in (tmp_path / "log").read_text(encoding="utf-8")


def test_means_are_over_seeds_and_only_of_what_every_seed_has():
    runs = [Run("robust", {"g_miou": 0.8, "g_fpr": 0.5}), Run("robust", {"g_miou": 0.9})]
    assert demo.mean_scores(runs) == {"g_miou": pytest.approx(0.85)}


def test_both_models_differ_in_the_sounds_alone():
    assert demo.MODELS["baseline"]["negative_ratio"] == 0
    assert not any("noise" in name for name in RECIPES[demo.MODELS["robust"]["recipe"]].negative_conditions)


def test_both_models_see_as_many_items_with_their_own_sound():
    assert demo.items_seen("baseline", 700) == {"positive": 8400, "negative": 0}
    assert demo.items_seen("robust", 700) == {"positive": 8400, "negative": 8400}


def test_clips_of_another_seed_or_recipe_have_another_folder(monkeypatch, tmp_path):
    """What is reused is what would be made: the folder's name holds the seed and the recipe's digest."""
    folders = []

    def stop(words, log):
        folders.append(words[words.index("--out") + 1])
        raise SystemExit

    monkeypatch.setattr(demo, "run", stop)
    for arguments in ([], ["--data_seed", "5"]):
        with pytest.raises(SystemExit):
            demo.main(["--out", str(tmp_path), *arguments])
    monkeypatch.setattr(demo, "demo_digest", lambda: "another recipe")
    with pytest.raises(SystemExit):
        demo.main(["--out", str(tmp_path)])
    assert len(set(folders)) == 3


def test_sounds_of_no_category_end_at_zero():
    """A linear encoder that could tell all rows apart keeps those without a label small."""
    torch.manual_seed(0)
    inputs = torch.eye(8)
    labels = torch.cat([torch.eye(4), torch.zeros(4, 4)])
    layer = torch.nn.Linear(8, 6)
    draws = [torch.arange(8)] * 200
    pretraining.fit(lambda rows: layer(inputs[rows]), list(layer.parameters()), 6, labels, draws, 0.05, 200, 0.1)
    size = layer(inputs).square().mean(1)
    assert size[4:].max() < 0.2 * size[:4].min()


def test_real_data_needs_a_folder(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--subset", "s4"])
    assert "--data_dir: expected the folder of an AVSBench download" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("subset", "categories", "names", "rows"),
    [
        ("s4", ["dog_barking", "helicopter"], ["dog_barking", "helicopter"], [[1, 0], [0, 1]]),
        ("ms3", ["dog_cat", "cat", ""], ["cat", "dog"], [[1, 1], [1, 0], [0, 0]]),
        ("ms3", ["", ""], [], [[], []]),
    ],
)
def test_targets_name_what_sounds(subset, categories, names, rows):
    labels, found = pretraining.targets(subset, Dataset.from_dict({"category": categories}))
    assert found == names
    assert labels.tolist() == rows


def test_batches_take_their_share_of_each_part():
    draws = list(pretraining.batches([(10, 4), (3, 2)], steps=50, seed=0))
    assert len(draws) == 50
    assert all((rows[:4] < 10).all() and (rows[4:] >= 10).all() and (rows[4:] < 13).all() for rows in draws)
    assert set(torch.cat(draws).tolist()) == set(range(13))


def test_background_is_silence_and_noise_that_is_never_white():
    silence, *others = pretraining.background_sounds(6, seed=0)
    assert not silence.any()
    for sound in others:
        assert sound.shape == (80000,) and sound.dtype == np.float32
        power = np.abs(np.fft.rfft(sound)) ** 2
        assert power[100:5000].mean() > 1.4 * power[20000:].mean()  # white noise: equal
