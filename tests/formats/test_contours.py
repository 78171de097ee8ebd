"""Outlines lose nothing: filled again they give the mask, with holes, parts and pixels that touch at corners."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lisaseg.errors import DataError
from lisaseg.formats import rle
from lisaseg.formats.contours import mask_to_polygons
from lisaseg.formats.raster import fill_polygon

masks = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: arrays(np.bool_, size))


def filled(mask: np.ndarray, *, join: bool) -> np.ndarray:
    polygons = [polygon.ravel().tolist() for polygon in mask_to_polygons(mask, join=join)]
    return rle.polygons_to_mask(polygons, *mask.shape) if polygons else np.zeros(mask.shape, bool)


@given(masks, st.booleans())
def test_filling_by_area_gives_the_mask_back(mask: np.ndarray, join: bool) -> None:
    assert (filled(mask, join=join) == mask).all()


@given(masks)
def test_painting_with_the_outline_gives_the_mask_back(mask: np.ndarray) -> None:
    """The lines that lead to holes run over pixels of the mask."""
    drawn = np.zeros(mask.shape, np.uint8)
    for polygon in mask_to_polygons(mask, centres=True):
        fill_polygon(drawn, polygon.tolist(), 1)
    assert (drawn.astype(bool) == mask).all()


@given(masks)
def test_parts_are_what_hangs_together(mask: np.ndarray) -> None:
    parts = mask_to_polygons(mask)
    assert len(parts) == _components(mask) and len(mask_to_polygons(mask, join=True)) == bool(parts)


def _components(mask: np.ndarray) -> int:
    left, count = {(int(y), int(x)) for y, x in np.argwhere(mask)}, 0
    while left:
        front, count = [left.pop()], count + 1
        while front:
            y, x = front.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
    return count


def test_straight_runs_are_two_points() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:5, 3:8] = True
    (corners,), (centres,) = mask_to_polygons(mask), mask_to_polygons(mask, centres=True)
    assert sorted(map(tuple, corners.tolist())) == [(3, 2), (3, 5), (8, 2), (8, 5)]
    assert sorted(map(tuple, centres.tolist())) == [(3, 2), (3, 4), (7, 2), (7, 4)]


def test_the_work_grows_with_the_border_and_not_with_parts_times_holes() -> None:
    """Noise of 90,000 pixels: thousands of holes in one part. Each hole compared with each part, as it was once, took minutes."""
    mask = np.random.default_rng(0).random((300, 300)) < 0.6
    begin = time.perf_counter()
    polygons = [polygon.ravel().tolist() for polygon in mask_to_polygons(mask)]
    assert time.perf_counter() - begin < 10
    assert (rle.polygons_to_mask(polygons, 300, 300) == mask).all()


def test_specks_are_no_outline() -> None:
    mask = np.zeros((100, 200), bool)
    mask[::2, ::2] = True
    assert len(mask_to_polygons(mask)) == 5000
    with pytest.raises(DataError, match="5,000 separate parts"):
        mask_to_polygons(mask, join=True)
