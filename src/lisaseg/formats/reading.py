"""What readers of annotation files share: parsing, fields, texts and sizes of pictures, with errors that name file and entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lisaseg.errors import DataError
from lisaseg.imaging import FORMATS
from lisaseg.types import SEG_TEXT

TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
MEND = "Correct the file; if it was published like this, download it again, it may have been cut."
FIND = "Check the path. For published sets, `lisaseg data check ROOT` says what is there and where to get the rest."


def load_json(path: Path, kind: type = object) -> Any:
    """The parsed file.

    Raises:
        DataError: the file is missing, is not UTF-8 JSON, or its top is not of `kind`.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", next_step=FIND) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {str(error)[:100]}.", next_step=MEND) from error
    if not isinstance(data, kind):
        raise DataError(f"{path} must hold a {kind.__name__}, not a {type(data).__name__}.", next_step=MEND)
    return data


def field(entry: Any, key: str, where: str, kind: type | tuple[type, ...] = object) -> Any:
    """`entry[key]`; DataError names the place and the field if it is missing or not of `kind`."""
    if not isinstance(entry, dict) or key not in entry:
        raise DataError(f"{where}: the field {key!r} is missing.", next_step=f"Add it, or remove the entry. {MEND}")
    value = entry[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object and kind is not bool):
        wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{where}, field {key!r}: must be of type {wanted}, got {str(value)[:40]!r}.", next_step=MEND)
    return value


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


def picture_size(path: Path, where: str) -> tuple[int, int]:
    """(height, width) of the upright picture, from its header; DataError names `where` and the file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112) in TURNED
    except FileNotFoundError as error:
        raise DataError(f"{where}: the picture {path} does not exist.", next_step=FIND) from error
    except Exception as error:  # header parsers raise many types; each means the same to the reader
        raise DataError(f"{where}: {path} cannot be opened as a picture.", next_step="Replace the picture, or remove the entry.") from error
    return (width, height) if turned else (height, width)


def check_picture(path: Path, size: tuple[int, int], where: str) -> None:
    """DataError if the picture is missing or its upright (height, width) is not the size of its masks."""
    found = picture_size(path, where)
    if found != size:
        raise DataError(
            f"{where}: the masks are {size[0]} x {size[1]} (height x width), the picture {path} is {found[0]} x {found[1]} upright.",
            next_step="Check that both belong together; if the picture carries an EXIF rotation, save it without.",
        )


def find_picture(name: str, folder: Path, images: Path | None, where: str) -> Path:
    """The picture that an annotation calls `name`: under `images` if that is given (by path, else by the last part), else beside the annotation.

    Raises:
        DataError: there is none; names `where` and what was tried.
    """
    plain = name.replace("\\", "/")  # labelme on Windows
    tried = [folder / plain] if images is None else [images / plain, images / Path(plain).name]
    try:
        for path in tried:
            if path.is_file():
                return path
    except (OSError, ValueError):  # too long, or a NUL inside
        pass
    raise DataError(
        f"{where}: the picture {name[:200]!r} does not exist, looked for {tried[-1]!s:.300}.", next_step="Say with --images in which folder it lies."
    )


def read_png(path: Path, kinds: tuple[str, ...] = ("1", "L", "P", "I", "I;16")) -> np.ndarray:
    """The numbers of a PNG with one channel, `(H, W)`: grey levels or palette indices, not colours.

    Raises:
        DataError: missing, no PNG, or of another mode than `kinds` (Pillow's names).
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode not in kinds:
                raise DataError(
                    f"{path} is a colour picture (mode {image.mode}).", next_step="Save the mask as PNG with one channel, 0 and 255 or class numbers."
                )
            return np.asarray(image)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.", next_step="Correct the path or add the mask.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be opened as PNG.", next_step="Save the mask as PNG; other formats do not keep it exactly.") from error


def read_binary_png(path: Path) -> np.ndarray:
    """A PNG of 0 and 255 (or 0 and 1) as bool `(H, W)`; DataError as for `read_png`, or if it holds other values."""
    values = read_png(path)
    found = set(np.unique(values).tolist())
    if not (found <= {0, 1} or found <= {0, 255}):
        raise DataError(f"{path} holds values {sorted(found)[:5]}.", next_step="Write 0 and 255 only; put pixels to leave out into 'ignore'.")
    return values != 0
