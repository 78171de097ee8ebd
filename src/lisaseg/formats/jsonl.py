"""lisaseg JSONL, the native sample format: one JSON object a line, one picture and one query each; paths are relative to the file.

    {"id": "a1", "image": "images/a.jpg", "text": "the thing that keeps the milk cold", "is_sentence": false, "kind": "reasoning",
     "target": ["fridge"], "mask": {"size": [299, 448], "counts": "..."}, "ignore": null, "explanation": "...", "rephrasings": ["..."]}

`mask` is COCO RLE (compressed string or list of runs), the path of a PNG (0 and 255, or 0 and 1), `{"polygons": [[x1, y1, ...], ...]}`, a list of
those (one for each `[SEG]`), or null: nothing in the picture fits. `ignore` has the same forms: one mask hides its pixels (255) in every mask, a list
holds one (or null) for each mask. Required are `image`, `text` and `mask`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lisaseg.errors import DataError, LisaSegError
from lisaseg.formats import FEATURES, Format, rle, write_aside
from lisaseg.formats.pictures import relative
from lisaseg.formats.reading import picture_size, read_binary_png
from lisaseg.imaging import open_image
from lisaseg.types import IGNORE, TARGET, Query, Sample

FIELDS = ("id", "image", "text", "is_sentence", "kind", "target", "mask", "ignore", "explanation", "rephrasings")
_MASK_FORMS = "Write COCO RLE, the path of a PNG, polygons, a list of those, or null if nothing fits."


class FieldError(DataError):
    """A fault in one field of one line; `field` and `problem` are parts of the message."""

    def __init__(self, where: str, field: str, problem: str, next_step: str) -> None:
        super().__init__(f"{where}, field {field!r}: {problem}.", next_step=next_step)
        self.field, self.problem = field, problem


def read_jsonl(path: str | Path, *, decode_images: bool = False, images: Path | None = None) -> Iterator[Sample]:
    """Samples of a file, one a line, read and checked as they are asked for; empty lines are skipped.

    Args:
        path: the JSONL file, UTF-8.
        decode_images: also decode every picture, which finds truncated files; otherwise only headers are read.
        images: what the paths of pictures are relative to; None = the file's folder.

    Yields:
        Sample with `image` as a path (joined to the file's folder) and one `Query`; masks are uint8 {0, 1, 255} `(H, W)` at the upright size.

    Raises:
        DataError: names file, line, field and what to do.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", next_step="Check the path of the JSONL file.") from error
    seen: dict[str, int] = {}
    with file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if not line.strip():
                continue
            where = f"{path}:{number}"
            sample = sample_from_record(parse_line(line, where), path.parent, where, decode_image=decode_images, images=images)
            if sample.id in seen:
                raise DataError(f"{path}:{number}, field 'id': {sample.id!r} is also in line {seen[sample.id]}.", next_step="Make ids unique.")
            seen[sample.id] = number
            yield sample


def sample_from_record(record: Mapping[str, Any], folder: Path, where: str, *, decode_image: bool = False, images: Path | None = None) -> Sample:
    """One parsed line -> Sample.

    Args:
        record: the JSON object.
        folder: what its paths are relative to.
        where: "file:line" for messages; also the id of a record that has none.
        decode_image: decode the picture, not only its header.
        images: what its picture is relative to, if not to `folder`.

    Raises:
        DataError: names `where`, the field and what to do.
    """
    item = Record(record, folder, where)
    item.check_names()
    image = (images or folder) / item.text("image", required=True)
    size = item.picture_size(image, decode=decode_image)
    if "mask" not in record:
        item.fail("mask", "is missing", _MASK_FORMS)
    masks = item.masks("mask", size)
    ignore = record.get("ignore")
    ignores = item.masks("ignore", size, empty_items=True)
    if isinstance(ignore, list) and len(ignores) != len(masks):
        item.fail("ignore", f"has {len(ignores)} entries for {len(masks)} masks", "Give one mask for all, or one entry (mask or null) for each.")
    if ignores and not masks:
        item.fail("ignore", "is given, but mask is null", "Write null.")
    labelled = []
    for k, mask in enumerate(masks):
        values = np.where(mask, np.uint8(TARGET), np.uint8(0)) if mask is not None else np.zeros(size, np.uint8)
        hidden = ignores[k if isinstance(ignore, list) else 0] if ignores else None
        if hidden is not None:
            values[hidden] = IGNORE
        labelled.append(values)
    target = record.get("target")
    query = Query(
        text=item.text("text", required=True),
        masks=tuple(labelled),
        is_sentence=item.flag("is_sentence"),
        name=target if isinstance(target, str) else ", ".join(item.texts("target")),
        explanation=item.text("explanation"),
        rephrasings=item.texts("rephrasings"),
        kind=item.text("kind") or "reasoning",
    )
    return Sample(id=item.text("id") or where, image=image, queries=(query,), source=Path(where.rsplit(":", 1)[0]).stem)


def _read(path: Path, images: Path | None) -> Iterator[Sample]:
    return read_jsonl(path, images=images)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or a NUL inside
        return False


def write_jsonl(samples: Iterable[Sample], path: str | Path) -> int:
    """Write samples, one line a query (ids of further queries get `_1`, `_2`, ...); masks become compressed RLE. The file is replaced as a whole.

    What the format cannot hold is left out: `conversation`, `absent` and `source`.

    Returns:
        The number of lines.

    Raises:
        DataError: a sample's picture is in memory, not in a file.
    """
    path = Path(path)
    lines = []
    taken: set[str] = set()
    for sample in samples:
        if not isinstance(sample.image, str | Path):
            raise DataError(
                f"Sample {sample.id!r}: its picture is not a file.", next_step="Save the picture first and build the sample with its path."
            )
        image = relative(Path(sample.image), path.parent)
        for k, query in enumerate(sample.queries):
            identity = base = sample.id if k == 0 else f"{sample.id}_{k}"
            n = 1
            while identity in taken:  # pictures of one name in two folders
                identity, n = f"{base}.{n}", n + 1
            taken.add(identity)
            record = record_of(query, identity, image)
            lines.append(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    write_aside(path, b"".join(lines))
    return len(lines)


def record_of(query: Query, sample_id: str, image: str) -> dict[str, Any]:
    """The JSON object of one query; `image` is the path as it shall be written."""
    masks = [rle.encode(mask == TARGET) for mask in query.masks]
    hidden = [mask == IGNORE for mask in query.masks]
    ignore: Any = None
    if any(area.any() for area in hidden):
        each = [rle.encode(area) if area.any() else None for area in hidden]
        ignore = each[0] if all(entry == each[0] for entry in each) else each
    return {
        "id": sample_id,
        "image": image,
        "text": query.text,
        "is_sentence": query.is_sentence,
        "kind": query.kind,
        "target": [query.name] if query.name else [],
        "mask": None if not masks else masks[0] if len(masks) == 1 else masks,
        "ignore": ignore,
        "explanation": query.explanation,
        "rephrasings": list(query.rephrasings),
    }


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object of a line; DataError names `where`."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is not UTF-8.", next_step="Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON, {error.msg} at column {error.colno}.", next_step="Write one complete JSON object a line.") from error
    except (RecursionError, ValueError) as error:  # nested thousands deep, or a number of thousands of digits
        raise DataError(f"{where}: this JSON cannot be a sample.", next_step="Write one JSON object a line as described in the format.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a line must be a JSON object, got {type(record).__name__}.", next_step="Write one JSON object a line.")
    return record


@dataclass(frozen=True)
class Record:
    """One line under inspection; every refusal names the line and the field.

    record: the JSON object. folder: what its paths are relative to. where: "file:line".
    """

    record: Mapping[str, Any]
    folder: Path
    where: str

    def fail(self, field: str, problem: str, next_step: str) -> NoReturn:
        """Refuse a field."""
        raise FieldError(self.where, field, problem.rstrip("."), next_step)

    def check_names(self) -> None:
        """Further fields are legal; misspelt ones are not, because they would be lost in silence."""
        for name in self.record:
            self.check_name(name)

    def check_name(self, name: str) -> None:
        """Refuse a name that is close to a known field which is not there."""
        near = [] if name in FIELDS else difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.8)
        if near and near[0] not in self.record:
            self.fail(name, "is not known", f"Did you mean {near[0]!r}?")

    def text(self, field: str, *, required: bool = False) -> str:
        """A text, "" if it is absent."""
        value = self.record.get(field)
        if value is None and not required:
            return ""
        if not isinstance(value, str):
            self.fail(field, "is missing" if value is None else f"must be a text, got {type(value).__name__}", "Write a text in quotes.")
        if required and not value.strip():
            self.fail(field, "is empty", "Write what it should say, or drop the line.")
        return str(value)

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self.record.get(field)
        if value is None or (field == "target" and isinstance(value, str)):
            return ()
        if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
            self.fail(field, "must be a list of texts that are not empty", 'Write ["...", "..."], or [] for none.')
        return tuple(value)

    def flag(self, field: str) -> bool:
        """True or false, false if it is absent."""
        value = self.record.get(field, False)
        if not isinstance(value, bool):
            self.fail(field, f"must be true or false, got {str(value)[:40]!r}", "Write true for a sentence, false for a phrase.")
        return value

    def picture_size(self, path: Path, *, decode: bool) -> tuple[int, int]:
        """(height, width) of the upright picture."""
        try:
            if decode:
                return tuple(open_image(path).rgb.shape[:2])
            if not _is_file(path):
                self.fail("image", f"{path} does not exist", "Paths are relative to the JSONL file; correct it or add the picture.")
            return picture_size(path, "")
        except LisaSegError as error:
            if error.message.startswith(self.where):
                raise
            self.fail("image", error.message.removeprefix(": "), error.next_step)

    def masks(self, field: str, size: tuple[int, int], *, empty_items: bool = False) -> list[np.ndarray | None]:
        """Bool `(H, W)` arrays; None only for null entries of a list, where those are legal."""
        value = self.record.get(field)
        if value is None:
            return []
        if value == []:
            self.fail(field, "is an empty list", "Write null if nothing fits.")
        items = value if isinstance(value, list) else [value]
        names = [f"{field}[{k}]" for k in range(len(items))] if isinstance(value, list) else [field]
        return [None if item is None and empty_items else self.mask(item, size, name) for item, name in zip(items, names, strict=True)]

    def mask(self, item: Any, size: tuple[int, int], name: str) -> np.ndarray:
        """One mask in any of its forms, bool `(H, W)`; `name` is the field, for messages."""
        height, width = size
        try:
            if isinstance(item, str):
                mask = read_binary_png(self.folder / item)
            elif isinstance(item, Mapping) and "counts" in item:
                if item.get("size") != [height, width]:
                    self._size_error(name, item.get("size"), size)
                mask = rle.decode(item)
            elif isinstance(item, Mapping) and "polygons" in item:
                mask = rle.polygons_to_mask(item["polygons"], height, width)
            else:
                self.fail(name, f"{str(item)[:40]} is no mask", _MASK_FORMS)
        except DataError as error:
            if error.message.startswith(self.where):
                raise
            self.fail(name, error.message, error.next_step)
        if mask.shape != size:
            self._size_error(name, list(mask.shape), size)
        return mask

    def _size_error(self, name: str, found: Any, size: tuple[int, int]) -> NoReturn:
        self.fail(
            name, f"size (height, width) is {str(found)[:40]}, the upright picture has {list(size)}", "Export the mask at the size of the picture."
        )


JSONL = Format("jsonl", "lisaseg JSONL, the native format", frozenset(FEATURES), ".jsonl", _read, write_jsonl, asks=True)
