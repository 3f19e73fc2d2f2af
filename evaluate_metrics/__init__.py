"""The metric of AVSBench-Robust, and what is made of its scores."""

from pathlib import Path

__all__ = ["avs_robust_metric"]


def avs_robust_metric() -> str:
    """The folder of the metric, for `evaluate.load(avs_robust_metric())` from any working directory."""
    return str(Path(__file__).parent / "avs_robust")
