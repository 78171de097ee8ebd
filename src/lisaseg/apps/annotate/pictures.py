"""The pictures of an annotation project: which there are, and their pixels for the page."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from lisaseg.apps.annotate.sample_file import SampleFile
from lisaseg.apps.batch_inputs import walk
from lisaseg.errors import ImageError, UsageError
from lisaseg.formats.pictures import relative
from lisaseg.imaging import FORMATS, LIMITS, open_image

THUMBNAIL = (176, 132)
_PLAIN = {
    "JPEG": ("RGB", "L"),
    "MPO": ("RGB",),
    "PNG": ("RGB", "RGBA", "L", "P"),
    "WEBP": ("RGB", "RGBA"),
}  # browsers show these as `open_image` does
_TYPES = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


@dataclass(frozen=True)
class PictureFile:
    """id: made of the name, so that it is the same after a restart. path: absolute and normal. name: relative to the folder, forward slashes."""

    id: str
    path: Path
    name: str


class Project:
    """A folder of pictures, and the file that says what is in them.

    Args:
        folder: searched to any depth; what begins with a dot, and masks that the file names, are passed over.
        out: the JSONL file; None = `annotations.jsonl` in the folder. Pictures that it names elsewhere belong to the project, too.

    Raises:
        UsageError: there is no such folder, no picture, or `out` is a folder.
    """

    def __init__(self, folder: Path, out: Path | None = None) -> None:
        if not folder.is_dir():
            raise UsageError(f"There is no folder {folder}.", next_step="Give the folder that holds the pictures.")
        self.folder = Path(os.path.normpath(folder.absolute()))
        target = Path(os.path.normpath((out or folder / "annotations.jsonl").absolute()))
        if target.is_dir():
            raise UsageError(f"{target} is a folder.", next_step="Give --out the name of a JSONL file.")
        self.file = SampleFile(target)
        self._known: dict[str, PictureFile] = {}
        if not self.pictures():
            raise UsageError(f"{folder} holds no picture.", next_step=f"Put pictures ({', '.join(FORMATS[:-1])}) into it.")

    def pictures(self) -> list[PictureFile]:
        """All pictures as they are now, in natural order ("2" before "10"): those of the folder, then others that the file names."""
        masks, paths = self.file.mask_files(), dict.fromkeys(walk(self.folder))
        for line in self.file.lines():
            path = self.file.picture_of(line)
            if path is not None and path not in paths and path.is_file():
                paths[path] = None
        found = [PictureFile(_id_of(name), path, name) for path in paths if path not in masks for name in [relative(path, self.folder)]]
        found.sort(key=lambda picture: (picture.name.startswith("../"), _natural(picture.name)))
        self._known = {picture.id: picture for picture in found}
        return found

    def picture(self, picture_id: str) -> PictureFile | None:
        """A picture that still is there."""
        if picture_id not in self._known:
            self.pictures()
        found = self._known.get(picture_id)
        return found if found is not None and found.path.is_file() else None


def content(path: Path) -> tuple[bytes, str]:
    """(bytes, media type) of a picture that any browser shows with the pixels of `open_image`: the file itself, else a PNG of them.

    Raises:
        ImageError: it cannot be opened.
    """
    data = path.read_bytes() if path.stat().st_size <= LIMITS.max_bytes else b""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            LIMITS.check(*image.size, path.name)
            turned = image.getexif().get(0x0112, 1) != 1
            if (
                image.mode in _PLAIN.get(image.format or "", ())
                and not getattr(image, "is_animated", False)
                and (image.format == "JPEG" or not turned)
            ):
                return data, _TYPES[str(image.format)]
    except ImageError:
        raise
    except Exception:  # header parsers raise many types; open_image says what is wrong
        pass
    file = io.BytesIO()
    Image.fromarray(open_image(path, name=path.name).rgb).save(file, "PNG", compress_level=1)
    return file.getvalue(), "image/png"


def thumbnail(path: Path) -> bytes:
    """A small upright JPEG.

    Raises:
        ImageError: it cannot be opened.
    """
    return _thumbnail(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2048)
def _thumbnail(path: Path, changed: int) -> bytes:
    """`changed` is part of the key, so that an edited file is read again."""
    small = _quick(path)
    if small is None:
        small = Image.fromarray(open_image(path, name=path.name).rgb)
    small.thumbnail(THUMBNAIL)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return file.getvalue()


def _quick(path: Path) -> Image.Image | None:
    """A JPEG decoded at a fraction of its size, upright; None for what needs the whole way."""
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            if image.mode != "RGB":
                return None
            LIMITS.check(*image.size, path.name)
            image.draft("RGB", (2 * THUMBNAIL[0], 2 * THUMBNAIL[1]))
            return ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except Exception:  # as in `content`
        return None


def _natural(name: str) -> list[str]:
    """Sorts numbers by value."""
    return [part.zfill(20) if part.isdigit() else part for part in re.split(r"(\d+)", name.casefold())]


def _id_of(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
