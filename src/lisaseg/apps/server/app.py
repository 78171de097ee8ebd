"""The application: routes, errors and the OpenAPI document put together, behind the gate."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Match

from lisaseg import __version__
from lisaseg.apps.server import schemas
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.gate import Gate
from lisaseg.apps.server.integrations import INTEGRATIONS
from lisaseg.apps.server.routes import about, export, images, openai, pages, segment, sessions
from lisaseg.apps.server.service import Service
from lisaseg.apps.server.settings import Settings

REQUESTS = (schemas.ImageUpload, schemas.SegmentRequest, schemas.SessionRequest, schemas.MessageRequest, schemas.RetryRequest,
            schemas.ExportRequest, schemas.ChatRequest)  # fmt: skip
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


def create_app(settings: Settings, on_failure: Callable[[str, int], None] = lambda message, code: None, more: Sequence[APIRouter] = ()) -> Gate:
    """The whole service as an ASGI application; engines start with its lifespan.

    Args:
        settings, on_failure: see `Service`.
        more: further routes, which go before those of the service: another door than the page and the API.

    Raises:
        UsageError: the state folder cannot be used.
    """
    service = Service(settings, on_failure)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="lisaseg", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan, redirect_slashes=False,
        summary="Ask a question about a picture, get the answer in words and in pixels.",
    )  # fmt: skip
    app.state.service = service
    enabled = [INTEGRATIONS[name].load() for name in settings.integrations]
    for router in (*more, *(group.router for group in (about, images, segment, sessions, openai, export, pages, *enabled))):
        app.include_router(router)
    requests = (*REQUESTS, *(model for group in enabled for model in group.REQUESTS))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.openapi = lambda: _openapi(app, requests)  # type: ignore[method-assign]
    return Gate(app, settings, service.metrics)


def service_of(gate: Gate) -> Service:
    """The parts inside."""
    return gate.app.state.service  # type: ignore[attr-defined,no-any-return]


def _response(request: Request, error: ApiError) -> JSONResponse:
    request.scope["state"]["code"] = error.code
    return JSONResponse(error.body(request.state.request_id), error.status, error.headers)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _response(request, error)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """What the router refuses."""
    status = getattr(error, "status_code", 500)
    response = _response(
        request, ApiError({404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request" if status < 500 else "internal"))
    )
    if status == 405:  # the router names the methods of one route; a path may have several
        known = [m for m in METHODS if any(r.matches({**request.scope, "method": m})[0] == Match.FULL for r in request.app.router.routes)]
        response.headers["Allow"] = ", ".join(known)
    return response


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    return _response(request, ApiError("invalid_request"))


def _openapi(app: FastAPI, requests: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """OpenAPI 3.1; the request bodies are read by `bodies.read`, so their schemas are added here."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        _, definitions = models_json_schema([(model, "validation") for model in requests], ref_template="#/components/schemas/{model}")
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(definitions["$defs"])
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}, {}]
        app.openapi_schema = document
    return app.openapi_schema
