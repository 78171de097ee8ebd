"""Names of cut-outs are nouns; pasted pictures carry exact, disjoint, non-empty masks and depend on the seed only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lisaseg.datasets.cutouts import Cutouts, clean_name, compose
from lisaseg.errors import DataError, UsageError

PLAIN: dict[str, Any] = {"id": "x_1", "file": "cutouts/a.png", "type": "photo", "licence": "CC0", "category": "c"}


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"text": "A daffodil."}, "daffodil"),
        ({"text": "A pair of pliers."}, "pliers"),
        ({"text": "A peacock (a male peafowl)."}, "peacock"),
        ({"text": "Some flowers."}, "flowers"),
        ({"text": "Dead end ahead! Turn round, please."}, None),
        ({"name": "Brinjal-12"}, "eggplant"),
        ({"name": "Carrot, red"}, "red carrot"),
        ({"name": "Grapes, seedless, round, green"}, "green grapes"),
        ({"name": "TV 16:9"}, "TV"),
        ({"name": "Desk lamp"}, "desk lamp"),
        ({"name": "Concept Sedan 01"}, "sedan"),
        ({"name": "Square type B plug"}, "wall socket"),
        ({"name": "eight o’clock"}, "clock"),
        ({"name": "eight-thirty"}, "clock"),
        ({"name": "Kulam paarai", "category": "Marine Fish"}, "fish"),
        ({"name": "Mackerel", "category": "Marine Fish"}, "mackerel"),
        ({"name": "arla standard milk", "category": "Milk"}, "carton of milk"),
        ({"name": "heart suit", "category": "activities / games & hobbies"}, None),
        ({"name": "tornado", "category": "travel & places / weather"}, None),
        ({"name": "umbrella", "category": "travel & places / weather"}, "umbrella"),
    ],
)
def test_names_are_nouns_or_nothing(entry: dict[str, Any], name: str | None) -> None:
    assert clean_name({**PLAIN, **entry}) == name


def folder(tmp_path: Path, records: Any) -> Path:
    root = tmp_path / "cutouts"
    root.mkdir()
    pixels = np.zeros((6, 5, 4), np.uint8)
    pixels[1:4, 1:4] = (200, 100, 50, 255)
    Image.fromarray(pixels).save(root / "a.png")
    Image.new("RGBA", (4, 4)).save(root / "empty.png")
    (root / "cutouts.json").write_text(json.dumps(records), encoding="utf-8")
    return root


def test_records_are_read_and_loaded(tmp_path: Path) -> None:
    render = {**PLAIN, "id": "x_2", "file": "a.png", "name": "Chair", "text": "Blend Swap, Seat", "type": "render"}
    cutouts = Cutouts(folder(tmp_path, [{**PLAIN, "text": "A daffodil."}, {**PLAIN, "name": "heart suit"}, render]))
    assert [(c.name, c.tags, c.text) for c in cutouts.records] == [("daffodil", (), "A daffodil."), ("chair", ("Seat",), "")]
    assert len(cutouts) == 2 and cutouts[1].id == "x_2" and cutouts[1].licence == "CC0"
    for index in range(2):  # `file` may be relative to the folder or to its parent
        pixels = cutouts.load(index)
        assert pixels.shape == (6, 5, 4) and pixels.dtype == np.uint8 and (pixels[..., 3] > 0).sum() == 9


@pytest.mark.parametrize(
    ("records", "message"),
    [({}, "a list of records"), ([{"id": "a"}], "record 0.*'file'"), ([PLAIN | {"name": "Cup"}, {"file": "a"}], "record 1.*'id'"), ([3], "record 0")],
)
def test_bad_lists_are_named(tmp_path: Path, records: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Cutouts(folder(tmp_path, records))


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Cutouts(tmp_path)
    cutouts = Cutouts(folder(tmp_path, [{**PLAIN, "name": "Cup", "file": "gone.png"}, {**PLAIN, "name": "Cup", "file": "empty.png"}]))
    with pytest.raises(DataError, match=r"gone\.png"):
        cutouts.load(0)
    with pytest.raises(DataError, match="transparent"):
        cutouts.load(1)
    (tmp_path / "cutouts" / "cutouts.json").write_text("[", encoding="utf-8")
    with pytest.raises(DataError, match="not JSON"):
        Cutouts(tmp_path / "cutouts")


@st.composite
def cutout(draw: st.DrawFn) -> np.ndarray:
    height, width, seed = draw(st.integers(1, 60)), draw(st.integers(1, 60)), draw(st.integers(0, 9))
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    shape = draw(st.sampled_from(["full", "ellipse", "faint", "dot"]))
    if shape == "full":
        pixels[..., 3] = 255
    elif shape == "ellipse":
        ys, xs = np.mgrid[:height, :width]
        pixels[..., 3] = 255 * (((ys + 0.5) / height - 0.5) ** 2 + ((xs + 0.5) / width - 0.5) ** 2 <= 0.25)
    else:
        pixels[..., 3] = 40 if shape == "faint" else 0
    pixels[height // 2, width // 2, 3] = 255
    return pixels


@given(st.integers(32, 120), st.integers(32, 120), st.lists(cutout(), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
@settings(max_examples=120, deadline=None)
def test_pasted_masks_are_disjoint_visible_and_exact(height: int, width: int, cutouts: list[np.ndarray], seed: int) -> None:
    background = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = background.copy()
    rgb, masks = compose(background, cutouts, np.random.default_rng(seed))
    assert (background == before).all()
    assert rgb.shape == background.shape and rgb.dtype == np.uint8 and len(masks) == len(cutouts)
    for mask in masks:
        assert mask.shape == (height, width) and mask.dtype == np.uint8
        assert set(np.unique(mask).tolist()) <= {0, 1} and mask.any()
    assert np.sum(masks, axis=0).max() == 1
    rgb2, masks2 = compose(background, cutouts, np.random.default_rng(seed))
    assert (rgb == rgb2).all() and all((a == b).all() for a, b in zip(masks, masks2, strict=True))


def test_pixels_change_exactly_where_opaque_cutouts_lie() -> None:
    background = np.zeros((80, 100, 3), np.uint8)
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    squares = [np.full((20, 30, 4), (*color, 255), np.uint8) for color in colors]
    for seed in range(20):
        rgb, masks = compose(background, squares, np.random.default_rng(seed))
        assert ((rgb.max(-1) > 0) == (np.sum(masks, axis=0) > 0)).all()
        for color, mask in zip(colors, masks, strict=True):  # what the mask shows is the cut-out itself, never one that hides it
            assert (rgb[mask > 0].argmax(-1) == np.argmax(color)).all() and (rgb[mask > 0].min(-1) == 0).all()


def test_seeds_differ_and_sizes_flips_and_places_vary() -> None:
    background = np.zeros((100, 100, 3), np.uint8)
    half = np.full((20, 20, 4), 255, np.uint8)
    half[:, 10:, :3] = 60
    seen = [compose(background, [half], np.random.default_rng(seed)) for seed in range(30)]
    assert len({masks[0].tobytes() for _, masks in seen}) == 30
    bright_left = []
    for rgb, (mask,) in seen:
        xs = np.flatnonzero(mask.any(0))
        row = rgb[np.flatnonzero(mask.any(1))[0], xs[0] : xs[-1] + 1, 0]
        bright_left.append(row[0] > row[-1])
    assert len({int(mask.sum()) for _, (mask,) in seen}) > 10
    assert {True, False} <= {bool(x) for x in bright_left}


@pytest.mark.parametrize(
    ("background", "cutouts", "message"),
    [
        (np.zeros((40, 40), np.uint8), [np.full((4, 4, 4), 255, np.uint8)], "background"),
        (np.zeros((40, 40, 3), np.float32), [np.full((4, 4, 4), 255, np.uint8)], "background"),
        (np.zeros((8, 40, 3), np.uint8), [np.full((4, 4, 4), 255, np.uint8)], "background"),
        (np.zeros((40, 40, 3), np.uint8), [], "got 0"),
        (np.zeros((40, 40, 3), np.uint8), [np.full((4, 4, 4), 255, np.uint8)] * 9, "got 9"),
        (np.zeros((40, 40, 3), np.uint8), [np.full((4, 4, 3), 255, np.uint8)], "cut-out 0"),
        (np.zeros((40, 40, 3), np.uint8), [np.zeros((4, 4, 4), np.uint8)], "transparent"),
    ],
)
def test_wrong_inputs_are_refused(background: np.ndarray, cutouts: list[np.ndarray], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compose(background, cutouts, np.random.default_rng(0))
