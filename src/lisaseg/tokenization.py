"""Ids in and out. User text can never become a special token: it is encoded with special tokens switched off, whatever it spells.

A rendered conversation (`lisaseg.chat`) is a list of pieces; every piece is encoded on its own, so the place of the picture, of every `[SEG]`
and of every supervised token is known by construction and never searched for in a string.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lisaseg.errors import InstructionError, ModelLoadError
from lisaseg.types import SEG_TEXT

if TYPE_CHECKING:
    from lisaseg.chat import Piece

MAX_INSTRUCTION_CHARS = 2000
IGNORED = -100  # label of a token that is not supervised


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
