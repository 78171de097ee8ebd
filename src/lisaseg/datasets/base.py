"""What the loaders of public data sets share: the contract, reading of files, names of pictures, and errors that name file and entry."""

from __future__ import annotations

import json
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from PIL import Image

from lisaseg.errors import DataError
from lisaseg.imaging import FORMATS
from lisaseg.types import SEG_TEXT, Sample

_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
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


def load_json(path: Path, kind: type = object) -> Any:
    """The parsed file.

    Raises:
        DataError: the file is missing, is not UTF-8 JSON, or its top is not of `kind`.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", next_step=CHECK) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {str(error)[:100]}.", next_step="Download the file again; it may have been cut.") from error
    if not isinstance(data, kind):
        raise DataError(f"{path} must hold a {kind.__name__}, not a {type(data).__name__}.", next_step="Download the file again.")
    return data


def list_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that fit, sorted by name; DataError if there are none."""
    found = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no {pattern} files." if folder.is_dir() else f"The folder {folder} does not exist.", next_step=CHECK)
    return found


def picture_size(path: Path, where: str) -> tuple[int, int]:
    """(height, width) of the upright picture, from its header; DataError names `where` and the file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112) in _TURNED
    except FileNotFoundError as error:
        raise DataError(f"{where}: the picture {path} does not exist.", next_step=CHECK) from error
    except Exception as error:  # header parsers raise many types; each means the same to the reader
        raise DataError(f"{where}: {path} cannot be opened as a picture.", next_step="Download the picture again.") from error
    return (width, height) if turned else (height, width)


def check_picture(path: Path, size: tuple[int, int], where: str) -> None:
    """DataError if the picture is missing or its upright (height, width) is not the size of its masks."""
    found = picture_size(path, where)
    if found != size:
        raise DataError(
            f"{where}: the masks are {size[0]} x {size[1]} (height x width), the picture {path} is {found[0]} x {found[1]} upright.",
            next_step="Download both again; if the picture carries an EXIF rotation, save it without.",
        )


def field(entry: Any, key: str, where: str) -> Any:
    """`entry[key]`; DataError names the place and the field."""
    if not isinstance(entry, dict) or key not in entry:
        raise DataError(f"{where}: the field {key!r} is missing.", next_step="Download the file again, or remove the entry.")
    return entry[key]


def text_field(entry: Any, key: str, where: str) -> str:
    """A text that is not empty and cannot be mistaken for a mask; DataError names the place and the field."""
    return checked_text(field(entry, key, where), f"{where}, field {key!r}")


def checked_text(value: Any, where: str) -> str:
    """`value` without outer spaces; DataError if it is no text, is empty, or holds the token behind which a mask stands."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: must be a text that is not empty, got {str(value)[:40]!r}.", next_step="Correct the entry, or remove it.")
    if SEG_TEXT in value:
        raise DataError(f"{where}: the text holds {SEG_TEXT}, which stands for a mask.", next_step="Remove it from the text.")
    return value.strip()


def labelled(target: np.ndarray, ignore: np.ndarray | None = None) -> np.ndarray:
    """Bool target and ignore `(H, W)` -> uint8 {0, 1, 255}; where both are true the pixel is ignored."""
    mask = target.astype(np.uint8)
    if ignore is not None:
        mask[ignore] = 255
    return mask
