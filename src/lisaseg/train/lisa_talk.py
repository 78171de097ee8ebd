"""lisa-tiny's way of asking and answering ("named" templates): what people really type, and answers that say what was found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lisaseg.prompts import (
    ANSWER_NAMED,
    ANSWER_UNNAMED,
    EXPLAIN_SUFFIXES,
    NAME_QUESTIONS,
    NO_TARGET,
    PHRASE_QUESTIONS,
    SENTENCE_QUESTIONS,
    choose,
    join,
)
from lisaseg.types import SEG_TEXT, Query, Turn


def named_conversations(
    queries: Sequence[Query], limit: int, rng: np.random.Generator, *, explanation: float | None = 0.1
) -> tuple[tuple[Turn, ...], ...]:
    """Independent conversations about one picture, one turn each, in the words of `lisaseg.prompts`.

    Args:
        queries: of one picture; one or several wordings of each are asked.
        limit: most questions.
        rng: the source of every draw.
        explanation: how often a query with an explanation is asked for it, too; None: never.

    Returns:
        At most `limit` conversations. An answer names its target where the query does ("It is the dog [SEG]."), and refuses where nothing fits.
    """
    wordings = [(query, text) for query in queries for text in (query.text, *query.rephrasings)]
    if len(wordings) > limit:
        wordings = [wordings[int(k)] for k in sorted(rng.permutation(len(wordings))[:limit])]
    return tuple((_turn(query, text, rng, explanation),) for query, text in wordings)


def _turn(query: Query, text: str, rng: np.random.Generator, explanation: float | None) -> Turn:
    templates = SENTENCE_QUESTIONS if query.is_sentence else NAME_QUESTIONS if query.kind in ("category", "synonym", "absent") else PHRASE_QUESTIONS
    question, explains = choose(templates, rng).format(text=text), rng.random()
    if not query.masks:
        return Turn(question, NO_TARGET)
    answer = (ANSWER_NAMED if query.name else ANSWER_UNNAMED).format(name=query.name)
    answer = answer.replace(SEG_TEXT, " and ".join([SEG_TEXT] * len(query.masks)))
    if query.explanation and explanation is not None and explains < explanation:
        return Turn(join(text, choose(EXPLAIN_SUFFIXES, rng)), f"{answer} {query.explanation}", query.masks)
    return Turn(question, answer, query.masks)
