"""Fewer points for an outline."""

from __future__ import annotations

import numpy as np


def simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """The closed ring `(K, 2)` without points that lie within `tolerance` of the line between the neighbours that stay (Douglas and Peucker, 1973).

    Args:
        ring: points (x, y) in order, the last one joined to the first.
        tolerance: in the unit of the points; 0 drops only what changes nothing.

    Returns:
        Some of the points in their order, `(L, 2)`; at least three if there were three that do not lie on one line.
    """
    if len(ring) < 4:
        return ring
    points = np.concatenate([ring, ring[:1]]).astype(float)
    far = int(((points - points[0]) ** 2).sum(1).argmax())
    keep = {0, far}
    stack = [(0, far), (far, len(ring))]
    widest, most = -1, 0.0  # the point that lies farthest from its line, in case that nothing else stays
    while stack:
        start, end = stack.pop()
        if end - start < 2:
            continue
        gaps = _distances(points[start + 1 : end], points[start], points[end])
        at = int(gaps.argmax())
        if gaps[at] > most:
            widest, most = start + 1 + at, float(gaps[at])
        if gaps[at] > tolerance:
            middle = start + 1 + at
            keep.add(middle)
            stack += [(start, middle), (middle, end)]
    if len(keep) < 3 and widest >= 0:
        keep.add(widest)
    return ring[sorted(keep)]


def _distances(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """From each of `(K, 2)` points to the line from a to b, ends included."""
    along = b - a
    length = float(along @ along)
    share = np.clip(((points - a) @ along) / length, 0, 1) if length else np.zeros(len(points))
    return np.hypot(*(points - a - share[:, None] * along).T)
