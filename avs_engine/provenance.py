"""Records how a result was made: code, libraries, command, data."""

import hashlib
import json
import platform
import subprocess
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import try_to_load_from_cache
from transformers.utils import CONFIG_NAME

from avsbench_robust_dataset.files import sha256, write_whole


def git_revision() -> str | None:
    """The commit of the checkout that holds this package, "-dirty" if files differ from it; None outside of one."""
    folder = Path(__file__).resolve().parents[1]
    git = ["git", "-C", str(folder)]
    try:
        run = partial(subprocess.run, capture_output=True, text=True, errors="surrogateescape")
        top = run([*git, "rev-parse", "--show-toplevel"], timeout=10)
        found = run([*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"], timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    installed_elsewhere = top.returncode or Path(top.stdout.strip()) != folder
    return None if installed_elsewhere or found.returncode else found.stdout.strip()


def library_versions() -> dict[str, str]:
    names = ("torch", "transformers", "datasets", "accelerate", "evaluate", "timm", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def clips_digest(splits: dict[str, Dataset]) -> str:
    """SHA-256 of which clips there are and which sound each has."""
    columns = ("clip_id", "category", "audio_source", "audio_category")
    content = {name: [split[column][:] for column in columns] for name, split in splits.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weight_files(model: str) -> list[Path]:
    """The files of weights in a `from_pretrained` folder, or of a Hub id that was loaded, in the cache."""
    folder = Path(model)
    if not folder.is_dir():
        config = try_to_load_from_cache(model, CONFIG_NAME)
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    return sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))


def weights_of(model: str) -> dict:
    """Which weights a `from_pretrained` folder or Hub id holds: its name, of a Hub id the commit, SHA-256 of files."""
    files = weight_files(model)
    known = {"source": Path(model).resolve().name} if Path(model).is_dir() else {"source": model}
    if files and not Path(model).is_dir():
        known["commit"] = files[0].parent.name
    return known | {"sha256": {path.name: sha256(path) for path in files}}


def encoders_of(model: str) -> dict | None:
    """The weights with which the training of a model began, read from `trainer_state.json` in its folder."""
    state = Path(model) / "trainer_state.json"
    return json.loads(state.read_text(encoding="utf-8")).get("weights") if state.is_file() else None


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
