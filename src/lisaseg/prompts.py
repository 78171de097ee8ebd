"""Words around a query: question and answer templates. Everything random takes an explicit generator.

The question templates are LISA's (reference `utils/utils.py`) plus plainer ones that people really type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from lisaseg.types import SEG_TEXT, Mode

T = TypeVar("T")

NAME_QUESTIONS = (
    "Can you segment the {text} in this image?",
    "Please segment the {text} in this image.",
    "What is {text} in this image? Please respond with segmentation mask.",
    "What is {text} in this image? Please output segmentation mask.",
    "Where is the {text}?",
    "Segment the {text}.",
    "{text}",
    "Show me the {text}.",
    "Find the {text} in the picture.",
)
PHRASE_QUESTIONS = (
    "What is {text} in this image? Please output segmentation mask.",
    "Please segment {text}.",
    "Segment {text} in this image.",
    "Where is {text}?",
    "{text}",
    "Find {text}.",
)
SENTENCE_QUESTIONS = ("{text} Please respond with segmentation mask.", "{text} Please output segmentation mask.", "{text}", "{text}")
EXPLAIN_SUFFIXES = ("Please output segmentation mask and explain why.", "Please output segmentation mask and explain the reason.", "Explain why.")

# The templates of evaluation and of mode="segment" (reference `utils/dataset.py`, ReasonSeg evaluation).
SEGMENT_PHRASE = "What is {text} in this image? Please output segmentation mask."
SEGMENT_SENTENCE = "{text} Please output segmentation mask."

ANSWER_NAMED = f"It is the {{name}} {SEG_TEXT}."
ANSWER_UNNAMED = f"It is {SEG_TEXT}."
# LISA's own answers (reference `utils/utils.py`); {seg} may stand for several masks.
UNNAMED_ANSWERS = ("It is {seg}.", "Sure, {seg}.", "Sure, it is {seg}.", "Sure, the segmentation result is {seg}.", "{seg}.")
NEUTRAL_QUESTION = SEGMENT_PHRASE.replace("{text} ", "")  # asks for nothing in particular: what is answered then is habit
NAMED_OPENING = "It is the"  # what stands before the name
FORCED_OPENING = "It is"  # put before a [SEG] that the user insists on
NO_TARGET = "There is no such thing in this picture."
NO_TARGET_PREFIX = "There is no"


def choose(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of the options, uniformly."""
    return options[int(rng.integers(len(options)))]


def join(text: str, suffix: str) -> str:
    """Two sentences; a full stop is put between them if the first has no closing mark."""
    text = text.rstrip()
    return f"{text}{'' if text.endswith(('.', '?', '!', ':', '。', '？', '！', '؟')) else '.'} {suffix}"


def looks_like_sentence(text: str) -> bool:
    """Whether the text stands by itself (a question, a command, a statement) and is not a noun phrase to be named in a template."""
    words = text.lower().split()
    if not words:
        return False
    return text.rstrip().endswith(("?", ".", "!")) or words[0] in _OPENERS or len(words) > 14


_OPENERS = frozenset(
    (
        *("where", "what", "which", "who", "whose", "when", "why", "how", "is", "are", "do", "does", "can", "could", "would", "will", "if"),
        *("please", "segment", "show", "find", "mark", "highlight", "outline", "point", "select", "i", "we", "you"),
    )
)


DOUBTED_MODES = frozenset(("auto", "explain"))  # in which a mask that scores too little becomes a refusal
MASK_MODES = frozenset(("segment", "explain", "instances", "explain_instances"))  # in which an answer without a mask is asked for again
# LISA++ (arXiv 2312.17240) tells the model its task in a sentence behind the question; these are the sentences of its training.
TASKS: dict[str, str] = {
    "segment": "Generate a mask for semantic segmentation. Focus on identifying the category as a whole; do not distinguish between individual "
    "instances within the same category.",
    "instances": "Generate instance segmentation masks. Each countable object within the same category should have a separate mask. Ignore "
    "uncountable categories for individual masking.",
    "explain": "Provide a textual answer and generate a semantic segmentation mask. Focus on categorizing the entire class without separating "
    "individual instances.",
    "explain_instances": "Respond with text and provide instance segmentation mask predictions. Different instances within the same countable "
    "category should be identified with separate masks. A single mask suffices for uncountable categories.",
    "text": "Respond to the question using text only. Do not generate any segmentation masks.",
    "reason": "Answer the question with a step-by-step explanation.",
}


def with_mode(text: str, mode: Mode, style: str = "lisa") -> str:
    """The instruction as it is put to the model for a mode. "auto" leaves it as it is, and so does "text" in the style "lisa"; "lisa_plus" adds the
    sentence of the task (`TASKS`) once."""
    if style == "lisa_plus" and mode in TASKS:
        task = TASKS[mode]
        return text if text.rstrip().endswith(task) else join(_question(text, mode), task)
    return _question(text, mode)


def _question(text: str, mode: Mode) -> str:
    if mode in ("explain", "explain_instances"):
        return join(text, EXPLAIN_SUFFIXES[0])
    if mode not in MASK_MODES or "segment" in text.lower():
        return text
    return SEGMENT_SENTENCE.format(text=join(text, "").rstrip()) if looks_like_sentence(text) else SEGMENT_PHRASE.format(text=text)


def evaluation_question(text: str, is_sentence: bool) -> str:
    """ReasonSeg's evaluation question."""
    return (SEGMENT_SENTENCE if is_sentence else SEGMENT_PHRASE).format(text=text)
