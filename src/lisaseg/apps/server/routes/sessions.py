"""Conversations that the server keeps."""

from __future__ import annotations

import functools
import re
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lisaseg.apps.server import bodies
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.routes.segment import stored
from lisaseg.apps.server.schemas import Answer, Ask, MessageRequest, RetryRequest, Session, SessionRequest, Undone
from lisaseg.apps.server.service import Asking, Hold, Service, repeat, respond
from lisaseg.apps.server.storage import StoredSession, StoredTurn

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])
ASKED = {**bodies.STREAMED, **bodies.failures(404, 409, 410, 415, 422, 429, 503, 504)}


def describe(service: Service, session: StoredSession) -> dict[str, Any]:
    """A session as clients see it."""
    limits, facts = service.limits, session.image.facts
    expires = min(session.used + limits.session_idle_seconds, session.created + limits.session_max_seconds)
    head = {"id": session.id, "object": "session", "created": int(session.created), "expires_at": int(expires), "model": service.settings.model_name}
    image = {"id": session.image.id, "width": facts["width"], "height": facts["height"]}
    return {**head, "image": image, "turns": [vars(turn) for turn in session.turns]}


@router.post(
    "",
    status_code=201,
    response_model=Session,
    responses=bodies.failures(404, 410, 415),
    openapi_extra=bodies.documented(SessionRequest),
    summary="Start a conversation, or restore one",
)
async def create(request: Request) -> Response:
    service, owner = request.app.state.service, request.state.owner
    service.limit_rate(owner)
    body = await bodies.read(request, SessionRequest)
    session = await service.storage.run(service.storage.add_session, owner, body.image_id, stored(body.history))
    return JSONResponse(describe(service, session), 201)


@router.get("/{session_id}", response_model=Session, responses=bodies.failures(404, 410), summary="The whole conversation")
async def get(request: Request, session_id: str) -> Response:
    service = request.app.state.service
    return JSONResponse(describe(service, await service.storage.run(service.storage.get_session, request.state.owner, session_id)))


@router.delete("/{session_id}", status_code=204, responses=bodies.failures(404, 410), summary="Forget a conversation")
async def delete(request: Request, session_id: str) -> Response:
    service = request.app.state.service
    await service.storage.run(service.storage.delete_session, request.state.owner, session_id)
    return Response(status_code=204)


@router.post(
    "/{session_id}/messages",
    response_model=Answer,
    responses=ASKED,
    openapi_extra=bodies.documented(MessageRequest),
    summary="Ask the next question",
)
async def message(request: Request, session_id: str) -> Response:
    body = await bodies.read(request, MessageRequest)
    return await _ask(request, session_id, body, body.prompt, body.mode)


@router.post(
    "/{session_id}/retry",
    response_model=Answer,
    responses=ASKED,
    openapi_extra=bodies.documented(RetryRequest),
    summary="Ask the last question again",
)
async def retry(request: Request, session_id: str) -> Response:
    body = await bodies.read(request, RetryRequest)
    return await _ask(request, session_id, body, None, body.mode)


@router.post("/{session_id}/undo", response_model=Undone, responses=bodies.failures(404, 409, 410), summary="Take back the last turn")
async def undo(request: Request, session_id: str) -> Response:
    service, owner = request.app.state.service, request.state.owner
    service.limit_rate(owner)
    name = idempotency_name(request)
    if name and (known := await service.storage.run(service.storage.reply, owner, session_id, name)) is not None:
        return JSONResponse(known)
    with Hold(service, owner, session_id):
        removed, left = await service.storage.run(service.storage.undo, owner, session_id, name)
    return JSONResponse({"removed": vars(removed), "turns_left": left})


async def _ask(request: Request, session_id: str, body: Ask, prompt: str | None, mode: str | None) -> Response:
    """A new turn, or, without a prompt, the last one again."""
    service, owner = request.app.state.service, request.state.owner
    service.limit_rate(owner)
    name = idempotency_name(request)
    if name and (known := await service.storage.run(service.storage.reply, owner, session_id, name)) is not None:
        return await repeat(service, known, body)
    asking = await next_turn(service, owner, session_id, body, prompt, mode, name)
    return await respond(service, request, asking, body)


async def next_turn(service: Service, owner: str, session_id: str, ask: Ask, prompt: str | None, mode: str | None, name: str = "") -> Asking:
    """Begin a new turn, or, without a prompt, the last one again; the turn is stored when its answer is complete, under `name` if there is one."""
    with Hold(service, owner, session_id) as hold:
        session = await service.storage.run(service.storage.get_session, owner, session_id)
        history, again = list(session.turns), prompt is None
        if again:
            if not history:
                raise ApiError("nothing_to_undo", "The session has no turn to ask again.")
            last = history.pop()
            prompt, mode = last.prompt, mode or last.mode
        job = service.job(owner, session.image, ask, prompt or "", mode or "auto", history)
        keep = functools.partial(_keep, service, owner, session_id, again, name, prompt or "", job.mode)
        return service.begin(job, session.image, keep, hold)


async def _keep(service: Service, owner: str, session_id: str, again: bool, name: str, prompt: str, mode: str, answer: dict[str, Any]) -> None:
    turn = StoredTurn(prompt, mode, answer["raw_text"], answer)
    await service.storage.run(service.storage.add_turn, owner, session_id, turn, again, name)


def idempotency_name(request: Request) -> str:
    """Path and key of a request that may be repeated, or ""; ApiError if the key is malformed."""
    key = request.headers.get("idempotency-key", "")
    if not key:
        return ""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key):
        raise ApiError("invalid_request", "Idempotency-Key must be 1-64 of A-Za-z0-9_-.", param="Idempotency-Key")
    return f"{request.url.path.rsplit('/', 1)[-1]} {key}"
