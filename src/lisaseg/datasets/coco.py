"""COCO's files as they are published: instances (also LVIS and the like) and panoptic. `Pool` reads the richer files of lisaseg's own pool."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lisaseg.datasets.base import CHECK, Indexed, excluded_keys, image_key, labelled
from lisaseg.datasets.pool import natural_name
from lisaseg.errors import DataError
from lisaseg.formats.coco import CocoFile, Entry, mask_of, picture_name
from lisaseg.formats.reading import check_picture, field
from lisaseg.types import Query, Sample

_SUFFIX = re.compile(r"(-other)?(-merged)?(-stuff)?$")  # of panoptic names: "tree-merged", "water-other", "door-stuff"


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
