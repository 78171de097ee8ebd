"""ReasonSeg: implicit questions with polygons. `reason_seg/ReasonSeg/<split>/*.jpg` + `*.json`, explanations in `explanatory/train.json`.

The true masks exist as polygons only, so how they are painted is part of the benchmark: largest area first, so that a smaller shape wins over a
larger one, be it target or ignored region (a target inside of an ignored region stays a target, and the other way round).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lisaseg.datasets.base import Indexed, checked_text, excluded_keys, field, image_key, list_files, load_json, picture_size
from lisaseg.datasets.raster import fill_polygon
from lisaseg.errors import DataError
from lisaseg.types import IGNORE, TARGET, Query, Sample


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


class ReasonSeg(Indexed):
    """One sample a picture with one query; further texts of the file are its rephrasings, the first one is the benchmark's.

    Args:
        root: data root.
        split: "train", "val", "test", or several joined by "_" ("train_val").
        folder: the place of the splits under root.
        exclude: pictures to leave out (file names, stems or paths).

    Raises:
        DataError: a folder is missing; on access, an entry is wrong; names the file.
    """

    name = "reasonseg"

    def __init__(
        self, root: str | Path, split: str = "train", *, folder: str | Path = "reason_seg/ReasonSeg", exclude: Collection[str | int | Path] = ()
    ) -> None:
        base, hidden = Path(root) / folder, excluded_keys(exclude)
        paths = [path for part in split.split("_") for path in list_files(base / part, "*.json")]
        self._paths = [path for path in paths if image_key(path) not in hidden]
        self._joined = "_" in split
        self._explanations = _explanations(base / "explanatory" / "train.json")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._paths)

    def _count(self, index: int) -> int:
        return 1

    def _sample(self, index: int, picks: Sequence[int]) -> Sample:
        path = self._paths[index]
        picture = path.with_suffix(".jpg")
        height, width = picture_size(picture, str(path))
        data = _annotation(path)
        texts = field(data, "text", str(path))
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts:
            raise DataError(f"{path}, field 'text': must be a list that is not empty.", next_step="Write at least one text.")
        first, *others = (checked_text(text, f"{path}, text[{k}]") for k, text in enumerate(texts))
        sentence, shapes = field(data, "is_sentence", str(path)), field(data, "shapes", str(path))
        if not isinstance(sentence, bool) or not isinstance(shapes, list):
            raise DataError(f"{path}: 'is_sentence' must be true or false, 'shapes' a list.", next_step="Correct the file.")
        query = Query(
            text=first,
            masks=(shapes_to_mask(shapes, height, width, str(path)),),
            is_sentence=sentence,
            explanation=self._explanations.get(picture.name, ""),
            rephrasings=tuple(others),
            kind="reasoning",
        )
        key = f"{path.parent.name}/{path.stem}" if self._joined else path.stem
        return Sample(id=key, image=picture, queries=tuple(query for _ in picks), source=self.name)


def _annotation(path: Path) -> dict[str, Any]:
    """The JSON of a picture; some published files are not UTF-8 but Windows' cp1252."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", next_step="Download the file again.") from error
    for encoding in ("utf-8", "cp1252"):
        try:
            data = json.loads(raw.decode(encoding))
            break
        except UnicodeDecodeError:
            continue
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON: {str(error)[:100]}.", next_step="Download the file again; it may have been cut.") from error
    else:
        raise DataError(f"{path} is neither UTF-8 nor cp1252.", next_step="Save the file as UTF-8.")
    if not isinstance(data, dict):
        raise DataError(f"{path} must hold one JSON object.", next_step="Download the file again.")
    return data


def _explanations(path: Path) -> dict[str, str]:
    """Explanations by the picture's file name; the file is optional."""
    if not path.is_file():
        return {}
    found = {}
    for k, entry in enumerate(load_json(path, list)):
        where = f"{path}, entry {k}"
        found[Path(str(field(entry, "image", where))).name] = checked_text(field(entry, "outputs", where), f"{where}, field 'outputs'")
    return found
