"""The only resize, pad and normalise, and `Placement`, the record that brings masks back to the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lisaseg.errors import DataError, UsageError
from lisaseg.types import IGNORE

if TYPE_CHECKING:
    import torch

# Means and standard deviations of RGB in units of 0..255.
CLIP_MEAN = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
CLIP_STD = (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)
SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Placement:
    """Where a picture lies on a square canvas: at the top left, the rest is padding. Knows the way back.

    Attributes:
        original_hw: (height, width) of the picture.
        resized_hw: (height, width) of the picture on the canvas.
        canvas: side of the canvas in pixels.
    """

    original_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    canvas: int

    @property
    def valid_fraction(self) -> tuple[float, float]:
        """(height, width) of the picture as shares of the canvas, each in (0, 1]."""
        return self.resized_hw[0] / self.canvas, self.resized_hw[1] / self.canvas

    def undo(self, logits: torch.Tensor) -> torch.Tensor:
        """Bring mask logits from the canvas to the picture, as SAM does: up to the canvas, crop the padding, then to the original size.

        Args:
            logits: float `(N, h, h)` covering the canvas; h divides `canvas`; N may be 0.

        Returns:
            float32 `(N, H, W)` at the original size, on the device of `logits`.

        Raises:
            UsageError: `logits` has another shape.
        """
        import torch.nn.functional as F

        if logits.ndim != 3 or logits.shape[1] != logits.shape[2] or logits.shape[1] < 1 or self.canvas % logits.shape[1]:
            message = f"Mask logits must be (N, h, h) with h a divisor of {self.canvas}, got {tuple(logits.shape)}."
            raise UsageError(message, next_step="Pass them as the mask decoder gives them, over the whole canvas.")
        if len(logits) == 0:  # interpolate refuses it
            return logits.new_zeros((0, *self.original_hw)).float()
        (height, width), side = self.resized_hw, (self.canvas, self.canvas)
        on_canvas = F.interpolate(logits.float()[:, None], side, mode="bilinear", align_corners=False)
        return F.interpolate(on_canvas[..., :height, :width], self.original_hw, mode="bilinear", align_corners=False)[:, 0]

    def apply_mask(self, mask: np.ndarray, side: int | None = None) -> np.ndarray:
        """Lay a mask on the canvas as a training target, by nearest neighbour.

        Args:
            mask: uint8 `(H, W)` in {0, 1, 255}, or bool, at the original size.
            side: side of the result; the canvas's own by default, smaller for the grid of a mask decoder.

        Returns:
            uint8 `(side, side)`; padding is 255 (ignore).

        Raises:
            DataError: the mask has another shape than the picture.
        """
        if mask.shape != self.original_hw:
            message = f"A mask of shape {mask.shape} does not fit a picture of {self.original_hw} (height, width)."
            raise DataError(message, next_step="Give masks at the size of the upright picture.")
        side = self.canvas if side is None else side
        picks = []
        for length, resized in zip(self.original_hw, self.resized_hw, strict=True):
            centres = (np.arange(side) + 0.5) * (self.canvas / side)  # of the cells, in canvas pixels
            inside = centres[: max(1, int((centres < resized).sum()))]
            picks.append(np.minimum(inside * (length / resized), length - 1).astype(np.int64))
        target = np.full((side, side), IGNORE, np.uint8)
        target[: len(picks[0]), : len(picks[1])] = mask[np.ix_(*picks)]
        return target


def fit_longest_side(rgb: np.ndarray, side: int, fill: tuple[int, int, int] = (128, 128, 128)) -> tuple[np.ndarray, Placement]:
    """SAM's way: scale the longest side to `side` (up or down), put the picture at the top left, pad right and bottom with `fill`.

    Args:
        rgb: uint8 `(H, W, 3)`.
        side: side of the square result in pixels.
        fill: RGB of the padding, 0..255. SAM pads with zeros after `normalize`; do that to `[:, resized_h:, resized_w:]` where it must be exact.

    Returns:
        uint8 `(side, side, 3)` and the record that undoes it.
    """
    original_hw = rgb.shape[0], rgb.shape[1]
    scale = side / max(original_hw)
    height, width = (max(1, int(length * scale + 0.5)) for length in original_hw)
    canvas = np.full((side, side, 3), fill, np.uint8)
    canvas[:height, :width] = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))
    return canvas, Placement(original_hw, (height, width), side)


def fit_shortest_crop(rgb: np.ndarray, side: int) -> np.ndarray:
    """CLIP's way: bicubic resize of the shortest edge of uint8 `(H, W, 3)` to `side`, centre crop to `(side, side, 3)`; the margins are lost."""
    height, width = rgb.shape[:2]
    short = min(height, width)
    height, width = side * height // short, side * width // short
    top, left = (height - side) // 2, (width - side) // 2
    image = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image.crop((left, top, left + side, top + side)))


def normalize(pixels: np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]) -> torch.Tensor:
    """(pixels - mean) / std of uint8 `(H, W, 3)` as torch float32 `(3, H, W)`; mean and std are in units of 0..255."""
    import torch

    channels_first = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32, order="C"))
    return (channels_first - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
