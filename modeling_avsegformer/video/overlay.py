"""Masks drawn over frames, and conditions side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

COLOR = (213, 94, 0)  # vermilion, Okabe and Ito, "Color Universal Design" (2008)
MAX_PANEL_WIDTH = 960  # pixels


def draw_overlay(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The frame, uint8 `(height, width, 3)`, with the mask, bool `(height, width)`, half transparent and outlined."""
    drawn = frame.copy()
    drawn[mask] = (drawn[mask] * np.float32(0.5) + np.float32(0.5) * np.asarray(COLOR, np.float32)).astype(np.uint8)
    drawn[_outline(mask, max(1, round(min(mask.shape) / 240)))] = COLOR
    return drawn


def draw_transparent(mask: np.ndarray) -> np.ndarray:
    """The mask as an RGBA picture, opaque where it is true and transparent black elsewhere."""
    return mask[..., None] * np.asarray((*COLOR, 255), np.uint8)


class Panels:
    """Lays frames of `size`, (width, height), in a row, names above them, each at most 960 pixels wide."""

    def __init__(self, names: Sequence[str], size: tuple[int, int]):
        width, height = size
        scale = min(1.0, MAX_PANEL_WIDTH / width)
        # Even, as H.264's 4:2:0 wants it.
        self.panel_size = tuple(max(2, round(side * scale / 2) * 2) for side in (width, height))
        panel_width, panel_height = self.panel_size
        bar = max(16, panel_width // 16 // 2 * 2)
        self.size = (panel_width * len(names), panel_height + bar)
        canvas = Image.new("RGB", self.size, "black")
        draw = ImageDraw.Draw(canvas)
        for place, name in enumerate(names):
            name, font = _fit(name, 0.96 * panel_width, round(0.7 * bar))
            draw.text(((place + 0.5) * panel_width, bar / 2), name, "white", font, anchor="mm")
        self._canvas = np.array(canvas)
        self._bar = bar

    def draw(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        canvas = self._canvas.copy()
        width = self.panel_size[0]
        for place, frame in enumerate(frames):
            frame = self._scaled(frame, Image.Resampling.BILINEAR)
            canvas[self._bar :, place * width : (place + 1) * width] = frame
        return canvas

    def draw_overlays(self, frame: np.ndarray, *masks: np.ndarray) -> np.ndarray:
        """The row of one frame with each of the masks over it."""
        # Scaled first: to draw on the pictures of a large video takes longer than all else.
        frame = self._scaled(frame, Image.Resampling.BILINEAR)
        return self.draw([draw_overlay(frame, self._scaled(mask, Image.Resampling.NEAREST)) for mask in masks])

    def _scaled(self, picture: np.ndarray, method: Image.Resampling) -> np.ndarray:
        if picture.shape[1::-1] == self.panel_size:
            return picture
        return np.asarray(Image.fromarray(picture).resize(self.panel_size, method))


def _fit(name: str, width: float, font_size: int):
    """A font in which the name is not wider than `width`; where 8 pixels are still too much, less of the name."""
    font = ImageFont.load_default(font_size)
    while font.getlength(name) > width and font_size > 8:
        font_size -= 1
        font = ImageFont.load_default(font_size)
    while font.getlength(name) > width:
        name = name[:-1]
    return name, font


def _outline(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of the mask that are at most `width` away from its edge, along rows and columns."""
    cross = np.zeros((2 * width + 1, 2 * width + 1), bool)
    cross[width] = cross[:, width] = True
    # Beyond the picture's border the object goes on.
    return mask & ~binary_erosion(mask, cross, border_value=1)
