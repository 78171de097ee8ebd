"""Pictures: upload once, ask often."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from lisaseg.apps.server import bodies
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.schemas import Image, ImageUpload
from lisaseg.apps.server.service import Service
from lisaseg.apps.server.storage import StoredImage

router = APIRouter(prefix="/v1/images", tags=["images"])


def describe(service: Service, image: StoredImage) -> dict[str, Any]:
    """A stored picture as clients see it."""
    times = {"created": int(image.created), "expires_at": int(image.used + service.limits.image_idle_seconds)}
    return {"id": image.id, "object": "image", **image.facts, "bytes": image.bytes, "sha256": image.sha256, **times}


@router.post(
    "",
    status_code=201,
    response_model=Image,
    responses=bodies.failures(413, 415, 422),
    openapi_extra=bodies.documented(ImageUpload, multipart=True),
    summary="Upload a picture",
)
async def upload(request: Request) -> Any:
    service, owner = request.app.state.service, request.state.owner
    service.limit_rate(owner)
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        image = await service.pictures.from_multipart(owner, request)
    else:
        image = await service.pictures.from_input(owner, (await bodies.read(request, ImageUpload)).image)
    return describe(service, image)


@router.get("/{image_id}", response_model=Image, responses=bodies.failures(404, 410), summary="What is known about a picture")
async def get(request: Request, image_id: str) -> Any:
    service = request.app.state.service
    return describe(service, await service.storage.run(service.storage.get_image, request.state.owner, image_id))


@router.get("/{image_id}/content", response_class=Response, responses=bodies.failures(404, 410), summary="The bytes of a picture")
async def content(request: Request, image_id: str) -> Response:
    service = request.app.state.service
    image = await service.storage.run(service.storage.get_image, request.state.owner, image_id)
    if not image.path.is_file():
        raise ApiError("image_expired")
    kind = image.facts["format"]
    return FileResponse(image.path, media_type=f"image/{kind}", filename=f"picture.{kind}", content_disposition_type="attachment")


@router.delete("/{image_id}", status_code=204, responses=bodies.failures(404, 410), summary="Delete a picture and its sessions")
async def delete(request: Request, image_id: str) -> Response:
    service = request.app.state.service
    await service.storage.run(service.storage.delete_image, request.state.owner, image_id)
    return Response(status_code=204)
