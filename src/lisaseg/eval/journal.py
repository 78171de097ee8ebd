"""What an evaluation has answered so far, on disk: one JSONL file a shard, one line a query, so that a run that was killed goes on where it was.

    answers.1-of-2.jsonl     {"evaluation": {model, mode, ...}}      the first line: what is evaluated, and how
                             {"at": [0, 0], "id": ..., "counts": ..., "masks": [COCO RLE], ...}

A batch is written with one call and flushed; a line that was cut by the end of the process is dropped when the file is opened again. Shards need not
be the same from one run to the next: the files of a folder are read together.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lisaseg.errors import UsageError
from lisaseg.eval.run import Key
from lisaseg.eval.summary import Row

_FILE = re.compile(r"answers\.\d+-of-\d+\.jsonl")
_FRESH = "Choose another --out, or run without --resume to start again."


class Journal:
    """The answers of one shard, open for writing; `done` holds those of all shards that were there before.

    Args:
        folder: of the evaluation; made if it is not there.
        head: what is evaluated and how; rows under another head are refused.
        shard: (number from 1, of how many).
        resume: keep what is there. False removes it: the own file, or, without sharding, all of them.

    Raises:
        UsageError: the folder cannot be written, or holds answers of another evaluation.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any], shard: tuple[int, int] = (1, 1), resume: bool = False) -> None:
        self.folder, self.head = folder, dict(head)
        self.path = folder / f"answers.{shard[0]}-of-{shard[1]}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not resume:
                clear(folder, None if shard[1] == 1 else self.path.name)
            self.done = read_rows(folder, head)
            if self.path.is_file():
                _cut_torn_line(self.path)
            self._file = self.path.open("ab")
        except OSError as error:
            raise UsageError(f"{folder} cannot be written: {error.strerror}.", next_step="Choose another --out.", code="cannot_write") from error
        if self._file.tell() == 0:
            self._write([{"evaluation": self.head}])

    def append(self, rows: Iterable[Row]) -> None:
        """Write the rows of a batch."""
        self._write(rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        self._file.write(text.encode("utf-8", "backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())


def clear(folder: Path, name: str | None = None) -> None:
    """Remove the answers of a folder, or one file of them."""
    for path in _files(folder):
        if name in (None, path.name):
            path.unlink()


def read_rows(folder: Path, head: Mapping[str, Any]) -> dict[Key, Row]:
    """Rows of all files of a folder by their place in the data.

    Raises:
        UsageError: a file belongs to another evaluation; names the field that differs.
    """
    rows: dict[Key, Row] = {}
    for path in _files(folder):
        lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line]  # what follows the last line end is a torn line
        if not lines:
            continue
        try:
            first, *rest = (json.loads(line) for line in lines)
            found = first["evaluation"]
            rows |= {(row["at"][0], row["at"][1]): row for row in rest}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UsageError(f"{path} is damaged: {str(error)[:80]}.", next_step=_FRESH) from error
        changed = [key for key in {**found, **head} if found.get(key) != head.get(key)]
        if changed:
            key = changed[0]
            raise UsageError(
                f"{path} holds answers of another evaluation: {key} was {found.get(key)!r}, now it is {head.get(key)!r}.", next_step=_FRESH
            )
    return rows


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _FILE.fullmatch(path.name)) if folder.is_dir() else []


def _cut_torn_line(path: Path) -> None:
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        with path.open("r+b") as file:
            file.truncate(whole)
