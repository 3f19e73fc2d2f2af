"""The two gradio pages, each started as a user does, used over HTTP and in a headless browser."""

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio, which serves the pages: pip install -e '.[space]'")
pytest.importorskip("av", reason="needs PyAV, which reads and writes videos: pip install av")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


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


@pytest.fixture(scope="module")
def space(tiny_model, tmp_path_factory):
    with running(
        ROOT / "examples/space/app.py", "--model", tiny_model, cwd=tmp_path_factory.mktemp("space")
    ) as address:
        yield address


@pytest.fixture(scope="module")
def metric_page(tmp_path_factory):
    with running(ROOT / "evaluate_metrics/avs_robust/app.py", cwd=tmp_path_factory.mktemp("metric")) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium: playwright's own, else the system's."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives a browser")
    with api.sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        found = [playwright.chromium.executable_path, *filter(None, map(shutil.which, names))]
        path = next((path for path in found if Path(path).exists()), None)
        if path is None:
            pytest.skip("needs a Chromium: the system's, or `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """open_page(address): a page of the browser."""

    def open_page(address: str):
        page = browser.new_page()
        page.set_default_timeout(90_000)
        page.goto(address)
        return page

    return open_page


SIZES = """['heard', 'conditions'].map(id => {
    const video = document.querySelector(`#${id} video`);
    return video && video.videoWidth ? [video.videoWidth, video.videoHeight, video.duration] : null;
})"""


def test_upload_choose_and_see_four_panels(space, open_page, clip):
    page = open_page(space)
    page.set_input_files("input[type=file] >> nth=0", str(clip(seconds=1.0)))
    page.wait_for_selector("video")
    page.get_by_label("silence").check()
    page.get_by_role("button", name="Segment", exact=True).click()
    page.wait_for_function(f"{SIZES}.every(Boolean)")  # the browser plays both
    heard, conditions = page.evaluate(SIZES)
    assert heard[:2] == [64, 48] and conditions[:2] == [4 * 64, 48 + 16]
    assert heard[2] == pytest.approx(1, abs=0.1)


def test_the_space_answers_over_http(space, clip, tmp_path, read, read_sound):
    """What the browser does, without one: upload, choose, download."""
    client = Client(space, download_files=tmp_path, verbose=False)
    upload, sound = (handle_file(clip(name, seconds=0.5)) for name in ("clip.mp4", "other.mkv"))
    heard, panels = client.predict(upload, "another sound", sound, api_name="/segment")
    assert read(heard)[1].shape == (5, 48, 64, 3)
    assert read(panels)[1].shape == (5, 64, 256, 3)
    assert read_sound(heard)[1] == 16000  # what the model heard

    (tmp_path / "note.mp4").write_text("no video")
    for wrong, message in (
        (None, "Upload a clip first"),
        (handle_file(tmp_path / "note.mp4"), r"FFmpeg cannot open note\.mp4 \(Invalid data"),
    ):
        with pytest.raises(AppError, match=message):
            client.predict(wrong, "silence", None, api_name="/segment")


def test_the_metrics_page_computes_its_example(metric_page, open_page):
    """The example of the metric's documentation: IoU 0.5 heard, 0 in silence, harmonic mean of 0.5 and 1: 0.667."""
    page = open_page(metric_page)
    page.get_by_role("button", name="Compute", exact=True).click()
    page.wait_for_function("document.querySelector('#scores').innerText.includes('audio_blind_floor')")
    text = page.inner_text("#scores")
    assert re.search(r'"?g_miou"?\s*:\s*0\.666', text), text
    assert re.search(r'"?miou_silence"?\s*:\s*0\b', text), text


def test_the_metrics_page_answers_over_http(metric_page):
    """Half of the object found, nothing marked in silence: 2 * 0.5 * 1 / 1.5."""
    client = Client(metric_page, verbose=False)
    clips = {"predictions": [[[[0.9, 0]]], [[[0, 0]]]], "references": 2 * [[[[1, 1]]]]}
    clips |= {"conditions": ["positive", "silence"], "clip_ids": ["a", "a"]}
    scores = client.predict(json.dumps(clips), api_name="/compute")
    assert scores["miou_positive"] == 0.5 and scores["miou_silence"] == 0
    assert scores["g_miou"] == pytest.approx(2 / 3)
    for text, message in (("{", "Expected JSON"), ("[]", "Expected one JSON object with predictions, references")):
        with pytest.raises(AppError, match=message):
            client.predict(text, api_name="/compute")


def test_a_missing_model_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODEL", raising=False)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "examples/space/app.py"), run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("app.py: Expected --model, a folder or a Hub id")
