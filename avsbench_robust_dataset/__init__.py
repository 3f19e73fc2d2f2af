"""AVSBench-Robust as a Hugging Face dataset. Importing this registers `load_dataset("avsbench_robust", …)`."""

from .builder import AvsbenchRobust, AvsbenchRobustConfig
from .categories import OBJECT_GROUPS, SINGLE_SOURCE_GROUPS
from .conditions import CONDITIONS
from .registration import register
from .saving import portable
from .subsets import SPLITS, SUBSETS, Subset
from .version import __version__

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

register()
