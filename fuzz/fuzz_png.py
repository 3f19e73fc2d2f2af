"""Fuzzes the readers of frames and masks: any bytes give images that can be decoded, or a ValueError that names the
file.

    python fuzz/fuzz_png.py -max_total_time=300 fuzz/corpus/png

Needs `atheris`, which is no part of the test environment. Checksums are put right, else few inputs pass the first.
"""

import io
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "avsbench_robust_dataset.sources"]):
    import numpy as np
    from PIL import Image, PngImagePlugin  # noqa: F401  imported now, so that it is instrumented

    from avsbench_robust_dataset.sources import MAX_PIXELS, read_frames, read_masks

PATH = Path(tempfile.mkdtemp()) / "image_1.png"


def with_checksums(data: bytes) -> bytes:
    """A PNG's chunks with the right checksums, as far as there are chunks."""
    out, place = data[:8], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunk = data[place + 4 : place + 8 + length]
        if len(chunk) < length + 4:
            break
        out += data[place : place + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        place += length + 12
    return out + data[place:]


def test_one_input(data: bytes) -> None:
    PATH.write_bytes(with_checksums(data))
    try:
        files, (width, height) = read_frames([PATH])
    except ValueError as error:
        assert str(PATH) in str(error) and len(str(error)) < 2000, error
    else:
        assert files == [PATH.read_bytes()] and 0 < width * height <= MAX_PIXELS
    try:
        (mask,) = read_masks([PATH])
    except ValueError as error:
        assert str(PATH) in str(error) and len(str(error)) < 2000, error
        return
    grey = np.asarray(Image.open(io.BytesIO(mask)).convert("L"))
    assert len(np.unique(grey[grey > 0])) <= 1


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
