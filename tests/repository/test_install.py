"""A checkout without symbolic links, as git makes it on Windows, gives a whole wheel; commands say their version."""

import configparser
import importlib
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"avsbench_robust_dataset", "modeling_avsegformer", "evaluate_metrics", "avs_engine", "ms_deform_attn"}
IN_ONE_PROCESS = """
import importlib, sys
import avsbench_robust_dataset, evaluate_metrics, modeling_avsegformer, ms_deform_attn
for entry in sys.argv[1:]:
    module, function = entry.split(":")
    sys.argv = [module, "--version"]
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        assert not end.code, entry
"""


def setup() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    return found


@pytest.mark.slow
def test_every_command_and_package_says_the_version(tmp_path):
    """In an empty folder, where only what is installed can be imported."""
    commands = [
        line.split("=")[1].strip() for line in setup()["options.entry_points"]["console_scripts"].split("\n")[1:]
    ]
    run = [sys.executable, "-c", IN_ONE_PROCESS, *commands]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    version = setup()["metadata"]["version"]
    assert [line.split()[-1] for line in done.stdout.splitlines()] == [version] * len(commands) and len(commands) == 7
    for package in PACKAGES - {"ms_deform_attn"}:
        assert importlib.import_module(package).__version__ == version


@pytest.mark.slow
def test_a_checkout_without_links_gives_a_whole_wheel(tmp_path):
    names = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if names.returncode:
        pytest.skip("not a git checkout")
    for name in names.stdout.splitlines():
        path, copy = ROOT / name, tmp_path / "checkout" / name
        if not path.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            copy.write_text(str(path.readlink()))
        else:
            shutil.copyfile(path, copy)
    wheel = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", wheel], cwd=tmp_path / "checkout", capture_output=True, check=True)
    (file,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        held = archive.namelist()
        metadata = message_from_bytes(archive.read(next(name for name in held if name.endswith("/METADATA"))))
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == PACKAGES
    for name in ("ms_deform_attn/csrc/binding.cpp", "evaluate_metrics/report/templates/page.html"):
        assert name in held
    assert {"avsbench_robust_dataset/data_card.md", "avs_engine/model_card.md"} <= set(held)
    links = [part.split(")")[0] for part in metadata.get_payload().split("](")[1:]]
    assert links and all(link.startswith("https://") for link in links)
    assert metadata["Author"] and metadata["Project-URL"]
