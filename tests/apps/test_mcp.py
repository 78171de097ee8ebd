"""The tools of an assistant, spoken to by the official client in this process; real processes and HTTP stand in tests/server/test_mcp.py."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import numpy as np
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult
from PIL import Image
from tests.tiny_random import GREETING, TWO

from lisaseg.apps.commands.options import need_package
from lisaseg.apps.mcp.stdio import MAX_CHATS, Desk
from lisaseg.apps.mcp.tools import OVERLAY_SIDE, build_server
from lisaseg.errors import ModelLoadError, UsageError
from lisaseg.formats import rle
from lisaseg.predictor import Predictor

Ask = Callable[..., Awaitable[CallToolResult]]


def talk(desk: Desk, do: Callable[[Client], Awaitable[Any]], era: str = "legacy") -> Any:
    async def run() -> Any:
        async with Client(build_server(desk), mode=era) as client:  # type: ignore[arg-type]
            return await do(client)

    return anyio.run(run)


def call(desk: Desk, tool: str, **arguments: Any) -> CallToolResult:
    return talk(desk, lambda client: client.call_tool(tool, arguments))  # type: ignore[no-any-return]


def told(result: CallToolResult) -> str:
    """The words of a failure."""
    assert result.is_error and len(result.content) == 1 and result.structured_content is None
    return str(result.content[0].text)  # type: ignore[union-attr]


@pytest.fixture
def desk(predictor: Predictor) -> Desk:
    return Desk(lambda: predictor)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(path)
    return path


def never() -> Any:
    raise AssertionError("the model was loaded without need")


@pytest.mark.parametrize("era", ["legacy", "auto"])
def test_tools_are_described_before_a_model_is_loaded(era: str) -> None:
    async def look(client: Client) -> Any:
        assert client.server_info is None or client.server_info.name == "lisaseg"
        return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in talk(Desk(never), look, era)}
    assert set(tools) == {"segment", "ask_followup"}
    assert set(tools["segment"].input_schema["properties"]) == {"image", "prompt", "mode", "masks"}
    assert set(tools["segment"].input_schema["required"]) == {"image", "prompt"}
    assert set(tools["ask_followup"].input_schema["required"]) == {"session_id", "prompt"}
    for tool in tools.values():
        jsonschema.Draft202012Validator.check_schema(tool.input_schema)
        jsonschema.Draft202012Validator.check_schema(tool.output_schema)
        assert tool.output_schema["type"] == "object" and {"text", "segments", "status", "session_id"} <= set(tool.output_schema["required"])


@pytest.mark.parametrize("era", ["legacy", "auto"])
def test_an_answer_is_the_local_one_to_the_pixel(desk: Desk, predictor: Predictor, photo: Path, era: str) -> None:
    expected = predictor.ask(photo, TWO)

    async def ask(client: Client) -> Any:
        schema = next(tool.output_schema for tool in (await client.list_tools()).tools if tool.name == "segment")
        return schema, await client.call_tool("segment", {"image": str(photo), "prompt": TWO})

    schema, result = talk(desk, ask, era)
    words, overlay, text = result.content
    answer = result.structured_content
    jsonschema.validate(answer, schema)
    assert json.loads(text.text) == answer and words.text.startswith(expected.text) and answer["session_id"] in words.text
    assert answer["text"] == expected.text and answer["mode"] == "auto" and answer["image"] == {"id": None, "width": 64, "height": 48}
    assert len(answer["segments"]) == len(expected.segments) == 2
    for segment, mask in zip(answer["segments"], expected.masks, strict=True):
        assert (rle.decode(segment["mask"]) == mask).all()
    picture = Image.open(io.BytesIO(base64.b64decode(overlay.data)))
    assert overlay.mime_type == "image/jpeg" and picture.format == "JPEG" and max(picture.size) <= OVERLAY_SIDE


def test_boxes_alone_are_short_and_words_alone_bring_no_picture(desk: Desk, photo: Path) -> None:
    boxes = call(desk, "segment", image=str(photo), prompt=TWO, masks="none")
    assert len(boxes.structured_content["segments"]) == 2
    assert all(segment["mask"] is None and segment["box_xyxy"] for segment in boxes.structured_content["segments"])
    words = call(desk, "segment", image=str(photo), prompt=GREETING)
    assert [block.type for block in words.content] == ["text", "text"] and words.structured_content["segments"] == []


def test_a_conversation_goes_on(desk: Desk, predictor: Predictor, photo: Path) -> None:
    chat = predictor.chat(photo)
    first, second = chat.ask("the cup", mode="segment"), chat.ask("and the handle?", mode="segment")
    begun = call(desk, "segment", image=str(photo), prompt="the cup", mode="segment").structured_content
    more = call(desk, "ask_followup", session_id=begun["session_id"], prompt="and the handle?", mode="segment").structured_content
    assert [begun["raw_text"], more["raw_text"]] == [first.raw_text, second.raw_text] and more["session_id"] == begun["session_id"]
    assert more["usage"]["prompt_tokens"] == second.usage["prompt_tokens"] > begun["usage"]["prompt_tokens"], "the model reads the first turn"


def test_data_uris_and_file_uris(desk: Desk, photo: Path) -> None:
    path = call(desk, "segment", image=str(photo), prompt="x").structured_content
    uri = "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()
    for image in (uri, photo.as_uri()):
        assert call(desk, "segment", image=image, prompt="x").structured_content["raw_text"] == path["raw_text"]


def test_conversations_are_bounded(desk: Desk, photo: Path) -> None:
    ids = [call(desk, "segment", image=str(photo), prompt="x", masks="none").structured_content["session_id"] for _ in range(MAX_CHATS + 1)]
    assert len(desk._chats) == MAX_CHATS
    assert "session_expired" in told(call(desk, "ask_followup", session_id=ids[0], prompt="x"))
    assert not call(desk, "ask_followup", session_id=ids[1], prompt="x").is_error


@pytest.mark.parametrize(
    ("arguments", "code", "step"),
    [
        ({"image": "/no/such.png", "prompt": "x"}, "corrupt_image", ""),
        ({"image": "a\0b", "prompt": "x"}, "", ""),
        ({"image": "data:image/png;base64,!!", "prompt": "x"}, "invalid_base64", "base64"),
        ({"image": "data:nothing", "prompt": "x"}, "invalid_base64", "data URL"),
        ({"image": "data:image/png;base64,aGVsbG8=", "prompt": "x"}, "unsupported_format", "PNG"),
        ({"image": "https://example.com/a.png", "prompt": "x"}, "url_input_disabled", "--allow-url-host"),
        ({"image": "", "prompt": "x"}, "invalid_request", "image"),
        ({"prompt": "x"}, "invalid_request", "image"),
        ({"image": "PHOTO"}, "invalid_request", "prompt"),
        ({"image": "PHOTO", "prompt": " "}, "prompt_empty", ""),
        ({"image": "PHOTO", "prompt": "x" * 3000}, "prompt_too_long", ""),
        ({"image": "PHOTO", "prompt": "x", "mode": "loud"}, "invalid_request", "mode"),
        ({"image": "PHOTO", "prompt": "x", "colour": "red"}, "invalid_request", "colour"),
        ({"image": 3, "prompt": "x"}, "invalid_request", "image"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_failures_say_what_to_do(desk: Desk, photo: Path, arguments: dict[str, Any], code: str, step: str) -> None:
    words = told(call(desk, "segment", **{name: str(photo) if value == "PHOTO" else value for name, value in arguments.items()}))
    assert words.endswith(f"{code}]") and step in words and len(words) > 30
    assert not desk._chats, "nothing is kept of a question that failed"


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again(predictor: Predictor, photo: Path) -> None:
    tries: list[int] = []

    def load() -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise ModelLoadError("There is no model x.", next_step="Pull it.")
        return predictor

    desk = Desk(load)
    assert told(call(desk, "segment", image=str(photo), prompt="x")) == "There is no model x. Pull it. [model_load]"
    for _ in range(2):
        assert not call(desk, "segment", image=str(photo), prompt="x").is_error
    assert len(tries) == 2


def test_a_fault_tells_nothing_of_the_inside(desk: Desk, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "chat", lambda self, image: [][0])
    assert told(call(desk, "segment", image=str(photo), prompt="x")).endswith("[internal]")


def test_only_the_folders_that_were_named_are_read(predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.png").write_bytes(photo.read_bytes())
    (inside / "link.png").symlink_to(photo)
    desk = Desk(lambda: predictor, [inside])
    assert not call(desk, "segment", image="a.png", prompt="x").is_error, "a relative path begins there"
    for image in (str(photo), "../photo.png", str(inside / ".." / "photo.png"), "link.png", photo.as_uri(), "~/x.png"):
        words = told(call(desk, "segment", image=image, prompt="x"))
        assert words.endswith("[image_not_allowed]") and str(inside) in words


def test_a_missing_package_is_told_with_the_command_that_brings_it() -> None:
    need_package("mcp", "mcp")
    with pytest.raises(UsageError, match=r"no_such_package.*pip install 'lisaseg\[mcp\]'"):
        need_package("no_such_package", "mcp")


def test_an_unknown_tool_is_an_error_of_the_protocol(desk: Desk) -> None:
    async def ask(client: Client) -> None:
        with pytest.raises(MCPError, match="segment and ask_followup"):
            await client.call_tool("delete_everything", {})

    talk(desk, ask)
