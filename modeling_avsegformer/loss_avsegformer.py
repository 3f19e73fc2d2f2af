"""The losses of AVSegFormer: pure functions of logits and targets."""

import torch
import torch.nn.functional as F
from torch import Tensor

DICE_SMOOTHING = 0.001  # in both sums of the denominator, as the original


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """One minus the soft Dice overlap, per mask.

    An empty target gives exactly 1 and **exactly no gradient**, whatever the logits: the numerator is zero.

    Args:
        logits (`Tensor` of shape `(N, H, W)`)
        targets (`Tensor` of shape `(N, H, W)`): in [0, 1].

    Returns:
        `Tensor` of shape `(N,)`

    Source: V-Net, https://arxiv.org/abs/1606.04797, in AVSegFormer's form.
    """
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = (probabilities * targets).sum(1)
    denominator = probabilities.square().sum(1) + DICE_SMOOTHING + targets.square().sum(1) + DICE_SMOOTHING
    return 1 - 2 * overlap / denominator


def bce_dice_loss(
    logits: Tensor, targets: Tensor, bce_weight: float, num_masks: Tensor | float | None = None
) -> Tensor:
    """`bce_weight` times the binary cross-entropy over every pixel, plus the mean Dice loss of the targets that are
    not empty (0 if all are): an empty target thus pulls every pixel towards the background.

    Args as `dice_loss`; one number for the batch. `num_masks` replaces the number of targets that are not empty: where
    processes average their losses, each gives the mean of their numbers, for the loss of the whole batch.
    """
    not_empty = (targets.flatten(1).sum(1) > 0).to(logits.dtype)
    count = not_empty.sum().clamp(min=1) if num_masks is None else num_masks
    dice = (dice_loss(logits, targets) * not_empty).sum() / count
    return bce_weight * F.binary_cross_entropy_with_logits(logits, targets) + dice


def mask_loss(
    logits: Tensor, targets: Tensor, loss_type: str, bce_weight: float, num_masks: Tensor | float | None = None
) -> Tensor:
    """The loss named `loss_type` ("dice", "bce", "bce_dice") between logits and targets, both of shape `(N, H, W)`."""
    if loss_type == "dice":
        return dice_loss(logits, targets).mean()
    if loss_type == "bce":
        return F.binary_cross_entropy_with_logits(logits, targets)
    return bce_dice_loss(logits, targets, bce_weight, num_masks)


def mix_loss(
    mask_features: Tensor, targets: Tensor, loss_type: str, bce_weight: float, num_masks: Tensor | float | None = None
) -> Tensor:
    """`mask_loss` of the mask features averaged over their channels, which makes them tell the object by themselves.

    Args:
        mask_features (`Tensor` of shape `(N, C, h, w)`): not negative, so that their sigmoid is never below one half;
            the original has it so.
        targets (`Tensor` of shape `(N, H, W)`)
    """
    mixed = mask_features.mean(1, keepdim=True)
    mixed = F.interpolate(mixed, size=targets.shape[-2:], mode="bilinear", align_corners=False)
    return mask_loss(mixed[:, 0], targets, loss_type, bce_weight, num_masks)


def similarity_loss(similarity: Tensor, audio_labels: Tensor) -> Tensor:
    """Binary cross-entropy of the sigmoid of the cosine, without a temperature: at least 0.3133.

    Args:
        similarity (`Tensor` of shape `(B, T)`): in [-1, 1].
        audio_labels (`Tensor` of shape `(B,)`): 1 where the sound belongs to the image, 0 where it does not.
    """
    targets = audio_labels.to(similarity.dtype)[:, None].expand_as(similarity)
    return F.binary_cross_entropy_with_logits(similarity, targets)


def avsegformer_loss(
    logits: Tensor,
    mask_features: Tensor,
    similarity: Tensor | None,
    labels: Tensor | None,
    audio_labels: Tensor | None,
    config,
    num_masks: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the losses, and each loss before weighting, under "mask", "mix" and "similarity".

    Args:
        logits (`Tensor` of shape `(B, T, H, W)`)
        mask_features (`Tensor` of shape `(B * T, C, h, w)`)
        similarity (`Tensor` of shape `(B, T)`, *optional*)
        labels (`Tensor` of shape `(B, K, H, W)`, *optional*): masks of the first K <= T frames.
        audio_labels (`Tensor` of shape `(B,)`, *optional*)
        config (`AVSegFormerConfig`): `loss_type` and the weights.
        num_masks (`Tensor` or `float`, *optional*): see `bce_dice_loss`; at least 1 over the number of processes.
    """
    losses: dict[str, Tensor] = {}
    if labels is not None:
        supervised = labels.shape[1]
        features = mask_features.unflatten(0, logits.shape[:2])[:, :supervised].flatten(0, 1)
        targets = labels.flatten(0, 1).float()
        # float32: sums over all pixels of a mask lose too much in half precision
        losses["mask"] = mask_loss(
            logits[:, :supervised].flatten(0, 1).float(), targets, config.loss_type, config.bce_weight, num_masks
        )
        losses["mix"] = mix_loss(features.float(), targets, config.loss_type, config.bce_weight, num_masks)
    if audio_labels is not None and similarity is not None:
        losses["similarity"] = similarity_loss(similarity.float(), audio_labels)
    weights = {"mask": config.mask_weight, "mix": config.mix_weight, "similarity": config.similarity_weight}
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum(), losses


__all__ = ["avsegformer_loss", "bce_dice_loss", "dice_loss", "mask_loss", "mix_loss", "similarity_loss"]
