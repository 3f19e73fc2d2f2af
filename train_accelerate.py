"""Trains AVSegFormer on AVSBench-Robust, with matching sounds and a share of sounds that do not match the frames.

    accelerate launch train_accelerate.py --subset s4 --data_dir data --backbone pvt_v2_b5 \\
        --backbone_weights pvt_v2_b5.pth --vggish_weights vggish-10086976.pth --output_dir runs/s4

`--help` describes the options. The arguments are in avs_engine/training_arguments.py, the loop is in
avs_engine/training.py; `avs-train` is the same command.
"""

from avs_engine.commands import train as main
from avs_engine.commands import train_cli as cli

__all__ = ["cli", "main"]

if __name__ == "__main__":
    cli()
