"""Whatever lies in a folder of predictions, the reader gives a mask or names the file; it neither hangs nor swells."""

import io
import json
import os
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from avs_engine.journal import Journal
from evaluate_metrics.mask_files import PredictionsError, Target, read_prediction, score_predictions

SETTINGS = settings(
    max_examples=100, deadline=60_000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes = b"", bits: int = 8, colour: int = 0, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    )


def images(mode: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 2 if mode == "1" else 256, (4, 5), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values * (255 if mode == "1" else 1)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


SEEDS = [images(mode) for mode in ("1", "L", "P", "RGB", "LA", "I;16")] + [png(5, 4, bytes(24))]


@st.composite
def damaged_pngs(draw) -> bytes:
    """A PNG with a few bytes changed, cut or put in, with the checksum of a chunk mended or not."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(8, len(data) - 1))
        kind = draw(st.sampled_from(["change", "cut", "insert", "mend"]))
        if kind == "change":
            data[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 12))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=12))
        elif len(data) > 33:  # of the header, so that the decoder believes it
            data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        if len(data) < 10:
            break
    return bytes(data)


def check(path: Path, size: tuple[int, int] | None = None) -> None:
    try:
        values, is_grey, _ = read_prediction(path, size)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert values.dtype == np.uint8 and values.ndim == 2 and size in (None, values.shape)
    assert is_grey or set(np.unique(values)) <= {0, 255}


@SETTINGS
@given(data=st.one_of(st.binary(max_size=200), damaged_pngs()))
def test_any_bytes(data, tmp_path):
    (tmp_path / "mask.png").write_bytes(data)
    check(tmp_path / "mask.png", (4, 5))


BOMBS = {
    "100k x 100k": png(100_000, 100_000, bytes(1000), bits=1),
    "100k x 100k, all of it": png(100_000, 100_000, bytes(50_000_000), bits=1),
    "one line of 2**31 - 1": png(2**31 - 1, 1, bytes(1000)),
    "no pixels": png(0, 0),
    "below Pillow's own limit": png(13_000, 13_000, bytes(1000)),
    "compressed text": png(5, 4, bytes(24), 8, 0, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000)))),
    "compressed profile": png(5, 4, bytes(24), 8, 0, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(50_000_000)))),
    "more pixels than it says": png(5, 4, bytes(50_000_000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_neither_fills_the_memory_nor_takes_long(name, tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(BOMBS[name])
    tracemalloc.start()
    begin = time.process_time()
    try:
        check(path, (4, 5))
        assert time.process_time() - begin < 1
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_pixels_of_another_size_are_never_decoded(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(BOMBS["below Pillow's own limit"])  # a broken file, which only its pixels tell
    with pytest.raises(ValueError, match=f"of another size: {path} has 13000 x 13000 pixels, its ground truth 5 x 4"):
        read_prediction(path, (4, 5))


def test_a_bomb_in_a_folder_is_named_and_nothing_is_scored(tmp_path):
    truth, place = tmp_path / "truth.png", tmp_path / "p/positive/dog/clip"
    truth.write_bytes(png(5, 4, bytes(24)))
    place.mkdir(parents=True)
    (place / "clip_1.png").write_bytes(BOMBS["100k x 100k"])
    target = Target("clip", "dog", None, "clip", (truth,), frames=1)
    with pytest.raises(PredictionsError) as caught:
        score_predictions(tmp_path / "p", ["positive"], [target])
    (problem,) = caught.value.problems
    assert problem.startswith(f"unreadable: {place}/clip_1.png") and "decompression bomb" in problem


@SETTINGS
@given(lines=st.lists(st.one_of(st.binary(max_size=60), st.from_type(type(None)).map(lambda _: b'{"clip_id": "a"}'))))
def test_a_journal_of_any_bytes_has_no_rows(lines, tmp_path):
    path = Journal(tmp_path, {}).path
    path.write_bytes(b"\n".join(lines))
    journal = Journal(tmp_path, {})
    assert not journal.rows
    journal.append([{"clip_id": "b"}])
    assert list(Journal(tmp_path, {}).rows) == ["b"] and json.loads(path.read_bytes())["clip_id"] == "b"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_among_the_masks_is_refused_and_not_waited_for(tmp_path):
    mask = tmp_path / "ground_truth.png"
    mask.write_bytes(SEEDS[1])
    folder = tmp_path / "predictions" / "positive" / "clip"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "clip_1.png")
    writer = os.open(folder / "clip_1.png", os.O_RDWR | os.O_NONBLOCK)  # so that a reader would fail, not wait
    os.write(writer, SEEDS[1][:20])
    target = Target(clip_id="clip", category="", group=None, source_video="clip", masks=(mask,), frames=1)
    try:
        with pytest.raises(PredictionsError) as caught:
            score_predictions(tmp_path / "predictions", ["positive"], [target])
    finally:
        os.close(writer)
    assert caught.value.problems == [f"unreadable: {folder / 'clip_1.png'}, it is not a regular file"]
