"""Builds accelerate's `Accelerator` for the trainer: one CPU or GPU, DDP, FSDP or DeepSpeed."""

import argparse
import os

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, DistributedType

from avsbench_robust_dataset.processes import available_cpus

MOST_WORKERS = 8  # of a process on a GPU


def worker_count(wanted: int | None, accelerator: Accelerator) -> int:
    """The processes that read data for this process: those of --num_workers, else none on a CPU, which the model needs
    for itself, and on a GPU this process's share of the machine's processors, at most `MOST_WORKERS`."""
    if wanted is not None or accelerator.device.type == "cpu":
        return wanted or 0
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return min(MOST_WORKERS, available_cpus() // on_this_machine)


def build_accelerator(args: argparse.Namespace) -> Accelerator:
    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to if args.with_tracking else None,
        project_dir=args.output_dir,
        # Batches come from pinned memory on a GPU (training.py): the processor need not wait for their copies.
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        # A frozen backbone gets no gradient, which DDP must allow.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=args.freeze_backbone_epochs > 0)],
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        configure_deepspeed(accelerator.state.deepspeed_plugin.deepspeed_config, args, accelerator.mixed_precision)
    if accelerator.distributed_type == DistributedType.FSDP:
        if args.validation_every:
            raise ValueError(
                "Expected --validation_every 0 with FSDP: in a validation the processes have different numbers of "
                "batches, which sharded weights do not allow. Evaluate the trained model with evaluate_accelerate.py."
            )
        # Use autocast alone: BatchNorm cannot combine 16-bit weights with 32-bit statistics.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    return accelerator


def configure_deepspeed(config: dict, args: argparse.Namespace, mixed_precision: str) -> None:
    """Copies our settings into DeepSpeed's configuration; raises ValueError for unsupported ones.

    Otherwise accelerate would clip gradients at 1, take the number of accumulation steps from its configuration, and
    convert all weights and BatchNorm's statistics to 16 bits.
    """
    stage = config["zero_optimization"]["stage"]
    if stage == 3:
        raise ValueError(
            "Expected ZeRO stage 0, 1 or 2 in DeepSpeed's configuration, got 3, with which the model cannot be saved. "
            "To shard the weights, use configs/accelerate/fsdp.yaml."
        )
    if mixed_precision == "fp16":
        raise ValueError("Expected --mixed_precision bf16 or no with DeepSpeed, got fp16.")
    config["gradient_clipping"] = args.max_grad_norm
    config["gradient_accumulation_steps"] = args.gradient_accumulation_steps
    if mixed_precision == "bf16":
        config["bf16"] = {"enabled": False}
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
