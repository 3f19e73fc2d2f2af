"""What training and evaluation share: clips and sounds, predicting and scoring, epochs, steps and checkpoints."""

from avsbench_robust_dataset import __version__

__all__ = ["__version__"]
