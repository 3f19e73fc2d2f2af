"""The checkpoints of a run: which are complete, which one to resume from, and whether that is allowed."""

import json
import os
import shutil
from pathlib import Path

from avsbench_robust_dataset.files import sha256

STATE = "trainer_state.json"


def read_checkpoint(folder: Path) -> dict:
    """The trainer's state in a checkpoint.

    Raises:
        FileNotFoundError: there is no checkpoint, or a file of it is missing or cut off.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a checkpoint folder for --resume_from_checkpoint, but {folder} does not exist. Checkpoints are "
            "in OUTPUT_DIR/checkpoints; `latest` takes the newest."
        )
    if not (folder / STATE).is_file():
        raise FileNotFoundError(
            f"Expected a complete checkpoint in {folder}, but {STATE}, which is written last, is missing: the run was "
            "stopped while it saved. Resume from another checkpoint; `latest` takes the newest complete one."
        )
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if "files" not in state:
        raise FileNotFoundError(
            f"Expected a checkpoint in {folder}, but it holds a trained model, without the optimizer. Resume from a "
            f"folder in {folder / 'checkpoints'}."
        )
    for name, file in state["files"].items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != file["bytes"]:
            raise FileNotFoundError(
                f"Expected a complete checkpoint in {folder}, but {name} is missing or does not have its "
                f"{file['bytes']} bytes. Resume from another checkpoint; `latest` takes the newest complete one."
            )
    return state


def check_undamaged(folder: Path, files: dict[str, dict]) -> None:
    """Raises ValueError if a file of a complete checkpoint has changed since it was written."""
    for name, file in files.items():
        found = sha256(folder / name)
        if found != file["sha256"]:
            raise ValueError(
                f"Cannot resume from {folder}: {name} is damaged, its SHA-256 is {found}, not {file['sha256']} as "
                "when it was written. Remove this checkpoint: `latest` then takes the one before."
            )


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    found = []
    for checkpoint in folder.glob("[!.]*/"):
        try:
            state = read_checkpoint(checkpoint)
        except FileNotFoundError:
            continue
        found.append((state["step"], state["epoch"], checkpoint))
    return [checkpoint for *_, checkpoint in sorted(found)]


def find_checkpoint(requested: str | None, output_dir: Path) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` asks for; None starts a new run."""
    if requested is None:
        return None
    if requested not in ("latest", "auto"):
        return Path(requested)
    checkpoints = complete_checkpoints(output_dir / "checkpoints")
    if not checkpoints and requested == "auto":
        return None
    if not checkpoints:
        raise FileNotFoundError(
            f"Expected a complete checkpoint in {output_dir / 'checkpoints'} for --resume_from_checkpoint latest, but "
            "there is none. Start anew with --overwrite_output_dir, and see --checkpointing_steps."
        )
    return checkpoints[-1]


def check_newest(checkpoint: Path) -> None:
    """Raises ValueError if there are later checkpoints, which the run could neither keep nor replace."""
    checkpoints = [path.name for path in complete_checkpoints(checkpoint.parent)]
    later = checkpoints[checkpoints.index(checkpoint.resolve().name) + 1 :]
    if later:
        raise ValueError(
            f"Expected the newest checkpoint of {checkpoint.parent} for --resume_from_checkpoint, got "
            f"{checkpoint.name}, but {', '.join(later)} came after it. Go on from it in another --output_dir, or "
            f"remove the later ones; `latest` goes on from {later[-1]}."
        )


def check_same_run(checkpoint: Path, saved: dict, ours: dict) -> None:
    """Raises ValueError if the run differs from the one that wrote the checkpoint; the message names the setting."""
    for group, what in (("settings", "setting"), ("model", "model setting")):
        before, now = saved[group], ours[group]
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise ValueError(
                    f"Cannot resume from {checkpoint}: its {what} {name} is {before.get(name)!r}, this run's is "
                    f"{now.get(name)!r}. Give the same, or start a new run in another --output_dir."
                )
    if saved["data"] != ours["data"]:
        raise ValueError(
            f"Cannot resume from {checkpoint}: it was trained on other clips or sounds. Give that run's --data_dir."
        )


def sync_to_disk(folder: Path) -> None:
    """Flushes the folder and its files to the disk, so that they survive a power failure."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(folder: Path) -> None:
    """Removes a checkpoint. If interrupted, it leaves a folder with a leading dot, which the next run removes."""
    if folder.exists():
        condemned = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(condemned, ignore_errors=True)
        os.replace(folder, condemned)
        shutil.rmtree(condemned)
