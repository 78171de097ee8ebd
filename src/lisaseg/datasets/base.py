"""What the loaders of public data sets share: the contract, names of pictures, and which to leave out."""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from lisaseg.errors import DataError
from lisaseg.types import Sample

_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})")
CHECK = "Run `lisaseg data check ROOT` to see what is there and where to get the rest."


class Indexed(ABC):
    """A data set whose pictures hold more than one question: index -> `Sample`, or the part of it that is needed.

    Masks are built on access. Training asks few questions a picture, so `partial` builds the masks of those only: a street scene holds
    a hundred categories of 10 megapixels each. Same index and picks, same sample.

    Attributes:
        name: the name under which the set is registered; `Sample.source`.
    """

    name = ""

    @abstractmethod
    def __len__(self) -> int:
        """Number of pictures."""

    @abstractmethod
    def _count(self, index: int) -> int:
        """Number of queries of the picture at `index`, which is in [0, len)."""

    @abstractmethod
    def _sample(self, index: int, picks: Sequence[int]) -> Sample:
        """The sample with the queries at `picks`, in that order."""

    def query_count(self, index: SupportsIndex) -> int:
        """Number of queries of the picture; no mask is built."""
        return self._count(self._place(index))

    def partial(self, index: SupportsIndex, picks: Sequence[int]) -> Sample:
        """`self[index]` with the queries at `picks` only, in that order.

        Raises:
            IndexError: outside of [-len, len), or a pick outside of [0, query_count).
            DataError: the entry is wrong; the message names file and entry.
        """
        place = self._place(index)
        count = self._count(place)
        if not all(0 <= pick < count for pick in picks):
            raise IndexError(f"{self.name}[{place}] has {count} queries, picked were {list(picks)}.")
        return self._sample(place, picks)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """The picture with all its queries; errors as for `partial`."""
        place = self._place(index)
        return self._sample(place, range(self._count(place)))

    def _place(self, index: SupportsIndex) -> int:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, there is no index {place}.")
        return place % len(self)


def image_key(name: str | int | Path) -> str:
    """What identifies a picture across data sets: COCO's number without zeros ("COCO_train2014_000000000009.jpg" -> "9"), else the file's stem."""
    stem = Path(str(name)).stem
    match = _COCO_NAME.fullmatch(stem)
    return str(int(match[1])) if match else stem


def excluded_keys(names: Collection[str | int | Path]) -> frozenset[str]:
    """Keys of pictures to leave out; names may be ids, file names or paths."""
    return frozenset(image_key(name) for name in names)


def list_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that fit, sorted by name; DataError if there are none."""
    found = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no {pattern} files." if folder.is_dir() else f"The folder {folder} does not exist.", next_step=CHECK)
    return found


def labelled(target: np.ndarray, ignore: np.ndarray | None = None) -> np.ndarray:
    """Bool target and ignore `(H, W)` -> uint8 {0, 1, 255}; where both are true the pixel is ignored."""
    mask = target.astype(np.uint8)
    if ignore is not None:
        mask[ignore] = 255
    return mask
