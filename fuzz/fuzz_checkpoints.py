"""Fuzz the reader of checkpoint files with atheris: tensors or a ValueError, never a crash, a hang or a memory bomb.

    pip install atheris
    python fuzz/fuzz_checkpoints.py fuzz/corpus/checkpoints -max_total_time=300 -rss_limit_mb=2048 -timeout=10

The first byte of an input says what it is taken for: a torch archive, torch's older format, safetensors, or the plan
(data.pkl) of an archive that is otherwise whole. `--write-corpus FOLDER` writes the small files to start from.
"""

import io
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save

KINDS = ("zip.pth", "old.pth", "x.safetensors", "plan.pth")
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-checkpoints-"))


def archive(plan: bytes) -> bytes:
    """An archive as torch.save writes it, with this plan and one storage of 16 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in {"data.pkl": plan, "version": b"3\n", "data/0": bytes(16)}.items():
            file.writestr(f"x/{name}", content)
    return buffer.getvalue()


def write_corpus(folder: Path) -> None:
    tensors = {"conv.weight": torch.ones(2, 2), "n": torch.tensor(3)}
    content = {"state_dict": tensors | {"own": torch.nn.Parameter(torch.ones(2).half())}, "epoch": 1}
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(content, new)
    torch.save(content, old, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(new) as file:
        plan = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    folder.mkdir(parents=True, exist_ok=True)
    for kind, (name, data) in enumerate(
        zip(KINDS, (new.getvalue(), old.getvalue(), save(tensors), plan), strict=True)
    ):
        (folder / name).write_bytes(bytes([kind]) + data)


def read_one_input(data: bytes) -> None:
    from modeling_avsegformer.checkpoint_reader import read_tensors

    if not data:
        return
    name = KINDS[data[0] % len(KINDS)]
    path = FOLDER / name
    path.write_bytes(archive(data[1:]) if name == "plan.pth" else data[1:])
    try:
        tensors = read_tensors(path)
    except ValueError as error:
        assert str(path) in str(error), error
        return
    for tensor in tensors.values():
        if tensor.numel() < 2**20:
            tensor.clone()  # its numbers are there
    assert os.listdir(FOLDER) == [name], "code of the file was run"


def fuzz_one_input(data: bytes) -> None:
    try:
        read_one_input(data)
    finally:
        for path in FOLDER.iterdir():
            path.unlink()


def main() -> None:
    if sys.argv[1:2] == ["--write-corpus"]:
        return write_corpus(Path(sys.argv[2]))
    import atheris

    with atheris.instrument_imports(include=["modeling_avsegformer.checkpoint_reader", "pickletools", "zipfile"]):
        import modeling_avsegformer.checkpoint_reader  # noqa: F401
    atheris.Setup(sys.argv, fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
