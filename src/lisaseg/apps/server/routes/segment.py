"""One question without state."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lisaseg.apps.server import bodies
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.schemas import Answer, HistoryTurn, SegmentRequest
from lisaseg.apps.server.service import respond
from lisaseg.apps.server.storage import StoredTurn

router = APIRouter(prefix="/v1", tags=["segment"])


def stored(history: list[HistoryTurn]) -> list[StoredTurn]:
    """Turns that the client brought along."""
    return [StoredTurn(turn.prompt, turn.mode, turn.raw_text, None) for turn in history]


@router.post(
    "/segment",
    response_model=Answer,
    responses={**bodies.STREAMED, **bodies.failures(404, 410, 413, 415, 422, 429, 503, 504)},
    openapi_extra=bodies.documented(SegmentRequest),
    summary="Ask one question about one picture",
)
async def segment(request: Request) -> Response:
    service, owner = request.app.state.service, request.state.owner
    service.limit_rate(owner)
    body = await bodies.read(request, SegmentRequest)
    if body.image_id is not None:
        image = await service.storage.run(service.storage.get_image, owner, body.image_id)
    elif body.image is not None:
        image = await service.pictures.from_input(owner, body.image)
    else:
        raise ApiError("missing_image", param="image")
    job = service.job(owner, image, body, body.prompt, body.mode, stored(body.history))
    return await respond(service, request, service.begin(job, image), body)
