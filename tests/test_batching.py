"""A packed row computes what separate rows would; every label and every `[SEG]` is where it belongs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_random import LESSONS, conversation, encode_pictures, noise

from lisaseg.batching import Batch, Example, pack
from lisaseg.chat import CHATML, Conversation, render
from lisaseg.model.lisa import LisaModel
from lisaseg.tokenization import IGNORED, Encoded, TextTokenizer
from lisaseg.vlms.base import ImageContext

Taught = tuple[LisaModel, TextTokenizer]
PAIRS = list(LESSONS.items())


@pytest.fixture(scope="module")
def context(taught: Taught) -> ImageContext:
    return encode_pictures(taught[0], [noise(1), noise(2, 30, 90)])


def example(*chats: Conversation) -> Example:
    n_seg = sum(chat.n_seg for chat in chats)
    return Example(list(chats), torch.arange(n_seg).view(-1, 1, 1).expand(-1, 2, 2).to(torch.uint8) % 2)


def pack_them(taught: Taught, examples: list[Example], seg_state: str = "emit", max_tokens: int = 1024) -> Batch:
    model, tokenizer = taught
    return pack(examples, tokenizer, CHATML, model.vlm.n_image_tokens, seg_state, max_tokens)


def encoded(taught: Taught, chat: Conversation) -> Encoded:
    model, tokenizer = taught
    return tokenizer.encode(render(chat, CHATML), model.vlm.n_image_tokens)


def alone(taught: Taught, context: ImageContext, picture: int, chat: Conversation) -> torch.Tensor:
    """States of one conversation by itself, in the plainest way: (T, D)."""
    ids = torch.tensor([encoded(taught, chat).ids])
    embeds = taught[0].vlm.embed(ids, context.tokens, torch.tensor([picture]))
    return taught[0].vlm.hidden_states(embeds, None, None)[0]


CHATS = st.lists(st.lists(st.lists(st.sampled_from(PAIRS), min_size=1, max_size=3), min_size=1, max_size=4), min_size=1, max_size=2)


@settings(max_examples=12)
@given(CHATS)
def test_packed_states_equal_those_of_separate_rows(taught: Taught, context: ImageContext, rows: list[list[list[tuple[str, str]]]]) -> None:
    examples = [example(*(conversation(*chat) for chat in chats)) for chats in rows]
    batch = pack_them(taught, examples, max_tokens=4096)
    with torch.inference_mode():
        packed = taught[0].states(batch, ImageContext(context.tokens[: len(rows)], None))
        assert torch.isfinite(packed).all()
        for b, one in enumerate(examples):
            at = 0
            for k, chat in enumerate(one.conversations):
                single = alone(taught, context, b, chat)
                prefix = encoded(taught, chat).prefix
                at = prefix if k == 0 else at
                end = at + len(single) - prefix
                torch.testing.assert_close(packed[b, :prefix], single[:prefix], atol=1e-4, rtol=0)
                torch.testing.assert_close(packed[b, at:end], single[prefix:], atol=1e-4, rtol=0)
                at = end


def test_a_conversation_sees_nothing_of_its_neighbours(taught: Taught, context: ImageContext) -> None:
    first, other = conversation(PAIRS[0]), conversation(PAIRS[1])
    with torch.inference_mode():
        tokens = ImageContext(context.tokens[:1], None)
        states = [taught[0].states(pack_them(taught, [example(first, x, first)]), tokens)[0] for x in (other, conversation(PAIRS[3], PAIRS[4]))]
    n = len(encoded(taught, first).ids)
    torch.testing.assert_close(states[0][:n], states[1][:n])
    tail = n - encoded(taught, first).prefix
    torch.testing.assert_close(states[0][-tail:], states[1][-tail:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seg_state", ["emit", "at"])
def test_labels_and_seg_positions(taught: Taught, seg_state: str) -> None:
    tokenizer = taught[1]
    examples = [example(conversation(PAIRS[0]), conversation(PAIRS[1], PAIRS[2])), example(conversation(PAIRS[3]))]
    batch = pack_them(taught, examples, seg_state)
    wanted = [[y for c in e.conversations for y in encoded(taught, c).labels if y != IGNORED] for e in examples]
    assert batch.labels.tolist() == wanted[0] + wanted[1]
    assert batch.label_row.tolist() == [0] * len(wanted[0]) + [1] * len(wanted[1])
    assert batch.ids[batch.label_row, batch.label_col + 1].tolist() == batch.labels.tolist(), "a label stands one place behind its state"
    shift = 1 if seg_state == "emit" else 0
    assert batch.ids[batch.seg_row, batch.seg_col + shift].tolist() == [tokenizer.seg_id] * 6
    assert batch.seg_row.tolist() == [0] * 6
    assert (batch.seg_col.diff() > 0).all(), "in order of conversations and places"
    assert [len(t) for t in batch.targets] == [6, 0]


def test_positions_restart_after_the_prefix(taught: Taught) -> None:
    chats = [conversation(PAIRS[0]), conversation(PAIRS[1])]
    batch = pack_them(taught, [example(*chats)])
    n, prefix = [len(encoded(taught, c).ids) for c in chats], encoded(taught, chats[0]).prefix
    assert batch.position_ids[0].tolist() == [*range(n[0]), *range(prefix, n[1])]


def test_padding_and_pairs_of_rows_do_not_disturb(taught: Taught, context: ImageContext) -> None:
    short, long = example(conversation(PAIRS[3])), example(*(conversation(p) for p in PAIRS[:5]))
    both = pack_them(taught, [short, long])
    n = len(encoded(taught, short.conversations[0]).ids)
    assert n < both.ids.shape[1], "the first row is padded"
    with torch.inference_mode():
        together = taught[0].states(both, ImageContext(context.tokens, None))
        single = taught[0].states(pack_them(taught, [short]), ImageContext(context.tokens[:1], None))
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together[0, :n], single[0], atol=1e-4, rtol=0)


def test_attention_is_causal_and_each_row_sees_itself(taught: Taught) -> None:
    attention = pack_them(taught, [example(conversation(PAIRS[0]), conversation(PAIRS[1])), example(conversation(PAIRS[3]))]).attention
    assert not attention.triu(1).any()
    assert attention.diagonal(dim1=-2, dim2=-1).all()


def test_wrong_number_of_targets_is_refused(taught: Taught) -> None:
    with pytest.raises(ValueError, match=r"hold 1 \[SEG\], 2 targets"):
        pack_them(taught, [Example([conversation(PAIRS[0])], torch.zeros(2, 4, 4, dtype=torch.uint8))])


def test_rows_that_are_too_long_are_refused(taught: Taught) -> None:
    n = len(encoded(taught, conversation(PAIRS[0])).ids)
    assert pack_them(taught, [example(conversation(PAIRS[0]))], max_tokens=n).ids.shape[1] == n
    with pytest.raises(ValueError, match=f"{n} tokens, more than {n - 1}"):
        pack_them(taught, [example(conversation(PAIRS[0]))], max_tokens=n - 1)
