"""The op in plain torch: one `grid_sample` per level. It is the oracle, the fallback and the benchmark's baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_reference(
    value: Tensor, spatial_shapes: list[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sum each query's sampled values over levels and points, per head, with `torch.nn.functional.grid_sample`.

    The arguments are those of `ms_deform_attn.ms_deform_attn`, already checked; `spatial_shapes` are Python integers.
    float16 and bfloat16 values are sampled and summed in float32 and rounded once, at the end.

    Returns:
        Tensor[batch, queries, heads * channels], of the dtype of `value`

    Source: Deformable DETR, eq. 3, https://arxiv.org/abs/2010.04159
    """
    batch, _, heads, channels = value.shape
    queries, levels, points = sampling_locations.shape[1], *sampling_locations.shape[3:5]
    compute = torch.float64 if value.dtype == torch.float64 else torch.float32
    locations, weights = sampling_locations.to(compute), attention_weights.to(compute)
    if 0 in (batch, queries, heads, channels, levels, points):
        # Nothing is sampled (grid_sample refuses such sizes): zeros that still carry a (zero) gradient.
        nothing = value.reshape(-1)[:0].sum() + locations.reshape(-1)[:0].sum() + weights.reshape(-1)[:0].sum()
        return (value.new_zeros(batch, queries, heads * channels) + nothing).to(value.dtype)

    grid = 2 * locations - 1  # grid_sample wants [-1, 1]
    sampled = []
    maps = value.to(compute).split([height * width for height, width in spatial_shapes], dim=1)
    for level, (height, width) in enumerate(spatial_shapes):
        level_map = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        level_grid = grid[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (batch * heads, queries, points, 2)
        sampled.append(
            F.grid_sample(level_map, level_grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        )
    samples = torch.stack(sampled, dim=-2)  # (batch * heads, channels, queries, levels, points)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels, points)
    out = (samples * weights).sum(dim=(-2, -1)).view(batch, heads * channels, queries)
    return out.transpose(1, 2).to(value.dtype).contiguous()
