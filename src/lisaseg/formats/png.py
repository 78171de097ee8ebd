"""Masks as PNG files: `png`, one file of 0 and 255 a mask; `png-index`, class numbers and object numbers as Pascal VOC has them.

    png         masks.csv (mask,image,text)    masks/<stem>.mask<k>.png
    png-index   class_names.txt    JPEGImages/<stem>.*    SegmentationClass/<stem>.png    SegmentationObject/<stem>.png

`png` read without a masks.csv: `masks/<stem>.png` or `masks/<stem>.mask<k>.png` belong to `images/<stem>.*`, and their text is "target".
`png-index`: line k of class_names.txt names class k, `_background_` is none, a first line `__ignore__` (labelme's) is passed over; 255 is void,
ignored for all classes. Without SegmentationObject every class is one mask.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lisaseg.errors import DataError
from lisaseg.formats import Format, write_aside
from lisaseg.formats.mask_forms import mask_png
from lisaseg.formats.pictures import Annotated, by_picture, copy_picture, make_folder, relative, sample_of, unique_stems
from lisaseg.formats.reading import MEND, check_picture, checked_text, find_picture, picture_size, read_binary_png, read_png
from lisaseg.types import IGNORE, Query, Sample

_HEAD = ["mask", "image", "text"]
_BACKGROUND = ("_background_", "background")
_MASK_NAME = re.compile(r"(.+?)(\.mask\d+)?\.png")
VOID = IGNORE


def _read_binary(path: Path, images: Path | None = None) -> Iterator[Sample]:
    if not path.is_dir():
        raise DataError(f"{path} is no folder.", next_step="Give the folder that holds masks.csv, or images/ and masks/.")
    table: dict[Path, list[tuple[str, Path | None, str]]] = {}  # by picture: text, mask, where it says so
    for where, mask, image, text in _rows(path, images):
        table.setdefault(image, []).append((text, mask, where))
    for image, rows in table.items():
        size = picture_size(image, rows[0][2])
        objects = []
        for text, file, where in rows:
            if file is None:
                continue
            try:
                drawn = read_binary_png(file)
            except DataError as error:
                raise DataError(f"{where}: {error.message}", next_step=error.next_step) from error
            if drawn.shape != size:
                raise DataError(f"{where}: the mask is {drawn.shape}, the upright picture {image} {size}.", next_step="Save it at that size.")
            objects.append((text, drawn))
        sample = sample_of(image.stem, image, objects)
        absent = dict.fromkeys(text for text, file, _ in rows if file is None and text not in {text for text, _ in objects})
        yield Sample(sample.id, image, (*sample.queries, *(Query(text, kind="absent") for text in absent)), source=path.name)


def _rows(path: Path, images: Path | None) -> Iterator[tuple[str, Path | None, Path, str]]:
    """(where, mask or None, picture, text)."""
    index = path / "masks.csv"
    if not index.is_file():
        masks = sorted((path / "masks").glob("*.png"))
        if not masks:
            raise DataError(f"{path} holds neither masks.csv nor masks/*.png.", next_step="Give the folder above masks/.")
        for mask in masks:
            match = _MASK_NAME.fullmatch(mask.name)
            stem = match[1] if match else mask.stem
            found = sorted(file for file in (images or path / "images").glob("*") if file.stem == stem)
            if len(found) != 1:
                raise DataError(f"{mask}: there are {len(found)} pictures {stem}.* beside it.", next_step="Put one there, or say --images.")
            yield str(mask), mask, found[0], "target"
        return
    try:
        rows = list(csv.reader(io.StringIO(index.read_bytes().decode("utf-8-sig", "surrogateescape"), newline=""), strict=True))
    except (OSError, csv.Error) as error:
        raise DataError(f"{index} cannot be read: {error}.", next_step=MEND) from error
    if not rows or rows[0] != _HEAD:
        raise DataError(f"{index}: the first line must be {','.join(_HEAD)}.", next_step="Add it, or save the table as CSV with commas.")
    for number, row in enumerate(rows[1:], start=2):
        where = f"{index}, row {number}"
        if len(row) != 3:
            raise DataError(f"{where}: has {len(row)} columns, not 3.", next_step="Quote texts that hold a comma.")
        mask_name, image_name, text = row
        yield (
            where,
            path / mask_name if mask_name else None,
            find_picture(image_name, path, images, where),
            checked_text(text, f"{where}, column 'text'"),
        )


def _write_binary(samples: Iterable[Sample], path: Path) -> int:
    """Pictures stay where they are; see `Format.write`."""
    pictures = by_picture(samples)
    make_folder(path / "masks")
    rows, count = [_HEAD], 0
    for picture, stem in zip(pictures, unique_stems(pictures), strict=True):
        image, k = relative(picture.image, path), 0
        for packed in picture.queries:
            before = k
            for mask in packed.instances():
                k += 1
                name = f"masks/{stem}.mask{k}.png"
                write_aside(path / name, mask_png(mask))
                rows.append([name, image, packed.text])
            if k == before:
                rows.append(["", image, packed.text])
            count += 1
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_aside(path / "masks.csv", text.getvalue().encode("utf-8", "surrogateescape"))
    return count


def _read_index(path: Path, images: Path | None = None) -> Iterator[Sample]:
    names = class_list(path / "class_names.txt")
    files = sorted((path / "SegmentationClass").glob("*.png"))
    if not files:
        raise DataError(f"{path} holds no SegmentationClass/*.png.", next_step="Give the folder above SegmentationClass/.")
    folder = images or path / "JPEGImages"
    for file in files:
        found = sorted(one for one in folder.glob("*") if one.stem == file.stem)
        if len(found) != 1:
            raise DataError(f"{file}: {folder} holds {len(found)} pictures {file.stem}.*", next_step="Put one there, or say --images.")
        classes = read_png(file, ("L", "P"))
        check_picture(found[0], classes.shape, str(file))
        numbers = file.parent.with_name("SegmentationObject") / file.name
        objects = read_png(numbers, ("L", "P", "I", "I;16")) if numbers.is_file() else np.zeros_like(classes)
        if objects.shape != classes.shape:
            raise DataError(f"{numbers} is {objects.shape}, {file} {classes.shape}.", next_step=MEND)
        void = classes == VOID
        parts = []
        for value in np.unique(classes[~void]).tolist():
            if value >= len(names):
                raise DataError(f"{file} holds class {value}; class_names.txt names 0 to {len(names) - 1}.", next_step="Add its name.")
            if value == 0 and names[0] in _BACKGROUND:
                continue
            here = classes == value
            parts += [(names[value], here & (objects == number)) for number in np.unique(objects[here]).tolist()]
        labels = dict.fromkeys(name for name, _ in parts)
        yield sample_of(file.stem, found[0], parts, [(label, void) for label in labels] if void.any() else ())


def class_list(path: Path) -> list[str]:
    """Names of classes, one a line, class 0 first; DataError names file and line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", next_step="Write one class name a line, `_background_` first.") from error
    names = [line.strip() for line in lines if line.strip()]
    names = names[1:] if names[:1] == ["__ignore__"] else names
    return [checked_text(name, f"{path}, line {k}") for k, name in enumerate(names, start=1)]


def _write_index(samples: Iterable[Sample], path: Path) -> int:
    """Pictures are copied; a pixel of two texts goes to the later one. At most 254 texts, and 254 objects a picture. See `Format.write`."""
    pictures, count = by_picture(samples), 0
    texts = list(dict.fromkeys(" ".join(packed.text.split()) for picture in pictures for packed in picture.queries if packed.union() is not None))
    _at_most_254(len(texts), "texts")
    make_folder(path / "SegmentationClass")
    for picture, stem in zip(pictures, unique_stems(pictures), strict=True):
        classes, objects, used = _numbered(picture, texts)
        count += used
        copy_picture(picture.image, path / "JPEGImages" / f"{stem}{picture.image.suffix}")
        write_aside(path / "SegmentationClass" / f"{stem}.png", _palette_png(classes))
        write_aside(path / "SegmentationObject" / f"{stem}.png", _palette_png(objects))
    write_aside(path / "class_names.txt", "\n".join([_BACKGROUND[0], *texts, ""]).encode("utf-8", "backslashreplace"))
    return count


def _numbered(picture: Annotated, texts: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Class and object numbers, uint8 `(H, W)`, and how many texts have a mask."""
    classes, objects = np.zeros(picture.size, np.uint8), np.zeros(picture.size, np.uint8)
    n = used = 0
    for packed in picture.queries:
        before = n
        for mask in packed.instances():
            n += 1
            _at_most_254(n, f"objects in {picture.image}")
            classes[mask], objects[mask] = texts.index(" ".join(packed.text.split())) + 1, n
        used += n > before
    for packed in picture.queries:
        hidden = packed.ignored()
        if hidden is not None:
            classes[hidden & (objects == 0)] = VOID
    objects[classes == VOID] = VOID
    return classes, objects, used


def _at_most_254(n: int, what: str) -> None:
    if n > 254:
        raise DataError(f"png-index has numbers for 254 {what}, not for {n}.", next_step="Take coco or png, or split the data.")


def _palette_png(values: np.ndarray) -> bytes:
    """An 8-bit PNG with VOC's colours: bit b of the class number sets high bits of red, green and blue in turn."""
    image = Image.fromarray(values)
    palette = [sum(((c >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for c in range(256) for channel in range(3)]
    image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


PNG = Format(
    "png", "one PNG of 0 and 255 a mask, and a CSV file", frozenset({"exact", "instances", "overlaps", "absent"}), "", _read_binary, _write_binary
)
PNG_INDEX = Format(
    "png-index", "Pascal VOC's class and object PNGs", frozenset({"exact", "instances", "ignore"}), "", _read_index, _write_index, copies=True
)
