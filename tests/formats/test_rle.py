from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from lisaseg.errors import DataError
from lisaseg.formats.rle import decode, encode, polygons_to_mask

masks = st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(lambda size: arrays(np.bool_, size))


def runs_of(mask: np.ndarray) -> list[int]:
    """Straight from COCO's definition, without pycocotools."""
    flat = np.concatenate(([False], mask.flatten(order="F"), [False]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate(([0], edges))).tolist()
    rest = mask.size - sum(runs)
    return [*runs, rest] if rest else runs


@given(masks)
def test_decode_undoes_encode_and_pycocotools_agrees(mask: np.ndarray) -> None:
    rle = encode(mask)
    assert rle["size"] == list(mask.shape) and isinstance(rle["counts"], str)
    assert (decode(rle) == mask).all() and decode(rle).dtype == np.bool_
    assert (coco.decode(rle) == mask).all()
    assert encode(mask.astype(np.uint8)) == rle
    assert (decode({**rle, "counts": rle["counts"].encode()}) == mask).all()


@given(masks)
def test_list_of_runs(mask: np.ndarray) -> None:
    assert (decode({"size": list(mask.shape), "counts": runs_of(mask)}) == mask).all()


def test_long_runs_and_large_masks() -> None:
    mask = np.zeros((3000, 4000), bool)
    mask[10:2990, 2000:] = True
    mask[5, 7] = True
    assert (decode(encode(mask)) == mask).all()


@given(st.text(max_size=12) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=8))
@example("0")  # pycocotools returns uninitialised memory for this one
@example("")
@example("o" * 40)
def test_any_string_is_a_mask_or_a_clean_refusal(counts: str) -> None:
    try:
        mask = decode({"size": [4, 4], "counts": counts})
    except DataError as error:
        assert error.next_step
    else:
        assert sum(runs_of(mask)) == 16 and (coco.decode({"size": [4, 4], "counts": counts}) == mask).all()


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [4, 4]},
        {"counts": [16]},
        {"size": [4], "counts": [4]},
        {"size": [4, -4], "counts": [16]},
        {"size": [4.0, 4], "counts": [16]},
        {"size": [True, 4], "counts": [4]},
        {"size": "44", "counts": [16]},
        {"size": [10**9, 10**9], "counts": [1]},
        {"size": [4, 10**400], "counts": [1]},
        {"size": [10**5000, 4], "counts": [1]},
        {"size": [4, 4], "counts": [3, 4]},
        {"size": [4, 4], "counts": [3, 40]},
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [4, 4], "counts": [1.0, 15]},
        {"size": [4, 4], "counts": [2**70]},
        {"size": [4, 4], "counts": None},
        {"size": [4, 4], "counts": {"a": 1}},
    ],
)
def test_bad_rle(rle: dict[str, Any]) -> None:
    with pytest.raises(DataError) as refused:
        decode(rle)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("array", [np.zeros((2, 2, 2), bool), np.zeros((2, 2), np.int64), np.full((2, 2), 255, np.uint8), np.zeros((0, 3), bool)])
def test_encode_refuses_what_is_no_mask(array: np.ndarray) -> None:
    with pytest.raises(DataError):
        encode(array)


@given(st.integers(0, 10), st.integers(0, 10), st.integers(1, 9), st.integers(1, 9))
def test_polygon_of_a_box_is_the_box(x: int, y: int, w: int, h: int) -> None:
    mask = polygons_to_mask([[x, y, x + w, y, x + w, y + h, x, y + h]], 24, 20)
    expected = np.zeros((24, 20), bool)
    expected[y : y + h, x : x + w] = True
    assert (mask == expected).all()


def test_polygons_unite_and_may_leave_the_picture_a_little() -> None:
    one, two = [0, 0, 4, 0, 4, 4, 0, 4], [2.0, 2.0, 12.5, 2.0, 12.5, 6.0, 2.0, 6.0]
    assert (polygons_to_mask([one, two], 10, 10) == (polygons_to_mask([one], 10, 10) | polygons_to_mask([two], 10, 10))).all()


@pytest.mark.parametrize(
    "polygons",
    [
        [],
        [[]],
        [[1, 1, 2, 2]],
        [[1, 1, 2, 2, 3]],
        [[1, 1, 2, 2, 3, float("nan")]],
        [[1, 1, 2, 2, 3, float("inf")]],
        [[1, 1, 2, 2, 3, "4"]],
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        "polygon",
        [["a"] * 6],
        [[True] * 6],
        [[[1, 2], [3, 4], [5, 6]]],
        None,
    ],
)
def test_bad_polygons(polygons: Any) -> None:
    with pytest.raises(DataError):
        polygons_to_mask(polygons, 10, 10)
