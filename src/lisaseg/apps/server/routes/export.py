"""Answers as files."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lisaseg.apps.server import bodies
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.schemas import ExportRequest
from lisaseg.errors import LisaSegError
from lisaseg.formats.answer import answer_from_dict, answer_to_coco, answer_to_dict, mask_png
from lisaseg.imaging import ImageLimits, open_image
from lisaseg.types import Answer

router = APIRouter(prefix="/v1", tags=["export"])
MAX_MASK_PIXELS = 400_000_000  # of all masks of a request together
_TYPES = {"json": "application/json", "coco": "application/json", "masks": "application/zip", "overlay": "image/png", "zip": "application/zip"}
_ENDS = {"json": "json", "coco": "coco.json", "masks": "masks.zip", "overlay": "overlay.png", "zip": "zip"}


@router.post(
    "/export",
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in sorted({*_TYPES.values()})}}, **bodies.failures(404, 410, 415, 422)},
    openapi_extra=bodies.documented(ExportRequest),
    summary="Answers as a file",
)
async def export(request: Request) -> Response:
    service, owner = request.app.state.service, request.state.owner
    service.limit_rate(owner)
    body = await bodies.read(request, ExportRequest)
    path = None
    if body.image_id is not None:
        path = (await service.storage.run(service.storage.get_image, owner, body.image_id)).path
    elif body.to == "overlay":
        raise ApiError("missing_image", "An overlay needs the picture.", param="image_id")
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", body.name).strip("-")[:60] or "answer"
    data = await service.pictures.work(_write, body, stem, path, service.pictures.limits)
    headers = {"Content-Disposition": f'attachment; filename="{stem}.{_ENDS[body.to]}"'}
    return Response(data, media_type=_TYPES[body.to], headers=headers)


def _write(body: ExportRequest, stem: str, path: Path | None, limits: ImageLimits) -> bytes:
    try:
        _check_size(body.answers)
        answers = [answer_from_dict(answer) for answer in body.answers]
        if len({answer.image_size for answer in answers}) > 1:
            raise ApiError("export_failed", "The answers are about pictures of different sizes.", param="answers")
        if path is not None:
            rgb = open_image(path, limits, name="The picture").rgb
            answers = [dataclasses.replace(answer, image=rgb) for answer in answers]
            if rgb.shape[:2] != answers[0].image_size:
                raise ApiError("export_failed", "The answers are not about this picture: the sizes differ.", param="image_id")
        return _FORMATS[body.to](answers, stem)
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
            size = mask.get("size") if isinstance(mask, Mapping) else None
            if isinstance(image, Mapping) and size != [image.get("height"), image.get("width")]:
                raise ApiError("export_failed", "A mask has not the size of its picture, or is no RLE.", param="answers")
    if total > MAX_MASK_PIXELS:
        raise ApiError("export_failed", f"The masks have {total:,} pixels together; the limit is {MAX_MASK_PIXELS:,}.", param="answers")


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
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


_FORMATS = {"json": _json, "coco": _coco, "masks": _masks, "overlay": _overlay, "zip": _all}
