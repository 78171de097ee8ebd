"""What an assistant sees: two tools, their results and their failures. Where pictures come from and who answers is a `Backend`'s business.

A result holds, in this order: words for people, the picture with numbered masks, and the answer as JSON text for clients that know no structured
content; beside them the same answer as structured content, with a schema. A failure is a tool error that says what to do: the assistant reads it.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from mcp.server import Server, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ContentBlock,
    ImageContent,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel, ConfigDict, Field

from lisaseg import __version__
from lisaseg.apps.console import mask_facts, printable
from lisaseg.apps.server.bodies import check
from lisaseg.apps.server.catalogue import ApiError, from_lisaseg
from lisaseg.apps.server.logs import log, where
from lisaseg.apps.server.schemas import Answer as AnswerSchema
from lisaseg.apps.server.schemas import CocoRle
from lisaseg.apps.server.schemas import Segment as SegmentSchema
from lisaseg.errors import LisaSegError
from lisaseg.types import Answer, Mode

OVERLAY_SIDE = 1024  # pixels; what an assistant looks at, never a mask: those are exact, at the size of the picture
ABOUT = (
    "Answers questions about one picture in words and in pixels: `segment` gives an answer and a mask for every [mask k] in it, `ask_followup` goes "
    "on about the same picture. Coordinates are pixels of the upright picture; boxes are x1, y1, x2, y2, exclusive at the right and bottom."
)


class Question(BaseModel):
    """What both tools take."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description="What to find or to explain: a question, a sentence or a noun phrase, for example `the thing one drinks from`.")
    mode: Mode = Field(
        default="auto",
        description="auto: the model decides; segment: a mask or a stated no_target; explain: mask and reason; text: words only. "
        "The others are for LISA++ models.",
    )
    masks: Literal["rle", "none"] = Field(default="rle", description="rle: masks as COCO run lengths; none: boxes only, a much shorter result.")


class SegmentArguments(Question):
    """Arguments of `segment`."""

    image: str = Field(min_length=1)


class FollowupArguments(Question):
    """Arguments of `ask_followup`."""

    session_id: str = Field(max_length=80, description="`session_id` of an earlier result.")


class ToolSegment(SegmentSchema):
    """One mask of an answer."""

    mask: CocoRle | None


class ToolAnswer(AnswerSchema):
    """What the model said."""

    segments: list[ToolSegment]  # type: ignore[assignment]
    session_id: str = Field(description="Goes on with this conversation, in `ask_followup`.")


class Backend(Protocol):
    """Who answers. Both methods may raise LisaSegError and ApiError.

    Attributes:
        image_help: what `image` may be.
    """

    image_help: str

    async def segment(self, arguments: SegmentArguments, request: Any) -> CallToolResult:
        """Ask about a new picture. request: of Starlette, or None."""
        ...

    async def ask_followup(self, arguments: FollowupArguments, request: Any) -> CallToolResult:
        """Ask about the picture of a session."""
        ...


def build_server(backend: Backend) -> Server[Any]:
    """The MCP server around a backend, for any transport."""
    tools = describe(backend.image_help)

    async def list_tools(ctx: ServerRequestContext[Any, Any], params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=tools)

    async def call_tool(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
        arguments, request = params.arguments or {}, ctx.request
        try:
            if params.name == "segment":
                return await backend.segment(check(arguments, SegmentArguments), request)
            if params.name == "ask_followup":
                return await backend.ask_followup(check(arguments, FollowupArguments), request)
        except (ApiError, LisaSegError) as error:
            return failure(error, request)
        except Exception as error:  # the last net: its words may hold what a user wrote
            log.error("unexpected %s", type(error).__name__, extra={"where": where(error)})
            return failure(ApiError("internal"), request)
        raise MCPError(INVALID_PARAMS, f"There is no tool of that name; there are {' and '.join(tool.name for tool in tools)}.")

    return Server("lisaseg", version=__version__, title="lisaseg", instructions=ABOUT, on_list_tools=list_tools, on_call_tool=call_tool)


def describe(image_help: str) -> list[Tool]:
    """The tools with their schemas."""
    output = ToolAnswer.model_json_schema(mode="serialization")
    new, more = (_input(model) for model in (SegmentArguments, FollowupArguments))
    new["properties"]["image"]["description"] = image_help
    harmless = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    start = "Find what a sentence means in a picture: answers in words and marks every thing that the answer names with a pixel-exact mask."
    on = "Ask more about the picture of an earlier `segment`; the model reads the conversation so far."
    return [
        Tool(name="segment", title="Segment by a sentence", description=start, input_schema=new, output_schema=output, annotations=harmless),
        Tool(name="ask_followup", title="Ask a follow-up", description=on, input_schema=more, output_schema=output, annotations=harmless),
    ]


def _input(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    for value in schema["properties"].values():
        value.pop("title", None)
    return schema


def result(answer: Answer, data: Mapping[str, Any], session_id: str, masks: str) -> CallToolResult:
    """An answer as the result of a tool; draws, so it belongs in a thread.

    Args:
        answer: with its picture.
        data: the same as the service sends it, see `server.schemas.Answer`.
        session_id: of its conversation.
        masks: "rle" or "none".
    """
    segments = data["segments"] if masks == "rle" else [{**segment, "mask": None} for segment in data["segments"]]
    whole = ToolAnswer.model_validate({**data, "segments": segments, "session_id": session_id}).model_dump(mode="json")
    content: list[ContentBlock] = [TextContent(text=_told(answer, session_id))]
    if answer.segments:
        content.append(ImageContent(data=base64.b64encode(_overlay(answer)).decode(), mime_type="image/jpeg"))
    content.append(TextContent(text=json.dumps(whole, ensure_ascii=False)))
    return CallToolResult(content=content, structured_content=whole)


def failure(error: ApiError | LisaSegError, request: Any = None) -> CallToolResult:
    """A tool error: what was wrong, what to do, and the code of `docs/api.md`."""
    if isinstance(error, LisaSegError):
        told, code = str(error), from_lisaseg(error).code
        code = error.code if code == "internal" else code
    else:
        told, code = error.message, error.code
    if request is not None:
        request.scope["state"]["code"] = code
    return CallToolResult(content=[TextContent(text=f"{told} [{code}]")], is_error=True)


def _told(answer: Answer, session_id: str) -> str:
    lines = [answer.text or f"({answer.status})"]
    if answer.status == "no_target":
        lines.append("(nothing in the picture fits)")
    lines += [", ".join(fact for fact in mask_facts(segment, None) if fact) for segment in answer.segments]
    lines += [f"warning: {message} [{code}]" for code, message in answer.warnings]
    if answer.status == "truncated":
        lines.append("warning: the answer was cut at the length limit [truncated]")
    return printable("\n".join([*lines, f"session_id: {session_id}"]))


def _overlay(answer: Answer) -> bytes:
    sheet = answer.plot()
    sheet.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=85)
    return file.getvalue()
