"""A saved model loads elsewhere: its folder carries the code, and of this repository nothing is needed, nor of what it
installs beside transformers and timm."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

from modeling_avsegformer import (
    AVSegFormerForSegmentation,
    AVSegFormerImageProcessor,
    AVSegFormerProcessor,
    VGGishFeatureExtractor,
)

SCRIPT = """
import sys
site, folder, frame, out = sys.argv[1:]
sys.path.append(site)
for name in ("modeling_avsegformer", "ms_deform_attn", "avsbench_robust_dataset", "torchaudio", "datasets"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported here")
import numpy as np, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(frames=[[Image.open(frame)]], audio=[np.ones(16000) / 2], sampling_rate=16000)
with torch.no_grad():
    torch.save(model(**inputs).logits, out)
for needs_more in (
    lambda: processor(audio=[np.ones(44100)], sampling_rate=44100),
    lambda: model.load_backbone_weights("pvt_v2_b5.pth"),
    lambda: pipeline("audio-visual-segmentation", model=folder, trust_remote_code=True)("clip.mp4"),
):
    try:
        needs_more()
    except (ImportError, ValueError) as error:
        print(error)
segment = pipeline("audio-visual-segmentation", model=folder, trust_remote_code=True)
(moment,) = segment({"frames": [Image.open(frame)], "audio": np.ones(16000) / 2, "sampling_rate": 16000})
assert moment["mask"].size == (70, 50)
"""


def write_site_packages(folder: Path, *names: str) -> None:
    """A folder to import from with the distributions `names` and all that they require, and nothing else, by links."""
    todo, done = list(names), set()
    while todo:
        name = todo.pop()
        if name in done:
            continue
        done.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        for file in found.files:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(found.locate_file(top)))
        for requirement in map(Requirement, found.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)


def test_a_checkpoint_carries_little_code(model, tmp_path):
    """Whoever trusts it reads it first: at most 9 files and 2,300 lines."""
    model.save_pretrained(tmp_path)
    AVSegFormerProcessor().save_pretrained(tmp_path)
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in tmp_path.glob("*.py")}
    assert 0 < len(lines) <= 9 and sum(lines.values()) <= 2300, lines


@pytest.mark.slow
def test_trust_remote_code_with_transformers_and_timm_alone(model, tmp_path, monkeypatch):
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    frame.save(tmp_path / "frame.png")
    processor = AVSegFormerProcessor(
        AVSegFormerImageProcessor(size={"height": 64, "width": 96}), VGGishFeatureExtractor(num_seconds=1)
    )
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    assert not [path for path in (tmp_path / "checkpoint").iterdir() if path.is_dir()]  # one flat folder
    (tmp_path / "site").mkdir()
    write_site_packages(tmp_path / "site", "transformers", "timm")

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = ("site", "checkpoint", "frame.png", "logits.pt")
    # -I: no PYTHONPATH and no current folder; -S: none of this installation's packages, nor its editable ones
    command = [sys.executable, "-I", "-S", "-c", SCRIPT, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Resampling from 44100 to 16000 Hz needs torchaudio" in done.stdout
    assert "Reading weights of other projects needs this project's package" in done.stdout
    assert "Videos need this project's package with PyAV: clone the project, run `pip install" in done.stdout

    inputs = processor(frames=[[frame]], audio=[np.ones(16000) / 2], sampling_rate=16000)
    with torch.no_grad():
        ours = AVSegFormerForSegmentation.from_pretrained(tmp_path / "checkpoint").eval()(**inputs).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), ours)  # bit for bit
