"""Copy-paste: things of one picture pasted into another, so that few labelled pictures go a long way (arXiv 2012.07177).

A pasted thing hides what is behind it; its mask is exact. What was known about the picture stays known.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lisaseg.datasets.cutouts import MIN_SIDE, compose
from lisaseg.datasets.pool import Pool, names_close_to
from lisaseg.imaging import open_image
from lisaseg.train.views import Raw, ViewInfo
from lisaseg.types import IGNORE, TARGET

LEFT_ALONE = frozenset({"person"})  # what a pasted person wears and holds would be there without a mask
SMALLEST = 0.004  # of the picture it comes from: less is too blurred to be enlarged
SEEN = 0.0005  # of the view: what is hidden so far that less can be seen is no target any more


class Donors:
    """Things that can be pasted: single objects that are masked one by one in some pools.

    Args:
        pools: files with masks. Pictures are drawn by the pool's sampling weights, so rare categories come more often.
    """

    def __init__(self, pools: list[Pool]) -> None:
        self.at = [(pool, index) for pool in pools for index in range(len(pool)) if pool.labelled(index) - LEFT_ALONE]
        weights = {id(pool): pool.sampling_weights() for pool in pools}
        p = np.array([weights[id(pool)][index] for pool, index in self.at])
        self.p = p / p.sum() if len(p) else p

    def draw(self, rng: np.random.Generator) -> tuple[str, np.ndarray] | None:
        """One thing as (name, RGBA uint8 (h, w, 4)); None if the picture drawn has none that is large enough."""
        pool, index = self.at[int(rng.choice(len(self.at), p=self.p))]
        height, width = pool.size(index)
        things = [(name, mask) for name, mask in pool.instances(index) if name not in LEFT_ALONE]
        large = [(name, mask) for name, mask in things if mask.sum() >= SMALLEST * height * width]
        if not large:
            return None
        name, mask = large[int(rng.integers(len(large)))]
        return name, np.dstack([open_image(pool[index].image).rgb, mask * np.uint8(255)])


def paste(raw: Raw, donors: Donors, most: int, rng: np.random.Generator) -> Raw:
    """The view `raw` with one to `most` things pasted into it; `raw` itself where nothing can be pasted. Nothing of `raw` is changed."""
    info, rgb, masks, instances = raw
    drawn = [thing for _ in range(1 + int(rng.integers(most))) if (thing := donors.draw(rng)) is not None] if donors.at else []
    if not drawn or min(rgb.shape[:2]) < MIN_SIDE:
        return raw
    rgb, pasted = compose(rgb, [rgba for _, rgba in drawn], rng)
    hidden = np.maximum.reduce(pasted) > 0
    names = {name for name, _ in drawn}
    keys = zip(info.names, info.texts, info.kinds, strict=True)
    seen = dict(zip(keys, (_hide(mask, hidden) for mask in masks), strict=True))
    for (name, _), mask in zip(drawn, pasted, strict=True):
        key = (name, name, "category")
        old = seen.get(key)
        seen[key] = mask if old is None else np.where(mask == 1, TARGET, old).astype(np.uint8)
    smallest = max(1.0, SEEN * hidden.size)
    seen = {key: mask for key, mask in seen.items() if (mask == TARGET).sum() >= smallest}
    # two of a name are told apart by place only where all of them are known one by one
    singles = [(n, _hide(m, hidden)) for n, m in zip(info.instance_names, instances, strict=True) if n not in names]
    singles = [(n, m) for n, m in singles if (m == 1).sum() >= smallest]
    near = names_close_to(names)
    return _described(info, seen, [n for n, _ in singles], near), rgb, list(seen.values()), [m for _, m in singles]


def _hide(mask: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """What of a mask can still be seen; regions without a verdict stay so."""
    return np.where(hidden & (mask != IGNORE), 0, mask).astype(np.uint8)


def _described(info: ViewInfo, keys: dict[tuple[str, str, str], np.ndarray], singles: list[str], near: set[str]) -> ViewInfo:
    return replace(
        info,
        names=[name for name, _, _ in keys],
        texts=[text for _, text, _ in keys],
        kinds=[kind for _, _, kind in keys],
        instance_names=singles,
        absent=[name for name in info.absent if name not in near],
        captions=[],
    )
