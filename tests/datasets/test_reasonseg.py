"""ReasonSeg: masks equal to the reference's to the pixel, texts, explanations, encodings, and faults that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from tests.golden.places import EXTRAS

from lisaseg.datasets.reasonseg import ReasonSeg
from lisaseg.errors import DataError
from lisaseg.formats.raster import fill_polygon
from lisaseg.formats.reasonseg import shapes_to_mask

GOLDEN = EXTRAS / "reasonseg"
FIXTURES = Path(__file__).parents[1] / "fixtures"
SIZES = json.loads((GOLDEN / "sizes.json").read_text(encoding="utf-8"))


def shapes_of(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))["shapes"]
    return found


@pytest.mark.parametrize("name", sorted(SIZES))
def test_masks_equal_the_reference(name: str) -> None:
    mask = shapes_to_mask(shapes_of(name), **SIZES[name])
    np.testing.assert_array_equal(mask, load_file(GOLDEN / "masks.safetensors")[name])
    assert mask.dtype == np.uint8


@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_loader_gives_the_golden_masks(name: str, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / f"{name}.json").write_bytes((GOLDEN / f"{name}.json").read_bytes())
    Image.new("RGB", (SIZES[name]["width"], SIZES[name]["height"])).save(tmp_path / "val" / f"{name}.jpg")
    (query,) = ReasonSeg(tmp_path, "val", folder=".")[0].queries
    np.testing.assert_array_equal(query.masks[0], load_file(GOLDEN / "masks.safetensors")[name])


points = st.lists(st.tuples(st.floats(-40, 90), st.floats(-40, 90)), min_size=1, max_size=9)


@given(points=points, height=st.integers(1, 50), width=st.integers(1, 50))
def test_filling_is_the_part_of_a_larger_picture(points: list[tuple[float, float]], height: int, width: int) -> None:
    """A polygon inside the picture is filled the same wherever it lies. What leaves it is clipped as OpenCV does: see the goldens."""
    inside = [(int(x) % width, int(y) % height) for x, y in points]
    small = np.zeros((height, width), np.uint8)
    fill_polygon(small, inside, 1)
    whole = np.zeros((150, 150), np.uint8)
    fill_polygon(whole, [(x + 45, y + 45) for x, y in inside], 1)
    assert np.array_equal(small, whole[45 : 45 + height, 45 : 45 + width])
    assert whole.sum() == small.sum()


@given(points=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 29)), min_size=1, max_size=8))
def test_an_outline_is_always_part_of_the_mask(points: list[tuple[int, int]]) -> None:
    mask = np.zeros((30, 40), np.uint8)
    fill_polygon(mask, points, 1)
    assert all(mask[y, x] == 1 for x, y in points)
    turned = np.zeros((30, 40), np.uint8)
    fill_polygon(turned, points[1:] + points[:1], 1)
    np.testing.assert_array_equal(mask, turned)  # where it starts does not matter


def test_coordinates_are_cut_not_rounded() -> None:
    mask = np.zeros((9, 9), np.uint8)
    fill_polygon(mask, [(1.9, 1.9), (5.9, 1.9), (5.9, 5.9), (1.9, 5.9)], 7)
    assert (mask[1:6, 1:6] == 7).all() and mask.astype(bool).sum() == 25


@pytest.mark.parametrize("bad", [[], [[1]], [[float("nan"), 1]], [[float("inf"), 1]], ["ab"], [[1e9, 0]], 5])
def test_points_that_are_none_are_refused_by_name(bad: Any) -> None:
    with pytest.raises(DataError, match=r"here, shapes\[1\]"):
        shapes_to_mask([{"label": "target", "points": [[1, 1]]}, {"label": "target", "points": bad}], 9, 9, "here")


def test_real_files() -> None:
    data = ReasonSeg(FIXTURES, "val", folder="reasonseg_format")
    assert len(data) == 4
    for sample in data:
        assert isinstance(sample.image, Path)
        (query,) = sample.queries
        assert query.masks[0].shape == Image.open(sample.image).size[::-1] and (query.masks[0] == 1).any()
    assert {"30213_0", "5001_0"} <= {sample.id for sample in data}


def write(root: Path, raw: bytes, size: tuple[int, int] = (8, 6)) -> ReasonSeg:
    (root / "train").mkdir()
    (root / "train/a_0.json").write_bytes(raw)
    Image.new("RGB", size).save(root / "train/a_0.jpg")
    return ReasonSeg(root, folder=".")


def test_windows_text_is_read(tmp_path: Path) -> None:
    raw = '{"text": ["the child’s café", "b"], "is_sentence": false, "shapes": []}'.encode("cp1252")
    query = write(tmp_path, raw)[0].queries[0]
    assert (query.text, query.rephrasings, query.is_sentence) == ("the child’s café", ("b",), False)
    assert not query.masks[0].any()


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{", b'{"text": [], "is_sentence": true, "shapes": []}', b'{"text": [" "], "is_sentence": true, "shapes": []}',
     b'{"text": ["a [SEG]"], "is_sentence": true, "shapes": []}', b'{"text": ["a"], "shapes": []}',
     b'{"text": ["a"], "is_sentence": 1, "shapes": []}',
     b'{"text": ["a"], "is_sentence": true}', b'{"text": ["a"], "is_sentence": true, "shapes": [{"label": "target"}]}'],
)  # fmt: skip
def test_a_wrong_file_is_named(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a_0\.json"):
        write(tmp_path, raw)[0]
