"""SOCKET 4, formats: annotations, masks and answers in and out, one file a format.

A format turns files into `Sample`s and back (`Format`); `FORMATS.get(name)` finds one by name or by "package.module:CONSTANT". No format can hold
everything: `Format.keeps` says what survives, and reading what was written gives the same in all that is kept. tests/contracts/test_formats.py holds
every registered format to that.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lisaseg.errors import UsageError
from lisaseg.registry import Registry

if TYPE_CHECKING:
    from lisaseg.types import Sample

# What a format may keep -> what is lost where it does not.
FEATURES = {
    "exact": "masks become outlines; lines of one pixel join their parts",
    "instances": "several masks of one text become one",
    "overlaps": "where masks of different texts overlap, one of them loses the pixels",
    "ignore": "ignored pixels become background",
    "absent": "texts for which nothing fits are left out",
    "question": "is_sentence, explanation and rephrasings are left out",
    "kind": "kind and target name are left out",
}


@dataclass(frozen=True)
class Format:
    """One way to write annotated pictures down.

    Attributes:
        name: as registered.
        about: what it is, in one line.
        keeps: which of `FEATURES` survive.
        suffix: of its file, ".json"; "" if it is a folder.
        read: (path, images) -> samples; `images` is the folder of the pictures, or None: where the annotations say.
            Masks are uint8 {0, 1, 255} `(H, W)` at the picture's upright size. Raises DataError that names file, line or entry, and field.
        write: (samples, path) -> number of texts written. `path` must be free; its folder is made. Raises DataError for a sample that cannot be
            written, UsageError for a place that cannot.
        asks: True if its entries are questions with all their masks; False if they are labelled objects.
        copies: True if it holds copies of the pictures; False if it names them where they are.
    """

    name: str
    about: str
    keeps: frozenset[str]
    suffix: str
    read: Callable[[Path, Path | None], Iterator[Sample]]
    write: Callable[[Iterable[Sample], Path], int]
    asks: bool = False
    copies: bool = False


FORMATS = Registry(
    "formats",
    {
        "jsonl": "lisaseg.formats.jsonl:JSONL",
        "coco": "lisaseg.formats.coco:COCO",
        "coco-polygons": "lisaseg.formats.coco:COCO_POLYGONS",
        "labelme": "lisaseg.formats.labelme:LABELME",
        "yolo": "lisaseg.formats.yolo:YOLO",
        "png": "lisaseg.formats.png:PNG",
        "png-index": "lisaseg.formats.png:PNG_INDEX",
        "reasonseg": "lisaseg.formats.reasonseg:REASONSEG",
        "labelstudio": "lisaseg.formats.labelstudio:LABELSTUDIO",
        "cvat": "lisaseg.formats.cvat:CVAT",
    },
)


def write_aside(path: Path, data: bytes, *, durable: bool = False) -> Path:
    """Write `data` to a new file beside `path`, then rename it: readers see the old file or the whole new one, never a part.

    Folders on the way are made. `durable` waits until the disk has the data, so that it holds after a power cut, too. Returns `path`.

    Raises:
        UsageError: the place cannot be written (no right, no space, a file where a folder should be).
    """
    aside = path.parent / f".aside-{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        next_step = "Choose a folder that you may write to and that has free space."
        raise UsageError(f"{path} cannot be written: {reason}.", next_step=next_step, code="cannot_write") from error
    finally:
        if aside.exists():
            aside.unlink(missing_ok=True)
    return path
