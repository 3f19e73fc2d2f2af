"""The only function that decides which pixels of a ground-truth mask are the object."""

import numpy as np
from PIL import Image


def object_mask(image: Image.Image) -> np.ndarray:
    """uint8 (height, width), 1 where any rendered colour channel is above 0, else 0. Alpha does not count.

    A palette's entries are judged by their colours, 16-bit greys by all their bits. A palette is ignored where it
    lacks entries that are used, or where all used colours are black, or none is: then the object is what has an index
    above 0, as AVSBench's own code reads such files.
    """
    if image.mode in ("P", "PA"):
        indices = np.asarray(image.getchannel("P") if image.mode == "PA" else image)
        inside = (np.asarray(image.convert("RGB")) > 0).any(axis=-1)
        entries = len(image.getpalette("RGB") or ()) // 3
        one_class = inside.all() or not inside.any()
        if indices.max() >= entries or (one_class and indices.min() != indices.max()):
            inside = indices > 0
    elif image.mode in ("RGB", "RGBA"):
        inside = (np.asarray(image.convert("RGB")) > 0).any(axis=-1)
    else:
        inside = np.asarray(image.getchannel("L") if image.mode == "LA" else image) > 0
    return np.asarray(inside, dtype=np.uint8)
