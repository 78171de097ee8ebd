"""Conversations: turns, roles, chat templates, and where each `[SEG]` sits.

A `Conversation` is about one picture and immutable; asking returns a longer one, undo a shorter one. `render` turns it into pieces for the tokenizer:
("special", token), ("text", template text), ("image", ""), ("user", what the user wrote), ("answer", what the assistant said), ("answer_end", token).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lisaseg.errors import InstructionError, UsageError
from lisaseg.types import SEG_TEXT, Turn

Piece = tuple[str, str]
MAX_TURNS = 20


@dataclass(frozen=True)
class ChatTemplate:
    """How a family of models writes a conversation, as pieces.

    head: before everything. image: around the picture, which stands in front of the first instruction. user, assistant: what opens each role.
    between: after a complete turn. end: the token that ends an answer. around: what every answer begins and ends with; part of the answer.
    """

    name: str
    end: str
    user: tuple[Piece, ...]
    assistant: tuple[Piece, ...]
    head: tuple[Piece, ...] = ()
    image: tuple[Piece, ...] = (("image", ""), ("text", "\n"))
    between: tuple[Piece, ...] = ()
    around: tuple[str, str] = ("", "")


CHATML = ChatTemplate(
    "chatml",
    end="<|im_end|>",
    user=(("special", "<|im_start|>"), ("text", "user\n")),
    assistant=(("special", "<|im_end|>"), ("text", "\n"), ("special", "<|im_start|>"), ("text", "assistant\n")),
    between=(("text", "\n"),),
)
# The templates of the published LISA checkpoints. The picture stands between <im_start> and <im_end>, except in "..._bare" (LISA++).
_WRAPPED: tuple[Piece, ...] = (("special", "<im_start>"), ("image", ""), ("special", "<im_end>"), ("text", "\n"))
_V1_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
LLAVA_V1 = ChatTemplate(
    "llava_v1",
    end="</s>",
    user=(("text", "USER: "),),
    assistant=(("text", " ASSISTANT:"),),
    head=(("special", "<s>"), ("text", f"{_V1_SYSTEM} ")),
    image=_WRAPPED,
    around=(" ", ""),
)
LLAVA_LLAMA_2 = ChatTemplate(
    "llava_llama_2",
    end="</s>",
    user=(),
    assistant=(("text", " [/INST]"),),
    head=(("special", "<s>"), ("text", f"[INST] <<SYS>>\n{_LLAMA_2_SYSTEM}\n<</SYS>>\n\n")),
    image=_WRAPPED,
    between=(("special", "<s>"), ("text", "[INST] ")),
    around=(" ", " "),
)
_BARE = [replace(t, name=f"{t.name}_bare", image=(("image", ""), ("text", "\n"))) for t in (LLAVA_V1, LLAVA_LLAMA_2)]
TEMPLATES = {t.name: t for t in (CHATML, LLAVA_V1, LLAVA_LLAMA_2, *_BARE)}


def get_template(name: str) -> ChatTemplate:
    """The chat template of that name; UsageError if unknown."""
    if name not in TEMPLATES:
        raise UsageError(f"Unknown chat template {name!r}.", next_step=f"Use one of: {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


@dataclass(frozen=True, eq=False)
class Conversation:
    """Turns about one picture; the last one may be open (no answer yet)."""

    turns: tuple[Turn, ...] = field(default=())

    def ask(self, instruction: str) -> Conversation:
        """A longer conversation with an open turn."""
        if len(self.turns) >= MAX_TURNS:
            raise InstructionError(
                f"This chat has {len(self.turns)} turns; the limit is {MAX_TURNS}.", next_step="Start a new chat.", code="too_many_turns"
            )
        if self.turns and self.turns[-1].answer is None:
            raise UsageError("The last turn has no answer yet.", next_step="Answer or undo it first.")
        return replace(self, turns=(*self.turns, Turn(instruction)))

    def answer(self, turn: Turn) -> Conversation:
        """The same conversation with its open turn replaced by an answered one."""
        return replace(self, turns=(*self.turns[:-1], turn))

    def undo(self) -> Conversation:
        """The conversation without its last turn; unchanged if empty."""
        return replace(self, turns=self.turns[:-1])

    def read_as(self, words: Mapping[str, Sequence[str]]) -> Conversation:
        """The conversation with all instructions as `read_as` gives them."""
        return replace(self, turns=tuple(replace(turn, instruction=read_as(turn.instruction, words)) for turn in self.turns)) if words else self

    @property
    def n_seg(self) -> int:
        """Number of `[SEG]` in all answers."""
        return sum(turn.answer.count(SEG_TEXT) for turn in self.turns if turn.answer)


def read_as(text: str, words: Mapping[str, Sequence[str]]) -> str:
    """An instruction in which whole words are read as another, whatever their case: {"person": ["woman"]} -> "the person's hat". Words with a hyphen
    ("man-made") stay. words: what is read -> the words or phrases, in lower case, that are read so; where two fit, the longer one counts."""
    table = {word: read for read, some in words.items() for word in some}
    if not table:
        return text
    pattern = r"(?<![\w-])(" + "|".join(map(re.escape, sorted(table, key=len, reverse=True))) + r")(?![\w-])"
    return re.sub(pattern, lambda match: table.get(match[1].lower(), match[1]), text, flags=re.IGNORECASE)


def render(conversation: Conversation, template: ChatTemplate) -> list[Piece]:
    """Pieces of the whole conversation; an open last turn ends where the answer begins."""
    pieces: list[Piece] = list(template.head)
    for k, turn in enumerate(conversation.turns):
        pieces += template.between if k else ()
        pieces += template.user
        pieces += template.image if k == 0 else ()
        pieces.append(("user", turn.instruction))
        pieces += template.assistant
        if turn.answer is not None:
            before, after = template.around
            pieces += [("answer", f"{before}{turn.answer}{after}"), ("answer_end", template.end)]
    return pieces


_PHRASE = re.compile(r"(?:^|[\s,.;:!?])((?:the|a|an|his|her|their|its|this|that)\s+(?:[\w'-]+\s+){0,3}[\w'-]+|[\w'-]+)[\s,:]*$", re.IGNORECASE)
_BRACKETED = re.compile(r"\[\s*\[SEG\]\s*\]")
_EMPTY_PHRASES = {"is", "it", "sure", "they", "are", "and", "here", "mask", "result"}


def spans(raw_text: str) -> tuple[str, list[tuple[int, int]], list[str]]:
    """Raw answer -> (text for people, [start, end) of each `[mask k]` in it, the phrase in front of each).

    LISA++ writes "the larger of the two[ [SEG] ]" in dialogue: the outer brackets are dropped.
    """
    raw_text = _BRACKETED.sub(SEG_TEXT, raw_text)
    text, places, phrases = "", [], []
    for k, part in enumerate(raw_text.split(SEG_TEXT)):
        if k:
            if text and not text[-1].isspace() and text[-1] not in "([":
                text += " "
            match = _PHRASE.search(text.rstrip())
            phrase = match.group(1) if match else ""
            label = f"[mask {k}]"
            places.append((len(text), len(text) + len(label)))
            phrases.append("" if phrase.lower() in _EMPTY_PHRASES else phrase)
            text += label
        text += part
    return text, places, phrases
