"""Label Studio's machine learning backend. See `apps/integrations/label_studio.py`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from lisaseg.apps.integrations import label_studio as ls
from lisaseg.apps.server import bodies, integrations
from lisaseg.apps.server.catalogue import ApiError, from_lisaseg
from lisaseg.apps.server.logs import log
from lisaseg.apps.server.schemas import ImageInput
from lisaseg.apps.server.service import Service
from lisaseg.apps.server.storage import StoredImage
from lisaseg.errors import LisaSegError

router = APIRouter(prefix="/integrations/label-studio", tags=["label studio"])
PARALLEL = 4  # questions of one request that are under way; the engine makes batches of them
MAX_TASKS, MAX_CONFIG = 1000, 200_000


class LabelStudioTask(BaseModel):
    """A task; fields that are not named here have no effect, in all of these bodies."""

    id: int | str | None = None
    data: dict[str, Any]


class LabelStudioParams(BaseModel):
    """`context` holds what a person typed: `{"result": [...]}`."""

    context: dict[str, Any] | None = None


class LabelStudioPredict(BaseModel):
    """Body of `POST /integrations/label-studio/predict`."""

    tasks: list[LabelStudioTask] = Field(min_length=1, max_length=MAX_TASKS)
    label_config: str = Field(max_length=MAX_CONFIG)
    params: LabelStudioParams | None = None


class LabelStudioSetup(BaseModel):
    """Body of `POST /integrations/label-studio/setup`. `schema` is the labelling setup."""

    config: str = Field(default="", alias="schema", max_length=MAX_CONFIG)


REQUESTS = (LabelStudioPredict, LabelStudioSetup)


@router.get("/health", responses=bodies.failures(503), summary="Whether Label Studio may ask")
async def health(request: Request) -> dict[str, str]:
    if request.app.state.service.scheduler.state != "ready":
        raise ApiError("model_loading", retry_after=2)
    return {"status": "UP", "model_class": "lisaseg"}


@router.get("/versions", summary="The one model, as Label Studio lists versions")
async def versions(request: Request) -> dict[str, list[str]]:
    return {"versions": [request.app.state.service.settings.model_name]}


@router.post("/setup", responses=bodies.failures(415), openapi_extra=bodies.documented(LabelStudioSetup), summary="Look at a labelling setup")
async def setup(request: Request) -> dict[str, str]:
    service = request.app.state.service
    service.limit_rate(request.state.owner)
    body = await bodies.read(request, LabelStudioSetup)
    if body.config.strip():
        await _interface(service, body.config, "schema")
    return {"model_version": service.settings.model_name}


@router.post(
    "/predict",
    responses=bodies.failures(413, 415, 422, 429, 503, 504),
    openapi_extra=bodies.documented(LabelStudioPredict),
    summary="Masks for tasks",
)
async def predict(request: Request) -> dict[str, Any]:
    """As many results as tasks. Of several tasks those that cannot be asked about get no prediction and an entry in `errors`."""
    service = request.app.state.service
    service.limit_rate(request.state.owner)
    body = await bodies.read(request, LabelStudioPredict)
    interface = await _interface(service, body.label_config, "label_config")
    context = body.params.context if body.params else None
    places = asyncio.Semaphore(PARALLEL)
    refusals: dict[int, ApiError] = {}

    async def one(k: int, task: LabelStudioTask) -> dict[str, Any] | list[Any]:
        async with places:
            try:
                return await _predict(request, interface, task, context)
            except ApiError as error:
                if error.status >= 500 or error.status == 429:  # nothing about this task: the others would fare the same
                    raise
                refusals[k] = error
                return []

    try:
        async with asyncio.TaskGroup() as group:
            work = [group.create_task(one(k, task)) for k, task in enumerate(body.tasks)]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if len(refusals) == len(body.tasks):
        raise refusals[0]
    for error in refusals.values():
        log.info("task refused", extra={"request_id": request.state.request_id, "code": error.code})
    told = [{"task": body.tasks[k].id, "code": error.code, "message": error.message} for k, error in sorted(refusals.items())]
    return {"results": [done.result() for done in work], "model_version": service.settings.model_name, "errors": told}


async def _interface(service: Service, config: str, param: str) -> ls.Interface:
    try:
        return await service.pictures.work(ls.interface_of, config)  # type: ignore[no-any-return]
    except LisaSegError as error:
        raise from_lisaseg(error, param) from error


async def _predict(request: Request, interface: ls.Interface, task: LabelStudioTask, context: dict[str, Any] | None) -> dict[str, Any] | list[Any]:
    """A prediction. Where nothing is asked: none, so that nothing is stored; while a person annotates an empty one, which Label Studio needs then."""
    service, owner = request.app.state.service, request.state.owner
    prompt = ls.prompt_of(interface, task.data, context)
    if not prompt:
        return [] if context is None else {"result": [], "model_version": service.settings.model_name}
    stored = await _picture(service, owner, interface, task)
    answer = await integrations.ask(service, request, owner, stored, prompt, interface.mode)
    return await service.pictures.work(ls.prediction, interface, answer)  # type: ignore[no-any-return]


async def _picture(service: Service, owner: str, interface: ls.Interface, task: LabelStudioTask) -> StoredImage:
    files, pictures = service.label_studio, service.pictures
    owns = files.owns if files else lambda address: False
    try:
        address = ls.address_of(interface, task.data, owns)
    except LisaSegError as error:
        raise from_lisaseg(error, "tasks") from error
    if files and owns(address):
        return await pictures.add(owner, await pictures.work(files.fetch, address, service.limits.max_body_bytes))
    return await pictures.from_input(owner, ImageInput(type="base64" if address[:5].lower() == "data:" else "url", value=address))
