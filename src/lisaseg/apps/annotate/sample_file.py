"""The file of an annotation project: lisaseg JSONL, one sample a line.

Lines that are not being edited stay as they are, byte for byte, faulty ones too. Before every answer and every save the file is read again: what
another program wrote meanwhile is taken over, and a sample that somebody else changed is never overwritten unasked. A save replaces the file as a
whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisaseg.errors import DataError, LisaSegError
from lisaseg.formats import write_aside
from lisaseg.formats.jsonl import parse_line

BOM = b"\xef\xbb\xbf"
Build = Callable[[dict[str, Any] | None, str], dict[str, Any]]


class Changed(LisaSegError):
    """A sample is not what whoever wants to change it believes it to be. `line`: what it is now, None if it is gone."""

    def __init__(self, message: str, line: Line | None) -> None:
        super().__init__(message, next_step="Look at both and decide which one to keep.", code="sample_changed")
        self.line = line


@dataclass(frozen=True)
class Line:
    """One line. raw: its bytes without the line feed. number: from 1. record: the JSON object, None if it is none. id: its own, or `line-N`."""

    raw: bytes
    number: int
    record: dict[str, Any] | None
    id: str
    problem: str = ""

    @property
    def revision(self) -> str:
        """Another one for every other content."""
        return hashlib.sha256(self.raw).hexdigest()[:20]


class SampleFile:
    """See the head of the file. Methods may be called from any thread.

    Args:
        path: the JSONL file; it and its folder need not exist yet. A link stays a link: its target is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.normpath(path.absolute()))
        self._target = Path(os.path.realpath(path))
        self._lock = threading.RLock()
        self._data = b""
        self._lines: list[Line] = []

    def lines(self) -> list[Line]:
        """All lines, as they are on disk now; DataError if the file cannot be read."""
        with self._lock:
            self._refresh()
            return list(self._lines)

    def of_picture(self, picture: Path) -> list[Line]:
        """The lines about a picture (absolute, normal path), in the order of the file."""
        return [line for line in self.lines() if self.picture_of(line) == picture]

    def picture_of(self, line: Line) -> Path | None:
        """The absolute, normal path of a line's picture; None if it names none."""
        name = (line.record or {}).get("image")
        if not isinstance(name, str) or not name or "\0" in name:
            return None
        return Path(os.path.normpath(self.path.parent / name))

    def mask_files(self) -> set[Path]:
        """PNGs that lines name as masks: pictures, but not to be annotated."""
        found = set()
        for line in self.lines():
            for field in ("mask", "ignore"):
                value = (line.record or {}).get(field)
                items = value if isinstance(value, list) else [value]
                found |= {Path(os.path.normpath(self.path.parent / item)) for item in items if isinstance(item, str)}
        return found

    def where(self, number: int) -> str:
        """How messages call a line."""
        return f"{self.path.name}:{number}"

    def save(self, sample_id: str, revision: str | None, build: Build) -> Line:
        """Put a sample in the place of the one with this id, or at the end. Saving the same again changes nothing, whatever the revision.

        Args:
            sample_id: of the sample.
            revision: of the line that the change was made from; None = a new sample.
            build: (record so far or None, how messages call the line) -> new record. What it raises comes out, and nothing is written.

        Raises:
            Changed: somebody else changed, removed or added the sample.
            DataError, UsageError: the file cannot be read, or written.
        """
        with self._lock:
            self._refresh()
            old = self._find(sample_id)
            number = old.number if old else max((line.number for line in self._lines), default=0) + 1
            record = build(old.record if old else None, self.where(number))
            line = Line(_bytes_of(record), number, record, sample_id)
            if old and old.record == record:
                return old
            self._agree(old, revision)
            at = self._lines.index(old) if old else len(self._lines)
            self._write([*self._lines[:at], line, *self._lines[at + 1 :]])
            return line

    def delete(self, sample_id: str, revision: str) -> None:
        """Remove a sample; one that is gone already is fine. Raises as `save`."""
        with self._lock:
            self._refresh()
            old = self._find(sample_id)
            if old is None:
                return
            self._agree(old, revision)
            self._write([line for line in self._lines if line is not old])

    def _agree(self, now: Line | None, revision: str | None) -> None:
        if (now.revision if now else None) == revision:
            return
        if now is None:
            raise Changed("This sample was removed from the file meanwhile.", None)
        message = "There is another sample with this id." if revision is None else "This sample was changed in the file meanwhile."
        raise Changed(message, now)

    def _find(self, sample_id: str) -> Line | None:
        return next((line for line in self._lines if line.id == sample_id and not line.problem), None)

    def _refresh(self) -> None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}.", next_step="Check the path, or give another with --out.") from error
        if data != self._data:
            self._data, self._lines = data, list(self._parse(data))

    def _parse(self, data: bytes) -> Iterator[Line]:
        taken: set[str] = set()
        for number, raw in enumerate(data.split(b"\n"), start=1):
            text = raw.removeprefix(BOM) if number == 1 else raw
            if not text.strip():
                continue
            try:
                record = parse_line(text, self.where(number))
            except DataError as error:
                yield Line(raw, number, None, f"line-{number}", str(error))
                continue
            own = record.get("id")
            identity = own if isinstance(own, str) and own else f"line-{number}"
            problem = f"{self.where(number)}: the id {identity!r} is also in an earlier line. Make ids unique." if identity in taken else ""
            taken.add(identity)
            yield Line(raw, number, record, identity, problem)

    def _write(self, lines: list[Line]) -> None:
        data = b"".join(line.raw + b"\n" for line in lines)
        write_aside(self._target, data, durable=True)
        self._data, self._lines = data, list(self._parse(data))


def _bytes_of(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace")
