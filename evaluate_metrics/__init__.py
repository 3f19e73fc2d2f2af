"""The metric of AVSBench-Robust, and what is made of its scores."""

from pathlib import Path

__all__ = ["__version__", "avs_robust_metric"]


def avs_robust_metric() -> str:
    """The folder of the metric, for `evaluate.load(avs_robust_metric())` from any working directory."""
    return str(Path(__file__).parent / "avs_robust")


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from avsbench_robust_dataset import __version__  # here, because it imports datasets

    return __version__
