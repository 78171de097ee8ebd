"""From one format to another, and from answers to any of them: whole or not at all, and with a word about what the target cannot hold."""

from __future__ import annotations

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lisaseg.errors import DataError, UsageError
from lisaseg.formats import FEATURES, FORMATS, Format
from lisaseg.formats.answer import answer_to_sample
from lisaseg.types import IGNORE, TARGET, Answer, Sample


@dataclass(frozen=True)
class Converted:
    """What a conversion did: pictures and texts read, texts written, and `losses`, message -> number of texts that it applies to."""

    samples: int
    queries: int
    written: int
    losses: dict[str, int]


def convert(source: Path, out: Path, from_format: str, to_format: str, *, images: Path | None = None) -> Converted:
    """Read `source`, write `out`.

    Args:
        source, out: files, or folders for formats that are folders. `out` must not exist; it appears when it is complete.
        from_format, to_format: names of formats, or "package.module:CONSTANT".
        images: folder of the pictures; None = where the annotations say.

    Raises:
        UsageError: a format is not known, `out` exists or cannot be written. DataError: something in `source` is wrong; names file, place and field.
    """
    reader, writer = _format(from_format), _format(to_format)
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already.", next_step="Choose another name, or remove it first.")
    if not source.exists():
        raise UsageError(f"There is no {source}.", next_step="Check the path.")
    counted = _Counted(reader.read(source, images), writer)
    with _aside(out, writer) as aside:
        written = writer.write(counted, aside)
        if not counted.samples:
            raise DataError(f"{source} holds no sample.", next_step="Check the path and the format.")
        os.replace(aside, out)
    return Converted(counted.samples, counted.queries, written, dict(counted.losses))


def write_answers(answers: Iterable[tuple[Answer, Path, str]], form: Format, out: Path) -> int:
    """Write (answer, file of its picture, id) in a format; what is at `out` is replaced. See `answer_to_sample` for what becomes of an answer.

    Returns the number of texts written. Raises UsageError: `out` cannot be written. DataError: an answer is of another size than its picture.
    """
    with _aside(out, form) as aside:
        written = form.write((answer_to_sample(answer, image, name, by_phrase=not form.asks) for answer, image, name in answers), aside)
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(aside, out)
    return written


@contextmanager
def _aside(out: Path, form: Format) -> Iterator[Path]:
    """Where something for `out` may grow: beside it, so that relative paths in it stay right when it is renamed. Removed if it is still there."""
    aside = out.parent / f".aside-{secrets.token_hex(8)}{form.suffix}"
    try:
        yield aside
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}.", next_step="Choose another place.", code="cannot_write") from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        elif aside.exists():
            aside.unlink()


def _format(name: str) -> Format:
    found = FORMATS.get(name)
    if not isinstance(found, Format):
        raise UsageError(f"{name} is no Format but a {type(found).__name__}.", next_step="Name a constant of type lisaseg.formats.Format.")
    return found


class _Counted:
    """Passes samples through and counts what the writer cannot keep."""

    def __init__(self, samples: Iterable[Sample], writer: Format) -> None:
        self._samples = samples
        self._lost = [name for name in FEATURES if name not in writer.keeps]
        self.samples = self.queries = 0
        self.losses: Counter[str] = Counter()
        self._covered: dict[str, np.ndarray] = {}  # by picture: pixels of earlier masks, 8 in a byte

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._samples:
            self.samples += 1
            self.queries += len(sample.queries)
            for name in self._lost:
                n = self._overlaps(sample) if name == "overlaps" else _uses(sample, name)
                if n:
                    self.losses[FEATURES[name]] += n
            yield sample

    def _overlaps(self, sample: Sample) -> int:
        """How many queries of the sample touch pixels of masks that came before, of this or another sample of the picture."""
        key, count = str(sample.image), 0
        for query in sample.queries:
            touches = False
            for mask in query.masks:
                packed = np.packbits(mask == TARGET)
                before = self._covered.get(key)
                touches |= before is not None and bool((before & packed).any())
                self._covered[key] = packed if before is None else before | packed
            count += touches
        return count


def _uses(sample: Sample, feature: str) -> int:
    """How many queries of the sample need the feature."""
    queries = sample.queries
    if feature == "exact":
        return sum(bool(query.masks) for query in queries)
    if feature == "instances":
        return sum(len(query.masks) > 1 for query in queries)
    if feature == "ignore":
        return sum(any((mask == IGNORE).any() for mask in query.masks) for query in queries)
    if feature == "absent":
        return sum(not query.masks for query in queries)
    if feature == "question":
        return sum(bool(query.is_sentence or query.explanation or query.rephrasings) for query in queries)
    return sum(bool(query.name) or query.kind not in ("category", "reasoning", "absent") for query in queries)
