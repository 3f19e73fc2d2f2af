"""Checkpoint files from strangers: tensors or a sentence, in bounded time and memory, and nothing of them is run."""

import io
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from modeling_avsegformer.checkpoint_reader import read_tensors

MB = 2**20


def state_dict() -> dict:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)  # random weights may hold any bytes, those of `old_format` too
    return model.state_dict() | {"own": torch.nn.Parameter(torch.ones(2).bfloat16()), "turned": torch.ones(2, 3).t()}


def torch_bytes(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


SEEDS = {
    "zip.pth": torch_bytes({"state_dict": state_dict(), "epoch": 3, "best": 0.5, "names": ["a", None]}),
    "old.pth": torch_bytes(state_dict(), _use_new_zipfile_serialization=False),
    "x.safetensors": save({name: tensor.contiguous() for name, tensor in state_dict().items()}),
}


def check(path: Path) -> bool:
    """Whether the file is read; if not, then with a sentence that names it."""
    try:
        tensors = read_tensors(path)
    except ValueError as error:
        assert str(error).startswith("Expected a ") and str(path) in str(error)
        return False
    for name, tensor in tensors.items():
        assert isinstance(name, str)
        assert tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_complex()
        if tensor.numel() < MB:
            tensor.clone()  # its numbers are there
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def test_seeds_are_read(folder):
    for name, content in SEEDS.items():
        (folder / name).write_bytes(content)
        assert read_tensors(folder / name).keys() == state_dict().keys()


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """The content with bytes changed, cut out, doubled or put in, one to four times."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        new = draw(st.one_of(st.binary(max_size=12), st.just(bytes(content[start:end]) * 2), st.just(b"\xff" * 8)))
        content[start:end] = new
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
@settings(max_examples=300, deadline=60_000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files(name, folder, data):
    path = folder / name
    path.write_bytes(data.draw(damaged(SEEDS[name])))
    check(path)


OPERATIONS = st.sampled_from(
    [bytes([code]) for code in b"N\x88\x89]})(t\x85\x86\x87aesuRbQ02\x81"]
    + [b"q\0", b"h\0", b"q\1", b"h\1", b"K\2", b"X\1\0\0\0a"]
    + [b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"cbuiltins\nbytearray\n", b"cbuiltins\nset\n"]
    + [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nTensor\n"]
)


def archive(plan: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in {"data.pkl": plan, "version": b"3\n", "byteorder": b"little", **members}.items():
            file.writestr(f"x/{name}", content)
    return buffer.getvalue()


@settings(max_examples=300, deadline=60_000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(operations=st.lists(OPERATIONS, max_size=40))
@example(operations=[b"}", b"X\1\0\0\0a", b"N", b"s"])
def test_any_plan(folder, operations):
    path = folder / "plan.pth"
    path.write_bytes(archive(b"\x80\2" + b"".join(operations) + b"."))
    check(path)


def tensor_plan(size: tuple, stride: tuple, offset: int = 0, numbers: int = 4) -> bytes:
    """A pickle of {"w": a tensor of these sizes over one storage of `numbers` float32}."""

    class Written(pickle._Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", numbers) if value == "the storage" else None

    class Rebuilt:
        def __reduce__(self):
            arguments = ("the storage", offset, size, stride, False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    buffer = io.BytesIO()
    Written(buffer, 2).dump({"w": Rebuilt()})
    return buffer.getvalue().replace(b"ctorch.storage\n", b"ctorch\n")


@pytest.mark.parametrize(
    ("size", "stride", "offset", "numbers"),
    [
        ((10**12,), (1,), 0, 4),
        ((4,), (10**12,), 0, 4),
        ((4,), (1,), 2**62, 4),
        ((4,), (-1,), 3, 4),
        ((-4,), (1,), 0, 4),
        ((2**40, 2**40), (0, 0), 0, 4),
        ((4,), (1,), 0, 10**12),
        ((4,), (1,), 0, -1),
        ((4, 4), (1,), 0, 4),
    ],
)
def test_absurd_shapes(folder, size, stride, offset, numbers):
    path = folder / "shape.pth"
    path.write_bytes(archive(tensor_plan(size, stride, offset, numbers), **{"data/0": bytes(16)}))
    assert not check(path)
    path.write_bytes(archive(tensor_plan((4,), (1,)), **{"data/0": bytes(16)}))
    assert torch.equal(read_tensors(path)["w"], torch.zeros(4))  # the same file with a shape that fits


def peak() -> float:
    """The largest resident memory of this process since it was reset, in MB."""
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) / 1024


def compressed(folder: Path, member: str) -> Path:
    """A small archive of which one member inflates to 400 MB."""
    path = folder / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, content in (("data.pkl", tensor_plan((100 * MB,), (1,), numbers=100 * MB)), ("version", b"3\n")):
            if name != member:
                file.writestr(f"x/{name}", content)
        with file.open(f"x/{member}", "w", force_zip64=True) as inflating:
            for _ in range(400):
                inflating.write(bytes(MB))
    return path


def doubled(folder: Path) -> Path:
    """An archive whose list names the bytes of one member a thousand times."""
    content = archive(b"\x80\2N.", **{"data/0": bytes(MB)})
    start = content.rindex(b"PK\1\2")  # of data/0, the last in the list
    end = content.index(b"PK\5\6")
    entry, tail = content[start:end], bytearray(content[end:])
    tail[8:12] = struct.pack("<HH", 1003, 1003)
    tail[12:16] = struct.pack("<I", end - content.index(b"PK\1\2") + 999 * len(entry))
    path = folder / "doubled.pth"
    path.write_bytes(content[:end] + entry * 999 + tail)
    assert len(zipfile.ZipFile(path).infolist()) == 1003
    return path


def plan(folder: Path, operations: bytes) -> Path:
    path = folder / "plan.pth"
    path.write_bytes(archive(b"\x80\2" + operations + b"."))
    return path


def old_format(folder: Path) -> Path:
    """torch's older format with a storage of 10^10 numbers that is not there."""
    path = folder / "old.pth"
    content = SEEDS["old.pth"]
    assert content.count(b"K\x12") == 1  # the 18 weights of the convolution
    path.write_bytes(content.replace(b"K\x12", b"\x8a\5" + (10**10).to_bytes(5, "little")))
    return path


def long_number(folder: Path) -> Path:
    path = folder / "number.pth"
    path.write_bytes(b"\x80\2\x8b\xff\xff\xff\x7f" + SEEDS["old.pth"])
    return path


def long_header(folder: Path) -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + SEEDS["x.safetensors"][8:])
    return path


def announced(folder: Path) -> Path:
    """A header that speaks of 400 GB."""
    header = b'{"w":{"dtype":"F32","shape":[100000000000],"data_offsets":[0,400000000000]}}'
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return path


BOMBS = {
    "weights": lambda folder: compressed(folder, "data/0"),
    "plan": lambda folder: compressed(folder, "data.pkl"),
    "version": lambda folder: compressed(folder, "version"),
    "one member many times": doubled,
    "bytearray": lambda folder: plan(folder, b"cbuiltins\nbytearray\nJ\0\0\0\x30\x85R"),  # 768 MB
    "tensor": lambda folder: plan(folder, b"ctorch\nFloatTensor\nJ\0\0\0\x30\x85R"),
    "key": lambda folder: plan(folder, b"})" + b"q\0h\0\x86" * 40 + b"Ns"),  # 2^40 steps to hash
    "long text": lambda folder: plan(folder, b"X\xff\xff\xff\xff"),
    "old format": old_format,
    "long number": long_number,
    "long header": long_header,
    "announced": announced,
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux tells it")
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(folder, bomb):
    path = BOMBS[bomb](folder)
    assert path.stat().st_size < 4 * MB
    Path("/proc/self/clear_refs").write_text("5")
    before, start = peak(), time.perf_counter()
    assert not check(path)
    assert peak() - before < 64 and time.perf_counter() - start < 60
