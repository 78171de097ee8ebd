"""Made-up scenes: a 9 x 9 grid of noun vectors that looks to the language model like a picture, with questions about it.

A scene teaches choosing: which of the things here is meant by this definition? It needs no picture, so it can hold any noun that has a definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lisaseg.chat import Conversation
from lisaseg.prompts import ANSWER_NAMED, NO_TARGET, choose
from lisaseg.train.config import StageConfig
from lisaseg.train.noun_space import NounSpace
from lisaseg.train.texts import DUMMY, NounBook, absent_turn, ask, listing_turn, presence_turn, segment_turn, single
from lisaseg.types import Turn
from lisaseg.vlms.tiny_vision import TOKEN_GRID


@dataclass
class Scene:
    """names: what is in it, backgrounds first. layout (9, 9): which name fills a cell. targets: the name behind each `[SEG]`, in order."""

    names: list[str]
    layout: np.ndarray
    conversations: list[Conversation]
    targets: list[str]

    def noun_grid(self, space: NounSpace, rng: np.random.Generator) -> Tensor:
        """(81, 256): each cell a mixture of its own noun, its neighbour's and wrong guesses, as a real vision tower would give."""
        vectors = space(self.names)
        own = vectors[torch.from_numpy(self.layout.reshape(-1))]
        t = own.shape[0]
        wrong = torch.from_numpy(rng.standard_normal(own.shape).astype(np.float32))
        sure = torch.from_numpy(rng.uniform(0.35, 1.0, (t, 1)).astype(np.float32))
        other = vectors[torch.from_numpy(rng.integers(len(self.names), size=t))]
        leak = torch.from_numpy((rng.random((t, 1)) < 0.3) * rng.uniform(0, 0.5, (t, 1))).float()
        return sure * own + leak * (1 - sure) * other + 0.35 * (1 - sure) * F.normalize(wrong, dim=-1)


def _draw_names(book: NounBook, n: int, rng: np.random.Generator) -> list[str]:
    names: list[str] = []
    while len(names) < n:
        draw = rng.random()
        group = book.categories if draw < 0.4 else book.common if draw < 0.65 and book.common else book.rest
        # frequent nouns come first in `rest`: a square root pulls the draw towards them
        i = int(len(group) * rng.random() ** (2.0 if group is book.rest else 1.0))
        if group[i] not in names:
            names.append(group[i])
    return names


def make_scene(book: NounBook, config: StageConfig, rng: np.random.Generator) -> Scene:
    """Two backgrounds, two to seven things as rectangles, and `config.queries` conversations."""
    if book.attributes and rng.random() < config.p_attribute:
        return _attribute_scene(book, config, rng)
    names = _draw_names(book, 2 + int(rng.integers(2, 8)), rng)
    anchor, definition = _tempting(book, names, rng)
    layout = _layout(len(names), rng)
    seen = [names[k] for k in np.unique(layout)]
    conversations: list[Conversation] = []
    targets: list[str] = []
    for _ in range(config.queries):
        turn, name = _query(book, config, seen, rng, (anchor, definition) if anchor in seen else None)
        conversations.append(single(turn))
        targets += [name] if name else []
    return Scene(names, layout, conversations, targets)


def _layout(n: int, rng: np.random.Generator) -> np.ndarray:
    """Which of n names fills each of the 9 x 9 cells: the first two are grounds, the others rectangles on them."""
    g = TOKEN_GRID
    layout = np.zeros((g, g), np.int64)
    layout[int(rng.integers(2, g - 1)) :] = 1
    for k in range(2, n):
        h, w = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        y, x = int(rng.integers(0, g - h + 1)), int(rng.integers(0, g - w + 1))
        layout[y : y + h, x : x + w] = k
    return layout


def _query(book: NounBook, config: StageConfig, seen: list[str], rng: np.random.Generator, anchor: tuple[str, str] | None) -> tuple[Turn, str]:
    """One question about a scene that shows `seen`, and the name of its mask, "" if it has none. anchor: a name and a tempting definition."""
    draw = rng.random()
    if draw < config.p_absent:
        return absent_turn(book, _far_name(book, seen, rng), rng, config.p_definition, config.p_implicit / 2), ""
    if draw < config.p_absent + config.p_chat * 0.5:
        return _chat_turn(book, seen, rng), ""
    if anchor is not None and rng.random() < 0.4:
        text, is_sentence, kind = book.phrase(anchor[1], rng)
        return Turn(ask(text, is_sentence, kind, rng), ANSWER_NAMED.format(name=anchor[0]), (DUMMY,)), anchor[0]
    name = seen[int(rng.integers(len(seen)))]
    if rng.random() > 0.06:
        return segment_turn(book, name, rng, config.p_definition, p_implicit=config.p_implicit), name
    return _hypernym_turn(book, name, seen, rng), name


def _attribute_scene(book: NounBook, config: StageConfig, rng: np.random.Generator) -> Scene:
    """A scene where one thing alone has the attribute that is asked for, or, as often as things are absent, none has."""
    attribute = choose(book.attributes, rng)
    others = [attribute.no[int(i)] for i in rng.permutation(len(attribute.no))[: int(rng.integers(3, 9))]]
    name = "" if rng.random() < config.p_absent else choose(attribute.yes, rng)
    names = [*others[:2], *([name] if name else []), *others[2:]]
    layout = _layout(len(names), rng)
    seen = [names[k] for k in np.unique(layout)]
    conversations: list[Conversation] = []
    targets: list[str] = []
    for k in range(config.queries):
        if k % 2 == 0 and (not name or name in seen):
            text, is_sentence = choose(attribute.queries, rng)
            question = ask(text, is_sentence, "implicit", rng)
            conversations.append(single(Turn(question, ANSWER_NAMED.format(name=name), (DUMMY,)) if name else Turn(question, NO_TARGET)))
            targets += [name] if name else []
            continue
        turn, other = _query(book, config, seen, rng, None)
        conversations.append(single(turn))
        targets += [other] if other else []
    return Scene(names, layout, conversations, targets)


def _tempting(book: NounBook, names: list[str], rng: np.random.Generator) -> tuple[str, str]:
    """Choose a thing of the scene and a definition of it, and add to the scene up to two things that the definition speaks of.

    "what one stands on to ride a wave" must not be answered with the wave. Returns (name, definition), ("", "") if no name has one. Adds to `names`.
    """
    for i in rng.permutation(np.arange(2, len(names))):
        name = names[int(i)]
        definitions = book.of(name).definitions
        if definitions:
            definition = choose(definitions, rng)
            spoken = [n for n in book.mentioned(definition, name) if n not in names]
            names += [spoken[int(k)] for k in rng.permutation(len(spoken))[:2]]
            return name, definition
    return "", ""


def _far_name(book: NounBook, seen: list[str], rng: np.random.Generator) -> str:
    """A name that is not in the scene and shares no word, synonym or class with it."""
    taken = {w for n in seen for w in (*n.split(), *book.of(n).synonyms, *book.of(n).hypernyms[:1])}
    for _ in range(20):
        name = _draw_names(book, 1, rng)[0]
        entry = book.of(name)
        if name not in seen and not taken & {*name.split(), *entry.synonyms, *entry.hypernyms[:1]}:
            return name
    return name


def _hypernym_turn(book: NounBook, name: str, seen: list[str], rng: np.random.Generator) -> Turn:
    """Ask by the class ("the animal") if only one thing here belongs to it; else by name."""
    for word in book.of(name).hypernyms[:2]:
        if sum(word in book.of(n).hypernyms for n in seen) == 1:
            return Turn(ask(word, False, "category", rng), f"It is the {name} [SEG].", segment_turn(book, name, rng, 0.0).masks)
    return segment_turn(book, name, rng, 1.0)


def _chat_turn(book: NounBook, seen: list[str], rng: np.random.Generator) -> Turn:
    if rng.random() < 0.5:
        return listing_turn([seen[int(i)] for i in rng.permutation(len(seen))], rng)
    present = rng.random() < 0.5
    return presence_turn(seen[int(rng.integers(len(seen)))] if present else _far_name(book, seen, rng), present, rng)
