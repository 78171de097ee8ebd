"""What a number rests on: which weights, which data, which libraries, and whether the model was trained on what it is judged by."""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lisaseg.formats import rle
from lisaseg.types import Query, Sample

_LIBRARIES = ("lisaseg", "torch", "transformers", "numpy", "pillow")
_PROSE = (".md", "manifest.json")  # a card that is written after the evaluation must not change the hash of what was evaluated
# What the published checkpoints saw (README of github.com/dvlab-research/LISA): all of them the training splits below; v1 also ReasonSeg val.
_LISA_SETS = ("reasonseg", "refcoco", "refcoco+", "refcocog", "refclef", "ade20k", "cocostuff", "mapillary", "paco_lvis", "pascal_part")
_LISA_ID = re.compile(r"xinlai/LISA-.*-v(?P<version>\d)(?:-explanatory)?", re.IGNORECASE)
_TRAIN = {"train", "training", "train2017"}
# The val and test pictures of the referring sets are COCO train pictures: training on COCO shows them to a model, unless somebody left them out.
_ON_COCO_TRAIN = ("refcoco", "refcoco+", "refcocog", "grefcoco")
_COCO_TRAIN = ("coco", "cocostuff", "coco_instances", "coco_panoptic", "paco_lvis", "llava_instruct")


def folder_hash(folder: str | Path) -> str:
    """sha256 (hex) over names and contents of the files of a model folder, without its card and manifest: the `model_hash` of a report."""
    digest, root = hashlib.sha256(), Path(folder)
    for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.name.endswith(_PROSE)):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(root).as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of what the numbers depend on; libraries that are not installed are left out."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def picture_hash(rgb: np.ndarray) -> str:
    """32 hex digits that identify the pixels of a picture, uint8 `(H, W, 3)`."""
    return hashlib.sha256(f"{rgb.shape}\0".encode() + np.ascontiguousarray(rgb).data).hexdigest()[:32]


def query_hash(sample: Sample, query: Query, picture: str) -> str:
    """sha256 (hex) of what is asked, about which pixels (`picture_hash`), and what is true: the same data in another folder has the same hash."""
    digest = hashlib.sha256(f"{sample.id}\0{query.text}\0{query.is_sentence}\0{picture}\0".encode("utf-8", "backslashreplace"))
    for mask in query.masks:
        for value in (1, 255):
            digest.update(rle.encode(mask == value)["counts"].encode())
        digest.update(b"\0")
    return digest.hexdigest()


def data_hash(query_hashes: Iterable[str]) -> str:
    """The hash of a data set from those of its queries, in the order of the data."""
    return hashlib.sha256("\n".join(query_hashes).encode()).hexdigest()


def trained_on(name: str, folder: Path | None) -> list[dict[str, str]] | None:
    """What a model says that it was trained on: entries with "name" and "split" of a data set and perhaps its "data_hash"; None = it does not say.

    A lisaseg model says so in `trained_on` of its config.json (the model card names the same sets in words); of LISA's published checkpoints it is
    known.

    Args:
        name: the model as it was asked for. folder: of its files, or None.
    """
    config = _config(folder)
    listed = config.get("trained_on")
    if isinstance(listed, list) and all(isinstance(entry, Mapping) and "name" in entry for entry in listed):
        return [{str(k): str(v) for k, v in entry.items()} for entry in listed]
    for text in (name, str(config.get("_name_or_path", ""))):
        match = _LISA_ID.search(text)
        if match:
            more = [{"name": "reasonseg", "split": "val"}] if match["version"] != "0" else []
            return [{"name": known, "split": "train"} for known in _LISA_SETS] + more
    return None


def contamination(entries: list[dict[str, str]] | None, name: str, split: str, data: str) -> tuple[bool | None, str]:
    """Whether a model has seen the data that judges it.

    Args:
        entries: what `trained_on` gave. name, split: of the data set. data: its `data_hash`.

    Returns:
        True, False, or None if the model does not say; and one sentence about it.
    """
    if entries is None:
        return None, "The model does not say what it was trained on, so this cannot be checked."
    for entry in entries:
        if entry.get("data_hash") == data:
            return True, f"The model was trained on exactly these queries ({entry['name']} {entry.get('split', '')})."
        if entry["name"].lower() == name.lower() and _same_split(entry.get("split", "train"), split):
            return True, f"The model says that it was trained on {entry['name']} {entry.get('split', '')}."
    seen = next((entry["name"] for entry in entries if entry["name"].lower() in _COCO_TRAIN), None)
    if name.lower() in _ON_COCO_TRAIN and seen:
        return None, f"The model was trained on {seen}, which holds pictures of {name}'s val and test splits unless they were left out."
    return False, "Not among the data that the model says it was trained on (compared by name, split and content)."


def _same_split(seen: str, judged: str) -> bool:
    parts = set(judged.split("_")) | {judged}  # ReasonSeg joins splits: "train_val"
    return seen in parts or bool(seen in _TRAIN and parts & _TRAIN)


def _config(folder: Path | None) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
