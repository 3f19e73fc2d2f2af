"""The documents: every Python block runs, every command is one of ours, the site builds and is searched.

The Python blocks of a page run one after the other in one namespace, in a folder that has what the pages speak of: a
tiny data set in `data`, a tiny model in `runs/s4`, sounds in `wavs`, a video. The commands of a bash block are parsed
by the programs' own parsers, and not run. A block is left out only where a comment above it says why.
"""

import argparse
import configparser
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT

LEFT_OUT = re.compile(r"<!-- not (run|parsed): .{4,} -->\s*$")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ALREADY_RUN = ("evaluate_metrics/avs_robust/", "kernels/README.md")  # by tests/metric and tests/kernel
OTHERS = {"cd", "cp", "git", "hf", "make", "mkdir", "pip", "pytest", "source", "ls"}  # programs that are not ours


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    """The page's code blocks in these languages, but for those that a comment leaves out."""
    text = text_of(page)
    return [
        match[2]
        for match in BLOCK.finditer(text)
        if match[1] in languages and not LEFT_OUT.search(text[: match.start()])
    ]


def test_a_block_is_left_out_only_for_a_reason():
    assert LEFT_OUT.search("<!-- not run: it uploads -->\n\n")
    assert not LEFT_OUT.search("<!-- not run: -->\n") and not LEFT_OUT.search("text\n")


# Python


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, write_model) -> Path:
    """A folder with what the pages speak of."""
    import datasets
    import numpy as np
    import soundfile

    from avsbench_robust_dataset.synthetic import write_demo

    folder = tmp_path_factory.mktemp("workplace")
    write_demo(folder / "data", seed=3, sizes={"train": 8, "val": 4, "test": 5}, num_proc=1)
    (folder / "runs").mkdir()
    shutil.copytree(write_model(deform_attn_backend="reference"), folder / "runs/s4")
    (folder / "evaluate_metrics").symlink_to(ROOT / "evaluate_metrics")
    (folder / "wavs").mkdir()
    tone = 0.3 * np.sin(np.arange(80000) / 9)
    soundfile.write(folder / "wavs/tone.wav", tone, 16000)
    write_video(folder / "clip.mp4", tone)
    datasets.disable_progress_bars()
    yield folder
    datasets.enable_progress_bars()


def write_video(path: Path, tone) -> None:
    """One second of grey pictures, 64 x 48, with a tone."""
    av = pytest.importorskip("av", reason="needs PyAV, which writes the video: pip install av")
    import numpy as np

    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=4), container.add_stream("aac", rate=16000, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(tone[None, :16000].astype(np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """A cache of data sets that all pages share, and no network."""
    import datasets

    folder = tmp_path_factory.getbasetemp() / "docs_cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", "reference")  # tests/kernel compiles the op
    monkeypatch.delenv("AVSBENCH_DIR", raising=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python") and not page.startswith(ALREADY_RUN)]
)
def test_python_blocks_run(page, workplace, cache, monkeypatch):
    import torch

    from avsbench_robust_dataset.conditions import CONDITIONS

    monkeypatch.chdir(workplace)
    monkeypatch.setattr("avsbench_robust_dataset.conditions.CONDITIONS", CONDITIONS)
    before = dict(CONDITIONS)
    torch.set_num_threads(1)
    namespace: dict = {"__name__": page}
    try:
        for number, block in enumerate(blocks(page, "python")):
            exec(compile(block, f"<{page}, Python block {number}>", "exec"), namespace)
    finally:
        CONDITIONS.clear()
        CONDITIONS.update(before)


# Commands


class Parsed(Exception):
    """The program's parser took the arguments."""


def commands(page: str) -> list[list[str]]:
    """The words of each command in the page's bash blocks."""
    found = []
    for block in blocks(page, "bash"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                found.append(words[: words.index("&&")])
                words = words[words.index("&&") + 1 :]
            found.append([word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)])
    return [words for words in found if words]


def entry_points() -> dict[str, str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return dict(re.split(r"\s*=\s*", line.strip()) for line in lines if line.strip())


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """What a command of ours runs and with what: "module:function", a script or a module; "" for other programs."""
    if words[0] in entry_points():
        end = words.index(">") if ">" in words else len(words)
        return entry_points()[words[0]], words[1:end]
    for place, word in enumerate(words):
        if word.endswith(".py") and words[0] in ("accelerate", "torchrun", "python"):
            return word, words[place + 1 :]
    if words[:2] == ["python", "-m"]:
        return words[2], words[3:]
    return "", words


def parse(program: str, arguments: list[str], monkeypatch) -> None:
    """Runs the program until its parser has taken the arguments.

    Raises:
        SystemExit: the parser refuses them.
    """

    def parse_args(self, args=None, namespace=None):
        original(self, args, namespace)
        raise Parsed

    original = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    with pytest.raises(Parsed):
        if program.endswith(".py"):
            monkeypatch.syspath_prepend(ROOT / Path(program).parent)  # as Python does
            runpy.run_path(str(ROOT / program), run_name="__main__")
        elif ":" in program:
            module, function = program.split(":")
            getattr(importlib.import_module(module), function)()
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_commands_are_ours_and_take_these_arguments(page, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(page):
        program, arguments = program_of(words)
        if program:
            with monkeypatch.context() as patch:
                try:
                    parse(program, arguments, patch)
                except SystemExit as refused:
                    pytest.fail(f"{shlex.join(words)}: {refused}")
        else:
            name = Path(words[0]).name
            assert name in OTHERS, f"unknown program: {shlex.join(words)}"
            if name == "make":
                assert set(filter(lambda word: "=" not in word, words[1:])) <= targets, shlex.join(words)


# The site


@pytest.mark.slow
def test_the_site_builds_and_is_found_in(tmp_path):
    """A strict build fails for a broken link or heading. It fetches nothing, and neither do its pages."""
    pytest.importorskip("material", reason="needs the site's generator: pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ
        | {"NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    index = json.loads((tmp_path / "search/search_index.json").read_text(encoding="utf-8"))
    for word in ("off-screen", "G-FPR", "AVSS"):
        assert any(word.lower() in (part["title"] + part["text"]).lower() for part in index["docs"]), word
    # What is typed is split like what is searched: all three writings are the same words.
    words = [re.split(index["config"]["separator"], text) for text in ("off-screen", "off_screen", "off screen")]
    assert words == [["off", "screen"]] * 3
    fetched = re.compile(
        r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]* rel="stylesheet" href="(?:https?:)?//'
    )
    for page in tmp_path.rglob("*.html"):
        assert not fetched.search(page.read_text(encoding="utf-8")), page
