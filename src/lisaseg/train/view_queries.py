"""Conversations about a view: what is asked about a real picture while training, all of it without reasoning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lisaseg.chat import Conversation
from lisaseg.prompts import ANSWER_NAMED
from lisaseg.train.config import StageConfig
from lisaseg.train.texts import (
    DUMMY,
    NounBook,
    absent_turn,
    ask,
    caption_turn,
    group_by_name,
    listing_turn,
    place_phrases,
    presence_turn,
    segment_turn,
    single,
)
from lisaseg.train.views import View
from lisaseg.types import SEG_TEXT, Turn


@dataclass
class Asked:
    """Conversations of one view. targets (M, 104, 104) uint8 and noun_targets, one for each `[SEG]` ("" = no single noun means this mask)."""

    conversations: list[Conversation]
    targets: Tensor
    noun_targets: list[str]


def choose_targets(view: View, n: int, rng: np.random.Generator) -> list[int]:
    """At most n target masks of a view, larger ones a little more often."""
    m = len(view.info.names)
    if m <= n:
        return list(range(m))
    area = (view.targets == 1).flatten(1).sum(1).double().numpy() + 20.0
    p = area**0.25
    return [int(i) for i in rng.choice(m, size=n, replace=False, p=p / p.sum())]


class ViewQueries:
    """Makes the conversations of a view by the recipe's shares."""

    def __init__(self, book: NounBook, config: StageConfig) -> None:
        self.book, self.config = book, config
        self.attributes = [(set(a.yes), set(a.no), a) for a in book.attributes] if config.p_attribute else []

    def make(self, view: View, rng: np.random.Generator) -> Asked:
        """At most `config.queries` conversations with a mask, and absent things and chat on top; at least one."""
        conversations: list[Conversation] = []
        targets: list[Tensor] = []
        nouns: list[str] = []
        for k in choose_targets(view, self.config.queries, rng):
            asked = self._segment(view, k, rng)
            if asked is None:
                continue
            turn, target, noun = asked
            turns: tuple[Turn, ...] = (turn,)
            if self.config.p_chat and view.info.captions and rng.random() < 0.08:  # the chat goes on after a mask
                turns = (turn, caption_turn(view.info.captions, rng))
            conversations.append(Conversation(turns))
            targets.append(target)
            nouns.append(noun)
        for turn, target, name in self._by_attribute(view, rng):
            conversations.append(single(turn))
            targets.append(target)
            nouns.append(name)
        if view.info.absent:
            for _ in range(int(rng.binomial(self.config.queries, self.config.p_absent))):
                name = view.info.absent[int(rng.integers(len(view.info.absent)))]
                conversations.append(single(absent_turn(self.book, name, rng, self.config.p_definition, self.config.p_implicit / 2)))
        if rng.random() < 4 * self.config.p_chat or not conversations:
            conversations.append(single(self._chat(view, rng)))
        stacked = torch.stack(targets) if targets else torch.zeros(0, 104, 104, dtype=torch.uint8)
        return Asked(conversations, stacked, nouns)

    def _segment(self, view: View, k: int, rng: np.random.Generator) -> tuple[Turn, Tensor, str] | None:
        """Ask for one of several by its place or size, or for all of the name; None where the recipe leaves this out."""
        info = view.info
        name = info.names[k]
        groups = group_by_name(info.instance_names)
        if len(groups.get(name, ())) > 1 and rng.random() < self.config.p_referring:  # one alone is not "the largest" or "on the left"
            members = groups[name]
            i = int(rng.integers(len(members)))
            phrases = place_phrases(name, [view.instances[m].numpy() for m in members], i)
            if phrases:
                phrase = phrases[int(rng.integers(len(phrases)))]
                return Turn(ask(phrase, False, "referring", rng), f"It is {phrase} {SEG_TEXT}.", (DUMMY,)), view.instances[members[i]], ""
        if self.config.p_category < 1 and rng.random() >= self.config.p_category:
            return None
        text = info.texts[k] if info.kinds[k] == "attribute" else None
        return segment_turn(self.book, name, rng, self.config.p_definition, text, self.config.p_implicit), view.targets[k], name

    def _by_attribute(self, view: View, rng: np.random.Generator) -> Iterator[tuple[Turn, Tensor, str]]:
        """At most one question by an attribute that one thing here surely has and all others surely have not."""
        info = view.info
        places = {name: k for k, name in enumerate(info.names) if info.kinds[k] == "category"}
        if not self.attributes or len(info.scope) < 2 or len(places) < 2 or rng.random() > self.config.p_attribute:
            return
        present = set(places)
        fitting = [a for yes, no, a in self.attributes if len(present & yes) == 1 and present - yes <= no]
        if fitting:
            attribute = fitting[int(rng.integers(len(fitting)))]
            (name,) = present & set(attribute.yes)
            text, is_sentence = attribute.queries[int(rng.integers(len(attribute.queries)))]
            question = ask(text, is_sentence, "implicit", rng)
            yield Turn(question, ANSWER_NAMED.format(name=name), (DUMMY,)), view.targets[places[name]], name

    def _chat(self, view: View, rng: np.random.Generator) -> Turn:
        draw = rng.random()
        if view.info.captions and draw < 0.5:
            return caption_turn(view.info.captions, rng)
        if view.info.names and draw < 0.75:
            return listing_turn([view.info.names[int(i)] for i in rng.permutation(len(view.info.names))], rng)
        if view.info.absent and rng.random() < 0.5:
            return presence_turn(view.info.absent[int(rng.integers(len(view.info.absent)))], False, rng)
        if view.info.names:
            return presence_turn(view.info.names[int(rng.integers(len(view.info.names)))], True, rng)
        return Turn("Hello.", "Hello! Ask me about the picture.")
