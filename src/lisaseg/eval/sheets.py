"""Contact sheets: what the numbers look like. Each tile shows the true target (green) beside the model's mask (orange)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lisaseg.datasets import SegmentationDataset
from lisaseg.drawing import PALETTE
from lisaseg.eval.summary import Row
from lisaseg.formats import rle
from lisaseg.imaging import open_image
from lisaseg.types import IGNORE, SEG_TEXT, TARGET

Tile = tuple[Row, Image.Image]  # one query, and its truth and answer side by side
PANEL, GAP, COLUMNS, LINE, FONT = 264, 6, 3, 17, 14
SAID, TRUE = PALETTE[0], PALETTE[2]
_INK, _QUIET, _PAPER = (28, 30, 33), (106, 110, 117), (255, 255, 255)


def pick(rows: Sequence[Row], most: int = 12) -> tuple[list[Row], list[Row]]:
    """(worst, best) answers, at most `most` and at most half of the rows each, no row in both; first one of each picture, so that they show more."""
    most = max(1, min(most, len(rows) // 2))
    worst = _spread(sorted(rows, key=lambda row: (row["iou"], row["digest"])), most)  # among equals the hash decides: no order of the file shows
    taken = {row["digest"] for row in worst}
    left = [row for row in rows if row["digest"] not in taken]
    return worst, _spread(sorted(left, key=lambda row: (-row["iou"], row["digest"])), most)


def _spread(ranked: Sequence[Row], most: int) -> list[Row]:
    """The first `most` rows, of one IoU class (tenths) first those with a picture that is not shown yet."""
    seen: dict[str, int] = {}
    order = []
    for place, row in enumerate(ranked):
        again = seen.get(row["picture"], 0)
        seen[row["picture"]] = again + 1
        order.append((int(10 * abs(ranked[0]["iou"] - row["iou"])), again, place))
    return [ranked[place] for *_, place in sorted(order)[:most]]


def panels(row: Row, dataset: SegmentationDataset) -> Image.Image:
    """Truth and answer of one query side by side, each with a long side of PANEL pixels; ignored pixels are darkened."""
    sample = dataset[row["at"][0]]
    rgb = open_image(sample.image).rgb
    targets = sample.queries[row["at"][1]].masks
    true = np.logical_or.reduce([mask == TARGET for mask in targets], axis=0) if targets else np.zeros(rgb.shape[:2], bool)
    hidden = np.logical_and.reduce([mask == IGNORE for mask in targets], axis=0) if targets else np.zeros(rgb.shape[:2], bool)
    said = [rle.decode(mask) for mask in row["masks"]]
    pred = np.logical_or.reduce(said, axis=0) if said else np.zeros(rgb.shape[:2], bool)
    left, right = (_panel(rgb, mask, hidden, colour) for mask, colour in ((true, TRUE), (pred, SAID)))
    out = Image.new("RGB", (2 * left.width + GAP, left.height), _PAPER)
    out.paste(left, (0, 0))
    out.paste(right, (left.width + GAP, 0))
    return out


def _panel(rgb: np.ndarray, mask: np.ndarray, hidden: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """The picture in a square of PANEL pixels, greyed, with the mask in colour and rimmed."""
    scale = PANEL / max(rgb.shape[:2])
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    canvas = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)).astype(np.float32)
    inside, dark = (_resized(one, size) for one in (mask, hidden))
    canvas[dark] *= 0.35
    if inside.any():
        canvas[~inside] = 0.72 * canvas[~inside] + 0.28 * 40
        canvas[inside] = 0.58 * canvas[inside] + 0.42 * np.array(colour, np.float32)
        core = inside.copy()
        core[1:] &= inside[:-1]
        core[:-1] &= inside[1:]
        core[:, 1:] &= inside[:, :-1]
        core[:, :-1] &= inside[:, 1:]
        canvas[inside & ~core] = colour
    return Image.fromarray(canvas.round().clip(0, 255).astype(np.uint8))


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bool `(H, W)` at another size; a cell with any mask pixel stays if the mask would vanish otherwise."""
    scaled = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX))
    return scaled > (127 if (scaled > 127).any() else 0)


def sheet(tiles: Sequence[Tile], title: str) -> bytes:
    """A PNG page of (row, panels) with IoU, question and answer under the panels."""
    width, pad, head = 2 * PANEL + GAP, 14, 78
    columns = min(COLUMNS, len(tiles))
    font, large = ImageFont.load_default(FONT), ImageFont.load_default(22)
    lines = [_lines(row, font, width) for row, _ in tiles]
    starts = range(0, len(tiles), columns)
    tops = [head]  # each line of tiles is as high as its highest tile
    for start in starts:
        some = slice(start, start + columns)
        tops.append(tops[-1] + max(pair.height + 8 + len(text) * LINE for (_, pair), text in zip(tiles[some], lines[some], strict=True)) + 2 * pad)
    page = Image.new("RGB", (columns * (width + pad) + pad, tops[-1]), _PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((pad, 24), title, _INK, large, anchor="lm")
    for x, colour, words in ((pad, TRUE, "left: the true target"), (pad + 210, SAID, "right: the model's mask")):
        pen.rectangle((x, 46, x + 12, 58), fill=colour)
        pen.text((x + 20, 52), words, _QUIET, font, anchor="lm")
    for k, ((_, pair), text) in enumerate(zip(tiles, lines, strict=True)):
        x, y = pad + k % columns * (width + pad), tops[k // columns]
        page.paste(pair, (x, y))
        for n, (line, ink) in enumerate(text):
            pen.text((x, y + pair.height + 8 + n * LINE), line, ink, font)
    buffer = io.BytesIO()
    page.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _lines(row: Row, font: Any, width: int) -> list[tuple[str, tuple[int, int, int]]]:
    """Question and answer of a tile, wrapped: (line, colour)."""
    asked = wrap(f"IoU {100 * row['iou']:.0f} %   {row['text']}", font, width, 3)
    return [(line, _INK) for line in asked] + [(line, _QUIET) for line in wrap(said(row), font, width, 2)]


def said(row: Row) -> str:
    """What the model answered, for people."""
    text = row["answer"].replace(SEG_TEXT, "[mask]").strip()
    return f"Answer: {text}" if text else f"No text ({row['status']})"


def wrap(text: str, font: Any, width: int, lines: int) -> list[str]:
    """Words in at most `lines` lines of `width` pixels; what does not fit is cut off with "..."."""
    out = [""]
    for word in text.split(" "):
        longer = f"{out[-1]} {word}" if out[-1] else word
        if font.getlength(longer) <= width or not out[-1]:
            out[-1] = longer
        else:
            out.append(word)
    if len(out) <= lines:
        return out
    last = out[lines - 1]
    while last and font.getlength(last + "...") > width:
        last = last[:-1]
    return [*out[: lines - 1], last + "..."]
