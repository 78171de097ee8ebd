"""Who asks for a thing by its name gets that thing; whoever only mentions a name has not asked for it. What names are likely anyway is asked once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lisaseg.model.weighing import Priors, asks_by_name, name_priors
from lisaseg.prompts import NAME_QUESTIONS, evaluation_question


@pytest.mark.parametrize("template", NAME_QUESTIONS)
@pytest.mark.parametrize("name", ["hair", "computer mouse", "T-shirt"])
def test_every_way_to_ask_by_name_is_known(template: str, name: str) -> None:
    assert asks_by_name(template.format(text=name), name) and asks_by_name(template.format(text=f"the {name}").upper(), name)
    assert asks_by_name(evaluation_question(name, False), name) and not asks_by_name(template.format(text="person"), name)


@pytest.mark.parametrize(
    ("instruction", "name"),
    [("what would you stand on to ride a wave", "wave"), ("what would carry us over the sea", "car"), ("the hair of the dog", "dog"), ("", "cup")],
)
def test_a_name_that_is_only_mentioned_is_not_asked_for(instruction: str, name: str) -> None:
    assert not asks_by_name(instruction, name)


SEEN = [[1, 2, 9], [1, 3, 9], [1, 4, 5, 9]]


@given(st.lists(st.sampled_from([*SEEN, [1, 6, 9], [1, 7, 8, 9]]), min_size=1, max_size=6))
def test_priors_are_scored_once_and_do_not_depend_on_what_was_asked_before(questions: list[list[int]]) -> None:
    asked: list[Sequence[list[int]]] = []

    def score(ways: Sequence[list[int]]) -> torch.Tensor:  # as a real one, it gives other last bits in another company
        asked.append(ways)
        return torch.tensor([sum(way) + 0.001 * len(ways) for way in ways])

    known: Priors = {}
    for own in questions:
        fresh = name_priors(score, own, SEEN, {})
        assert torch.equal(name_priors(score, own, SEEN, known), fresh)
        assert len(fresh) == 1 + len(SEEN) and fresh[0] == pytest.approx(sum(own) + 0.001 * (3 if own in SEEN else 1))
    asked.clear()
    name_priors(score, questions[0], SEEN, known)
    assert not asked, "a second question costs nothing"
