"""What the page calls. Not part of the public API: the file is."""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lisaseg.apps.annotate import pictures, samples
from lisaseg.apps.annotate.pictures import PictureFile, Project
from lisaseg.apps.annotate.sample_file import Changed, Line
from lisaseg.apps.annotate.samples import SampleDraft
from lisaseg.apps.server import bodies
from lisaseg.apps.server.catalogue import ApiError, from_lisaseg
from lisaseg.apps.server.routes.pages import page
from lisaseg.apps.server.schemas import MessageRequest
from lisaseg.apps.server.service import Service, respond
from lisaseg.apps.server.storage import StoredImage
from lisaseg.errors import DataError, ImageError, LisaSegError
from lisaseg.formats.pictures import relative
from lisaseg.formats.reading import picture_size

MAX_ID = 300
CACHED = {"Cache-Control": "private, max-age=60"}


class Desk:
    """The routes of one project, to be put before those of the service."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.router = APIRouter(include_in_schema=False)
        head = "/v1/annotate"
        for method, path, do in (
            ("GET", "/", self.index),
            ("GET", head, self.overview),
            ("GET", f"{head}/pictures/{{picture_id}}", self.picture),
            ("GET", f"{head}/pictures/{{picture_id}}/content", self.content),
            ("GET", f"{head}/pictures/{{picture_id}}/thumbnail", self.thumbnail),
            ("POST", f"{head}/pictures/{{picture_id}}/propose", self.propose),
            ("PUT", f"{head}/samples/{{sample_id:path}}", self.save),
            ("DELETE", f"{head}/samples/{{sample_id:path}}", self.delete),
        ):
            self.router.add_api_route(path, do, methods=[method], response_model=None)

    async def index(self, request: Request) -> Response:
        """The page."""
        return page(request, "annotate.html")

    async def overview(self, request: Request) -> Response:
        """Pictures with the number of their samples, faulty lines that belong to no picture, and the model."""
        service: Service = request.app.state.service
        model = service.settings.model_name if service.scheduler.lanes else None
        return JSONResponse({**await self._work(service, self._overview), "model": model})

    def _overview(self) -> dict[str, Any]:
        found, lines = self.project.pictures(), self.project.file.lines()
        counts: dict[Any, int] = {}
        for line in lines:
            path = self.project.file.picture_of(line)
            counts[path] = counts.get(path, 0) + 1
        known = {picture.path for picture in found}
        return {
            "project": hashlib.sha256(str(self.project.file.path).encode("utf-8", "surrogatepass")).hexdigest()[:16],
            "folder": self.project.folder.name,
            "name": relative(self.project.file.path, self.project.folder),
            "file": str(self.project.file.path),
            "pictures": [{"id": picture.id, "name": picture.name, "samples": counts.get(picture.path, 0)} for picture in found],
            "elsewhere": sum(count for path, count in counts.items() if path not in known),
        }

    async def picture(self, request: Request, picture_id: str) -> Response:
        """Size of a picture, and its samples."""
        return JSONResponse(await self._work(request.app.state.service, self._picture, picture_id))

    def _picture(self, picture_id: str) -> dict[str, Any]:
        picture = self._find(picture_id)
        try:
            height, width = picture_size(picture.path, picture.name)
        except DataError as error:
            raise ApiError("corrupt_image", error.message, next_step=error.next_step) from error
        found = [self._view(line) for line in self.project.file.of_picture(picture.path)]
        return {"id": picture.id, "name": picture.name, "width": width, "height": height, "samples": found}

    async def content(self, request: Request, picture_id: str) -> Response:
        """The pixels of a picture."""
        data, kind = await self._work(request.app.state.service, lambda: pictures.content(self._find(picture_id).path))
        return Response(data, media_type=kind, headers=CACHED)

    async def thumbnail(self, request: Request, picture_id: str) -> Response:
        """A small JPEG of a picture."""
        data = await self._work(request.app.state.service, lambda: pictures.thumbnail(self._find(picture_id).path))
        return Response(data, media_type="image/jpeg", headers=CACHED)

    async def propose(self, request: Request, picture_id: str) -> Response:
        """What the model answers, as `/v1/segment` does, about a picture that need not be uploaded."""
        service: Service = request.app.state.service
        body = await bodies.read(request, MessageRequest)
        if not service.scheduler.lanes:
            raise ApiError("model_not_found", "There is no model: the page was started with --no-model.", next_step="Start it again without.")
        image = await self._work(service, self._stored, picture_id)
        job = service.job(request.state.owner, image, body, body.prompt, body.mode, [])
        return await respond(service, request, service.begin(job, image), body)

    def _stored(self, picture_id: str) -> StoredImage:
        path = self._find(picture_id).path
        data = path.read_bytes()
        return StoredImage(picture_id, hashlib.sha256(data).hexdigest(), path, len(data), {}, 0.0, 0.0)

    async def save(self, request: Request, sample_id: str) -> Response:
        """Write a sample; 409 with the present one if somebody else changed it."""
        draft = await bodies.read(request, SampleDraft)
        if not 0 < len(sample_id) <= MAX_ID or not sample_id.isprintable():
            raise ApiError("invalid_request", "The id of a sample must be a printable text.", param="id")
        return await self._changing(request, self._save, sample_id, draft)

    def _save(self, sample_id: str, draft: SampleDraft) -> dict[str, Any]:
        picture, file = self._find(draft.picture), self.project.file
        build = samples.build
        line = file.save(sample_id, draft.revision, lambda old, where: build(draft, sample_id, picture.path, file.path.parent, old, where))
        return self._view(line)

    async def delete(self, request: Request, sample_id: str) -> Response:
        """Remove a sample of this revision."""
        return await self._changing(request, self.project.file.delete, sample_id, request.query_params.get("revision", ""))

    async def _changing(self, request: Request, do: Any, *args: Any) -> Response:
        try:
            done = await self._work(request.app.state.service, do, *args)
        except Changed as error:
            refusal = ApiError(error.code, error.message, next_step=error.next_step)
            request.scope["state"]["code"] = refusal.code
            now = self._view(error.line) if error.line else None
            return JSONResponse({**refusal.body(request.state.request_id), "now": now}, refusal.status)
        return Response(status_code=204) if done is None else JSONResponse(done)

    def _find(self, picture_id: str) -> PictureFile:
        found = self.project.picture(picture_id)
        if found is None:
            raise ApiError("not_found", "This picture is not in the folder any more.", next_step="Reload the page.")
        return found

    def _view(self, line: Line) -> dict[str, Any]:
        file = self.project.file
        return samples.view(line, file.path.parent, file.where(line.number))

    async def _work(self, service: Service, do: Any, *args: Any) -> Any:
        """Run in the pool for pictures; our own errors become answers."""
        try:
            return await service.pictures.work(do, *args)
        except (ApiError, Changed):
            raise
        except ImageError as error:
            raise from_lisaseg(error) from error
        except LisaSegError as error:
            code = {"cannot_write": "storage_full", "sample_refused": "sample_refused"}.get(error.code, "invalid_request")
            raise ApiError(code, error.message, next_step=error.next_step) from error
