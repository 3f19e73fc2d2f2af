"""A loopback Hub in a process of its own, and clients of it in this process or in others; fixtures for a conftest."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import huggingface_hub.constants
import pytest

TOKEN = "hf_fake"


@dataclass
class LoopbackHub:
    endpoint: str

    def ask(self, path: str, content: dict | None = None):
        data = None if content is None else json.dumps(content).encode()
        with urlopen(Request(self.endpoint + path, data=data, headers={"Authorization": f"Bearer {TOKEN}"})) as reply:
            return json.loads(reply.read())

    def fail(self, method: str, path: str, how: str | int, times: int = 10**9) -> None:
        """The next `times` requests that fit lose their connection (`"drop"`) or get an HTTP status."""
        self.ask("/__fail", {"method": method, "path": path, "how": how, "times": times})

    def heal(self) -> None:
        self.ask("/__heal", {})

    def log(self) -> list[str]:
        return self.ask("/__log")

    def repositories(self) -> dict[str, dict]:
        """{"models/me/x": {"private": bool, "commits": [[sha, title, [path, …]], …]}}, the first commit is empty."""
        return self.ask("/__repos")

    def read(self, repo_id: str, path: str) -> bytes:
        """A file's content; `repo_id` of a data set begins with "datasets/"."""
        url = f"{self.endpoint}/{repo_id}/resolve/main/{path}"
        with urlopen(Request(url, headers={"Authorization": f"Bearer {TOKEN}"})) as reply:
            return reply.read()

    def constants(self, cache: Path) -> dict:
        """What `huggingface_hub.constants` holds in a process whose Hub this is."""
        return {
            "ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(cache / "hub_cache"),
            "HF_TOKEN_PATH": str(cache / "token"),
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        }

    def environment(self, cache: Path) -> dict[str, str]:
        """For a process whose Hub this is."""
        own = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache)}
        others = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN_PATH")
        return {name: value for name, value in os.environ.items() if name not in others} | own


@pytest.fixture
def start_hub():
    """start_hub(*options of loopback_hub.py): a new, empty Hub."""
    processes = []

    def start(*options: str) -> LoopbackHub:
        script = Path(__file__).parent / "hub" / "loopback_hub.py"
        command = [sys.executable, "-I", str(script), *options]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return LoopbackHub(processes[-1].stdout.readline().strip())

    yield start
    for process in processes:
        process.communicate("", timeout=20)


@pytest.fixture
def hub(start_hub) -> LoopbackHub:
    return start_hub()


@pytest.fixture
def client(hub, monkeypatch, tmp_path) -> LoopbackHub:
    """The Hub of this process, with a token, a cache of its own and no waiting between attempts."""
    for name, value in hub.constants(tmp_path).items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made once, for another Hub
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub
