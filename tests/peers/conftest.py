"""Where the suites lie that `fetch_peers.py` fetched: in the folder $PEERS, which `make test-peers` sets.

Without it nothing here is collected: the suites come over the network and take longer than all of our own tests of the
same classes. README.md says why each skipped test is skipped; a skip for a reason that is not there is a failure.
"""

import os
import re
import sys
from pathlib import Path

import pytest

PEERS = Path(os.environ["PEERS"]).resolve() if "PEERS" in os.environ else None
collect_ignore_glob = ["test_*.py"] if PEERS is None else []

if PEERS is not None:
    sys.path[:0] = [str(PEERS), str(PEERS / "packages")]
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; no test waits for a network


def pytest_configure(config):
    if PEERS is None:
        return
    marks = set()
    for path in (PEERS / "transformers_tests").glob("test_*_common.py"):
        marks.update(re.findall(r"\bmark\.(\w+)", path.read_text(encoding="utf-8")))
    for mark in sorted(marks - {"parametrize", "skip", "skipif"}):
        config.addinivalue_line("markers", f"{mark}: transformers' own")


def known_reasons() -> list[re.Pattern]:
    """The first column of README.md's tables; an ellipsis there stands for anything."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    reasons = re.findall(r"^\| (`+)(.+?)\1 \|", text, flags=re.MULTILINE)
    return [re.compile(".*".join(map(re.escape, reason.strip().split("…"))), re.DOTALL) for _, reason in reasons]


KNOWN_REASONS = known_reasons()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    # `wasxfail`: an expected failure counts as skipped too.
    if report.skipped and Path(__file__).parent in item.path.parents:
        reason = getattr(report, "wasxfail", None) or report.longrepr[2].removeprefix("Skipped: ")
        if not any(known.fullmatch(reason) for known in KNOWN_REASONS):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped for a reason that README.md does not explain: {reason}"
    return report
