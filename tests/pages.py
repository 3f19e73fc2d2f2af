"""The project's documents, as the tests of links and of code blocks read them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (
    "avsbench_robust_dataset benchmarks configs docs evaluate_metrics examples kernels modeling_avsegformer "
    "tests/peers"
).split()
TEMPLATES = {"avsbench_robust_dataset/data_card.md", "kernels/CARD.md"}
FILES = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
PAGES = sorted({path.relative_to(ROOT).as_posix() for path in FILES} - TEMPLATES)
