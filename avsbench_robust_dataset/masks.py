"""The only function that decides which pixels of a ground-truth mask are the object."""

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["object_mask"]


def object_mask(image: Image.Image) -> np.ndarray:
    """uint8 (height, width), 1 where any rendered colour channel is above 0, else 0. Alpha does not count.

    A palette's entries are judged by their colours, 16-bit greys by all their bits. A palette is ignored where it
    lacks entries that are used, or where all used colours are black, or none is: then the object is what has an index
    above 0, as AVSBench's own code reads such files.
    """
    return np.asarray(_is_object(image), dtype=np.uint8)


def _is_object(image: Image.Image) -> npt.ArrayLike:
    if image.mode in ("P", "PA"):
        indices = np.asarray(image.getchannel("P") if image.mode == "PA" else image)
        inside = (np.asarray(image.convert("RGB")) > 0).any(axis=-1)
        entries = len(image.getpalette("RGB") or ()) // 3
        one_class = inside.all() or not inside.any()
        if indices.max() >= entries or (one_class and indices.min() != indices.max()):
            return indices > 0
        return inside
    if image.mode in ("RGB", "RGBA"):
        return (np.asarray(image.convert("RGB")) > 0).any(axis=-1)
    if image.mode == "LA":
        return np.asarray(image.getchannel("L")) > 0
    return np.asarray(image) > 0
