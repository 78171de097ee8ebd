"""The OpenAI shape of the same questions, so that every client of chat models can ask.

The conversation is in the request; masks come beside the text.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lisaseg.apps.server import bodies
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.schemas import Ask, ChatMessage, ChatRequest, ImageInput
from lisaseg.apps.server.service import Asking, Service, event_stream, readable, with_masks
from lisaseg.apps.server.storage import StoredImage, StoredTurn
from lisaseg.types import SEG_TEXT

router = APIRouter(prefix="/v1", tags=["openai"])
_MASK = re.compile(r"\[mask \d+\]")
FINISH = {"truncated": "length"}


def model_card(service: Service) -> dict[str, Any]:
    """The one model as OpenAI lists it."""
    return {"id": service.settings.model_name, "object": "model", "created": int(service.started), "owned_by": "lisaseg"}


@router.get("/models", summary="The model that runs here")
async def models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [model_card(request.app.state.service)]}


@router.get("/models/{model_id:path}", responses=bodies.failures(404), summary="One model")
async def model(request: Request, model_id: str) -> dict[str, Any]:
    card = model_card(request.app.state.service)
    if model_id != card["id"]:
        raise ApiError("model_not_found", param="model")
    return card


@router.post(
    "/chat/completions",
    responses={**bodies.STREAMED, **bodies.failures(404, 410, 415, 422, 429, 503, 504)},
    openapi_extra=bodies.documented(ChatRequest),
    summary="Ask in the OpenAI shape",
)
async def chat_completions(request: Request) -> Response:
    service, owner = request.app.state.service, request.state.owner
    service.limit_rate(owner)
    body = await bodies.read(request, ChatRequest)
    if body.model != service.settings.model_name:
        raise ApiError("model_not_found", f"The model of this server is {service.settings.model_name}.", param="model")
    prompt, history = conversation(body.messages)
    image = await _picture(service, owner, body.messages)
    tokens = body.max_completion_tokens or body.max_tokens
    live = body.stream and (body.lisaseg.mode == "text" or (body.lisaseg.mode == "auto" and not service.scheduler.revises))
    ask = Ask(mode=body.lisaseg.mode, max_new_tokens=tokens, stream=live)
    asking = service.begin(service.job(owner, image, ask, prompt, ask.mode, history), image)
    if body.stream:
        return event_stream(_chunks(service, request, asking, body))
    answer = await with_masks(service, await asking.answer(request), body.lisaseg.mask_format)
    message = {"role": "assistant", "content": answer["text"], "refusal": None, **_extras(answer, body)}
    choice = {"index": 0, "message": message, "finish_reason": FINISH.get(answer["status"], "stop"), "logprobs": None}
    return JSONResponse({**_head(service, asking, "chat.completion"), "choices": [choice], "usage": _usage(answer)})


def conversation(messages: list[ChatMessage]) -> tuple[str, list[StoredTurn]]:
    """The last user message and the turns before it. ApiError if user and assistant do not alternate."""
    spoken = [message for message in messages if message.role in ("user", "assistant")]
    expected = ["user", "assistant"] * len(spoken)
    if len(spoken) % 2 == 0 or [message.role for message in spoken] != expected[: len(spoken)]:
        raise ApiError("invalid_request", "Messages must alternate: user, assistant, ..., user.", param="messages")
    texts = [_text(message) for message in spoken]
    turns = [StoredTurn(q, "auto", _MASK.sub(SEG_TEXT, a), None) for q, a in zip(texts[:-1:2], texts[1::2], strict=True)]
    if any(len(turn.raw_text) > 8000 or turn.raw_text.count(SEG_TEXT) > 64 for turn in turns):
        raise ApiError("prompt_too_long", "An assistant message is too long.", param="messages")
    return texts[-1], turns


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if part.type == "text" and part.text)


async def _picture(service: Service, owner: str, messages: list[ChatMessage]) -> StoredImage:
    """The one picture of the conversation."""
    parts = [part for message in messages if not isinstance(message.content, str) for part in message.content if part.type == "image_url"]
    sources = {(part.image_url.url if part.image_url else None, part.uuid) for part in parts}
    if len(sources) > 1:
        raise ApiError("invalid_request", "A conversation is about one picture.", param="messages")
    url, uuid = next(iter(sources), (None, None))
    if url:
        return await service.pictures.from_input(owner, ImageInput(type="base64" if url[:5].lower() == "data:" else "url", value=url))
    if uuid:
        return await service.storage.run(service.storage.get_image, owner, uuid)
    raise ApiError("missing_image", "No message holds an image_url.", param="messages")


async def _chunks(service: Service, request: Request, asking: Asking, body: ChatRequest) -> AsyncIterator[bytes]:
    """Text cannot be taken back in this shape: where the model may still change it, it comes whole when the answer is complete."""
    head, sent = _head(service, asking, "chat.completion.chunk"), ""
    yield _chunk(head, {"role": "assistant", "content": ""})
    async for event, value in asking.stream(request):
        if event == "ping":
            yield b": ping\n\n"
        elif event == "error":
            yield bodies.data_line(value.body(request.state.request_id))
            return
        else:
            text = value["text"] if event == "answer" else readable(value)
            if text.startswith(sent) and len(text) > len(sent):
                yield _chunk(head, {"content": text[len(sent) :]})
                sent = text
        if event == "answer":
            answer = await with_masks(service, value, body.lisaseg.mask_format)
            yield _chunk(head, _extras(answer, body), FINISH.get(answer["status"], "stop"))
            if (body.stream_options or {}).get("include_usage"):
                yield bodies.data_line({**head, "choices": [], "usage": _usage(answer)})
    yield b"data: [DONE]\n\n"


def _head(service: Service, asking: Asking, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{asking.job.id[4:]}", "object": kind, "created": int(time.time()), "model": service.settings.model_name}


def _chunk(head: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> bytes:
    return bodies.data_line({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]})


def _extras(answer: dict[str, Any], body: ChatRequest) -> dict[str, Any]:
    """What stands beside the text. A system message has no effect, and that is said."""
    warnings = list(answer["warnings"])
    if any(message.role in ("system", "developer") for message in body.messages):
        warnings.append({"code": "system_ignored", "message": "The model has no system prompt; that message had no effect."})
    return {"segments": answer["segments"], "status": answer["status"], "image": answer["image"], "warnings": warnings}


def _usage(answer: dict[str, Any]) -> dict[str, Any]:
    usage = answer["usage"]
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    details = {"image_tokens": usage["image_tokens"]}
    return {**{k: usage[k] for k in ("prompt_tokens", "completion_tokens")}, "total_tokens": total, "prompt_tokens_details": details}
