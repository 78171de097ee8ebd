"""COCO: one JSON file with images, annotations and categories; `coco` writes masks as RLE, `coco-polygons` as outlines.

Beyond COCO itself: `iscrowd` regions are ignored pixels of their category, and LVIS's `neg_category_ids` of an image are texts that nothing fits.
File names are relative to the JSON file, or to the folder given for the pictures (published sets keep them apart).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lisaseg.errors import DataError
from lisaseg.formats import Format, rle, write_aside
from lisaseg.formats.contours import mask_to_polygons
from lisaseg.formats.pictures import by_picture, json_bytes, relative, sample_of
from lisaseg.formats.reading import MEND, check_picture, field, find_picture, load_json, text_field
from lisaseg.types import Query, Sample

Entry = tuple[str, dict[str, Any]]  # where it stands, for messages, and the entry


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """COCO's `segmentation` -> bool `(height, width)`: list of polygons, list of RLE, or one RLE; parts that overlap unite.

    An empty list, and polygons of fewer than 3 points, cover nothing.

    Raises:
        DataError: none of these forms, or an RLE of another size.
    """
    mask = np.zeros((height, width), bool)
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    polygons = []
    for part in parts:
        if isinstance(part, Mapping):
            if list(part.get("size", ())) != [height, width]:
                raise DataError(f"RLE of size {part.get('size')} in a picture of {[height, width]}.", next_step="Check that both belong together.")
            mask |= rle.decode(part)
        elif isinstance(part, list):
            polygons += [part] if len(part) >= 6 else []
        else:
            raise DataError(f"{str(part)[:40]!r} is neither a polygon nor an RLE.", next_step="Write it again as COCO polygons or RLE.")
    return mask | rle.polygons_to_mask(polygons, height, width) if polygons else mask


class CocoFile:
    """A parsed COCO file: images in order, categories by id, annotations by image.

    Attributes:
        path: the file. images: as written, checked for id, height and width. categories: id -> entry with a name.

    Raises:
        DataError: the file is missing or an entry is wrong; names file and entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = load_json(path, dict)
        for key in ("images", "annotations", "categories"):
            if not isinstance(field(data, key, str(path)), list):
                raise DataError(f"{path}, field {key!r}: must be a list.", next_step=MEND)
        self.categories: dict[Any, dict[str, Any]] = {}
        for k, category in enumerate(data["categories"]):
            text_field(category, "name", f"{path}, categories[{k}]")
            self.categories[field(category, "id", f"{path}, categories[{k}]")] = category
        self.images: list[dict[str, Any]] = data["images"]
        self._of: dict[Any, list[Entry]] = {}
        for k, image in enumerate(self.images):
            where = f"{path}, images[{k}]"
            for key in ("height", "width"):
                if not isinstance(field(image, key, where), int) or image[key] < 1:
                    raise DataError(f"{where}, field {key!r}: must be a number of pixels, got {image[key]!r}.", next_step=MEND)
            if field(image, "id", where) in self._of:
                raise DataError(f"{where}: the id {image['id']!r} is used twice.", next_step="Give every image its own id.")
            self._of[image["id"]] = []
        for k, annotation in enumerate(data["annotations"]):
            where = f"{path}, annotations[{k}]"
            if field(annotation, "image_id", where) not in self._of:
                raise DataError(f"{where}: there is no image {annotation['image_id']!r}.", next_step="Remove the annotation or add its image.")
            self._of[annotation["image_id"]].append((where, annotation))

    def annotations(self, image: Mapping[str, Any]) -> list[Entry]:
        """(where, annotation) of an image, in the order of the file."""
        return self._of[image["id"]]

    def by_category(self, image: Mapping[str, Any]) -> dict[Any, list[Entry]]:
        """Annotations of an image by category id, in order of first appearance; DataError for an id that is not known."""
        groups: dict[Any, list[Entry]] = {}
        for where, annotation in self.annotations(image):
            if field(annotation, "category_id", where) not in self.categories:
                raise DataError(f"{where}: there is no category {annotation['category_id']!r}.", next_step="Add the category.")
            groups.setdefault(annotation["category_id"], []).append((where, annotation))
        return groups


def picture_name(image: Mapping[str, Any], where: str) -> str:
    """`file_name`, or what LVIS writes instead: the end of `coco_url` ("train2017/000000000009.jpg")."""
    name = image.get("file_name") or "/".join(str(image.get("coco_url", "")).split("/")[-2:])
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: the field 'file_name' is missing.", next_step="Add it.")
    return name


def mask_of(where: str, annotation: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The bool `(H, W)` mask of an annotation; DataError names `where`."""
    try:
        return segmentation_to_mask(field(annotation, "segmentation", where), *size)
    except DataError as error:
        if error.message.startswith(where):
            raise
        raise DataError(f"{where}, field 'segmentation': {error.message}", next_step=error.next_step) from error


def read(path: Path, images: Path | None = None) -> Iterator[Sample]:
    """One sample an image, one query a category with one mask an instance; see `Format.read`."""
    coco = CocoFile(path)
    for k, image in enumerate(coco.images):
        where = f"{path}, images[{k}]"
        size = (image["height"], image["width"])
        picture = find_picture(picture_name(image, where), path.parent, images, where)
        check_picture(picture, size, where)
        objects: list[tuple[str, np.ndarray]] = []
        ignores: list[tuple[str, np.ndarray]] = []
        for category, entries in coco.by_category(image).items():
            name = str(coco.categories[category]["name"]).strip()
            for place, annotation in entries:
                (ignores if annotation.get("iscrowd") else objects).append((name, mask_of(place, annotation, size)))
        sample = sample_of(str(image["id"]), picture, objects, ignores)
        yield Sample(sample.id, sample.image, (*sample.queries, *_absent(coco, image, where, sample)), source=path.stem)


def _absent(coco: CocoFile, image: Mapping[str, Any], where: str, sample: Sample) -> list[Query]:
    texts = []
    for category in image.get("neg_category_ids") or ():
        if category not in coco.categories:
            raise DataError(f"{where}, field 'neg_category_ids': there is no category {category!r}.", next_step="Add the category.")
        texts.append(str(coco.categories[category]["name"]).strip())
    present = {query.text for query in sample.queries}
    return [Query(text, kind="absent") for text in texts if text not in present]


def write(samples: Iterable[Sample], path: Path, *, polygons: bool = False) -> int:
    """Images and annotations are numbered from 1, images keep an id that is a whole number; see `Format.write`."""
    pictures = by_picture(samples)
    numbers = [int(picture.id) if picture.id.isdecimal() and picture.id.isascii() else 0 for picture in pictures]
    if len(set(numbers)) < len(numbers) or 0 in numbers:
        numbers = list(range(1, len(pictures) + 1))
    texts = dict.fromkeys(packed.text for picture in pictures for packed in picture.queries)
    categories = {text: k for k, text in enumerate(texts, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    count = 0
    for picture, number in zip(pictures, numbers, strict=True):
        image: dict[str, Any] = {"id": number, "file_name": relative(picture.image, path.parent)}
        image |= {"width": picture.size[1], "height": picture.size[0]}
        for packed in picture.queries:
            count += 1
            category, hidden = categories[packed.text], packed.ignored()
            masks = [(mask, 0) for mask in packed.instances()] + ([] if hidden is None else [(hidden, 1)])
            for mask, crowd in masks:
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": crowd}
                annotations.append(entry | _shape(mask, polygons and not crowd))
            if not masks:
                image.setdefault("neg_category_ids", []).append(category)
        images.append(image)
    document = {"images": images, "annotations": annotations, "categories": [{"id": k, "name": text} for text, k in categories.items()]}
    write_aside(path, json_bytes(document))
    return count


def _shape(mask: np.ndarray, polygons: bool) -> dict[str, Any]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0]) + 1, int(ys[-1] - ys[0]) + 1]
    outline = [polygon.ravel().tolist() for polygon in mask_to_polygons(mask)] if polygons else rle.encode(mask)
    return {"segmentation": outline, "area": int(mask.sum()), "bbox": box}


_KEEPS = frozenset({"exact", "instances", "overlaps", "ignore", "absent"})
COCO = Format("coco", "COCO instances, one JSON file, masks as RLE", _KEEPS, ".json", read, write)
COCO_POLYGONS = Format("coco-polygons", "COCO instances, masks as polygons", _KEEPS, ".json", read, partial(write, polygons=True))
