from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lisaseg.drawing import MAX_SIDE, MIN_WIDTH, PALETTE, _deepest, colour_of, draw_answer, draw_masks
from lisaseg.errors import UsageError
from lisaseg.types import Answer, Segment

masks = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda size: arrays(np.bool_, size))
any_text = st.text(max_size=60) | st.sampled_from(
    ["\ud800 lone", "नमस्ते", "مرحبا", "👩‍👩‍👧", "e" + "\u0301" * 300, "\x00\x1b[31m", "[mask 0][mask 99]", "字" * 300]
)


def picture(height: int = 700, width: int = 900, value: int = 120) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def answer(rgb: np.ndarray | None, found: list[np.ndarray], text: str = "", phrase: str = "", score: float | None = None) -> Answer:
    segments = tuple(Segment.from_mask(k, mask, (0, 0), score, phrase) for k, mask in enumerate(found))
    size = found[0].shape if found else rgb.shape[:2] if rgb is not None else (1, 1)
    return Answer(text, "[SEG]" * len(found), "masks" if found else "no_target", segments, size, instruction=text, image=rgb)


@given(masks)
def test_the_deepest_point_is_a_pixel_of_the_mask(mask: np.ndarray) -> None:
    point = _deepest(mask)
    assert (point is None) == (not mask.any())
    if point is not None:
        assert mask[point[1], point[0]]


@pytest.mark.parametrize("shape", [(9, 9), (101, 61), (900, 1300)])
def test_the_deepest_point_of_a_box_is_its_centre(shape: tuple[int, int]) -> None:
    mask = np.zeros((2000, 2000), bool)
    mask[50 : 50 + shape[0], 70 : 70 + shape[1]] = True
    x, y, _ = _deepest(mask) or (0, 0, 0)
    slack = max(2, max(shape) // 40)
    assert abs(x - (70 + shape[1] / 2)) <= slack and abs(y - (50 + shape[0] / 2)) <= slack


def test_the_deepest_point_prefers_the_thick_part() -> None:
    mask = np.zeros((200, 300), bool)
    mask[95:105, :250] = True  # a long handle
    mask[60:140, 10:90] = True  # a head
    x, y, _ = _deepest(mask) or (0, 0, 0)
    assert 30 <= x <= 70 and 80 <= y <= 120


@settings(max_examples=15, deadline=None)
@given(masks, any_text, any_text, st.none() | st.floats(0, 1))
def test_draws_any_mask_and_any_script(mask: np.ndarray, text: str, phrase: str, score: float | None) -> None:
    rgb = np.zeros((*mask.shape, 3), np.uint8)
    sheet = draw_answer(answer(rgb, [mask, ~mask, mask], text, phrase, score))
    assert sheet.mode == "RGB" and sheet.width >= MIN_WIDTH
    assert not rgb.any(), "the picture of the answer must not be painted on"


@pytest.mark.parametrize("size", [(1, 1), (20, 20), (1, 200), (200, 1), (3, 600)])
def test_small_and_narrow_pictures_are_enlarged_by_a_whole_factor(size: tuple[int, int]) -> None:
    rgb = np.zeros((*size, 3), np.uint8)
    drawn = draw_masks(rgb, [np.ones(size, bool)], legend=False)
    factor = drawn.width // size[1]
    assert (drawn.height, drawn.width) == (size[0] * factor, size[1] * factor) and max(drawn.size) >= 640


def test_large_pictures_are_reduced_and_thin_masks_survive() -> None:
    mask = np.zeros((3000, 5000), bool)
    mask[1500, 100:4900] = True
    rgb = np.zeros((3000, 5000, 3), np.uint8)
    drawn = np.asarray(draw_masks(rgb, [mask], legend=False))
    assert max(drawn.shape) == MAX_SIDE and drawn.any(axis=(0, 2)).mean() > 0.9


def test_paints_inside_and_leaves_the_rest_alone() -> None:
    rgb, mask = picture(), np.zeros((700, 900), bool)
    mask[200:500, 300:600] = True
    drawn = np.asarray(draw_masks(rgb, [mask], legend=False)).astype(int)
    assert (drawn[:190] == 120).all() and (drawn[:, 620:] == 120).all()
    assert tuple(drawn[200, 450]) == PALETTE[0], "a solid rim"
    inside = drawn[230, 330]
    assert (inside != 120).any() and np.abs(inside - np.array(PALETTE[0])).sum() < np.abs(120 - np.array(PALETTE[0])).sum(), (
        "tinted towards its colour"
    )


def test_every_mask_shows_its_colour_even_when_masks_coincide() -> None:
    mask = np.zeros((700, 900), bool)
    mask[100:600, 100:800] = True
    drawn = np.asarray(draw_masks(picture(), [mask] * 4, legend=False)).reshape(-1, 3)
    for k in range(4):
        assert (drawn == colour_of(k)).all(1).any(), f"badge {k + 1} is hidden"


def test_small_masks_lie_over_large_ones_whatever_their_order() -> None:
    large, small = np.ones((700, 900), bool), np.zeros((700, 900), bool)
    small[300:400, 300:400] = True
    for found, k in (([large, small], 1), ([small, large], 0)):
        drawn = np.asarray(draw_masks(picture(), found, legend=False))
        assert tuple(drawn[300, 350]) == colour_of(k)


def test_numbers_can_be_read_on_every_badge_colour() -> None:
    def luminance(colour: tuple[int, ...]) -> float:
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for k in range(len(PALETTE)):
        mask = np.zeros((700, 900), bool)
        mask[200:500, 300:600] = True
        drawn = draw_masks(picture(), [np.zeros_like(mask)] * k + [mask], legend=False)
        badge = np.asarray(drawn)[342:358, 444:456].reshape(-1, 3)  # inside of the disc, where only ground and digit are
        lum = np.array([luminance(tuple(int(v) for v in c)) for c in badge])
        ground = luminance(colour_of(k))
        best = max((lum.max() + 0.05) / (ground + 0.05), (ground + 0.05) / (lum.min() + 0.05))
        assert best >= 3, f"number {k + 1} on {colour_of(k)}"


def test_legend_grows_with_the_answer() -> None:
    rgb = picture()
    bare = draw_answer(answer(rgb, []))
    mask = np.ones((700, 900), bool)
    heights = [draw_answer(answer(rgb, [mask] * n, "A question?")).height for n in (0, 1, 5)]
    assert 700 < bare.height < heights[0] < heights[1] < heights[2]
    long = draw_answer(answer(rgb, [], "word " * 100_000))
    assert long.height < 2000, "a very long text must not make an endless picture"


def test_refusals() -> None:
    mask = np.ones((4, 4), bool)
    with pytest.raises(UsageError, match="holds no picture"):
        draw_answer(answer(None, [mask]))
    with pytest.raises(UsageError, match="Mask 1 has shape"):
        draw_masks(picture(), [mask])
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(UsageError, match="uint8"):
            draw_masks(wrong, [])
