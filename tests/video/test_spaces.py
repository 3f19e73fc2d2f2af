"""The two gradio pages, each started as a user does and driven in a headless browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright", "av") if find_spec(name) is None] + ["chromium"] * (not CHROMIUM)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"needs {', '.join(MISSING)} (pip install gradio playwright av; a Chromium)"
    ),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(script: Path, *arguments: str, cwd: Path):
    """The address of a page, once it answers."""
    port = free_port()
    settings = {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(cwd / "gradio"),
        "HF_HOME": str(cwd / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
    }
    log = cwd / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments], cwd=cwd, env=os.environ | settings, stdout=file, stderr=file
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        else:
            raise AssertionError(log.read_text())
        yield address
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def browser_page(address: str):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(90_000)
        page.goto(address)
        yield page
        browser.close()


SIZES = """['heard', 'conditions'].map(id => {
    const video = document.querySelector(`#${id} video`);
    return video && video.videoWidth ? [video.videoWidth, video.videoHeight, video.duration] : null;
})"""


def test_upload_choose_and_see_four_panels(clip, tiny_model, tmp_path):
    path = clip(seconds=1.0)
    with running(ROOT / "examples/space/app.py", "--model", tiny_model, cwd=tmp_path) as address:
        with browser_page(address) as page:
            page.set_input_files("input[type=file] >> nth=0", str(path))
            page.wait_for_selector("video")
            page.get_by_label("silence").check()
            page.get_by_role("button", name="Segment", exact=True).click()
            page.wait_for_function(f"{SIZES}.every(Boolean)")  # the browser plays both
            heard, conditions = page.evaluate(SIZES)
            assert heard[:2] == [64, 48] and conditions[:2] == [4 * 64, 48 + 16]
            assert heard[2] == pytest.approx(1, abs=0.1)


def test_the_metrics_page_computes_its_example(tmp_path):
    """The example of the metric's documentation: IoU 0.5 heard, 0 in silence, harmonic mean of 0.5 and 1: 0.667."""
    with running(ROOT / "evaluate_metrics/avs_robust/app.py", cwd=tmp_path) as address:
        with browser_page(address) as page:
            page.get_by_role("button", name="Compute", exact=True).click()
            page.wait_for_function("document.querySelector('#scores').innerText.includes('audio_blind_floor')")
            text = page.inner_text("#scores")
    assert re.search(r'"?g_miou"?\s*:\s*0\.666', text), text
    assert re.search(r'"?miou_silence"?\s*:\s*0\b', text), text


def test_a_missing_model_is_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/space/app.py")],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "MODEL"}
        | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("app.py: Expected --model, a folder or a Hub id")
