"""`/mcp`: the tools of `lisaseg.apps.mcp` over MCP's streamable HTTP, for assistants elsewhere.

Every POST stands for itself: no MCP sessions, no streams. What is to be kept, a picture and its conversation, is a session of this service: limits,
expiry and owners are those of `/v1/sessions`, and the gate, keys and rates hold here as everywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import CallToolResult, jsonrpc_message_adapter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.routing import Route

from lisaseg.apps.mcp.tools import FollowupArguments, Question, SegmentArguments, build_server, result
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.gate import Message, Receive, Scope, Send
from lisaseg.apps.server.routes.sessions import next_turn
from lisaseg.apps.server.schemas import Ask, ImageInput
from lisaseg.apps.server.service import Service
from lisaseg.apps.server.storage import StoredImage
from lisaseg.formats.answer import answer_from_dict
from lisaseg.imaging import open_image


class Tools:
    """The backend: pictures and sessions of the service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        web = ", or an https URL" if service.settings.url_hosts else ""
        self.image_help = (
            f"A picture as base64 or data: URI, the id (img_...) of one that was uploaded to /v1/images{web}. Paths are of no use: this tool runs "
            "on another machine. JPEG, PNG, WebP, BMP, TIFF, GIF."
        )

    async def segment(self, arguments: SegmentArguments, request: Request) -> CallToolResult:
        """See `Backend`."""
        storage, owner = self.service.storage, request.state.owner
        image = await self._picture(owner, arguments.image)
        session = await storage.run(storage.add_session, owner, image.id, [])
        return await self._ask(request, session.id, arguments)

    async def ask_followup(self, arguments: FollowupArguments, request: Request) -> CallToolResult:
        """See `Backend`."""
        return await self._ask(request, arguments.session_id, arguments)

    async def _picture(self, owner: str, image: str) -> StoredImage:
        if image.startswith("img_"):
            return await self.service.storage.run(self.service.storage.get_image, owner, image)
        kind = "url" if image[:8].lower().startswith(("http://", "https://")) else "base64"
        return await self.service.pictures.from_input(owner, ImageInput(type=kind, value=image))  # type: ignore[arg-type]

    async def _ask(self, request: Request, session_id: str, question: Question) -> CallToolResult:
        asking = await next_turn(self.service, request.state.owner, session_id, Ask(mode=question.mode), question.prompt, question.mode)
        answer = await asking.answer(request)
        shown: CallToolResult = await self.service.pictures.work(self._result, asking.image, answer, session_id, question.masks)
        return shown

    def _result(self, image: StoredImage, data: dict[str, Any], session_id: str, masks: str) -> CallToolResult:
        picture = open_image(image.path, self.service.pictures.limits, name="The picture")
        return result(dataclasses.replace(answer_from_dict(data), image=picture.rgb), data, session_id, masks)


class Door:
    """The route's application; the manager of the library lives as long as the whole application does."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one JSON-RPC message."""
        request = Request(scope, receive)  # type: ignore[arg-type]
        scope["route"] = ROUTE  # for the log line and the metrics
        request.app.state.service.limit_rate(request.state.owner)
        body = await request.body()
        _check(body)
        await request.app.state.mcp.handle_request(scope, _again(body, receive), send)


@contextlib.asynccontextmanager
async def _lifespan(app: Any) -> AsyncIterator[None]:
    service = app.state.service
    limit = service.limits.max_body_bytes
    app.state.mcp = StreamableHTTPSessionManager(build_server(Tools(service)), json_response=True, stateless=True, max_request_body_size=limit)
    async with app.state.mcp.run():
        yield


def _check(body: bytes) -> None:
    """Refuse in our words what the library would refuse with a dump of the input."""
    try:
        jsonrpc_message_adapter.validate_json(body, by_name=False)
    except ValidationError as error:
        if error.errors(include_input=False, include_url=False, include_context=False)[0]["type"] == "json_invalid":
            raise ApiError("invalid_json") from error
        raise ApiError("invalid_request", "The body is no JSON-RPC message.", next_step="Speak to it with an MCP client.") from error


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read once more, then whatever comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return first.pop() if first else await receive()

    return receive_again


ROUTE = Route("/mcp", Door(), methods=["POST"])
router = APIRouter(routes=[ROUTE], prefix="/mcp", lifespan=_lifespan)
REQUESTS = ()  # JSON-RPC is not described by OpenAPI
