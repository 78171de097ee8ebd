"""What a model has to beat. Baselines answer through the same call as a model and see what it sees: the picture and the instruction, never the truth.

baseline:whole-image        everything is the target
baseline:centre-box         a box in the middle of the picture, of one fixed size
baseline:largest-object     the largest box of a detector (YOLOv3-tiny), filled with an ellipse; the instruction is not read
baseline:detect-then-choose boxes of the same detector; a sentence encoder (MiniLM) chooses the class that is closest to the instruction
baseline:name-then-segment  two stages, as the paper's "LLaVA + OVSeg": lisa-tiny's language model names the target in words, a segmenter that
                            has never read the instruction (its vision stage, prompted by the noun vector of that name) draws it
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lisaseg.errors import UsageError
from lisaseg.eval.summary import plain_name
from lisaseg.imaging import fit_longest_side, open_image
from lisaseg.types import SEG_TEXT, Answer, Mode, Segment

if TYPE_CHECKING:
    from torch import Tensor

    from lisaseg.predictor import Predictor

PREFIX = "baseline:"
NAMES = ("whole-image", "centre-box", "largest-object", "detect-then-choose", "name-then-segment")
CENTRE_SHARE = 0.6  # of each side; this and FLOOR were chosen on 239 training queries, see docs/evaluation.md
FLOOR = 0.2  # a class score below this is no detection
ASKED = re.compile(r"^what is (?P<text>.*) in this image\?", re.IGNORECASE | re.DOTALL)
SUFFIX = re.compile(r"\s*please (?:output|respond with) (?:the )?segmentation mask\.?\s*$", re.IGNORECASE)


class Baseline(ABC):
    """Turns a function from (rgb, instruction) to (phrase, mask) into answers; a mask of None is a refusal."""

    name = ""

    @abstractmethod
    def draw(self, rgb: np.ndarray, text: str) -> tuple[str, np.ndarray | None]:
        """uint8 `(H, W, 3)` and the instruction without template words -> what it is, and a bool `(H, W)` mask or None."""

    def ask_batch(self, pairs: Sequence[tuple[Any, str]], *, mode: Mode = "auto") -> list[Answer]:
        """One answer a pair; the mode is not heard."""
        answers = []
        for image, text in pairs:
            picture = open_image(image)
            phrase, mask = self.draw(picture.rgb, bare(text))
            answers.append(_answer(phrase, mask, picture.rgb, text, PREFIX + self.name))
        return answers


class WholeImage(Baseline):
    """Every pixel is the target: cIoU is then the share of the data that is target."""

    name = "whole-image"

    def draw(self, rgb: np.ndarray, text: str) -> tuple[str, np.ndarray | None]:
        return "the picture", np.ones(rgb.shape[:2], dtype=bool)


class CentreBox(Baseline):
    """A box in the middle whose sides are `share` of the picture's."""

    name = "centre-box"

    def __init__(self, share: float = CENTRE_SHARE) -> None:
        self.share = share

    def draw(self, rgb: np.ndarray, text: str) -> tuple[str, np.ndarray | None]:
        mask = np.zeros(rgb.shape[:2], dtype=bool)
        top, left = (round(side * (1 - self.share) / 2) for side in rgb.shape[:2])
        mask[top : rgb.shape[0] - top, left : rgb.shape[1] - left] = True
        return "the middle", mask


class Detector:
    """YOLOv3-tiny as it was trained on COCO. Call it with uint8 `(H, W, 3)` -> list of (class name, score, box XYXY in pixels), best first.

    Args:
        heads: pixels (1, 3, 416, 416) in [0, 1] -> boxes (K, 4) cx cy w h in [0, 1] of the canvas, and scores (K, 80).
        classes: the 80 names.
        canvas: side of the square in pixels.
    """

    def __init__(self, heads: Callable[[Tensor], tuple[Tensor, Tensor]], classes: Sequence[str], canvas: int = 416) -> None:
        self.heads, self.classes, self.canvas = heads, list(classes), canvas

    def __call__(self, rgb: np.ndarray) -> list[tuple[str, float, tuple[float, float, float, float]]]:
        import torch

        canvas, placement = fit_longest_side(rgb, self.canvas)
        with torch.inference_mode():
            boxes, scores = self.heads(torch.from_numpy(canvas).permute(2, 0, 1)[None].float() / 255)
        zoom_y, zoom_x = (original / resized for original, resized in zip(placement.original_hw, placement.resized_hw, strict=True))
        found = []
        for (cx, cy, w, h), row in zip((boxes * self.canvas).tolist(), scores, strict=True):
            best = int(row.argmax())
            if float(row[best]) >= FLOOR:
                box = ((cx - w / 2) * zoom_x, (cy - h / 2) * zoom_y, (cx + w / 2) * zoom_x, (cy + h / 2) * zoom_y)
                found.append((self.classes[best], float(row[best]), box))
        return sorted(found, key=lambda one: -one[1])


class LargestObject(Baseline):
    """The largest detected box, as an ellipse; the whole picture if nothing is detected."""

    name = "largest-object"

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def draw(self, rgb: np.ndarray, text: str) -> tuple[str, np.ndarray | None]:
        found = [(f"the {name}", ellipse(box, *rgb.shape[:2])) for name, _, box in self.detector(rgb)]
        return max(found, key=lambda one: int(one[1].sum()), default=("the picture", np.ones(rgb.shape[:2], dtype=bool)))


class DetectThenChoose(Baseline):
    """Of the detected classes the one whose name is closest to the instruction, all its boxes as ellipses; the whole picture if nothing is detected.

    Args:
        detector: boxes.
        embed: texts -> vectors (n, D), compared by their cosine.
    """

    name = "detect-then-choose"

    def __init__(self, detector: Detector, embed: Callable[[list[str]], Tensor]) -> None:
        self.detector, self.embed = detector, embed

    def draw(self, rgb: np.ndarray, text: str) -> tuple[str, np.ndarray | None]:
        found = self.detector(rgb)
        names = sorted({name for name, _, _ in found})
        if not names:
            return "the picture", np.ones(rgb.shape[:2], dtype=bool)
        from torch.nn.functional import normalize

        vectors = normalize(self.embed([text, *(f"the object is {name}" for name in names)]), dim=-1)
        chosen = names[int((vectors[1:] @ vectors[0]).argmax())]
        return f"the {chosen}", np.logical_or.reduce([ellipse(box, *rgb.shape[:2]) for name, _, box in found if name == chosen])


class NameThenSegment(Baseline):
    """lisa-tiny taken apart: its language model says in words what the target is; its vision stage finds that word. No `[SEG]`, no seg head.

    A name outside of the segmenter's vocabulary is read by its last word ("coffee mug" -> "mug"); if that is unknown too, nothing is drawn.
    """

    name = "name-then-segment"

    def __init__(self, predictor: Predictor) -> None:
        vlm: Any = predictor.model.vlm
        if not hasattr(getattr(vlm, "vision", None), "neck"):
            raise UsageError(f"{predictor.name} has no segmenter that takes names.", next_step="This baseline needs lisa-tiny.")
        self.predictor, self.vectors = predictor, vlm.vision.neck.nouns
        self.nouns = {plain_name(noun): k for k, noun in enumerate(predictor.model.config.nouns)}

    def draw(self, rgb: np.ndarray, text: str) -> tuple[str, np.ndarray | None]:
        raise NotImplementedError  # the language model answers in batches

    def ask_batch(self, pairs: Sequence[tuple[Any, str]], *, mode: Mode = "auto") -> list[Answer]:
        """Names first, for all together, then masks; where the language model refuses or names nothing, its answer stands."""
        config, pictures = self.predictor.model.config, [open_image(image) for image, _ in pairs]
        kept = config.candidates, config.min_score
        config.candidates, config.min_score = 0, 0.0  # the words alone: nothing that masks say may help to choose them
        try:
            said = self.predictor.ask_batch([(picture.rgb, text) for picture, (_, text) in zip(pictures, pairs, strict=True)])
        finally:
            config.candidates, config.min_score = kept
        answers = []
        for answer, picture, encoded, (_, text) in zip(said, pictures, self.predictor.encode(pictures), pairs, strict=True):
            phrase = answer.segments[0].phrase if answer.segments else ""
            if phrase:
                answer = _answer(phrase, self._segment(encoded, phrase), picture.rgb, text, PREFIX + self.name)
            answers.append(answer)
        return answers

    def _segment(self, encoded: Any, phrase: str) -> np.ndarray | None:
        import torch

        name = plain_name(phrase)
        place = self.nouns.get(name, self.nouns.get(name.rpartition(" ")[2]))
        if place is None:
            return None
        model = self.predictor.model
        with torch.inference_mode():
            features = model.encode_mask_features(encoded.context)
            index = torch.zeros(1, dtype=torch.long, device=self.vectors.device)
            logits, _ = model.decode_masks(features, self.vectors[place][None].float(), index)
            return encoded.placement.undo(logits.cpu())[0].gt(0).numpy()  # type: ignore[no-any-return]


def bare(text: str) -> str:
    """The instruction without the template words of an evaluation question."""
    text = SUFFIX.sub("", text)
    match = ASKED.match(text)
    return (match["text"] if match else text).strip() or text


def ellipse(box: Sequence[float], height: int, width: int) -> np.ndarray:
    """Bool `(H, W)`: the ellipse that touches the sides of a box XYXY in pixels; never empty while its centre lies in the picture."""
    x0, y0, x1, y1 = box
    rx, ry = max((x1 - x0) / 2, 0.5), max((y1 - y0) / 2, 0.5)
    ys, xs = np.ogrid[:height, :width]
    return ((xs + 0.5 - (x0 + x1) / 2) / rx) ** 2 + ((ys + 0.5 - (y0 + y1) / 2) / ry) ** 2 <= 1.0


def _answer(phrase: str, mask: np.ndarray | None, rgb: np.ndarray, text: str, model: str) -> Answer:
    if mask is None:
        return Answer(phrase, phrase, "no_mask_requested", (), rgb.shape[:2], text, model, rgb)
    raw = f"It is {phrase} {SEG_TEXT}."
    start = len(f"It is {phrase} ")
    segment = Segment.from_mask(0, mask, (start, start + len("[mask 1]")), phrase=phrase)
    return Answer(raw.replace(SEG_TEXT, "[mask 1]"), raw, "masks", (segment,), rgb.shape[:2], text, model, rgb)
