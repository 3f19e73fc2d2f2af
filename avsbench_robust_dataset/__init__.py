"""AVSBench-Robust as a Hugging Face dataset. Importing this registers `load_dataset("avsbench_robust", …)`."""

from importlib import import_module
from typing import TYPE_CHECKING

from .post_import import when_imported

if TYPE_CHECKING:
    from .builder import AvsbenchRobust, AvsbenchRobustConfig
    from .categories import OBJECT_GROUPS, SINGLE_SOURCE_GROUPS
    from .conditions import CONDITIONS
    from .subsets import SPLITS, SUBSETS, Subset

__all__ = [
    "CONDITIONS",
    "OBJECT_GROUPS",
    "SINGLE_SOURCE_GROUPS",
    "SPLITS",
    "SUBSETS",
    "AvsbenchRobust",
    "AvsbenchRobustConfig",
    "Subset",
]

# Imported when they are first asked for: `datasets` takes a second. The names above again, by module.
_NAMES = {
    "builder": ["AvsbenchRobust", "AvsbenchRobustConfig"],
    "categories": ["OBJECT_GROUPS", "SINGLE_SOURCE_GROUPS"],
    "conditions": ["CONDITIONS"],
    "subsets": ["SPLITS", "SUBSETS", "Subset"],
}


def __getattr__(name: str):
    for module, names in _NAMES.items():
        if name in names:
            globals()[name] = getattr(import_module(f".{module}", __name__), name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    from .registration import register

    register()


when_imported("datasets", _register)
