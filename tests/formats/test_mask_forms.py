"""A mask that went through JSON in any form is the same mask; what is no mask is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from lisaseg.errors import DataError
from lisaseg.formats.mask_forms import mask_from_json, mask_png, mask_to_json
from lisaseg.types import MaskFormat

masks = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: arrays(np.bool_, size))
FORMS: list[MaskFormat] = ["rle", "polygon", "png"]


@given(masks, st.sampled_from(FORMS))
def test_a_round_trip_loses_nothing(mask: np.ndarray, form: MaskFormat) -> None:
    data = json.loads(json.dumps(mask_to_json(mask, form)))
    assert data["size"] == list(mask.shape) and len(data) == 2
    assert (mask_from_json(data) == mask).all()


@given(masks)
def test_pycocotools_fills_the_polygons_to_the_mask(mask: np.ndarray) -> None:
    data: Any = mask_to_json(mask, "polygon")
    filled = coco.decode(coco.merge(coco.frPyObjects(data["polygons"], *data["size"]))) if data["polygons"] else np.zeros(mask.shape)
    assert (filled == mask).all()


def test_no_mask_is_null() -> None:
    assert mask_to_json(np.ones((2, 2), bool), "none") is None


GREY = base64.b64encode(mask_png(np.ones((2, 3), bool))).decode()


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "without masks"),
        ([], "object"),
        ({}, "size"),
        ({"size": [2, 3]}, "counts"),
        ({"size": [2, 3], "counts": "0"}, "counts"),
        ({"size": [2, 3], "polygons": None}, "olygon"),
        ({"size": [2, 3], "polygons": [[1, 2]]}, "olygon"),
        ({"size": [2, 3], "polygons": [[0, 0, 1e9, 0, 1, 1]]}, "outside"),
        ({"size": [2, -3], "polygons": []}, "size"),
        ({"size": [1 << 20, 1 << 20], "polygons": []}, "beyond"),
        ({"size": [2, 3], "png": 3}, "PNG"),
        ({"size": [2, 3], "png": "!"}, "PNG"),
        ({"size": [2, 3], "png": GREY[:40]}, "PNG"),
        ({"size": [3, 2], "png": GREY}, "3 x 2"),
    ],
)
def test_what_is_no_mask_is_refused(value: Any, word: str) -> None:
    with pytest.raises(DataError, match=word):
        mask_from_json(value)
