"""A predictor that answers by script: for the plumbing of evaluation, where the true model's opinion would only be in the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from lisaseg.model.memory import Setting
from lisaseg.types import SEG_TEXT, Answer, Segment

NO = "There is no such thing in this picture."


def answer_with(shape: tuple[int, int], masks: Sequence[np.ndarray], phrase: str = "", raw: str | None = None) -> Answer:
    """An answer whose masks all have one phrase; without masks a refusal, or `raw`."""
    segments = tuple(Segment.from_mask(k, mask, (0, 0), phrase=phrase) for k, mask in enumerate(masks))
    if segments:
        return Answer("", " ".join([SEG_TEXT] * len(segments)), "masks", segments, shape)
    return Answer(raw or NO, raw or NO, "no_mask_requested" if raw else "no_target", (), shape)


class Scripted:
    """`ask_batch` over a function (rgb, question, mode) -> Answer; `calls` holds what was asked together."""

    name = "scripted"

    def __init__(self, reply: Callable[..., Answer]) -> None:
        self.reply = reply
        self.calls: list[list[tuple[np.ndarray, str]]] = []
        self.model = SimpleNamespace(config=SimpleNamespace(refusal_bias=0.5))
        self.setting = Setting()

    def ask_batch(self, pairs: Sequence[tuple[np.ndarray, str]], *, mode: str = "auto", **_: Any) -> list[Answer]:
        self.calls.append(list(pairs))
        return [self.reply(rgb, text, mode) for rgb, text in pairs]
