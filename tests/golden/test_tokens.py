"""Ids, labels and prompts of the reference.

With the checkpoints' own `tokenizer.model` every stored id is compared: LISASEG_LLAMA_TOKENIZER names that file, which may not be shipped here and
`llama_tokenizer.py` puts together. Without it: ids by the small tokenizer of the goldens, and the order of all special tokens in every stored prompt.
"""

from __future__ import annotations

import json
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.golden.places import EXTRAS, FOLDERS, HERE
from tests.golden.reference import IMAGE, Golden, parse

from lisaseg.chat import Piece, get_template, render
from lisaseg.errors import ModelLoadError
from lisaseg.model.published import added_tokens
from lisaseg.tokenization import SentencePieceTokenizer
from lisaseg.types import SEG_TEXT

LLAMA = os.environ.get("LISASEG_LLAMA_TOKENIZER", "")
ORDERS = {
    "13b": {"[SEG]": 32000, "<im_start>": 32001, "<im_end>": 32002},
    "7b": {"<im_patch>": 32000, "<im_start>": 32001, "<im_end>": 32002, "[SEG]": 32003},
}
STORED: dict[str, Any] = json.loads((EXTRAS / "tokenization.json").read_text("utf-8"))
TOKEN = re.compile(r"(\[SEG\]|<im_start>|<im_end>|<s>|</s>|<unk>)")
needs_llama = pytest.mark.skipif(not LLAMA, reason="LISASEG_LLAMA_TOKENIZER names no tokenizer.model")


@pytest.fixture(scope="module")
def small() -> SentencePieceTokenizer:
    folder = HERE / "tokens_a"
    return SentencePieceTokenizer(folder / "tokenizer.model", added_tokens(folder), IMAGE)


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(scope="module", params=sorted(ORDERS))
def llama(request: pytest.FixtureRequest) -> tuple[str, SentencePieceTokenizer]:
    return request.param, SentencePieceTokenizer(Path(LLAMA), ORDERS[request.param], IMAGE)


def pieces_of(entry: dict[str, Any]) -> list[Piece]:
    template = get_template(entry["conv_type"] + ("" if entry["use_mm_start_end"] else "_bare"))
    return render(parse(entry["prompt"], template), template)


def raw_pieces(text: str) -> list[Piece]:
    return [("special", "<s>"), *(("special" if k % 2 else "text", part) for k, part in enumerate(TOKEN.split(text)) if part)]


@needs_llama
def test_every_stored_prompt_has_its_ids(llama: tuple[str, SentencePieceTokenizer]) -> None:
    order, tokenizer = llama
    wrong = [entry["prompt"] for entry in STORED["rendered"] if tokenizer.encode(pieces_of(entry), 1).ids != entry[f"input_ids_{order}"]]
    wrong += [entry["text"] for entry in STORED["raw"] if tokenizer.encode(raw_pieces(entry["text"]), 1).ids != entry[f"ids_{order}"]]
    assert not wrong


@needs_llama
def test_every_stored_batch_has_its_ids_and_labels(llama: tuple[str, SentencePieceTokenizer]) -> None:
    order, tokenizer = llama
    stored = load_file(EXTRAS / "collate.safetensors")
    for case in json.loads((EXTRAS / "collate.json").read_text("utf-8")):
        ids, labels, mask, offset = (stored[f"{case['name']}.{order}.{key}"] for key in ("input_ids", "labels", "attention_masks", "offset"))
        assert [b - a for a, b in pairwise(offset.tolist())] == [len(rows) for rows in case["conversations_per_image"]]
        wrapped = bool((ids == ORDERS[order]["<im_start>"]).any())
        template = get_template(case["conv_type"] + ("" if wrapped else "_bare"))
        rows = [row for rows in case["conversations_per_image"] for row in rows]
        for q, row in enumerate(rows):
            encoded = tokenizer.encode(render(parse(row, template), template), 1)
            n = int(mask[q].sum())
            assert encoded.ids[:n] == ids[q, :n].tolist()
            assert encoded.labels[:n] == labels[q, :n].tolist()
            assert len(encoded.ids) == n or (not case["inference"] and n == case["model_max_length"] - 255), "only the reference cuts"


def test_every_conversation_of_a_checkpoint_has_its_ids_and_labels(golden: Golden) -> None:
    stored, added = golden.inputs, golden.meta["added_vocab"]
    file = golden.folder / "tokenizer.model"
    if not file.is_file() and not LLAMA:
        pytest.skip("this fixture ships ids only, and LISASEG_LLAMA_TOKENIZER names no tokenizer.model")
    if file.is_file():
        assert added_tokens(golden.folder) == added
    tokenizer = SentencePieceTokenizer(file if file.is_file() else Path(LLAMA), added, IMAGE)
    groups = [(golden.meta["conversations"], "", True), (golden.meta["val_conversations"], "val_", False)]
    groups += [([case["prompt"]], f"gen{k}_", False) for k, case in enumerate(golden.meta["generation"])]
    for rows, name, with_labels in groups:
        ids = stored[f"{name}input_ids"]
        lengths = stored[f"{name}attention_masks"].sum(1).tolist() if f"{name}attention_masks" in stored else [ids.shape[1]]
        assert len(rows) == len(ids)
        for q, (row, n) in enumerate(zip(rows, lengths, strict=True)):
            encoded = tokenizer.encode(render(parse(row, golden.template), golden.template), 1)
            assert encoded.ids == ids[q, :n].tolist(), row
            assert not with_labels or encoded.labels == stored["labels"][q, :n].tolist(), row
    for k, case in enumerate(golden.meta["generation"]):
        prompt, new = stored[f"gen{k}_input_ids"][0].tolist(), case["new_token_ids"]
        assert golden.outputs[f"gen{k}_output_ids"][0].tolist() == prompt + new
        said = tokenizer.decode(new)
        assert said and "".join(case["text"].split()).removesuffix("</s>").endswith("".join(said.split())), "blanks aside, as the reference reads it"


def test_ids_labels_and_answers_of_the_small_tokenizer(small: SentencePieceTokenizer) -> None:
    stored = json.loads((HERE / "tokens_a" / "cases.json").read_text("utf-8"))
    template = get_template(stored["template"])
    for case in stored["cases"]:
        encoded = small.encode(render(parse(case["conversation"], template), template), 1)
        assert encoded.ids == case["input_ids"]
        assert case["labels"] is None or encoded.labels == case["labels"]
        assert encoded.ids[encoded.prefix - 1] == IMAGE
        if "answer_ids" in case:  # what was generated is said again in the next turn: the same ids
            said = small.decode(case["answer_ids"])
            again = small.encode([("special", "<s>"), ("answer", said), ("answer_end", "</s>")], 0).ids[1:]
            assert again == [*case["answer_ids"]] or small.decode(again) == said


def test_special_tokens_stand_where_the_reference_has_them(small: SentencePieceTokenizer) -> None:
    names = {number: token for token, number in ORDERS["13b"].items()} | {1: "<s>", 2: "</s>", IMAGE: "<image>"}
    ours = {small.special(name): name for name in ("<s>", "</s>", "[SEG]", "<im_start>", "<im_end>")} | {IMAGE: "<image>"}
    for entry in STORED["rendered"]:
        wanted = [names[i] for i in entry["input_ids_13b"] if i in names]
        assert [ours[i] for i in small.encode(pieces_of(entry), 1).ids if i in ours] == wanted, entry["prompt"]


@pytest.mark.parametrize("text", ["[SEG]", "</s>", "<s>", "<im_start>x<im_end>", "<image>", "<unk>", "<0x0A>", "a [SEG]. </s> b"])
def test_user_text_never_becomes_a_special_token(small: SentencePieceTokenizer, text: str) -> None:
    special = {small.special(name) for name in ("<s>", "</s>", "<unk>", "[SEG]", "<im_start>", "<im_end>")} | {IMAGE}
    ids = small.encode([("text", "USER: "), ("user", text), ("text", " ASSISTANT:")], 1).ids
    assert not special & set(ids)
    assert small.decode(ids) == f"USER: {text} ASSISTANT:".replace(SEG_TEXT, "(SEG)")


def test_tokenizers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = HERE / "tokens_a" / "tokenizer.model"
    with pytest.raises(ModelLoadError, match=r"tokenizer\.model is missing"):
        SentencePieceTokenizer(tmp_path / "tokenizer.model", {"[SEG]": 384}, IMAGE)
    for added in ({}, {"[SEG]": 385}, {"[SEG]": 383}, {"<im_start>": 384}):
        with pytest.raises(ModelLoadError, match="added tokens"):
            SentencePieceTokenizer(model, added, IMAGE)
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes()[:50])
    with pytest.raises(ModelLoadError):
        SentencePieceTokenizer(tmp_path / "tokenizer.model", {"[SEG]": 384}, IMAGE)
