"""The server about itself: health, readiness, limits, metrics, version."""

from __future__ import annotations

import time
from typing import get_args

from fastapi import APIRouter
from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lisaseg import __version__
from lisaseg.apps.server.integrations import IntegrationName
from lisaseg.apps.server.metrics import CONTENT_TYPE
from lisaseg.apps.server.schemas import ExportFormat
from lisaseg.apps.server.settings import Limits
from lisaseg.imaging import FORMATS
from lisaseg.types import MODES, MaskFormat, Mode

router = APIRouter(tags=["about"])


class LimitsInForce(Limits):
    """What a client may cost, and what the server offers."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    url_input: bool = Field(description="Whether pictures are fetched from https URLs.")
    key_required: bool
    workers: int = Field(ge=0, description="Engine processes.")
    modes: list[Mode] = Field(description="Those of the model; until it is loaded, those that every model has.")
    mask_formats: list[MaskFormat]
    image_formats: list[str]
    exports: list[ExportFormat]
    integrations: list[IntegrationName] = Field(description="Doors for tools that are open (`--integrations`); the others answer 404.")


@router.get("/healthz", summary="The process lives")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="Questions are answered (503 if not)")
async def readyz(request: Request) -> Response:
    service = request.app.state.service
    state = service.scheduler.state
    engines = [lane.worker.state for lane in service.scheduler.lanes]
    body = {"status": state, "model": service.settings.model_name, "queue_depth": service.scheduler.depth, "engines": engines}
    headers = {} if state == "ready" else {"Retry-After": "2"}
    return JSONResponse({**body, "uptime_seconds": round(time.time() - service.started, 1)}, 200 if state == "ready" else 503, headers)


@router.get("/version", summary="Name and version")
async def version(request: Request) -> dict[str, str | None]:
    service = request.app.state.service
    held = {name: service.scheduler.facts.get(name) for name in ("device", "precision")}  # null until the model is loaded
    return {"name": "lisaseg", "version": __version__, "model": service.settings.model_name, **held, "api": "v1"}


@router.get("/v1/limits", summary="Every limit in force, and what the server offers")
async def limits(request: Request) -> LimitsInForce:
    settings = request.app.state.service.settings
    said = {"url_input": bool(settings.url_hosts), "key_required": bool(settings.keys), "workers": settings.workers}
    modes = request.app.state.service.scheduler.facts.get("modes", MODES)
    offered = {"modes": modes, "mask_formats": get_args(MaskFormat), "image_formats": FORMATS, "exports": get_args(ExportFormat)}
    return LimitsInForce.model_validate({**settings.limits.model_dump(), **said, **offered, "integrations": settings.integrations})


@router.get("/metrics", summary="Counters for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    return Response(request.app.state.service.metrics.render(), media_type=CONTENT_TYPE)
