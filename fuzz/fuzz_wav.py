"""Fuzzes the reader of sounds: any bytes give 5 s of finite samples, or a ValueError that names the file.

    python fuzz/fuzz_wav.py -max_total_time=300 -rss_limit_mb=2048 fuzz/corpus/wav

Needs `atheris`, which is no part of the test environment.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["soundfile", "avsbench_robust_dataset.sources"]):
    import numpy as np

    from avsbench_robust_dataset.sounds import read_waveform
    from modeling_avsegformer.log_mel import resample

PATH = Path(tempfile.mkdtemp()) / "sound.wav"


def test_one_input(data: bytes) -> None:
    PATH.write_bytes(data)
    try:
        waveform = read_waveform(PATH)
    except ValueError as error:
        assert str(PATH) in str(error) and len(str(error)) < 2000, error
        return
    assert waveform.dtype == np.float32 and waveform.shape == (80000,) and np.isfinite(waveform).all()


if __name__ == "__main__":
    resample(np.zeros(9), 8000, 16000)  # imports torch, which takes longer than an input may
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
