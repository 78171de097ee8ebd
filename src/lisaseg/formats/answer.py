"""Answers as JSON, as COCO and as files.

The JSON form is stable: keys are added, never renamed or dropped.

    {"text", "raw_text", "status", "instruction", "model", "image": {"width", "height"},
     "segments": [{"index", "phrase", "span": [start, end), "box_xyxy", "area", "score", "mask": COCO RLE, or see `mask_forms`}],
     "usage": {...}, "timings_ms": {...}, "warnings": [{"code", "message"}]}
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lisaseg.errors import DataError, LisaSegError, UsageError
from lisaseg.formats import rle, write_aside
from lisaseg.formats.mask_forms import mask_from_json, mask_png, mask_to_json
from lisaseg.formats.pictures import png_bytes
from lisaseg.types import SEG_TEXT, Answer, MaskFormat, Query, Sample, Segment

STATUSES = ("masks", "no_target", "no_mask_requested", "truncated")
NAMELESS = "object"  # the name of what has neither phrase nor instruction


def answer_to_dict(answer: Answer, mask_format: MaskFormat = "rle") -> dict[str, Any]:
    """The JSON form; masks as compressed RLE or in another form of `mask_forms`, sizes and boxes in pixels, `score` may be None."""
    return {
        "text": answer.text,
        "raw_text": answer.raw_text,
        "status": answer.status,
        "instruction": answer.instruction,
        "model": answer.model,
        "image": {"width": int(answer.image_size[1]), "height": int(answer.image_size[0])},
        "segments": [_segment_to_dict(segment, mask_format) for segment in answer.segments],
        "usage": {name: int(n) for name, n in answer.usage.items()},
        "timings_ms": {name: float(ms) for name, ms in answer.timings_ms.items()},
        "warnings": [{"code": code, "message": message} for code, message in answer.warnings],
    }


def answer_from_dict(data: Mapping[str, Any]) -> Answer:
    """Read the JSON form back, masks in any form but `none`. The picture is not in it, so `image` is None; box and area are measured on the mask.

    Raises:
        DataError: a field is missing or malformed; the message names it.
    """
    if not isinstance(data, Mapping):
        raise DataError("An answer must be a JSON object.", next_step="Pass what `Answer.to_dict` returned.")
    status = _field(data, "status", str)
    if status not in STATUSES:
        raise DataError(f"Answer: field 'status' is {status!r}.", next_step=f"It must be one of {', '.join(STATUSES)}.")
    image = _field(data, "image", Mapping)
    size = (_field(image, "height", int), _field(image, "width", int))
    segments = tuple(_segment_from_dict(item, k) for k, item in enumerate(_field(data, "segments", list)))
    try:
        usage = {str(name): int(n) for name, n in _field(data, "usage", Mapping).items()}
        timings = {str(name): _finite(ms) for name, ms in _field(data, "timings_ms", Mapping).items()}
        warnings = tuple((str(item["code"]), str(item["message"])) for item in _field(data, "warnings", list))
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise DataError("Answer: 'usage', 'timings_ms' or 'warnings' is malformed.", next_step="Pass what `Answer.to_dict` returned.") from error
    return Answer(
        text=_field(data, "text", str),
        raw_text=_field(data, "raw_text", str),
        status=status,
        segments=segments,
        image_size=size,
        instruction=_field(data, "instruction", str),
        model=_field(data, "model", str),
        usage=usage,
        timings_ms=timings,
        warnings=warnings,
    )


def answer_to_coco(answer: Answer, file_name: str = "") -> dict[str, Any]:
    """A COCO document: one image, one annotation a segment (RLE, box XYWH, iscrowd 0), one category for each distinct phrase.

    A segment without a phrase is filed under the instruction, because that is what it fits.
    """
    names = [segment.phrase or answer.instruction or NAMELESS for segment in answer.segments]
    categories = {name: k for k, name in enumerate(dict.fromkeys(names), start=1)}
    annotations = []
    for segment, name in zip(answer.segments, names, strict=True):
        x0, y0, x1, y1 = (int(v) for v in segment.box)
        annotation = {
            "id": segment.index + 1,
            "image_id": 1,
            "category_id": categories[name],
            "segmentation": rle.encode(segment.mask),
            "area": int(segment.area),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
        }
        if segment.score is not None:
            annotation["score"] = float(segment.score)
        annotations.append(annotation)
    return {
        "info": {"description": f"{answer.instruction} | {answer.text}", "contributor": answer.model},
        "images": [{"id": 1, "file_name": file_name, "width": int(answer.image_size[1]), "height": int(answer.image_size[0])}],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for name, k in categories.items()],
    }


def answer_to_sample(answer: Answer, image: Path, identity: str, *, by_phrase: bool = False) -> Sample:
    """An answer as an annotation, for the writers of formats: what the model said becomes what a person may correct and train on.

    Args:
        image: the file of the picture.
        identity: id of the sample.
        by_phrase: for formats of labelled objects: one query for each distinct phrase (the instruction where there is none); otherwise one query, the
            instruction, with all masks.

    Returns:
        The sample. An answer in words only, or cut before its first mask, says nothing about what is in the picture: it becomes no query.
    """
    instruction = _label(answer.instruction) or NAMELESS
    groups: dict[str, list[Segment]] = {instruction: []} if answer.status == "no_target" else {}
    for segment in answer.segments:
        groups.setdefault((by_phrase and _label(segment.phrase)) or instruction, []).append(segment)
    queries = []
    for text, segments in groups.items():
        name = "" if by_phrase else ", ".join(dict.fromkeys(label for segment in segments if (label := _label(segment.phrase))))
        masks = tuple(segment.mask.astype(np.uint8) for segment in segments)
        queries.append(Query(text, masks, not by_phrase and text.endswith(("?", ".", "!")), name, kind="answer"))
    return Sample(identity, image, tuple(queries), source=answer.model)


def _label(text: str) -> str:
    """Words of people or of the model as a text of an annotation, in one line; no mask may stand in it. "" if nothing is left."""
    return " ".join(text.replace(SEG_TEXT, " ").split())


def save_answer(answer: Answer, folder: Path, stem: str) -> list[Path]:
    """Write `<stem>.overlay.png` (only if the answer holds its picture), `<stem>.mask<k>.png` (8 bit, 0 or 255, k from 1) and `<stem>.json`.

    Each file is written aside and renamed. Masks and overlay that an earlier answer left under the same stem are removed: the folder never mixes two.
    A `<stem>.json` that is no answer stays: labelme and ReasonSeg keep a picture's annotations under that name beside it.

    Returns:
        The written paths in that order.

    Raises:
        UsageError: `stem` is no plain file name, `<stem>.json` is something else than an answer, or the folder cannot be written.
    """
    folder = Path(folder)
    note = place_of(folder, stem)
    written: list[Path] = []
    if answer.image is not None:
        overlay = png_bytes(np.asarray(answer.plot()), compress_level=3)  # a photo gains 4 % from level 6, and takes three times as long
        written.append(write_aside(folder / f"{stem}.overlay.png", overlay))
    for k, segment in enumerate(answer.segments, start=1):
        written.append(write_aside(folder / f"{stem}.mask{k}.png", mask_png(segment.mask)))
    text = json.dumps(answer_to_dict(answer), ensure_ascii=False, indent=1) + "\n"
    # A lone surrogate becomes its JSON escape: the file stays UTF-8 and reads back the same.
    written.append(write_aside(note, text.encode("utf-8", "backslashreplace")))
    ours = re.compile(re.escape(stem) + r"\.(mask[1-9]\d*|overlay)\.png")
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and path not in written:
            path.unlink(missing_ok=True)
    return written


def place_of(folder: Path, stem: str) -> Path:
    """The JSON file of an answer that is saved there; UsageError, as for `save_answer`, if that cannot be: known before the model is asked."""
    if stem in ("", ".", "..") or stem != Path(stem).name or "\0" in stem or "\\" in stem:
        raise UsageError(f"{stem[:80]!r} cannot start a file name.", next_step="Give a stem without folders, for example 'answer'.")
    note = folder / f"{stem}.json"
    try:
        strange = note.is_file() and b'"raw_text"' not in note.read_bytes()
    except OSError:  # writing will tell
        strange = False
    if strange:
        raise UsageError(f"{note} is there and is no answer.", next_step="Save into another folder, or under another stem.", code="cannot_write")
    return note


def _segment_to_dict(segment: Segment, mask_format: MaskFormat) -> dict[str, Any]:
    return {
        "index": segment.index,
        "phrase": segment.phrase,
        "span": [int(v) for v in segment.span],
        "box_xyxy": [int(v) for v in segment.box],
        "area": int(segment.area),
        "score": None if segment.score is None else float(segment.score),
        "mask": mask_to_json(segment.mask, mask_format),
    }


def _segment_from_dict(item: Any, k: int) -> Segment:
    where = f"Answer, segment {k}"
    if not isinstance(item, Mapping):
        raise DataError(f"{where} is no JSON object.", next_step="Pass what `Answer.to_dict` returned.")
    span, score = _field(item, "span", list, where), item.get("score")
    try:
        if len(span) != 2 or not all(isinstance(v, int) for v in span) or not (score is None or isinstance(score, int | float)):
            raise ValueError
        score = None if score is None else _finite(score)
    except (ValueError, ArithmeticError) as error:
        message = f"{where}: 'span' must be two whole numbers and 'score' a number or null."
        raise DataError(message, next_step="Pass what `Answer.to_dict` returned.") from error
    try:
        mask = mask_from_json(item.get("mask"))
    except LisaSegError as error:
        raise DataError(f"{where}, field 'mask': {error.message}", next_step=error.next_step) from error
    return Segment.from_mask(_field(item, "index", int, where), mask, (span[0], span[1]), score, _field(item, "phrase", str, where))


def _finite(value: Any) -> float:
    """The number; ValueError or OverflowError for 1e999 and other values that JSON can spell and not every reader understands."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _field(data: Mapping[str, Any], name: str, kind: type, where: str = "Answer") -> Any:
    value = data.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        state = "is missing" if name not in data else f"is {type(value).__name__}"
        raise DataError(f"{where}: field {name!r} {state}.", next_step=f"It must be of type {kind.__name__}; see `Answer.to_dict`.")
    return value
