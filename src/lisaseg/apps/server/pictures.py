"""Uploads: bytes out of a request, judged and decoded once in a small pool of threads, then put into the store."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from lisaseg.apps.server import fetching
from lisaseg.apps.server.catalogue import ApiError, from_lisaseg
from lisaseg.apps.server.schemas import ImageInput
from lisaseg.apps.server.settings import Settings
from lisaseg.apps.server.storage import Storage, StoredImage
from lisaseg.errors import ImageError
from lisaseg.imaging import ImageLimits, open_image

DECODERS = 2  # threads; each may hold a whole picture
_DATA_URL = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*;base64,", re.IGNORECASE)
_FORMATS = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"GI": "gif", b"II": "tiff", b"MM": "tiff", b"RI": "webp", b"BM": "bmp"}


class Pictures:
    """Takes pictures in."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        limits = settings.limits
        self.settings, self.storage = settings, storage
        self.limits = ImageLimits(limits.max_image_pixels, limits.max_image_side, limits.max_image_aspect, limits.max_body_bytes)
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="pictures")

    def close(self) -> None:
        """Finish."""
        self._pool.shutdown()

    async def work(self, do: Any, *args: Any) -> Any:
        """Run something that computes on pixels in the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: do(*args))

    async def from_input(self, owner: str, image: ImageInput) -> StoredImage:
        """Store the picture of a JSON body."""
        if image.type == "base64":
            data = await self.work(decode_base64, image.value)
        elif not self.settings.url_hosts:
            raise ApiError("url_input_disabled", param="image")
        else:
            data = await self.work(fetching.fetch, image.value, self.settings.url_hosts, self.settings.limits.max_body_bytes)
        return await self.add(owner, data)

    async def from_multipart(self, owner: str, request: Request) -> StoredImage:
        """Store the picture of a multipart body. The client's file name is not looked at."""
        try:
            async with request.form(max_files=1, max_fields=4) as form:
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise ApiError("missing_image", "The multipart body has no file in the field `file`.", param="file")
                data = await file.read()
        except (HTTPException, UnicodeError, KeyError, ValueError) as error:
            raise ApiError("invalid_multipart") from error
        return await self.add(owner, data)

    async def add(self, owner: str, data: bytes) -> StoredImage:
        """Judge, decode once and store; ApiError for what is no picture."""
        if not data:
            raise ApiError("missing_image", "The picture is empty (0 bytes).", param="image")
        facts = await self.work(self._facts, data)
        return await self.storage.run(self.storage.add_image, owner, data, facts)

    def _facts(self, data: bytes) -> dict[str, Any]:
        try:
            picture = open_image(data, self.limits, name="The picture")
        except ImageError as error:
            raise from_lisaseg(error, "image") from error
        height, width = picture.size
        warnings = [{"code": code, "message": message} for code, message in picture.warnings]
        return {"width": width, "height": height, "format": _FORMATS[data[:2]], "normalized": list(picture.normalized), "warnings": warnings}


def decode_base64(text: str) -> bytes:
    """Base64 with or without a `data:` head; white space is allowed. ApiError `invalid_base64`."""
    match = _DATA_URL.match(text)
    if match is None and text[:5].lower() == "data:":
        raise ApiError("invalid_base64", "The data URL is not of the form data:image/...;base64,...", param="image")
    body = text[match.end() if match else 0 :].translate({ord(c): None for c in " \t\r\n"})
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError("invalid_base64", param="image") from error


def etag_of(data: bytes) -> str:
    """A strong ETag of some content."""
    return f'"{hashlib.sha256(data).hexdigest()[:20]}"'
