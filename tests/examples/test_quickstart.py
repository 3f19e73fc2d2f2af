"""The quickstart notebook runs from its first cell to its last, in an empty folder."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]

# What a kernel does: the cells one after the other, in one namespace. At the end, what they have left there.
RUN = """
import json, sys
namespace = {"__name__": "__main__"}
for number, cell in enumerate(json.load(sys.stdin)):
    exec(compile(cell, f"<cell {number}>", "exec"), namespace)
import matplotlib.pyplot as plt
print(json.dumps([namespace["scores"], len(plt.get_fignums())]))
"""


def test_it_is_stored_without_results():
    """Pictures and numbers belong to whoever runs it, and no media is kept in this repository."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    for cell in NOTEBOOK["cells"]:
        assert set(cell) - {"outputs", "execution_count"} == {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse("".join(cell["source"]))  # no magics: plain Python


@pytest.mark.slow
def test_it_runs_top_to_bottom(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(CELLS),
        cwd=tmp_path,
        env=os.environ
        | {
            "HF_HOME": str(tmp_path / "hf_home"),
            "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "Agg",
            "MPLCONFIGDIR": str(tmp_path / "matplotlib"),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    scores, figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == 3
    assert scores["clips_positive"] == scores["clips_noise"] == 16
    # What the text says: the objects are found, and whatever is played makes no difference.
    assert scores["miou_positive"] > 0.5
    assert abs(scores["miou_silence"] - scores["miou_positive"]) < 0.15
    assert abs(scores["g_miou"] - scores["audio_blind_floor"]) < 0.15
