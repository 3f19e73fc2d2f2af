"""The quickstart notebook runs in an empty folder, and gives the results that are stored in it."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]

# What a kernel does: the cells one after the other, in one namespace. At the end, what they have left there.
RUN = """
import json
from pathlib import Path

namespace = {"__name__": "__main__"}
for number, cell in enumerate(json.loads(Path("cells.json").read_text(encoding="utf-8"))):
    exec(compile(cell, f"<cell {number}>", "exec"), namespace)
import matplotlib.pyplot as plt
Path("left.json").write_text(json.dumps([namespace["scores"], len(plt.get_fignums())]))
"""


def source(cell) -> str:
    return "".join(cell["source"])


def stored(kind: str) -> list:
    return [output for cell in CELLS for output in cell["outputs"] if output["output_type"] == kind]


def test_its_results_are_stored_in_order_and_name_no_machine():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    for cell in CELLS:
        ast.parse(source(cell))  # no magics: plain Python
        assert "execution" not in cell["metadata"]  # no time of day
    pictures = [output["data"]["image/png"] for output in stored("display_data")]
    assert len(pictures) == 3 and sum(map(len, pictures)) < 400_000
    assert not [output for output in stored("stream") if output["name"] == "stderr"] and not stored("error")
    texts = ["".join(output["text"]) for output in stored("stream")]
    assert not re.search(r"/(home|root|tmp|work|Users)/", "".join(texts))


@pytest.mark.slow
def test_it_runs_top_to_bottom(fork_run, tmp_path):
    (tmp_path / "cells.json").write_text(json.dumps([source(cell) for cell in CELLS]), encoding="utf-8")
    (tmp_path / "run.py").write_text(RUN)
    environment = {
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_DATASETS_CACHE": str(tmp_path / "hf_home/datasets"),
        "MPLBACKEND": "Agg",
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = fork_run(tmp_path / "run.py", [], tmp_path / "log.txt", tmp_path, environment)
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output
    scores, figures = json.loads((tmp_path / "left.json").read_text(encoding="utf-8"))
    assert figures == 3
    assert scores["clips_positive"] == scores["clips_noise"] == 16
    # What the text says: the objects are found, and whatever is played makes no difference.
    assert scores["miou_positive"] > 0.5
    assert abs(scores["miou_silence"] - scores["miou_positive"]) < 0.15
    assert abs(scores["g_miou"] - scores["audio_blind_floor"]) < 0.15
    printed = "".join("".join(output["text"]) for output in stored("stream"))
    for condition, miou in re.findall(r"^(\w+) +mIoU (\S+) ", printed, re.MULTILINE):
        assert float(miou) == pytest.approx(scores[f"miou_{condition}"], abs=0.1)  # other processors round otherwise
    assert "positive    mIoU" in printed
