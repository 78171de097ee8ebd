"""X-AnyLabeling's remote server. See `apps/integrations/x_anylabeling.py`."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from lisaseg.apps.integrations import x_anylabeling as xal
from lisaseg.apps.server import bodies, integrations
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.schemas import ImageInput

router = APIRouter(prefix="/integrations/x-anylabeling/v1", tags=["x-anylabeling"])


class AnyLabelingParams(BaseModel):
    """What a person typed and chose; `current_task` is the mode. Fields that are not named here (marks, iou_threshold, ...) have no effect."""

    text_prompt: str = ""
    current_task: Literal["segment", "explain", "text"] = "segment"
    conf_threshold: float = Field(default=0.0, ge=0, le=1)
    epsilon_factor: float = Field(default=0.001, ge=0, le=1)


class AnyLabelingPredict(BaseModel):
    """Body of `POST /integrations/x-anylabeling/v1/predict`."""

    model: str
    image: str = Field(description="data:image/...;base64,...")
    params: AnyLabelingParams = AnyLabelingParams()


REQUESTS = (AnyLabelingPredict,)


@router.get("/models", summary="The one model, and the controls that it needs")
async def models(request: Request) -> dict[str, Any]:
    name = request.app.state.service.settings.model_name
    return {"success": True, "data": {name: xal.model_of(name)}}


@router.post(
    "/predict",
    responses=bodies.failures(404, 413, 415, 422, 429, 503, 504),
    openapi_extra=bodies.documented(AnyLabelingPredict),
    summary="Shapes for a picture",
)
async def predict(request: Request) -> dict[str, Any]:
    service, owner = request.app.state.service, request.state.owner
    service.limit_rate(owner)
    body = await bodies.read(request, AnyLabelingPredict)
    if body.model != service.settings.model_name:
        raise ApiError("model_not_found", f"The model of this server is {service.settings.model_name}.", param="model")
    if not body.params.text_prompt.strip():
        raise ApiError("prompt_empty", "lisaseg needs words; boxes and points say nothing to it.", param="params.text_prompt")
    stored = await service.pictures.from_input(owner, ImageInput(type="base64", value=body.image))
    answer = await integrations.ask(service, request, owner, stored, body.params.text_prompt, body.params.current_task)
    data = await service.pictures.work(xal.prediction, answer, body.params.epsilon_factor, body.params.conf_threshold)
    return {"success": True, "data": data}
