"""Fuzzes the reader of prediction masks: any bytes give a mask, or a ValueError that names the file.

    python fuzz/fuzz_predictions.py -max_total_time=300 fuzz/corpus/predictions

Needs `atheris`, which is no part of the test environment.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "evaluate_metrics.mask_files"]):
    import numpy as np
    from PIL import PngImagePlugin  # noqa: F401  Pillow imports it with the first image, too late to be instrumented

    from evaluate_metrics.mask_files import read_prediction

PATH = Path(tempfile.mkdtemp()) / "mask.png"
SIZE = (16, 16)


def test_one_input(data: bytes) -> None:
    PATH.write_bytes(data)
    for size in (None, SIZE):
        try:
            values, is_grey, _ = read_prediction(PATH, size)
        except ValueError as error:
            assert str(PATH) in str(error)
            continue
        assert values.dtype == np.uint8 and values.ndim == 2 and isinstance(is_grey, bool)
        assert size is None or values.shape == size
        assert is_grey or set(np.unique(values)) <= {0, 255}


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
