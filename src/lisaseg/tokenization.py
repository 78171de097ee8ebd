"""Ids in and out. User text can never become a special token: it is encoded with special tokens switched off, whatever it spells.

A rendered conversation (`lisaseg.chat`) is a list of pieces; every piece is encoded on its own, so the place of the picture, of every `[SEG]`
and of every supervised token is known by construction and never searched for in a string.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lisaseg.errors import InstructionError, ModelLoadError
from lisaseg.types import SEG_TEXT

if TYPE_CHECKING:
    from lisaseg.chat import Piece

MAX_INSTRUCTION_CHARS = 2000
IGNORED = -100  # label of a token that is not supervised
_CLOSING = ".,;:!?)]}\"'"


def clean_instruction(text: object, limit: int = MAX_INSTRUCTION_CHARS) -> str:
    """Make an instruction safe to encode: NFC, control characters and lone surrogates dropped, outer blanks stripped.

    Raises:
        InstructionError: not a string or nothing left (`prompt_empty`), or longer than `limit` characters (`prompt_too_long`, with both counts).
    """
    if not isinstance(text, str):
        raise InstructionError(
            f"The instruction must be a string, got {type(text).__name__}.", next_step="Pass the question as text.", code="prompt_empty"
        )
    if len(text) > 20 * limit:  # before any work on it
        raise _too_long(len(text), limit)
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs")).strip()
    if len(text) > 4 * limit:  # composing shortens by less; its time grows with the square of a run of combining marks
        raise _too_long(len(text), limit)
    text = unicodedata.normalize("NFC", text).strip()
    if not any(unicodedata.category(c)[0] not in "ZC" for c in text):
        raise InstructionError("The instruction is empty.", next_step="Ask something about the picture.", code="prompt_empty")
    if len(text) > limit:
        raise _too_long(len(text), limit)
    return text


def _too_long(length: int, limit: int) -> InstructionError:
    return InstructionError(
        f"The instruction has {length:,} characters; the limit is {limit:,}.", next_step="Shorten it and ask again.", code="prompt_too_long"
    )


@dataclass(frozen=True)
class Encoded:
    """One encoded conversation.

    ids: token ids, the picture as `n_image_tokens` copies of the image id. labels: the same with IGNORED where nothing is learned.
    prefix: number of leading ids that end with the picture's slot (shared by all conversations about it).
    """

    ids: list[int]
    labels: list[int]
    prefix: int


class Tokenizer(Protocol):
    """What the rest of lisaseg needs of a tokenizer. seg_id: id of `[SEG]`. image_id: placeholder id of one image token."""

    seg_id: int
    image_id: int

    def plain(self, text: str) -> list[int]:
        """Encode text; never yields a special token."""
        ...

    def special(self, token: str) -> int:
        """Id of a template token."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Generated ids -> text, `[SEG]` where that token stands and only there."""
        ...

    def encode(self, pieces: list[Piece], n_image_tokens: int) -> Encoded:
        """Pieces of a rendered conversation -> ids and labels."""
        ...


class TextTokenizer:
    """A `tokenizers.Tokenizer` with the added tokens of a model.

    Args:
        folder: folder with `tokenizer.json`.
        seg_id: id of `[SEG]`. image_id: placeholder id of one image token.
    """

    def __init__(self, folder: Path, seg_id: int, image_id: int) -> None:
        from tokenizers import Tokenizer

        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ModelLoadError(f"{path} is missing.", next_step="Pull the model again: `lisaseg models pull`.", code="tokenizer_missing")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # special tokens spelled in a text are plain text
        self.seg_id, self.image_id = seg_id, image_id

    def plain(self, text: str) -> list[int]:
        """Encode text; never yields a special token."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    def special(self, token: str) -> int:
        """Id of a template token such as `<|im_end|>`."""
        if token == SEG_TEXT:
            return self.seg_id
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ModelLoadError(
                f"The tokenizer does not know {token}.", next_step="Pull the model again: `lisaseg models pull`.", code="tokenizer_wrong"
            )
        return int(found)

    def decode(self, ids: list[int]) -> str:
        """Generated ids -> text, `[SEG]` where that token stands; a `[SEG]` spelled with ordinary tokens is shown as `(SEG)`."""
        out: list[str] = []
        run: list[int] = []

        def flush() -> None:
            if run:
                out.append(self._tokenizer.decode(run, skip_special_tokens=True).replace(SEG_TEXT, "(SEG)"))
                run.clear()

        for token in ids:
            if token == self.seg_id:
                flush()
                spaced = not out or out[-1][-1:].isspace()
                out.append(SEG_TEXT if spaced else f" {SEG_TEXT}")
            elif token < self.seg_id or token > max(self.seg_id, self.image_id):
                run.append(token)
        flush()
        return "".join(out)

    def encode(self, pieces: list[Piece], n_image_tokens: int) -> Encoded:
        """Pieces of a rendered conversation -> ids and labels; exactly one picture slot."""
        ids: list[int] = []
        labels: list[int] = []
        prefix = 0
        for kind, value in pieces:
            if kind == "image":
                if prefix:
                    raise InstructionError("A conversation has two picture slots.", next_step="Start a new chat for another picture.", code="usage")
                new = [self.image_id] * n_image_tokens
            elif kind in ("special", "answer_end"):
                new = [self.special(value)]
            elif kind == "answer":
                new = self._answer(value)
            else:  # template text or what the user wrote: the same rule
                new = self.plain(value)
            ids += new
            labels += new if kind in ("answer", "answer_end") else [IGNORED] * len(new)
            if kind == "image":
                prefix = len(ids)
        return Encoded(ids, labels, prefix)

    def _answer(self, text: str) -> list[int]:
        ids: list[int] = []
        for k, part in enumerate(text.split(SEG_TEXT)):
            if k:
                ids.append(self.seg_id)
            # the space before [SEG] belongs to the token: "the dog [SEG]" is "the dog" + [SEG]
            part = part[:-1] if part.endswith(" ") and k < text.count(SEG_TEXT) else part
            ids += self.plain(part) if part else []
        return ids


class SentencePieceTokenizer:
    """The tokenizer of the published LISA checkpoints, id for id.

    They were trained with sentencepiece behind two rules that today's tokenizer libraries do not keep: text is cut at added tokens and each part is
    encoded on its own (so it gets a dummy space in front), and white space next to `[SEG]`, `<im_start>` and `<im_end>` is dropped. Neighbouring
    pieces of text are one part: where template ends and instruction begins makes no difference to the ids.

    Args:
        model_file: `tokenizer.model`.
        added: added tokens and their ids; must hold `[SEG]`.
        image_id: placeholder id of one image token.
    """

    def __init__(self, model_file: Path, added: Mapping[str, int], image_id: int) -> None:
        from sentencepiece import SentencePieceProcessor

        if not Path(model_file).is_file():
            raise ModelLoadError(
                f"{model_file} is missing.", next_step="Fetch the checkpoint again, with its tokenizer files.", code="tokenizer_missing"
            )
        try:
            self._model = SentencePieceProcessor(model_file=str(model_file))
        except (RuntimeError, OSError) as error:
            raise ModelLoadError(f"{model_file} is damaged: {error}.", next_step="Fetch it again.", code="tokenizer_wrong") from error
        size = self._model.vocab_size()
        if SEG_TEXT not in added or sorted(added.values()) != list(range(size, size + len(added))):
            raise ModelLoadError(
                f"The added tokens {dict(added)} do not follow the {size} pieces of {model_file}, or {SEG_TEXT} is not among them.",
                next_step="Use tokenizer.model and added_tokens.json of one checkpoint.",
                code="tokenizer_wrong",
            )
        self._added = dict(added)
        self._control = {self._model.id_to_piece(i): i for i in range(size) if self._model.is_control(i) or self._model.is_unknown(i)}
        self.seg_id, self.image_id = self._added[SEG_TEXT], image_id

    def plain(self, text: str) -> list[int]:
        """Encode text; never yields a special token."""
        return self._model.encode(text) if text else []  # type: ignore[no-any-return]

    def special(self, token: str) -> int:
        """Id of a template token such as `</s>` or `<im_start>`."""
        found = self._added.get(token, self._control.get(token))
        if found is None:
            raise ModelLoadError(
                f"The tokenizer does not know {token}.", next_step="Fetch the checkpoint again, with its tokenizer files.", code="tokenizer_wrong"
            )
        return found

    def decode(self, ids: list[int]) -> str:
        """Generated ids -> text, `[SEG]` where that token stands; a `[SEG]` spelled with ordinary tokens is shown as `(SEG)`."""
        runs: list[list[int]] = [[]]
        for token in ids:
            if token == self.seg_id:
                runs.append([])
            elif 0 <= token < self._model.vocab_size() and token not in self._control.values():
                runs[-1].append(token)
        out = ""
        for k, run in enumerate(runs):
            text = self._model.decode(run).replace(SEG_TEXT, "(SEG)")
            if k:
                out += SEG_TEXT if not out or out[-1].isspace() else f" {SEG_TEXT}"
                # the dummy space in front of each part is lost: put it back where people write one
                out += " " if text and not text[0].isspace() and text[0] not in _CLOSING else ""
            out += text
        return out

    def encode(self, pieces: list[Piece], n_image_tokens: int) -> Encoded:
        """Pieces of a rendered conversation -> ids and labels; exactly one picture slot."""
        line = _Line(self, [], [])
        prefix = 0
        for kind, value in pieces:
            if kind == "image":
                if prefix:
                    raise InstructionError("A conversation has two picture slots.", next_step="Start a new chat for another picture.", code="usage")
                line.token([self.image_id] * n_image_tokens, strips=False)
                prefix = len(line.ids)
            elif kind in ("special", "answer_end"):
                line.token([self.special(value)], strips=value in self._added, learned=kind == "answer_end")
            elif kind == "answer":
                for k, part in enumerate(value.split(SEG_TEXT)):
                    if k:
                        line.token([self.seg_id], strips=True, learned=True)
                    line.text(part, learned=True)
            else:  # template text or what the user wrote: the same rule
                line.text(value)
        line.flush(strip_right=False)
        return Encoded(line.ids, line.labels, prefix)

    def parts(self, text: str, learned: list[bool]) -> list[tuple[int, bool]]:
        """Encode one part; learned: one flag for each byte of `text` -> (id, flag of its first byte)."""
        out, at = [], -1  # the dummy space stands before byte 0
        for token, piece in zip(self._model.encode(text), self._model.encode(text, out_type=str), strict=True):
            out.append((int(token), learned[min(max(at, 0), len(learned) - 1)]))
            at += 1 if self._model.is_byte(token) else len(piece.replace("\u2581", " ").encode())
        return out


@dataclass
class _Line:
    """Ids and labels while a conversation is encoded; text waits until the next token, because neighbouring texts are encoded together."""

    tokenizer: SentencePieceTokenizer
    ids: list[int]
    labels: list[int]
    _waiting: str = ""
    _learned: tuple[bool, ...] = ()
    _strip_left: bool = False

    def text(self, text: str, learned: bool = False) -> None:
        """Add text to the current part."""
        self._waiting += text
        self._learned += (learned,) * len(text.encode())

    def token(self, ids: list[int], strips: bool, learned: bool = False) -> None:
        """End the part and add a token; strips: white space next to it is dropped."""
        self.flush(strip_right=strips)
        self._strip_left = strips
        self.ids += ids
        self.labels += ids if learned else [IGNORED] * len(ids)

    def flush(self, strip_right: bool) -> None:
        """Encode the part that waits."""
        text = self._waiting.rstrip() if strip_right else self._waiting
        kept = text.lstrip() if self._strip_left else text
        if kept:
            flags = list(self._learned[len(text.encode()) - len(kept.encode()) :])
            for token, learned in self.tokenizer.parts(kept, flags):
                self.ids.append(token)
                self.labels.append(token if learned else IGNORED)
        self._waiting, self._learned = "", ()
