"""Which label a mask gets, where the model says a phrase and the tool knows a list."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_CHARS = 80


def label_for(labels: Sequence[str], phrase: str, instruction: str) -> str:
    """The label that phrase or instruction is or names, else the first; without labels the phrase or the instruction itself."""
    for text in (phrase, instruction):
        named = [label for label in labels if _names(label, text)]
        if named:
            return max(named, key=len)
    return labels[0] if labels else without_article(phrase or instruction)[:MAX_CHARS]


def without_article(phrase: str) -> str:
    """The phrase as a label: "the dog" becomes "dog"."""
    return re.sub(r"^(?:the|an?)\s+(?=\S)", "", phrase.strip(), flags=re.IGNORECASE)


def _names(label: str, text: str) -> bool:
    """Whether the label stands in the text as whole words; where scripts write no blanks between them, anywhere."""
    words, sought = (" ".join(["", *re.findall(r"\w+", part.casefold()), ""]) for part in (text, label))
    return bool(sought.strip()) and (sought in words or (not label.isascii() and label.casefold() in text.casefold()))
