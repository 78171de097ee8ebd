"""Bar charts of a report, as SVG for the page (it follows light and dark) and as PNG. Two small renderers over one list of shapes instead of a
library.

A shape is ("rect", x, y, w, h, role), ("line", x1, y1, x2, y2, role) or ("text", x, y, text, anchor, role, size), in pixels; anchors are "start",
"middle", "end"; y of a text is its middle. Roles name colours: the page's style sheet and `_COLOURS` know them.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from lisaseg.eval.summary import SIZES, Report

Shape = tuple[Any, ...]
WIDTH = 560
_COLOURS = {"ink": "#1c1e21", "quiet": "#6a6e75", "grid": "#dedfe3", "bar": "#0072b2", "zero": "#d55e00", "whisker": "#1c1e21", "paper": "#ffffff"}
_ZOOM = 2  # PNG pixels a chart pixel
_SIZE_LABELS = dict(zip((name for name, _ in SIZES), ("tiny, up to 1 %", "small, 1 to 5 %", "medium, 5 to 20 %", "large, over 20 %"), strict=True))


@dataclass(frozen=True)
class Chart:
    """A drawn chart. name: of its file. title, about: for people. shapes: see the module. height: in pixels, the width is WIDTH."""

    name: str
    title: str
    about: str
    shapes: tuple[Shape, ...]
    height: int

    def svg(self) -> str:
        """An `<svg>` element; colours come from classes `c-<role>`."""
        parts = [f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{html.escape(self.title)}" xmlns="http://www.w3.org/2000/svg">']
        for kind, *v in self.shapes:
            if kind == "rect":
                parts.append(f'<rect x="{v[0]:.1f}" y="{v[1]:.1f}" width="{v[2]:.1f}" height="{v[3]:.1f}" rx="2" class="c-{v[4]}"/>')
            elif kind == "line":
                parts.append(f'<line x1="{v[0]:.1f}" y1="{v[1]:.1f}" x2="{v[2]:.1f}" y2="{v[3]:.1f}" class="l-{v[4]}"/>')
            else:
                place = f'x="{v[0]:.1f}" y="{v[1]:.1f}" text-anchor="{v[3]}" font-size="{v[5]}"'
                parts.append(f'<text {place} dominant-baseline="central" class="c-{v[4]}">{html.escape(v[2])}</text>')
        return "".join([*parts, "</svg>"])

    def png(self) -> bytes:
        """The same as a PNG file on white, with its title."""
        top = 44
        image = Image.new("RGB", (WIDTH * _ZOOM, (self.height + top) * _ZOOM), _COLOURS["paper"])
        pen = ImageDraw.Draw(image)
        pen.text((16 * _ZOOM, 24 * _ZOOM), self.title, _COLOURS["ink"], ImageFont.load_default(15 * _ZOOM), anchor="lm")
        for kind, *v in self.shapes:
            if kind == "rect":
                x, y, w, h = (n * _ZOOM for n in v[:4])
                if w >= 1 and h >= 1:
                    pen.rectangle((x, y + top * _ZOOM, x + w - 1, y + top * _ZOOM + h - 1), fill=_COLOURS[v[4]])
            elif kind == "line":
                x1, y1, x2, y2 = (n * _ZOOM for n in v[:4])
                pen.line((x1, y1 + top * _ZOOM, x2, y2 + top * _ZOOM), fill=_COLOURS[v[4]], width=_ZOOM)
            else:
                anchor = {"start": "lm", "middle": "mm", "end": "rm"}[v[3]]
                place = (v[0] * _ZOOM, (v[1] + top) * _ZOOM)
                pen.text(place, v[2], _COLOURS[v[4]], ImageFont.load_default(v[5] * _ZOOM), anchor=anchor)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()


def charts_of(report: Report) -> list[Chart]:
    """The charts of a report: IoU histogram; gIoU by size of target, kind of query, phrase or sentence, where there are several groups."""
    found = [iou_histogram([row["iou"] for row in report["per_sample"]])]
    plans: tuple[tuple[str, str, str, str, dict[str, str]], ...] = (
        (
            "giou_by_size",
            "gIoU by size of the target",
            "Share of the picture that the true mask covers. Small things are hard.",
            "size",
            _SIZE_LABELS,
        ),
        ("giou_by_kind", "gIoU by kind of query", "What the data set says about what a query asks for.", "kind", {}),
        ("giou_by_form", "gIoU by form of the query", "ReasonSeg's short and long queries.", "is_sentence", {"false": "phrase", "true": "sentence"}),
    )
    for name, title, about, tag, labels in plans:
        groups = report["by"][tag]
        if len(groups) > 1:
            found.append(bars(name, title, about, [(labels.get(key, key.replace("_", " ")), value) for key, value in groups.items()]))
    return found


def iou_histogram(ious: Sequence[float]) -> Chart:
    """How many queries reached which IoU: exactly 0, then ten steps of 0.1."""
    counts = [sum(iou == 0 for iou in ious)] + [0] * 10
    for iou in ious:
        if iou > 0:
            counts[1 + min(9, int(iou * 10))] += 1
    left, top, right, base, height = 44.0, 26.0, WIDTH - 14.0, 226.0, 268
    most, step = max(counts), (right - left) / 11
    shapes: list[Shape] = []
    for tick in _ticks(most):
        y = base - (base - top) * tick / most
        shapes += [("line", left, y, right, y, "grid"), ("text", left - 8, y, f"{tick}", "end", "quiet", 11)]
    for k, count in enumerate(counts):
        x, h = left + k * step, (base - top) * count / most
        shapes.append(("rect", x + 3, base - h, step - 6, h, "zero" if k == 0 else "bar"))
        if count:
            shapes.append(("text", x + step / 2, base - h - 9, f"{count}", "middle", "ink", 11))
        shapes.append(("text", x + step / 2, base + 13, "0" if k == 0 else f"to .{k}" if k < 10 else "to 1", "middle", "quiet", 11))
    shapes.append(("text", (left + right) / 2, base + 33, "IoU of the answer's mask with the true one", "middle", "quiet", 12))
    about = "One count a query. The orange bar is complete misses: no overlap at all, a refusal included."
    return Chart("iou_histogram", "How good are the single masks?", about, tuple(shapes), height)


def bars(name: str, title: str, about: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> Chart:
    """Horizontal bars of gIoU with 95 % intervals, one a group; an item is (label, {"giou", "giou_ci95", "n"})."""
    font = ImageFont.load_default(13)
    rows = [(_short(label, font), value) for label, value in rows]
    left = 24 + max(font.getlength(label) for label, _ in rows)
    right, row_height, top = WIDTH - 110.0, 32, 8.0
    base = top + row_height * len(rows)
    highs = [max(value["giou"] or 0, (value["giou_ci95"] or [0, 0])[1]) for _, value in rows]
    most = next(limit for limit in (0.25, 0.5, 0.75, 1.0) if limit >= max(highs) or limit == 1.0)
    scale = (right - left) / most
    shapes: list[Shape] = []
    for k in range(6):
        x = left + (right - left) * k / 5
        shapes += [("line", x, top, x, base, "grid"), ("text", x, base + 13, f"{100 * most * k / 5:.0f}", "middle", "quiet", 11)]
    for k, (label, value) in enumerate(rows):
        y, giou = top + row_height * (k + 0.5), value["giou"] or 0.0
        shapes.append(("text", left - 10, y, label, "end", "ink", 13))
        shapes.append(("rect", left, y - 9, giou * scale, 18, "bar"))
        interval = value["giou_ci95"]
        if interval:
            low, high = (left + edge * scale for edge in interval)
            shapes += [
                ("line", low, y, high, y, "whisker"),
                ("line", low, y - 4, low, y + 4, "whisker"),
                ("line", high, y - 4, high, y + 4, "whisker"),
            ]
        shapes.append(("text", right + 12, y, f"{100 * giou:.1f}", "start", "ink", 13))
        shapes.append(("text", WIDTH - 14, y, f"n = {value['n']}", "end", "quiet", 11))
    shapes.append(("text", (left + right) / 2, base + 33, "gIoU in percent, with its 95 % interval", "middle", "quiet", 12))
    return Chart(name, title, about, tuple(shapes), int(base) + 46)


def _short(label: str, font: Any, most: float = 200.0) -> str:
    """The label, cut with dots if it is wider than `most` pixels."""
    if font.getlength(label) <= most:
        return label
    while label and font.getlength(label + "...") > most:
        label = label[:-1]
    return label + "..."


def _ticks(most: int) -> list[int]:
    """Whole numbers for an axis from 0 to `most`, at most five."""
    step = next(step for size in range(9) for step in (10**size, 2 * 10**size, 5 * 10**size) if most / step <= 5)
    return list(range(0, most + 1, step))
