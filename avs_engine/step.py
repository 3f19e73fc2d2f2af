"""One training step, its learning-rate schedule, and checks for finite losses and weights."""

import argparse
import itertools
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from transformers import get_scheduler


def train_batch(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict,
    max_grad_norm: float,
    step: int,
) -> dict[str, torch.Tensor]:
    """Trains on one batch of `collate`; returns its losses and the number of its negative items.

    Raises:
        FloatingPointError: the loss is not finite in some process; the message names the clips.
    """
    clips = batch.pop("clips")
    # Count the masks of all processes, so that the mean of their losses is the loss that one process would have.
    num_masks = (batch["labels"].flatten(2).sum(2) > 0).sum().float()
    num_masks = accelerator.reduce(num_masks, reduction="sum").clamp(min=1) / accelerator.num_processes
    with accelerator.accumulate(model):
        # Frames without a mask pass the backbone and the similarity head only: S4 has one mask for five frames.
        with accelerator.autocast():  # accelerate does this by itself, except with FSDP
            output = model(**batch, num_masks=num_masks, frames_to_segment=batch["labels"].shape[1])
        # The answer is copied to the host while the GPU goes on; what follows is queued before the backward pass ends.
        finite = accelerator.reduce(output.loss.detach().isfinite().float(), reduction="sum")
        finite_on_host = finite.to("cpu", non_blocking=True)
        copied = torch.cuda.current_stream().record_event() if finite.is_cuda else None
        accelerator.backward(output.loss)
        if copied is not None:
            copied.synchronize()
        if finite_on_host < accelerator.num_processes:
            raise _not_finite(output.loss, clips, step)
        if accelerator.sync_gradients and max_grad_norm:
            accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    losses = {"loss": output.loss} | {f"loss_{name}": value for name, value in output.loss_dict.items()}
    losses["negatives"] = (batch["audio_labels"] == 0).sum()
    return {name: value.detach().float() for name, value in losses.items()}


def _not_finite(loss: torch.Tensor, clips: Sequence[str], step: int) -> FloatingPointError:
    """The error of all processes if the loss is not finite in one, so that none waits for it."""
    found = gather_object([] if loss.isfinite() else [(loss.item(), list(clips))])
    values = ", ".join(str(value) for value, _ in found)
    names = ", ".join(itertools.chain.from_iterable(names for _, names in found))
    return FloatingPointError(
        f"The loss is {values} in step {step + 1}, in the clips {names}. Lower --learning_rate or set "
        "--max_grad_norm, and look at these clips."
    )


def check_finite(accelerator: Accelerator, network: torch.nn.Module, clips: Sequence[str], step: int) -> None:
    """Raises FloatingPointError in all processes if a weight is not finite; the loss would show it a step later."""
    tensors = [*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())]
    tensors = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]  # our part of sharded weights
    is_finite = torch.stack([tensor.detach().isfinite().all() for tensor in tensors]).all()
    if accelerator.reduce(is_finite.float(), reduction="sum") < accelerator.num_processes:
        raise FloatingPointError(
            f"The weights are not finite after step {step}, on the clips {', '.join(gather_object(list(clips)))}. "
            "Lower --learning_rate or set --max_grad_norm, and look at these clips."
        )


def mean_losses(accelerator: Accelerator, losses: Sequence[dict[str, torch.Tensor]]) -> dict[str, float]:
    """A step's losses, averaged over its micro-batches and the processes, and the sum of its negative items."""
    names = list(losses[0])
    sums = torch.stack([torch.as_tensor(sum(of_batch[name] for of_batch in losses)) for name in names])
    totals = accelerator.reduce(sums, reduction="sum").tolist()
    counts = [1 if name == "negatives" else len(losses) * accelerator.num_processes for name in names]
    values = {name: total / count for name, total, count in zip(names, totals, counts, strict=True)}
    return values | {"negatives": int(values["negatives"])}


def sync_buffers(model: torch.nn.Module) -> None:
    """Copies the main process's running statistics to all processes, so that they validate the same model."""
    for buffer in model.buffers():
        buffer.copy_(broadcast(buffer.clone()))


def build_scheduler(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if args.warmup_steps and args.warmup_steps > total_steps - 2:
        raise ValueError(
            f"Expected --warmup_steps to leave steps to train, got {args.warmup_steps} of {total_steps} steps."
        )
    if args.lr_scheduler == "onecycle":
        # torch counts from the first step, which is not part of the warm-up, so it needs one step more.
        warmup = (args.warmup_steps + 1) / total_steps if args.warmup_steps else 0.3
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, args.learning_rate, total_steps=total_steps, pct_start=warmup
        )
    name = "constant_with_warmup" if args.lr_scheduler == "constant" else args.lr_scheduler
    return get_scheduler(name, optimizer, num_warmup_steps=args.warmup_steps, num_training_steps=total_steps)
