"""Fetches the test suites of the libraries we extend, for the versions that are installed here.

    python tests/peers/fetch_peers.py build/peers

transformers ships its common test classes in its source distribution on the package index; evaluate's are in its Git
repository only. Neither is part of this repository: they are unpacked below the given folder, which is not tracked,
and taken from there again as long as the installed versions stay the same. What is written:

    transformers_tests/         tests/*.py of transformers, and stubs for the few modules that it does not ship
    packages/                   what the suites import and we do not: parameterized, absl-py
    evaluate_tests/             tests/ of evaluate; without access to its Git repository a file `unreachable`
    fetch_hub_objects_for_ci.py a stub
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

EVALUATE = "https://github.com/huggingface/evaluate"

# Modules that the suites import but the source distribution leaves out. None of what they hold applies to us: we
# generate no text, export nothing through transformers' exporters and shard nothing.
STUBS = {
    "transformers_tests/__init__.py": "",
    "transformers_tests/exporters/__init__.py": "",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "transformers_tests/generation/__init__.py": "",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "transformers_tests/utils/__init__.py": "",
    "transformers_tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "transformers_tests/distributed_testing_utils.py": "def __getattr__(name):\n    return None\n",
    # Addresses stay addresses: the few tests that would open them are skipped, there is no network.
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def fetch(out: Path) -> None:
    """Fills `out`; does nothing where it is complete already."""
    stamp = out / "versions.txt"
    wanted = "".join(f"{name} {version(name)}\n" for name in ("transformers", "evaluate"))
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        for name in ("transformers_tests", "packages", "evaluate_tests"):
            shutil.rmtree(out / name, ignore_errors=True)
        fetch_transformers(out / "transformers_tests")
        for name, source in STUBS.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(source, encoding="utf-8")
        pip("install", "--target", str(out / "packages"), "parameterized", "absl-py")
        stamp.write_text(wanted, encoding="utf-8")
    if not (out / "evaluate_tests" / "test_metric_common.py").is_file():
        fetch_evaluate(out / "evaluate_tests")


def fetch_transformers(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wanted = f"transformers=={version('transformers')}"
        pip("download", "--no-deps", "--no-binary", "transformers", "--dest", folder, wanted)
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        with tarfile.open(archive) as file:
            members = [member for member in file if "/tests/" in member.name and member.name.endswith(".py")]
            file.extractall(folder, members, filter="data")
        (tests,) = Path(folder).glob("transformers-*/tests")
        shutil.copytree(tests, out)


def fetch_evaluate(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        tag = f"v{version('evaluate')}"
        command = ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, EVALUATE, folder]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip()
        except (OSError, subprocess.TimeoutExpired) as error:  # no git, or a network that never answers
            reason = str(error)
        else:
            shutil.copytree(Path(folder) / "tests", out)
            return
    out.mkdir()
    (out / "unreachable").write_text(reason, encoding="utf-8")
    print(f"evaluate's tests could not be fetched: {reason}", file=sys.stderr)


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
