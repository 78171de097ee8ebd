"""Pictures with numbered masks and a legend, from an `Answer` or from plain arrays.

Colours are the Okabe-Ito palette (safe for colour-blind readers), strong ones first, and every mask also carries its number, so colour is never
the only mark. Pictures with a long side under 640 px are enlarged by a whole factor and those over 2048 px are reduced, for drawing only; the
legend says so.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lisaseg.errors import UsageError

if TYPE_CHECKING:
    from lisaseg.types import Answer

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (213, 94, 0),  # vermillion
    (0, 114, 178),  # blue
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (240, 228, 66),  # yellow
)
MIN_SIDE, MAX_SIDE = 640, 2048  # long side of the drawn picture, pixels
MIN_WIDTH = 480  # a legend narrower than this cannot be read
FILL = 0.42  # opacity of the fill
INK, QUIET, PAPER, RULE = (28, 30, 33), (106, 110, 117), (250, 250, 250), (222, 224, 227)
MASK_MARK = re.compile(r"(\[mask \d+\])")
EMPTY_ANSWER = {
    "no_target": "No mask: nothing in the picture fits.",
    "no_mask_requested": "No mask was asked for.",
    "truncated": "Cut at the length limit.",
}


@dataclass(frozen=True)
class _Row:
    """One line of the legend."""

    number: int
    label: str
    facts: str


def draw_answer(answer: Answer) -> Image.Image:
    """The picture of an answer with its masks, and below it the instruction, the answer and one row a mask.

    Args:
        answer: must hold `image`, uint8 `(H, W, 3)`.

    Returns:
        RGB image, at least 480 px wide.

    Raises:
        UsageError: the answer holds no picture, for example because it was read from a file.
    """
    if answer.image is None:
        raise UsageError(
            "This answer holds no picture, so it cannot be drawn.",
            next_step="Pass the picture and `answer.masks` to `lisaseg.drawing.draw_masks`.",
            code="no_picture",
        )
    rows = [_Row(s.index + 1, s.phrase or f"mask {s.index + 1}", _facts(s.area, s.mask.size, s.score)) for s in answer.segments]
    text = answer.text or EMPTY_ANSWER.get(answer.status, "")
    return _compose(answer.image, answer.masks, rows, [(answer.instruction, QUIET), (text, INK)])


def draw_masks(rgb: np.ndarray, masks: np.ndarray | Sequence[np.ndarray], labels: Sequence[str] = (), *, legend: bool = True) -> Image.Image:
    """A picture with masks, numbered from 1, and a legend.

    Args:
        rgb: uint8 `(H, W, 3)`.
        masks: bool `(N, H, W)`, or N arrays `(H, W)`; N may be 0.
        labels: one text a mask; missing or empty ones read "mask k".
        legend: False gives the picture alone, at the drawing size.

    Raises:
        UsageError: shapes that do not fit together.
    """
    rows = []
    for k, mask in enumerate(masks):
        label = labels[k] if k < len(labels) else ""
        rows.append(_Row(k + 1, label or f"mask {k + 1}", _facts(int(np.count_nonzero(mask)), mask.size, None)))
    return _compose(rgb, masks, rows, []) if legend else _overlay(rgb, masks)


def _facts(area: int, pixels: int, score: float | None) -> str:
    if area == 0:
        return "empty"
    share = 100 * area / max(pixels, 1)
    text = f"{share:.1f} % of the picture" if share >= 0.1 else "< 0.1 % of the picture"
    return text if score is None else f"{text}, score {score:.2f}"


def _compose(rgb: np.ndarray, masks: np.ndarray | Sequence[np.ndarray], rows: Sequence[_Row], texts: Sequence[tuple[str, Colour]]) -> Image.Image:
    picture = _overlay(rgb, masks)
    width = max(picture.width, MIN_WIDTH)
    notes = list(texts)
    if picture.width != rgb.shape[1] or picture.height != rgb.shape[0]:
        notes.append((f"Drawn at {picture.width} x {picture.height}; the picture has {rgb.shape[1]} x {rgb.shape[0]} pixels.", QUIET))
    strip = _legend(width, rows, notes)
    sheet = Image.new("RGB", (width, picture.height + (strip.height if strip else 0)), PAPER)
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    if strip:
        sheet.paste(strip, (0, picture.height))
    return sheet


# --- the picture ----------------------------------------------------------------------------------------------------------------------------------


def _check(rgb: np.ndarray, masks: np.ndarray | Sequence[np.ndarray]) -> None:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise UsageError(f"A picture to draw on must be uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}.", next_step="Convert it to RGB first.")
    for k, mask in enumerate(masks):
        if mask.shape != rgb.shape[:2]:
            raise UsageError(f"Mask {k + 1} has shape {mask.shape}, the picture {rgb.shape[:2]}.", next_step="Give masks at the size of the picture.")


def _draw_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) to draw at: a whole factor up, or any factor down."""
    side = max(height, width)
    factor = math.ceil(MIN_SIDE / side) if side < MIN_SIDE else min(1.0, MAX_SIDE / side)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _scale_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bool `(H, W)` -> bool at `size`. Up: every pixel a block. Down: a block with any mask pixel stays, so that thin masks do not vanish."""
    if mask.shape == size:
        return mask.astype(bool)
    smaller = size[0] < mask.shape[0]
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    scaled = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BOX if smaller else Image.Resampling.NEAREST))
    cut = 127 if smaller and (scaled > 127).any() else 0
    return scaled > cut


def _overlay(rgb: np.ndarray, masks: np.ndarray | Sequence[np.ndarray]) -> Image.Image:
    """Fill, outline and badge of every mask; small masks are painted over large ones."""
    _check(rgb, masks)
    size = _draw_size(*rgb.shape[:2])
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    if size != rgb.shape[:2]:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC if size[0] > rgb.shape[0] else Image.Resampling.BOX)
    canvas = np.array(picture)
    line = max(2, round(max(size) / 420))
    scaled = [_scale_mask(mask, size) for mask in masks]
    order = sorted(range(len(scaled)), key=lambda k: -int(scaled[k].sum()))
    for k in order:
        _paint(canvas, scaled[k], colour_of(k), line)
    picture = Image.fromarray(canvas)
    limit = min(26, max(13, round(max(size) / 52)))
    for k, (x, y, radius) in _badge_places(scaled, order, limit).items():
        badge = _badge(str(k + 1), colour_of(k), radius)
        picture.paste(badge, (x - badge.width // 2, y - badge.height // 2), badge)
    return picture


def colour_of(index: int) -> Colour:
    """RGB colour of the mask with this 0-based index; colours repeat after seven, numbers do not."""
    return PALETTE[index % len(PALETTE)]


def _paint(canvas: np.ndarray, mask: np.ndarray, colour: Colour, line: int) -> None:
    """Paint one mask into `canvas` `(H, W, 3)` in place: tinted inside, solid rim, thin light halo outside so that the rim shows on any ground."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(ys):
        return
    halo = max(1, line // 2)
    y0, y1, x0, x1 = max(ys[0] - halo, 0), ys[-1] + 1 + halo, max(xs[0] - halo, 0), xs[-1] + 1 + halo
    part = mask[y0:y1, x0:x1]
    inner, outer = ~_grow(~part, line), _grow(part, halo)
    view, levels = canvas[y0:y1, x0:x1], np.arange(256)
    light, rim = outer & ~part, part & ~inner
    lighter = np.round(levels * 0.25 + 255 * 0.75).astype(np.uint8)
    for c, value in enumerate(colour):  # by table: no float copy of the picture
        tinted = np.round(levels * (1 - FILL) + value * FILL).astype(np.uint8)
        np.copyto(view[..., c], tinted[view[..., c]], where=inner)
        np.copyto(view[..., c], lighter[view[..., c]], where=light)
        np.copyto(view[..., c], np.uint8(value), where=rim)


def _grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Bool `(H, W)` with every true pixel grown to a square of side 2 * radius + 1; the border of the array adds nothing."""
    rows = mask.copy()
    for shift in range(1, radius + 1):
        rows[shift:] |= mask[:-shift]
        rows[:-shift] |= mask[shift:]
    grown = rows.copy()
    for shift in range(1, radius + 1):
        grown[:, shift:] |= rows[:, :-shift]
        grown[:, :-shift] |= rows[:, shift:]
    return grown


def _badge_places(masks: Sequence[np.ndarray], order: Sequence[int], limit: int) -> dict[int, tuple[int, int, int]]:
    """Index -> (x, y, radius): deepest point of what is visible of the mask, away from badges placed before where that is possible."""
    taken = np.zeros(masks[0].shape, bool) if masks else np.zeros((0, 0), bool)
    covered = taken.copy()
    places: dict[int, tuple[int, int, int]] = {}
    for k in reversed(order):  # the small ones on top choose first
        mask = masks[k]
        for free in (mask & ~covered & ~taken, mask & ~taken, mask):
            found = _deepest(free)
            if found is not None:
                x, y, depth = found
                places[k] = (x, y, int(min(limit, max(depth, 0.75 * limit))))
                reach = 2 * places[k][2]
                taken[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach] = True
                break
        covered |= mask
    return dict(sorted(places.items()))


def _deepest(mask: np.ndarray) -> tuple[int, int, float] | None:
    """(x, y, depth) of the deepest pixel, on a grid of at most 128 cells a side: exact enough for a label and always fast."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(ys):
        return None
    y0, x0 = int(ys[0]), int(xs[0])
    crop = mask[y0 : ys[-1] + 1, x0 : xs[-1] + 1]
    step = -(-max(crop.shape) // 128)
    padded = np.pad(crop, ((0, -crop.shape[0] % step), (0, -crop.shape[1] % step)))
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    share = blocks.mean((1, 3))
    cells = share > 0.5 if (share > 0.5).any() else share > 0
    depth = np.zeros(cells.shape, np.int32)
    left, rounds = np.pad(cells, 1), 0
    while left.any():
        depth += left[1:-1, 1:-1]
        left = _erode(left, diagonal=bool(rounds % 2))
        rounds += 1
    top = np.argwhere(depth == depth.max())
    cy, cx = top[np.argmin(((top - top.mean(0)) ** 2).sum(1))]
    inside = np.argwhere(blocks[cy, :, cx])
    iy, ix = inside[np.argmin(((inside - (step - 1) / 2) ** 2).sum(1))]
    return x0 + int(cx) * step + int(ix), y0 + int(cy) * step + int(iy), float(depth.max() * step)


def _erode(m: np.ndarray, *, diagonal: bool) -> np.ndarray:
    """Erode a zero-padded bool array by one cell; alternating with diagonals grows octagons, close to round."""
    out = np.zeros_like(m)
    c = m[1:-1, 1:-1] & m[:-2, 1:-1] & m[2:, 1:-1] & m[1:-1, :-2] & m[1:-1, 2:]
    if diagonal:
        c &= m[:-2, :-2] & m[:-2, 2:] & m[2:, :-2] & m[2:, 2:]
    out[1:-1, 1:-1] = c
    return out


def _badge(text: str, colour: Colour, radius: int) -> Image.Image:
    """RGBA disc with a number: coloured, white ring, dark rim; drawn four times too large for smooth edges."""
    big, side = 4, 2 * radius + 5
    disc = Image.new("RGBA", (side * big, side * big), (0, 0, 0, 0))
    pen = ImageDraw.Draw(disc)
    full = side * big - 1
    ring = max(1.5, radius / 8) * big
    pen.ellipse((0, 0, full, full), fill=(20, 20, 20, 150))
    pen.ellipse((big, big, full - big, full - big), fill=(255, 255, 255, 255))
    pen.ellipse((big + ring, big + ring, full - big - ring, full - big - ring), fill=(*colour, 255))
    font = _font(round(radius * (1.25 if len(text) == 1 else 1.05 if len(text) == 2 else 0.8)) * big)
    ink = (0, 0, 0, 255) if _luminance(colour) > 0.36 else (255, 255, 255, 255)
    stroke = max(1, round(radius / 14)) * big // 4
    pen.text((full / 2, full / 2), text, font=font, fill=ink, anchor="mm", stroke_width=stroke, stroke_fill=ink)
    return disc.resize((side, side), Image.Resampling.LANCZOS)


def _luminance(colour: Colour) -> float:
    """Relative luminance in [0, 1] (WCAG)."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# --- the legend -----------------------------------------------------------------------------------------------------------------------------------


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _clean(text: str, limit: int = 3000) -> str:
    """Text that any font can take: no control characters, no lone surrogates, white space joined, cut at `limit` characters."""
    text = text[:limit].encode("utf-8", "replace").decode("utf-8")
    text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    return " ".join(text.split())


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float, max_lines: int) -> list[list[tuple[str, float]]]:
    """Lines of (word, x). `[mask k]` stays whole; words wider than the line are broken, as in scripts without spaces."""
    words: list[str] = []
    for piece in MASK_MARK.split(_clean(text)):
        words += [piece] if MASK_MARK.fullmatch(piece) else re.findall(r"\S+|\s+", piece)
    lines: list[list[tuple[str, float]]] = [[]]
    x = 0.0
    while words:
        word = words.pop(0)
        w = font.getlength(word)
        if x + w > width and x > 0:
            lines, x = [*lines, []], 0.0
            if word.isspace():
                continue
        if w > width and len(word) > 1:
            fits = max(1, int(len(word) * width / w) - 1)
            words[:0] = [word[:fits], word[fits:]]
            continue
        if word.isspace() and x == 0:
            continue
        lines[-1].append((word, x))
        x += w
    if len(lines) > max_lines:
        lines = lines[:max_lines]
        lines[-1].append(("...", sum(font.getlength(word) for word, _ in lines[-1])))
    return [line for line in lines if line]


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """One line, shortened with dots so that it fits."""
    text = _clean(text, 300)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _legend(width: int, rows: Sequence[_Row], texts: Sequence[tuple[str, Colour]]) -> Image.Image | None:
    """The strip below the picture, `width` pixels wide, or None if there is nothing to write."""
    size = min(30, max(15, round(width / 48)))
    font, small = _font(size), _font(round(size * 0.87))
    margin, step = size, round(size * 1.4)
    wrapped = [(_wrap(text, font, width - 2.2 * margin, 14), colour) for text, colour in texts]
    wrapped = [(lines, colour) for lines, colour in wrapped if lines]
    row_height = round(size * 1.95)
    height = sum(len(lines) * step + size // 3 for lines, _ in wrapped) + len(rows) * row_height
    if not height:
        return None
    strip = Image.new("RGB", (width, height + 2 * margin - size // 3), PAPER)
    pen = ImageDraw.Draw(strip)
    y = margin - size // 4
    for lines, colour in wrapped:
        for line in lines:
            for word, x in line:
                mark = MASK_MARK.fullmatch(word)
                ink = _on_paper(colour_of(int(word[6:-1]) - 1)) if mark and 0 < int(word[6:-1]) <= len(rows) else colour
                pen.text((margin + x, y), word, font=font, fill=ink)
            y += step
        y += size // 3
    for row in rows:
        pen.line((margin, y, width - margin, y), fill=RULE)
        middle = y + row_height // 2
        badge = _badge(str(row.number), colour_of(row.number - 1), round(size * 0.68))
        strip.paste(badge, (margin, middle - badge.height // 2), badge)
        left, right = margin + badge.width + size // 2, width - margin
        facts = _fit(row.facts, small, width * 0.5)
        pen.text((right, middle), facts, font=small, fill=QUIET, anchor="rm")
        pen.text((left, middle), _fit(row.label, font, right - small.getlength(facts) - size - left), font=font, fill=INK, anchor="lm")
        y += row_height
    return strip


def _on_paper(colour: Colour) -> Colour:
    """The colour, darkened until it reads on the light legend (contrast at least 4.5)."""
    factor = 1.0
    while (_luminance(PAPER) + 0.05) / (_luminance(tuple(int(c * factor) for c in colour)) + 0.05) < 4.5:  # type: ignore[arg-type]
        factor -= 0.05
    r, g, b = (int(c * factor) for c in colour)
    return r, g, b
