"""C: MCP's official client against real processes: `/mcp` of a service, and `lisaseg mcp` on standard input and output."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from tests.server.running import EXAMPLES, KEYS, ROOT, Server, clean, code_of, picture

import lisaseg
from lisaseg.errors import UsageError
from lisaseg.formats import rle

pytestmark = pytest.mark.serve
HEADERS = {"Accept": "application/json, text/event-stream"}
ON = ("--integrations", "mcp")


def talk(target: Any, do: Callable[[Client], Awaitable[Any]], key: str = "", era: str = "auto") -> Any:
    """One conversation of the official client with a server or with a command on standard input and output."""

    async def run() -> Any:
        if isinstance(target, StdioServerParameters):
            async with Client(target, mode=era) as client:  # type: ignore[arg-type]
                return await do(client)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        http = httpx2.AsyncClient(headers=headers, timeout=60.0, verify=False)
        transport = streamable_http_client(f"{target.url}/mcp", http_client=http)
        async with http, Client(transport, mode=era) as client:  # type: ignore[arg-type]
            return await do(client)

    return anyio.run(run)


def call(target: Any, tool: str, key: str = "", era: str = "auto", **arguments: Any) -> Any:
    return talk(target, lambda client: client.call_tool(tool, arguments), key, era)


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def code(result: Any) -> str:
    """The error code that ends a tool error."""
    assert result.is_error
    clean(result.content[0].text)
    match = re.search(r"\[(\w+)\]$", result.content[0].text)
    assert match is not None
    return match[1]


def message(method: str = "tools/call", **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def segment_message(prompt: str, image: bytes) -> dict[str, Any]:
    return message(name="segment", arguments={"image": data_uri(image), "prompt": prompt})


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mcp"), *ON, "--stub-seconds", "0.01", "--limit", "requests_per_minute=100000", keys=KEYS)
    yield server
    assert server.stop() == 0


def test_it_is_off_until_it_is_asked_for(stub: Server, start: Callable[..., Server]) -> None:
    assert code_of(stub.http.post("/mcp", json=message("ping"), headers=HEADERS)) == "not_found"
    with pytest.raises(RuntimeError, match="no integration 'mpc'"):
        start("--integrations", "mpc")


@pytest.mark.parametrize("era", ["auto", "legacy"])
def test_a_conversation_over_http(http: Server, era: str) -> None:
    async def converse(client: Client) -> Any:
        assert {tool.name for tool in (await client.list_tools()).tools} == {"segment", "ask_followup"}
        first = await client.call_tool("segment", {"image": data_uri(picture(1)), "prompt": "one"})  # the client checks it against the schema
        session = first.structured_content["session_id"]
        return first, await client.call_tool("ask_followup", {"session_id": session, "prompt": "two", "masks": "none"})

    first, second = talk(http, converse, KEYS[0], era)
    answer = first.structured_content
    assert answer["raw_text"] == "Turn 1: one [SEG]." and second.structured_content["raw_text"] == "Turn 2: two [SEG]."
    assert [block.type for block in first.content] == ["text", "image", "text"] and json.loads(first.content[2].text) == answer
    stored = http.http.get(f"/v1/sessions/{answer['session_id']}").json()
    assert [turn["prompt"] for turn in stored["turns"]] == ["one", "two"], "a session of the service like any other"
    known = stored["turns"][0]["answer"]
    assert known["segments"] == answer["segments"] and known["id"] == answer["id"] and known["image"] == answer["image"]
    assert second.structured_content["segments"][0]["mask"] is None
    uploaded = call(http, "segment", KEYS[0], era, image=answer["image"]["id"], prompt="by id")
    assert uploaded.structured_content["image"] == answer["image"]


def test_the_http_process_stays_without_torch(http: Server) -> None:
    call(http, "segment", KEYS[0], image=data_uri(picture(2)), prompt="x")
    libraries = {Path(m.path).name for m in psutil.Process(http.process.pid).memory_maps() if m.path}
    assert not [name for name in libraries if "torch" in name], "the drawing needs none either"


def test_keys_hosts_and_owners(http: Server) -> None:
    body = segment_message("x", picture(3))
    for key in (None, "wrong-key-0123456789"):
        response = http.client(key).post("/mcp", json=body, headers=HEADERS)
        assert response.status_code == 401 and code_of(response) == "unauthorized"
    assert code_of(http.http.post("/mcp", json=body, headers={**HEADERS, "Origin": "http://evil.example"})) == "origin_not_allowed"
    mine = call(http, "segment", KEYS[0], image=data_uri(picture(3)), prompt="x").structured_content
    assert code(call(http, "ask_followup", KEYS[1], session_id=mine["session_id"], prompt="x")) == "not_found"
    assert code(call(http, "segment", KEYS[1], image=mine["image"]["id"], prompt="x")) == "not_found"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"image": "/home/me/photo.png", "prompt": "x"}, "invalid_base64"),
        ({"image": "https://example.com/a.png", "prompt": "x"}, "url_input_disabled"),
        ({"image": data_uri(b"no picture"), "prompt": "x"}, "unsupported_format"),
        ({"image": data_uri(picture()[:100]), "prompt": "x"}, "truncated_image"),
        ({"image": "img_unknown", "prompt": "x"}, "not_found"),
        ({"image": data_uri(picture()), "prompt": ""}, "prompt_empty"),
        ({"image": data_uri(picture()), "prompt": "x" * 3000}, "prompt_too_long"),
        ({"image": data_uri(picture()), "prompt": "x", "mode": "loud"}, "invalid_request"),
        ({"image": data_uri(picture()), "prompt": "!raise"}, "internal"),
        ({"image": data_uri(picture()), "prompt": "!oom"}, "out_of_memory"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_failures_are_tool_errors_with_the_codes_of_the_api(http: Server, arguments: dict[str, Any], expected: str) -> None:
    assert code(call(http, "segment", KEYS[0], **arguments)) == expected
    end, lines = time.monotonic() + 2, []
    while not lines and time.monotonic() < end:
        lines = [
            line
            for line in map(json.loads, [line for line in http.lines if line.startswith("{")])
            if line.get("code") == expected and line.get("route") == "/mcp"
        ]
    assert lines and lines[-1]["status"] == 200, "the log has the code too"


def test_what_is_no_json_rpc_is_refused_in_our_words(http: Server) -> None:
    bodies: list[Any] = [b"{", b"[]", b"3", b"[" * 5000, b'{"jsonrpc": "2.0"}', b'{"jsonrpc":"2.0","id":1,"method":7}', b"\xff", b""]
    for body in bodies:
        response = http.http.post("/mcp", content=body, headers={**HEADERS, "Content-Type": "application/json"})
        assert response.status_code in (400, 415) and code_of(response) in ("invalid_json", "invalid_request", "unsupported_media_type"), body
    for method in ("GET", "DELETE", "PUT"):
        response = http.http.request(method, "/mcp", headers=HEADERS)
        assert response.status_code == 405 and response.headers["allow"] == "POST", "no streams that stay open, no sessions of the protocol"
    assert http.http.post("/mcp", json=message("ping"), headers=HEADERS).json()["result"] is not None


def test_limits_of_the_service_hold(start: Callable[..., Server]) -> None:
    server = start(*ON, "--limit", "max_body_bytes=20000", "--limit", "requests_per_minute=60", keys=KEYS)
    response = server.http.post("/mcp", json=segment_message("x", picture(0, 200, 200)), headers=HEADERS)
    assert response.status_code == 413 and code_of(response) == "body_too_large"
    codes = [server.http.post("/mcp", json=message("ping"), headers=HEADERS).status_code for _ in range(14)]
    assert codes.count(200) >= 9 and codes[-1] == 429
    late = server.http.post("/mcp", json=message("ping"), headers=HEADERS)
    assert code_of(late) == "rate_limited" and int(late.headers["retry-after"]) >= 1


def test_a_full_queue_is_told_to_the_assistant(start: Callable[..., Server]) -> None:
    server = start(*ON, "--stub-seconds", "3", "--max-queue", "1", "--max-batch", "1")
    image_id = server.upload(picture())
    askers = [threading.Thread(target=lambda: server.ask(image_id, "slow")) for _ in range(2)]
    for asker in askers:
        asker.start()
        time.sleep(0.3)
    assert code(call(server, "segment", image=data_uri(picture()), prompt="x")) == "overloaded"
    for asker in askers:
        asker.join()


def test_a_client_that_leaves_frees_its_place(start: Callable[..., Server]) -> None:
    server = start(*ON, "--stub-seconds", "20")
    body = segment_message("slow", picture())
    with pytest.raises(httpx2.ReadTimeout):
        server.client(timeout=1.0).post("/mcp", json=body, headers=HEADERS)
    end = time.monotonic() + 5
    while server.metric("lisaseg_running") and time.monotonic() < end:
        time.sleep(0.05)
    assert server.metric("lisaseg_running") == 0


def test_many_clients_get_their_own_answers(http: Server) -> None:
    async def all_at_once() -> None:
        async with httpx2.AsyncClient(base_url=http.url, headers={**HEADERS, "Authorization": f"Bearer {KEYS[4]}"}, timeout=60, verify=False) as web:
            busy = anyio.CapacityLimiter(8)

            async def one(n: int) -> None:
                async with busy:
                    response = await web.post("/mcp", json=segment_message(f"question {n}", picture(n % 5)))
                assert response.json()["result"]["structuredContent"]["raw_text"] == f"Turn 1: question {n} [SEG]."

            async with anyio.create_task_group() as group:
                for n in range(100):
                    group.start_soon(one, n)

    anyio.run(all_at_once)


def command(*options: str) -> StdioServerParameters:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return StdioServerParameters(command=sys.executable, args=["-m", "lisaseg", "mcp", *options], env=environment)


@pytest.mark.parametrize("era", ["auto", "legacy"])
def test_stdio_with_the_real_model(era: str) -> None:
    async def converse(client: Client) -> Any:
        process = next(p for p in psutil.Process().children() if "mcp" in p.cmdline())
        assert process.memory_info().rss < 250e6, "no model yet"
        tools = (await client.list_tools()).tools
        first = await client.call_tool("segment", {"image": str(EXAMPLES / "cat.jpg"), "prompt": "Segment the cat."})
        session = first.structured_content["session_id"]
        return tools, first, await client.call_tool("ask_followup", {"session_id": session, "prompt": "its ear"})

    tools, first, second = talk(command("--dtype", "float32", "--offline"), converse, era=era)
    local = lisaseg.load("lisa-tiny", dtype="float32", offline=True).chat(EXAMPLES / "cat.jpg")
    for result, prompt in ((first, "Segment the cat."), (second, "its ear")):
        expected, answer = local.ask(prompt), result.structured_content
        assert answer["text"] == expected.text and len(answer["segments"]) == len(expected.segments)
        for segment, mask in zip(answer["segments"], expected.masks, strict=True):
            found = rle.decode(segment["mask"])
            assert (found & mask).sum() >= 0.99 * (found | mask).sum()
    assert {tool.name for tool in tools} == {"segment", "ask_followup"} and first.structured_content["segments"]


def test_stdio_before_a_service(stub: Server) -> None:
    answer = call(command("--url", stub.url), "segment", image=str(EXAMPLES / "cat.jpg"), prompt="far away").structured_content
    assert answer["raw_text"] == "Turn 1: far away [SEG]." and answer["model"] == "lisa-tiny"
    nobody = call(command("--url", stub.url, "--root", str(EXAMPLES)), "segment", image="/etc/hostname", prompt="x")
    assert nobody.is_error and "image_not_allowed" in nobody.content[0].text
    with pytest.raises(UsageError):
        lisaseg.Client("localhost:8000")
