"""accelerate as the trainer needs it: on one CPU or GPU, with DDP, FSDP or DeepSpeed."""

import argparse

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType


def build_accelerator(args: argparse.Namespace) -> Accelerator:
    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to if args.with_tracking else None,
        project_dir=args.output_dir,
        # The backbone gets no gradient while it is frozen and does so later; the wrapper must know of both.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=args.freeze_backbone_epochs > 0)],
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        configure_deepspeed(accelerator.state.deepspeed_plugin.deepspeed_config, args, accelerator.mixed_precision)
    if accelerator.distributed_type == DistributedType.FSDP:
        if args.validation_every:
            raise ValueError(
                "Expected --validation_every 0 with FSDP: validation gives each process other numbers of batches, "
                "which shared-out weights do not allow. Evaluate the trained model with evaluate_accelerate.py."
            )
        # Autocast alone, as elsewhere: BatchNorm takes no 16-bit weights with its statistics in 32 bits.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    return accelerator


def configure_deepspeed(config: dict, args: argparse.Namespace, mixed_precision: str) -> None:
    """Copies our settings into DeepSpeed's configuration; raises ValueError for unsupported ones.

    Without them accelerate clips gradients at 1, accumulates as its configuration says, whatever the arguments are,
    and makes 16-bit numbers of all weights and BatchNorm's statistics.
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
