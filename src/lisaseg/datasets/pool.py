"""Photos with masks in COCO format: named categories, pet breeds, instances, captions, and what is known to be absent.

`Pool` reads one file of a folder laid out as `<root>/<file>.json` + `<root>/images/`. Beside standard COCO it understands
`images[].annotation_scope` (what is labelled exhaustively), `images[].absent_categories`, `images[].captions`,
`annotations[].kind` and `annotations[].attribute`; all are optional. Kind "pseudo" is a mask that a model drew, not a person.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from lisaseg.datasets.vocabulary import category_texts
from lisaseg.errors import DataError
from lisaseg.types import BACKGROUND, IGNORE, TARGET, Query, Sample

INSTANCE_KINDS = ("thing", "foreground", "lvis")  # one annotation = one object; stuff and clothing have one mask for all


@lru_cache(maxsize=1)
def _scopes() -> Mapping[str, Any]:
    return json.loads(resources.files("lisaseg.datasets").joinpath("scopes.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def natural_name(category: str) -> str:
    """Name shown to people: "wall-tile" -> "tiled wall"; unknown ones lose brackets and underscores ("mailbox_(at_home)" -> "mailbox")."""
    text = category_texts().get(category)
    return text.name if text else " ".join(re.sub(r"\([^)]*\)", " ", category.replace("_", " ")).split()) or category


def names_close_to(names: Iterable[str]) -> set[str]:
    """Natural names that could also be said of things with these natural names, themselves included ("shirt" where a blouse is)."""
    present = set(names)
    close = set(present)
    for text in category_texts().values():
        if text.name in present:
            close.update(text.synonyms)
    for group in _scopes()["related"]:
        natural = {natural_name(name) for name in group}
        if natural & present:
            close |= natural
    return close


class Pool:
    """One COCO-format file: index -> `Sample`; deterministic, masks are decoded on access.

    A category whose name is not in the table of texts keeps its own name, so any COCO file works.

    Args:
        root: folder that holds the file and `images/`.
        file: file name, with or without ".json".

    Raises:
        DataError: the file is missing, is not COCO, or an entry is wrong; names file and entry.
    """

    def __init__(self, root: str | Path, file: str) -> None:
        self.root = Path(root)
        self.path = self.root / (file if file.endswith(".json") else f"{file}.json")
        data = self._read()
        self._categories = {
            self._field(c, "id", f"categories[{k}]"): str(self._field(c, "name", f"categories[{k}]")) for k, c in enumerate(data["categories"])
        }
        self._images: list[dict[str, Any]] = data["images"]
        self._annotations: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
        for k, image in enumerate(self._images):
            for key in ("id", "file_name", "width", "height"):
                self._field(image, key, f"images[{k}]")
            if image["id"] in self._annotations:
                raise self._error(f"images[{k}]", f"id {image['id']!r} is used twice", "Give every image its own id.")
            self._annotations[image["id"]] = []
        for k, annotation in enumerate(data["annotations"]):
            where = f"annotations[{k}]"
            if self._field(annotation, "image_id", where) not in self._annotations:
                raise self._error(where, f"image_id {annotation['image_id']!r} is not among the images", "Remove the annotation or add its image.")
            if self._field(annotation, "category_id", where) not in self._categories:
                raise self._error(where, f"category_id {annotation['category_id']!r} is not among the categories", "Add the category.")
            self._field(annotation, "segmentation", where)
            self._annotations[annotation["image_id"]].append((where, annotation))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """The picture's path, one `Query` a category (union of its instances; crowds and ignored regions are 255), breeds, absent names."""
        image, path = self._images[index], self.picture(index)
        targets, crowds, everywhere = self._masks(index)
        queries = tuple(
            Query(text=text, masks=(_with_ignore(mask, crowds.get(name), everywhere),), name=name, kind=kind)
            for (text, name, kind), mask in targets.items()
            if mask.any()
        )
        key = str(image.get("key") or Path(image["file_name"]).stem)
        return Sample(id=key, image=path, queries=queries, absent=self.absent(index), source=self.path.stem)

    def category_names(self) -> tuple[str, ...]:
        """Names of the file's categories as written there, in order."""
        return tuple(self._categories.values())

    def sampling_weights(self) -> np.ndarray:
        """(n,) float64 > 0: pictures that hold rare categories count more, by the mean of 1 / sqrt(frequency) of their categories."""
        held = [{a["category_id"] for _, a in self._annotations[image["id"]]} for image in self._images]
        frequency = Counter(c for categories in held for c in categories)
        return np.array([0.02 + (np.mean([frequency[c] ** -0.5 for c in categories]) if categories else 0.0) for categories in held])

    def captions(self, index: int) -> tuple[str, ...]:
        """Sentences that describe the whole picture; often empty."""
        return tuple(text.strip() for text in self._images[index].get("captions") or () if text.strip())

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        image = self._images[index]
        return int(image["height"]), int(image["width"])

    def scope(self, index: int) -> frozenset[str]:
        """Natural names that are labelled exhaustively in this picture: not in its queries means not in the picture."""
        names: list[str] = []
        for part in str(self._images[index].get("annotation_scope") or "").split("+"):
            names += _scopes()["scopes"].get(_scopes()["aliases"].get(part, part), ())
        return frozenset(natural_name(name) for name in names)

    def absent(self, index: int) -> tuple[str, ...]:
        """Names that can be asked for and are not in the picture, sorted: in scope but not labelled, and verified absences.

        Names that could also be said of something present are left out ("shirt" where a blouse is, "house" where a building is).
        """
        close = names_close_to(self.labelled(index))
        verified = {natural_name(name) for name in self._images[index].get("absent_categories") or ()}
        return tuple(sorted((self.scope(index) | verified) - close))

    def labelled(self, index: int, drawn: bool = True) -> frozenset[str]:
        """Natural names of everything that has a mask in this picture, crowds included; `drawn`: also masks that a model drew."""
        annotations = (a for _, a in self._annotations[self._images[index]["id"]] if drawn or a.get("kind") != "pseudo")
        return frozenset(natural_name(self._categories[a["category_id"]]) for a in annotations)

    def picture(self, index: int) -> Path:
        """Path of the picture.

        Raises:
            DataError: there is no such file.
        """
        path = self.root / "images" / self._images[index]["file_name"]
        if not path.is_file():
            raise self._error(f"images[{self._position(index)}]", f"the picture {path} does not exist", "Restore the file or remove the entry.")
        return path

    def instances(self, index: int) -> list[tuple[str, np.ndarray]]:
        """Single objects as (natural name, `(H, W)` uint8 mask in {0, 1}), for phrases about place, size or number.

        Only names whose objects are all masked one by one: no stuff, no clothing, no name with a crowd region.
        """
        found: list[tuple[str, np.ndarray]] = []
        sources: dict[str, str] = {}
        crowded: set[str] = set()
        for where, annotation in self._annotations[self._images[index]["id"]]:
            name, kind = natural_name(self._categories[annotation["category_id"]]), annotation.get("kind", "thing")
            if kind not in INSTANCE_KINDS:
                continue
            if annotation.get("iscrowd"):
                crowded.add(name)
            elif sources.setdefault(name, kind) == kind:  # an object may be in COCO and in LVIS: take one source
                mask = self._decode(where, annotation, self.size(index))
                if mask.any():
                    found.append((name, mask))
        return [(name, mask) for name, mask in found if name not in crowded]

    def _masks(self, index: int) -> tuple[dict[tuple[str, str, str], np.ndarray], dict[str, np.ndarray], np.ndarray]:
        """Targets by (text, name, kind), crowd regions by name, and pixels without a verdict for any name; all `(H, W)` uint8 in {0, 1}."""
        size = self.size(index)
        everywhere = np.zeros(size, np.uint8)
        targets: dict[tuple[str, str, str], np.ndarray] = {}
        crowds: dict[str, np.ndarray] = {}
        for where, annotation in self._annotations[self._images[index]["id"]]:
            mask = self._decode(where, annotation, size)
            name = natural_name(self._categories[annotation["category_id"]])
            if annotation.get("kind") == "ignore":
                everywhere |= mask
            elif annotation.get("iscrowd"):
                crowds[name] = crowds.get(name, 0) | mask
            else:
                for key in _texts(name, annotation.get("attribute")):
                    targets[key] = targets.get(key, 0) | mask
        return targets, crowds, everywhere

    def _decode(self, where: str, annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
        """Polygons, uncompressed or compressed RLE -> `(H, W)` uint8 in {0, 1}."""
        code = annotation["segmentation"]
        try:
            if isinstance(code, list):
                code = rle.merge(rle.frPyObjects(code, *size))
            elif isinstance(code["counts"], list):
                code = rle.frPyObjects(code, *size)
            if tuple(code["size"]) != size:
                raise ValueError(f"its size is {tuple(code['size'])}, the picture's {size} (height, width)")
            mask: np.ndarray = rle.decode(code)
        except Exception as error:  # pycocotools raises bare Exception and ValueError alike
            raise self._error(where, f"the segmentation cannot be decoded: {error}", "Write it again as COCO polygons or RLE.") from error
        return mask

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            there = ", ".join(sorted(p.name for p in self.root.glob("*.json"))[:12]) or "no .json file"
            raise DataError(f"{self.path} does not exist; the folder holds {there}.", next_step="Check the root and the file name.")
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} is not JSON: {error}.", next_step="Download or write the file again.") from error
        for key in ("images", "annotations", "categories"):
            if not isinstance(data, dict) or not isinstance(data.get(key), list):
                raise DataError(f"{self.path}: the list {key!r} is missing.", next_step="Give a COCO file with images, annotations and categories.")
        return data  # type: ignore[no-any-return]

    def _position(self, index: int) -> int:
        return index % len(self)

    def _field(self, entry: Any, key: str, where: str) -> Any:
        if not isinstance(entry, dict) or key not in entry:
            raise self._error(where, f"the field {key!r} is missing", "Add it.")
        return entry[key]

    def _error(self, where: str, what: str, next_step: str) -> DataError:
        return DataError(f"{self.path}, {where}: {what}.", next_step=next_step)


def _texts(name: str, attribute: str | None) -> list[tuple[str, str, str]]:
    """(text, name, kind) of the queries that one annotation takes part in."""
    keys = [(name, name, "category")]
    if attribute:
        # "american bulldog" already says what it is; "Abyssinian" does not.
        whole = attribute if attribute.lower().endswith(name) else f"{attribute} {name}"
        keys.append((whole[0].upper() + whole[1:], name, "attribute"))
    return keys


def _with_ignore(mask: np.ndarray, crowd: np.ndarray | None, everywhere: np.ndarray) -> np.ndarray:
    out = np.where(mask > 0, TARGET, BACKGROUND).astype(np.uint8)
    if crowd is not None:
        out[(crowd > 0) & (mask == 0)] = IGNORE
    out[everywhere > 0] = IGNORE  # the border band of a trimap lies inside the object's mask, so it must win
    return out
