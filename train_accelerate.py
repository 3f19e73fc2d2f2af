"""Trains AVSegFormer on AVSBench-Robust, with sounds that do not belong to the picture among those that do.

    accelerate launch train_accelerate.py --subset s4 --data_dir data --backbone pvt_v2_b5 --output_dir runs/s4

The same file runs on one CPU (`--cpu`), one GPU, or several processes (`torchrun --nproc_per_node N`, with `--cpu` for
CPU processes; `accelerate launch --cpu --num_processes 2` starts only one), in float32 or mixed precision.

An epoch is every positive clip once and, drawn anew, `--negative_ratio` of the items from the negative conditions:
same frames, another sound, empty masks. A run that was cut off goes on with `--resume_from_checkpoint latest` and ends
with the weights, bit for bit, that it would have had (on the CPU; on a GPU as far as its kernels are deterministic);
with `auto` it starts where there is nothing to go on from: one command for a job that is sent again and again. SIGTERM
saves a checkpoint and ends the run with exit code 0. One run at a time may use an `--output_dir`.

`--output_dir` receives the model with the best validation G-mIoU as a `from_pretrained` folder, `last/` (the model
after the last step), `train_log.jsonl`, `trainer_state.json` and `checkpoints/`. `--push_to_hub` publishes that model
in the end, with its processor, its card and its code; whether it may is asked before the start.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast, gather_object, set_seed
from datasets import Dataset
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, get_scheduler
from transformers.utils.logging import disable_progress_bar

from avsbench_robust_dataset import CONDITIONS
from avsbench_robust_dataset.files import only_run_in, sha256, write_whole
from avsbench_robust_dataset.hub_access import check_hub_access
from avsbench_robust_dataset.progress import progress_bar
from evaluate_accelerate import (
    Terminated,
    add_hub_arguments,
    check_model_path,
    decode_clip,
    encode_sounds,
    evaluate_model,
    format_scores,
    git_revision,
    leave_sigterm_to_parent,
    library_versions,
    load_splits,
    publish,
    sound_keys,
    spread,
    write_json,
)
from modeling_avsegformer import (
    AVSegFormerConfig,
    AVSegFormerForSegmentation,
    AVSegFormerImageProcessor,
    AVSegFormerProcessor,
    VGGishFeatureExtractor,
)
from modeling_avsegformer.configuration_avsegformer import LOSS_TYPES

NEGATIVE_CONDITIONS = tuple(condition for condition in CONDITIONS if condition != "positive")
LOSS_SETTINGS = ("loss_type", "bce_weight", "mask_weight", "mix_weight", "similarity_weight")
LOG, STATE = "train_log.jsonl", "trainer_state.json"
REPLACED = ".replaced"  # suffix of a checkpoint until the one that replaces it is there
OWN_FILES = (STATE, "checkpoints", "last", "config.json", "model.safetensors", "processor_config.json", LOG)


@dataclasses.dataclass(frozen=True)
class Preset:
    """Defaults that follow the subset."""

    epochs: int
    freeze_backbone_epochs: int  # the first ones
    learning_rate: float
    batch_size: int  # clips per process and step
    image_size: int  # pixels
    backbone: str


# s4 and ms3: AVSegFormer's recipe (AdamW, constant rate, batch 2), frames at AVSBench's own resolution.
PRESETS = {
    "s4": Preset(30, 5, 2e-5, 2, 224, "pvt_v2_b5"),
    "ms3": Preset(60, 10, 2e-5, 2, 224, "pvt_v2_b5"),
    "demo": Preset(10, 0, 1e-3, 12, 64, "resnet10t"),
}

# What a resumed run must share with the run it continues, beside the data and the model.
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


def epoch_plan(
    clips: int, negative_ratio: float, conditions: dict[str, float], seed: int, epoch: int
) -> list[tuple[str, int]]:
    """The items of an epoch in order, as (condition, clip index): a pure function of its arguments.

    Args:
        clips: n; each is there once as a positive item.
        negative_ratio: r in [0, 1), the share of negative items: round(n r / (1 - r)) of them, at least one if r is
            above 0; other clips each epoch.
        conditions: negative condition -> weight; each gets its share of the negative items, rounded at random.
    """
    rng = np.random.default_rng([seed, epoch])
    items = [("positive", clip) for clip in range(clips)]
    if negative_ratio > 0:
        negatives = max(1, round(clips * negative_ratio / (1 - negative_ratio)))
        bounds = np.cumsum(list(conditions.values())) / sum(conditions.values())
        # Systematic sampling: equally spaced points with one random offset. No clip twice before all were drawn.
        drawn = np.searchsorted(bounds, (rng.random() + np.arange(negatives)) / negatives, side="right")
        rounds = [rng.permutation(clips) for _ in range(math.ceil(negatives / clips))]
        names = list(conditions)
        items += [
            (names[min(which, len(names) - 1)], int(clip))
            for which, clip in zip(drawn, np.concatenate(rounds)[:negatives], strict=True)
        ]
    return [items[index] for index in rng.permutation(len(items))]


class TrainingClips(torch.utils.data.Dataset):
    """The items of one epoch; `set_epoch` draws another.

    All that is random about an item is a pure function of (seed, epoch, index): neither workers, nor prefetching, nor
    where a run was resumed can change it.

    Args:
        split: the positive split; negative items show the same frames.
        keys: condition -> key into `sounds` of each clip.
        sounds: key -> features of the sound, one row a frame.
        frames_per_clip: frames of an item, drawn among those with a mask first; None: all.
        augment: flip half of the items left to right.
        cache_bytes: keep the decoded frames in memory if they take no more.
    """

    def __init__(
        self,
        split: Dataset,
        keys: dict[str, list[str]],
        sounds: dict[str, torch.Tensor],
        negative_ratio: float,
        negative_conditions: dict[str, float],
        seed: int,
        frames_per_clip: int | None = None,
        augment: bool = False,
        cache_bytes: float = 0,
    ):
        self.clip_ids = split["clip_id"][:]
        self.split = split.select_columns(["frames", "masks"])  # decoding the waveforms as well would cost more
        self.keys = keys
        self.sounds = sounds
        self.negative_ratio = negative_ratio
        self.negative_conditions = negative_conditions
        self.seed = seed
        self.frames_per_clip = frames_per_clip
        self.augment = augment
        self.decoded = None
        if sum(array.nbytes for array in decode_clip(self.split, 0)) * len(split) <= cache_bytes:
            self.decoded = [decode_clip(self.split, clip) for clip in range(len(split))]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.plan = epoch_plan(len(self.clip_ids), self.negative_ratio, self.negative_conditions, self.seed, epoch)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict:
        condition, clip = self.plan[index]
        frames, masks = decode_clip(self.split, clip) if self.decoded is None else self.decoded[clip]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        chosen = np.arange(len(frames))
        labelled = len(masks)
        if self.frames_per_clip is not None and self.frames_per_clip < len(frames):
            first = rng.permutation(labelled)[: self.frames_per_clip]
            others = labelled + rng.permutation(len(frames) - labelled)[: self.frames_per_clip - len(first)]
            chosen, labelled = np.concatenate([np.sort(first), np.sort(others)]), len(first)
        frames, masks = frames[chosen], masks[chosen[:labelled]]
        if self.augment and rng.random() < 0.5:
            frames, masks = np.flip(frames, 2).copy(), np.flip(masks, 2).copy()
        return {
            "clip": f"{self.clip_ids[clip]} ({condition})",
            "frames": frames,  # (T, H, W, 3) uint8
            "masks": masks if condition == "positive" else np.zeros_like(masks),  # (K, H, W)
            "sound": self.sounds[self.keys[condition][clip]][torch.from_numpy(chosen)],
            "audio_label": float(condition == "positive"),
        }


class Collator:
    """Items to a batch of tensors. Labels cover the first K frames, where K is the fewest masks of any item.

    Args:
        sound_argument: what the model calls the items' `sound`: `audio_embeddings` or `input_features`.
    """

    def __init__(self, processor: AVSegFormerProcessor, sound_argument: str):
        self.processor = processor
        self.sound_argument = sound_argument

    def __call__(self, items: list[dict]) -> dict:
        labelled = min(len(item["masks"]) for item in items)
        inputs = self.processor(
            frames=[list(item["frames"]) for item in items], masks=[list(item["masks"][:labelled]) for item in items]
        )
        return {
            "clips": [item["clip"] for item in items],
            "pixel_values": inputs.pixel_values,  # (B, T, 3, H, W)
            self.sound_argument: torch.stack([item["sound"] for item in items]),  # (B, T, ...)
            "labels": inputs.labels,  # (B, K, H, W)
            "audio_labels": torch.tensor([item["audio_label"] for item in items]),  # (B,)
        }


def digest(splits: dict[str, Dataset]) -> str:
    """SHA-256 of which clips there are and which sound each has."""
    columns = ("clip_id", "category", "audio_source", "audio_category")
    content = {name: [split[column][:] for column in columns] for name, split in splits.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def build_model(
    args: argparse.Namespace, load_weights: bool
) -> tuple[AVSegFormerForSegmentation, AVSegFormerProcessor]:
    """The model to train, new or from `--model`. Without `load_weights` no encoder's weights are looked for."""
    losses = {name: getattr(args, name) for name in LOSS_SETTINGS if getattr(args, name) is not None}
    if args.model is not None:
        check_model_path(args.model)
        model = AVSegFormerForSegmentation.from_pretrained(args.model, **losses)
        processor = AVSegFormerProcessor.from_pretrained(args.model)
    else:
        model = AVSegFormerForSegmentation(AVSegFormerConfig(backbone=args.backbone, **losses))
        processor = AVSegFormerProcessor(AVSegFormerImageProcessor(), VGGishFeatureExtractor())
        if args.pretrained_backbone and load_weights:
            model.load_pretrained_backbone()
    if args.vggish_weights is not None and load_weights:
        model.load_vggish_weights(args.vggish_weights)
    if args.image_size is not None:
        processor.image_processor.size = {"height": args.image_size, "width": args.image_size}
    return model, processor


def model_settings(config: PreTrainedConfig) -> dict:
    """What a configuration adds to transformers' own fields, as JSON has it."""
    own = config.to_dict().keys() - PreTrainedConfig().to_dict().keys() - {"auto_map"}
    values = {name: getattr(config, name) for name in sorted(own - {"audio_config"})}
    if hasattr(config, "audio_config"):
        values["audio_config"] = model_settings(config.audio_config)
    return json.loads(json.dumps(values))


def read_checkpoint(folder: Path) -> dict:
    """The trainer's state in a checkpoint.

    Raises:
        FileNotFoundError: no checkpoint there, or one that lacks a file or a part of one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a checkpoint folder for --resume_from_checkpoint, but {folder} does not exist. Checkpoints are "
            "in OUTPUT_DIR/checkpoints; `latest` takes the newest."
        )
    if not (folder / STATE).is_file():
        raise FileNotFoundError(
            f"{folder} is no complete checkpoint: it has no {STATE}, which is written last. Resume from another one."
        )
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if "files" not in state:
        raise FileNotFoundError(
            f"{folder} is no checkpoint but a trained model. Resume from a folder in {folder / 'checkpoints'}."
        )
    for name, file in state["files"].items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != file["bytes"]:
            raise FileNotFoundError(
                f"{folder} is no complete checkpoint: expected {name} with {file['bytes']} bytes. Resume from another "
                "one."
            )
    return state


def check_undamaged(folder: Path, files: dict[str, dict]) -> None:
    """Raises ValueError if a file of a complete checkpoint is no longer as it was written."""
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


def put_back_checkpoints(folder: Path) -> None:
    """Undoes what a run did that was killed while it replaced a checkpoint."""
    for replaced in folder.glob(f".*{REPLACED}"):
        name = folder / replaced.name.removeprefix(".").removesuffix(REPLACED)
        if not name.exists():
            os.replace(replaced, name)


def find_checkpoint(requested: str | None, output_dir: Path) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` asks for; None: start anew."""
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
    """Raises ValueError if there are checkpoints after this one: the run could neither keep nor replace them."""
    checkpoints = [path.name for path in complete_checkpoints(checkpoint.parent)]
    later = checkpoints[checkpoints.index(checkpoint.resolve().name) + 1 :]
    if later:
        raise ValueError(
            f"Expected the newest checkpoint of {checkpoint.parent} for --resume_from_checkpoint, got "
            f"{checkpoint.name}, but {', '.join(later)} came after it. Go on from it in another --output_dir, or "
            f"remove the later ones; `latest` goes on from {later[-1]}."
        )


def check_same_run(checkpoint: Path, saved: dict, ours: dict) -> None:
    """Raises ValueError, naming the setting, if a run would not go on as the one that wrote the checkpoint."""
    for group, what in (("settings", "setting"), ("model", "model setting")):
        for name in sorted(saved[group].keys() | ours[group].keys()):
            if saved[group].get(name) != ours[group].get(name):
                raise ValueError(
                    f"Cannot resume from {checkpoint}: its {what} {name} is {saved[group].get(name)!r}, this run's is "
                    f"{ours[group].get(name)!r}. Give the same, or start a new run in another --output_dir."
                )
    if saved["data"] != ours["data"]:
        raise ValueError(
            f"Cannot resume from {checkpoint}: it was trained on other clips or sounds. Give that run's --data_dir."
        )


def say(accelerator: Accelerator, text: str) -> None:
    """Prints once, without tearing the progress bar."""
    if accelerator.is_main_process:
        tqdm.write(text)
        sys.stdout.flush()


class Termination:
    """Notes SIGTERM, with which schedulers announce that they take a machine away, for the run to save and end.

    Attributes:
        requested: the signal came.
    """

    def __init__(self):
        self.requested = False
        self._may_raise = False
        # `accelerate launch` does not pass the signal on: it dies, and leaves the script with another parent.
        launched = any(name.startswith("ACCELERATE_") for name in os.environ)
        self._launcher = os.getppid() if launched else None

    def __enter__(self):
        self._handles = threading.current_thread() is threading.main_thread()  # Python allows no other
        if self._handles:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind, error, trace):
        if self._handles:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number, frame) -> None:
        self.requested = True
        if self._may_raise:
            self._may_raise = False
            raise Terminated

    @contextlib.contextmanager
    def cuts_short(self, allowed: bool = True) -> Iterator[None]:
        """Within, SIGTERM raises `Terminated`: for long work that changes nothing."""
        self._may_raise = allowed
        try:
            if allowed and self.requested:
                raise Terminated
            yield
        finally:
            self._may_raise = False

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether the signal came to any process, or killed the launcher; a collective call."""
        if self._launcher not in (None, os.getppid()):
            self.requested = True
        if accelerator.num_processes == 1:
            return self.requested
        came = torch.tensor(float(self.requested), device=accelerator.device)
        return bool(accelerator.reduce(came, reduction="sum"))


def sync_to_disk(folder: Path) -> None:
    """What was written into the folder survives a power failure from here on."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(folder: Path) -> None:
    """Removes a checkpoint. Cut short, it leaves a folder with a dot, which the next run clears away."""
    if folder.exists():
        condemned = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(condemned, ignore_errors=True)
        os.replace(folder, condemned)
        shutil.rmtree(condemned)


class Run:
    """Where a run stands, and what it writes into its folder.

    Attributes:
        epoch, batches_done, step: the epoch under way, how many of its batches are done, optimizer steps so far.
        validates: the step is made, its validation is not.
        best: {"g_miou", "epoch", "step"} of the best validation, None before the first.

    Args:
        identity: what makes the run this run: `settings`, `model`, `data`; and what is only noted beside it.
        keep: how many checkpoints stay, the newest; 0: all.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: Path,
        identity: dict,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        keep: int,
    ):
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.identity = identity
        self.scheduler = scheduler
        self.keep = keep
        self.epoch, self.batches_done, self.step, self.best, self.validates = 0, 0, 0, None, False
        self.saved = None  # where the run stood at the last checkpoint

    def start(self) -> None:
        """Clears the folder of another run, if `check_output_dir` let that pass; its log goes last (see there)."""
        if self.accelerator.is_main_process:
            for checkpoint in complete_checkpoints(self.output_dir / "checkpoints"):
                remove(checkpoint)
            for path in (self.output_dir / name for name in OWN_FILES):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            (self.output_dir / LOG).touch()
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Turns what a full disk or a file-size limit raises into one OSError that says how to go on."""
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
        """Goes on exactly where `checkpoint` was written: weights, optimizer, schedule, random numbers, log.

        Args:
            saved: what `read_checkpoint` says of it.

        Raises:
            ValueError: the checkpoint is another run's, or damaged; the message names the setting or the file.
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
            # What the run wrote after the checkpoint will be written again.
            log = checkpoint.parent.parent / LOG
            text = log.read_bytes()[: saved["log_bytes"]] if log.is_file() else b""
            for unfinished in (self.output_dir / "checkpoints").glob(".*/"):
                shutil.rmtree(unfinished)
            self._remove_old_checkpoints()
            write_whole(self.output_dir / LOG, text)
        self.accelerator.wait_for_everyone()
        say(self.accelerator, f"Resuming from {checkpoint}: epoch {self.epoch}, step {self.step}.")

    def log(self, values: dict) -> None:
        """A line of train_log.jsonl, and the trackers."""
        if self.accelerator.is_main_process:
            log = self.output_dir / LOG
            with self.writing(log), open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, "epoch": self.epoch} | values) + "\n")
        self.accelerator.log(values.get("validation", values), step=self.step)

    def save_checkpoint(self, name: str) -> None:
        """checkpoints/NAME: it gets its name when it is complete, and then old ones go.

        trainer_state.json in it holds the position, and size and SHA-256 of each file.

        Raises:
            OSError: it could not be written; the earlier ones stay.
        """
        folder = self.output_dir / "checkpoints" / name
        partial = folder.with_name(f".{name}")
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
                shutil.rmtree(partial, ignore_errors=True)  # what is half written takes the space of the next try
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
        # The schedule as JSON: accelerate would pickle it, and what is unpickled may run code.
        rest = {"log_bytes": (self.output_dir / LOG).stat().st_size, "scheduler": self.scheduler.state_dict()}
        write_json(partial / STATE, self.identity | position | rest | {"files": contents})
        sync_to_disk(partial)
        replaced = folder.with_name(f".{folder.name}{REPLACED}")
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(partial, folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def save_model(self, model: torch.nn.Module, processor: AVSegFormerProcessor, folder: Path) -> None:
        """A `from_pretrained` folder with trainer_state.json; each file appears whole, the weights last. A collective
        call: the processes may share out the weights.

        Raises:
            OSError: it could not be written; what was there stays.
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


def check_output_dir(output_dir: Path, overwrite: bool, restart: bool) -> None:
    """Raises ValueError if a new run would replace what is in the folder.

    Args:
        restart: a run that ended before its first checkpoint may be replaced: one with a log of at most one
            validation, and neither checkpoints, however damaged, nor a last model.
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


def build_scheduler(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if args.warmup_steps and args.warmup_steps > total_steps - 2:
        raise ValueError(
            f"Expected --warmup_steps to leave steps to train, got {args.warmup_steps} of {total_steps} steps."
        )
    if args.lr_scheduler == "onecycle":
        # torch counts from the first step, which is not one of the warm-up: the maximum is reached after this many.
        warmup = (args.warmup_steps + 1) / total_steps if args.warmup_steps else 0.3
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, args.learning_rate, total_steps=total_steps, pct_start=warmup
        )
    name = "constant_with_warmup" if args.lr_scheduler == "constant" else args.lr_scheduler
    return get_scheduler(name, optimizer, num_warmup_steps=args.warmup_steps, num_training_steps=total_steps)


def sync_buffers(model: torch.nn.Module) -> None:
    """The main process's running statistics everywhere: processes that validate must agree on the model."""
    for buffer in model.buffers():
        buffer.copy_(broadcast(buffer.clone()))


def train_batch(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict,
    max_grad_norm: float,
    step: int,
) -> dict[str, torch.Tensor]:
    """Learns from one batch of `Collator`'s; the losses of it, and how many of its items were negative.

    Raises:
        FloatingPointError: the loss is not finite in some process; the message names the clips.
    """
    clips = batch.pop("clips")
    # Masks of the whole step's batch, so that the processes' mean is the loss that one process would have.
    num_masks = (batch["labels"].flatten(2).sum(2) > 0).sum().float()
    num_masks = accelerator.reduce(num_masks, reduction="sum").clamp(min=1) / accelerator.num_processes
    with accelerator.accumulate(model):
        # Frames without a mask meet the backbone and the similarity head only: S4 has one mask for five frames.
        with accelerator.autocast():  # which accelerate sees to by itself, but for FSDP
            output = model(**batch, num_masks=num_masks, frames_to_segment=batch["labels"].shape[1])
        check_loss(accelerator, output.loss, clips, step)
        accelerator.backward(output.loss)
        if accelerator.sync_gradients and max_grad_norm:
            accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    parts = {"loss": output.loss} | {f"loss_{name}": value for name, value in output.loss_dict.items()}
    parts["negatives"] = (batch["audio_labels"] == 0).sum()
    return {name: value.detach().float() for name, value in parts.items()}


def check_loss(accelerator: Accelerator, loss: torch.Tensor, clips: Sequence[str], step: int) -> None:
    """Raises FloatingPointError in all processes if the loss is not finite in one: none is left waiting for it."""
    is_finite = torch.isfinite(loss.detach())
    if accelerator.reduce(is_finite.float(), reduction="sum") == accelerator.num_processes:
        return
    found = gather_object([] if is_finite else [(loss.item(), list(clips))])
    losses = ", ".join(str(value) for value, _ in found)
    names = ", ".join(itertools.chain.from_iterable(names for _, names in found))
    raise FloatingPointError(
        f"The loss is {losses} in step {step + 1}, in the clips {names}. Lower --learning_rate or set "
        "--max_grad_norm, and look at these clips."
    )


def check_finite(accelerator: Accelerator, network: torch.nn.Module, clips: Sequence[str], step: int) -> None:
    """Raises FloatingPointError in all processes if the weights are not finite: the loss would tell a step later."""
    tensors = [*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())]
    tensors = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]  # of weights that are shared out, ours
    is_finite = torch.stack([tensor.detach().isfinite().all() for tensor in tensors]).all()
    if accelerator.reduce(is_finite.float(), reduction="sum") < accelerator.num_processes:
        raise FloatingPointError(
            f"The weights are not finite after step {step}, on the clips {', '.join(gather_object(list(clips)))}. "
            "Lower --learning_rate or set --max_grad_norm, and look at these clips."
        )


def reduced(accelerator: Accelerator, parts: dict[str, torch.Tensor], micro_batches: int) -> dict[str, float]:
    """A step's losses, means over its micro-batches and the processes, and the sum of its negative items."""
    totals = accelerator.reduce(torch.stack(list(parts.values())), reduction="sum").tolist()
    counts = [1 if name == "negatives" else micro_batches * accelerator.num_processes for name in parts]
    values = {name: total / count for name, total, count in zip(parts, totals, counts, strict=True)}
    return values | {"negatives": int(values["negatives"])}


def configure_deepspeed(config: dict, args: argparse.Namespace, mixed_precision: str) -> None:
    """Gives DeepSpeed the run's own settings, and to what it cannot do, a ValueError.

    Else accelerate clips gradients at 1, accumulates as its configuration says, whatever the arguments are, and makes
    16-bit numbers of all weights and BatchNorm's statistics.
    """
    stage = config["zero_optimization"]["stage"]
    if stage == 3:
        raise ValueError(
            "Expected ZeRO stage 0, 1 or 2 in DeepSpeed's configuration, got 3, with which no model could be saved. "
            "Where the weights must be shared out, use configs/accelerate/fsdp.yaml."
        )
    if mixed_precision == "fp16":
        raise ValueError("Expected --mixed_precision bf16 or no with DeepSpeed, got fp16.")
    config["gradient_clipping"] = args.max_grad_norm
    config["gradient_accumulation_steps"] = args.gradient_accumulation_steps
    if mixed_precision == "bf16":
        config["bf16"] = {"enabled": False}
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}


def build_clips(
    args: argparse.Namespace,
    splits: dict[str, Dataset],
    processor: AVSegFormerProcessor,
    network: AVSegFormerForSegmentation,
    device: torch.device,
    progress: bool,
) -> tuple[TrainingClips, Collator]:
    """The training items. While the audio encoder is frozen, each sound is encoded once for the whole run."""
    frozen = network.config.freeze_audio_encoder
    by_condition = processor.feature_extractor.front_end == "released"
    sounds = encode_sounds(processor, splits, network.get_audio_embeddings if frozen else None, device, progress)
    clips = TrainingClips(
        splits["positive"],
        {condition: sound_keys(condition, split, by_condition) for condition, split in splits.items()},
        sounds,
        args.negative_ratio,
        args.negative_conditions,
        args.seed,
        args.frames_per_clip,
        args.augment,
        args.cache_frames_gb * 2**30,
    )
    return clips, Collator(processor, "audio_embeddings" if frozen else "input_features")


def training_function(args: argparse.Namespace, folder: contextlib.ExitStack, termination: Termination) -> None:
    """
    Args:
        folder: will hold `--output_dir` for this run alone.
    """
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to if args.with_tracking else None,
        project_dir=args.output_dir,
        # The backbone gets no gradient while it is frozen and does so later; the wrapper must know of both.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=args.freeze_backbone_epochs > 0)],
    )
    if accelerator.distributed_type == DistributedType.FSDP and args.validation_every:
        raise ValueError(
            "Expected --validation_every 0 with FSDP: validation gives each process other numbers of batches, which "
            "shared-out weights do not allow. Evaluate the trained model with evaluate_accelerate.py."
        )
    mixed_precision = accelerator.mixed_precision
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        configure_deepspeed(accelerator.state.deepspeed_plugin.deepspeed_config, args, mixed_precision)
    if accelerator.distributed_type == DistributedType.FSDP:
        # Autocast alone, as elsewhere: BatchNorm takes no 16-bit weights with its statistics in 32 bits.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    show = accelerator.is_main_process
    if show:
        folder.enter_context(only_run_in(output_dir))
        put_back_checkpoints(output_dir / "checkpoints")
    accelerator.wait_for_everyone()
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
    if checkpoint is not None:
        saved = read_checkpoint(checkpoint)
        torch.set_num_threads(saved["num_threads"])  # their number changes the last bits of sums
    if checkpoint is not None and checkpoint.resolve().parent.parent == output_dir.resolve():
        check_newest(checkpoint)
    else:
        check_output_dir(output_dir, args.overwrite_output_dir, restart=args.resume_from_checkpoint == "auto")
    publishes = args.push_to_hub and accelerator.is_main_process
    if publishes:  # hours before it is needed
        hub_model_id = check_hub_access(args.hub_model_id or output_dir.resolve().name, args.hub_token)

    # Data
    conditions = ["positive", *args.negative_conditions]
    alone = accelerator.num_processes == 1  # others would wait for one that stops by itself
    with termination.cuts_short(alone), accelerator.main_process_first():  # one process builds, others read its cache
        training, validation = load_splits(
            args.subset,
            args.data_dir,
            args.data_seed,
            ["train", "validation"],
            conditions,
            args.num_workers or None,
        )
    data = digest(training | {f"validation_{condition}": split for condition, split in validation.items()})
    if not args.negative_ratio:
        training = {"positive": training["positive"]}
    kept = spread(len(validation["positive"]), args.validation_clips)
    validation = {condition: split.select(kept) for condition, split in validation.items()}

    # Model. The seed comes first, so that it also decides the new weights.
    set_seed(args.seed)
    with accelerator.main_process_first():
        network, processor = build_model(args, load_weights=checkpoint is None)
    # Weights read from a file lie in its memory map, at any alignment; sums over them could differ in the last bit.
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    network.to(accelerator.device).eval()
    with termination.cuts_short(alone):
        clips, collator = build_clips(args, training, processor, network, accelerator.device, show)
    loader = DataLoader(
        clips,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        collate_fn=collator,
        worker_init_fn=leave_sigterm_to_parent,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # else the start of an epoch draws from the generator that dropout uses
    )
    validation_sounds = None
    if network.config.freeze_audio_encoder:
        with termination.cuts_short(alone):
            validation_sounds = encode_sounds(
                processor, validation, network.get_audio_embeddings, accelerator.device, show
            )

    # Optimizer: one group, the backbone in it also while it is frozen.
    optimizer = torch.optim.AdamW(
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        lr=args.learning_rate,
        weight_decay=args.weight_decay,
        fused=accelerator.device.type in ("cpu", "cuda"),
    )
    model, prepared_optimizer, loader = accelerator.prepare(network, optimizer, loader)
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    total_steps = args.max_steps or args.epochs * steps_per_epoch
    # Not prepared: accelerate would step it once per process. DeepSpeed's optimizer is none for torch's schedules.
    scheduler = build_scheduler(args, optimizer, total_steps)

    # Resume
    settings = {name: getattr(args, name) for name in FIXED_SETTINGS}
    settings["image_size"] = dict(processor.image_processor.size)
    settings |= {"num_processes": accelerator.num_processes, "mixed_precision": mixed_precision}
    if args.lr_scheduler != "constant":
        settings["total_steps"] = total_steps  # only a run of constant rate may be extended
    identity = {"settings": settings, "model": model_settings(network.config), "data": data}
    identity |= {"total_steps": total_steps, "num_threads": torch.get_num_threads(), "versions": library_versions()}
    identity |= {"git_revision": git_revision(), "command": args.command}
    run = Run(accelerator, output_dir, identity, scheduler, args.keep_checkpoints)
    set_seed(args.seed, device_specific=True)  # every process its own dropout
    if checkpoint is None:
        run.start()
    else:
        # As at the last step before it: FSDP insists on the optimizer's state of each weight that learns.
        network.freeze_backbone(saved["epoch"] - (not saved["batches_done"]) < args.freeze_backbone_epochs)
        run.resume(checkpoint, saved)
    if args.with_tracking:
        tracked = {name: str(value) for name, value in vars(args).items() if name != "hub_token"}
        accelerator.init_trackers("avsbench_robust", tracked)
    say(accelerator, f"run {json.dumps(identity)}")
    say(
        accelerator,
        f"{len(clips.clip_ids)} clips and {len(clips) - len(clips.clip_ids)} negative items an epoch, "
        f"{total_steps} steps on {accelerator.device} in {accelerator.num_processes} process(es)",
    )
    if "noise" in args.negative_conditions:
        say(accelerator, "Noise is trained on: it is not a held-out condition of this run.")

    def validate() -> None:
        sync_buffers(network)
        with termination.cuts_short(alone):
            scores = evaluate_model(
                network, processor, validation, accelerator, args.batch_size, args.num_workers, validation_sounds
            )
        run.log({"validation": scores})
        say(accelerator, f"validation after step {run.step}\n{format_scores(scores, conditions)}")
        if run.best is None or scores["g_miou"] > run.best["g_miou"]:
            run.best = {"g_miou": scores["g_miou"], "epoch": run.epoch, "step": run.step}
            run.save_model(model, processor, output_dir)

    def save(name: str) -> None:
        check_finite(accelerator, network, seen, run.step)
        run.save_checkpoint(name)

    def end_step() -> None:
        """What follows a step: validation, then the checkpoint, so that a resumed run need not validate again."""
        finished = run.step == total_steps
        epoch_finished = run.batches_done == len(loader)
        due = epoch_finished and args.validation_every and (run.epoch + 1) % args.validation_every == 0
        if due or (finished and args.validation_every):
            check_finite(accelerator, network, seen, run.step)
            run.validates = True
            validate()
            run.validates = False
        if epoch_finished:
            run.epoch, run.batches_done = run.epoch + 1, 0
        if args.checkpointing_steps == "epoch" and epoch_finished:
            save(f"epoch_{run.epoch}")
        elif finished or (args.checkpointing_steps != "epoch" and run.step % args.checkpointing_steps == 0):
            save(f"step_{run.step}")

    def train() -> None:
        """Trains to the last step.

        Raises:
            Terminated: SIGTERM came; `run` stands where a checkpoint may be written.
        """
        if run.validates:  # SIGTERM came while it did
            end_step()
        while run.step < total_steps:
            network.freeze_backbone(run.epoch < args.freeze_backbone_epochs)
            model.train()
            loader.set_epoch(run.epoch)
            batches = loader
            if run.batches_done:
                batches = accelerator.skip_first_batches(loader, run.batches_done)
            parts: dict[str, torch.Tensor] = {}
            micro_batches = 0
            for batch in batches:
                seen[:] = batch["clips"]
                losses = train_batch(accelerator, model, prepared_optimizer, batch, args.max_grad_norm, run.step)
                parts = {name: parts.get(name, 0) + value for name, value in losses.items()}
                run.batches_done += 1
                micro_batches += 1
                if not accelerator.sync_gradients:
                    continue
                learning_rate = scheduler.get_last_lr()[0]  # of the step that was made
                if not accelerator.optimizer_step_was_skipped:
                    scheduler.step()
                run.step += 1
                bar.update()
                if run.step % args.logging_steps == 0 or run.step == total_steps:
                    run.log(reduced(accelerator, parts, micro_batches) | {"lr": learning_rate})
                parts, micro_batches = {}, 0
                end_step()
                if run.step < total_steps and termination.agreed(accelerator):
                    raise Terminated
                if run.step == total_steps:
                    break

    # Epochs
    seen: list[str] = []  # the clips of the last batch
    bar = progress_bar(total=total_steps, initial=run.step, desc="train", show=show)
    try:
        train()
    except Terminated:
        if run.saved != (run.step, run.validates):
            save(f"step_{run.step}")
        say(accelerator, f"Stopped by SIGTERM after step {run.step}. {run.how_to_go_on()}")
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return
    except FloatingPointError as error:
        error.add_note(run.how_to_go_on())
        raise
    finally:
        bar.close()

    # Save
    run.save_model(model, processor, output_dir / "last")
    if run.best is None:
        run.save_model(model, processor, output_dir)
    best = f"best G-mIoU {run.best['g_miou']:.4f} after step {run.best['step']}" if run.best else "not validated"
    say(
        accelerator,
        f"model: {output_dir} ({best}); after the last step: {output_dir / 'last'}; log: {output_dir / LOG}",
    )
    accelerator.wait_for_everyone()  # without it, processes have been seen to abort at shutdown
    accelerator.end_training()
    if publishes:  # alone: an upload may last longer than other processes would wait
        publish(output_dir, hub_model_id, args)


def command_line(argv: Sequence[str], secret: str | None) -> str:
    """The command for a model card: without the token, and without where the folders of this machine are."""
    words = []
    for word in argv:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if secret:
            value = value.replace(secret, "HF_TOKEN")
        words.append(option + equals + (Path(value).name if Path(value).is_absolute() else value))
    return shlex.join(["train_accelerate.py", *words])


def negative_conditions(texts: Sequence[str]) -> dict[str, float]:
    """{"silence": 1.0, …} from ["silence=1", "off_screen", …], in the data set's order of conditions.

    Raises:
        ValueError: an unknown condition, one named twice, or a weight that is no positive number.
    """
    weights = {}
    for text in texts:
        name, _, weight = text.partition("=")
        if name not in NEGATIVE_CONDITIONS:
            raise ValueError(
                f"expected NAME or NAME=WEIGHT with NAME one of {', '.join(NEGATIVE_CONDITIONS)}, got {text!r}"
            )
        if name in weights:
            raise ValueError(f"expected each condition once, got {name!r} twice")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise ValueError(f"expected a positive number as the weight of {name}, got {weight!r}")
    return {name: weights[name] for name in NEGATIVE_CONDITIONS if name in weights}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = parser.add_argument_group("data")
    data.add_argument("--subset", required=True, choices=list(PRESETS))
    data.add_argument("--data_dir", help="the AVSBench download; default: $AVSBENCH_DIR, else ./data")
    data.add_argument("--data_seed", type=int, default=42, help="of the draw of negative sounds, as evaluate's --seed")
    data.add_argument("--num_workers", type=int, default=0, help="processes that read the data")
    data.add_argument("--cache_frames_gb", type=float, default=2, help="decode once if the frames take no more GiB")
    data.add_argument("--frames_per_clip", type=int, help="random frames of an item, masked ones first; default: all")
    data.add_argument("--augment", action="store_true", help="flip left to right at random; the original does not")
    data.add_argument("--negative_ratio", type=float, default=0.1, help="share of negative items; 0: the baseline")
    data.add_argument(
        "--negative_conditions",
        nargs="+",
        default=["silence=1", "off_screen=1"],
        metavar="NAME[=WEIGHT]",
        help="what negative items sound like; noise is held out unless named",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="from_pretrained folder or Hub id to start from; default: a new model")
    model.add_argument("--backbone", help="timm name, of a new model")
    model.add_argument("--pretrained_backbone", action="store_true", help="timm's ImageNet weights, if reachable")
    model.add_argument("--vggish_weights", help="file, folder or Hub id; default: random, or those of --model")
    model.add_argument("--image_size", type=int, help="pixels; default: by subset, or that of --model")
    model.add_argument("--loss_type", choices=LOSS_TYPES)
    for name in LOSS_SETTINGS[1:]:
        model.add_argument(f"--{name}", type=float, help="see AVSegFormerConfig")
    run = parser.add_argument_group("training (defaults by subset where none is given)")
    run.add_argument("--seed", type=int, default=42, help="of new weights, order, dropout")
    run.add_argument("--epochs", type=int)
    run.add_argument("--max_steps", type=int, help="optimizer steps, instead of --epochs")
    run.add_argument("--batch_size", type=int, help="clips per process and step")
    run.add_argument("--gradient_accumulation_steps", type=int, default=1)
    run.add_argument("--learning_rate", type=float)
    run.add_argument("--weight_decay", type=float, default=0.01)
    run.add_argument("--lr_scheduler", default="constant", choices=("constant", "linear", "cosine", "onecycle"))
    run.add_argument("--warmup_steps", type=int, default=0)
    run.add_argument("--max_grad_norm", type=float, default=0.0, help="0: no clipping")
    run.add_argument("--freeze_backbone_epochs", type=int, help="how many epochs the backbone is frozen at first")
    run.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: accelerate's own setting")
    run.add_argument("--cpu", action="store_true", help="stay on the CPU")
    run.add_argument("--validation_every", type=int, default=1, help="epochs; 0: never")
    run.add_argument("--validation_clips", type=int, help="validate on so many clips, evenly spaced; default: all")
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", required=True)
    out.add_argument("--overwrite_output_dir", action="store_true", help="replace the run that is there")
    out.add_argument("--checkpointing_steps", default="epoch", help="a number of steps, or 'epoch'")
    out.add_argument("--keep_checkpoints", type=int, default=2, help="the newest ones; 0: all")
    out.add_argument(
        "--resume_from_checkpoint",
        help="a checkpoint folder, 'latest' in --output_dir, or 'auto': the latest if there is one, else a new run",
    )
    out.add_argument("--logging_steps", type=int, default=10)
    out.add_argument("--with_tracking", action="store_true")
    out.add_argument("--report_to", default="all", help="a tracker that accelerate knows")
    add_hub_arguments(parser)
    args = parser.parse_args(argv)
    args.command = command_line(sys.argv[1:] if argv is None else argv, args.hub_token)

    if args.model is not None and (args.backbone is not None or args.pretrained_backbone):
        parser.error("--model brings its own backbone: leave --backbone and --pretrained_backbone out")
    preset = dataclasses.asdict(PRESETS[args.subset])
    if args.model is not None:
        preset |= {"backbone": None, "image_size": None}
    for name, value in preset.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    try:
        args.negative_conditions = negative_conditions(args.negative_conditions)
    except ValueError as error:
        parser.error(f"argument --negative_conditions: {error}")
    if not 0 <= args.negative_ratio < 1:
        parser.error(f"argument --negative_ratio: expected a number in [0, 1), got {args.negative_ratio}")
    if args.checkpointing_steps != "epoch":
        if not args.checkpointing_steps.isdecimal() or int(args.checkpointing_steps) < 1:
            parser.error(
                f"argument --checkpointing_steps: expected a number or 'epoch', got {args.checkpointing_steps!r}"
            )
        args.checkpointing_steps = int(args.checkpointing_steps)
    least = dict.fromkeys(
        (
            "epochs",
            "max_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "frames_per_clip",
            "validation_clips",
            "logging_steps",
            "image_size",
        ),
        1,
    ) | dict.fromkeys(
        (
            "seed",
            "data_seed",
            "num_workers",
            "warmup_steps",
            "max_grad_norm",
            "freeze_backbone_epochs",
            "validation_every",
            "keep_checkpoints",
            "learning_rate",
            "weight_decay",
        ),
        0,
    )
    for name, minimum in least.items():
        value = getattr(args, name)
        if value is not None and not minimum <= value < math.inf:
            parser.error(f"argument --{name}: expected at least {minimum}, got {value}")
    if args.resume_from_checkpoint is not None and args.overwrite_output_dir:
        parser.error("--resume_from_checkpoint continues a run, --overwrite_output_dir replaces it: give one of them")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    disable_progress_bar()  # transformers' own, which tears ours
    with contextlib.ExitStack() as folder, Termination() as termination:
        try:
            training_function(args, folder, termination)
        except Terminated:
            print("Stopped by SIGTERM before the first step: nothing is lost, repeat the command.", flush=True)


def cli() -> None:
    """`main` for the command line: what the user can mend is said in a line, with exit code 2, not in a traceback."""
    try:
        main()
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"avs-train: error: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    cli()
