"""What is said while training: as many `[SEG]` as masks, refusals without any, places that are true, the same text for the same seed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.datasets.test_vocabulary import COUNTS, DATA, INDEX

from lisaseg import prompts
from lisaseg.chat import Conversation
from lisaseg.train import texts
from lisaseg.train.config import StageConfig
from lisaseg.train.scenes import Scene, make_scene
from lisaseg.train.texts import NounBook
from lisaseg.train.view_queries import Asked, ViewQueries, choose_targets
from lisaseg.train.views import View, ViewInfo
from lisaseg.types import IGNORE, SEG_TEXT, Turn
from lisaseg.vlms.tiny_vision import TOKEN_GRID, WIDTH

SEEDS = st.integers(0, 2**32)
TEXT_STAGE = StageConfig(kind="text", steps=1, queries=6, p_absent=0.25, p_chat=0.3)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> NounBook:
    folder: Path = tmp_path_factory.mktemp("wordnet")
    for name, text in (("data.noun", DATA), ("index.noun", INDEX), ("cntlist.rev", COUNTS)):
        (folder / name).write_text(text, encoding="utf-8")
    return NounBook(str(folder), 10_000)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def shown(conversations: list[Conversation]) -> list[tuple[str, str | None, int]]:
    return [(turn.instruction, turn.answer, len(turn.masks)) for c in conversations for turn in c.turns]


def well_formed(turn: Turn) -> None:
    assert turn.instruction.strip() and turn.answer and turn.answer.strip()
    assert turn.answer.count(SEG_TEXT) == len(turn.masks)
    assert SEG_TEXT not in turn.instruction
    assert not {"{", "}"} & {*turn.instruction, *turn.answer}, "a template was not filled"


def test_a_book_knows_categories_common_nouns_and_wordnet(book: NounBook) -> None:
    assert book.categories and book.rest and not set(book.rest) & {*book.categories, *book.common}
    assert "gannet" in book.rest and book.of("gannet").definitions[0].startswith("large heavily built seabird")
    assert book.of("never heard of").definitions == []
    assert all(n.name == name and all(d.strip() for d in n.definitions) for name, n in book.nouns.items())


def test_added_texts_are_kept_once(tmp_path: Path, book: NounBook) -> None:
    for _ in range(2):
        book.add("zorb", ["globe"], ["a ball that people roll in"])
    assert (book.of("zorb").synonyms, book.of("zorb").definitions) == (["globe"], ["a ball that people roll in"])
    del book.nouns["zorb"]


@given(SEEDS, st.data())
def test_segment_answers_hold_one_seg_and_the_name(book: NounBook, seed: int, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(book.nouns)))
    turn = texts.segment_turn(book, name, rng(seed), 0.5)
    well_formed(turn)
    assert turn.answer is not None and turn.answer.count(SEG_TEXT) == 1 and turn.answer.startswith(f"It is the {name} {SEG_TEXT}")
    assert shown([texts.single(turn)]) == shown([texts.single(texts.segment_turn(book, name, rng(seed), 0.5))])


@given(SEEDS, st.data())
def test_absent_answers_hold_none(book: NounBook, seed: int, data: st.DataObject) -> None:
    turn = texts.absent_turn(book, data.draw(st.sampled_from(list(book.nouns))), rng(seed), 0.5)
    well_formed(turn)
    assert turn.answer == prompts.NO_TARGET and turn.masks == ()


@given(SEEDS, st.data())
def test_definitions_do_not_give_the_name_away(book: NounBook, seed: int, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(book.rest))
    text, is_sentence, kind = book.query_text(name, rng(seed), p_definition=1.0)
    assert kind == "gloss" and text.strip() and name not in text.split()
    assert is_sentence == (text[0].isupper() and text[-1] in "?.")


@given(SEEDS)
def test_listings_and_presence_are_plain_answers(seed: int) -> None:
    names = ["dog", "cat", "dog", "cup", "car", "tree", "sky", "wall"]
    for turn in (texts.listing_turn(names, rng(seed)), texts.listing_turn(["dog"], rng(seed)), texts.caption_turn([" A dog"], rng(seed)),
                 texts.presence_turn("dog", True, rng(seed)), texts.presence_turn("dog", False, rng(seed))):  # fmt: skip
        well_formed(turn)
        assert turn.masks == ()
    assert texts.listing_turn(names, rng(seed)).answer == "I can see: dog, cat, cup, car, tree and sky."
    assert texts.caption_turn(["A dog. "], rng(seed)).answer == "A dog."


# places


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((40, 40), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def test_places_of_known_masks() -> None:
    left, right, big = box(15, 2, 4, 4), box(15, 34, 4, 4), box(10, 12, 14, 14)
    masks = [left, right, big]
    assert texts.place_phrases("dog", masks, 0) == ["the dog on the left", "the leftmost dog"]
    assert texts.place_phrases("dog", masks, 1) == ["the dog on the right", "the rightmost dog"]
    assert texts.place_phrases("dog", masks, 2) == ["the largest dog", "the biggest dog"]
    top, bottom = box(1, 10, 4, 8), box(30, 10, 6, 8)
    assert texts.place_phrases("cup", [top, bottom], 0) == ["the cup at the top"]
    assert texts.place_phrases("cup", [top, bottom], 1) == ["the cup at the bottom"]
    assert texts.place_phrases("cup", [top, box(1, 12, 4, 8)], 0) == [], "nothing singles it out clearly"
    assert "the smallest cup" in texts.place_phrases("cup", [box(10, 10, 2, 2), box(9, 9, 9, 9)], 0)


def test_ignored_pixels_are_no_part_of_a_thing() -> None:
    wide = box(15, 20, 4, 4)
    wide[:, :10] = IGNORE
    assert texts.place_phrases("dog", [wide, box(15, 2, 4, 4)], 0) == ["the dog on the right", "the rightmost dog"]


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 10)] * 2), min_size=2, max_size=5))
def test_a_phrase_singles_out_one_instance_and_is_true(boxes: list[tuple[int, int, int, int]]) -> None:
    masks = [box(*b) for b in boxes]
    said = [texts.place_phrases("dog", masks, k) for k in range(len(masks))]
    assert all(n == 1 for n in Counter(p for phrases in said for p in phrases).values())
    centre = [np.argwhere(m == 1).mean(0) for m in masks]
    area = [int(m.sum()) for m in masks]
    best = {"leftmost": np.argmin([c[1] for c in centre]), "rightmost": np.argmax([c[1] for c in centre]), "largest": np.argmax(area),
            "smallest": np.argmin(area), "top": np.argmin([c[0] for c in centre]), "bottom": np.argmax([c[0] for c in centre])}  # fmt: skip
    for k, phrases in enumerate(said):
        assert all(best[word] == k for phrase in phrases for word in best if word in phrase)


# scenes


def space(names: list[str]) -> torch.Tensor:
    """Any unit vectors, one for each name."""
    rows = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(sum(name.encode()))) for name in names]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def scene_of(book: NounBook, seed: int) -> Scene:
    return make_scene(book, TEXT_STAGE, rng(seed))


@given(SEEDS)
def test_scenes_are_well_formed(book: NounBook, seed: int) -> None:
    scene = scene_of(book, seed)
    seen = {scene.names[k] for k in np.unique(scene.layout)}
    assert len(scene.conversations) == TEXT_STAGE.queries and len(set(scene.names)) == len(scene.names)
    assert scene.layout.shape == (TOKEN_GRID, TOKEN_GRID)
    turns = [turn for c in scene.conversations for turn in c.turns]
    for turn in turns:
        well_formed(turn)
        if turn.answer == prompts.NO_TARGET:
            # The definition of an absent thing may speak of one that is there ("a hand covering" where a hand is): that is the temptation.
            names = [word for name in seen for word in (name, *book.of(name).synonyms)]
            by_name = {question.format(text=word) for question in prompts.NAME_QUESTIONS for word in names}
            assert turn.instruction not in by_name, "what is there is not asked for as absent"
            assert not any(d in turn.instruction for name in seen for d in book.of(name).definitions)
    with_mask = [turn for turn in turns if turn.masks]
    assert len(scene.targets) == len(with_mask) and set(scene.targets) <= seen
    assert all(turn.answer is not None and f"the {name} [SEG]" in turn.answer for turn, name in zip(with_mask, scene.targets, strict=True))


@given(SEEDS)
def test_scenes_depend_on_the_seed_alone(book: NounBook, seed: int) -> None:
    one, two, other = scene_of(book, seed), scene_of(book, seed), scene_of(book, seed + 1)
    assert one.names == two.names and one.targets == two.targets and np.array_equal(one.layout, two.layout)
    assert shown(one.conversations) == shown(two.conversations) != shown(other.conversations)
    grids = [one.noun_grid(space, rng(seed)) for _ in range(2)]  # type: ignore[arg-type]
    assert torch.equal(*grids) and grids[0].shape == (TOKEN_GRID**2, WIDTH) and torch.isfinite(grids[0]).all()


# views


def view(seed: int, names: list[str], absent: list[str], captions: list[str]) -> View:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 2, (len(names), 104, 104), generator=generator, dtype=torch.uint8)
    instances = torch.from_numpy(np.stack([np.pad(box(15, 2 + 15 * k, 4, 4), ((0, 64), (0, 64))) for k in range(3)]))
    kinds = ["attribute" if k == 1 else "category" for k in range(len(names))]
    info = ViewInfo("v", "pool", (1.0, 0.8), names, [f"red {n}" if k == 1 else n for k, n in enumerate(names)], kinds, [], absent, names, captions)
    if "dog" in names:
        info.instance_names = ["dog"] * 3
    return View(info, {}, targets, instances)


VIEWS = st.builds(
    view,
    st.integers(0, 99),
    st.lists(st.sampled_from(["dog", "gannet", "anvil", "car", "trowel", "sky", "chair"]), unique=True, max_size=6),
    st.lists(st.sampled_from(["zebra", "boat"]), unique=True),
    st.lists(st.just("A dog stands there."), max_size=1),
)


def asked(book: NounBook, one: View, seed: int) -> Asked:
    return ViewQueries(book, StageConfig(kind="joint", steps=1, queries=4, p_absent=0.3, p_chat=0.1)).make(one, rng(seed))


@given(VIEWS, SEEDS)
def test_conversations_of_a_view_are_well_formed(book: NounBook, one: View, seed: int) -> None:
    result = asked(book, one, seed)
    turns = [turn for c in result.conversations for turn in c.turns]
    assert turns and result.targets.dtype == torch.uint8 and result.targets.shape[1:] == (104, 104)
    for turn in turns:
        well_formed(turn)
    with_mask = [turn for turn in turns if turn.masks]
    assert len(with_mask) == len(result.targets) == len(result.noun_targets) == min(4, len(one.info.names))
    for turn, target, noun in zip(with_mask, result.targets, result.noun_targets, strict=True):
        assert turn.answer is not None and f"{noun} [SEG]" in turn.answer
        if noun:  # the mask is the one of that name
            assert torch.equal(target, one.targets[one.info.names.index(noun)])
        else:
            assert "dog" in turn.answer and any(torch.equal(target, m) for m in one.instances)


@given(VIEWS, SEEDS)
def test_conversations_of_a_view_depend_on_the_seed_alone(book: NounBook, one: View, seed: int) -> None:
    first, second = asked(book, one, seed), asked(book, one, seed)
    assert shown(first.conversations) == shown(second.conversations) and torch.equal(first.targets, second.targets)


@given(VIEWS, SEEDS, st.integers(1, 5))
def test_chosen_targets_are_different_and_not_too_many(one: View, seed: int, n: int) -> None:
    assume(one.info.names)
    chosen = choose_targets(one, n, rng(seed))
    assert len(set(chosen)) == len(chosen) == min(n, len(one.info.names)) and max(chosen) < len(one.info.names)


# implicit queries and attributes


def test_an_implicit_query_does_not_name_what_it_means(small_book: NounBook) -> None:
    told: set[str] = set()
    for name, queries in small_book.implicit.items():
        for text, _ in queries:
            assert text == text.strip() and text not in told, text
            assert not re.search(rf"\b{re.escape(name.lower())}s?\b", text.lower()), (name, text)
            told.add(text)
    assert len(told) > 9000 and set(small_book.categories) <= {name for name, queries in small_book.implicit.items() if len(queries) >= 30}


def test_what_has_an_attribute_is_not_said_to_lack_it(small_book: NounBook) -> None:
    assert len({a.id for a in small_book.attributes}) == len(small_book.attributes) >= 100
    for attribute in small_book.attributes:
        assert len(attribute.yes) >= 4 and len(attribute.no) >= 20 and not set(attribute.yes) & set(attribute.no), attribute.id
        assert {*attribute.yes, *attribute.no} <= set(small_book.nouns), attribute.id
        for text, _ in attribute.queries:
            assert not any(re.search(rf"\b{re.escape(name.lower())}\b", text.lower()) for name in attribute.yes), (attribute.id, text)


def test_an_attribute_scene_has_one_answer_or_says_that_there_is_none(small_book: NounBook) -> None:
    by_text = {text: a for a in small_book.attributes for text, _ in a.queries}
    config = StageConfig(kind="text", steps=1, queries=4, p_attribute=1.0, p_absent=0.3)
    refused = 0
    for seed in range(60):
        scene = make_scene(small_book, config, np.random.default_rng(seed))
        seen = {scene.names[k] for k in np.unique(scene.layout)}
        for conversation in scene.conversations:
            turn = conversation.turns[0]
            attribute = next((a for text, a in by_text.items() if text in turn.instruction), None)
            if attribute is None:
                continue
            having = seen & set(attribute.yes)
            refused += not having
            assert turn.answer == ("There is no such thing in this picture." if not having else f"It is the {having.pop()} [SEG].") and not having
    assert refused > 5


def test_no_reasoning_query_reaches_a_recipe_that_wants_none(small_book: NounBook) -> None:
    implicit = {text for queries in small_book.implicit.values() for text, _ in queries} | {t for a in small_book.attributes for t, _ in a.queries}
    defined = " | ".join(d for entry in small_book.nouns.values() for d in entry.definitions)
    implicit = {text for text in implicit if text not in defined}  # "the queen of fruits" is both
    config = StageConfig(kind="text", steps=1, queries=6)
    for seed in range(40):
        for conversation in make_scene(small_book, config, np.random.default_rng(seed)).conversations:
            found = [text for text in implicit if text in conversation.turns[0].instruction]
            assert not found
