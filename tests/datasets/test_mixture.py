"""Laws of the mixture: a function of (seed, index), exact rates, no picture twice in an epoch of its set, questions and answers that fit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.datasets.recipe_root import make_root

from lisaseg.datasets import DATASETS
from lisaseg.datasets.mixture import PAPER_RATES, PAPER_SETS, Group, Mixture, Task
from lisaseg.datasets.questions import EXPLAIN_SUFFIXES, LONG_QUESTIONS, SHORT_QUESTIONS, conversations, short_question
from lisaseg.errors import DataError, UsageError
from lisaseg.prompts import NO_TARGET, UNNAMED_ANSWERS
from lisaseg.types import SEG_TEXT, Query, Sample

MASK = np.ones((2, 2), np.uint8)


class Numbers:
    """n pictures with three queries each; those in `bad` are wrong, those in `empty` hold nothing."""

    def __init__(self, n: int, bad: frozenset[int] = frozenset(), empty: frozenset[int] = frozenset()) -> None:
        self.n, self.bad, self.empty = n, bad, empty

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise DataError(f"numbers, entry {index}: wrong.", next_step="Remove it.")
        queries = () if index in self.empty else tuple(Query(f"thing {k}", (MASK,)) for k in range(5))
        return Sample(id=str(index), image=Path(f"{index}.jpg"), queries=queries)


def content(task: Task) -> tuple[object, ...]:
    turns = [[(t.instruction, t.answer, [m.tobytes() for m in t.masks]) for t in talk] for talk in task.conversations]
    return (task.set_name, task.place, task.sample.id, turns)


sizes = st.lists(st.integers(1, 30), min_size=1, max_size=3)


@given(groups=st.lists(st.tuples(st.sampled_from([1, 3, 9, 0.5]), sizes), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_rates_are_exact_and_no_picture_comes_twice_in_an_epoch(groups: list[tuple[float, list[int]]], seed: int) -> None:
    parts = [Group(rate, {f"{g}.{k}": Numbers(n) for k, n in enumerate(ns)}) for g, (rate, ns) in enumerate(groups)]
    counts = Mixture(parts).counts
    block = int(counts.sum())
    length = min(3 * block, 400)
    mixture = Mixture(parts, seed=seed, length=length)
    drawn = [mixture.where(index) for index in range(length)]
    if length >= block:
        found = Counter(name for name, _ in drawn[:block])
        assert [found[name] for name in mixture.names] == counts.tolist()
        for g, (rate, ns) in enumerate(groups):
            share = sum(found[f"{g}.{k}"] for k in range(len(ns))) / block
            assert share == pytest.approx(rate / sum(rate for rate, _ in groups))
    for name, one in zip(mixture.names, mixture._sets, strict=True):
        places = [place for set_name, place in drawn if set_name == name]
        for start in range(0, len(places), len(one)):
            epoch = places[start : start + len(one)]
            assert len(set(epoch)) == len(epoch)


def paper_like(seed: int, **more: object) -> Mixture:
    sets = {"a": Numbers(7), "b": Numbers(11)}
    return Mixture([Group(9, sets), Group(3, {"c": Numbers(50)}), Group(1, {"d": Numbers(3)})], seed=seed, length=500, **more)  # type: ignore[arg-type]


def test_a_task_depends_on_seed_and_index_alone() -> None:
    whole = [content(paper_like(4)[index]) for index in range(40)]
    later = paper_like(4)
    assert [content(later[index]) for index in (39, 3, 17, 3)] == [whole[39], whole[3], whole[17], whole[3]]
    assert [content(paper_like(5)[index]) for index in range(40)] != whole
    assert len(paper_like(4)) == 500
    for outside in (-1, 500):
        with pytest.raises(IndexError):
            later[outside]


def test_the_order_of_a_set_does_not_depend_on_the_others() -> None:
    alone = Mixture([Group(1, {"b": Numbers(11)})], seed=4, length=33)
    among = [place for name, place in (paper_like(4).where(index) for index in range(300)) if name == "b"]
    assert [alone.where(index)[1] for index in range(33)] == among[:33]


def test_epochs_differ() -> None:
    alone = Mixture([Group(1, {"x": Numbers(40)})], length=80)
    assert [alone.where(k) for k in range(40)] != [alone.where(k) for k in range(40, 80)]


def test_the_fingerprint_tells_mixtures_apart() -> None:
    prints = [paper_like(4).fingerprint(), paper_like(5).fingerprint(), paper_like(4, questions=2).fingerprint()]
    assert len(set(prints)) == 3 and paper_like(4).fingerprint() == prints[0]


def test_wrong_entries_are_raised_or_replaced_and_told() -> None:
    groups = [Group(1, {"x": Numbers(10, bad=frozenset({3, 4}))})]
    plain = Mixture(groups)
    wrong = next(k for k in range(10) if plain.where(k)[1] == 3)
    with pytest.raises(DataError, match="entry 3"):
        plain[wrong]
    told: list[str] = []
    careful = Mixture(groups, on_fault=lambda error: told.append(str(error)))
    task = careful[wrong]
    assert any("entry 3" in fault for fault in told) and task.place not in (3, 4) and content(task) == content(careful[wrong])
    with pytest.raises(DataError, match="the last fault: numbers"):
        Mixture([Group(1, {"x": Numbers(3, bad=frozenset(range(3)))})], on_fault=told.append)[0]  # type: ignore[arg-type]


def test_pictures_with_nothing_to_ask_are_replaced() -> None:
    mixture = Mixture([Group(1, {"x": Numbers(6, empty=frozenset({0, 1, 2}))})])
    assert all(mixture[k].conversations and mixture[k].place > 2 for k in range(6))
    with pytest.raises(DataError, match="cannot be used"):
        Mixture([Group(1, {"x": Numbers(2, empty=frozenset({0, 1}))})])[0]


@pytest.mark.parametrize("groups", [[], [Group(1, {})], [Group(0, {"a": Numbers(1)})], [Group(float("nan"), {"a": Numbers(1)})],
                                    [Group(1, {"a": Numbers(0)})], [Group(1, {"a": Numbers(1)}), Group(1, {"a": Numbers(1)})]])  # fmt: skip
def test_impossible_mixtures_are_refused(groups: list[Group]) -> None:
    with pytest.raises(UsageError):
        Mixture(groups)


def test_the_paper_mixture(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    groups = [Group(PAPER_RATES[group], {name: DATASETS.get(name)(root) for name in names}) for group, names in PAPER_SETS.items()]
    mixture = Mixture(groups, length=320)
    group_of = {name: group for group, names in PAPER_SETS.items() for name in names}
    shares = Counter(group_of[mixture.where(index)[0]] for index in range(320))
    assert [shares[group] for group in PAPER_SETS] == [180, 60, 60, 20]
    for index in range(60):
        task = mixture[index]
        assert 1 <= len(task.conversations) <= 3
        answers = "".join(str(turn.answer) for talk in task.conversations for turn in talk)
        assert answers.count(SEG_TEXT) == len(task.masks)
        assert all(mask.shape == (12, 16) for mask in task.masks)
    assert "2" in {task.sample.id for task in (mixture[k] for k in range(60)) if task.set_name == "paco_lvis"}


REASON = Query("Why?", (MASK,), is_sentence=True, explanation="Because it is.", rephrasings=("How so?", "What for?", "Where?"), kind="reasoning")


@given(seed=st.integers(0, 500), ratio=st.sampled_from([None, 0.0, 0.1, 1.0]))
def test_explanations_follow_the_ratio(seed: int, ratio: float | None) -> None:
    talks = conversations([REASON], 3, np.random.default_rng(seed), explanation=ratio)
    assert len({talk[0].instruction for talk in talks}) == 3  # three different wordings
    plain = {answer.format(seg=SEG_TEXT) for answer in UNNAMED_ANSWERS}
    for ((turn),) in talks:
        answer = str(turn.answer)
        if ratio == 1.0:
            assert answer == REASON.explanation and not turn.masks and turn.instruction in (REASON.text, *REASON.rephrasings)
        elif answer in plain:
            assert turn.instruction.endswith(tuple(q.removeprefix("{text} ") for q in LONG_QUESTIONS))
        elif ratio == 0.0 or turn.masks:
            assert ratio is not None and answer.removesuffix(" Because it is.") in plain and turn.instruction.endswith(EXPLAIN_SUFFIXES)
        else:
            assert ratio == 0.1 and answer == REASON.explanation


def test_explanations_come_about_as_often_as_asked() -> None:
    talks = [conversations([REASON], 1, np.random.default_rng(seed), explanation=0.1)[0][0] for seed in range(600)]
    alone = sum(not turn.masks for turn in talks) / 600
    after = sum(str(turn.answer).endswith("is.") and bool(turn.masks) for turn in talks) / 600
    assert 0.06 < alone < 0.14 and 0.38 < after < 0.52


def test_several_masks_and_none() -> None:
    rng = np.random.default_rng(0)
    ((several,),) = conversations([Query("cups", (MASK, MASK, MASK))], 3, rng)
    assert f"{SEG_TEXT}, {SEG_TEXT} and {SEG_TEXT}" in str(several.answer) and len(several.masks) == 3
    ((none,),) = conversations([Query("the dog", kind="referring")], 3, rng)
    assert none.answer == NO_TARGET and none.masks == ()


def test_articles_are_not_doubled() -> None:
    asked = {short_question(template, "The wheel of the Car") for template in SHORT_QUESTIONS}
    assert all("the the" not in text and "the wheel of the car" in text for text in asked)
    assert short_question(SHORT_QUESTIONS[0], "an apple") == "Can you segment an apple in this image?"
    assert short_question(SHORT_QUESTIONS[0], "theatre") == "Can you segment the theatre in this image?"
