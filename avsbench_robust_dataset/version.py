"""The version of this project; setup.cfg is where it is written."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("avsbench-robust")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"
