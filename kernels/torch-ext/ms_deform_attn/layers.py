"""The layer under the name by which transformers' deformable models look for it (`kernelize`, `use_kernels=True`)."""

from __future__ import annotations

from torch import Tensor, nn

from .functional import ms_deform_attn

__all__ = ["MultiScaleDeformableAttention"]


class MultiScaleDeformableAttention(nn.Module):
    """transformers' `MultiScaleDeformableAttention`, computed by `ms_deform_attn`.

    It has no weights and no constructor: `kernelize` puts its `forward` in the place of the model's.
    """

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """The sum for each query (batch, queries, heads * channels); the arguments are those of `ms_deform_attn`.

        The sizes are read from the list, so that nothing waits for the GPU. `level_start_index` follows from them, and
        `im2col_step`, by which the kernel of 2020 cuts batches up, is not needed: any batch size works.
        """
        return ms_deform_attn(value, value_spatial_shapes_list, sampling_locations, attention_weights)
