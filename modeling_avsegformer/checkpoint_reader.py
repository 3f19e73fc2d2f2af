"""The tensors of a checkpoint file from anywhere: no code of it is run, and it takes no more memory than its size.

`torch.load(weights_only=True)` runs no code, but a small file can make it allocate whatever it names (a compressed
archive, a `bytearray` of any length) or compute for ever (a tuple of tuples as a key). So the plan in the file, a
pickle, is read first, without making anything of it.
"""

import mmap
import os
import pickle
import pickletools
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

# What the plan of a state dict calls, besides OrderedDict without arguments.
CALLED = {
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
    "torch._utils _rebuild_sparse_tensor",
    "torch.serialization _get_layout",
    "torch Size",
    "torch device",
}

# What torch's reader raises for damaged and for foreign files, besides UnpicklingError for code.
DAMAGED = (
    EOFError,
    RuntimeError,
    LookupError,
    AssertionError,
    AttributeError,
    TypeError,
    ValueError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The dense tensors of a `.safetensors` or a torch file by name, on the CPU; "module." before a name, which
    nn.DataParallel puts there, is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is neither, or holds more than tensors; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"Expected a checkpoint file, but {path} {what}.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return {
        name.removeprefix("module."): value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        if value.device.type == "cpu" and not value.is_complex() and not value.is_quantized
    }


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, *DAMAGED) as error:
        raise ValueError(f"Expected a safetensors file, but {path} cannot be read: {error}") from error


def _read_torch(path: Path) -> dict:
    try:
        is_zip = _check_torch_file(path)
        # Mapped: pages of the file come when they are used, and go when memory is short.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except DAMAGED as error:
        raise ValueError(
            f"Expected a torch file that holds tensors only, but {path} cannot be read so ({type(error).__name__}). "
            "It is damaged, no torch file, or holds code, which is never run here: open it where you trust it and "
            "save its state dict alone."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"Expected a state dict in {path}, got {type(content).__name__}.")
    return content


def _check_torch_file(path: Path) -> bool:
    """Whether it is an archive (else torch's older format); raises one of DAMAGED where it is more than tensors."""
    size = os.path.getsize(path)
    # A map reads what is there; a file makes room for all that is asked of it.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != b"PK\x03\x04":
            for _ in range(5):  # a magic number, a version, byte order and sizes, the content, its storages
                _check_pickle(content, size)
            return False
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type or not 0 <= member.header_offset < size for member in members):
                raise zipfile.BadZipFile("compressed, or not within the file")
            if sum(member.file_size for member in members) > size:
                raise zipfile.BadZipFile("larger than the file")
            for member in members:
                if member.filename.endswith(".pkl"):
                    _check_pickle(BytesIO(archive.read(member)), size)
    return True


def _check_pickle(file, limit: int) -> None:
    """Follow a pickle up to its end without making anything of it.

    Raises:
        ValueError: it does not end; it calls something that no state dict needs; it has other keys than strings and
            numbers; or its storages are larger than `limit` bytes.
    """
    stack, marks, memo, storages, total = [], [], {}, {}, 0

    def from_mark() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def check(allowed: bool, what: str) -> None:
        if not allowed:
            raise ValueError(f"no state dict has {what}")

    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "STOP":
                return
            case "PROTO":
                pass
            case "MARK":
                marks.append(len(stack))
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "BINFLOAT" | "EMPTY_DICT" | "EMPTY_LIST":
                stack.append(None)  # all the same here: neither a key nor a name
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(from_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_Global(argument))
            case "APPEND":
                stack.pop()
            case "APPENDS":
                from_mark()
            case "SETITEM":
                check(type(stack[-2]) in (str, int), "such keys")
                del stack[-2:]
            case "SETITEMS":
                check(all(type(key) in (str, int) for key in from_mark()[::2]), "such keys")
            case "BUILD":  # a state dict's `_metadata`
                stack.pop()
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                check(type(function) is _Global, "such calls")
                check(function in CALLED or (function == "collections OrderedDict" and arguments == ()), "such calls")
                stack.append(None)
            case "BINPERSID":
                _, _, key, _, numbers, *_ = stack.pop()
                check(type(key) in (str, int) and type(numbers) is int and numbers >= 0, "such storages")
                total += numbers - storages.get(key, 0)
                storages[key] = numbers
                check(total <= limit, "more numbers than bytes")
                stack.append(None)
            case _:
                check(False, f"the instruction {opcode.name}")
    raise ValueError("it ends too early")


class _Global(str):
    """The name of a class or a function, apart from a text that reads the same."""


__all__ = ["read_tensors"]
