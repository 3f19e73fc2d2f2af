"""AVSBench-Robust as a Hugging Face dataset. Importing this registers `load_dataset("avsbench_robust", …)`."""

from importlib.metadata import PackageNotFoundError, version

from .builder import AvsbenchRobust, AvsbenchRobustConfig
from .categories import OBJECT_GROUPS, SINGLE_SOURCE_GROUPS
from .conditions import CONDITIONS
from .registration import register
from .saving import portable
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
    "__version__",
    "portable",
]

try:
    __version__ = version("avsbench-robust")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"

register()
