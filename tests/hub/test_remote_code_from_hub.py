"""What `push_to_hub` published, loaded by its Hub id in a process that has transformers and timm alone.

The Hub is `loopback_hub.py`: this proves the client side.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def remote_code():
    """tests/model/test_remote_code.py, which does the same from a folder."""
    path = Path(__file__).parents[1] / "model" / "test_remote_code.py"
    spec = importlib.util.spec_from_file_location("test_remote_code_of_a_folder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("private", [False, True])
def test_same_output_from_the_hub(client, model, processor, tmp_path, private):
    model.push_to_hub("me/x", processor=processor, private=private)
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    frame.save(tmp_path / "frame.png")
    (tmp_path / "site").mkdir()
    remote_code().write_site_packages(tmp_path / "site", "transformers", "timm")
    arguments = [str(tmp_path / "site"), "me/x", str(tmp_path / "frame.png"), str(tmp_path / "logits.pt")]
    environment = client.environment(tmp_path / "home")
    command = [sys.executable, "-I", "-S", "-c", remote_code().SCRIPT, *arguments]
    if private:  # a stranger first: nothing, not even the name
        stranger = {name: value for name, value in environment.items() if name != "HF_TOKEN"}
        done = subprocess.run(command, env=stranger, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert done.returncode != 0 and "me/x is not a local folder and is not a valid model" in done.stderr
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    inputs = processor(frames=[[frame]], audio=[np.ones(16000) / 2], sampling_rate=16000)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(**inputs).logits)
