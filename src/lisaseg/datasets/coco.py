"""COCO's files as they are published: instances (also LVIS and the like) and panoptic. `Pool` reads the richer files of lisaseg's own pool."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lisaseg.datasets.base import CHECK, Indexed, check_picture, excluded_keys, field, image_key, labelled, load_json, text_field
from lisaseg.datasets.pool import natural_name
from lisaseg.errors import DataError
from lisaseg.formats import rle
from lisaseg.types import Query, Sample

_SUFFIX = re.compile(r"(-other)?(-merged)?(-stuff)?$")  # of panoptic names: "tree-merged", "water-other", "door-stuff"
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
                raise DataError(f"{path}, field {key!r}: must be a list.", next_step="Download the file again.")
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
                    raise DataError(f"{where}, field {key!r}: must be a number of pixels, got {image[key]!r}.", next_step="Download the file again.")
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


def union(entries: Sequence[Entry], size: tuple[int, int]) -> np.ndarray:
    """All instances of a category -> uint8 `(H, W)`: 1 where one is, 255 in crowd regions, of which nobody says where its objects end."""
    target, crowd = np.zeros(size, bool), np.zeros(size, bool)
    for where, annotation in entries:
        if annotation.get("iscrowd"):
            crowd |= mask_of(where, annotation, size)
        else:
            target |= mask_of(where, annotation, size)
    return labelled(target, crowd & ~target)


class CocoInstances(Indexed):
    """Instance annotations: one query a category, the union of its instances.

    Only categories with an instance that is no crowd are asked for. LVIS's lists are obeyed: what an image lists as not exhaustively labelled is not
    asked for, what it lists as verified to be absent is in `Sample.absent`. Pictures without a query are left out.

    Args:
        root: data root; the annotations are `coco/annotations/instances_<split>.json`, the pictures `coco/<split>/`.
        split: "train2017", "val2017".
        annotations, pictures: other places, for other files in this format.
        exclude: pictures to leave out (ids, file names or paths).

    Raises:
        DataError: the file is missing or wrong; names file and entry.
    """

    name = "coco_instances"

    def __init__(
        self,
        root: str | Path,
        split: str = "train2017",
        *,
        annotations: str | Path | None = None,
        pictures: str | Path | None = None,
        exclude: Collection[str | int | Path] = (),
    ) -> None:
        folder, hidden = Path(root) / "coco", excluded_keys(exclude)
        self.file = CocoFile(Path(annotations) if annotations else folder / "annotations" / f"instances_{split}.json")
        self._folder = Path(pictures) if pictures else folder / split
        self._texts = {key: self.texts(category["name"]) for key, category in self.file.categories.items()}
        self._items: list[tuple[str, dict[str, Any], list[list[Entry]]]] = []
        for k, image in enumerate(self.file.images):
            where = f"{self.file.path}, images[{k}]"
            if image_key(picture_name(image, where)) in hidden or str(image["id"]) in hidden:
                continue
            groups = [entries for entries in self._groups(image) if any(not annotation.get("iscrowd") for _, annotation in entries)]
            if groups:
                self._items.append((where, image, groups))

    def texts(self, category: str) -> tuple[str, ...]:
        """The name of a category for people, then other ways to say it."""
        return (natural_name(category),)

    def __len__(self) -> int:
        """Number of pictures with at least one query."""
        return len(self._items)

    def _groups(self, image: Mapping[str, Any]) -> list[list[Entry]]:
        """Annotations that are one target each."""
        open_ended = set(image.get("not_exhaustive_category_ids") or ())
        groups: dict[tuple[str, ...], list[Entry]] = {}
        unfinished: set[tuple[str, ...]] = set()
        for key, entries in self.file.by_category(image).items():  # two ids may have one name for people: "mouse", "mouse_(computer_equipment)"
            groups.setdefault(self._texts[key], []).extend(entries)
            if key in open_ended:
                unfinished.add(self._texts[key])
        return [entries for texts, entries in groups.items() if texts not in unfinished]

    def _count(self, index: int) -> int:
        return len(self._items[index][2])

    def _sample(self, index: int, picks: Sequence[int]) -> Sample:
        where, image, groups = self._items[index]
        path, size = self._folder / picture_name(image, where), (image["height"], image["width"])
        check_picture(path, size, where)
        queries = []
        for pick in picks:
            text, *others = self._texts[groups[pick][0][1]["category_id"]]
            queries.append(
                Query(text=text, name=text, masks=(union(groups[pick], size),), rephrasings=tuple(others), kind="part" if others else "category")
            )
        held = {self._texts[annotation["category_id"]] for _, annotation in self.file.annotations(image)}
        never = {self._texts[key] for key in image.get("neg_category_ids") or () if key in self._texts} - held
        return Sample(id=str(image["id"]), image=path, queries=tuple(queries), absent=tuple(sorted(texts[0] for texts in never)), source=self.name)


class CocoPanoptic(Indexed):
    """Panoptic annotations: things and stuff, one query a category; unlabelled pixels and crowds are ignored.

    Args:
        root: data root; `coco/annotations/panoptic_<split>.json`, its PNGs beside it in `panoptic_<split>/`, pictures in `coco/<split>/`.
        split: "train2017", "val2017".
        folder: name of the folder under root.
        exclude: pictures to leave out.

    Raises:
        DataError: a file is missing or wrong; names file and entry.
    """

    name = "coco_panoptic"

    def __init__(self, root: str | Path, split: str = "train2017", *, folder: str = "coco", exclude: Collection[str | int | Path] = ()) -> None:
        self._root, hidden = Path(root) / folder, excluded_keys(exclude)
        self._split = split
        self._maps = self._root / "annotations" / f"panoptic_{split}"
        self.file = CocoFile(self._maps.with_name(f"panoptic_{split}.json"))
        self._items: list[tuple[str, dict[str, Any], dict[str, Any], list[Any]]] = []
        for image in self.file.images:
            for where, annotation in self.file.annotations(image):
                values = self._values(where, annotation)
                if values and image_key(picture_name(image, where)) not in hidden:
                    self._items.append((where, image, annotation, values))

    def __len__(self) -> int:
        """Number of pictures with at least one query."""
        return len(self._items)

    def _values(self, where: str, annotation: dict[str, Any]) -> list[Any]:
        """Ids of categories with a segment that is no crowd."""
        values: dict[Any, None] = {}
        for k, segment in enumerate(field(annotation, "segments_info", where)):
            field(segment, "id", f"{where}, segments_info[{k}]")
            if field(segment, "category_id", f"{where}, segments_info[{k}]") not in self.file.categories:
                raise DataError(f"{where}, segments_info[{k}]: there is no category {segment['category_id']!r}.", next_step="Add the category.")
            if not segment.get("iscrowd"):
                values[segment["category_id"]] = None
        return list(values)

    def _count(self, index: int) -> int:
        return len(self._items[index][3])

    def _sample(self, index: int, picks: Sequence[int]) -> Sample:
        where, image, annotation, values = self._items[index]
        path, size = self._root / self._split / picture_name(image, where), (image["height"], image["width"])
        check_picture(path, size, where)
        ids = self._segment_ids(self._maps / str(field(annotation, "file_name", where)), size, where)
        queries = []
        for pick in picks:
            same = [s for s in annotation["segments_info"] if s["category_id"] == values[pick]]
            target = np.isin(ids, [s["id"] for s in same if not s.get("iscrowd")])
            hidden = np.isin(ids, [0, *(s["id"] for s in same if s.get("iscrowd"))])
            hidden |= np.isin(ids, self._siblings(values[pick], annotation))
            name = natural_name(_SUFFIX.sub("", self.file.categories[values[pick]]["name"]))
            queries.append(Query(text=name, name=name, masks=(labelled(target, hidden & ~target),), kind="category"))
        return Sample(id=str(image["id"]), image=path, queries=tuple(queries), source=self.name)

    def _siblings(self, key: Any, annotation: Mapping[str, Any]) -> list[int]:
        """Segments of which nobody says whether they are the category too: "floor-wood" when "floor-other-merged" is asked for as "floor"."""
        head, _, tail = self.file.categories[key]["name"].partition("-")
        if not tail.startswith("other"):
            return []
        same = {other for other, category in self.file.categories.items() if other != key and category["name"].startswith(f"{head}-")}
        return [segment["id"] for segment in annotation["segments_info"] if segment["category_id"] in same]

    def _segment_ids(self, path: Path, size: tuple[int, int], where: str) -> np.ndarray:
        """`(H, W)` uint32: R + 256 G + 65536 B, 0 is unlabelled."""
        try:
            with Image.open(path, formats=("PNG",)) as image:
                rgb = np.asarray(image.convert("RGB")).astype(np.uint32)
        except FileNotFoundError as error:
            raise DataError(f"{where}: {path} does not exist.", next_step=CHECK) from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{where}: {path} cannot be opened as a PNG.", next_step="Download the file again.") from error
        if rgb.shape[:2] != size:
            raise DataError(f"{where}: {path} is {rgb.shape[:2]}, the picture {size} (height, width).", next_step="Check that both belong together.")
        return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
