"""What goes in and what comes out, as pydantic models: the contract in `/openapi.json` is made of them.

`Answer` is `lisaseg.Answer.to_dict()` (which the command line prints too) with the envelope of the service around it; a test holds the two together.
Requests forbid unknown fields: a misspelled option must not be ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lisaseg.types import MaskFormat, Mode, Status

ExportFormat = Literal[
    "json", "coco", "masks", "overlay", "zip", "jsonl", "coco-polygons", "labelme", "yolo", "png", "png-index", "reasonseg", "labelstudio", "cvat"
]  # and thereby all of lisaseg.formats.FORMATS; a test holds that
Id = Annotated[str, Field(max_length=80, pattern=r"^[A-Za-z0-9_-]+$")]
MAX_HISTORY_CHARS = 8000
MAX_HISTORY_SEGMENTS = 64


class Request(BaseModel):
    """A request body."""

    model_config = ConfigDict(extra="forbid")


class ImageInput(Request):
    """A picture inside of a JSON body."""

    type: Literal["base64", "url"]
    value: str = Field(description="Base64 of the file, with or without `data:...;base64,` in front; or an https URL, where the server allows it.")


class ImageUpload(Request):
    """Body of `POST /v1/images`."""

    image: ImageInput


class HistoryTurn(Request):
    """An earlier turn about the same picture."""

    prompt: str
    raw_text: str = Field(max_length=MAX_HISTORY_CHARS, description="`raw_text` of the answer, with `[SEG]`.")
    mode: Mode = "auto"

    @model_validator(mode="after")
    def _few_segments(self) -> HistoryTurn:
        if self.raw_text.count("[SEG]") > MAX_HISTORY_SEGMENTS:
            raise ValueError(f"raw_text holds more than {MAX_HISTORY_SEGMENTS} [SEG]")
        return self


History = Annotated[list[HistoryTurn], Field(default_factory=list, max_length=20)]


class Ask(Request):
    """What every question may say."""

    mode: Mode = Field(
        "auto",
        description="auto: the model decides; segment: a mask or a stated no_target; explain: mask and reason; text: words only. The others are "
        "LISA++'s: `modes` of /v1/limits names those that the model has.",
    )
    mask_format: MaskFormat = "rle"
    max_new_tokens: int | None = Field(default=None, ge=1, le=100_000, description="Length limit; the server has a limit of its own.")
    stream: bool = False


class SegmentRequest(Ask):
    """Body of `POST /v1/segment`: one question, no state."""

    prompt: str
    image: ImageInput | None = None
    image_id: Id | None = None
    history: History

    @model_validator(mode="after")
    def _one_image(self) -> SegmentRequest:
        if self.image is not None and self.image_id is not None:
            raise ValueError("give image or image_id, not both")
        return self


class SessionRequest(Request):
    """Body of `POST /v1/sessions`."""

    image_id: Id
    history: History


class MessageRequest(Ask):
    """Body of `POST /v1/sessions/{id}/messages`."""

    prompt: str


class RetryRequest(Ask):
    """Body of `POST /v1/sessions/{id}/retry`; the mode of the turn unless another is given."""

    mode: Mode | None = None  # type: ignore[assignment]


class ExportRequest(Request):
    """Body of `POST /v1/export`."""

    answers: list[dict[str, Any]] = Field(min_length=1, max_length=100, description="Answers as the server gave them, masks as RLE.")
    to: ExportFormat
    image_id: Id | None = Field(default=None, description="The picture; only json, coco, masks and zip do without.")
    labels: list[Annotated[str, Field(max_length=200)]] | None = Field(
        default=None, max_length=6400, description="Names of the masks, instead of the phrases: one for all, or one for each in order."
    )
    name: str = Field(
        default="answer", max_length=100, description="Start of the file names; other characters than letters, digits, - and _ become -."
    )


class ChatImage(BaseModel):
    """A picture in the OpenAI shape."""

    url: str = Field(description="data:image/...;base64,... or an https URL, where the server allows it.")


class ChatPart(BaseModel):
    """A part of a message: `text`, or `image_url`; null with `uuid` names an uploaded picture."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ChatImage | None = None
    uuid: Id | None = None


class ChatMessage(BaseModel):
    """A message of the OpenAI shape."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ChatPart]


class ChatOptions(Request):
    """What the OpenAI shape has no word for."""

    mode: Mode = "auto"
    mask_format: MaskFormat = "rle"


class ChatRequest(BaseModel):
    """Body of `POST /v1/chat/completions`; other fields of OpenAI's are accepted and have no effect."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=64)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: Literal[1] | None = None
    lisaseg: ChatOptions = ChatOptions()


class CocoRle(BaseModel):
    """A mask as COCO compressed run lengths."""

    size: tuple[int, int] = Field(description="Height, width.")
    counts: str


class PolygonMask(BaseModel):
    """A mask as COCO's polygons along the edges of its pixels; filled by area they give it back. Holes are joined to their outlines by lines."""

    size: tuple[int, int] = Field(description="Height, width.")
    polygons: list[list[int]] = Field(description="[x1, y1, x2, y2, ...] each.")


class PngMask(BaseModel):
    """A mask as a PNG of 0 and 255."""

    size: tuple[int, int] = Field(description="Height, width.")
    png: str = Field(description="Base64.")


class Warning(BaseModel):
    """Something the sender should know."""

    code: str
    message: str


class Segment(BaseModel):
    """One mask of an answer."""

    index: int
    phrase: str = Field(description="The words that the mask belongs to, or empty.")
    span: tuple[int, int] = Field(description="Place of `[mask k]` in `text`, in code points, end exclusive.")
    box_xyxy: tuple[int, int, int, int]
    area: int = Field(description="Pixels; 0 = empty.")
    score: float | None = Field(description="The model's estimate of the IoU of the mask.")
    mask: CocoRle | PolygonMask | PngMask | None


class ImageRef(BaseModel):
    """The picture of an answer; `id` is null if it was sent with the question."""

    id: str | None = None
    width: int
    height: int


class Answer(BaseModel):
    """What the model said. See `lisaseg.Answer`."""

    id: str
    object: Literal["answer"]
    created: int
    model: str
    instruction: str
    mode: Mode
    image: ImageRef
    text: str
    raw_text: str
    status: Status
    segments: list[Segment]
    usage: dict[str, int]
    timings_ms: dict[str, float]
    warnings: list[Warning]


class Image(BaseModel):
    """An uploaded picture."""

    id: str
    object: Literal["image"] = "image"
    width: int
    height: int
    format: str
    bytes: int
    sha256: str
    normalized: list[str]
    warnings: list[Warning]
    created: int
    expires_at: int


class Turn(BaseModel):
    """A turn of a session; `answer` is null if it came with `history`."""

    prompt: str
    mode: Mode
    raw_text: str
    answer: Answer | None


class Session(BaseModel):
    """A conversation about a picture."""

    id: str
    object: Literal["session"] = "session"
    created: int
    expires_at: int
    model: str
    image: ImageRef
    turns: list[Turn]


class Undone(BaseModel):
    """What `undo` took away."""

    removed: Turn
    turns_left: int


class ErrorDetail(BaseModel):
    """One failure."""

    message: str
    type: str
    code: str
    param: str | None
    request_id: str
    help_url: str


class Error(BaseModel):
    """Body of every failure."""

    error: ErrorDetail
