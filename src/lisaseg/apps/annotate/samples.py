"""One line of the file <-> what the page works on. Whatever is written here, `formats.jsonl` has read once before."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from lisaseg.apps.annotate.sample_file import Line
from lisaseg.apps.server.schemas import Id, Request
from lisaseg.errors import DataError, LisaSegError
from lisaseg.formats import rle
from lisaseg.formats.jsonl import Record, sample_from_record
from lisaseg.formats.pictures import relative

Text = Annotated[str, Field(max_length=4000)]
Name = Annotated[str, Field(min_length=1, max_length=400)]


class MaskDraft(Request):
    """COCO RLE at the size of the upright picture."""

    size: tuple[int, int]
    counts: str | list[int]


class SampleDraft(Request):
    """What the page wants to save. revision: of the line it began with, null for a new sample. masks: null = nothing in the picture fits."""

    picture: Id
    revision: Annotated[str, Field(max_length=40)] | None
    text: Text
    is_sentence: bool = False
    target: list[Name] = Field(default_factory=list, max_length=32)
    masks: list[MaskDraft] | None = Field(max_length=64)
    ignore: MaskDraft | None = None
    explanation: Text = ""
    rephrasings: list[Name] = Field(default_factory=list, max_length=64)


def view(line: Line, folder: Path, where: str) -> dict[str, Any]:
    """A line as the page gets it: masks as RLE, one ignored area for all of them. A faulty line has a `problem` in place of its content."""
    head = {"id": line.id, "revision": line.revision}
    if line.problem or line.record is None:
        return {**head, "problem": line.problem}
    try:
        sample = sample_from_record(line.record, folder, where)
        masks, ignores, size = _forms(line.record, folder, where)
    except LisaSegError as error:
        return {**head, "problem": str(error)}
    query = sample.queries[0]
    return {
        **head,
        "text": query.text,
        "is_sentence": query.is_sentence,
        "target": _names(line.record.get("target")),
        "masks": [rle.encode(mask) for mask in masks] or None,
        "ignore": _union(ignores, size),
        "explanation": query.explanation,
        "rephrasings": list(query.rephrasings),
    }


def build(draft: SampleDraft, sample_id: str, picture: Path, folder: Path, old: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """The record of a draft. Fields that the page does not show, and masks that were not touched, stay in the form they had.

    Args:
        draft: what the page sent.
        sample_id: its id.
        picture: absolute path.
        folder: of the JSONL file; the picture is named relative to it.
        old: the record so far.
        where: how messages call the line.

    Raises:
        DataError: it would not be a sample: names the field and what to do.
    """
    if not one_line(draft.text):
        raise DataError("The instruction is empty.", next_step="Write what somebody would ask.", code="sample_refused")
    fields = {
        "id": sample_id,
        "image": relative(picture, folder),
        "text": one_line(draft.text),
        "is_sentence": draft.is_sentence,
        "kind": "reasoning",
        "target": [name for name in map(one_line, draft.target) if name],
        "mask": _masks(draft),
        "ignore": _ignore(draft),
        "explanation": one_line(draft.explanation),
        "rephrasings": [text for text in map(one_line, draft.rephrasings) if text],
    }
    record = {**fields, **_kept(fields, old, folder, where)} if old is None else {**old, **fields, **_kept(fields, old, folder, where)}
    try:
        sample_from_record(record, folder, where)
    except DataError as error:
        raise DataError(error.message, next_step=error.next_step, code="sample_refused") from error
    return record


def one_line(text: str) -> str:
    """Text without outer and doubled white space, line feeds and control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _masks(draft: SampleDraft) -> Any:
    if draft.masks is None:
        return None
    if not draft.masks:
        raise DataError("There is no mask.", next_step="Draw one, or say that nothing in the picture fits.", code="sample_refused")
    coded = [_checked(mask, f"Mask {k}") for k, mask in enumerate(draft.masks, start=1)]
    for k, mask in enumerate(coded, start=1):
        if not rle.decode(mask).any():
            raise DataError(f"Mask {k} is empty.", next_step="Draw it, or remove it.", code="sample_refused")
    return coded[0] if len(coded) == 1 else coded


def _ignore(draft: SampleDraft) -> Any:
    if draft.ignore is None or draft.masks is None:
        return None  # where nothing fits, no pixel is in doubt
    coded = _checked(draft.ignore, "The ignored area")
    return coded if rle.decode(coded).any() else None


def _checked(mask: MaskDraft, name: str) -> dict[str, Any]:
    try:
        return rle.encode(rle.decode(mask.model_dump() | {"size": list(mask.size)}))
    except DataError as error:
        raise DataError(f"{name}: {error.message}", next_step=error.next_step, code="sample_refused") from error


def _kept(new: Mapping[str, Any], old: Mapping[str, Any] | None, folder: Path, where: str) -> dict[str, Any]:
    """The fields of the old record that say the same as the new ones in their own way: polygons, PNG paths, an ignored area for each mask, ..."""
    if old is None:
        return {}
    kept: dict[str, Any] = {"kind": old["kind"]} if isinstance(old.get("kind"), str) else {}
    if isinstance(old.get("image"), str) and os.path.normpath(folder / old["image"]) == os.path.normpath(folder / new["image"]):
        kept["image"] = old["image"]
    if _names(old.get("target")) == new["target"] and isinstance(old.get("target"), str):
        kept["target"] = old["target"]
    try:
        masks, ignores, size = _forms(old, folder, where)
    except LisaSegError:
        return kept  # it was faulty: nothing to keep
    was = [rle.encode(mask) for mask in masks]
    now = new["mask"] if isinstance(new["mask"], list) else [] if new["mask"] is None else [new["mask"]]
    forms = old["mask"] if isinstance(old["mask"], list) else [old["mask"]]
    mixed = [forms[was.index(mask)] if mask in was else mask for mask in now]
    if now:
        kept["mask"] = mixed if isinstance(old["mask"], list) or len(now) > 1 else mixed[0]
    if new["ignore"] == _union(ignores, size) and (len(now) == len(was) or not isinstance(old.get("ignore"), list)):
        kept["ignore"] = old.get("ignore")
    return kept


def _forms(record: Mapping[str, Any], folder: Path, where: str) -> tuple[list[np.ndarray], list[np.ndarray | None], tuple[int, int]]:
    """Masks and ignored areas of a record, each in its own pixels, and the (height, width) of its picture; DataError if they cannot be read."""
    item = Record(record, folder, where)
    size = item.picture_size(folder / item.text("image", required=True), decode=False)
    masks = [mask for mask in item.masks("mask", size) if mask is not None]
    return masks, item.masks("ignore", size, empty_items=True), size


def _union(areas: Sequence[np.ndarray | None], size: tuple[int, int]) -> dict[str, Any] | None:
    whole = np.zeros(size, bool)
    for area in areas:
        if area is not None:
            whole |= area
    return rle.encode(whole) if whole.any() else None


def _names(target: Any) -> list[str]:
    return [target] if isinstance(target, str) and target else [name for name in target if isinstance(name, str)] if isinstance(target, list) else []
