"""Scores a model on AVSBench-Robust: the same clips with their own sound, silence, noise and another clip's sound.

    accelerate launch evaluate_accelerate.py --model runs/s4 --subset s4 --data_dir data --output_dir runs/s4/eval

`--help` describes the options. The arguments are in avs_engine/evaluation_arguments.py, what is scored and written in
avs_engine/evaluation.py; `avs-evaluate` is the same command.
"""

from avs_engine.commands import evaluate as main
from avs_engine.commands import evaluate_cli as cli

__all__ = ["cli", "main"]

if __name__ == "__main__":
    cli()
