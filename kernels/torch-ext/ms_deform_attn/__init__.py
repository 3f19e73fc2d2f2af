"""Multi-scale deformable attention: one function, several backends, nothing to install.

from ms_deform_attn import ms_deform_attn
out = ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import layers
    from .functional import Availability, backends, ms_deform_attn

__all__ = ["Availability", "backends", "layers", "ms_deform_attn"]


def __getattr__(name: str):
    # Imported when first asked for: what compiles and traces the op (torch._dynamo, torch.library) takes a second.
    if name == "layers":
        return import_module(".layers", __name__)
    if name in __all__:
        globals()[name] = getattr(import_module(".functional", __name__), name)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
