"""The arrows between the packages and between their modules, read from the import statements.

Arrows only point down: scripts -> engine -> metric and model -> data set and op. There is no circle between modules,
and nothing takes a name from a script.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"train_accelerate", "evaluate_accelerate"}
OURS = {
    "avsbench_robust_dataset",
    "modeling_avsegformer",
    "evaluate_metrics",
    "avs_engine",
    "ms_deform_attn",
    "examples",
} | SCRIPTS
BELOW_THE_SCRIPTS = OURS - SCRIPTS - {"examples"}
# file or folder -> what of ours it may import; a dotted name allows that module only
ARROWS = {
    "avsbench_robust_dataset": set(),
    "modeling_avsegformer": {"ms_deform_attn"},
    # unseen sounds, and the names of what a model was trained on
    "modeling_avsegformer/video": {"avsbench_robust_dataset", "modeling_avsegformer"},
    "kernels/torch-ext": set(),
    "kernels/benchmarks": {"modeling_avsegformer"},
    "evaluate_metrics": {"avsbench_robust_dataset"},
    "evaluate_metrics/avs_robust": set(),
    "avs_engine": BELOW_THE_SCRIPTS,
    "benchmarks": BELOW_THE_SCRIPTS,
    "examples": BELOW_THE_SCRIPTS,
    "evaluate_accelerate.py": BELOW_THE_SCRIPTS,
    "train_accelerate.py": BELOW_THE_SCRIPTS,
}
# what a package is called inside itself
OWN_NAME = {
    "kernels/torch-ext": "ms_deform_attn",
    "kernels/benchmarks": "ms_deform_attn",
    "evaluate_metrics/avs_robust": "evaluate_metrics.avs_robust",
}
PACKAGES = {
    "avsbench_robust_dataset": ROOT / "avsbench_robust_dataset",
    "modeling_avsegformer": ROOT / "modeling_avsegformer",
    "evaluate_metrics": ROOT / "evaluate_metrics",
    "avs_engine": ROOT / "avs_engine",
    "ms_deform_attn": ROOT / "kernels/torch-ext/ms_deform_attn",
}
LOG_MEL = "modeling_avsegformer.log_mel"
ENTRY_POINTS = {"main", "cli"}  # what a script offers: setup.cfg makes commands of it, and tests call it


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
    inner = [ROOT / other for other in ARROWS if other.startswith(place + "/")]
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    files = [file for file in files if not any(file.is_relative_to(folder) for folder in inner)]
    assert files, f"{place} holds no Python file"
    found = {str(file.relative_to(ROOT)): violations(place, file.read_text(encoding="utf-8")) for file in files}
    assert not {file: wrong for file, wrong in found.items() if wrong}


@pytest.mark.parametrize(
    ("place", "source", "wrong"),
    [
        ("modeling_avsegformer", "import avsbench_robust_dataset.builder", ["avsbench_robust_dataset.builder"]),
        ("modeling_avsegformer", "from ms_deform_attn import ms_deform_attn", []),
        ("avsbench_robust_dataset", "def f():\n    from modeling_avsegformer.log_mel import x", [LOG_MEL + ".x"]),
        ("avsbench_robust_dataset", "import modeling_avsegformer", ["modeling_avsegformer"]),
        ("evaluate_metrics", "from train_accelerate import main", ["train_accelerate.main"]),
        ("evaluate_metrics", "from avsbench_robust_dataset.subsets import Clip", []),
        ("evaluate_metrics/avs_robust", "import avsbench_robust_dataset", ["avsbench_robust_dataset"]),
        ("avs_engine", "from evaluate_metrics import clip_rows\nimport modeling_avsegformer", []),
        ("avs_engine", "from train_accelerate import main", ["train_accelerate.main"]),
        ("train_accelerate.py", "from evaluate_accelerate import main", ["evaluate_accelerate.main"]),
        ("evaluate_accelerate.py", "import train_accelerate", ["train_accelerate"]),
        ("kernels/torch-ext", "import ms_deform_attn.reference", []),
        ("kernels/torch-ext", "from modeling_avsegformer import log_mel", ["modeling_avsegformer.log_mel"]),
        ("kernels/benchmarks", "import ms_deform_attn, modeling_avsegformer", []),
        ("kernels/benchmarks", "import train_accelerate", ["train_accelerate"]),
    ],
)
def test_the_walk_sees_what_it_should(place, source, wrong):
    assert violations(place, source) == wrong


def modules_of(package: str, folder: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of a package."""
    names = {}
    for path in sorted(folder.rglob("*.py")):
        words = path.relative_to(folder).with_suffix("").parts
        names[".".join((package, *words)).removesuffix(".__init__")] = path
    return names


def modules_imported(module: str, source: str, is_package: bool, known: set[str]) -> set[str]:
    """The modules among `known` that `source`, the text of `module`, imports at any depth."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []  # never run
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            words = module.split(".")
            above = words[: len(words) - node.level + is_package] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{start}.{alias.name}" for alias in node.names}
            found.update(names & known if names <= known else (names & known) | {start})
    return found & known - {module}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or by way of others."""
    reached = {}
    for start in arrows:
        seen, left = set(), [start]
        while left:
            for module in arrows.get(left.pop(), set()) - seen:
                seen.add(module)
                left.append(module)
        reached[start] = seen
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in arrows}
    return sorted(sorted(group) for group in groups if group)


def arrows_within(package: str, folder: Path) -> dict[str, set[str]]:
    modules = modules_of(package, folder)
    return {
        name: modules_imported(name, path.read_text(encoding="utf-8"), path.name == "__init__.py", set(modules))
        for name, path in modules.items()
    }


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_no_modules_import_each_other(package):
    assert not circles(arrows_within(package, PACKAGES[package]))


def test_the_walk_sees_circles():
    known = {"p", "p.a", "p.b", "p.c"}
    assert modules_imported("p.a", "from .b import x", False, known) == {"p.b"}
    assert modules_imported("p.a", "def f():\n    from . import b, c", False, known) == {"p.b", "p.c"}
    assert modules_imported("p.a", "import p.c\nimport numpy", False, known) == {"p.c"}
    assert modules_imported("p", "from .a import x", True, known) == {"p.a"}
    assert modules_imported("p.a", "from . import x", False, known) == {"p"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


LONGEST = 80  # lines of a function


def long_functions(source: str) -> list[str]:
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return [node.name for node in functions if node.end_lineno - node.lineno + 1 > LONGEST]


def test_no_function_is_long():
    product = [*PACKAGES.values(), ROOT / "examples", ROOT / "benchmarks", ROOT / "kernels/benchmarks"]
    files = [path for folder in product for path in folder.rglob("*.py")] + [ROOT / f"{name}.py" for name in SCRIPTS]
    found = {f"{path.relative_to(ROOT)} {name}" for path in files for name in long_functions(path.read_text("utf-8"))}
    assert not found
    assert long_functions("def f():\n" + "    x = 1\n" * LONGEST) == ["f"]
    assert long_functions("def f():\n" + "    x = 1\n" * (LONGEST - 1)) == []


def names_from_scripts(source: str) -> set[str]:
    """What `source` takes from a script: names it imports, and attributes of a script that it imported."""
    tree, taken, scripts = ast.parse(source), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in SCRIPTS:
            taken.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            scripts.update(alias.asname or alias.name for alias in node.names if alias.name in SCRIPTS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in scripts:
            taken.add(node.attr)
    return taken


def test_a_script_only_gives_its_entry_points():
    """A name that others need belongs into a package."""
    taken = {}
    for path in (ROOT / "tests").rglob("*.py"):
        names = names_from_scripts(path.read_text(encoding="utf-8")) - ENTRY_POINTS
        if names:
            taken[path.name] = sorted(names)
    assert not taken


def test_the_walk_sees_names_from_scripts():
    assert names_from_scripts("from train_accelerate import main, parse_args") == {"main", "parse_args"}
    assert names_from_scripts("import evaluate_accelerate as e\ne.score()\nnumpy.mean()") == {"score"}


def test_no_file_of_kernels_is_left_out():
    places = [ROOT / place for place in ARROWS if place.startswith("kernels/")]
    files = (ROOT / "kernels").rglob("*.py")
    assert not [file for file in files if not any(file.is_relative_to(place) for place in places)]


def test_kernels_folder_never_shadows_the_package_of_that_name():
    # With an __init__.py the folder would hide PyPI's `kernels` whenever Python runs from the repository root.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "kernels").glob("*.py"))
