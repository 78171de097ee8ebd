"""What a browser opens: the page of `apps/web`, the rendered API and the error codes. Nothing comes from elsewhere, nothing is inline."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from lisaseg.apps.server import reference
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.pictures import etag_of

router = APIRouter(include_in_schema=False)
WEB = Path(__file__).parents[2] / "web"
_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")
_LINK = re.compile(rb'\b((?:src|href)=")(/web/)([A-Za-z0-9._/-]+)"')
TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".json": "application/json",
    ".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".ico": "image/x-icon", ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8", ".webmanifest": "application/manifest+json",
}  # fmt: skip


@router.get("/")
async def index(request: Request) -> Response:
    return page(request, "index.html")


def page(request: Request, name: str) -> Response:
    """A document of `apps/web`. What it links to carries the version of its content, so that it can be kept by the browser; the icons stand in it."""
    path = WEB / name
    if not path.is_file():
        return HTMLResponse(reference.document("lisaseg", "<p>The page is not part of this installation. The API: <a href='/docs'>/docs</a>.</p>"))
    data = _read(path, path.stat().st_mtime_ns).replace(b"<!-- icons.svg -->", (WEB / "icons.svg").read_bytes().strip())
    return _content(request, _LINK.sub(_versioned, data), TYPES[".html"])


@router.get("/web/{name:path}")
async def web(request: Request, name: str) -> Response:
    path = WEB / name
    if not _NAME.fullmatch(name) or path.suffix not in TYPES or not path.is_file() or not path.resolve().is_relative_to(WEB.resolve()):
        raise ApiError("not_found")
    data = _read(path, path.stat().st_mtime_ns)
    forever = request.query_params.get("v") == _version(data)
    return _content(request, data, TYPES[path.suffix], "public, max-age=31536000, immutable" if forever else "no-cache")


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def docs(request: Request) -> Response:
    return HTMLResponse(reference.api_page(request.app.openapi()))


@router.get("/docs/errors")
async def errors() -> Response:
    return HTMLResponse(reference.errors_page())


@router.get("/docs/style.css")
async def style(request: Request) -> Response:
    return _content(request, reference.STYLE.encode(), TYPES[".css"])


def _content(request: Request, data: bytes, kind: str, caching: str = "no-cache") -> Response:
    headers = {"ETag": etag_of(data), "Cache-Control": caching}
    if headers["ETag"] in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed: int) -> bytes:
    """The content of a file; `changed` is part of the key, so that an edited file is read again."""
    return path.read_bytes()


def _version(data: bytes) -> str:
    return etag_of(data)[1:13]


def _versioned(match: re.Match[bytes]) -> bytes:
    path = WEB / match[3].decode()
    if not path.is_file():
        return match[0]
    return match[1] + match[2] + match[3] + b"?v=" + _version(_read(path, path.stat().st_mtime_ns)).encode() + b'"'
