"""The arrows between the packages, read from the import statements.

trainer and evaluator -> all; data set -> nothing of the model but the shared front end (log_mel); model -> op;
metric and report -> data set; op -> nothing of ours; the op's benchmarks -> model.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {
    "avsbench_robust_dataset",
    "modeling_avsegformer",
    "evaluate_metrics",
    "ms_deform_attn",
    "train_accelerate",
    "evaluate_accelerate",
    "examples",
}
# file or folder -> what of ours it may import; a dotted name allows that module only
ARROWS = {
    "avsbench_robust_dataset": {"modeling_avsegformer.log_mel"},
    "modeling_avsegformer": {"ms_deform_attn"},
    "kernels/torch-ext": set(),
    "kernels/benchmarks": {"modeling_avsegformer"},
    "evaluate_metrics": {"avsbench_robust_dataset"},
    "evaluate_accelerate.py": OURS - {"train_accelerate", "examples"},
    "train_accelerate.py": OURS - {"examples"},
}
# what a package is called inside itself
OWN_NAME = {"kernels/torch-ext": "ms_deform_attn", "kernels/benchmarks": "ms_deform_attn"}


def imported_modules(source: str) -> set[str]:
    """Absolute names that `source` imports, at any depth; relative imports stay inside a package and do not count."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def violations(place: str, source: str) -> list[str]:
    """Imports of ours in `source` that `place` may not have."""
    own = OWN_NAME.get(place, place.removesuffix(".py"))
    allowed = ARROWS[place] | {own}
    wrong = []
    for name in sorted(imported_modules(source)):
        if name.split(".")[0] not in OURS:
            continue
        if not any(name == arrow or name.startswith(arrow + ".") for arrow in allowed):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("place", sorted(ARROWS))
def test_imports_follow_the_arrows(place):
    path = ROOT / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files, f"{place} holds no Python file"
    found = {str(file.relative_to(ROOT)): violations(place, file.read_text(encoding="utf-8")) for file in files}
    assert not {file: wrong for file, wrong in found.items() if wrong}


@pytest.mark.parametrize(
    ("place", "source", "wrong"),
    [
        ("modeling_avsegformer", "import avsbench_robust_dataset.builder", ["avsbench_robust_dataset.builder"]),
        ("modeling_avsegformer", "from ms_deform_attn import ms_deform_attn", []),
        ("avsbench_robust_dataset", "def f():\n    from modeling_avsegformer.log_mel import resample", []),
        ("avsbench_robust_dataset", "import modeling_avsegformer", ["modeling_avsegformer"]),
        ("evaluate_metrics", "from train_accelerate import main", ["train_accelerate.main"]),
        ("evaluate_accelerate.py", "import train_accelerate", ["train_accelerate"]),
        ("kernels/torch-ext", "import ms_deform_attn.reference", []),
        ("kernels/torch-ext", "from modeling_avsegformer import log_mel", ["modeling_avsegformer.log_mel"]),
        ("kernels/benchmarks", "import ms_deform_attn, modeling_avsegformer", []),
        ("kernels/benchmarks", "import train_accelerate", ["train_accelerate"]),
    ],
)
def test_the_walk_sees_what_it_should(place, source, wrong):
    assert violations(place, source) == wrong


def test_no_file_of_kernels_is_left_out():
    places = [ROOT / place for place in ARROWS if place.startswith("kernels/")]
    files = (ROOT / "kernels").rglob("*.py")
    assert not [file for file in files if not any(file.is_relative_to(place) for place in places)]


def test_kernels_folder_never_shadows_the_package_of_that_name():
    # With an __init__.py the folder would hide PyPI's `kernels` whenever Python runs from the repository root.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "kernels").glob("*.py"))


def test_packages_import_from_anywhere(tmp_path):
    code = "import avsbench_robust_dataset, modeling_avsegformer, evaluate_metrics, ms_deform_attn; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_both_copies_of_the_hub_s_sentences_are_the_same():
    """The data set imports nothing of the model, and the model's folder stands alone on the Hub."""
    bodies = [
        (ROOT / package / "hub_access.py").read_text(encoding="utf-8").partition('"""\n\nfrom')[2]
        for package in ("avsbench_robust_dataset", "modeling_avsegformer")
    ]
    assert bodies[0] and bodies[0] == bodies[1]
