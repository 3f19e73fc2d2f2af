"""A step of the trainer does less work than a plain one, with the same loss and the same gradients."""

import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from avs_engine.accelerator import worker_count
from avs_engine.step import build_scheduler, mean_losses, train_batch
from modeling_avsegformer import AVSegFormerForSegmentation

CLIPS, FRAMES, SIZE = 3, 4, 64


@pytest.fixture
def model(write_model):
    """With batch norm, whose statistics are of all frames; without dropout, which is drawn anew in each pass."""
    return AVSegFormerForSegmentation.from_pretrained(write_model(dropout=0.0)).train()


@pytest.fixture
def batch():
    """Three clips of four frames; the second clip's sound is not its own, so that its masks are empty."""
    draw = torch.Generator().manual_seed(1)
    labels = (torch.rand(CLIPS, FRAMES, SIZE, SIZE, generator=draw) > 0.7).long()
    labels[1] = 0
    return {
        "pixel_values": torch.randn(CLIPS, FRAMES, 3, SIZE, SIZE, generator=draw),
        "audio_embeddings": torch.rand(CLIPS, FRAMES, 128, generator=draw),
        "labels": labels,
        "audio_labels": torch.tensor([1.0, 0.0, 1.0]),
    }


def gradients(model, **batch):
    """(the loss and its parts, name -> gradient)"""
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    losses = torch.stack([output.loss, *output.loss_dict.values()]).detach()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(ours, theirs) -> None:
    torch.testing.assert_close(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    # Float noise, as a share of all gradients: those before a batch norm are nothing but noise.
    largest = max(gradient.abs().max() for gradient in theirs[1].values())
    for name in ours[1]:
        torch.testing.assert_close(ours[1][name], theirs[1][name], rtol=1e-3, atol=1e-5 * float(largest), msg=name)


@pytest.mark.parametrize("masks", [1, 3, 4])
def test_only_frames_with_masks_are_segmented(masks, model, batch):
    batch["labels"] = batch["labels"][:, :masks]
    everything = gradients(model, **batch)
    assert_close(gradients(model, **batch, frames_to_segment=masks), everything)
    # the other frames are needed all the same: by the similarity, and by the batch norm
    batch["pixel_values"] = batch["pixel_values"].roll(1, 1)
    losses, _ = gradients(model, **batch, frames_to_segment=masks)
    assert losses[-1] != everything[0][-1] or masks == 4


def test_what_is_left_of_the_output(model, batch):
    inputs = {name: batch[name] for name in ("pixel_values", "audio_embeddings")}
    with torch.no_grad():
        whole, part = model.eval()(**inputs), model(**inputs, frames_to_segment=3)
    assert part.logits.shape == (CLIPS, 3, SIZE, SIZE) and part.similarity.shape == (CLIPS, FRAMES)
    torch.testing.assert_close(part.logits, whole.logits[:, :3])
    torch.testing.assert_close(part.similarity, whole.similarity)
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=f"`frames_to_segment` from 1 to the 4 frames of a clip, got {wrong}"):
            model(**inputs, frames_to_segment=wrong)


def test_the_mean_of_two_processes_is_the_loss_of_one(write_model, batch):
    """One process has two clips with masks, the other one without: the dice part counts masks, not processes."""
    # no batch norm: its statistics are of a process
    model = AVSegFormerForSegmentation.from_pretrained(write_model("test_convnext", dropout=0.0)).train()
    batch = {name: tensor[[0, 1, 2, 1]] for name, tensor in batch.items()}  # masks of clips 0 and 2 only
    order = {"first": [0, 2], "second": [1, 3]}
    whole = gradients(model, **batch)
    parts = [
        gradients(model, **{name: tensor[clips] for name, tensor in batch.items()}, num_masks=torch.tensor(8.0) / 2)
        for clips in order.values()
    ]
    losses = (parts[0][0] + parts[1][0]) / 2
    assert_close((losses, {name: (parts[0][1][name] + parts[1][1][name]) / 2 for name in whole[1]}), whole)


def test_the_trainer_s_step_uses_both(model, batch, monkeypatch):
    batch["labels"] = batch["labels"][:, :1]
    expected = gradients(model, **batch)
    shapes = []
    model.mask_head.register_forward_hook(lambda module, inputs, logits: shapes.append(tuple(logits.shape)))
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.0))
    monkeypatch.setattr(optimizer, "zero_grad", lambda: None)
    model.zero_grad()
    losses = train_batch(accelerator, model, optimizer, batch | {"clips": ["a", "b", "c"]}, 0.0, 0)
    assert shapes == [(CLIPS, SIZE, SIZE)], "frames without a mask were segmented"
    found = torch.stack([losses[name] for name in ("loss", "loss_mask", "loss_mix", "loss_similarity")])
    assert_close((found, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}), expected)


# On a GPU these wait for its work: numbers read, tensors made of Python's numbers, shapes that depend on values.
WAITS = {"_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "equal", "unique2"}


class Waits(TorchDispatchMode):
    """Records the operators in `WAITS`."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in WAITS:
            self.found.append(name)
        return function(*args, **kwargs or {})


def test_a_step_waits_for_the_gpu_only_when_its_backward_pass_is_queued(model, batch, monkeypatch):
    batch["labels"] = batch["labels"][:, :1]
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.AdamW(model.parameters(), lr=0.0, fused=True))
    backward = accelerator.backward
    before = []

    def recorded(loss):
        backward(loss)
        before.extend(waits.found)

    monkeypatch.setattr(accelerator, "backward", recorded)
    for _ in range(2):  # in the first step constants are made
        before.clear()
        with Waits() as waits:
            train_batch(accelerator, model, optimizer, batch | {"clips": ["a", "b", "c"]}, 0.1, 0)
    assert before == []
    assert waits.found.count("_local_scalar_dense") == 1  # is the loss finite?


def test_the_learning_rate_rises_for_warmup_steps():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    args = SimpleNamespace(lr_scheduler="onecycle", learning_rate=1.0, warmup_steps=3)
    scheduler = build_scheduler(args, optimizer, total_steps=10)
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        if len(rates) < 10:
            scheduler.step()
    # The first step is taken at the lowest rate; three more reach the highest.
    assert rates.index(max(rates)) == 3 and max(rates) == pytest.approx(1.0)
    assert rates[:4] == sorted(rates[:4]) and rates[3:] == sorted(rates[3:], reverse=True)


def test_losses_of_a_step_are_means_and_negative_items_a_sum():
    of_batches = [{"loss": 1.0, "negatives": 3.0}, {"loss": 2.0, "negatives": 4.0}]
    losses = [{name: torch.tensor(value) for name, value in batch.items()} for batch in of_batches]
    assert mean_losses(Accelerator(cpu=True), losses) == {"loss": 1.5, "negatives": 7}


def test_workers_read_the_data_for_a_gpu(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cpu, gpu = (SimpleNamespace(device=torch.device(kind), num_processes=1) for kind in ("cpu", "cuda"))
    found = {}
    for processors in (1, 6, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, count=processors: range(count), raising=False)
        found[processors] = worker_count(None, gpu)
    assert found == {1: 1, 6: 6, 64: 8}
    assert (worker_count(None, cpu), worker_count(3, cpu), worker_count(0, gpu)) == (0, 3, 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert worker_count(None, gpu) == 4
