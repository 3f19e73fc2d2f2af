"""A saved model loads elsewhere: its folder carries the code, and nothing of this repository is needed."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_avsegformer import AVSegFormerImageProcessor, AVSegFormerProcessor, VGGishFeatureExtractor

SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("modeling_avsegformer", "ms_deform_attn"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocked())
import numpy as np, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
folder, frame, out = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(frames=[[Image.open(frame)]], audio=[np.ones(16000) / 2], sampling_rate=16000)
with torch.no_grad():
    torch.save(model(**inputs).logits, out)
"""


@pytest.mark.slow
def test_trust_remote_code_in_a_fresh_process(model, tmp_path, monkeypatch):
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    frame.save(tmp_path / "frame.png")
    processor = AVSegFormerProcessor(
        AVSegFormerImageProcessor(size={"height": 64, "width": 96}), VGGishFeatureExtractor(num_seconds=1)
    )
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = [str(tmp_path / "checkpoint"), str(tmp_path / "frame.png"), str(tmp_path / "logits.pt")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]

    inputs = processor(frames=[[frame]], audio=[np.ones(16000) / 2], sampling_rate=16000)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(**inputs).logits)
