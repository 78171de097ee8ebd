"""Referring expressions: refCOCO, refCOCO+, refCOCOg, refCLEF and gRefCOCO, in the layout of the REFER tools.

    refer_seg/<set>/refs(<by>).p + instances.json          gRefCOCO: grefs(<by>).json or .p
    refer_seg/images/mscoco/images/train2014/*.jpg         refCLEF: refer_seg/images/saiapr_tc-12/*.jpg

One sample a picture, one query a sentence; sentences about one object share its mask. A sentence of gRefCOCO may mean several objects (their union)
or nothing (no mask). Pickles are read without executing what is in them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lisaseg.datasets.base import CHECK, Indexed, excluded_keys, image_key, labelled
from lisaseg.datasets.safe_pickle import load_data_pickle
from lisaseg.errors import DataError
from lisaseg.formats.coco import CocoFile, Entry, mask_of, picture_name
from lisaseg.formats.reading import check_picture, checked_text, field, load_json
from lisaseg.types import Query, Sample

NO_TARGET_ID = -1  # what gRefCOCO writes for "nothing fits"
COCO_SETS = ("refcoco", "refcoco+", "refcocog")
SPLIT_OWNERS = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
    "refclef": ("unc", "berkeley"),
    "grefcoco": ("unc",),
}


class Refer(Indexed):
    """One referring set under a data root; `RefCoco` and its sisters name theirs.

    Args:
        root: data root that holds `refer_seg/`.
        split: "train", "val", "test", "testA", ...; "test" means all of them.
        by: who made the splits: "unc", "umd", "google"; the default is the reference's choice.
        exclude: pictures to leave out (ids, file names or paths), for example `evaluation_images(root)`.

    Raises:
        DataError: a file is missing or wrong, or the split has no sentences; names file and entry.
    """

    folder = ""
    by = "unc"
    pictures = Path("mscoco", "images", "train2014")

    def __init__(self, root: str | Path, split: str = "train", *, by: str | None = None, exclude: Collection[str | int | Path] = ()) -> None:
        base, hidden = Path(root) / "refer_seg", excluded_keys(exclude)
        self._pictures = base / "images" / self.pictures
        self.file = CocoFile(base / self.folder / "instances.json")
        images = {image["id"]: (f"{self.file.path}, images[{k}]", image) for k, image in enumerate(self.file.images)}
        self._of = {annotation.get("id"): (where, annotation) for image in self.file.images for where, annotation in self.file.annotations(image)}
        self._items: list[tuple[str, dict[str, Any]]] = []
        self._queries: list[list[tuple[str, str, tuple[Any, ...]]]] = []  # where, sentence, annotation ids
        places: dict[Any, int] = {}
        refs_path = _refs_file(base / self.folder, by or self.by)
        for where, ref in _refs(refs_path):
            if not in_split(field(ref, "split", where), split):
                continue
            key = field(ref, "image_id", where)
            if key not in images:
                raise DataError(f"{where}: {self.file.path} has no image {key!r}.", next_step="Download both files from one source.")
            if image_key(picture_name(images[key][1], images[key][0])) in hidden or str(key) in hidden:
                continue
            sentences = _sentences(ref, where)
            if sentences and places.setdefault(key, len(self._items)) == len(self._items):
                self._items.append(images[key])
                self._queries.append([])
            ids = self._targets(ref, where)
            if sentences:
                self._queries[places[key]] += [(where, sentence, ids) for sentence in sentences]
        if not self._items and not hidden:
            raise DataError(f"{refs_path} has no sentences of the split {split!r}.", next_step="Name a split that the file has.")

    def __len__(self) -> int:
        """Number of pictures with at least one sentence in the split."""
        return len(self._items)

    def image_keys(self) -> frozenset[str]:
        """What identifies the pictures of the split across data sets."""
        return frozenset(image_key(picture_name(image, where)) for where, image in self._items)

    def _targets(self, ref: Mapping[str, Any], where: str) -> tuple[Any, ...]:
        value = field(ref, "ann_id", where)
        ids = tuple(value) if isinstance(value, list | tuple) else (value,)
        if ids == (NO_TARGET_ID,) or not ids:
            return ()
        for key in ids:
            if key not in self._of:
                raise DataError(f"{where}: {self.file.path} has no annotation {key!r}.", next_step="Download both files from one source.")
        return ids

    def _count(self, index: int) -> int:
        return len(self._queries[index])

    def _sample(self, index: int, picks: Sequence[int]) -> Sample:
        where, image = self._items[index]
        path, size = self._pictures / picture_name(image, where), (image["height"], image["width"])
        check_picture(path, size, where)
        masks: dict[tuple[Any, ...], tuple[np.ndarray, ...]] = {(): ()}
        queries = []
        for pick in picks:
            _, sentence, ids = self._queries[index][pick]
            if ids not in masks:
                masks[ids] = (self._union([self._of[key] for key in ids], size),)
            queries.append(Query(text=sentence, masks=masks[ids], name=self._category(ids), kind="referring"))
        return Sample(id=str(image["id"]), image=path, queries=tuple(queries), source=self.name)

    def _union(self, entries: Sequence[Entry], size: tuple[int, int]) -> np.ndarray:
        target = np.zeros(size, bool)
        for where, annotation in entries:
            target |= mask_of(where, annotation, size)
        return labelled(target)

    def _category(self, ids: tuple[Any, ...]) -> str:
        keys = {self._of[key][1].get("category_id") for key in ids}
        return str(self.file.categories[next(iter(keys))]["name"]) if len(keys) == 1 and keys <= set(self.file.categories) else ""


def in_split(written: object, wanted: str) -> bool:
    """Whether an entry of the split `written` ("testAB" belongs to testA and testB) is part of the split `wanted`."""
    text = str(written)
    if wanted == "test":
        return text.startswith("test")
    if wanted in ("testA", "testB", "testC"):
        return text.startswith("test") and wanted[-1] in text[4:]
    return text == wanted


def evaluation_images(root: str | Path, sets: Collection[str] = COCO_SETS) -> frozenset[str]:
    """Keys of all pictures in the val and test splits of the referring sets that are under `root`: what training on COCO must leave out.

    Every split file counts (refCOCOg has two). A set that is not there is passed over.

    Raises:
        DataError: a file that is there is wrong.
    """
    keys: set[str] = set()
    for name in sets:
        folder = Path(root) / "refer_seg" / name
        paths = [path for by in SPLIT_OWNERS[name] for path in _candidates(folder, by) if path.is_file()]
        if not paths or not (folder / "instances.json").is_file():
            continue
        file = CocoFile(folder / "instances.json")
        names = {image["id"]: picture_name(image, f"{file.path}, images[{k}]") for k, image in enumerate(file.images)}
        for path in paths:
            for where, ref in _refs(path):
                if in_split(field(ref, "split", where), "val") or in_split(ref["split"], "test"):
                    keys.add(image_key(names.get(field(ref, "image_id", where), ref["image_id"])))
    return frozenset(keys)


def _candidates(folder: Path, by: str) -> list[Path]:
    return [folder / f"{stem}({by}){end}" for stem in ("grefs", "refs") for end in (".json", ".p")]


def _refs_file(folder: Path, by: str) -> Path:
    for path in _candidates(folder, by):
        if path.is_file():
            return path
    there = ", ".join(sorted(p.name for p in folder.glob("*refs*"))) or "none"
    raise DataError(f"{folder} has no refs({by}).p; files with references there: {there}.", next_step=CHECK)


def _refs(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    refs = load_json(path) if path.suffix == ".json" else load_data_pickle(path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise DataError(f"{path} must hold a list of references.", next_step="Download the file again.")
    return [(f"{path}, entry {k} (ref_id {ref.get('ref_id')})", ref) for k, ref in enumerate(refs)]


def _sentences(ref: Mapping[str, Any], where: str) -> list[str]:
    """Texts of a reference; empty ones, of which refCLEF has some, are passed over."""
    found = []
    for k, sentence in enumerate(field(ref, "sentences", where)):
        text = field(sentence, "sent", f"{where}, sentences[{k}]") or sentence.get("raw") or ""
        if not isinstance(text, str) or text.strip():
            found.append(checked_text(text, f"{where}, sentences[{k}]"))
    return found


class RefCoco(Refer):
    """refCOCO; splits train, val, testA, testB (by "unc")."""

    name = folder = "refcoco"


class RefCocoPlus(Refer):
    """refCOCO+: without words of place; splits train, val, testA, testB."""

    name = folder = "refcoco+"


class RefCocoG(Refer):
    """refCOCOg: longer sentences; splits train, val, test by "umd", train and val by "google"."""

    name = folder = "refcocog"
    by = "umd"


class RefCocoGGoogle(RefCocoG):
    """refCOCOg with Google's splits."""

    name = "refcocog_google"
    by = "google"


class RefClef(Refer):
    """refCLEF (ReferIt); pictures of SAIAPR TC-12."""

    name = folder = "refclef"
    pictures = Path("saiapr_tc-12")


class GRefCoco(Refer):
    """gRefCOCO: several targets or none."""

    name = folder = "grefcoco"
