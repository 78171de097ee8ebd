"""`lisaseg mcp`: the tools on standard input and output, beside a desktop assistant.

The model is loaded when the first question comes, so that an assistant which starts its tools and asks nothing pays nothing. One question at a time.
Standard output belongs to the protocol; whatever else is printed goes to standard error.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

import anyio
import anyio.to_thread
from mcp.server.stdio import stdio_server
from mcp.types import CallToolResult

from lisaseg.apps.mcp.tools import FollowupArguments, Question, SegmentArguments, build_server, result
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.fetching import fetch
from lisaseg.apps.server.pictures import decode_base64
from lisaseg.errors import ImageError
from lisaseg.imaging import LIMITS
from lisaseg.types import Answer, Mode

MAX_CHATS = 16  # each keeps its picture; the one that was not used for longest makes room


class Conversing(Protocol):
    """`Chat` or `RemoteChat`."""

    def ask(self, text: str, *, mode: Mode = "auto") -> Answer:
        """The next question."""
        ...


class Model(Protocol):
    """`Predictor` or `Client`."""

    def chat(self, image: Any) -> Conversing:
        """A conversation about a picture."""
        ...


class Desk:
    """The backend of one assistant on this machine.

    Args:
        load: gives the model; called once, with the first question.
        roots: pictures are read from these folders only; none = wherever this user can read.
        url_hosts: hosts that pictures are fetched from; "*" = any public one; none = URLs are refused.
    """

    def __init__(self, load: Callable[[], Model], roots: Sequence[Path] = (), url_hosts: Sequence[str] = ()) -> None:
        self.load, self.roots, self.url_hosts = load, [root.resolve() for root in roots], tuple(url_hosts)
        below = f" below {' or '.join(str(root) for root in self.roots)}" if self.roots else ""
        web = ", or an https URL" if url_hosts else ""
        self.image_help = f"Path of a picture on the user's machine{below}, a data: URI of one{web}. JPEG, PNG, WebP, BMP, TIFF, GIF."
        self._model: Model | None = None
        self._chats: OrderedDict[str, Conversing] = OrderedDict()
        self._one = anyio.CapacityLimiter(1)

    async def segment(self, arguments: SegmentArguments, request: Any) -> CallToolResult:
        """See `Backend`."""
        return await anyio.to_thread.run_sync(self._start, arguments, limiter=self._one)

    async def ask_followup(self, arguments: FollowupArguments, request: Any) -> CallToolResult:
        """See `Backend`."""
        return await anyio.to_thread.run_sync(self._ask, arguments.session_id, arguments, limiter=self._one)

    def _start(self, arguments: SegmentArguments) -> CallToolResult:
        source = self._source(arguments.image)
        if self._model is None:
            self._model = self.load()
        session_id = f"ses_{secrets.token_hex(12)}"
        self._chats[session_id] = self._model.chat(source)
        try:
            told = self._ask(session_id, arguments)
        except BaseException:
            self._chats.pop(session_id, None)
            raise
        while len(self._chats) > MAX_CHATS:
            self._chats.popitem(last=False)
        return told

    def _ask(self, session_id: str, question: Question) -> CallToolResult:
        chat = self._chats.get(session_id)
        if chat is None:
            step = "Call `segment` with the picture again."
            raise ApiError("session_expired", "The session is unknown, or made room for newer ones.", next_step=step, param="session_id")
        self._chats.move_to_end(session_id)
        answer = chat.ask(question.prompt, mode=question.mode)
        data = answer.to_dict()
        head = {"id": f"ans_{secrets.token_hex(12)}", "object": "answer", "created": int(time.time()), "mode": question.mode}
        return result(answer, {**head, **data, "image": {"id": None, **data["image"]}}, session_id, question.masks)

    def _source(self, image: str) -> bytes | Path:
        """Bytes or an allowed path of the picture that an assistant names."""
        scheme = image[:8].lower().partition(":")[0]
        if scheme == "data":
            return decode_base64(image)
        if scheme in ("http", "https"):
            if not self.url_hosts:
                step = "Save the picture and give its path; or start `lisaseg mcp` with --allow-url-host."
                raise ApiError("url_input_disabled", "This tool fetches no URLs.", next_step=step, param="image")
            return fetch(image, self.url_hosts, LIMITS.max_bytes)
        path = Path(url2pathname(urlsplit(image).path) if scheme == "file" else image)
        try:
            path = Path(self.roots[0] if self.roots else ".", path.expanduser()).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise ImageError("The path is malformed.", next_step="Give the absolute path of a picture.", code="image_not_found") from error
        if self.roots and not any(path.is_relative_to(root) for root in self.roots):
            allowed = ", ".join(str(root) for root in self.roots)
            raise ImageError(f"{path} is not in a folder that this tool may read.", next_step=f"Those are: {allowed}.", code="image_not_allowed")
        return path


def run(desk: Desk) -> None:
    """Serve one assistant until it closes standard input."""

    async def serve() -> None:
        server = build_server(desk)
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    anyio.run(serve)
