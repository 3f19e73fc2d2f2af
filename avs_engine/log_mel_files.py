"""`avs-log-mel`: each condition's log-mel spectra as `.npy`, in AVSBench's layout, for code bases that read files.

    avs-log-mel --subset s4 --data_dir data --out sounds

They lie beside the files of `avs-data audio`, in `audio_log_mel/` instead of `audio_wav/`.
"""

import argparse
import io
import sys
from collections.abc import Sequence

import numpy as np

from avsbench_robust_dataset import SUBSETS, __version__
from avsbench_robust_dataset.audio_files import add_audio_arguments, audio_rows, wav_path
from avsbench_robust_dataset.builder import locate
from avsbench_robust_dataset.files import printable, write_whole
from avsbench_robust_dataset.progress import progress
from avsbench_robust_dataset.recipes import make_sound
from modeling_avsegformer.log_mel import log_mel

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="avs-log-mel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--subset", choices=list(SUBSETS), default="s4")
    parser.add_argument("--data_dir", help="the download; default: $AVSBENCH_DIR, else ./data")
    add_audio_arguments(parser)
    args = parser.parse_args(argv)
    subset = SUBSETS[args.subset]
    try:
        rows = audio_rows(subset, locate(subset, args.data_dir), args)
        for row in progress(rows, len(rows), "log-mel"):
            examples = io.BytesIO()
            np.save(examples, log_mel(make_sound(row.recipe)))
            wav = wav_path(row, subset)
            path = args.out / wav.replace("audio_wav", "audio_log_mel", 1)
            write_whole(path.with_suffix(".npy"), examples.getvalue())
    except (OSError, ValueError) as error:
        print(f"avs-log-mel: {printable(error)}", file=sys.stderr)
        return 1
    print(f"Wrote {len(rows)} log-mel spectra, float32 of shape (5, 1, 96, 64), under {args.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
