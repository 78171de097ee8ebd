"""Where views come from: read from a cache, with the frozen trunk's features, or made anew for every step, for a trunk that runs in the step.

The cache is for a CPU, where the trunk is most of a step's time; live views are for a GPU: every draw is another window of the picture, so few
pictures go a long way, and the trunk itself can learn. A source gives the same view for the same index and generator state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from lisaseg.datasets.cutouts import Cutouts
from lisaseg.datasets.pool import Pool
from lisaseg.train.copy_paste import Donors, paste
from lisaseg.train.views import View, composite_view, crop_box, place, read_view, window_view

MOST_PASTED = 3  # things of other pictures in one view


class ViewSource(Protocol):
    """index -> View; what is random comes from the generator."""

    def __len__(self) -> int: ...

    def draw(self, index: int, rng: np.random.Generator) -> View:
        """View number `index`."""
        ...


class CachedViews:
    """Views of files that `build_cache` wrote; nothing is random."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def draw(self, index: int, rng: np.random.Generator) -> View:
        """The view of file number `index`."""
        return read_view(self.paths[index])


class LiveViews:
    """Pictures of the pools in their order, then composites. A fifth of the draws are the plain picture, the others windows, half of them mirrored,
    in changed light and colour.

    Args:
        composites: how many numbers stand for new composites of cut-outs. plain: share of plain pictures.
        paste: share of the windows into which things of other pictures are pasted. window: the smallest window, as a share of the picture's area.
    """

    def __init__(
        self, pools: list[Pool], cutouts: Cutouts | None, composites: int, plain: float = 0.2, paste: float = 0.0, window: float = 0.3
    ) -> None:
        self.pools, self.cutouts, self.plain = pools, cutouts, plain
        self.paste, self.window = paste, window
        self.donors = Donors(pools) if paste > 0 else None
        self.composites = composites if cutouts is not None else 0
        self.at = [(pool, index) for pool in pools for index in range(len(pool))]

    def __len__(self) -> int:
        return len(self.at) + self.composites

    def draw(self, index: int, rng: np.random.Generator) -> View:
        """A random window of picture number `index`, or a new composite."""
        if index >= len(self.at):
            assert self.cutouts is not None
            raw = composite_view(self.pools, self.cutouts, index, int(rng.integers(2**31)))
        else:
            pool, number = self.at[index]
            if rng.random() < self.plain:
                return place(window_view(pool, number, None, flip=False))
            raw = window_view(pool, number, crop_box(pool.size(number), rng, self.window), flip=bool(rng.random() < 0.5))
            if self.donors is not None and rng.random() < self.paste:
                raw = paste(raw, self.donors, MOST_PASTED, rng)
        info, rgb, masks, instances = raw
        return place((info, relight(rgb, rng), masks, instances))


def relight(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change saturation, contrast and brightness by up to a third each: uint8 (H, W, 3) -> uint8 (H, W, 3)."""
    saturation, contrast, brightness = rng.uniform(0.67, 1.33, 3)
    x = rgb.astype(np.float32)
    grey = x.mean(-1, keepdims=True)
    x = grey + (x - grey) * saturation
    middle = grey.mean()
    x = (middle + (x - middle) * contrast) * brightness
    return np.clip(x, 0, 255).astype(np.uint8)
