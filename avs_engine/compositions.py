"""Two clips in one picture: side by side, or one as an inset in the other.

A clip that shows one object teaches *whether* something sounds; two objects, of which one sounds, teach *which*.
Functions of arrays; each takes two clips, (frames, masks) with frames uint8 (T, H, W, 3) and masks uint8 (K, H, W) of
0 and 1, of any size and with K <= T, and a generator. Each returns the frames of the composition, in the size of the
first clip, and the masks of the first and of the second clip in it. Pixels are averages over the area that they cover.
"""

import numpy as np

__all__ = ["COMPOSITIONS", "compose", "inset", "side_by_side"]

Images = tuple[np.ndarray, np.ndarray]  # frames and masks
Composition = tuple[np.ndarray, np.ndarray, np.ndarray]  # frames, masks of the first clip, masks of the second one

INSET = (0.5, 0.75)  # height and width of an inset as a share of the picture's, drawn between these


def _averages(size: int, wanted: int) -> np.ndarray:
    """float32 (wanted, size): row k averages the pixels, of `size`, that pixel k of `wanted` covers."""
    edges = np.arange(wanted + 1) * (size / wanted)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)
    overlap = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)


def resize(images: Images, height: int, width: int) -> Images:
    """A mask's pixel belongs to the object where it covers at least half of it."""
    frames, masks = images
    if frames.shape[1:3] == (height, width):
        return images
    rows, columns = _averages(frames.shape[1], height), _averages(frames.shape[2], width)
    resized = np.einsum("hy,tyxc,wx->thwc", rows, frames.astype(np.float32), columns, optimize=True)
    cover = np.einsum("hy,kyx,wx->khw", rows, masks.astype(np.float32), columns, optimize=True)
    return np.rint(resized).astype(np.uint8), (cover >= 0.5).astype(np.uint8)


def side_by_side(first: Images, second: Images, rng: np.random.Generator) -> Composition:
    """Each squeezed into half of the picture, left and right or above each other; which comes first is random."""
    height, width = first[0].shape[1:3]
    axis = int(rng.integers(1, 3))  # of the frames: 1 is the height
    length = (height, width)[axis - 1]
    swapped = bool(rng.integers(2))
    lengths = (length - length // 2, length // 2) if swapped else (length // 2, length - length // 2)
    halves = []
    for images, half in zip((first, second), lengths, strict=True):
        size = (half, width) if axis == 1 else (height, half)
        halves.append(resize(images, *size))
    (frames, masks), (other_frames, other_masks) = halves
    empty, other_empty = np.zeros_like(masks), np.zeros_like(other_masks)
    order = [1, 0] if swapped else [0, 1]
    return (
        np.concatenate([(frames, other_frames)[k] for k in order], axis),
        np.concatenate([(masks, other_empty)[k] for k in order], axis),
        np.concatenate([(empty, other_masks)[k] for k in order], axis),
    )


def inset(first: Images, second: Images, rng: np.random.Generator) -> Composition:
    """One of the two, at random, as a smaller picture somewhere on the other, which it hides there."""
    height, width = first[0].shape[1:3]
    inner_is_second = bool(rng.integers(2))
    outer, inner = (
        (first, resize(second, height, width)) if inner_is_second else (resize(second, height, width), first)
    )
    share = rng.uniform(*INSET)
    inner = resize(inner, max(1, round(share * height)), max(1, round(share * width)))
    h, w = inner[0].shape[1:3]
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    window = (slice(None), slice(top, top + h), slice(left, left + w))
    frames, outer_masks, inner_masks = outer[0].copy(), outer[1].copy(), np.zeros_like(outer[1])
    frames[window], outer_masks[window], inner_masks[window] = inner[0], 0, inner[1]
    return (frames, outer_masks, inner_masks) if inner_is_second else (frames, inner_masks, outer_masks)


COMPOSITIONS = (side_by_side, inset)


def compose(first: Images, second: Images, rng: np.random.Generator) -> Composition:
    """One of `COMPOSITIONS`, at random."""
    return COMPOSITIONS[int(rng.integers(len(COMPOSITIONS)))](first, second, rng)
