"""ReasonSeg: a folder of pairs `<stem>.jpg` + `<stem>.json`, an implicit question and labelled polygons each.

    {"text": ["...", rephrasing, ...], "is_sentence": true, "explanation": "...",
     "shapes": [{"label": "target" | "ignore", "shape_type": "polygon", "points": [[x, y], ...]}, ...]}

`explanation` is our addition, other readers pass over it. The true masks of the benchmark exist as polygons only, so how they are painted is part of
it: largest area first, so that a smaller shape wins over a larger one, be it target or ignored region, with the outline belonging to the shape.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lisaseg.errors import DataError
from lisaseg.formats import Format, write_aside
from lisaseg.formats.contours import mask_to_polygons
from lisaseg.formats.pictures import Packed, copy_picture, image_path, json_bytes, make_folder
from lisaseg.formats.raster import fill_polygon
from lisaseg.formats.reading import MEND, checked_text, field, picture_size
from lisaseg.imaging import open_image
from lisaseg.types import IGNORE, TARGET, Query, Sample

_PICTURES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def shapes_to_mask(shapes: Sequence[Any], height: int, width: int, where: str = "shapes") -> np.ndarray:
    """Labelled polygons -> uint8 `(height, width)` {0, 1, 255}, to the pixel as the reference paints them.

    Args:
        shapes: `{"label", "points": [[x, y], ...]}`; "flag" is skipped, a label with "ignore" in it gives 255, every other 1.
        height, width: of the picture.
        where: file, for messages.

    Raises:
        DataError: a shape is wrong; names `where` and the shape.
    """
    areas: list[int] = []
    painted: list[tuple[Any, int]] = []
    for k, shape in enumerate(shapes):
        place = f"{where}, shapes[{k}]"
        label = str(field(shape, "label", place)).lower()
        if label == "flag":
            continue
        alone = np.zeros((height, width), np.uint8)
        try:
            fill_polygon(alone, field(shape, "points", place), 1)
        except (DataError, TypeError) as error:
            detail = error.message if isinstance(error, DataError) else "its points are no list."
            raise DataError(f"{place}: {detail}", next_step="Correct the shape, or remove it.") from error
        areas.append(int(alone.sum()))
        painted.append((shape["points"], IGNORE if "ignore" in label else TARGET))
    mask = np.zeros((height, width), np.uint8)
    for k in np.argsort(areas, kind="stable")[::-1]:
        fill_polygon(mask, *painted[k])
    return mask


def read_annotation(path: Path) -> dict[str, Any]:
    """The JSON of a picture; some published files are not UTF-8 but Windows' cp1252."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", next_step=MEND) from error
    for encoding in ("utf-8", "cp1252"):
        try:
            data = json.loads(raw.decode(encoding))
            break
        except UnicodeDecodeError:
            continue
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON: {str(error)[:100]}.", next_step=MEND) from error
    else:
        raise DataError(f"{path} is neither UTF-8 nor cp1252.", next_step="Save the file as UTF-8.")
    if not isinstance(data, dict):
        raise DataError(f"{path} must hold one JSON object.", next_step=MEND)
    return data


def query_of(data: dict[str, Any], size: tuple[int, int], where: str) -> Query:
    """The question of a parsed file; its one mask is uint8 `(H, W)` {0, 1, 255}, all 0 if there is no shape.

    Raises:
        DataError: names `where` and the field.
    """
    texts = field(data, "text", where)
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts:
        raise DataError(f"{where}, field 'text': must be a list that is not empty.", next_step="Write at least one text.")
    first, *others = (checked_text(text, f"{where}, text[{k}]") for k, text in enumerate(texts))
    sentence, shapes = field(data, "is_sentence", where), field(data, "shapes", where)
    if not isinstance(sentence, bool) or not isinstance(shapes, list):
        raise DataError(f"{where}: 'is_sentence' must be true or false, 'shapes' a list.", next_step="Correct the file.")
    mask = shapes_to_mask(shapes, *size, where)
    reason = data.get("explanation")
    return Query(first, (mask,), sentence, explanation=reason if isinstance(reason, str) else "", rephrasings=tuple(others), kind="reasoning")


def read(path: Path, images: Path | None = None) -> Iterator[Sample]:
    """One sample a pair; a file without a shape is a question that nothing fits. See `Format.read`."""
    files = sorted(file for file in path.glob("*.json") if not file.name.startswith(".")) if path.is_dir() else []
    if not files:
        raise DataError(f"{path} is no folder with ReasonSeg's JSON files.", next_step="Give the folder of a split, for example ReasonSeg/val.")
    for file in files:
        pictures = [(images or path) / f"{file.stem}{suffix}" for suffix in _PICTURES]
        picture = next((one for one in pictures if one.is_file()), pictures[0])
        query = query_of(read_annotation(file), picture_size(picture, str(file)), str(file))
        if not query.masks[0].any():
            query = Query(query.text, (), query.is_sentence, "", query.explanation, query.rephrasings, query.kind)
        yield Sample(file.stem, picture, (query,), source=path.name)


def write(samples: Iterable[Sample], path: Path) -> int:
    """One pair of files a query, `<stem>_<k>` where a picture has several; see `Format.write`.

    Pictures are copied; those that are not JPEG are saved as JPEG of quality 95, because the benchmark's tools look for `.jpg` only.
    """
    make_folder(path)
    taken: dict[str, int] = {}
    count = 0
    for sample in samples:
        image = image_path(sample)
        for query in sample.queries:
            n = taken[image.stem.casefold()] = taken.get(image.stem.casefold(), -1) + 1
            stem = f"{image.stem}_{n}" if n else image.stem
            _save_jpeg(image, path / f"{stem}.jpg")
            write_aside(path / f"{stem}.json", json_bytes(_record(query), indent=1))
            count += 1
    return count


def _save_jpeg(source: Path, target: Path) -> None:
    if source.suffix.lower() in (".jpg", ".jpeg"):
        copy_picture(source, target)
        return
    buffer = io.BytesIO()
    Image.fromarray(open_image(source).rgb).save(buffer, "JPEG", quality=95, subsampling=0)
    write_aside(target, buffer.getvalue())


def _record(query: Query) -> dict[str, Any]:
    packed = Packed.of(query)
    shapes = []
    for label, mask in (("target", packed.union()), ("ignore", packed.ignored())):
        for polygon in mask_to_polygons(mask, centres=True) if mask is not None else ():
            shapes.append({"label": label, "shape_type": "polygon", "points": polygon.tolist(), "group_id": None, "flags": {}})
    record = {"text": [query.text, *query.rephrasings], "is_sentence": query.is_sentence, "shapes": shapes}
    return record | ({"explanation": query.explanation} if query.explanation else {})


REASONSEG = Format(
    "reasonseg",
    "ReasonSeg's pairs of JPEG and JSON",
    frozenset({"exact", "overlaps", "ignore", "absent", "question"}),
    "",
    read,
    write,
    asks=True,
    copies=True,
)
