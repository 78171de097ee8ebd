"""What can be said about a thing without reasoning: names, synonyms, definitions, place and size. Turned into training conversations here.

Everything random takes an explicit generator; the same generator gives the same conversation.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from importlib import resources

import numpy as np

from lisaseg import prompts
from lisaseg.chat import Conversation
from lisaseg.datasets.vocabulary import category_texts, load_vocabulary
from lisaseg.types import SEG_TEXT, Turn

DUMMY = np.zeros((1, 1), np.uint8)  # stands for "a mask belongs here" in a Turn; the real target travels as a tensor
LEAD_INS = ("the thing that is {g}", "something that is {g}", "{g}", "{g}", "{g}", "the one that is {g}")
DEFINITION_SENTENCES = (
    "Which one is {g}?",
    "Which object here is {g}?",
    "Can you find {g}?",
    "Where is {g}?",
    "What in this picture is {g}?",
    "I am looking for {g}.",
    "Something here is {g}. Which is it?",
    "Point at {g}.",
    "Show me {g}.",
)
DESCRIBE = ("Describe the picture.", "What is happening here?", "Describe this image in one sentence.", "What does the picture show?")
LISTING = ("What can you see?", "Which things are in the picture?", "List the objects in this image.")
ASK_PRESENT = ("Is there a {n} in the picture?", "Can you see a {n} here?", "Does the image show a {n}?")
EXPLAINED = (f"It is the {{name}} {SEG_TEXT}. It is {{g}}.", f"It is the {{name}} {SEG_TEXT}, {{g}}.")

_USED = re.compile(r"\b(used (?:to|for|in|by|as|with) .+|worn .+|eaten .+|that .+|which .+|for \w+ing .+)$")


@dataclass
class NounTexts:
    """All texts of one name. definitions are noun phrases; synonyms are names."""

    name: str
    synonyms: list[str] = field(default_factory=list)
    definitions: list[str] = field(default_factory=list)
    hypernyms: list[str] = field(default_factory=list)
    count: int = 0


@dataclass(frozen=True)
class Attribute:
    """Something that some things clearly have and others clearly have not, and ways to ask for the one that has it: (text, is_sentence)."""

    id: str
    yes: list[str]
    no: list[str]
    queries: list[tuple[str, bool]]


def _data(name: str) -> dict[str, object]:
    file = resources.files("lisaseg.datasets").joinpath(name)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class NounBook:
    """Names with their texts: the pool's categories, hand-written common nouns, WordNet's nouns.

    Args:
        wordnet_dir: see `load_vocabulary`. limit: number of WordNet nouns.
    """

    def __init__(self, wordnet_dir: str | None, limit: int = 6000) -> None:
        self.nouns: dict[str, NounTexts] = {}
        for text in category_texts().values():
            self.nouns[text.name] = NounTexts(text.name, list(text.synonyms), list(text.glosses), count=100)
        self.categories = list(self.nouns)
        for name, more in _data("category_definitions.json").items():
            if name in self.nouns:
                self.nouns[name].definitions += list(more)  # type: ignore[call-overload]
        for name, entry in _data("common_nouns.json").items():
            if name not in self.nouns and isinstance(entry, dict):
                self.nouns[name] = NounTexts(name, list(entry["synonyms"]), list(entry["glosses"]), count=60)
        self.common = [n for n in self.nouns if n not in set(self.categories)]
        for noun in load_vocabulary(wordnet_dir, limit):
            known = self.nouns.get(noun.name)
            if known is None:
                self.nouns[noun.name] = NounTexts(noun.name, list(noun.synonyms), [noun.gloss], list(noun.hypernyms[:3]), noun.count)
            elif noun.gloss not in known.definitions:
                known.hypernyms = list(noun.hypernyms[:3])
        implicit = _data("implicit_texts.json")
        self.implicit: dict[str, list[tuple[str, bool]]] = {n: [(t, s) for t, s in implicit.get(n, ())] for n in self.nouns}  # type: ignore[attr-defined]
        self.attributes = [Attribute(**entry) for entry in _data("attributes.json").get("attributes", ())]  # type: ignore[attr-defined]
        self._mentions: dict[str, list[str]] = {}
        self.rest = [n for n in self.nouns if n not in set(self.categories) and n not in set(self.common)]

    def add(self, name: str, synonyms: list[str], definitions: list[str]) -> None:
        """Add texts of a name, or a new name."""
        entry = self.nouns.setdefault(name, NounTexts(name))
        entry.synonyms += [s for s in synonyms if s not in entry.synonyms]
        entry.definitions += [d for d in definitions if d not in entry.definitions]

    def of(self, name: str) -> NounTexts:
        """The texts of a name; a name alone if nothing is known about it."""
        return self.nouns.get(name) or NounTexts(name)

    def mentioned(self, definition: str, name: str) -> list[str]:
        """Names that a definition of `name` speaks of ("what rides a wave" -> "wave"): the tempting wrong answers."""
        if definition not in self._mentions:
            words = [w.strip(".,;()'") for w in definition.lower().split()]
            spoken = dict.fromkeys([*(f"{a} {b}" for a, b in itertools.pairwise(words)), *words])
            singular = [w[:-1] for w in spoken if w.endswith("s")]
            self._mentions[definition] = [w for w in (*spoken, *singular) if w in self.nouns]
        return [w for w in self._mentions[definition] if w not in name.split() and w != name]

    def query_text(self, name: str, rng: np.random.Generator, p_definition: float = 0.6, p_implicit: float = 0.0) -> tuple[str, bool, str]:
        """One way to speak of `name`: (text, whether it is a whole sentence, kind)."""
        entry = self.of(name)
        if p_implicit and self.implicit.get(name) and rng.random() < p_implicit:
            text, is_sentence = prompts.choose(self.implicit[name], rng)
            return text, is_sentence, "implicit"
        draw = rng.random()
        if entry.definitions and draw < p_definition:
            return self.phrase(prompts.choose(entry.definitions, rng), rng)
        if entry.synonyms and draw > 0.8:
            return prompts.choose(entry.synonyms, rng), False, "synonym"
        return name, False, "category"

    @staticmethod
    def phrase(g: str, rng: np.random.Generator) -> tuple[str, bool, str]:
        """A definition in the words of a question: (text, whether it is a whole sentence, "gloss")."""
        used = _USED.search(g)
        if used and rng.random() < 0.3:  # only the clause that sets it apart
            return prompts.choose(("something ", "the thing ", "an object ", "what is "), rng) + used.group(1), False, "gloss"
        if rng.random() < 0.4:
            return prompts.choose(DEFINITION_SENTENCES, rng).format(g=g), True, "gloss"
        return prompts.choose(LEAD_INS, rng).format(g=g), False, "gloss"


def ask(text: str, is_sentence: bool, kind: str, rng: np.random.Generator) -> str:
    """Put a question around a text."""
    if is_sentence:
        return prompts.choose(prompts.SENTENCE_QUESTIONS, rng).format(text=text)
    options = prompts.NAME_QUESTIONS if kind in ("category", "synonym", "cutout") else prompts.PHRASE_QUESTIONS
    return prompts.choose(options, rng).format(text=text)


def segment_turn(book: NounBook, name: str, rng: np.random.Generator, p_definition: float, text: str | None = None, p_implicit: float = 0.0) -> Turn:
    """Ask for `name` (or for `text`, which means the same) and answer with its mask; sometimes with its definition as the explanation."""
    if text is None:
        text, is_sentence, kind = book.query_text(name, rng, p_definition, p_implicit)
    else:
        is_sentence, kind = False, "category"
    question = ask(text, is_sentence, kind, rng)
    definitions = book.of(name).definitions
    if definitions and rng.random() < 0.06:
        answer = prompts.choose(EXPLAINED, rng).format(name=name, g=prompts.choose(definitions, rng))
        return Turn(prompts.join(question, prompts.choose(prompts.EXPLAIN_SUFFIXES, rng)), answer, (DUMMY,))
    return Turn(question, prompts.ANSWER_NAMED.format(name=name), (DUMMY,))


def absent_turn(book: NounBook, name: str, rng: np.random.Generator, p_definition: float, p_implicit: float = 0.0) -> Turn:
    """Ask for something that is not there."""
    text, is_sentence, kind = book.query_text(name, rng, p_definition, p_implicit)
    return Turn(ask(text, is_sentence, kind, rng), prompts.NO_TARGET)


def presence_turn(name: str, present: bool, rng: np.random.Generator) -> Turn:
    """A yes/no question."""
    question = prompts.choose(ASK_PRESENT, rng).format(n=name)
    return Turn(question, f"Yes, there is a {name}." if present else f"No, there is no {name}.")


def listing_turn(names: list[str], rng: np.random.Generator) -> Turn:
    """What is in the picture, as a list of at most six names."""
    some = list(dict.fromkeys(names))[:6]
    text = some[0] if len(some) == 1 else ", ".join(some[:-1]) + " and " + some[-1]
    return Turn(prompts.choose(LISTING, rng), f"I can see: {text}.")


def caption_turn(captions: list[str], rng: np.random.Generator) -> Turn:
    """Describe the picture."""
    caption = prompts.choose(captions, rng).strip()
    return Turn(prompts.choose(DESCRIBE, rng), caption if caption.endswith(".") else f"{caption}.")


def place_phrases(name: str, masks: list[np.ndarray], k: int) -> list[str]:
    """Phrases that single out instance k of several of one name by place or size; none if nothing does so clearly. masks: (H, W) in {0, 1, 255}."""
    boxes = []
    for m in masks:
        ys, xs = np.nonzero(m == 1)
        boxes.append((xs.mean() / m.shape[1], ys.mean() / m.shape[0], len(xs)) if len(xs) else (0.5, 0.5, 0))
    x, y, a = zip(*boxes, strict=True)
    others = [i for i in range(len(masks)) if i != k]
    out = []
    if all(x[k] < x[i] - 0.05 for i in others):
        out += [f"the {name} on the left", f"the leftmost {name}"]
    if all(x[k] > x[i] + 0.05 for i in others):
        out += [f"the {name} on the right", f"the rightmost {name}"]
    if all(a[k] > 1.5 * a[i] for i in others):
        out += [f"the largest {name}", f"the biggest {name}"]
    if all(a[k] * 1.5 < a[i] for i in others):
        out.append(f"the smallest {name}")
    if all(y[k] < y[i] - 0.1 for i in others):
        out.append(f"the {name} at the top")
    if all(y[k] > y[i] + 0.1 for i in others):
        out.append(f"the {name} at the bottom")
    return out


def single(turn: Turn) -> Conversation:
    """A conversation of one turn."""
    return Conversation((turn,))


def group_by_name(names: list[str]) -> dict[str, list[int]]:
    """name -> positions."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, n in enumerate(names):
        groups[n].append(i)
    return groups
