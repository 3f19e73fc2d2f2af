"""Hostile tables, images and sounds: a clear error that names the file, in little time and memory, nothing else."""

import io
import os
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from avsbench_robust_dataset import SUBSETS
from avsbench_robust_dataset.__main__ import main
from avsbench_robust_dataset.sounds import read_waveform
from avsbench_robust_dataset.sources import MAX_PIXELS, media_files, read_clips, read_frames, read_masks
from avsbench_robust_dataset.subsets import SPLITS

CORPUS = Path(__file__).resolve().parents[1] / "fixtures" / "hostile"
S4 = SUBSETS["s4"]
HEADER = "name,start,category,split\n"
few = settings(
    max_examples=150, deadline=60_000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def corpus(kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / kind).iterdir())]


@st.composite
def changed(draw, kind: str) -> bytes:
    """A file of the corpus with a few bytes changed, cut out or doubled."""
    data = bytearray(draw(st.sampled_from(corpus(kind))))
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 8))
        how = draw(st.sampled_from(["set", "cut", "double"]))
        if how == "set":
            data[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif how == "cut":
            del data[place : place + length]
        else:
            data[place:place] = data[place : place + length]
    return bytes(data)


class Clear:
    """`with Clear(path):` the block succeeds, or raises a short ValueError that names the path."""

    def __init__(self, path: Path):
        self.path, self.raised = path, None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback) -> bool:
        self.raised = error
        if isinstance(error, ValueError):
            assert str(self.path) in str(error) and len(str(error)) < 2000
            return True
        return False


@pytest.fixture
def little_memory():
    """Fails a test that takes more than 600 MB at its peak, or 20 s."""

    def status(field: str) -> int:  # bytes
        (line,) = (
            line
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            if line.startswith(field)
        )
        return 1024 * int(line.split()[1])

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux, which tells a process's peak of memory")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, started = status("VmRSS"), time.perf_counter()
    yield
    assert status("VmHWM") - before < 600e6
    assert time.perf_counter() - started < 20


# --- tables ---


MS3 = b"video_id,split\naaaaaaaaaaa_0,train\nbbbbbbbbbbb,test\n"


def read_table(root: Path, data: bytes, name: str = "s4_meta_data.csv") -> None:
    """Reads it as the table `name`; all files that it then names lie below its folder."""
    table = root / name
    table.parent.mkdir(exist_ok=True)
    table.write_bytes(data)
    subset = SUBSETS["s4" if name.startswith("s4") else "ms3"]
    with Clear(table):
        clips = read_clips(subset, root)
        assert clips and len({clip.clip_id for clip in clips}) == len(clips)
        for clip in clips:
            assert clip.split in SPLITS.values()
            frames, masks, wav = media_files(subset, root, clip)
            for path in (*frames, *masks, wav):
                assert os.path.normpath(path) == str(path) and path.is_relative_to(root) and not path.is_file()


@few
@given(
    data=st.binary(max_size=300) | changed("csv"),
    name=st.sampled_from(["s4_meta_data.csv", "ms3_meta_data.csv", "AVSS/metadata.csv"]),
)
def test_any_bytes_as_a_table(tmp_path, data, name):
    (tmp_path / "ms3_meta_data.csv").write_bytes(MS3)  # AVSS's table stands beside one of MS3
    shutil.rmtree(tmp_path / "AVSS", ignore_errors=True)
    read_table(tmp_path, data, name)


@pytest.mark.slow
@few
@given(clip_id=st.text(max_size=300), category=st.sampled_from(sorted(S4.groups)) | st.text(max_size=20))
def test_any_row(tmp_path, clip_id, category):
    cells = ",".join('"' + cell.replace('"', '""') + '"' for cell in (clip_id, "0", category, "train"))
    read_table(tmp_path, (HEADER + cells + "\n").encode(errors="surrogatepass"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",".join(f"c{k}" for k in range(1_000_000)) + "\n1,2\n", r"columns name, split, category .* characters\)"),
        (HEADER.replace("\n", "," * 1_000_000 + "\n") + "aaa,0,dog_barking\n", "line 2, got fewer"),
        (HEADER + '"' + "a" * 200_000 + '",0,dog_barking,train\n', "field larger than field limit"),
        (HEADER + "a" * 100_000 + ",0,dog_barking,train\n", r"plain file name .* characters\)"),
        (HEADER + "é" * 101 + ",0,dog_barking,train\n", "plain file name"),
        (HEADER + "aaa,0," + "dog" * 40_000 + ",train\n", r"23 categories .* characters\)"),
        (HEADER + "aaa,0,dog_barking," + "t" * 100_000 + "\n", r"as split .* characters\)"),
        (HEADER + "".join(f"{k},,dog_barking,val\n" for k in range(20_001)), "at most 20000 clips"),
        (HEADER + "\n" * 17_000_000, "at most 16777216 bytes"),
        (HEADER + '"aaa,0,dog_barking,train\n' * 10, "4 values in .*got fewer|plain file name"),
    ],
    ids=["columns", "empty columns", "field", "id", "bytes of an id", "category", "split", "clips", "bytes", "quote"],
)
def test_bombs_in_tables(tmp_path, little_memory, text, message):
    (tmp_path / "s4_meta_data.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_clips(S4, tmp_path)
    assert str(tmp_path / "s4_meta_data.csv") in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize("clip_id", ["../../outside", "/etc/passwd", "..", "a/../../b", "C:\\outside", "a\0b"])
def test_no_command_leaves_the_download(tmp_path, capsys, clip_id):
    table = tmp_path / "data" / "s4_meta_data.csv"
    table.parent.mkdir()
    table.write_text(HEADER + f"{clip_id},0,dog_barking,train\n")
    for command in (["manifest"], ["check"], ["audio", "--out", str(tmp_path / "out")]):
        assert main([*command, "--data_dir", str(table.parent)]) == 1
        assert "plain file name as clip id" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [table]


# --- images ---


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes, bits: int = 1, colours: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def with_checksums(data: bytes) -> bytes:
    """A PNG's chunks with the right checksums, without which few changed files pass the first."""
    out, place = data[:8], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        content = data[place + 4 : place + 8 + length]
        if len(content) < length + 4:
            break
        out += chunk(content[:4], content[4:])
        place += length + 12
    return out + data[place:]


def read_image(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with Clear(path):
        files, (width, height) = read_frames([path])
        assert files == [data] and 0 < width * height <= MAX_PIXELS
    with Clear(path):
        (mask,) = read_masks([path])
        grey = np.asarray(Image.open(io.BytesIO(mask)).convert("L"))
        assert len(np.unique(grey[grey > 0])) <= 1


@few
@given(data=st.binary(max_size=300) | changed("png") | changed("png").map(with_checksums))
def test_any_bytes_as_an_image(tmp_path, data):
    read_image(tmp_path / "image_1.png", data)


BOMB = zlib.compress(bytes(200_000_000), 1)  # 200 kB
PIXELS = chunk(b"IDAT", BOMB)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(100_000, 100_000, PIXELS), "exceeds limit|100000 x 100000 pixels"),
        (png(10_000, 10_000, PIXELS, bits=8, colours=2), f"10000 x 10000 pixels, more than {MAX_PIXELS}"),
        (png(0x7FFFFFFF, 1, PIXELS), "exceeds limit|2147483647 x 1 pixels"),
        (png(4, 4, chunk(b"zTXt", b"k\0\0" + BOMB), chunk(b"IDAT", zlib.compress(bytes(8)))), "too large"),
        (png(4, 4, chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB), chunk(b"IDAT", zlib.compress(bytes(8)))), "too large"),
        (png(4, 4, chunk(b"iCCP", b"k\0\0" + BOMB), chunk(b"IDAT", zlib.compress(bytes(8)))), "too large"),
        (png(4, 4), "are not one"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "cannot identify"),
    ],
    ids=["100k x 100k", "10k x 10k", "a line", "zTXt", "iTXt", "iCCP", "no pixels", "a program"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_in_images(tmp_path, little_memory, data, message):
    (tmp_path / "image_1.png").write_bytes(data)
    for read in (read_frames, read_masks):
        with pytest.raises(ValueError, match=rf"(?s)image_1.png.*({message})"):
            read([tmp_path / "image_1.png"])


def test_more_pixels_than_the_header_says_are_not_unpacked(tmp_path, little_memory):
    (tmp_path / "image_1.png").write_bytes(png(4, 4, PIXELS))
    (data,) = read_masks([tmp_path / "image_1.png"])
    assert Image.open(io.BytesIO(data)).size == (4, 4)


# --- sounds ---


def wav(rate: int, channels: int, samples: bytes, declared: int | None = None) -> bytes:
    """A wav file of 16 bits; `declared` bytes of samples by its header."""
    size = len(samples) if declared is None else declared
    fields = struct.pack("<HHIIHH", 1, channels, rate, min(rate * channels * 2, 2**32 - 1), channels * 2, 16)
    body = b"fmt " + struct.pack("<I", 16) + fields + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(len(body) + 4 + size, 2**32 - 1)) + b"WAVE" + body + samples


def read_sound(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with Clear(path):
        waveform = read_waveform(path)
        assert waveform.shape == (80000,) and waveform.dtype == np.float32 and np.isfinite(waveform).all()


@few
@given(data=st.binary(max_size=300) | changed("wav"))
def test_any_bytes_as_a_sound(tmp_path, data):
    read_sound(tmp_path / "sound.wav", data)


def test_what_is_no_image_file_is_not_waited_for_or_read(tmp_path):
    with open(tmp_path / "frame.png", "wb") as file:
        file.truncate(2**34)
    with pytest.raises(ValueError, match=r"at most 134217728 bytes at .*frame\.png, got 17179869184"):
        read_frames([tmp_path / "frame.png"])
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError, match=r"Expected a file at .*pipe\.png"):
        read_frames([tmp_path / "pipe.png"])


def test_ten_hours_are_read_as_five_seconds(tmp_path, little_memory):
    path, size = tmp_path / "sound.wav", 10 * 3600 * 16000 * 2
    with path.open("wb") as file:  # a file of 1.2 GB, most of it a hole
        file.write(wav(16000, 1, b"\x01\x01" * 80000, size))
        file.truncate(44 + size)
    assert (read_waveform(path) == 257 / 32768).all()


@pytest.mark.parametrize(
    ("rate", "channels"), [(2**32 - 1, 1), (2**31 - 1, 2), (44_099, 1), (400_000, 1), (16_000, 1000), (1, 1), (7, 1)]
)
def test_rates_and_channels_that_would_take_all_memory(tmp_path, little_memory, rate, channels):
    path, size = tmp_path / "sound.wav", 400_000_000
    with path.open("wb") as file:
        file.write(wav(rate, channels, b"", size))
        file.truncate(44 + size)  # most of it a hole
    with Clear(path):
        assert not read_waveform(path).any()


def test_ordinary_rates_and_channels_are_read(tmp_path):
    for rate in (8000, 11025, 12000, 22050, 24000, 32000, 44100, 47952, 48000, 88200, 96000, 192000):
        for channels in (1, 2, 6):
            soundfile.write(tmp_path / "sound.wav", np.zeros((rate, channels)), rate)
            assert not read_waveform(tmp_path / "sound.wav").any()
