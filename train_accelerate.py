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
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, set_seed
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar

from avs_engine import clips, scoring, step
from avs_engine.checkpoints import check_newest, find_checkpoint, put_back_checkpoints, read_checkpoint
from avs_engine.epochs import build_clips
from avs_engine.hub import publish
from avs_engine.models import build_model, model_settings
from avs_engine.provenance import clips_digest, git_revision, library_versions
from avs_engine.run import LOG, Run, check_output_dir, print_once
from avs_engine.signals import Terminated, Termination, leave_sigterm_to_parent
from avs_engine.sounds import encode_sounds
from avs_engine.training_arguments import parse_args
from avsbench_robust_dataset.files import only_run_in
from avsbench_robust_dataset.hub_access import check_hub_access
from avsbench_robust_dataset.progress import progress_bar

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
        step.configure_deepspeed(accelerator.state.deepspeed_plugin.deepspeed_config, args, mixed_precision)
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
        training, validation = clips.load_splits(
            args.subset,
            args.data_dir,
            args.data_seed,
            ["train", "validation"],
            conditions,
            args.num_workers or None,
        )
    data = clips_digest(training | {f"validation_{condition}": split for condition, split in validation.items()})
    if not args.negative_ratio:
        training = {"positive": training["positive"]}
    kept = clips.evenly_spaced(len(validation["positive"]), args.validation_clips)
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
        items, collator = build_clips(args, training, processor, network, accelerator.device, show)
    loader = DataLoader(
        items,
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
    scheduler = step.build_scheduler(args, optimizer, total_steps)

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
    print_once(accelerator, f"run {json.dumps(identity)}")
    print_once(
        accelerator,
        f"{len(items.clip_ids)} clips and {len(items) - len(items.clip_ids)} negative items an epoch, "
        f"{total_steps} steps on {accelerator.device} in {accelerator.num_processes} process(es)",
    )
    if "noise" in args.negative_conditions:
        print_once(accelerator, "Noise is trained on: it is not a held-out condition of this run.")

    def validate() -> None:
        step.sync_buffers(network)
        with termination.cuts_short(alone):
            scores = scoring.evaluate_model(
                network, processor, validation, accelerator, args.batch_size, args.num_workers, validation_sounds
            )
        run.log({"validation": scores})
        print_once(accelerator, f"validation after step {run.step}\n{scoring.format_scores(scores, conditions)}")
        if run.best is None or scores["g_miou"] > run.best["g_miou"]:
            run.best = {"g_miou": scores["g_miou"], "epoch": run.epoch, "step": run.step}
            run.save_model(model, processor, output_dir)

    def save(name: str) -> None:
        step.check_finite(accelerator, network, seen, run.step)
        run.save_checkpoint(name)

    def end_step() -> None:
        """What follows a step: validation, then the checkpoint, so that a resumed run need not validate again."""
        finished = run.step == total_steps
        epoch_finished = run.batches_done == len(loader)
        due = epoch_finished and args.validation_every and (run.epoch + 1) % args.validation_every == 0
        if due or (finished and args.validation_every):
            step.check_finite(accelerator, network, seen, run.step)
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
            losses: dict[str, torch.Tensor] = {}
            micro_batches = 0
            for batch in batches:
                seen[:] = batch["clips"]
                found = step.train_batch(accelerator, model, prepared_optimizer, batch, args.max_grad_norm, run.step)
                losses = {name: losses.get(name, 0) + value for name, value in found.items()}
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
                    run.log(step.mean_losses(accelerator, losses, micro_batches) | {"lr": learning_rate})
                losses, micro_batches = {}, 0
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
        print_once(accelerator, f"Stopped by SIGTERM after step {run.step}. {run.how_to_go_on()}")
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
    print_once(
        accelerator,
        f"model: {output_dir} ({best}); after the last step: {output_dir / 'last'}; log: {output_dir / LOG}",
    )
    accelerator.wait_for_everyone()  # without it, processes have been seen to abort at shutdown
    accelerator.end_training()
    if publishes:  # alone: an upload may last longer than other processes would wait
        publish(output_dir, hub_model_id, args)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv, __doc__.splitlines()[0])
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
