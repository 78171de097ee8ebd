"""YOLO segmentation (Ultralytics): `data.yaml` with class names, `images/`, and for each picture a text file in `labels/`.

A line is one object, `class x1 y1 x2 y2 ...` in fractions of width and height. Ultralytics and supervision paint it with OpenCV, on whole pixels and
the outline included; so it is read and written here. Parts of an object are joined into that one outline by lines walked there and back, which show
as lines of one pixel; those that lead to holes run over the object itself. A picture without a label file shows nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lisaseg.errors import DataError
from lisaseg.formats import Format, write_aside
from lisaseg.formats.contours import mask_to_polygons
from lisaseg.formats.pictures import by_picture, copy_picture, make_folder, sample_of, unique_stems
from lisaseg.formats.raster import fill_polygon
from lisaseg.formats.reading import MEND, checked_text, picture_size
from lisaseg.types import Sample

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_SPLITS = ("train", "val", "test")


def read(path: Path, images: Path | None = None) -> Iterator[Sample]:
    """One sample a picture of all splits of `data.yaml`; `path` is that file or its folder. See `Format.read`."""
    file = path / "data.yaml" if path.is_dir() else path
    setup = _setup(file)
    names = _names(setup, file)
    base = file.parent / str(setup.get("path") or "")
    base = base if base.is_dir() else file.parent  # Ultralytics' paths are relative to a folder of its settings
    folders = [images] if images else list(dict.fromkeys(folder for split in _SPLITS if setup.get(split) for folder in _folders(setup[split])))
    for folder in folders:
        place = base / folder
        if not place.is_dir():
            raise DataError(f"{file}: there is no folder {place}.", next_step="Correct 'train' and 'val', or say --images.")
        for picture in sorted(one for one in place.rglob("*") if one.suffix.lower() in _PICTURES):
            labels = _label_file(picture, file.parent)
            size = picture_size(picture, str(picture))
            yield sample_of(picture.stem, picture, _objects(labels, names, size) if labels.is_file() else [])


def _setup(file: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(
            f"{file} cannot be read as YAML: {str(error)[:100]}.", next_step="Give the data.yaml of the data set, or its folder."
        ) from error
    if not isinstance(data, dict):
        raise DataError(f"{file} must hold `names`, `train` and `val`.", next_step="Give the data.yaml of the data set, or its folder.")
    return data


def _names(setup: dict[str, Any], file: Path) -> dict[int, str]:
    names = setup.get("names")
    pairs = enumerate(names) if isinstance(names, list) else names.items() if isinstance(names, dict) else None
    if pairs is None:
        raise DataError(f"{file}, field 'names': must be a list or a map of class names.", next_step="Add the names of the classes.")
    try:
        return {int(number): checked_text(str(name), f"{file}, names[{number}]") for number, name in pairs}
    except ValueError as error:
        raise DataError(f"{file}, field 'names': class numbers must be whole numbers.", next_step="Write 0: name, 1: name, ...") from error


def _folders(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def _label_file(picture: Path, folder: Path) -> Path:
    """Ultralytics' rule: the last folder `images` of the path becomes `labels`; else `labels/` of the data set."""
    parts = list(picture.parts)
    places = [k for k, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
        return Path(*parts).with_suffix(".txt")
    return folder / "labels" / f"{picture.stem}.txt"


def _objects(file: Path, names: dict[int, str], size: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
    height, width = size
    objects = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}.", next_step=MEND) from error
    for number, line in enumerate(lines, start=1):
        where = f"{file}:{number}"
        if not line.strip():
            continue
        try:
            label, *values = (float(word) for word in line.split())
        except ValueError as error:
            raise DataError(f"{where}: {line[:40]!r} is no line of numbers.", next_step="Write: class x1 y1 x2 y2 ...") from error
        if label not in names:
            raise DataError(f"{where}: class {label:g} is not named in data.yaml.", next_step="Add its name, or correct the line.")
        if len(values) == 4:
            raise DataError(f"{where}: this is a box, not an outline.", next_step="Export segmentation labels; boxes have no mask.")
        if len(values) < 6 or len(values) % 2:
            raise DataError(f"{where}: {len(values)} coordinates make no outline.", next_step="Write at least three points, x y each.")
        if not all(math.isfinite(v) and -0.01 <= v <= 1.01 for v in values):
            raise DataError(f"{where}: coordinates must lie in 0..1.", next_step="Divide x by the width and y by the height of the picture.")
        points = [v * (height if k % 2 else width) for k, v in enumerate(values)]
        mask = np.zeros(size, np.uint8)
        fill_polygon(mask, list(zip(points[0::2], points[1::2], strict=True)), 1)
        objects.append((names[int(label)], mask.astype(bool)))
    return objects


def _three_points(outline: np.ndarray) -> np.ndarray:
    """An outline of a pixel or a line has fewer points than the format asks for: its last one again."""
    return np.concatenate([outline, np.repeat(outline[-1:], max(0, 3 - len(outline)), 0)])


def write(samples: Iterable[Sample], path: Path) -> int:
    """Pictures are copied into `images/`; `train` and `val` both name that folder, split it as you need. See `Format.write`."""
    pictures, count = by_picture(samples), 0
    texts = list(dict.fromkeys(packed.text for picture in pictures for packed in picture.queries if packed.union() is not None))
    make_folder(path / "labels")
    for picture, stem in zip(pictures, unique_stems(pictures), strict=True):
        lines = []
        for packed in picture.queries:
            outlines = [polygon for mask in packed.instances() for polygon in mask_to_polygons(mask, centres=True, join=True)]
            count += bool(outlines)
            for outline in outlines:
                # A quarter into the pixel: readers that cut and readers that round both find it.
                shares = (_three_points(outline) + 0.25) / np.array([picture.size[1], picture.size[0]])
                lines.append(f"{texts.index(packed.text)} " + " ".join(f"{v:.6f}" for v in shares.ravel()))
        copy_picture(picture.image, path / "images" / f"{stem}{picture.image.suffix}")
        write_aside(path / "labels" / f"{stem}.txt", "".join(f"{line}\n" for line in lines).encode())
    names = "".join(f"  {k}: {json.dumps(text)}\n" for k, text in enumerate(texts))  # JSON strings are YAML strings
    write_aside(path / "data.yaml", f"train: images\nval: images\nnames:{' {}' if not texts else ''}\n{names}".encode())
    return count


YOLO = Format("yolo", "YOLO segmentation (Ultralytics), outlines in text files", frozenset({"instances", "overlaps"}), "", read, write, copies=True)
