"""Label Studio: a JSON list of tasks; masks are brush labels in its own run-length code, which is not COCO's.

Code of a brush mask (rle-pack of thi.ng/umbrella, as in label-studio-sdk `converter/brush.py`): the mask row by row, each pixel four times (RGBA, 0
or 255), as a stream of bits: 32 for the number of values, 5 for the word size - 1, four times 4 for the run sizes - 1; then blocks of 1 bit (1 for a
run, 0 for single values), 2 for which run size, that many bits for the length - 1, and the value, or all the single values. A pixel belongs to the
mask if its alpha is 128 or more.

Read are `brushlabels`, `polygonlabels` and `rectanglelabels` of the first annotation that was not cancelled, else of the first prediction.
Pictures are written as `/data/local-files/?d=PATH`, with PATH relative to the JSON file: make its folder the document root of Label Studio's local
storage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import numpy as np

from lisaseg.errors import DataError
from lisaseg.formats import Format, rle, write_aside
from lisaseg.formats.pictures import by_picture, json_bytes, relative, sample_of
from lisaseg.formats.reading import MEND, check_picture, field, find_picture, load_json, picture_size, text_field
from lisaseg.types import Sample

_RUN_SIZES = (3, 4, 8, 16)  # bits of a run's length - 1
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
CONFIG = '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">{}</BrushLabels></View>'


def encode_brush(mask: np.ndarray) -> list[int]:
    """Bool `(H, W)` -> bytes of Label Studio's code."""
    flat = np.repeat(mask.ravel(), 4)
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    bits = [f"{flat.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _RUN_SIZES)]
    start = 0
    for end in ends.tolist():
        value, left = (255 if flat[start] else 0), end - start
        start = end
        while left:
            run = min(left, 1 << _RUN_SIZES[-1])
            which = next(k for k, size in enumerate(_RUN_SIZES) if run <= 1 << size)
            bits.append(f"1{which:02b}{run - 1:0{_RUN_SIZES[which]}b}{value:08b}")
            left -= run
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


def decode_brush(code: Any, height: int, width: int) -> np.ndarray:
    """Label Studio's code -> bool `(height, width)`.

    Raises:
        DataError: it is no such code, it ends early, or it is of another size.
    """
    if not isinstance(code, list) or not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 255 for v in code):
        raise DataError("A brush mask must be a list of bytes.", next_step="Export the task again as JSON.")
    bits = (np.unpackbits(np.array(code, np.uint8)) + ord("0")).tobytes().decode("ascii")
    at = 0

    def take(size: int) -> int:
        nonlocal at
        at += size
        if at > len(bits):
            raise DataError("A brush mask ends early.", next_step="Export the task again as JSON.")
        return int(bits[at - size : at], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if total != 4 * height * width or word != 8:
        raise DataError(
            f"A brush mask holds {total} values of {word} bits, {height} x {width} RGBA pixels have {4 * height * width} of 8.",
            next_step="Check original_height and original_width.",
        )
    values = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        is_run = take(1)
        length = take(sizes[take(2)]) + 1
        if is_run:
            values[done : done + length] = take(8)
        else:
            for k in range(done, min(done + length, total)):
                values[k] = take(8)
        done += length
    return values.reshape(height, width, 4)[:, :, 3] >= 128


def read(path: Path, images: Path | None = None) -> Iterator[Sample]:
    """One sample a task; see `Format.read`."""
    for k, task in enumerate(load_json(path, list)):
        where = f"{path}, task {k}"
        data = field(task, "data", where, dict)
        picture = _picture(str(data.get("image") or next((v for v in data.values() if isinstance(v, str)), "")), path.parent, images, where)
        size = picture_size(picture, where)
        objects = []
        for n, result in enumerate(_results(task, where)):
            place = f"{where}, result[{n}]"
            kind = field(result, "type", place, str).lower()
            if kind not in ("brushlabels", "polygonlabels", "rectanglelabels"):
                continue  # choices, texts and relations are no areas
            declared = (field(result, "original_height", place, int), field(result, "original_width", place, int))
            check_picture(picture, declared, place)
            value = field(result, "value", place, dict)
            labels = field(value, kind, place, list)
            label = text_field({kind: labels[0] if labels else ""}, kind, place)
            objects.append((label, _area(kind, result, value, size, place)))
        yield sample_of(str(task.get("id", k + 1)), picture, objects)


def _results(task: dict[str, Any], where: str) -> list[dict[str, Any]]:
    drawn = [entry for entry in task.get("annotations") or () if not entry.get("was_cancelled")] or (task.get("predictions") or ())
    return field(drawn[0], "result", where, list) if drawn else []


def _area(kind: str, result: dict[str, Any], value: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    height, width = size
    if result.get("image_rotation") or value.get("rotation"):
        raise DataError(f"{where}: it is rotated.", next_step="Rotate the picture itself, or draw it with the brush.")
    try:
        if kind == "brushlabels":
            return decode_brush(value.get("rle"), height, width)
        if kind == "rectanglelabels":
            x, y, w, h = (float(value[key]) / 100 for key in ("x", "y", "width", "height"))
            points = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
        else:
            points = [(float(x) / 100, float(y) / 100) for x, y in value["points"]]
        return rle.polygons_to_mask([[v for x, y in points for v in (x * width, y * height)]], height, width)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: its points or corners are not given in percent.", next_step=MEND) from error
    except DataError as error:
        raise DataError(f"{where}: {error.message}", next_step=error.next_step) from error


def _picture(address: str, folder: Path, images: Path | None, where: str) -> Path:
    """The file behind a task's address: a path, a local file of the storage, or an upload, whose name is sought in `images`."""
    parts = urlsplit(address)
    name = parse_qs(parts.query).get("d", [unquote(parts.path)])[0] if parts.path.startswith("/data/") else address
    if images is not None and not (images / name).is_file():
        short = _UPLOAD.sub("", Path(name).name)
        name = short if (images / short).is_file() else name
    return find_picture(name, folder, images, where)


def write(samples: Iterable[Sample], path: Path) -> int:
    """A list of tasks with one annotation each, for the labelling setup `CONFIG`; see `Format.write`."""
    tasks, count = [], 0
    for k, picture in enumerate(by_picture(samples), start=1):
        results: list[dict[str, Any]] = []
        for packed in picture.queries:
            before = len(results)
            for mask in packed.instances():
                value = {"format": "rle", "rle": encode_brush(mask), "brushlabels": [packed.text]}
                place = {"id": f"r{k}_{len(results)}", "from_name": "tag", "to_name": "image", "type": "brushlabels", "image_rotation": 0}
                results.append(place | {"original_height": picture.size[0], "original_width": picture.size[1], "value": value})
            count += len(results) > before
        address = f"/data/local-files/?d={quote(relative(picture.image, path.parent))}"
        tasks.append({"id": k, "data": {"image": address}, "annotations": [{"result": results}]})
    write_aside(path, json_bytes(tasks))
    return count


LABELSTUDIO = Format(
    "labelstudio", "Label Studio's JSON tasks with brush labels", frozenset({"exact", "instances", "overlaps"}), ".json", read, write
)
