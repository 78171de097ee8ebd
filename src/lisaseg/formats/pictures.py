"""Samples by picture, with packed masks: what the writers of object formats work on, and how their readers build samples.

A data set of a few thousand pictures fits in memory as run lengths, not as arrays; so `by_picture` packs each mask as it comes.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lisaseg.errors import DataError, UsageError
from lisaseg.formats import rle, write_aside
from lisaseg.formats.reading import picture_size
from lisaseg.types import IGNORE, TARGET, Query, Sample


@dataclass(frozen=True)
class Packed:
    """A query whose masks are COCO RLE: `targets`, one a mask, and `ignores`, its ignored pixels or None."""

    query: Query
    targets: tuple[dict[str, Any], ...]
    ignores: tuple[dict[str, Any] | None, ...]

    @classmethod
    def of(cls, query: Query) -> Packed:
        """Pack a query."""
        hidden = [mask == IGNORE for mask in query.masks]
        return cls(
            replace(query, masks=()),
            tuple(rle.encode(mask == TARGET) for mask in query.masks),
            tuple(rle.encode(area) if area.any() else None for area in hidden),
        )

    @property
    def text(self) -> str:
        """The query's text."""
        return self.query.text

    def instances(self) -> Iterator[np.ndarray]:
        """The masks that have a pixel, bool `(H, W)`."""
        for packed in self.targets:
            mask = rle.decode(packed)
            if mask.any():
                yield mask

    def union(self) -> np.ndarray | None:
        """All masks in one, bool `(H, W)`; None if there is none or it is empty."""
        return _union(self.instances())

    def ignored(self) -> np.ndarray | None:
        """Pixels that some mask ignores and none holds, bool `(H, W)`; None if there are none."""
        hidden, target = _union(rle.decode(packed) for packed in self.ignores if packed is not None), self.union()
        if hidden is not None and target is not None:
            hidden = hidden & ~target
        return hidden if hidden is not None and hidden.any() else None


def _union(masks: Iterable[np.ndarray]) -> np.ndarray | None:
    whole: np.ndarray | None = None
    for mask in masks:
        whole = mask if whole is None else whole | mask
    return whole


@dataclass
class Annotated:
    """All that the samples say about one picture: (height, width) upright, and queries in order, one a text."""

    id: str
    image: Path
    size: tuple[int, int]
    queries: list[Packed] = field(default_factory=list)

    def add(self, packed: Packed) -> None:
        """Add a query; one of the same text takes its masks in."""
        for k, known in enumerate(self.queries):
            if known.text == packed.text:
                self.queries[k] = Packed(known.query, known.targets + packed.targets, known.ignores + packed.ignores)
                return
        self.queries.append(packed)


def by_picture(samples: Iterable[Sample]) -> list[Annotated]:
    """Samples of one picture become one, in order of first appearance.

    Raises:
        DataError: a picture is in memory only, cannot be opened, or its size is not that of the masks.
    """
    found: dict[str, Annotated] = {}
    for sample in samples:
        image = image_path(sample)
        key = os.path.abspath(image)  # noqa: PTH100 - resolve() would follow links and ask the disk each time
        if key not in found:
            found[key] = Annotated(sample.id, image, picture_size(image, f"Sample {sample.id!r}"))
        for query in sample.queries:
            for mask in query.masks:
                if mask.shape != found[key].size:
                    raise DataError(
                        f"Sample {sample.id!r}: a mask of {mask.shape} for {image}, which is {found[key].size} upright.",
                        next_step="Give masks at the size of the picture.",
                    )
            found[key].add(Packed.of(query))
    return list(found.values())


def image_path(sample: Sample) -> Path:
    """The file of a sample's picture; DataError if it is in memory only."""
    if not isinstance(sample.image, str | Path):
        raise DataError(f"Sample {sample.id!r}: its picture is not a file.", next_step="Save the picture first and build the sample with its path.")
    return Path(sample.image)


def sample_of(identity: str, image: Path, objects: Sequence[tuple[str, np.ndarray]], ignores: Sequence[tuple[str, np.ndarray]] = ()) -> Sample:
    """Labelled objects of a picture -> a sample with one query a label, its instances as masks, in order of first appearance.

    Args:
        identity, image: of the sample.
        objects: (label, bool `(H, W)`).
        ignores: (label, bool `(H, W)`): pixels that are 255 in every mask of the label, where they are not its own.
    """
    labels = dict.fromkeys([label for label, _ in (*objects, *ignores)])
    queries = []
    for label in labels:
        hidden = _union(mask for name, mask in ignores if name == label)
        masks = [mask.astype(np.uint8) for name, mask in objects if name == label]
        if not masks and hidden is not None:
            masks = [np.zeros(hidden.shape, np.uint8)]
        for mask in masks:
            if hidden is not None:
                mask[hidden & (mask == 0)] = IGNORE
        queries.append(Query(label, tuple(masks)))
    return Sample(identity, image, tuple(queries))


def relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`, with forward slashes; stays absolute on another drive."""
    try:
        return os.path.relpath(path, folder).replace(os.sep, "/")
    except ValueError:  # another drive, on Windows
        return str(path)


def unique_stems(pictures: Sequence[Annotated]) -> list[str]:
    """A file stem for each picture: its own, with the folder before it or a number behind it where two would be equal. No two differ in case only."""
    taken: set[str] = set()
    stems = []
    for picture in pictures:
        stem = picture.image.stem
        if stem.casefold() in taken:
            stem = f"{picture.image.parent.name}_{stem}"
        base, n = stem, 2
        while stem.casefold() in taken:
            stem, n = f"{base}_{n}", n + 1
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def copy_picture(source: Path, target: Path) -> None:
    """Copy a picture as it is; DataError if it cannot be read, UsageError if it cannot be written."""
    try:
        data = source.read_bytes()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}.", next_step="Check the picture.") from error
    write_aside(target, data)


def png_bytes(pixels: np.ndarray, compress_level: int = 6) -> bytes:
    """uint8 `(H, W)` or `(H, W, 3)` -> a PNG file; zlib's level, 1 fast to 9 small."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def json_bytes(data: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8, a lone surrogate as its escape."""
    return (json.dumps(data, ensure_ascii=False, indent=indent) + "\n").encode("utf-8", "backslashreplace")


def make_folder(path: Path) -> None:
    """Make a folder, for formats that may write nothing into it; UsageError if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be made: {error.strerror}.", next_step="Choose another place.", code="cannot_write") from error
