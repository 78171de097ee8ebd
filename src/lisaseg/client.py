"""A model that runs elsewhere, with the methods of one that runs here.

    model = lisaseg.Client("http://127.0.0.1:8000")          # a key as second argument, where the server asks for one
    answer = model.ask("street.jpg", "Where can the driver see the speed?")
    chat = model.chat("street.jpg"); chat.ask("What is unusual here?"); chat.undo()

Answers are `lisaseg.Answer`s, equal to local ones. Nothing of torch is loaded. A busy server is asked again as its `Retry-After` says; a picture
that it has forgotten is sent again. One client may be used by several threads.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from lisaseg.errors import ImageError, InstructionError, LisaSegError, ServiceError, UsageError
from lisaseg.formats.answer import answer_from_dict
from lisaseg.imaging import ImageSource, Picture, open_image
from lisaseg.types import MODES, PLUS_MODES, Answer, MaskFormat, Mode

PARALLEL = 8  # requests of one `ask_batch` under way; the server makes batches of them
_IMAGE = {"unsupported_format", "corrupt_image", "truncated_image", "image_too_large", "extreme_aspect_ratio", "missing_image"}
_INSTRUCTION = {"prompt_empty", "prompt_too_long", "too_many_turns"}
_AGAIN = {429, 503}
_FORGOTTEN = {"image_expired", "session_expired", "not_found"}


class Client:
    """A lisaseg server as a model.

    Args:
        url: where it is, for example "http://127.0.0.1:8000".
        key: API key, if it asks for one; by default the environment's LISASEG_KEY.
        timeout: seconds for one request, its answer included.
        retries: how often a request is sent again when the server is busy or cannot be reached.
        mask_format: how masks travel: "rle" (the smallest), "polygon" or "png"; the answers are the same.

    Raises:
        UsageError: URL or key is malformed, or the answers could hold no masks.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 120.0, retries: int = 5, mask_format: MaskFormat = "rle") -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url!r} is not the URL of a server.", next_step="Write it like http://127.0.0.1:8000.")
        if mask_format not in ("rle", "polygon", "png"):
            raise UsageError(f"A client cannot read masks as {mask_format!r}.", next_step="Use rle, polygon or png.")
        key = key or os.environ.get("LISASEG_KEY")
        if key and not (key.isascii() and key.isprintable()):
            raise UsageError("The API key holds characters that no key has.", next_step="Copy it again; a line end behind it does not belong to it.")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.retries, self.mask_format = retries, mask_format
        secure = url.startswith("https://")  # certificates are read only where they are needed: it takes a while
        try:
            self._http = httpx2.Client(base_url=url.rstrip("/"), headers=headers, timeout=httpx2.Timeout(timeout, connect=10.0), verify=secure)
        except httpx2.InvalidURL as error:
            raise UsageError(f"{url!r} is not the URL of a server: {error}.", next_step="Write it like http://127.0.0.1:8000.") from error

    @property
    def name(self) -> str:
        """The model that the server runs."""
        return str(self._field("GET", "/version", "model"))

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What `mode` may be: as `Predictor.modes`, of the model that the server runs. While it loads, only those that every model has."""
        return tuple(self._field("GET", "/v1/limits", "modes"))

    def ask(
        self,
        image: ImageSource,
        text: str,
        *,
        mode: Mode = "auto",
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Ask one question about one picture; see `Predictor.ask`.

        Raises:
            ImageError, InstructionError: the input cannot be used, here as there.
            UsageError: the mode is none, or none of the server's model.
            ServiceError: the server cannot be reached, refuses, or fails.
        """
        return self.chat(image).ask(text, mode=mode, max_new_tokens=max_new_tokens, on_text=on_text)

    def ask_batch(self, pairs: Sequence[tuple[ImageSource, str]], *, mode: Mode = "auto", max_new_tokens: int | None = None) -> list[Answer]:
        """Ask many questions; answers come in the order of `pairs`. The server answers them together as far as it can."""
        chats = [self.chat(image) for image, _ in pairs]
        for (_, text), chat in zip(pairs, chats, strict=True):
            chat.check(text, mode)
        with ThreadPoolExecutor(PARALLEL) as pool:
            jobs = [pool.submit(chat.ask, text, mode=mode, max_new_tokens=max_new_tokens) for (_, text), chat in zip(pairs, chats, strict=True)]
            return [job.result() for job in jobs]

    def chat(self, image: ImageSource) -> RemoteChat:
        """Start a conversation about a picture; it is opened here now and sent with the first question."""
        return RemoteChat(self, image)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def upload(self, data: bytes) -> str:
        """Send an encoded picture; returns its id there."""
        return str(self._field("POST", "/v1/images", "id", files={"file": ("picture", data)}))

    def _field(self, method: str, path: str, field: str, **options: Any) -> Any:
        with closing(self._send(method, path, **options)) as response, _understood():
            return json.loads(response.read())[field]

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send until it succeeds; the body of the response is not read yet. ServiceError and its relatives for all that is no success."""
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                response = self._http.send(self._http.build_request(method, path, **options), stream=True)
            except httpx2.TransportError as error:
                if last or isinstance(error, httpx2.ReadTimeout):
                    message = f"The server at {self._http.base_url} cannot be reached ({type(error).__name__})."
                    raise ServiceError(message, next_step="Check the URL, and that `lisaseg serve` runs.", code="unreachable") from error
                time.sleep(min(8.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.0))
                continue
            if response.is_success:
                return response
            with closing(response), _understood():
                failure = _failure(response.read(), response.status_code)
            if last or response.status_code not in _AGAIN or failure.code == "out_of_memory":
                raise failure
            time.sleep(_pause(response.headers.get("retry-after", "")) * random.uniform(0.8, 1.2))
        raise AssertionError("unreachable")


class RemoteChat:
    """A conversation about one picture on a server; `turns` are the answers so far, oldest first. Made by `Client.chat`.

    It carries its history itself: whatever the server forgets is sent again, and nothing is lost.
    """

    def __init__(self, client: Client, image: ImageSource) -> None:
        self.client = client
        self.picture: Picture = open_image(image)
        self.turns: list[Answer] = []
        self._modes: list[Mode] = []
        self._data = _encoded(image, self.picture)
        self._image_id = ""

    def check(self, text: str, mode: Mode) -> None:
        """Refuse what cannot be asked before anything is sent."""
        from lisaseg.tokenization import clean_instruction

        if mode not in (known := MODES + PLUS_MODES):  # the server refuses those that its model does not have
            raise UsageError(f"Unknown mode {mode!r}.", next_step=f"Use one of: {', '.join(known)}.")
        clean_instruction(text)

    def ask(self, text: str, *, mode: Mode = "auto", max_new_tokens: int | None = None, on_text: Callable[[str], None] | None = None) -> Answer:
        """Ask the next question; the model reads all earlier turns. If it fails, the chat is as it was. `on_text` gets the text so far."""
        self.check(text, mode)
        history = [{"prompt": a.instruction, "mode": m, "raw_text": a.raw_text} for a, m in zip(self.turns, self._modes, strict=True)]
        body: dict[str, Any] = {"prompt": text.encode("utf-8", "ignore").decode(), "mode": mode, "history": history, "stream": on_text is not None}
        body["mask_format"] = self.client.mask_format
        if max_new_tokens is not None:
            body["max_new_tokens"] = max_new_tokens
        data = self._ask(body, on_text)
        answer = dataclasses.replace(answer_from_dict(data), image=self.picture.rgb)
        self.turns.append(answer)
        self._modes.append(mode)
        return answer

    def undo(self) -> Answer | None:
        """Forget the last turn and return it; None if there is none."""
        if not self.turns:
            return None
        self._modes.pop()
        return self.turns.pop()

    def _ask(self, body: dict[str, Any], on_text: Callable[[str], None] | None) -> dict[str, Any]:
        for attempt in range(3):
            if not self._image_id:
                self._image_id = self.client.upload(self._data)
            try:
                headers = {"X-Request-Id": f"py_{secrets.token_hex(8)}"}
                sent = self.client._send("POST", "/v1/segment", json={**body, "image_id": self._image_id}, headers=headers)
                with closing(sent) as response:
                    if on_text is not None:
                        return _streamed(response, on_text)
                    with _understood():
                        return json.loads(response.read())
            except ServiceError as error:
                if error.code not in _FORGOTTEN or attempt == 2:
                    raise
                self._image_id = ""  # forgotten, or another replica: send it again
        raise AssertionError("unreachable")


@contextmanager
def _understood() -> Iterator[None]:
    """Around the reading of a body: one that breaks off or is not ours is a ServiceError, too."""
    try:
        yield
    except httpx2.TransportError as error:
        raise ServiceError("The connection ended before the answer.", next_step="Ask again.", code="unreachable") from error
    except (ValueError, KeyError, TypeError) as error:
        step = "Check that the URL is that of a lisaseg server."
        raise ServiceError("The server sent something else than an answer.", next_step=step, code="unexpected_response") from error


def _pause(retry_after: str) -> float:
    """Seconds to wait; a proxy on the way may have written a date instead, or nothing."""
    return min(float(retry_after), 60.0) if retry_after.isdecimal() else 1.0


def _streamed(response: httpx2.Response, on_text: Callable[[str], None]) -> dict[str, Any]:
    """Follow a stream to its answer."""
    sofar = ""
    for event, data in _events(response.iter_lines()):
        if event in ("delta", "replace"):
            with _understood():
                sofar = data["text"] if event == "replace" else sofar + data["text"]
            on_text(sofar)  # what it raises is the caller's
        elif event == "done":
            return data
        elif event == "error":
            with _understood():
                raise _error_of(data["error"], 500)
    raise ServiceError("The connection ended before the answer.", next_step="Ask again.", code="unreachable")


def _events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """(event, data) pairs of an event stream."""
    event = ""
    with _understood():
        for line in lines:
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: "):
                yield event, json.loads(line[6:])


def _encoded(image: ImageSource, picture: Picture) -> bytes:
    """The bytes to send: those of the file if there is one, else a PNG of the pixels."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture.rgb).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _failure(body: bytes, status: int) -> LisaSegError:
    try:
        return _error_of(json.loads(body)["error"], status)
    except (ValueError, KeyError, TypeError):
        step = "Check that the URL is that of a lisaseg server."
        return ServiceError(f"The server answered with status {status}.", next_step=step, code="unexpected_response")


def _error_of(error: dict[str, Any], status: int) -> LisaSegError:
    """The error that a local model would raise, or a ServiceError."""
    kind: type[LisaSegError] = ImageError if error["code"] in _IMAGE else InstructionError if error["code"] in _INSTRUCTION else ServiceError
    if (error["code"], error.get("param")) == ("invalid_request", "mode"):
        kind = UsageError
    where = f"(request {error.get('request_id')})" if kind is ServiceError else ""
    return kind(str(error["message"]), next_step=where, code=str(error["code"]))
