"""Fewer points, and none of those that went lies farther away than promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lisaseg.formats.simplify import simplified


def distance(point: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    along = b - a
    share = min(1.0, max(0.0, float((point - a) @ along) / (float(along @ along) or 1.0)))
    return float(np.linalg.norm(point - a - share * along))


@given(arrays(np.int64, st.tuples(st.integers(3, 30), st.just(2)), elements=st.integers(0, 20)), st.floats(0, 8))
def test_what_went_was_near_and_what_stays_is_in_order(ring: np.ndarray, tolerance: float) -> None:
    short = simplified(ring, tolerance)
    at, places = 0, []
    for point in short:
        at += next(k for k, other in enumerate(ring[at:]) if (other == point).all())
        places.append(at)
        at += 1
    for start, end in zip(places, [*places[1:], places[0] + len(ring)], strict=True):
        between = [ring[k % len(ring)] for k in range(start + 1, end)]
        # equal points make the place ambiguous: then another of them was kept
        if len(np.unique(ring, axis=0)) == len(ring):
            assert all(distance(p.astype(float), ring[start].astype(float), ring[end % len(ring)].astype(float)) <= tolerance + 1e-9 for p in between)


@given(arrays(np.int64, st.tuples(st.integers(3, 30), st.just(2)), elements=st.integers(0, 20), unique=False), st.floats(0, 100))
def test_a_ring_with_an_area_stays_a_polygon(ring: np.ndarray, tolerance: float) -> None:
    flat = np.linalg.matrix_rank(ring - ring[0]) < 2
    assert len(simplified(ring, tolerance)) >= (1 if flat else 3)


@pytest.mark.parametrize(("tolerance", "theirs"), [(0.5, 113), (2.0, 31), (8.0, 17)])
def test_about_as_many_points_as_opencv_keeps(tolerance: float, theirs: int) -> None:
    """`theirs`: len(cv2.approxPolyDP(ring[:, None], tolerance, True)) of OpenCV 4.14."""
    t = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ring = np.stack([200 + (80 + 20 * np.sin(5 * t)) * np.cos(t), 200 + (80 + 20 * np.sin(5 * t)) * np.sin(t)], 1).round().astype(np.int32)
    assert 0.6 * theirs <= len(simplified(ring, tolerance)) <= 1.6 * theirs
