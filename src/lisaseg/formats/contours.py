"""Outlines of masks, without OpenCV: rings along the edges of pixels, or through the centres of border pixels.

Polygon formats know no holes and often only one polygon an object. So every hole is joined to its outline, and with `join` every part to the first
one, by a line that is walked there and back: it encloses nothing, and with even-odd filling the polygon gives back exactly the mask. The line of a
hole runs to the left over pixels of the mask, so painting it changes nothing. Work and memory are proportional to the length of the borders.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lisaseg.errors import DataError

MAX_PARTS = 2000  # that `join` makes one outline of
_MOST_PAIRS = 4_000_000  # of points that are compared to find the shortest way between two parts
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # direction -> (x, y); the mask lies to the right of every edge
_TOP, _RIGHT, _LEFT = 0, 1, 3  # directions of the edges on these sides of a pixel


def mask_to_polygons(mask: np.ndarray, *, centres: bool = False, join: bool = False) -> list[np.ndarray]:
    """Bool `(H, W)` -> closed polygons, int64 `(K, 2)` of (x, y).

    Args:
        mask: what to outline; pixels that touch at a corner belong together.
        centres: points are indices of border pixels, for rasterisers that paint the outline too (OpenCV); otherwise they are corners of pixels
            (pixel (x, y) covers x..x+1), for those that fill by area (COCO).
        join: make one polygon of all parts.

    Returns:
        One polygon a connected part, the topmost first; none for an empty mask.

    Raises:
        DataError: `join`, and the mask has more than `MAX_PARTS` parts.
    """
    edges = _edges(mask)
    if not len(edges):
        return []
    follower = _followers(edges, mask.shape[1] + 1)
    rings = _walks(follower, range(len(follower)))
    outer = [edges[ring[0], 2] == _TOP for ring in rings]  # in reading order an outline begins along the top, a hole down its left side
    holes = [ring for ring, is_outer in zip(rings, outer, strict=True) if not is_outer]
    points = edges[:, 3:] if centres else edges[:, :2]
    if holes:
        points, follower = _with_bridges(edges, points, follower, holes)
        rings = _walks(follower, [ring[0] for ring, is_outer in zip(rings, outer, strict=True) if is_outer])
    polygons = [_without_straight(points[ring]) for ring in rings]
    if not join:
        return polygons
    if len(polygons) > MAX_PARTS:
        message = f"A mask has {len(polygons):,} separate parts; at most {MAX_PARTS:,} are joined into one outline."
        raise DataError(message, next_step="Take a format that keeps masks to the pixel, or remove the specks.")
    whole = polygons[0]
    for part in polygons[1:]:
        whole = _joined(whole, part, min(_MOST_PAIRS, 100 * _MOST_PAIRS // len(polygons)))
    return [whole]


def _edges(mask: np.ndarray) -> np.ndarray:
    """All edges between the mask and the rest, int64 `(E, 5)`: start (x, y), direction, and the pixel (x, y) of the mask to its right."""
    padded = np.pad(mask.astype(bool), 1)
    inside, edges = padded[1:-1, 1:-1], []
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])  # above, right, below, left
    starts = ((0, 0), (1, 0), (1, 1), (0, 1))  # where the edge on that side starts, from the pixel's corner
    for direction, (other, (dx, dy)) in enumerate(zip(neighbours, starts, strict=True)):
        ys, xs = np.nonzero(inside & ~other)
        edges.append(np.stack([xs + dx, ys + dy, np.full(len(xs), direction), xs, ys], 1))
    table = np.concatenate(edges)
    return table[np.lexsort((table[:, 2], table[:, 0], table[:, 1]))]


def _followers(edges: np.ndarray, width: int) -> np.ndarray:
    """For each edge the one that goes on where it ends, int64 `(E,)`."""
    keys = (edges[:, 1] * width + edges[:, 0]) * 4 + edges[:, 2]
    ends = edges[:, :2] + _STEPS[edges[:, 2]]
    follower = np.full(len(edges), -1)
    for turn in (1, 0, 3):  # the last one that exists wins: to the left, so that pixels that touch at a corner stay together
        wanted = (ends[:, 1] * width + ends[:, 0]) * 4 + (edges[:, 2] + turn) % 4
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        follower = np.where(keys[at] == wanted, at, follower)
    return follower


def _walks(follower: np.ndarray, starts: Iterable[int]) -> list[list[int]]:
    """Rings of nodes, each from the first of `starts` that lies on it."""
    rings, links = [], follower.tolist()
    for node in starts:
        ring = []
        while links[node] >= 0:
            ring.append(node)
            links[node], node = -1, links[node]
        if ring:
            rings.append(ring)
    return rings


def _with_bridges(edges: np.ndarray, points: np.ndarray, follower: np.ndarray, holes: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Points and followers with three more nodes a hole, by which the ring to its left goes to the hole, around it, and back.

    The way starts at the first border in the hole's first row and ends where the run of mask to its left begins, at the outline of the part or at a
    hole that comes before it in reading order. So nothing is joined in a circle. (After Suzuki and Abe, Topological structural analysis, 1985.)
    """
    ring_of = np.full(len(edges), -1)
    for k, ring in enumerate(holes):
        ring_of[ring] = k
    right, left = (np.flatnonzero(edges[:, 2] == side) for side in (_RIGHT, _LEFT))
    right = right[ring_of[right] >= 0]
    hole = right[np.unique(ring_of[right], return_index=True)[1]]  # edges are in reading order: the first one of each hole
    width = int(edges[:, 3].max()) + 1
    left = left[np.argsort(edges[left, 4] * width + edges[left, 3])]
    starts, wanted = (edges[chosen, 4] * width + edges[chosen, 3] for chosen in (left, hole))
    run = left[np.searchsorted(starts, wanted, side="right") - 1]
    landing = np.column_stack([points[run, 0], points[hole, 1]])  # in the row of the hole's first point
    before = np.empty_like(follower)
    before[follower] = np.arange(len(follower))
    there, around, back = (len(edges) + k * len(holes) + np.arange(len(holes)) for k in range(3))
    links = np.concatenate([follower, hole, back, np.empty_like(hole)])
    links[before[hole]] = around
    links[back] = links[run]
    links[run] = there
    return np.concatenate([points, landing, points[hole], landing]), links


def _without_straight(ring: np.ndarray) -> np.ndarray:
    """The ring without points that repeat or lie on a straight run."""
    moved = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    ring = moved if len(moved) else ring[:1]  # all the same: a single pixel
    if len(ring) < 3:
        return ring
    turns = (ring - np.roll(ring, 1, 0) != np.roll(ring, -1, 0) - ring).any(1)
    return ring[turns]


def _joined(polygon: np.ndarray, ring: np.ndarray, most_pairs: int) -> np.ndarray:
    """One polygon of two: from `polygon` to the nearest point of `ring`, around it, and back."""
    step = 1 + len(polygon) * len(ring) // most_pairs  # the nearest of every step-th point is near enough
    gaps = ((polygon[::step, None] - ring[None]) ** 2).sum(2)
    at, start = (int(k) for k in np.unravel_index(gaps.argmin(), gaps.shape))
    at *= step
    around = np.roll(ring, -start, 0)
    return np.concatenate([polygon[: at + 1], around, around[:1], polygon[at:]])
