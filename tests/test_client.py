"""`lisaseg.Client` before servers that are none, break off or cheat: whatever comes back, it is a LisaSegError. tests/server has real ones."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import lisaseg
from lisaseg.client import _pause
from lisaseg.errors import ServiceError, UsageError

UPLOADED = b'HTTP/1.1 201 Created\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{"id": "i"}'
PICTURE = np.zeros((8, 8, 3), np.uint8)


@contextmanager
def server(*responses: bytes) -> Iterator[str]:
    """Gives the responses one by one, the last one for ever, and hangs up after each."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0.05)
        closed = threading.Event()

        def serve() -> None:
            at = 0
            while not closed.is_set():
                try:
                    line, _ = door.accept()
                except TimeoutError:
                    continue
                with line:
                    line.settimeout(5)
                    head, _, body = line.recv(1 << 16).partition(b"\r\n\r\n")
                    announced = re.search(rb"content-length: (\d+)", head.lower())
                    while announced and len(body) < int(announced[1]):
                        body += line.recv(1 << 16)
                    line.sendall(responses[min(at, len(responses) - 1)])
                    at += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}"
        finally:
            closed.set()
            thread.join()


def response(body: bytes, *, length: int | None = None, kind: str = "application/json", status: str = "200 OK", more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body) if length is None else length}\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode() + body


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (response(b"<html>hello</html>", kind="text/html"), "unexpected_response"),
        (response(b"{}"), "unexpected_response"),
        (response(b'"model"'), "unexpected_response"),
        (response(b'{"model": "lisa', length=500), "unreachable"),
        (response(b"<h1>no</h1>", length=500, status="500 no"), "unreachable"),
        (response(b"", status="302 Found", more="Location: https://elsewhere/\r\n"), "unexpected_response"),
    ],
)
def test_what_is_no_lisaseg_server_is_a_service_error(sent: bytes, code: str) -> None:
    with server(sent) as url, lisaseg.Client(url, retries=0) as client, pytest.raises(ServiceError) as found:
        _ = client.name
    assert found.value.code == code


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (response(b'{"text": "It is', length=900), "unreachable"),
        (response(b"[]"), "bad_data"),
        (response(b"event: delta\ndata: {}\n\n", kind="text/event-stream"), "unexpected_response"),
        (response(b'event: delta\ndata: {"text": "It"}\n\n', length=900, kind="text/event-stream"), "unreachable"),
        (response(b'event: delta\ndata: {"text": "It"}\n\n', kind="text/event-stream"), "unreachable"),
    ],
)
def test_an_answer_that_breaks_off_is_a_lisaseg_error_and_no_turn(sent: bytes, code: str) -> None:
    on_text: Callable[[str], None] | None = (lambda _: None) if b"event" in sent else None
    with server(UPLOADED, sent) as url, lisaseg.Client(url, retries=0) as client:
        chat = client.chat(PICTURE)
        with pytest.raises(lisaseg.LisaSegError) as found:
            chat.ask("the cat", on_text=on_text)
    assert found.value.code == code and not chat.turns


def test_what_the_caller_raises_while_listening_is_the_callers() -> None:
    def listen(_: str) -> None:
        raise KeyError("mine")

    stream = response(b'event: delta\ndata: {"text": "It"}\n\n', kind="text/event-stream")
    with server(UPLOADED, stream) as url, lisaseg.Client(url, retries=0) as client, pytest.raises(KeyError, match="mine"):
        client.chat(PICTURE).ask("the cat", on_text=listen)


def test_a_date_to_wait_for_is_waited_for_a_moment() -> None:
    """nginx and others in front of a server may answer 503 themselves."""
    busy = response(b"busy", status="503 Busy", more="Retry-After: Wed, 21 Oct 2099 07:28:00 GMT\r\n")
    begin = time.monotonic()
    with server(busy, response(b'{"model": "lisa-tiny"}')) as url, lisaseg.Client(url, retries=1) as client:
        assert client.name == "lisa-tiny" and time.monotonic() - begin < 30
    assert [_pause(text) for text in ("2", "", "-5", "nan", "1e9", "86400")] == [2, 1, 1, 1, 1, 60]


@pytest.mark.parametrize("url", ["localhost:8000", "http://[::1", "http://host:notaport", "ftp://host"])
def test_malformed_urls(url: str) -> None:
    with pytest.raises(UsageError):
        lisaseg.Client(url)


@pytest.mark.parametrize("key", ["geheim-é", "geheim\n", "geheim\0"])
def test_malformed_keys(key: str) -> None:
    with pytest.raises(UsageError) as found:
        lisaseg.Client("http://127.0.0.1:1", key)
    assert "geheim" not in str(found.value), "keys are not repeated in messages"
