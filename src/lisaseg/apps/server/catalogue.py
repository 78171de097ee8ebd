"""Every error code of the service, its status and what it means; and the one place that turns a failure into the body that clients see.

Nothing of an exception but the words of our own errors ever reaches a client: foreign exceptions may hold paths, addresses and user content.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lisaseg.errors import LisaSegError


@dataclass(frozen=True)
class Kind:
    """status: of HTTP. meaning: for the documentation. next_step: what to do, said in every message of this code unless the error knows better."""

    status: int
    meaning: str
    next_step: str


_IMAGE = "Save the picture as PNG or JPEG and try again."
CATALOGUE: dict[str, Kind] = {
    "invalid_json": Kind(400, "The body is not JSON.", "Send one JSON object as UTF-8."),
    "invalid_request": Kind(400, "A field is missing, unknown or of a wrong type.", "Compare the request with /docs."),
    "invalid_base64": Kind(400, "The picture is not base64.", "Encode the bytes of the file as base64, or send it as multipart."),
    "missing_image": Kind(400, "The request holds no picture.", "Send `image` or `image_id`, or the multipart field `file`."),
    "invalid_multipart": Kind(400, "The multipart body is broken or holds too many parts.", "Send one file in the field `file`."),
    "unauthorized": Kind(401, "No key, or a wrong one.", "Send `Authorization: Bearer KEY`."),
    "host_not_allowed": Kind(403, "`Host` is not a name of this server.", "Start the server with --allow-host NAME."),
    "origin_not_allowed": Kind(403, "Another web page tried to use this server.", "Open the page of the server itself, or call it from a program."),
    "not_found": Kind(404, "No such path, picture or session for this key.", "Check the id and the key."),
    "model_not_found": Kind(404, "The server runs another model.", "Ask /v1/models which."),
    "method_not_allowed": Kind(405, "The path exists, the method does not.", "Compare the request with /docs."),
    "request_timeout": Kind(408, "The body did not arrive in time.", "Send it again."),
    "session_busy": Kind(409, "The last message of the session is not answered yet.", "Wait for its answer, or close its connection."),
    "nothing_to_undo": Kind(409, "The session has no turn.", "Send a message first."),
    "sample_changed": Kind(409, "The sample was changed by somebody else meanwhile.", "Look at both and decide which one to keep."),
    "session_expired": Kind(410, "The session was deleted, unused for too long, or made room for others.", "Start a new one with `history`."),
    "image_expired": Kind(410, "The picture was deleted, unused for too long, or made room for others.", "Upload it again."),
    "body_too_large": Kind(413, "The body is larger than the server takes.", "Send a smaller picture; /v1/limits tells the limit."),
    "unsupported_media_type": Kind(
        415, "The content type or encoding of the body is not taken.", "Send plain application/json or multipart/form-data."
    ),
    "unsupported_format": Kind(422, "The file is not a picture of a known kind.", _IMAGE),
    "corrupt_image": Kind(422, "The picture is damaged.", _IMAGE),
    "truncated_image": Kind(422, "The end of the picture is missing.", "Copy or download it again."),
    "image_too_large": Kind(422, "The picture has too many pixels.", "Make it smaller and try again."),
    "extreme_aspect_ratio": Kind(422, "One side of the picture is far longer than the other.", "Crop it to the part that matters."),
    "prompt_empty": Kind(422, "The prompt holds nothing to read.", "Ask something about the picture."),
    "prompt_too_long": Kind(422, "Prompt or conversation is longer than the model can read.", "Shorten it or start a new session."),
    "too_many_turns": Kind(422, "The conversation has reached its length.", "Start a new session."),
    "sample_refused": Kind(422, "What was drawn or written is no sample yet.", "Correct what the message names."),
    "url_input_disabled": Kind(422, "This server fetches no URLs.", "Send the picture itself."),
    "url_not_allowed": Kind(422, "The URL leads to a place that this server does not fetch from.", "Send the picture itself."),
    "url_fetch_failed": Kind(422, "The URL gave no picture in time.", "Send the picture itself."),
    "export_failed": Kind(422, "The answers cannot be written in this format.", "Send answers as the server gave them, with RLE masks."),
    "rate_limited": Kind(429, "This key sends too much.", "Wait as long as `Retry-After` says."),
    "overloaded": Kind(503, "The queue is full.", "Wait as long as `Retry-After` says."),
    "model_loading": Kind(503, "The model is not ready yet.", "Wait as long as `Retry-After` says."),
    "draining": Kind(503, "The server is shutting down.", "Send it again: to the next replica, or when the server is back."),
    "engine_restarted": Kind(503, "The engine died while it worked on this request.", "Send it again."),
    "out_of_memory": Kind(503, "The engine had not enough memory for this request.", "Send a smaller picture, or ask again later."),
    "storage_full": Kind(503, "The server cannot store more.", "Try again later; if it is your server, free some disk space."),
    "deadline_exceeded": Kind(504, "There was no answer in time.", "Ask again later, or for fewer tokens."),
    "internal": Kind(500, "A fault of the server.", "Report it with the request id."),
}
_RENAMED = {"image_not_found": "corrupt_image", "usage": "invalid_request", "bad_data": "export_failed"}
RETRY_AFTER = 1.0  # seconds, where nothing better is known
HELP = "/docs/errors#"


class ApiError(Exception):
    """A failure with a code of the catalogue.

    Args:
        code: key of `CATALOGUE`.
        message: what was wrong; the catalogue's meaning if left out.
        param: field of the request that is to blame.
        retry_after: seconds; for 429 and 503.
    """

    def __init__(self, code: str, message: str = "", *, param: str | None = None, next_step: str = "", retry_after: float | None = None) -> None:
        self.code = code if code in CATALOGUE else "internal"
        self.kind = CATALOGUE[self.code]
        self.param = param
        self.message = f"{(message or self.kind.meaning).rstrip()} {next_step or self.kind.next_step}"
        self.retry_after = retry_after
        super().__init__(self.code)

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.kind.status

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        if self.status in (429, 503):
            return {"Retry-After": str(max(1, math.ceil(self.retry_after or RETRY_AFTER)))}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON body."""
        error = {"message": self.message, "type": _type_of(self.status), "code": self.code, "param": self.param}
        return {"error": {**error, "request_id": request_id, "help_url": f"{HELP}{self.code}"}}


def _type_of(status: int) -> str:
    special = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return special.get(status, "invalid_request_error" if status < 500 else "server_error")


def from_lisaseg(error: LisaSegError, param: str | None = None) -> ApiError:
    """One of our own errors, whose words are made for people, as an `ApiError`."""
    code = _RENAMED.get(error.code, error.code)
    if code not in CATALOGUE:
        return ApiError("internal")
    return ApiError(code, error.message, next_step=error.next_step, param=param)
