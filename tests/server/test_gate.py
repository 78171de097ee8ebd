"""X: every route against no key, a wrong key and another's ids; hosts, origins, sizes, types. And Z3: requests that are hardly HTTP."""

from __future__ import annotations

import asyncio
import gzip
import random
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.server.load import PATIENCE
from tests.server.running import KEYS, Server, clean, code_of, picture
from tests.server.sizes import size

from lisaseg.apps.server.catalogue import CATALOGUE
from lisaseg.apps.server.gate import OPEN
from lisaseg.apps.server.settings import Limits, Settings, is_loopback

pytestmark = pytest.mark.serve
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW")
MUTATIONS = 200  # of each path and method; the long size takes 1,000


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("guarded"), "--stub-seconds", "0", "--limit", "requests_per_minute=100000", keys=KEYS)
    yield server
    assert server.stop() == 0


def routes(server: Server) -> list[tuple[str, str]]:
    """(method, path) of every documented operation and of what is not documented."""
    paths = server.client().get("/openapi.json").json()["paths"]
    named = [(method.upper(), re.sub(r"\{.*?\}", "some_id", path)) for path, methods in paths.items() for method in methods]
    return [*named, ("GET", "/v1/nothing"), ("GET", "/v1/"), ("POST", "/"), ("GET", "/admin"), ("GET", "//v1/limits"), ("GET", "/healthz/")]


def test_nothing_is_served_without_a_key_but_what_holds_nothing(guarded: Server) -> None:
    for method, path in routes(guarded):
        for key in (None, "wrong-key-0123456789", KEYS[0] + "x", ""):
            response = guarded.client(key).request(method, path, json={} if method == "POST" else None)
            if path in OPEN:
                assert response.status_code != 401
            else:
                assert response.status_code == 401 and code_of(response) == "unauthorized", (method, path)
    assert len(routes(guarded)) >= 24


@pytest.mark.parametrize(
    "header", ["Basic a2V5", KEYS[0], f"bearer{KEYS[0]}", f"Token {KEYS[0]}", "Bearer", "Bearer \u00e9".encode().decode("latin-1")]
)
def test_only_a_bearer_key_counts(guarded: Server, header: str) -> None:
    assert guarded.client().get("/v1/limits", headers={"Authorization": header.encode("latin-1")}).status_code == 401


def test_things_of_another_key_do_not_exist(guarded: Server) -> None:
    mine, other = guarded.client(KEYS[0]), guarded.client(KEYS[1])
    image_id = guarded.upload(picture(), mine)
    session = mine.post("/v1/sessions", json={"image_id": image_id}).json()["id"]
    asked = {"type": "image_url", "image_url": None, "uuid": image_id}
    requests: list[tuple[str, str, Any]] = [
        ("GET", f"/v1/images/{image_id}", None),
        ("GET", f"/v1/images/{image_id}/content", None),
        ("DELETE", f"/v1/images/{image_id}", None),
        ("POST", "/v1/segment", {"image_id": image_id, "prompt": "x"}),
        ("POST", "/v1/sessions", {"image_id": image_id}),
        ("GET", f"/v1/sessions/{session}", None),
        ("DELETE", f"/v1/sessions/{session}", None),
        ("POST", f"/v1/sessions/{session}/messages", {"prompt": "x"}),
        ("POST", f"/v1/sessions/{session}/retry", {}),
        ("POST", f"/v1/sessions/{session}/undo", None),
        ("POST", "/v1/export", {"answers": [{}], "to": "overlay", "image_id": image_id}),
        ("POST", "/v1/chat/completions", {"model": "lisa-tiny", "messages": [{"role": "user", "content": [asked, {"type": "text", "text": "x"}]}]}),
    ]
    named = {(method, path.replace(image_id, "{image_id}").replace(session, "{session_id}")) for method, path, _ in requests}
    documented = guarded.client().get("/openapi.json").json()["paths"].items()
    assert {(m.upper(), p) for p, methods in documented for m in methods if "image_id}" in p or "session_id}" in p} <= named, "all that take an id"
    for method, path, body in requests:
        response = other.request(method, path, json=body)
        assert response.status_code == 404 and code_of(response) == "not_found", (method, path)
    assert guarded.upload(picture(), other) != image_id, "the same bytes have another id"
    assert mine.get(f"/v1/sessions/{session}").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "", "[::2]", "169.254.169.254", "127.0.0.1@evil"])
def test_foreign_hosts_are_refused(stub: Server, host: str) -> None:
    assert code_of(stub.http.get("/v1/limits", headers={"Host": host})) == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:80"])
def test_own_hosts_are_known(stub: Server, host: str) -> None:
    assert stub.http.get("/v1/limits", headers={"Host": host}).status_code == 200


def test_other_pages_are_refused(stub: Server) -> None:
    host = stub.url[7:]
    for origin in ("http://evil.example", "null", f"http://{host}.evil.example", "http://127.0.0.1:1", "https://evil.example:80", "file://"):
        response = stub.http.post("/v1/segment", json={}, headers={"Origin": origin})
        assert code_of(response) == "origin_not_allowed" and "access-control-allow-origin" not in response.headers, origin
    assert code_of(stub.http.get("/v1/limits", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})) == "origin_not_allowed"
    assert stub.http.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200
    assert stub.http.get("/v1/limits", headers={"Origin": stub.url}).status_code == 200


def test_bodies_are_judged_before_they_are_read(start: Callable[..., Server]) -> None:
    server = start("--limit", "max_body_bytes=20000")
    json_type = {"Content-Type": "application/json"}
    assert code_of(server.http.post("/v1/segment", content=b" " * 20001, headers=json_type)) == "body_too_large"
    assert code_of(server.http.post("/v1/segment", content=iter([b" " * 10000] * 3), headers=json_type)) == "body_too_large"
    bomb = gzip.compress(b" " * 10_000_000)
    assert code_of(server.http.post("/v1/segment", content=bomb, headers={**json_type, "Content-Encoding": "gzip"})) == "unsupported_media_type"
    assert code_of(server.http.post("/v1/segment", data={"prompt": "x"})) == "unsupported_media_type"
    assert code_of(server.http.post("/v1/segment", content=b"{}", headers={"Content-Type": "text/plain"})) == "unsupported_media_type"
    assert code_of(server.http.post("/v1/images", files={"file": ("x", b"x" * 19000)})) == "unsupported_format"
    many = [("file", ("x", b"x")) for _ in range(20)]
    assert code_of(server.http.post("/v1/images", files=many)) == "invalid_multipart"
    host, port = server.url[7:].split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:  # nothing of the body is sent
        connection.sendall(b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "name", ["../settings.py", "..%2fsettings.py", "%2e%2e/server/app.py", "a/../../server/app.py", ".hidden.js", "x%00.js", "index.py", "/etc/hosts"]
)
def test_files_come_only_from_the_page(stub: Server, name: str) -> None:
    assert code_of(stub.http.get(f"/web/{name}")) == "not_found"


def _hardly_http(rng: random.Random, method: str, path: str) -> bytes:
    request = bytearray(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode("latin-1")
    )
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(request))
        request[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(request)


async def _exchange(server: Server, request: bytes) -> bytes:
    """What comes back until the server closes; it may close before all is sent."""
    host, port = server.url[7:].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        writer.write(request)
        writer.write_eof()
        while chunk := await asyncio.wait_for(reader.read(65536), PATIENCE):
            answer += chunk
    except ConnectionError:
        pass
    writer.close()
    return answer


def test_hardly_http(stub: Server) -> None:
    """Z3: mutated requests on every path with every method: an answer of 4xx or a closed connection, and a living server."""
    paths = [path for _, path in routes(stub)] + ["/web/x", "/" + "a" * 5000, "/%00", "/\xff", "/v1/sessions/x/messages?" + "q" * 300]
    rng, seen = random.Random(0), Counter[int]()
    requests = (_hardly_http(rng, m, p) for p in dict.fromkeys(paths) for m in METHODS for _ in range(size(MUTATIONS, 1_000)))

    async def client() -> None:
        for request in requests:
            answer = await _exchange(stub, request)
            if answer:
                status = int(answer.split(b" ", 2)[1])
                seen[status] += 1
                assert status < 500 or (status == 503 and b"/readyz" in request), (request, answer[:200])
                if status >= 400:
                    clean(answer.decode("latin-1").split("\r\n\r\n", 1)[-1])

    async def run() -> None:
        await asyncio.gather(*(client() for _ in range(8)))

    asyncio.run(run())
    assert {400, 404, 405} <= set(seen) and seen.total() > 20 * len(METHODS) * MUTATIONS / 2
    assert stub.http.get("/readyz").status_code == 200


def test_the_catalogue_is_documented(stub: Server) -> None:
    page = stub.http.get("/docs/errors").text
    contract = (__import__("pathlib").Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
    for code in CATALOGUE:
        assert f"id='{code}'" in page and f"`{code}`" in contract, code
    limits = stub.http.get("/v1/limits").json()
    assert set(Limits.model_fields) < set(limits)


def test_loopback_is_told_from_the_world(tmp_path: Any) -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.5.5.5")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))
    assert Settings(state=tmp_path, host="0.0.0.0", keys=KEYS).own_hosts is None
    assert "demo.example" in (Settings(state=tmp_path, host="0.0.0.0", keys=KEYS, allow_hosts=("demo.example",)).own_hosts or ())
