"""The value objects that every part speaks: what is asked (`Query`, `Turn`, `Sample`) and what is answered (`Segment`, `Answer`).

All are frozen and validated on construction. Masks of people's data are uint8 with 0 background, 1 target, 255 ignore; masks of answers are bool.
Sizes are (height, width) in pixels; boxes are XYXY in pixels, exclusive at the right and bottom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lisaseg.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SEG_TEXT = "[SEG]"  # the token behind which a mask stands, as written in raw answers

Status = Literal["masks", "no_target", "no_mask_requested", "truncated"]
Mode = Literal["auto", "segment", "explain", "text", "instances", "explain_instances", "reason"]
MODES: tuple[Mode, ...] = ("auto", "segment", "explain", "text")
MaskFormat = Literal["rle", "polygon", "png", "none"]  # of masks in JSON, see lisaseg.formats.mask_forms
PLUS_MODES: tuple[Mode, ...] = ("instances", "explain_instances", "reason")  # of LISA++ checkpoints only
BACKGROUND, TARGET, IGNORE = 0, 1, 255


def _check_mask(mask: np.ndarray, where: str) -> None:
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(
            f"{where}: a mask must be uint8 of shape (H, W), got {mask.dtype} of shape {mask.shape}.",
            next_step="Convert it, one array a mask.",
        )
    extra = set(np.unique(mask).tolist()) - {BACKGROUND, TARGET, IGNORE}
    if extra:
        raise DataError(
            f"{where}: mask values must be 0 (background), 1 (target) or 255 (ignore), found {sorted(extra)[:5]}.",
            next_step="Map the values before building the sample.",
        )


@dataclass(frozen=True, eq=False)
class Query:
    """One thing that can be asked about a picture, and its true masks.

    Attributes:
        text: name, phrase or sentence, without template words; not empty.
        masks: one `(H, W)` uint8 array in {0, 1, 255} for each `[SEG]` that the answer must hold; empty = nothing in the picture fits.
        is_sentence: a whole sentence or question; False = a noun phrase that needs a template around it.
        name: short name of the target for the answer ("dog"), or "" if none is known.
        explanation: why this is the target, or "".
        rephrasings: other texts that mean the same.
        kind: where the text comes from ("category", "synonym", "gloss", "referring", "part", "absent", "reasoning", ...), for mixtures and reports.
    """

    text: str
    masks: tuple[np.ndarray, ...] = ()
    is_sentence: bool = False
    name: str = ""
    explanation: str = ""
    rephrasings: tuple[str, ...] = ()
    kind: str = "category"

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise DataError("A query has an empty text.", next_step="Give it a name, phrase or sentence.")
        for k, mask in enumerate(self.masks):
            _check_mask(mask, f"Query {self.text!r}, mask {k}")


@dataclass(frozen=True, eq=False)
class Turn:
    """One round of a conversation: what the user said and what the assistant answered.

    The number of `[SEG]` in `answer` equals `len(masks)`; a turn that is not answered yet has `answer=None`.
    """

    instruction: str
    answer: str | None = None
    masks: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        n = 0 if self.answer is None else self.answer.count(SEG_TEXT)
        if n != len(self.masks):
            raise DataError(
                f"Turn {self.instruction[:60]!r}: the answer holds {n} [SEG] but {len(self.masks)} masks are given.",
                next_step="Give one mask for each [SEG].",
            )


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture with all that a data set knows about it; no tokenizer, no randomness.

    Attributes:
        id: unique within its data set.
        image: path of the picture, a PIL image, or uint8 `(H, W, 3)`.
        queries: things to ask; templates are put around them later.
        conversation: ready turns (captions, visual questions), in order.
        absent: names that are verified not to be in the picture.
        source: name of the data set.
    """

    id: str
    image: Path | np.ndarray | Image
    queries: tuple[Query, ...] = ()
    conversation: tuple[Turn, ...] = ()
    absent: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, eq=False)
class Segment:
    """One mask of an answer with its place in the text.

    Attributes:
        index: 0-based; the text shows it as `[mask index+1]`.
        mask: bool `(H, W)` at the size of the picture (after EXIF rotation).
        box: XYXY in pixels, all 0 for an empty mask.
        area: number of pixels in the mask.
        score: the model's estimate of the mask's IoU in [0, 1], or None if it has none.
        span: [start, end) of `[mask k]` in `Answer.text`.
        phrase: the words that the mask belongs to ("the dog"), or "".
    """

    index: int
    mask: np.ndarray = field(repr=False)
    box: tuple[int, int, int, int]
    area: int
    span: tuple[int, int]
    score: float | None = None
    phrase: str = ""

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_:
            raise DataError(
                f"Segment {self.index}: mask must be bool (H, W), got {self.mask.dtype} {self.mask.shape}.",
                next_step="Cut the logits at 0 first.",
            )

    @classmethod
    def from_mask(cls, index: int, mask: np.ndarray, span: tuple[int, int], score: float | None = None, phrase: str = "") -> Segment:
        """Build a segment and measure its box and area; `mask` is bool `(H, W)`."""
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1) if len(ys) else (0, 0, 0, 0)
        return cls(index, mask, box, int(mask.sum()), span, score, phrase)


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model said about one picture in one turn.

    Attributes:
        text: for people, with `[mask 1]` where the model emitted `[SEG]`.
        raw_text: as generated, with `[SEG]`.
        status: "masks", "no_target" (asked, but nothing fits), "no_mask_requested" (a text answer), or "truncated" (cut at the length limit).
        segments: one for each `[SEG]` of `raw_text`, in order.
        image_size: (height, width) of the picture.
        image: uint8 `(H, W, 3)` RGB of the picture as the model saw it upright; used by `plot` and `save`.
        instruction, model: what was asked, and of whom.
        timings_ms: wall time by stage: encode, generate, mask.
        usage: prompt_tokens, completion_tokens, image_tokens.
        warnings: (code, message) pairs, for example from opening the picture.
    """

    text: str
    raw_text: str
    status: Status
    segments: tuple[Segment, ...]
    image_size: tuple[int, int]
    instruction: str = ""
    model: str = ""
    image: np.ndarray | None = field(default=None, repr=False)
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.raw_text.count(SEG_TEXT) != len(self.segments):
            raise DataError(
                f"An answer with {self.raw_text.count(SEG_TEXT)} [SEG] must have as many segments, got {len(self.segments)}.",
                next_step="Decode one mask for each [SEG].",
            )
        for segment in self.segments:
            if segment.mask.shape != self.image_size:
                raise DataError(
                    f"Segment {segment.index} has shape {segment.mask.shape}, the picture {self.image_size}.",
                    next_step="Resize the logits to the picture before cutting.",
                )

    @property
    def masks(self) -> np.ndarray:
        """All masks, bool `(N, H, W)`; N may be 0."""
        if not self.segments:
            return np.zeros((0, *self.image_size), dtype=bool)
        return np.stack([segment.mask for segment in self.segments])

    def to_dict(self, mask_format: MaskFormat = "rle") -> dict[str, Any]:
        """JSON-ready form; masks as COCO compressed RLE (`{"size": [H, W], "counts": str}`) or in another form of `lisaseg.formats.mask_forms`."""
        from lisaseg.formats.answer import answer_to_dict

        return answer_to_dict(self, mask_format)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Answer:
        """What `to_dict` gave, masks in any form but "none"; without the picture (`image` is None). DataError names the field that is wrong."""
        from lisaseg.formats.answer import answer_from_dict

        return answer_from_dict(data)

    def to_coco(self) -> dict[str, Any]:
        """A COCO document with one image and one annotation for each segment."""
        from lisaseg.formats.answer import answer_to_coco

        return answer_to_coco(self)

    def plot(self) -> Image:
        """The picture with numbered masks and a legend, as a PIL image; needs `image`."""
        from lisaseg.drawing import draw_answer

        return draw_answer(self)

    def _repr_png_(self) -> bytes | None:
        """How notebooks show an answer: as `plot` draws it; None (then they print it) without `image`."""
        if self.image is None:
            return None
        from lisaseg.formats.pictures import png_bytes

        return png_bytes(np.asarray(self.plot()), compress_level=3)

    def save(self, folder: str | Path, stem: str = "answer") -> list[Path]:
        """Write `<stem>.overlay.png`, `<stem>.mask<k>.png` (0/255) and `<stem>.json`; return the paths. Files are written aside, then renamed."""
        from lisaseg.formats.answer import save_answer

        return save_answer(self, Path(folder), stem)
