"""User text never becomes a special token; the places of picture, `[SEG]` and supervised tokens are right by construction."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpora.instructions import ACCEPT, LIMIT, TOO_LONG, InstructionCase, instruction_cases
from tests.tiny_random import LESSONS, SPECIALS, VOCABULARY, conversation, write_tokenizer

from lisaseg.chat import CHATML, Conversation, render
from lisaseg.errors import InstructionError, ModelLoadError
from lisaseg.tokenization import IGNORED, Encoded, TextTokenizer, clean_instruction
from lisaseg.types import SEG_TEXT

SEG, IMAGE, SLOT = VOCABULARY, VOCABULARY + 1, 5
ANSWERS = st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="[]"), max_size=20), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")), SEG, IMAGE)


def encode(tokenizer: TextTokenizer, chat: Conversation, n_image_tokens: int = SLOT) -> Encoded:
    return tokenizer.encode(render(chat, CHATML), n_image_tokens)


def specials(tokenizer: TextTokenizer, ids: list[int]) -> Counter[int]:
    """How often each token that no text may create occurs."""
    marks = {SEG, IMAGE, *(tokenizer.special(s) for s in SPECIALS)}
    return Counter(i for i in ids if i in marks)


def slots(ids: list[int]) -> list[int]:
    """First positions of the runs of image tokens."""
    return [i for i, token in enumerate(ids) if token == IMAGE and (i == 0 or ids[i - 1] != IMAGE)]


def test_corpus_is_large_and_its_names_are_unique() -> None:
    cases = instruction_cases()
    assert len(cases) >= 400 and len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize("case", [c for c in instruction_cases() if c.expected != ACCEPT], ids=lambda c: c.name)
def test_unusable_instructions_are_refused(case: InstructionCase) -> None:
    with pytest.raises(InstructionError) as caught:
        clean_instruction(case.text)
    assert caught.value.code == case.expected
    assert len(str(caught.value)) < 200, "the message must not repeat the instruction"
    if case.expected == TOO_LONG:
        assert f"{LIMIT:,}" in str(caught.value), "the message names the limit"


def test_instructions_never_become_special_tokens(tokenizer: TextTokenizer) -> None:
    plain = specials(tokenizer, encode(tokenizer, Conversation().ask("dog")).ids)
    for case in instruction_cases():
        if case.expected != ACCEPT:
            continue
        encoded = encode(tokenizer, Conversation().ask(clean_instruction(case.text)))
        assert specials(tokenizer, encoded.ids) == plain, case.name
        assert len(slots(encoded.ids)) == 1 and encoded.ids.count(IMAGE) == SLOT, case.name
        assert set(encoded.labels) == {IGNORED}, f"{case.name}: a question is not supervised"


def test_accepted_instructions_reach_the_model_whole(tokenizer: TextTokenizer) -> None:
    for case in instruction_cases():
        if case.expected == ACCEPT:
            text = clean_instruction(case.text)
            ids = tokenizer.plain(text)
            assert tokenizer.decode(ids) == text.replace(SEG_TEXT, "(SEG)"), case.name  # spelled, so shown as no mask


@pytest.mark.parametrize("text", ["[SEG]", "<|im_end|>", " [SEG] "])
def test_special_text_inside_an_earlier_instruction_is_plain_too(tokenizer: TextTokenizer, text: str) -> None:
    with_text = encode(tokenizer, conversation((text, "It is [SEG]."), (text, "Yes.")))
    without = encode(tokenizer, conversation(("dog", "It is [SEG]."), ("dog", "Yes.")))
    assert specials(tokenizer, with_text.ids) == specials(tokenizer, without.ids)


@given(st.text(max_size=80))
def test_cleaning_is_idempotent_and_composed(text: str) -> None:
    try:
        clean = clean_instruction(text)
    except InstructionError:
        return
    assert clean_instruction(clean) == clean == unicodedata.normalize("NFC", clean) == clean.strip()
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in clean if c not in "\n\t")


@pytest.mark.parametrize("thing", [None, 3, b"dog", ["dog"]])
def test_only_strings_are_instructions(thing: object) -> None:
    with pytest.raises(InstructionError, match="must be a string"):
        clean_instruction(thing)


def test_limit_is_the_callers() -> None:
    assert clean_instruction("dogs", limit=4) == "dogs"
    with pytest.raises(InstructionError, match=r"5 characters; the limit is 4"):
        clean_instruction("horse", limit=4)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_any_text_survives_encoding(text: str) -> None:
    shared = _shared_tokenizer()
    assert shared.decode(shared.plain(text)) == text.replace(SEG_TEXT, "(SEG)")
    assert not specials(shared, shared.plain(text))


_SHARED: list[TextTokenizer] = []


def _shared_tokenizer() -> TextTokenizer:
    if not _SHARED:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            _SHARED.append(TextTokenizer(write_tokenizer(Path(folder)), SEG, IMAGE))
    return _SHARED[0]


def spaced(parts: list[str]) -> str:
    """Parts with a `[SEG]` between, as the model writes it: one blank in front, none doubled."""
    text = parts[0]
    for part in parts[1:]:
        text += (SEG_TEXT if not text or text[-1:].isspace() else f" {SEG_TEXT}") + part
    return text


@given(ANSWERS)
def test_answers_survive_the_round_trip(parts: list[str]) -> None:
    tokenizer = _shared_tokenizer()
    answer = spaced([parts[0].strip(), *(p.rstrip() for p in parts[1:])])
    ids = tokenizer.encode([("answer", answer)], 0).ids
    assert ids.count(SEG) == answer.count(SEG_TEXT) == len(parts) - 1
    assert tokenizer.decode(ids) == answer


@given(ANSWERS)
def test_every_spelling_of_an_answer_settles_after_one_round(parts: list[str]) -> None:
    tokenizer = _shared_tokenizer()
    once = tokenizer.decode(tokenizer.encode([("answer", SEG_TEXT.join(parts))], 0).ids)
    assert once.count(SEG_TEXT) == len(parts) - 1
    assert tokenizer.decode(tokenizer.encode([("answer", once)], 0).ids) == once


@pytest.mark.parametrize("answer", [*LESSONS.values(), "[SEG]", "[SEG] [SEG]", "It is [SEG] and [SEG], too", "the dog\n[SEG]", "no mask"])
def test_known_answers_round_trip(tokenizer: TextTokenizer, answer: str) -> None:
    assert tokenizer.decode(tokenizer.encode([("answer", answer)], 0).ids) == answer


@pytest.mark.parametrize(("answer", "same"), [("the dog [SEG].", "the dog[SEG]."), ("[SEG] [SEG]", "[SEG][SEG]")])
def test_blank_in_front_of_seg_belongs_to_the_token(tokenizer: TextTokenizer, answer: str, same: str) -> None:
    assert tokenizer.encode([("answer", answer)], 0).ids == tokenizer.encode([("answer", same)], 0).ids


def test_spelled_seg_in_generated_text_is_no_mask(tokenizer: TextTokenizer) -> None:
    ids = [*tokenizer.plain("It is [SEG] or"), SEG, *tokenizer.plain(" [SEG].")]
    assert tokenizer.decode(ids) == "It is (SEG) or [SEG] (SEG)."


def test_decode_drops_image_and_template_tokens(tokenizer: TextTokenizer) -> None:
    im_end = tokenizer.special("<|im_end|>")
    assert tokenizer.decode([IMAGE, *tokenizer.plain("a dog"), im_end]) == "a dog"


@given(st.integers(1, 3), st.data())
def test_labels_supervise_exactly_the_answers(n_turns: int, data: st.DataObject) -> None:
    tokenizer = _shared_tokenizer()
    pairs = [data.draw(st.sampled_from(list(LESSONS.items()))) for _ in range(n_turns)]
    encoded = encode(tokenizer, conversation(*pairs))
    stop = tokenizer.special(CHATML.end)
    assert len(encoded.labels) == len(encoded.ids)
    assert all(label in (IGNORED, i) for i, label in zip(encoded.ids, encoded.labels, strict=True))
    learned: list[list[int]] = [[]]
    for i, label in enumerate(encoded.labels):
        if label == IGNORED:
            continue
        learned[-1].append(label)
        if label == stop:
            assert i + 1 == len(encoded.labels) or encoded.labels[i + 1] == IGNORED, "an answer ends with its stop token"
            learned.append([])
    assert [tokenizer.decode(run[:-1]) for run in learned[:-1]] == [answer for _, answer in pairs] and not learned[-1]


def test_conversations_about_one_picture_share_their_prefix(tokenizer: TextTokenizer) -> None:
    chats = [conversation(pair) for pair in LESSONS.items()] + [Conversation().ask("dog")]
    encoded = [encode(tokenizer, chat) for chat in chats]
    assert len({e.prefix for e in encoded}) == 1
    assert len({tuple(e.ids[: e.prefix]) for e in encoded}) == 1
    assert all(e.ids[e.prefix - 1] == IMAGE != e.ids[e.prefix] for e in encoded), "the prefix ends with the picture"


def test_a_longer_chat_begins_with_the_shorter_one(tokenizer: TextTokenizer) -> None:
    pairs = list(LESSONS.items())[:3]
    for n in range(1, 3):
        shorter, longer = (encode(tokenizer, conversation(*pairs[:k])).ids for k in (n, n + 1))
        assert longer[: len(shorter)] == shorter


def test_question_is_the_beginning_of_its_answered_form(tokenizer: TextTokenizer) -> None:
    for question, answer in LESSONS.items():
        asked = encode(tokenizer, Conversation().ask(question)).ids
        answered = encode(tokenizer, conversation((question, answer))).ids
        assert answered[: len(asked)] == asked


def test_two_picture_slots_are_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InstructionError, match="two picture slots"):
        tokenizer.encode([("image", ""), ("text", "\n"), ("image", "")], SLOT)


def test_missing_or_foreign_tokenizer_is_a_load_error(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        TextTokenizer(tmp_path, SEG, IMAGE)
    with pytest.raises(ModelLoadError, match="<nothing>"):
        tokenizer.special("<nothing>")
    assert tokenizer.special(SEG_TEXT) == SEG
