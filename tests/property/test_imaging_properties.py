"""Laws of pictures: there and back on any size, digests, and no input that crashes."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpora.image_files import encode, scene

from lisaseg.errors import ImageError
from lisaseg.imaging import LIMITS, fit_longest_side, fit_shortest_crop, open_image

CODES = {"image_not_found", "unsupported_format", "corrupt_image", "truncated_image", "image_too_large", "extreme_aspect_ratio"}
sizes = st.tuples(st.integers(1, 400), st.integers(1, 400)).filter(lambda hw: max(hw) <= LIMITS.max_aspect * min(hw))
grids = st.sampled_from([(64, 64), (64, 16), (96, 24), (128, 32), (256, 64)])  # (canvas, mask grid)


@given(sizes, grids, st.integers(0, 3), st.floats(-30, 30, width=32))
@settings(max_examples=80, deadline=None)
def test_undo_returns_the_size_and_keeps_constants(hw: tuple[int, int], grid: tuple[int, int], n: int, value: float) -> None:
    canvas, placement = fit_longest_side(np.zeros((*hw, 3), np.uint8), grid[0])
    assert canvas.shape == (grid[0], grid[0], 3) and max(placement.resized_hw) == grid[0] and min(placement.resized_hw) >= 1
    assert all(0 < share <= 1 for share in placement.valid_fraction) and max(placement.valid_fraction) == 1
    back = placement.undo(torch.full((n, grid[1], grid[1]), value))
    assert back.shape == (n, *hw) and torch.allclose(back, torch.full_like(back, value), atol=1e-4)


@given(sizes, st.sampled_from([32, 64, 224]), st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=60, deadline=None)
def test_constant_pictures_stay_constant(hw: tuple[int, int], side: int, colour: tuple[int, int, int]) -> None:
    rgb = np.full((*hw, 3), colour, np.uint8)
    canvas, placement = fit_longest_side(rgb, side, fill=(7, 8, 9))
    height, width = placement.resized_hw
    assert (canvas[:height, :width] == colour).all() and (canvas[height:] == (7, 8, 9)).all() and (canvas[:, width:] == (7, 8, 9)).all()
    cropped = fit_shortest_crop(rgb, side)
    assert cropped.shape == (side, side, 3) and (cropped == colour).all()


@given(st.data(), st.integers(40, 300), st.integers(40, 300), st.sampled_from([(256, None), (256, 128), (512, 128)]))
@settings(max_examples=60, deadline=None)
def test_rectangles_survive_the_round_trip(data: st.DataObject, height: int, width: int, grid: tuple[int, int | None]) -> None:
    top, left = data.draw(st.integers(0, height // 4)), data.draw(st.integers(0, width // 4))
    bottom, right = data.draw(st.integers(3 * height // 4, height)), data.draw(st.integers(3 * width // 4, width))
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    _, placement = fit_longest_side(np.zeros((height, width, 3), np.uint8), grid[0])
    target = placement.apply_mask(mask, grid[1])
    assert set(np.unique(target)) <= {0, 1, 255}
    logits = torch.from_numpy(np.where(target == 1, 8.0, -8.0)).float()[None]
    back = placement.undo(logits)[0].numpy() > 0
    intersection, union = (back & (mask == 1)).sum(), (back | (mask == 1)).sum()
    # Padding is "not target" here and bleeds in at the border, and a short side has few cells: allow one cell around.
    cells = min(placement.resized_hw) * (grid[1] or grid[0]) / grid[0]
    assert intersection / union > (0.9 if cells >= 48 else 0.75)


@given(sizes, st.data())
@settings(max_examples=60, deadline=None)
def test_targets_ignore_exactly_the_padding(hw: tuple[int, int], data: st.DataObject) -> None:
    side = data.draw(st.sampled_from([64, 32, 16]))
    _, placement = fit_longest_side(np.zeros((*hw, 3), np.uint8), 64)
    target = placement.apply_mask(np.ones(hw, np.uint8), side)
    rows, columns = (target == 1).any(1).sum(), (target == 1).any(0).sum()
    assert (target[:rows, :columns] == 1).all() and (target == 1).sum() == rows * columns and set(np.unique(target)) <= {1, 255}
    for cells, resized in ((rows, placement.resized_hw[0]), (columns, placement.resized_hw[1])):
        assert cells == max(1, round(resized * side / 64 + 1e-9)) or abs(cells - resized * side / 64) <= 0.5


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_digest_is_of_pixels_and_shape(height: int, width: int, seed: int) -> None:
    rgb = scene(height, width, seed)
    one = open_image(rgb).digest
    assert one == open_image(encode(rgb, "PNG")).digest == open_image(encode(rgb, "BMP")).digest
    if height != width:
        assert one != open_image(rgb.reshape(width, height, 3)).digest
    other = rgb.copy()
    other[-1, -1, 2] ^= 1
    assert one != open_image(other).digest


FILES = {format: encode(scene(12, 16), format) for format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")}


@pytest.mark.parametrize("format", FILES)
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=4)), max_size=6), cut=st.integers(0, 10_000), tail=st.binary(max_size=9))
@settings(max_examples=60, deadline=None)
def test_mutated_files_give_a_picture_or_a_known_error(format: str, edits: list[tuple[int, bytes]], cut: int, tail: bytes) -> None:
    data = bytearray(FILES[format])
    for place, new in edits:
        place %= len(data)
        data[place : place + len(new)] = new
    data = data[: len(data) - cut % len(data)] if cut % 3 == 0 else data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow grumbles about metadata
        try:
            picture = open_image(bytes(data + tail))
        except ImageError as error:
            assert error.code in CODES and "0x" not in str(error) and "object at" not in str(error)
            assert str(error).endswith(error.next_step)
        else:
            assert picture.rgb.shape == (*picture.size, 3) and min(picture.size) >= 1


@given(st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(data)
    assert caught.value.code in CODES


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("cut", [0, 1, 50])
def test_tags_of_any_type_give_a_picture_or_a_known_error(cut: int) -> None:
    """A directory of a TIFF may claim anything about itself, offsets of strips that are words for example."""
    good = encode(np.zeros((8, 8, 3), np.uint8), "TIFF")
    start = int.from_bytes(good[4:8], "little")
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(good[start : start + 2], "little"), 12):
        for kind, count in itertools.product(range(20), (0, 1, 2, 5)):
            data = good[: entry + 2] + kind.to_bytes(2, "little") + count.to_bytes(4, "little") + good[entry + 8 :]
            try:
                open_image(data[: len(data) - cut])
            except ImageError as error:
                assert error.code in CODES
