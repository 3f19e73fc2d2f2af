"""Multi-scale deformable attention: one function, several backends, nothing to install.

from ms_deform_attn import ms_deform_attn
out = ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)
"""

from . import layers
from .functional import Availability, backends, ms_deform_attn

__all__ = ["Availability", "backends", "layers", "ms_deform_attn"]
