"""CVAT for images 1.1: one XML file; masks are run lengths row by row inside of a box, which is neither COCO's code nor Label Studio's.

    <image id="0" name="a.jpg" width="448" height="299">
      <mask label="dog" occluded="0" rle="3, 5, 7" left="12" top="40" width="5" height="3" z_order="0"/>
    </image>

Read are `mask`, `polygon`, `box` and `ellipse` without rotation; shapes of one label and one `group_id` are one object. Names are relative to the XML
file (or lie in `images/` beside it, as in CVAT's archives), or to the folder given for the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from lisaseg.errors import DataError
from lisaseg.formats import Format, rle, write_aside
from lisaseg.formats.pictures import by_picture, relative, sample_of
from lisaseg.formats.reading import MEND, check_picture, checked_text, find_picture
from lisaseg.types import Sample

_SHAPES = ("mask", "polygon", "box", "ellipse")
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton")


def read(path: Path, images: Path | None = None) -> Iterator[Sample]:
    """One sample an image; see `Format.read`."""
    for element in _root(path).iter("image"):
        where = f"{path}, image {element.get('id', '?')}"
        name = _attribute(element, "name", where)
        beside = path.parent / "images"
        folder = beside if images is None and (beside / name).is_file() else path.parent
        picture = find_picture(name, folder, images, where)
        size = (_whole(element, "height", where), _whole(element, "width", where))
        check_picture(picture, size, where)
        objects: dict[tuple[str, str], tuple[str, np.ndarray]] = {}
        for k, shape in enumerate(element):
            place = f"{where}, {shape.tag} {k}"
            if shape.tag in _WITHOUT_AREA:
                raise DataError(f"{place}: a {shape.tag} has no area.", next_step="Draw it as a mask or polygon, or remove it.")
            if shape.tag not in _SHAPES:
                continue  # tags and attributes
            label = checked_text(_attribute(shape, "label", place), f"{place}, attribute 'label'")
            mask = _mask_of(shape, size, place)
            key = (label, f"group {shape.get('group_id')}" if shape.get("group_id") not in (None, "0") else str(k))
            objects[key] = (label, mask | objects[key][1] if key in objects else mask)
        yield sample_of(element.get("id", "0"), picture, list(objects.values()))


def _root(path: Path) -> ElementTree.Element:
    try:
        data = path.read_bytes()
        if b"<!DOCTYPE" in data[:4096] or b"<!ENTITY" in data:  # what no annotation needs, and attacks on parsers do
            raise DataError(f"{path} declares a document type or entities.", next_step="Export it from CVAT as `CVAT for images 1.1`.")
        root = ElementTree.fromstring(data)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", next_step="Check the path of the XML file.") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} is not XML: {error}.", next_step=MEND) from error
    if root.tag != "annotations" or root.find("track") is not None:
        raise DataError(f"{path} holds no <annotations> of images.", next_step="Export from CVAT as `CVAT for images 1.1`.")
    return root


def _mask_of(shape: ElementTree.Element, size: tuple[int, int], where: str) -> np.ndarray:
    if shape.get("rotation") and _number(shape, "rotation", where):
        raise DataError(f"{where}: it is rotated.", next_step="Draw it as a polygon or mask.")
    if shape.tag == "mask":
        return _decoded(shape, size, where)
    if shape.tag == "polygon":
        try:
            points = [float(v) for pair in _attribute(shape, "points", where).split(";") for v in pair.split(",")]
        except ValueError as error:
            raise DataError(f"{where}, attribute 'points': must be x,y;x,y;... in pixels.", next_step=MEND) from error
    elif shape.tag == "box":
        x0, y0, x1, y1 = (_number(shape, key, where) for key in ("xtl", "ytl", "xbr", "ybr"))
        points = [x0, y0, x1, y0, x1, y1, x0, y1]
    else:
        x, y, rx, ry = (_number(shape, key, where) for key in ("cx", "cy", "rx", "ry"))
        turns = [2 * math.pi * k / 64 for k in range(64)]
        points = [v for t in turns for v in (x + rx * math.cos(t), y + ry * math.sin(t))]
    try:
        return rle.polygons_to_mask([points], *size)
    except DataError as error:
        raise DataError(f"{where}: {error.message}", next_step=error.next_step) from error


def _decoded(shape: ElementTree.Element, size: tuple[int, int], where: str) -> np.ndarray:
    left, top, width, height = (_whole(shape, key, where) for key in ("left", "top", "width", "height"))
    if left < 0 or top < 0 or width < 1 or height < 1 or left + width > size[1] or top + height > size[0]:
        raise DataError(f"{where}: its box {left},{top} {width} x {height} does not lie in the picture.", next_step=MEND)
    try:
        runs = np.array([int(run) for run in _attribute(shape, "rle", where).split(",")], np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}, attribute 'rle': must be whole numbers with commas.", next_step=MEND) from error
    if (runs < 0).any() or (runs > width * height).any() or runs.sum() != width * height:
        raise DataError(f"{where}, attribute 'rle': the runs do not cover the {width * height} pixels of the box.", next_step=MEND)
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return mask


def _attribute(element: ElementTree.Element, name: str, where: str) -> str:
    value = element.get(name)
    if value is None:
        raise DataError(f"{where}: the attribute {name!r} is missing.", next_step=MEND)
    return value


def _number(element: ElementTree.Element, name: str, where: str) -> float:
    value = _attribute(element, name, where)
    try:
        return float(value)
    except ValueError as error:
        raise DataError(f"{where}, attribute {name!r}: {value[:40]!r} is no number.", next_step=MEND) from error


def _whole(element: ElementTree.Element, name: str, where: str) -> int:
    number = _number(element, name, where)
    if not number.is_integer():
        raise DataError(f"{where}, attribute {name!r}: {number} is no whole number.", next_step=MEND)
    return int(number)


def write(samples: Iterable[Sample], path: Path) -> int:
    """The XML file; CVAT finds the pictures by name in the task that it is loaded into. See `Format.write`."""
    pictures, count = by_picture(samples), 0
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for text in dict.fromkeys(packed.text for picture in pictures for packed in picture.queries):
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = _legal(text)
    for k, picture in enumerate(pictures):
        size = {"width": str(picture.size[1]), "height": str(picture.size[0])}
        image = ElementTree.SubElement(root, "image", {"id": str(k), "name": relative(picture.image, path.parent), **size})
        for packed in picture.queries:
            masks = list(packed.instances())
            for mask in masks:
                ElementTree.SubElement(image, "mask", {"label": _legal(packed.text), "source": "manual", "occluded": "0", **_encoded(mask)})
            count += bool(masks)
    ElementTree.indent(root)
    write_aside(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
    return count


def _encoded(mask: np.ndarray) -> dict[str, str]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    flat = np.concatenate(([False], crop.ravel()))
    edges = np.append(np.flatnonzero(flat[1:] != flat[:-1]), crop.size)
    runs = np.diff(edges, prepend=0).tolist()
    box = {"left": xs[0], "top": ys[0], "width": crop.shape[1], "height": crop.shape[0]}
    return {"rle": ", ".join(map(str, runs)), **{key: str(int(value)) for key, value in box.items()}, "z_order": "0"}


def _legal(text: str) -> str:
    """Text without what XML cannot hold: control characters and lone surrogates become U+FFFD."""
    return "".join(c if c in "\t\n" or (" " <= c <= "\ud7ff") or ("\ue000" <= c <= "\ufffd") or c > "\uffff" else "\ufffd" for c in text)


CVAT = Format("cvat", "CVAT for images 1.1, one XML file", frozenset({"exact", "instances", "overlaps"}), ".xml", read, write)
