"""evaluate's own test of metrics, `LocalModuleTest`, run on `avs_robust`."""

import doctest
import importlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest

ROOT = Path(__file__).resolve().parents[2]
METRIC = ROOT / "evaluate_metrics" / "avs_robust"
PEERS = Path(os.environ["PEERS"]).resolve()


def test_local_module_test(tmp_path):
    tests = PEERS / "evaluate_tests"
    if (tests / "unreachable").is_file():
        reason = (tests / "unreachable").read_text(encoding="utf-8").strip()
        pytest.skip(f"evaluate's tests are in its Git repository only, which could not be reached: {reason}")
    # It makes one test of each folder in ./metrics. Upstream's other files, such as its conftest.py, stay out.
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    for name in ("test_metric_common.py", "utils.py"):
        shutil.copy(tests / name, tmp_path / "tests" / name)
    shutil.copytree(METRIC, tmp_path / "metrics" / "avs_robust")
    paths = [str(PEERS / "packages"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_metric_common.py::LocalModuleTest"],
        cwd=tmp_path,
        # HF_HOME: evaluate keeps its copy of the module there.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HOME": str(tmp_path / "hf_home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The skipped one loads the metric from the Hub; upstream runs it on demand only.
    assert "1 passed, 1 skipped" in done.stdout, done.stdout


def test_what_it_asks_for():
    """The same in our own words, for where evaluate's repository cannot be reached."""
    module = importlib.import_module(evaluate.loading.evaluation_module_factory(str(METRIC)).module_path)
    metric = evaluate.loading.import_main_class(module.__name__)
    kinds = [parameter.kind for parameter in inspect.signature(metric._compute).parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    results = doctest.testmod(module, raise_on_error=True)
    assert results.failed == 0
    assert results.attempted > 1
