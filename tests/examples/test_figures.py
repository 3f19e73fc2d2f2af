"""The script that draws the documentation's pictures, on a demo of its own."""

import importlib.util
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from avsbench_robust_dataset.synthetic import write_demo

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "figures.py"


@pytest.fixture
def figures(monkeypatch, tmp_path):
    pytest.importorskip("nbclient", reason="needs what runs the notebook: pip install -e '.[docs]'")
    spec = importlib.util.spec_from_file_location("docs_figures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "IMAGES", tmp_path / "images")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return module


@pytest.mark.slow
def test_the_same_figures_of_the_metric_each_time(figures, tmp_path):
    figures.main(["metric"])
    first = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    figures.main(["metric"])
    assert first.keys() == {"g_miou.svg", "f_floor.svg"}
    assert all((tmp_path / "images" / name).read_bytes() == content for name, content in first.items())


@pytest.mark.slow
def test_the_picture_shows_each_model_under_five_sounds(figures, tmp_path):
    demo = tmp_path / "demo"
    write_demo(demo / "data_seed1_x", seed=1, sizes={"train": 4, "val": 4, "test": 8}, num_proc=1)
    for path in (demo / "data_seed1_x").glob("Single-source/s4_data/gt_masks/test/*/*/*.png"):
        category, clip = path.parts[-3:-1]
        for model in figures.ROWS:
            for name in figures.SHOWN:
                marked = np.full((64, 64), 255 * (model == "baseline"), np.uint8)
                place = demo / f"{model}_seed0/eval/predictions" / name / category / clip / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(marked).save(place)
    figures.main(["demo", "--demo", str(demo)])
    picture = np.asarray(Image.open(tmp_path / "images" / "demo.png").convert("RGB")).astype(int)
    orange = (picture[..., 0] > 150) & (picture[..., 2] < 80)  # the baseline's colour
    upper, lower = np.split(orange, [len(orange) // 2])
    assert upper.mean() > 0.3 and lower.mean() < 0.05
