"""The progress of a training run, and the files that it writes into its output folder."""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from tqdm.auto import tqdm

from avsbench_robust_dataset.files import sha256, write_whole
from avsbench_robust_dataset.unseen import folder_digest
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor

from .checkpoints import STATE, check_same_run, check_undamaged, complete_checkpoints, remove, sync_to_disk
from .models import model_settings
from .provenance import git_revision, library_versions, write_json

LOG = "train_log.jsonl"
OWN_FILES = (STATE, "checkpoints", "last", "config.json", "model.safetensors", "processor_config.json", LOG)

# The arguments that a resumed run must share with the run that it continues.
FIXED_SETTINGS = (
    "subset",
    "data_seed",
    "seed",
    "image_size",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "lr_scheduler",
    "warmup_steps",
    "freeze_backbone_epochs",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "negative_ratio",
    "negative_conditions",
    "frames_per_clip",
    "augment",
)


def run_identity(
    args: argparse.Namespace,
    accelerator: Accelerator,
    network: AVSegFormerForSegmentation,
    processor: AVSegFormerProcessor,
    data_digest: str,
    weights: dict | None,
    total_steps: int,
) -> dict:
    """What `trainer_state.json` records about a run; a resumed run must have the same settings, model and data."""
    settings = {name: getattr(args, name) for name in FIXED_SETTINGS}
    # Older checkpoints do not have these; without a value they say nothing new.
    settings |= {name: getattr(args, name) for name in ("compose_share", "redraw_sounds") if getattr(args, name)}
    if args.negative_dir is not None:
        settings["negative_dir_sha256"] = folder_digest(args.negative_dir)
    settings["image_size"] = dict(processor.image_processor.size)
    settings |= {"num_processes": accelerator.num_processes, "mixed_precision": accelerator.mixed_precision}
    if args.lr_scheduler != "constant":
        settings["total_steps"] = total_steps  # only a run with a constant learning rate may be extended
    return {
        "settings": settings,
        "model": model_settings(network.config),
        "data": data_digest,
        "weights": weights,
        "total_steps": total_steps,
        "num_threads": torch.get_num_threads(),
        "versions": library_versions(),
        "git_revision": git_revision(),
        "command": args.command,
    }


def print_once(accelerator: Accelerator, text: str) -> None:
    """Prints from the main process alone, above the progress bar."""
    if accelerator.is_main_process:
        tqdm.write(text)
        sys.stdout.flush()


def check_output_dir(output_dir: Path, overwrite: bool, restart: bool) -> None:
    """Raises ValueError if a new run would replace what is in the folder.

    With `restart` it may replace a run that ended before its first checkpoint: the log has at most one validation, and
    there are neither checkpoints (damaged ones count) nor a last model.
    """
    present = [name for name in OWN_FILES if (output_dir / name).exists()]
    later = [output_dir / "last/model.safetensors", *output_dir.glob("checkpoints/[!.]*")]
    if restart and LOG in present and not any(path.exists() for path in later):
        if (output_dir / LOG).read_text(encoding="utf-8").count('"validation": {') <= 1:
            return
    if present and not overwrite:
        raise ValueError(
            f"Expected an --output_dir without a run, but {output_dir} has {', '.join(present)}. Continue that run "
            "with --resume_from_checkpoint latest, replace it with --overwrite_output_dir, or name another folder."
        )


@dataclasses.dataclass
class Run:
    """The progress of a run, and the files that it writes.

    Attributes:
        keep: how many of the newest checkpoints stay; 0 keeps all.
        epoch, batches_done, step: the current epoch, the number of its finished batches, the optimizer steps so far.
        validates: whether the step is finished and its validation is not.
        best: {"g_miou", "epoch", "step"} of the best validation, None before the first.
        saved: (step, validates) at the last checkpoint.
    """

    accelerator: Accelerator
    output_dir: Path
    identity: dict
    scheduler: torch.optim.lr_scheduler.LRScheduler
    keep: int
    epoch: int = 0
    batches_done: int = 0
    step: int = 0
    validates: bool = False
    best: dict | None = None
    saved: tuple[int, bool] | None = None

    def start(self) -> None:
        """Removes an earlier run that `check_output_dir` allows to replace; its log is removed last (see there)."""
        if self.accelerator.is_main_process:
            for checkpoint in complete_checkpoints(self.output_dir / "checkpoints"):
                remove(checkpoint)
            for path in (self.output_dir / name for name in OWN_FILES):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            (self.output_dir / LOG).touch()
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Turns the errors of a full disk or a file-size limit into one OSError that says how to continue."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # where torch.save fails
                raise
            reason = str(error.__cause__ or error).splitlines()[0].rstrip(".")
            raise OSError(
                f"Expected to write {path}, but it failed: {reason}. Look at the free space and the permissions. "
                f"{self.how_to_go_on()}"
            ) from error

    def how_to_go_on(self) -> str:
        checkpoints = complete_checkpoints(self.output_dir / "checkpoints")
        if not checkpoints:
            return "There is no checkpoint yet: the run starts from the beginning."
        return (
            f"The last complete checkpoint is {checkpoints[-1]}: repeat the command with --resume_from_checkpoint "
            "latest to go on from it."
        )

    def resume(self, checkpoint: Path, saved: dict) -> None:
        """Restores weights, optimizer, schedule, random numbers and log from a checkpoint, whose state is `saved`.

        Raises:
            ValueError: the checkpoint is damaged or from another run; the message names the file or the setting.
        """
        check_same_run(checkpoint, saved, self.identity)
        check_undamaged(checkpoint, saved["files"])
        self.accelerator.load_state(str(checkpoint))
        self.scheduler.load_state_dict(saved["scheduler"])
        self.epoch, self.batches_done = saved["epoch"], saved["batches_done"]
        self.step, self.validates = saved["step"], saved.get("validates", False)
        if (self.output_dir / "model.safetensors").is_file():  # else the run goes on in another folder
            self.best = saved["best"]
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            # Cut off the lines after the checkpoint: the run will write them again.
            log = checkpoint.parent.parent / LOG
            text = log.read_bytes()[: saved["log_bytes"]] if log.is_file() else b""
            for unfinished in (self.output_dir / "checkpoints").glob(".*/"):
                shutil.rmtree(unfinished)
            self._remove_old_checkpoints()
            write_whole(self.output_dir / LOG, text)
        self.accelerator.wait_for_everyone()
        print_once(self.accelerator, f"Resuming from {checkpoint}: epoch {self.epoch}, step {self.step}.")

    def log(self, values: dict) -> None:
        """Appends a line to train_log.jsonl and sends the values to the trackers."""
        if self.accelerator.is_main_process:
            log = self.output_dir / LOG
            with self.writing(log), open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, "epoch": self.epoch} | values) + "\n")
        self.accelerator.log(values.get("validation", values), step=self.step)

    def save_checkpoint(self, name: str) -> None:
        """Writes checkpoints/NAME, which gets its name when it is complete, and then removes old checkpoints.

        None replaces a complete one, whose folder would not be there for a moment: the name gets a suffix.

        Raises:
            OSError: the checkpoint could not be written; earlier ones stay.
        """
        folder = self.output_dir / "checkpoints" / name
        while folder in complete_checkpoints(folder.parent):
            folder = folder.with_name(f"{folder.name}_again")
        partial = folder.with_name(f".{folder.name}")
        with self.writing(folder):
            try:
                if self.accelerator.is_main_process:
                    shutil.rmtree(partial, ignore_errors=True)
                self.accelerator.wait_for_everyone()
                self.accelerator.save_state(str(partial))
                self.accelerator.wait_for_everyone()
                if self.accelerator.is_main_process:
                    self._complete(partial, folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)  # it would take the space that the next attempt needs
                raise
        self.saved = (self.step, self.validates)
        if self.accelerator.is_main_process:
            self._remove_old_checkpoints()
        self.accelerator.wait_for_everyone()

    def _remove_old_checkpoints(self) -> None:
        for old in complete_checkpoints(self.output_dir / "checkpoints")[: -self.keep] if self.keep else ():
            remove(old)

    def _complete(self, partial: Path, folder: Path) -> None:
        position = {name: getattr(self, name) for name in ("epoch", "batches_done", "step", "validates", "best")}
        files = sorted(file for file in partial.rglob("*") if file.is_file())
        contents = {
            file.relative_to(partial).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in files
        }
        # The schedule is stored as JSON: accelerate would pickle it, and unpickling can run code.
        rest = {"log_bytes": (self.output_dir / LOG).stat().st_size, "scheduler": self.scheduler.state_dict()}
        write_json(partial / STATE, self.identity | position | rest | {"files": contents})
        sync_to_disk(partial)
        remove(folder)  # one that is not complete
        os.replace(partial, folder)

    def save_model(self, model: torch.nn.Module, processor: AVSegFormerProcessor, folder: Path) -> None:
        """Writes a `from_pretrained` folder with trainer_state.json; each file appears whole, the weights last.

        All processes have to call this, since each may hold a part of the weights.
        """
        weights = self.accelerator.get_state_dict(model)
        if not self.accelerator.is_main_process:
            return
        partial = folder / ".saving"
        with self.writing(folder):
            try:
                shutil.rmtree(partial, ignore_errors=True)
                self.accelerator.unwrap_model(model).save_pretrained(partial, state_dict=weights)
                processor.save_pretrained(partial)
                sync_to_disk(partial)
                for file in sorted(partial.iterdir(), key=lambda file: file.suffix == ".safetensors"):
                    os.replace(file, folder / file.name)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            position = {"epoch": self.epoch, "step": self.step, "best": self.best}
            write_json(folder / STATE, self.identity | position)
