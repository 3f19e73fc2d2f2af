"""The report's pictures: masks drawn over frames, and the colours of the models.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which colour-blind readers can tell apart.
"""

import base64
import io

import numpy as np
from PIL import Image, ImageFilter

# Okabe-Ito, ordered so that the first two (baseline, robust) are the farthest apart.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TILE_SIZE = 224  # pixels of the longer side; AVSBench's own frame size


def fit_tile(image: Image.Image) -> Image.Image:
    """The image as RGB with its longer side at `TILE_SIZE` pixels, so that outlines have one width in every tile."""
    scale = TILE_SIZE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def truth_tile(frame: Image.Image, truth: np.ndarray) -> Image.Image:
    """The frame with everything but the object darkened, and the object's outline.

    Args:
        frame: as `fit_tile` returns it.
        truth (bool array[height, width]): the visible object, at any resolution.
    """
    truth = _resize_mask(truth * np.uint8(255), frame.size)
    pixels = np.asarray(frame, np.float32)
    return _draw_truth(np.where(truth[..., None], pixels, 0.3 * pixels), truth)


def prediction_tile(frame: Image.Image, probability: np.ndarray, truth: np.ndarray, color: str) -> Image.Image:
    """The frame with the predicted mask filled in `color` and the object's outline in white.

    Args:
        frame: as `fit_tile` returns it.
        probability (uint8 array[height, width]): 255 is certain; the mask is where it exceeds one half (>= 128).
        truth (bool array[height, width]): the visible object.
        color: "#RRGGBB".
    """
    predicted = _resize_mask(probability, frame.size)
    truth = _resize_mask(truth * np.uint8(255), frame.size)
    # The frame is pulled half-way to grey: colours in the picture cannot be taken for the mask's.
    grey = np.asarray(frame.convert("L"), np.float32)[..., None]
    pixels = 0.85 * (0.5 * np.asarray(frame, np.float32) + 0.5 * grey)
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
    pixels[predicted] = 0.35 * pixels[predicted] + 0.65 * rgb
    pixels[_outline(predicted, 5)] = rgb
    return _draw_truth(pixels, truth)


def data_uri(image: Image.Image | bytes) -> str:
    """A `data:` address of a photograph (JPEG, full colour resolution for the thin outlines) or of SVG bytes."""
    if isinstance(image, bytes):
        return "data:image/svg+xml;base64," + base64.b64encode(image).decode("ascii")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _resize_mask(probability, size):
    """uint8 probabilities -> bool at `size` (width, height); smooth edges, thresholded as the metric does."""
    image = Image.fromarray(np.ascontiguousarray(probability, np.uint8))
    if image.size != tuple(size):
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image) >= 128


def _outline(mask, width):
    """The band of `width` pixels (odd) on both sides of the mask's edge."""
    image = Image.fromarray(mask * np.uint8(255))
    grown = np.asarray(image.filter(ImageFilter.MaxFilter(width)))
    shrunk = np.asarray(image.filter(ImageFilter.MinFilter(width)))
    return grown != shrunk


def _draw_truth(pixels, truth):
    # White between two dark lines: visible on light, dark and coloured ground.
    pixels = pixels.copy()
    halo = np.asarray(Image.fromarray(_outline(truth, 3) * np.uint8(255)).filter(ImageFilter.MaxFilter(3))) > 0
    pixels[halo] = 0.25 * pixels[halo]
    pixels[_outline(truth, 3)] = 255
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
