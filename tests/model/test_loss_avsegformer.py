"""The losses, by hand and by their gradients."""

import math

import pytest
import torch

from modeling_avsegformer.loss_avsegformer import bce_dice_loss, dice_loss, mask_loss, mix_loss, similarity_loss


def test_dice_by_hand():
    # One of two pixels right, the other wrong, both certain: 1 - 2 * 1 / (2 + 1 + 0.002).
    loss = dice_loss(torch.tensor([[[50.0, 50.0]]]), torch.tensor([[[1.0, 0.0]]]))
    assert loss.item() == pytest.approx(1 - 2 / 3.002, rel=1e-6)


def test_dice_of_a_perfect_mask():
    targets = torch.ones(1, 2, 2)
    assert dice_loss(100 * targets, targets).item() == pytest.approx(1 - 8 / 8.002, abs=1e-6)


def test_the_original_dice_does_not_learn_from_an_empty_target_and_ours_does():
    for loss_type, learns in (("dice", False), ("bce_dice", True), ("bce", True)):
        logits = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = mask_loss(logits, torch.zeros(2, 5, 4), loss_type, bce_weight=5.0)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.any().item() is learns, loss_type
        if learns:  # every pixel is pulled to the background
            assert (gradient > 0).all()
        else:
            assert loss.item() == 1


def test_bce_dice_leaves_empty_targets_out_of_dice():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(3, 4, 5)
    targets[1, 1:3, 2:] = 1
    bce = torch.nn.functional.binary_cross_entropy(logits.sigmoid(), targets)
    expected = 2.5 * bce + dice_loss(logits[1:2], targets[1:2])[0]
    torch.testing.assert_close(bce_dice_loss(logits, targets, 2.5), expected)


def test_mix_loss_is_the_mask_loss_of_the_mean_feature():
    features = torch.rand(2, 6, 3, 4)
    targets = torch.ones(2, 6, 8)
    mean = torch.nn.functional.interpolate(features.mean(1, keepdim=True), size=(6, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(mix_loss(features, targets, "dice", 0.0), dice_loss(mean, targets).mean())


def test_similarity_loss_by_hand():
    similarity = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert similarity_loss(similarity, torch.tensor([1, 0])).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert similarity_loss(similarity, torch.tensor([0, 1])).item() == pytest.approx(math.log(1 + math.exp(1)))
