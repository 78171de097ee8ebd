"""Questions and answers of LISA's training around a picture's queries. All draws come from an explicit generator.

The templates are the reference's. One thing differs: an article that would be doubled ("the the wheel of the car") is written once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lisaseg.prompts import NO_TARGET, UNNAMED_ANSWERS, choose
from lisaseg.types import SEG_TEXT, Query, Turn

SHORT_QUESTIONS = (
    "Can you segment the {text} in this image?",
    "Please segment the {text} in this image.",
    "What is {text} in this image? Please respond with segmentation mask.",
    "What is {text} in this image? Please output segmentation mask.",
)
LONG_QUESTIONS = ("{text} Please respond with segmentation mask.", "{text} Please output segmentation mask.")
EXPLAIN_SUFFIXES = (
    "Please output segmentation mask and explain why.",
    "Please output segmentation mask and explain the reason.",
    "Please output segmentation mask and give some explanation.",
)

_DOUBLED = re.compile(r"\bthe (?=(?:the|an?) )", re.IGNORECASE)


def conversations(queries: Sequence[Query], limit: int, rng: np.random.Generator, *, explanation: float | None = 0.1) -> tuple[tuple[Turn, ...], ...]:
    """Independent conversations about one picture, one turn each.

    Args:
        queries: of one picture. A reasoning query may be asked in each of its wordings; of any other one wording is drawn.
        limit: most questions.
        rng: the source of every draw.
        explanation: for queries with an explanation, how often the answer is the explanation alone, without a mask; else half of the answers
            are followed by it. One draw a picture. None: explanations are not used.

    Returns:
        At most `limit` conversations; an answer holds one `[SEG]` for each mask of its turn, none if nothing fits.
    """
    wordings = [(query, text) for query in queries for text in _texts(query, rng)]
    if len(wordings) > limit:
        wordings = [wordings[int(k)] for k in rng.permutation(len(wordings))[:limit]]
    style = "plain"
    if explanation is not None:  # drawn for every picture, so that other draws do not depend on what it holds
        alone, after = rng.random() < explanation, rng.random() < 0.5
        style = "explain" if alone else "after" if after else "plain"
    return tuple((_turn(query, text, style if query.explanation else "plain", rng),) for query, text in wordings)


def _texts(query: Query, rng: np.random.Generator) -> tuple[str, ...]:
    texts = (query.text, *query.rephrasings)
    return texts if query.kind == "reasoning" else (choose(texts, rng),)


def _turn(query: Query, text: str, style: str, rng: np.random.Generator) -> Turn:
    question = choose(LONG_QUESTIONS, rng).format(text=text) if query.is_sentence else short_question(choose(SHORT_QUESTIONS, rng), text)
    answer = choose(UNNAMED_ANSWERS, rng).format(seg=_segs(len(query.masks)))
    if style == "explain":
        return Turn(text, query.explanation)
    if not query.masks:
        return Turn(question, NO_TARGET)
    if style == "after":
        return Turn(f"{text} {choose(EXPLAIN_SUFFIXES, rng)}", f"{answer} {query.explanation}", query.masks)
    return Turn(question, answer, query.masks)


def short_question(template: str, text: str) -> str:
    """A phrase in a template, lower case, with one article at most."""
    return _DOUBLED.sub("", template.format(text=text.lower()))


def _segs(n: int) -> str:
    return SEG_TEXT if n < 2 else f"{', '.join([SEG_TEXT] * (n - 1))} and {SEG_TEXT}"
