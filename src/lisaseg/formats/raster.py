"""Polygons to pixels the way ReasonSeg's masks are defined: outline of thickness 1 plus even-odd filling, as OpenCV's `polylines` + `fillPoly` do.

The benchmark's true masks exist only as polygons, so its numbers depend on the rasteriser to the pixel. This one follows OpenCV's rules (8-connected
Bresenham lines clipped to the picture, 16.16 fixed-point edges, later edges from the clipped ends) and needs no OpenCV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lisaseg.errors import DataError

Point = tuple[int, int]  # (x, y) in pixels
_SHIFT = 16  # fixed-point bits of an edge's x
_HALF = 1 << (_SHIFT - 1)
_MAX_COORDINATE = 1 << 20  # beyond this it is an error, not an annotation


@dataclass
class _Edge:
    """A side of the polygon between two rows: it is crossed by rows y0 <= y < y1, at `x` (16.16) in the current one."""

    y0: int
    y1: int
    x: int
    dx: int


def fill_polygon(mask: np.ndarray, points: Sequence[Sequence[float]], value: int) -> None:
    """Set the pixels of a closed polygon, its outline included, to `value`; one point or a line sets the pixels that it touches.

    Args:
        mask: uint8 `(H, W)`, changed in place.
        points: (x, y) in pixels, truncated towards zero; they may lie outside of the picture.
        value: what is written.

    Raises:
        DataError: no point, a point that is not two finite numbers, or one very far away.
    """
    corners = _corners(points)
    height, width = mask.shape
    edges: list[_Edge] = []
    for start, end in zip([corners[-1], *corners[:-1]], corners, strict=True):
        clipped = _clip(start, end, width, height)
        if clipped.visible:
            _draw_line(mask, clipped.start, clipped.end, value)
        if start[1] != end[1]:
            edges.append(_edge(start, end, clipped, width, height))
    if len(edges) >= 2:
        _fill(mask, edges, value)


def _corners(points: Sequence[Sequence[float]]) -> list[Point]:
    corners: list[Point] = []
    for k, point in enumerate(points):
        try:
            x, y = point
            corner = (int(x), int(y))
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"Point {k} is {str(point)[:40]}, not [x, y] in pixels.", next_step="Write two finite numbers a point.") from error
        if max(abs(corner[0]), abs(corner[1])) > _MAX_COORDINATE:
            raise DataError(f"Point {k} lies at {corner}, far outside of any picture.", next_step="Write coordinates in pixels.")
        corners.append(corner)
    if not corners:
        raise DataError("A polygon has no points.", next_step="Draw it again, or remove the shape.")
    return corners


@dataclass
class _Clipped:
    start: Point
    end: Point
    visible: bool


def _quotient(a: int, b: int) -> int:
    """Division that rounds towards zero, as integers do in C."""
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


def _clip(start: Point, end: Point, width: int, height: int) -> _Clipped:
    """The part of a line inside of the picture (Cohen-Sutherland; each cut rounds towards zero, start before end, rows before columns)."""
    ends = [list(start), list(end)]
    limits = (width - 1, height - 1)

    def code(p: list[int]) -> int:
        return (p[0] < 0) + 2 * (p[0] > limits[0]) + 4 * (p[1] < 0) + 8 * (p[1] > limits[1])

    def cut(k: int, axis: int, low: bool) -> None:
        a, other = 0 if low else limits[axis], 1 - axis
        run, rise = ends[1][axis] - ends[0][axis], ends[1][other] - ends[0][other]
        ends[k][other] += int(float(a - ends[k][axis]) * rise / run)
        ends[k][axis] = a

    codes = [code(ends[0]), code(ends[1])]
    if not codes[0] & codes[1]:
        for k in (0, 1):
            if codes[k] & 12:
                cut(k, 1, low=codes[k] < 8)
                codes[k] = code(ends[k]) & 3
        if not codes[0] & codes[1]:
            for k in (0, 1):
                if codes[k]:
                    cut(k, 0, low=codes[k] == 1)
                    codes[k] = 0
    return _Clipped((ends[0][0], ends[0][1]), (ends[1][0], ends[1][1]), not any(codes))


def _draw_line(mask: np.ndarray, start: Point, end: Point, value: int) -> None:
    """8-connected Bresenham line between two points of the picture, drawn from left to right."""
    if end[0] < start[0]:
        start, end = end, start
    dx, dy = end[0] - start[0], abs(end[1] - start[1])
    down = 1 if end[1] >= start[1] else -1
    major, minor = max(dx, dy), min(dx, dy)
    steps = np.arange(major + 1)
    across = -((major - 2 * minor * steps) // (2 * major)) if major else steps
    if dy > dx:
        mask[start[1] + down * steps, start[0] + across] = value
    else:
        mask[start[1] + down * across, start[0] + steps] = value


def _edge(start: Point, end: Point, clipped: _Clipped, width: int, height: int) -> _Edge:
    (x0, y0), (x1, y1) = start, end
    a, b = (x0 << _SHIFT, y0), (x1 << _SHIFT, y1)
    outside = not (0 <= x0 < width and 0 <= x1 < width and 0 <= y0 < height and 0 <= y1 < height)
    if not outside:
        a, b = (a[0] + _HALF, y0), (b[0] + _HALF, y1)
    elif clipped.start[1] != clipped.end[1]:
        a, b = (clipped.start[0] << _SHIFT, clipped.start[1]), (clipped.end[0] << _SHIFT, clipped.end[1])
    slope = _quotient(b[0] - a[0], b[1] - a[1])
    if y0 < y1:
        return _Edge(y0, y1, a[0] + (y0 - a[1]) * slope, slope)
    return _Edge(y1, y0, b[0] + (y1 - b[1]) * slope, slope)


def _fill(mask: np.ndarray, edges: list[_Edge], value: int) -> None:
    """Fill between each odd and the following even crossing of every row."""
    height, width = mask.shape
    waiting = sorted(edges, key=lambda e: (e.y0, e.x, e.dx), reverse=True)
    active: list[_Edge] = []
    for y in range(waiting[-1].y0, min(max(e.y1 for e in edges), height)):
        kept = [e for e in active if e.y1 != y]
        active = []
        for edge in kept:
            while waiting and waiting[-1].y0 == y and waiting[-1].x <= edge.x:
                active.append(waiting.pop())
            active.append(edge)
        while waiting and waiting[-1].y0 == y:
            active.append(waiting.pop())
        for left, right in zip(active[0::2], active[1::2], strict=True):
            x0, x1 = sorted((left.x >> _SHIFT, right.x >> _SHIFT))
            if y >= 0 and x0 < width and x1 >= 0:
                mask[y, max(x0, 0) : x1 + 1] = value
            left.x += left.dx
            right.x += right.dx
        active.sort(key=lambda e: e.x)
