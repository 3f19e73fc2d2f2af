"""--layout names the download of AVSBench that is read."""

import json
from pathlib import Path

import pytest

from evaluate_accelerate import main

REAL_MINI = Path(__file__).resolve().parents[3] / "shared/real_mini"
WHITE = "import numpy as np\ndef marks(frames, waveform, rate):\n    return np.ones(frames.shape[:3])\n"


@pytest.mark.slow
@pytest.mark.skipif(not REAL_MINI.is_dir(), reason="needs a real download in small")
def test_the_layout_that_is_named_is_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "white.py").write_text(WHITE)
    options = ["--cpu", "--subset", "s4", "--data_dir", str(REAL_MINI), "--conditions", "positive"]
    options += ["--model-fn", "white:marks", "--output_dir", "out"]
    main([*options, "--layout", "object"])
    assert json.loads(Path("out/results.json").read_text(encoding="utf-8"))["annotation"] == "object"
    with pytest.raises(ValueError, match="rows of s4, label v1s, in .*AVSS/metadata.csv"):  # it has none of S4
        main([*options, "--layout", "semantic", "--overwrite_output_dir"])
