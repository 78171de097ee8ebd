"""lisaseg JSONL as a data set with random access: one line, one sample."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from lisaseg.datasets.base import Indexed, excluded_keys, image_key
from lisaseg.errors import DataError
from lisaseg.formats.jsonl import sample_from_record
from lisaseg.types import Sample


class NativeJsonl(Indexed):
    """A JSONL file; lines are found when it is opened, and read and checked on access.

    Args:
        root: the file, or a folder that holds `<split>.jsonl`.
        split: name of the file in the folder.
        exclude: pictures to leave out (ids, file names or paths).

    Raises:
        DataError: the file cannot be read, a line is not a JSON object, or two have one id; on access, a field is wrong. Names file, line and field.
    """

    name = "jsonl"

    def __init__(self, root: str | Path, split: str = "train", *, exclude: Collection[str | int | Path] = ()) -> None:
        root = Path(root)
        self.path = root / f"{split}.jsonl" if root.is_dir() else root
        hidden = excluded_keys(exclude)
        self._lines: list[tuple[int, bytes]] = []
        seen: dict[str, int] = {}
        try:
            raw = self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}.", next_step="Check the path of the JSONL file.") from error
        for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
            if not line.strip():
                continue
            record = self._parse(number, line)
            key = record.get("id")
            if isinstance(key, str) and key and seen.setdefault(key, number) != number:
                raise DataError(f"{self.path}:{number}, field 'id': {key!r} is also in line {seen[key]}.", next_step="Make ids unique.")
            if image_key(str(record.get("image", ""))) not in hidden:
                self._lines.append((number, line))

    def __len__(self) -> int:
        """Number of lines that hold a sample."""
        return len(self._lines)

    def where(self, index: int) -> str:
        """File and line of a sample, "train.jsonl:12"."""
        return f"{self.path}:{self._lines[index][0]}"

    def _count(self, index: int) -> int:
        return 1

    def _sample(self, index: int, picks: Sequence[int]) -> Sample:
        number, line = self._lines[index]
        sample = sample_from_record(self._parse(number, line), self.path.parent, f"{self.path}:{number}")
        return Sample(sample.id, sample.image, tuple(sample.queries[0] for _ in picks), source=self.path.stem)

    def _parse(self, number: int, line: bytes) -> dict[str, object]:
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path}:{number}: not JSON in UTF-8, {str(error)[:80]}.", next_step="Write one JSON object a line.") from error
        if not isinstance(record, dict):
            raise DataError(f"{self.path}:{number}: must be a JSON object, is a {type(record).__name__}.", next_step="Write one JSON object a line.")
        return record
