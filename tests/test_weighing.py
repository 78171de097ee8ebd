"""Who asks for a thing by its name gets that thing; whoever only mentions a name has not asked for it."""

from __future__ import annotations

import pytest

from lisaseg.model.weighing import asks_by_name
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
