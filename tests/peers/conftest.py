"""Where the suites lie that `fetch_peers.py` fetched: in the folder $PEERS, which `make test-peers` sets.

Without it nothing here is collected: the suites come over the network and take longer than all of our own tests of the
same classes.
"""

import os
import re
import sys
from pathlib import Path

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
