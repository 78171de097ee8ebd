"""Every fault of a lisaseg JSONL file. Reading stops at the first one, because a sample must be right or absent; who mends a file wants them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lisaseg.errors import DataError, LisaSegError
from lisaseg.formats.jsonl import FieldError, Record, parse_line, sample_from_record

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """What is wrong where: `line` counts from 1, `field` is "" if the line as a whole cannot be read."""

    file: str
    line: int
    field: str
    problem: str
    next_step: str

    def __str__(self) -> str:
        place = f", field {self.field!r}" if self.field else ""
        return f"{self.file}:{self.line}{place}: {self.problem}. {self.next_step}"


def check_jsonl(path: Path, *, decode_images: bool = True) -> Iterator[tuple[int, list[Fault]]]:
    """Look at every line.

    Args:
        path: the file.
        decode_images: decode the pictures, which finds truncated ones; otherwise only headers are read.

    Yields:
        (line number, its faults) for every line that is not empty; a line without faults is exactly one that `read_jsonl` reads.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", next_step="Check the path of the JSONL file.") from error
    seen: dict[str, int] = {}
    with file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if line.strip():
                yield number, _faults(line, path, number, seen, decode_images)


def _faults(line: bytes, path: Path, number: int, seen: dict[str, int], decode: bool) -> list[Fault]:
    where = f"{path}:{number}"
    found: list[Fault] = []

    def note(error: LisaSegError) -> None:
        field = error.field if isinstance(error, FieldError) else ""
        problem = error.problem if isinstance(error, FieldError) else error.message.removeprefix(f"{where}: ").rstrip(".")
        fault = Fault(str(path), number, field, problem, error.next_step)
        if fault not in found:
            found.append(fault)

    def attempt(step: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return step(*arguments)
        except LisaSegError as error:
            note(error)
            return None

    record = attempt(parse_line, line, where)
    if record is None:
        return found
    item = Record(record, path.parent, where)
    for name in record:
        attempt(item.check_name, name)
    _check_fields(item, attempt)
    _check_masks(item, attempt, decode)
    identity = record.get("id")
    if isinstance(identity, str) and identity and seen.setdefault(identity, number) != number:
        note(FieldError(where, "id", f"{identity!r} is also in line {seen[identity]}", "Make ids unique."))
    if not found:  # whatever else reading would refuse
        attempt(lambda: sample_from_record(record, path.parent, where, decode_image=decode))
    return found


def _check_fields(item: Record, attempt: Callable[..., Any]) -> None:
    attempt(lambda: item.text("text", required=True))
    attempt(item.flag, "is_sentence")
    for field in ("id", "kind", "explanation"):
        attempt(item.text, field)
    for field in ("target", "rephrasings"):
        attempt(item.texts, field)


def _check_masks(item: Record, attempt: Callable[..., Any], decode: bool) -> None:
    """The picture, then each mask by itself; without a picture no mask can be judged."""
    image = attempt(lambda: item.text("image", required=True))
    if "mask" not in item.record:
        attempt(item.fail, "mask", "is missing", "Write a mask, or null if nothing in the picture fits.")
    size = attempt(lambda: item.picture_size(item.folder / image, decode=decode)) if image else None
    if size is None:
        return
    for field in ("mask", "ignore"):
        value = item.record.get(field)
        if isinstance(value, list) and value:
            for k, entry in enumerate(value):
                if entry is not None or field == "mask":
                    attempt(item.mask, entry, size, f"{field}[{k}]")
        else:
            attempt(item.masks, field, size)
