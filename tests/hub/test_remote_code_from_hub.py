"""What `push_checkpoint` published, loaded by its Hub id in a process that has transformers and timm alone; there, the
example on the card runs, and what was loaded can be published again.

The Hub is `loopback_hub.py`: this proves the client side.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avs_engine.hub import push_checkpoint
from modeling_avsegformer import AVSegFormerForSegmentation


def remote_code():
    """tests/model/test_remote_code.py, which does the same from a folder."""
    path = Path(__file__).parents[1] / "model" / "test_remote_code.py"
    spec = importlib.util.spec_from_file_location("test_remote_code_of_a_folder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


AROUND_THE_EXAMPLE = """
five_pil_images, waveform, (height, width) = [Image.open(frame)], np.ones(16000) / 2, (50, 70)
{}
assert masks[0].shape == (1, 50, 70) and masks[0].dtype == torch.bool
model.push_to_hub("me/again")
processor.push_to_hub("me/again")
from transformers import pipeline
segment = pipeline("audio-visual-segmentation", model="me/x", trust_remote_code=True)
clip = dict(frames=five_pil_images, audio=waveform, sampling_rate=16000)
np.testing.assert_array_equal(segment(clip)[0]["mask"].size, (70, 50))
"""


@pytest.mark.slow
def test_same_output_from_the_hub(client, model, processor, tmp_path, monkeypatch):
    """From a private repository; a public one needs less, `test_scripts_publish.py` reads from one."""
    push_checkpoint(model, "me/x", processor, private=True)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="me/x is not a local folder and is not a valid"):
        patch.delenv("HF_TOKEN")  # a stranger sees nothing, not even the name
        AVSegFormerForSegmentation.from_pretrained("me/x")
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    frame.save(tmp_path / "frame.png")
    (tmp_path / "site").mkdir()
    remote_code().write_site_packages(tmp_path / "site", "transformers", "timm")
    arguments = [str(tmp_path / "site"), "me/x", str(tmp_path / "frame.png"), str(tmp_path / "logits.pt")]
    example = re.search("```python\n(.*?)```", client.read("me/x", "README.md").decode(), flags=re.DOTALL)[1]
    script = remote_code().SCRIPT + AROUND_THE_EXAMPLE.format(example)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, *arguments],
        env=client.environment(tmp_path / "home"),
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    inputs = processor(frames=[[frame]], audio=[np.ones(16000) / 2], sampling_rate=16000)
    # As over there, without the op's kernels, whose last bits may differ.
    again = AVSegFormerForSegmentation.from_pretrained("me/x", deform_attn_backend="reference").eval()
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), again(**inputs).logits)  # bit for bit
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)
    first, second = (client.repositories()[f"models/me/{name}"]["commits"][-1][2] for name in ("x", "again"))
    assert set(first) == set(second)
    for path in set(first) - {"README.md", "config.json"}:
        assert client.read("me/x", path) == client.read("me/again", path), path
    configs = [json.loads(client.read(name, "config.json")) for name in ("me/x", "me/again")]
    assert configs[0]["auto_map"] == configs[1]["auto_map"]
