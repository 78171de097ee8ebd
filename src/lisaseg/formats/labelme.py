"""labelme (and X-AnyLabeling): one JSON file a picture in a folder; masks are written as `shape_type: "mask"`, which loses nothing.

    {"version", "flags", "shapes": [{"label", "points", "group_id", "shape_type", "flags", "mask"}],
     "imagePath", "imageData", "imageHeight", "imageWidth"}

Read are `mask` (two inclusive corners and a base64 PNG of the crop), `polygon`, `rectangle`, `oriented_rectangle` (also `rotation`) and `circle`,
filled as labelme's own `shape_to_mask` does, outline included. Shapes of one label and one `group_id` are one object. The label `__ignore__` marks
pixels that are ignored for all labels, as in labelme's own exporters.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lisaseg.errors import DataError
from lisaseg.formats import Format, write_aside
from lisaseg.formats.mask_forms import mask_png
from lisaseg.formats.pictures import by_picture, json_bytes, make_folder, relative, sample_of, unique_stems
from lisaseg.formats.reading import MEND, check_picture, field, find_picture, load_json, text_field
from lisaseg.types import Sample

VERSION = "5.10.1"  # of labelme's file format: the first that knows masks is 5.3
IGNORED = "__ignore__"
Point = tuple[float, float]


def read(path: Path, images: Path | None = None) -> Iterator[Sample]:
    """One sample a JSON file of the folder (or that one file); see `Format.read`."""
    files = [path] if path.is_file() else sorted(file for file in path.glob("*.json") if not file.name.startswith("."))
    if not files:
        raise DataError(f"{path} holds no labelme JSON files.", next_step="Give the folder that holds them, or one file.")
    for file in files:
        data, where = load_json(file, dict), str(file)
        picture = find_picture(field(data, "imagePath", where, str), file.parent, images, where)
        size = (field(data, "imageHeight", where, int), field(data, "imageWidth", where, int))
        check_picture(picture, size, where)
        objects: dict[Any, tuple[str, np.ndarray]] = {}
        for k, shape in enumerate(field(data, "shapes", where, list)):
            place = f"{where}, shapes[{k}]"
            label, mask = text_field(shape, "label", place), _mask_of(shape, size, place)
            group = shape.get("group_id")
            key = (label, "alone", k) if group is None else (label, "group", str(group))
            objects[key] = (label, mask | objects[key][1] if key in objects else mask)
        named = [(label, mask) for label, mask in objects.values() if label != IGNORED]
        hidden = [mask for label, mask in objects.values() if label == IGNORED]
        yield sample_of(file.stem, picture, named, [(label, mask) for label in dict.fromkeys(label for label, _ in named) for mask in hidden])


def _mask_of(shape: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    """Bool `(H, W)` of one shape; DataError names `where`."""
    kind = shape.get("shape_type") or "polygon"
    points = _points(field(shape, "points", where, list), size, where)
    if kind == "mask":
        return _pasted(field(shape, "mask", where, str), points, size, where)
    needed = {"polygon": len(points) >= 3, "rectangle": len(points) == 2, "circle": len(points) == 2}
    needed |= dict.fromkeys(("oriented_rectangle", "rotation"), len(points) == 4)
    if kind not in needed:
        raise DataError(f"{where}: a {kind!r} has no area.", next_step="Draw it as a polygon or mask, or remove it.")
    if kind == "rectangle" and len(points) == 4:  # X-AnyLabeling writes all corners
        kind, needed = "polygon", {"polygon": True}
    if not needed[kind]:
        raise DataError(f"{where}, field 'points': {len(points)} points make no {kind}.", next_step="Correct the shape, or remove it.")
    canvas = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    if kind == "circle":
        (x, y), rim = points
        radius = math.dist((x, y), rim)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=1, fill=1)
    else:
        draw.polygon(points, outline=1, fill=1)
    return np.asarray(canvas, bool)


def _points(points: list[Any], size: tuple[int, int], where: str) -> list[Point]:
    reach = 2 * max(size)  # tools leave points a little outside; far away ones mean another unit or another picture
    for point in points:
        numbers = isinstance(point, list) and len(point) == 2 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in point)
        if not numbers or not all(-reach <= v <= 2 * reach for v in point):  # False for NaN too
            raise DataError(f"{where}, field 'points': {str(point)[:40]} is no [x, y] in pixels of this picture.", next_step=MEND)
    return [(float(x), float(y)) for x, y in points]


def _pasted(text: str, points: list[Point], size: tuple[int, int], where: str) -> np.ndarray:
    """A crop as base64 PNG, put at its two inclusive corners."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            height, width = size
            if image.width > width or image.height > height:
                raise DataError(f"{where}, field 'mask': it is larger than the picture.", next_step=MEND)
            crop = np.asarray(image.convert("L")).astype(bool)
    except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise DataError(f"{where}, field 'mask': it is no PNG in base64.", next_step="Save the file with labelme again.") from error
    if len(points) != 2:
        raise DataError(f"{where}, field 'points': a mask has two corners, here are {len(points)}.", next_step=MEND)
    (x0, y0), (x1, y1) = ((int(x), int(y)) for x, y in points)
    if crop.shape != (y1 - y0 + 1, x1 - x0 + 1) or x0 < 0 or y0 < 0 or x1 >= width or y1 >= height:
        raise DataError(f"{where}: a mask of {crop.shape} does not fit between {points[0]} and {points[1]}.", next_step=MEND)
    mask = np.zeros(size, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = crop
    return mask


def write(samples: Iterable[Sample], path: Path) -> int:
    """`<stem>.json` for each picture, which stays where it is; see `Format.write`."""
    pictures = by_picture(samples)
    make_folder(path)
    count = 0
    for picture, stem in zip(pictures, unique_stems(pictures), strict=True):
        shapes = []
        for packed in picture.queries:
            drawn = [_shape(packed.text, mask) for mask in packed.instances()]
            count += bool(drawn)
            shapes += drawn
        hidden = [mask for packed in picture.queries if (mask := packed.ignored()) is not None]
        if hidden:
            shapes.append(_shape(IGNORED, np.logical_or.reduce(hidden)))
        document: dict[str, Any] = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": relative(picture.image, path),
            "imageData": None,
            "imageHeight": picture.size[0],
            "imageWidth": picture.size[1],
        }
        write_aside(path / f"{stem}.json", json_bytes(document, indent=2))
    return count


def _shape(label: str, mask: np.ndarray) -> dict[str, Any]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, y0, x1, y1 = int(xs[0]), int(ys[0]), int(xs[-1]), int(ys[-1])
    crop = base64.b64encode(mask_png(mask[y0 : y1 + 1, x0 : x1 + 1])).decode("ascii")
    places: dict[str, Any] = {"points": [[x0, y0], [x1, y1]], "group_id": None, "description": "", "shape_type": "mask", "flags": {}}
    return {"label": label, **places, "mask": crop}


LABELME = Format(
    "labelme", "labelme and X-AnyLabeling, one JSON file a picture", frozenset({"exact", "instances", "overlaps", "ignore"}), "", read, write
)
