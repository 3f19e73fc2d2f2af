"""The two gradio pages, each started as a user does, used over HTTP and in a headless browser."""

import json
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio, which serves the pages: pip install -e '.[space]'")
pytest.importorskip("pebble", reason="needs pebble, which stops jobs: pip install -e '.[space]'")
pytest.importorskip("av", reason="needs PyAV, which reads and writes videos: pip install av")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import Status

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "examples/space/app.py"
CONDITIONS = ("positive", "silence", "noise", "off_screen", "unseen", "muted")

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings(cwd: Path) -> dict[str, str]:
    (cwd / "tmp").mkdir(exist_ok=True)
    return {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(cwd / "gradio"),
        "HF_HOME": str(cwd / "hf_home"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",  # for the process of the jobs
        "TMPDIR": str(cwd / "tmp"),
    }


@pytest.fixture(scope="module")
def running(fork_run):
    """running(script, *arguments, cwd=folder): the address of a page, once it answers."""

    @contextmanager
    def running(script: Path, *arguments: str, cwd: Path):
        port = free_port()
        environment = settings(cwd) | {"GRADIO_SERVER_PORT": str(port)}
        page = fork_run(script, arguments, cwd / "log.txt", cwd, environment)
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                assert page.poll() is None, page.output()
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            else:
                raise AssertionError(page.output())
            yield address
        finally:
            page.kill()

    return running


@pytest.fixture(scope="module")
def space_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("space")


@pytest.fixture(scope="module")
def space(running, tiny_model, space_folder):
    with running(SPACE, "--model", tiny_model, "--time_limit", "20", cwd=space_folder) as address:
        yield address


@pytest.fixture(scope="module")
def metric_page(running, tmp_path_factory):
    with running(ROOT / "evaluate_metrics/avs_robust/app.py", cwd=tmp_path_factory.mktemp("metric")) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium: playwright's own, else the system's."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives a browser")
    with api.sync_playwright() as playwright:
        names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        found = [playwright.chromium.executable_path, *filter(None, map(shutil.which, names))]
        path = next((path for path in found if Path(path).exists()), None)
        if path is None:
            pytest.skip("needs a Chromium: the system's, or `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """open_page(address, width): a page of the browser, at the width of a phone if asked."""
    contexts = []

    def open_page(address: str, width: int = 1280, dark: bool = False):
        size = {"width": width, "height": 844}
        contexts.append(browser.new_context(viewport=size, color_scheme="dark" if dark else "light"))
        page = contexts[-1].new_page()
        page.set_default_timeout(90_000)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()


SIZES = f"""{list(CONDITIONS)}.map(id => {{
    const video = document.querySelector(`#${{id}} video`);
    return video && video.videoWidth ? [video.videoWidth, video.videoHeight, video.duration] : null;
}})"""


def test_a_visitor_without_a_clip_clicks_on_an_example(space, open_page):
    """One click, six videos, each with its numbers, below each other on a phone in the dark."""
    page = open_page(space, width=390, dark=True)
    page.get_by_text("a piano plays", exact=True).click()
    page.wait_for_function(f"{SIZES}.every(Boolean)")
    assert page.evaluate(SIZES) == [[384, 408, pytest.approx(5, abs=0.3)]] * len(CONDITIONS)
    for condition in CONDITIONS:
        numbers = page.inner_text(f"#{condition}_numbers")
        assert re.search(r"\d+\.\d % marked\s+similarity [+-]\d\.\d\d", numbers), numbers
    assert page.inner_text("#verdict").startswith("a piano plays")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    widths = page.evaluate("[...document.querySelectorAll('#results video')].map(video => video.clientWidth)")
    assert min(widths) > 120 and max(widths) - min(widths) <= 1
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_upload_listen_and_choose_another_sound(space, open_page, clip):
    """What is shown is always of the clip and the sounds that are chosen."""
    page = open_page(space)
    page.set_input_files("#clip input[type=file]", str(clip(seconds=1.0)))
    page.wait_for_selector("#clip video")
    page.get_by_role("button", name="Listen", exact=True).click()
    page.wait_for_function(f"{SIZES}.every(Boolean)")
    assert page.evaluate(SIZES) == [[64, 64, pytest.approx(1, abs=0.3)]] * len(CONDITIONS)
    assert "unseen: bells" in page.inner_text("#unseen_numbers")
    first = page.get_attribute("#unseen video", "src")

    page.get_by_text("Other sounds").click()
    page.get_by_label("Unseen in training").click()
    page.get_by_role("option", name="rain").click()
    page.wait_for_selector("#unseen video", state="hidden")  # the result of another choice goes at once
    page.get_by_role("button", name="Listen", exact=True).click()
    page.wait_for_function(f"{SIZES}.every(Boolean)")
    assert "unseen: rain" in page.inner_text("#unseen_numbers")
    assert page.get_attribute("#unseen video", "src") != first


def test_an_error_is_a_sentence_without_the_servers_folders(space, open_page, tmp_path):
    (tmp_path / "note.mp4").write_text("no video")
    page = open_page(space)
    page.get_by_role("button", name="Listen", exact=True).click()
    page.wait_for_selector("text=Upload a clip first, or click on an example.")
    page.set_input_files("#clip input[type=file]", str(tmp_path / "note.mp4"))
    page.wait_for_selector("#clip video", state="attached")
    page.get_by_role("button", name="Listen", exact=True).click()
    page.wait_for_selector("text=FFmpeg cannot open note.mp4 (Invalid data")


def call(space: str, data: list) -> str:
    """The events of a call with `data` as it is, as somebody sends it who does not use the page."""
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(f"{space}/gradio_api/call/segment", body, {"Content-Type": "application/json"})
    event = json.load(urllib.request.urlopen(request))["event_id"]
    return urllib.request.urlopen(f"{space}/gradio_api/call/segment/{event}", timeout=60).read().decode()


def test_the_space_answers_over_http(space, space_folder, clip, tmp_path, read, read_sound):
    """What the browser does, without one: upload, choose, download; nothing of the job is left."""
    client = Client(space, download_files=tmp_path, verbose=False)
    upload, sound = (handle_file(clip(name, seconds=0.5)) for name in ("clip.mp4", "other.mkv"))
    said, *results = client.predict(upload, sound, "rain", api_name="/segment")
    assert said.startswith("### clip\n")
    for path in results[::2]:
        assert read(path)[1].shape == (5, 64, 64, 3)
    assert [text.split("**")[1] for text in results[1::2]][2:] == [
        "noise",
        "off-screen: other",
        "unseen: rain",
        "own sound, 3 of 5 s",
    ]
    assert read_sound(results[6])[1] == 16000  # what the model heard
    other = client.predict(upload, None, "rain", api_name="/segment")
    assert Path(other[7]).read_bytes() != Path(results[6]).read_bytes()  # the siren, not the other sound
    [left] = (space_folder / "tmp").glob("does_it_listen_*")
    assert left.name.startswith("does_it_listen_examples_")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 30, "rate": 1}, r"Expected a clip of at most 20 s, but clip\.mp4 lasts 30\.0 s"),
        ({"times": [0, 0.1, 1e9], "name": "clip.mkv"}, r"Expected a clip of at most 20 s, but clip\.mkv lasts"),
        ({"size": (4100, 2310), "seconds": 0.1}, r"4096 x 2304 pixels, but clip\.mp4 has 4100 x 2310"),
    ],
)
def test_clips_over_the_limits_are_refused(space, clip, options, message):
    client = Client(space, verbose=False)
    with pytest.raises(AppError, match=message) as error:
        client.predict(handle_file(clip(audio=None, **options)), None, "bells", api_name="/segment")
    assert "/" not in str(error.value).split("ffmpeg")[0]


def test_a_job_is_stopped_in_time_and_ten_that_wait_run_then(space, clip):
    """More than two thousand pictures take minutes; the process is stopped, and a new one takes over."""
    client = Client(space, verbose=False)
    long = handle_file(clip("long.mp4", size=(640, 480), seconds=19, rate=120))
    short = handle_file(clip(seconds=0.2))
    begin = time.monotonic()
    stopped = client.submit(long, None, "bells", api_name="/segment")
    while stopped.status().code not in (Status.PROCESSING, Status.PROGRESS):
        assert not stopped.done() and time.monotonic() - begin < 60, stopped.status()
        time.sleep(0.05)
    waiting = [client.submit(short, None, "bells", api_name="/segment") for _ in range(15)]
    with pytest.raises(AppError, match="Stopped after 20 s"):
        stopped.result(timeout=60)
    assert time.monotonic() - begin < 60
    refused = [str(job.exception()) for job in waiting if job.exception(timeout=120)]
    assert len(refused) == 5 and all("queue is full" in message.lower() for message in refused), refused
    assert all(job.result()[0].startswith("### clip") for job in waiting if not job.exception())


def test_no_file_of_the_server_is_read(space, space_folder):
    log = str(space_folder / "log.txt")
    for value in (log, {"path": log}, {"path": log, "meta": {"_type": "gradio.FileData"}}):
        answer = call(space, [value, None, "bells"])
        assert "error" in answer and "log.txt" not in answer
    for path in (log, "/etc/passwd", str(SPACE)):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{space}/gradio_api/file={path}")


def test_an_upload_over_the_limit_is_refused(space):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    request = urllib.request.Request(
        f"{space}/gradio_api/upload",
        head + bytes(60_000_000) + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    with pytest.raises(
        (urllib.error.HTTPError, ConnectionError, urllib.error.URLError), match="413|reset|Broken pipe"
    ):
        urllib.request.urlopen(request)


def test_the_metrics_page_computes_its_example(metric_page, open_page):
    """The example of the metric's documentation: IoU 0.5 heard, 0 in silence, harmonic mean of 0.5 and 1: 0.667."""
    page = open_page(metric_page, width=390)
    page.get_by_role("button", name="Compute", exact=True).click()
    page.wait_for_function("document.querySelector('#scores').innerText.includes('audio_blind_floor')")
    text = page.inner_text("#scores")
    assert re.search(r'"?g_miou"?\s*:\s*0\.666', text), text
    assert re.search(r'"?miou_silence"?\s*:\s*0\b', text), text
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


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


def test_a_missing_model_is_one_sentence(fork_run, tmp_path):
    run = fork_run(SPACE, [], tmp_path / "log.txt", tmp_path, settings(tmp_path) | {"MODEL": None})
    output, _ = run.communicate()
    assert run.returncode == 2
    assert output.splitlines()[-1].startswith("app.py: Expected --model, a folder or a Hub id")
