"""From a request to a checked model, and from a model to a response."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.schemas import Error

M = TypeVar("M", bound=BaseModel)


async def read(request: Request, model: type[M]) -> M:
    """The JSON body as `model`.

    Lone surrogates, which JSON can spell and UTF-8 cannot, are dropped. ApiError `invalid_json`, `invalid_request`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError("unsupported_media_type")
    return parse(await request.body(), model)


def parse(body: bytes, model: type[M]) -> M:
    """See `read`."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        value = _without_surrogates(value)
    except (ValueError, RecursionError) as error:
        raise ApiError("invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError("invalid_json", "The body is not a JSON object.")
    return check(value, model)


def check(value: Mapping[str, Any], model: type[M]) -> M:
    """A JSON object as `model`; ApiError `invalid_request` that names the field and not what it holds."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(re.sub(r"[^A-Za-z0-9_-]", "?", str(part))[:40] for part in first["loc"]) or "body"
        message = first["msg"] if first["type"] != "value_error" else first["msg"].removeprefix("Value error, ")
        raise ApiError("invalid_request", f"Field {place}: {message[0].lower()}{message[1:]}.", param=place) from error
    except RecursionError as error:
        raise ApiError("invalid_json") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "ignore").decode("utf-8")
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


def documented(request: type[BaseModel] | None = None, *, multipart: bool = False) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself."""
    content: dict[str, Any] = {}
    if request is not None:
        content["application/json"] = {"schema": {"$ref": f"#/components/schemas/{request.__name__}"}}
    if multipart:
        file = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
        content["multipart/form-data"] = {"schema": file}
    return {"requestBody": {"required": True, "content": content}} if content else {}


def failures(*codes: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: what it can fail with, besides what every route can."""
    known: tuple[int | str, ...] = (*codes, "default")
    return {code: {"model": Error, "description": "An error of the catalogue."} for code in known}


def data_line(value: Any) -> bytes:
    """One unnamed event of a stream."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer; with `stream` the events that lead to it.", "content": {"text/event-stream": {}}}
}  # `responses` of a route that streams on request
