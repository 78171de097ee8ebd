"""Outlines of masks, without OpenCV: rings along the edges of pixels, or through the centres of border pixels.

Polygon formats know no holes and often only one polygon an object. So every hole is joined to its outline, and with `join` every part to the first
one, by a line that is walked there and back: it encloses nothing, and with even-odd filling the polygon gives back exactly the mask.
"""

from __future__ import annotations

import numpy as np

_MOST_PAIRS = 4_000_000  # of points that are compared to find the shortest way between two rings
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # direction -> (x, y); the mask lies to the right of every edge


def mask_to_polygons(mask: np.ndarray, *, centres: bool = False, join: bool = False) -> list[np.ndarray]:
    """Bool `(H, W)` -> closed polygons, int64 `(K, 2)` of (x, y).

    Args:
        mask: what to outline; pixels that touch at a corner belong together.
        centres: points are indices of border pixels, for rasterisers that paint the outline too (OpenCV); otherwise they are corners of pixels
            (pixel (x, y) covers x..x+1), for those that fill by area (COCO).
        join: make one polygon of all parts.

    Returns:
        One polygon a connected part, the topmost first; none for an empty mask.
    """
    outer: list[tuple[float, np.ndarray, np.ndarray]] = []  # (area, ring of corners, ring to give)
    holes: list[tuple[np.ndarray, np.ndarray]] = []  # (a pixel at the hole's border, ring to give)
    for corners, pixels in _rings(mask):
        area, given = _area(corners), _without_straight(pixels if centres else corners)
        if area > 0:
            outer.append((area, corners, given))
        else:
            holes.append((pixels[0], given))
    polygons = [given for _, _, given in outer]
    for pixel, ring in holes:
        around = [k for k, (_, corners, _) in enumerate(outer) if _contains(corners, pixel)]
        k = min(around, key=lambda k: outer[k][0])
        polygons[k] = _joined(polygons[k], ring)
    if join and polygons:
        whole = polygons[0]
        for part in polygons[1:]:
            whole = _joined(whole, part)
        return [whole]
    return polygons


def _rings(mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(corners, pixels) of each closed ring of pixel edges: where an edge starts, and the pixel of the mask to its right; int64 `(E, 2)` (x, y)."""
    padded = np.pad(mask.astype(bool), 1)
    inside, edges = padded[1:-1, 1:-1], []
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])  # above, right, below, left
    starts = ((0, 0), (1, 0), (1, 1), (0, 1))  # where the edge on that side starts, from the pixel's corner
    for direction, (other, (dx, dy)) in enumerate(zip(neighbours, starts, strict=True)):
        ys, xs = np.nonzero(inside & ~other)
        edges.append(np.stack([xs + dx, ys + dy, np.full(len(xs), direction), xs, ys], 1))
    table = np.concatenate(edges)
    if not len(table):
        return []
    width = mask.shape[1] + 1
    keys = (table[:, 1] * width + table[:, 0]) * 4 + table[:, 2]
    order = np.argsort(keys)
    table, keys = table[order], keys[order]
    ends = table[:, :2] + _STEPS[table[:, 2]]
    follower = np.full(len(table), -1)
    for turn in (1, 0, 3):  # the last one that exists wins: to the left, so that pixels that touch at a corner stay together
        wanted = (ends[:, 1] * width + ends[:, 0]) * 4 + (table[:, 2] + turn) % 4
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        follower = np.where(keys[at] == wanted, at, follower)
    rings, links = [], follower.tolist()
    for first in range(len(links)):
        ring, edge = [], first
        while links[edge] >= 0:
            ring.append(edge)
            links[edge], edge = -1, links[edge]
        if ring:
            rings.append((table[ring, :2], table[ring, 3:]))
    return rings


def _area(ring: np.ndarray) -> float:
    """Signed area of a ring (x, y): above 0 if the mask is inside."""
    x, y = ring[:, 0].astype(float), ring[:, 1].astype(float)
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _without_straight(ring: np.ndarray) -> np.ndarray:
    """The ring without points that repeat or lie on a straight run."""
    moved = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    ring = moved if len(moved) else ring[:1]  # all the same: a single pixel
    if len(ring) < 3:
        return ring
    turns = (ring - np.roll(ring, 1, 0) != np.roll(ring, -1, 0) - ring).any(1)
    return ring[turns]


def _contains(ring: np.ndarray, pixel: np.ndarray) -> bool:
    """Whether the centre of the pixel lies inside of a ring of pixel corners: crossings to its right, of unit edges, are odd."""
    x, y = pixel
    ys, after = ring[:, 1], np.roll(ring[:, 1], -1)
    return bool(((np.minimum(ys, after) == y) & (ys != after) & (ring[:, 0] > x)).sum() % 2)


def _joined(polygon: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """One polygon of two: from `polygon` to the nearest point of `ring`, around it, and back."""
    step = 1 + len(polygon) * len(ring) // _MOST_PAIRS  # the nearest of every step-th point is near enough
    gaps = ((polygon[::step, None] - ring[None]) ** 2).sum(2)
    at, start = (int(k) for k in np.unravel_index(gaps.argmin(), gaps.shape))
    at *= step
    around = np.roll(ring, -start, 0)
    return np.concatenate([polygon[: at + 1], around, around[:1], polygon[at:]])
