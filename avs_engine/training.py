"""A training run: builds the data and the model, trains with validations and checkpoints, saves the best model."""

import argparse
import contextlib
import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from avsbench_robust_dataset.conditions import CONDITIONS
from avsbench_robust_dataset.files import only_run_in
from avsbench_robust_dataset.hub_access import check_hub_access
from avsbench_robust_dataset.progress import progress_bar

from . import clips, scoring, step
from .accelerator import build_accelerator, worker_count
from .checkpoints import check_newest, find_checkpoint, read_checkpoint
from .clips import Splits
from .epochs import build_clips, collate
from .hub import publish
from .models import build_model, check_encoders
from .predict import AVSegFormerSegmenter
from .provenance import clips_digest
from .run import LOG, Run, check_output_dir, print_once, run_identity
from .signals import Terminated, Termination
from .sounds import Sounds


def find_start(args: argparse.Namespace) -> tuple[Path | None, dict]:
    """The checkpoint to resume from and the trainer's state in it; (None, {}) for a new run."""
    output_dir = Path(args.output_dir)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
    saved = {} if checkpoint is None else read_checkpoint(checkpoint)
    if saved:
        torch.set_num_threads(saved["num_threads"])  # the number changes the last bits of sums
    if checkpoint is not None and checkpoint.resolve().parent.parent == output_dir.resolve():
        check_newest(checkpoint)
    else:
        check_output_dir(output_dir, args.overwrite_output_dir, restart=args.resume_from_checkpoint == "auto")
    return checkpoint, saved


def load_data(args: argparse.Namespace, accelerator: Accelerator) -> tuple[Splits, Splits, str]:
    """The clips to train on and to validate with, and a digest of the clips and their sounds."""
    # The benchmark's conditions alone: they are what the best model is chosen by.
    validated = [name for name in args.negative_conditions if name in CONDITIONS] or ["silence", "off_screen"]
    source, num_proc = (args.subset, args.data_dir, args.data_seed), args.num_workers or None
    with accelerator.main_process_first():  # one process builds, the others read its cache
        training = clips.load_splits(
            *source, "train", ["positive", *args.negative_conditions], num_proc, {"negative_dir": args.negative_dir}
        )
        validation = clips.load_splits(*source, "validation", ["positive", *validated], num_proc)
    digest = clips_digest(training | {f"validation_{condition}": split for condition, split in validation.items()})
    if not args.negative_ratio:
        training = {"positive": training["positive"]}
    kept = clips.evenly_spaced(len(validation["positive"]), args.validation_clips)
    return training, {condition: split.select(kept) for condition, split in validation.items()}, digest


class Training:
    """The model, the data and the progress of a run.

    Attributes:
        network, model: the model itself, and its wrapper for several processes.
        run: the progress, and the files that are written.
        last_clips: the clips of the last batch, for error messages.

    Args:
        saved: the state in the checkpoint whose weights are loaded later; empty for a new run.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, termination: Termination, saved: dict):
        self.args, self.accelerator, self.termination = args, accelerator, termination
        self.last_clips: Sequence[str] = ()
        alone = accelerator.num_processes == 1  # several processes would wait for one that stops
        with termination.cuts_short(alone):
            training, self.validation, digest = load_data(args, accelerator)
        set_seed(args.seed)  # before the model, so that it also decides the new weights
        sharded = accelerator.distributed_type == DistributedType.FSDP
        with accelerator.main_process_first():
            network, processor, weights = build_model(args, load_weights=not saved or sharded)
        # Weights read from a file lie in its memory map with any alignment, which could change the last bit of sums.
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.clone()
        network.to(accelerator.device).eval()
        # While the audio encoder is frozen, each sound passes it once in the whole run.
        encoder = network.get_audio_embeddings if network.config.freeze_audio_encoder else None
        self.sounds, validation_sounds = (
            Sounds(processor, splits, encoder, accelerator.device) for splits in (training, self.validation)
        )
        with termination.cuts_short(alone):
            self.items = build_clips(args, training, self.sounds.keys)
            if sharded and encoder:  # later no process has the whole encoder
                self.sounds.prepare(progress=accelerator.is_main_process)
        # The optimizer's only group contains the backbone even while it is frozen.
        optimizer = torch.optim.AdamW(
            [parameter for parameter in network.parameters() if parameter.requires_grad],
            lr=args.learning_rate,
            weight_decay=args.weight_decay,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        loader = clips.data_loader(
            self.items,
            args.num_workers,
            batch_size=args.batch_size,
            collate_fn=partial(collate, processor),
            pin_memory=accelerator.device.type == "cuda",
        )
        self.network, self.processor = network, processor
        self.model, self.optimizer, self.loader = accelerator.prepare(network, optimizer, loader)
        steps = math.ceil(len(self.loader) / args.gradient_accumulation_steps)  # of an epoch
        self.total_steps = args.max_steps or args.epochs * steps
        # Not prepared: accelerate would step it once per process, and torch's schedules reject DeepSpeed's optimizer.
        self.scheduler = step.build_scheduler(args, optimizer, self.total_steps)
        self.segmenter = AVSegFormerSegmenter(
            network, processor, args.batch_size, validation_sounds if encoder else None
        )
        if saved:
            weights = saved.get("weights")  # those at the start of the run
        identity = run_identity(args, accelerator, network, processor, digest, weights, self.total_steps)
        self.run = Run(accelerator, Path(args.output_dir), identity, self.scheduler, args.keep_checkpoints)

    def start(self, checkpoint: Path | None, saved: dict) -> None:
        """Starts a new run or restores the checkpoint, and prints the run's settings."""
        args, accelerator, run = self.args, self.accelerator, self.run
        set_seed(args.seed, device_specific=True)  # each process has a different dropout
        if checkpoint is None:
            run.start()
        else:
            # As at the last step before it: FSDP expects an optimizer state for each weight that is trained.
            self.network.freeze_backbone(saved["epoch"] - (not saved["batches_done"]) < args.freeze_backbone_epochs)
            run.resume(checkpoint, saved)
        if args.with_tracking:
            tracked = {name: str(value) for name, value in vars(args).items() if name != "hub_token"}
            accelerator.init_trackers("avsbench_robust", tracked)
        print_once(accelerator, f"run {json.dumps(run.identity)}")
        positives = len(self.items.clip_ids)
        print_once(
            accelerator,
            f"{positives} clips and {len(self.items) - positives} negative items an epoch, "
            f"{self.total_steps} steps on {accelerator.device} in {accelerator.num_processes} process(es)",
        )
        if "noise" in args.negative_conditions:
            print_once(accelerator, "Noise is trained on: it is not a held-out condition of this run.")

    def train(self, bar: tqdm) -> None:
        """Trains to the last step, or until SIGTERM: then raises `Terminated` where a checkpoint can be written."""
        args, accelerator, run = self.args, self.accelerator, self.run
        if run.validates:  # SIGTERM interrupted the validation
            self.end_step()
        while run.step < self.total_steps:
            self.network.freeze_backbone(run.epoch < args.freeze_backbone_epochs)
            self.model.train()
            losses: list[dict[str, torch.Tensor]] = []  # one entry per micro-batch of a step
            for batch in self.batches_left():
                self.last_clips = list(batch["clips"])
                losses.append(
                    step.train_batch(accelerator, self.model, self.optimizer, batch, args.max_grad_norm, run.step)
                )
                run.batches_done += 1
                if not accelerator.sync_gradients:
                    continue
                learning_rate = self.scheduler.get_last_lr()[0]  # that of the finished step
                if not accelerator.optimizer_step_was_skipped:
                    self.scheduler.step()
                run.step += 1
                bar.update()
                if run.step % args.logging_steps == 0 or run.step == self.total_steps:
                    run.log(step.mean_losses(accelerator, losses) | {"lr": learning_rate})
                losses = []
                self.end_step()
                if run.step == self.total_steps:
                    break
                if self.termination.agreed(accelerator):
                    raise Terminated

    def batches_left(self) -> Iterable[dict]:
        """The remaining batches of the current epoch, with the features of their sounds."""
        argument = "audio_embeddings" if self.network.config.freeze_audio_encoder else "input_features"
        self.loader.set_epoch(self.run.epoch)
        done = self.run.batches_done
        for batch in self.accelerator.skip_first_batches(self.loader, done) if done else self.loader:
            batch[argument] = self.sounds.stacked(batch.pop("sounds"))
            yield batch

    def end_step(self) -> None:
        """Validates, then saves a checkpoint, if they are due; a resumed run need not repeat the validation."""
        args, run = self.args, self.run
        finished = run.step == self.total_steps
        epoch_finished = run.batches_done == len(self.loader)
        due = epoch_finished and args.validation_every and (run.epoch + 1) % args.validation_every == 0
        if due or (finished and args.validation_every):
            step.check_finite(self.accelerator, self.network, self.last_clips, run.step)
            run.validates = True
            self.validate()
            run.validates = False
        if epoch_finished:
            run.epoch, run.batches_done = run.epoch + 1, 0
        if args.checkpointing_steps == "epoch" and epoch_finished:
            self.save(f"epoch_{run.epoch}")
        elif finished or (args.checkpointing_steps != "epoch" and run.step % args.checkpointing_steps == 0):
            self.save(f"step_{run.step}")

    def validate(self) -> None:
        """Scores the model and saves it if it is the best so far."""
        accelerator, run = self.accelerator, self.run
        step.sync_buffers(self.network)
        self.network.eval()
        with self.termination.cuts_short(accelerator.num_processes == 1):
            scores = scoring.evaluate_model(self.segmenter, self.validation, accelerator, self.args.num_workers)
        run.log({"validation": scores})
        table = scoring.format_scores(scores, list(self.validation))
        print_once(accelerator, f"validation after step {run.step}\n{table}")
        if run.best is None or scores["g_miou"] > run.best["g_miou"]:
            run.best = {"g_miou": scores["g_miou"], "epoch": run.epoch, "step": run.step}
            run.save_model(self.model, self.processor, run.output_dir)

    def save(self, name: str) -> None:
        step.check_finite(self.accelerator, self.network, self.last_clips, self.run.step)
        self.run.save_checkpoint(name)

    def finish(self) -> None:
        """Saves the model of the last step, also as the best model if there was no validation."""
        run = self.run
        run.save_model(self.model, self.processor, run.output_dir / "last")
        if run.best is None:
            run.save_model(self.model, self.processor, run.output_dir)
        best = f"best G-mIoU {run.best['g_miou']:.4f} after step {run.best['step']}" if run.best else "not validated"
        print_once(
            self.accelerator,
            f"model: {run.output_dir} ({best}); after the last step: {run.output_dir / 'last'}; "
            f"log: {run.output_dir / LOG}",
        )


def _run(args: argparse.Namespace, accelerator: Accelerator, termination: Termination) -> None:
    output_dir = Path(args.output_dir)
    args.num_workers = worker_count(args.num_workers, accelerator)
    accelerator.wait_for_everyone()
    checkpoint, saved = find_start(args)
    if checkpoint is None:
        check_encoders(args)
    publishes = args.push_to_hub and accelerator.is_main_process
    if publishes:  # checked now, because the training may take hours
        hub_model_id = check_hub_access(args.hub_model_id or output_dir.resolve().name, args.hub_token)
    training = Training(args, accelerator, termination, saved)
    run = training.run
    training.start(checkpoint, saved)
    bar = progress_bar(total=training.total_steps, initial=run.step, desc="train", show=accelerator.is_main_process)
    try:
        training.train(bar)
    except Terminated:
        if run.saved != (run.step, run.validates):
            training.save(f"step_{run.step}")
        print_once(accelerator, f"Stopped by SIGTERM after step {run.step}. {run.how_to_go_on()}")
        publishes = False
    except FloatingPointError as error:
        error.add_note(run.how_to_go_on())
        raise
    else:
        training.finish()
    finally:
        bar.close()
    accelerator.wait_for_everyone()  # without it, processes have been seen to abort at shutdown
    accelerator.end_training()
    if publishes:  # after the other processes have ended, which would not wait for a long upload
        publish(output_dir, hub_model_id, args)


def run_training(args: argparse.Namespace) -> None:
    """Runs the training that `args` describe, from start to end."""
    disable_progress_bar()  # that of transformers, which would break ours
    with Termination() as termination:
        try:
            accelerator = build_accelerator(args)
            with only_run_in(args.output_dir) if accelerator.is_main_process else contextlib.nullcontext():
                _run(args, accelerator, termination)
        except Terminated:
            print("Stopped by SIGTERM before the first step: nothing is lost. Repeat the command.", flush=True)
