"""Answers as files."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lisaseg.apps.server import bodies
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.schemas import ExportRequest
from lisaseg.apps.server.storage import StoredImage
from lisaseg.errors import LisaSegError
from lisaseg.formats import FORMATS, Format, write_aside
from lisaseg.formats.answer import answer_from_dict, answer_to_coco, answer_to_dict, answer_to_sample
from lisaseg.formats.mask_forms import mask_png
from lisaseg.formats.pictures import png_bytes
from lisaseg.imaging import ImageLimits, open_image
from lisaseg.types import Answer

router = APIRouter(prefix="/v1", tags=["export"])
MAX_MASK_PIXELS = 400_000_000  # of all masks of a request together
MAX_BORDER = 500_000  # edges of pixels, likewise: what a format of annotations costs grows with them
_TYPES = {"json": "application/json", "coco": "application/json", "overlay": "image/png"}  # all others are archives
_ENDS = {"json": "json", "coco": "coco.json", "overlay": "overlay.png", "zip": "zip"}
_COPIED = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}  # pictures that every tool opens; others become PNG


@router.post(
    "/export",
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in sorted({*_TYPES.values(), "application/zip"})}}, **bodies.failures(404, 410, 415, 422)},
    openapi_extra=bodies.documented(ExportRequest),
    summary="Answers as a file",
)
async def export(request: Request) -> Response:
    service, owner = request.app.state.service, request.state.owner
    service.limit_rate(owner)
    body = await bodies.read(request, ExportRequest)
    image = None
    if body.image_id is not None:
        image = await service.storage.run(service.storage.get_image, owner, body.image_id)
    elif body.to not in _WITHOUT_PICTURE:
        raise ApiError("missing_image", f"`{body.to}` needs the picture.", next_step="Send `image_id`.", param="image_id")
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", body.name).strip("-")[:60] or "answer"
    data = await service.pictures.work(_write, body, stem, image, service.pictures.limits)
    headers = {"Content-Disposition": f'attachment; filename="{stem}.{_ENDS.get(body.to, f"{body.to}.zip")}"'}
    return Response(data, media_type=_TYPES.get(body.to, "application/zip"), headers=headers)


def _write(body: ExportRequest, stem: str, image: StoredImage | None, limits: ImageLimits) -> bytes:
    try:
        _check_size(body.answers)
        answers = _named([answer_from_dict(answer) for answer in body.answers], body.labels)
        if len({answer.image_size for answer in answers}) > 1:
            raise ApiError("export_failed", "The answers are about pictures of different sizes.", param="answers")
        if image is not None:
            rgb = open_image(image.path, limits, name="The picture").rgb
            answers = [dataclasses.replace(answer, image=rgb) for answer in answers]
            if rgb.shape[:2] != answers[0].image_size:
                raise ApiError("export_failed", "The answers are not about this picture: the sizes differ.", param="image_id")
            if body.to not in _WRITERS:
                return _annotations(answers, stem, image, FORMATS.get(body.to))
        return _WRITERS[body.to](answers, stem)
    except LisaSegError as error:
        raise ApiError("export_failed", error.message, next_step=error.next_step, param="answers") from error


def _check_size(answers: list[dict[str, Any]]) -> None:
    """Bound the work before a mask is decoded."""
    total = 0
    for answer in answers:
        image, segments = answer.get("image"), answer.get("segments")
        if isinstance(image, Mapping) and isinstance(segments, list):
            width, height = image.get("width"), image.get("height")
            if isinstance(width, int) and isinstance(height, int):
                total += abs(width * height) * max(1, len(segments))
        for segment in segments if isinstance(segments, list) else []:
            mask = segment.get("mask") if isinstance(segment, Mapping) else None
            size = mask.get("size") if isinstance(mask, Mapping) and "counts" in mask and mask.keys().isdisjoint({"polygons", "png"}) else None
            if isinstance(image, Mapping) and size != [image.get("height"), image.get("width")]:
                raise ApiError("export_failed", "A mask has not the size of its picture, or is no RLE.", param="answers")
    if total > MAX_MASK_PIXELS:
        raise ApiError("export_failed", f"The masks have more than {MAX_MASK_PIXELS:,} pixels together.", param="answers")


def _named(answers: list[Answer], labels: list[str] | None) -> list[Answer]:
    """The answers with the labels as phrases: one for all masks, or one for each in order; an empty one changes nothing."""
    n = sum(len(answer.segments) for answer in answers)
    if labels is None:
        return answers
    if len(labels) not in (1, n):
        raise ApiError("export_failed", f"There are {n} masks and {len(labels)} labels.", next_step="Send one for all, or one each.", param="labels")
    left = iter(labels if len(labels) == n else labels * n)
    return [
        dataclasses.replace(a, segments=tuple(dataclasses.replace(s, phrase=next(left).strip() or s.phrase) for s in a.segments)) for a in answers
    ]


def _annotations(answers: Sequence[Answer], stem: str, image: StoredImage, form: Format) -> bytes:
    """An archive of the picture and what the format writes about it, in the order of names."""
    border = sum(_border(segment.mask) for answer in answers for segment in answer.segments)
    if border > MAX_BORDER:
        raise ApiError(
            "export_failed", f"The borders of the masks have {border:,} edges; the limit is {MAX_BORDER:,}.", next_step="Take json, coco or masks."
        )
    ending = _COPIED.get(image.facts["format"], "")
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        picture = (Path(name) if form.copies else out) / f"{stem}{ending or '.png'}"
        try:
            pixels = answers[0].image
            write_aside(picture, image.path.read_bytes() if ending or pixels is None else png_bytes(pixels))
            samples = [answer_to_sample(answer, picture, stem, by_phrase=not form.asks) for answer in answers]
            if not any(sample.queries for sample in samples):
                raise ApiError("export_failed", "None of the answers says where something is.", next_step="Ask for a mask first.", param="answers")
            form.write(samples, out / f"{stem}{form.suffix}" if form.suffix else out)
        except LisaSegError as error:
            if error.code == "cannot_write":
                raise ApiError("storage_full") from error
            raise ApiError("export_failed", error.message.replace(f"{name}/", ""), next_step=error.next_step, param="answers") from error
        files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return _zip(dict(sorted(files.items())))


def _border(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1]))


def _json(answers: list[Answer], stem: str) -> bytes:
    return json.dumps([answer_to_dict(answer) for answer in answers], ensure_ascii=False, indent=1).encode()


def _coco(answers: list[Answer], stem: str) -> bytes:
    """One document about one picture: the annotations of all answers, categories by name."""
    documents = [answer_to_coco(answer, f"{stem}.png") for answer in answers]
    names = {c["name"]: 0 for document in documents for c in document["categories"]}
    names = {name: k for k, name in enumerate(names, start=1)}
    annotations = []
    for document in documents:
        titles = {c["id"]: c["name"] for c in document["categories"]}
        annotations += [{**a, "category_id": names[titles[a["category_id"]]]} for a in document["annotations"]]
    annotations = [{**a, "id": k} for k, a in enumerate(annotations, start=1)]
    categories = [{"id": k, "name": name} for name, k in names.items()]
    return json.dumps({**documents[0], "annotations": annotations, "categories": categories}, ensure_ascii=False, indent=1).encode()


def _masks(answers: list[Answer], stem: str) -> bytes:
    return _zip(dict(_mask_files(answers, stem)))


def _overlay(answers: list[Answer], stem: str) -> bytes:
    buffer = io.BytesIO()
    answers[0].plot().save(buffer, "PNG")
    return buffer.getvalue()


def _all(answers: list[Answer], stem: str) -> bytes:
    files = {f"{stem}.json": _json(answers, stem), f"{stem}.coco.json": _coco(answers, stem), **dict(_mask_files(answers, stem))}
    for k, answer in enumerate(answers, start=1):
        if answer.image is not None:
            files[f"{stem}.turn{k}.overlay.png"] = _overlay([answer], stem)
    return _zip(files)


def _mask_files(answers: list[Answer], stem: str) -> list[tuple[str, bytes]]:
    numbered = [(k, segment) for k, answer in enumerate(answers, start=1) for segment in answer.segments]
    return [(f"{stem}.turn{k}.mask{segment.index + 1}.png", mask_png(segment.mask)) for k, segment in numbered]


def _zip(files: dict[str, bytes]) -> bytes:
    """The same files make the same bytes: no times, and rights that do not depend on the server's."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


_WRITERS = {"json": _json, "coco": _coco, "masks": _masks, "overlay": _overlay, "zip": _all}  # and all other names of `FORMATS`
_WITHOUT_PICTURE = ("json", "coco", "masks", "zip")
