"""Reads the tensors of an untrusted checkpoint file; runs no code in it, and needs no more memory than its size.

`torch.load(weights_only=True)` runs no code either, but a file of a few kB can make it allocate 768 MB (a `bytearray`,
a compressed archive) or compute for hours (a tuple of tuples of tuples as a key). `_check_plan` refuses such files
before torch reads them.
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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Where training scripts put the state dict in their files, the first of them first; another name is read where it is
# the only one.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights")
# What wrappers put into the names: DataParallel, torch.compile, FSDP, activation checkpoints, Lightning.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}

# Globals that the pickle of a state dict may call or pass as an argument, besides OrderedDict without arguments.
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
NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1"}
INSTRUCTIONS = NUMBERS | set(
    "STOP PROTO MARK BINUNICODE SHORT_BINSTRING NONE NEWTRUE NEWFALSE BINFLOAT EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE"
    " TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL APPEND APPENDS SETITEM SETITEMS BUILD REDUCE"
    " BINPERSID".split()
)
LARGEST_TUPLE = 1000  # entries, those of tuples inside it included

# What torch's reader raises for damaged files and for other kinds of files.
DAMAGED = (
    EOFError,
    RuntimeError,
    LookupError,
    AssertionError,
    AttributeError,
    TypeError,
    ValueError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Returns the dense tensors of a `.safetensors` or a torch file by name, on the CPU.

    The state dict may lie under one of `CONTAINERS`, or be the only one in the file. The `WRAPPERS` are removed from
    the names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another format or holds more than tensors; the message names the file and the reason.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"Expected a checkpoint file, but {path} {what}.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return {
        plain_name(name): value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        if value.device.type == "cpu" and not value.is_complex() and not value.is_quantized
    }


def plain_name(name: str) -> str:
    """A tensor's name in the model itself, without its `WRAPPERS`."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, *DAMAGED) as error:
        raise ValueError(f"Expected a safetensors file, but {path} cannot be read: {error}") from error


def _read_torch(path: Path) -> dict:
    try:
        is_zip = _check_torch_file(path)
        # With a memory map the system reads a page when it is used, and drops it when memory is short.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except _Refused as error:
        raise ValueError(
            f"Expected a torch file that holds tensors only, but {path} cannot be read: it has {error}, which no "
            "state dict needs, and perhaps holds code, which is never run here. Open the file where you trust it, and "
            "save its state dict alone: torch.save(model.state_dict(), …)."
        ) from error
    except DAMAGED as error:
        raise ValueError(
            f"Expected a torch file that holds tensors only, but {path} cannot be read ({type(error).__name__}): it "
            "is damaged or not a torch file. Copy or download it again."
        ) from error
    return _state_dict_in(content, path)


def _state_dict_in(content, path: Path) -> dict:
    """The dict of tensors in what a file holds, at most a few containers deep."""
    seen = content
    while isinstance(content, dict):
        if any(isinstance(value, Tensor) for value in content.values()):
            return content
        inner = [content[key] for key in CONTAINERS if isinstance(content.get(key), dict)][:1]
        inner = inner or [
            value for key, value in content.items() if isinstance(value, dict) and "optim" not in str(key)
        ]
        content = inner[0] if len(inner) == 1 else None
    found = type(seen).__name__
    if isinstance(seen, dict):
        found = f"the keys {', '.join(map(str, list(seen)[:8])) or 'of an empty dict'}"
    raise ValueError(
        f"Expected a state dict in {path}, by itself or under one of {', '.join(CONTAINERS)}, got {found}. Save the "
        "state dict alone."
    )


def _check_torch_file(path: Path) -> bool:
    """Whether it is an archive (else torch's older format); raises `_Refused` or one of DAMAGED."""
    size = os.path.getsize(path)
    # A map reads only existing bytes; `file.read(n)` would allocate n bytes.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != b"PK\x03\x04":
            for _ in range(5):  # a magic number, a version, byte order and sizes, the content, its storages
                _check_plan(content, size)
            return False
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type or not 0 <= member.header_offset < size for member in members):
                raise zipfile.BadZipFile("compressed, or not within the file")
            if sum(member.file_size for member in members) > size:
                raise zipfile.BadZipFile("larger than the file")
            for member in members:
                if member.filename.endswith(".pkl"):
                    _check_plan(BytesIO(archive.read(member)), size)
    return True


def _check_plan(file, limit: int) -> None:
    """Follows the stack of a pickle to its end without building any object.

    An entry of the stack is the name of a global, or a number: 0 for an empty tuple, 1 for another object, else the
    number of the tuple's entries, including those of inner tuples.

    Raises:
        _Refused: the pickle names or calls something that no state dict needs, has a tuple of more than
            `LARGEST_TUPLE` entries, or a storage of more than `limit` numbers.
        ValueError, IndexError, KeyError: the pickle is incomplete.
    """
    stack: list[str | int] = []
    marks: list[int] = []
    memo: dict[int, str | int] = {}
    number = 0
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name not in INSTRUCTIONS:
            raise _Refused(f"the pickle instruction {name}")
        if name == "STOP":
            return
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            _check_global(argument)
            stack.append(argument)
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if function not in CALLED and (function, arguments) != ("collections OrderedDict", 0):
                raise _Refused(f"a call of {str(function).replace(' ', '.')}")
            stack.append(1)
        else:
            if name in NUMBERS:
                number = argument
            elif name == "BINPERSID" and not 0 <= number <= limit:
                raise _Refused(f"a storage of {number} numbers")
            taken = _take(stack, marks, opcode)
            entries = 1
            if name.startswith("TUPLE"):
                entries += sum(max(1, entry) if isinstance(entry, int) else 1 for entry in taken)
                if entries > LARGEST_TUPLE:
                    raise _Refused("a tuple of too many entries")
            stack += [0 if name == "EMPTY_TUPLE" else entries] * len(opcode.stack_after)
    raise ValueError("it ends too early")


def _take(stack: list, marks: list[int], opcode) -> list:
    """Pops the operands of an instruction from the stack."""
    before = opcode.stack_before
    if pickletools.markobject in before:
        start = marks.pop() - before.index(pickletools.markobject)
    else:
        start = len(stack) - len(before)
    if start < 0:
        raise IndexError("the stack is empty")
    taken = stack[start:]
    del stack[start:]
    return taken


def _check_global(name: str) -> None:
    module, _, attribute = name.partition(" ")
    storage = attribute.endswith("Storage") and attribute not in ("UntypedStorage", "TypedStorage")
    is_type = module == "torch" and (storage or isinstance(getattr(torch, attribute, None), torch.dtype))
    if name not in CALLED and name != "collections OrderedDict" and not is_type:
        raise _Refused(name.replace(" ", "."))


class _Refused(ValueError):
    """The file holds something that no state dict needs; the message names it."""
