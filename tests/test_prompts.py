"""Templates hold what they are given; drawing is by an explicit generator."""

from __future__ import annotations

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisaseg import prompts
from lisaseg.types import MODES, PLUS_MODES, SEG_TEXT

QUESTIONS = (*prompts.NAME_QUESTIONS, *prompts.PHRASE_QUESTIONS, *prompts.SENTENCE_QUESTIONS, prompts.SEGMENT_PHRASE, prompts.SEGMENT_SENTENCE)
TEXTS = st.text(max_size=40).filter(lambda t: t.strip())


@pytest.mark.parametrize("template", sorted(set(QUESTIONS)))
def test_question_templates_take_one_text_and_hold_no_seg(template: str) -> None:
    assert [field for _, field, _, _ in string.Formatter().parse(template) if field is not None] == ["text"]
    assert SEG_TEXT not in template


@pytest.mark.parametrize("template", [prompts.ANSWER_NAMED, prompts.ANSWER_UNNAMED])
def test_answer_templates_hold_one_seg(template: str) -> None:
    assert template.format(name="dog").count(SEG_TEXT) == 1


def test_refusal_and_forced_opening_hold_none() -> None:
    assert prompts.NO_TARGET.startswith(prompts.NO_TARGET_PREFIX)
    assert SEG_TEXT not in prompts.NO_TARGET + prompts.FORCED_OPENING
    assert prompts.ANSWER_UNNAMED.startswith(prompts.FORCED_OPENING)


@given(TEXTS, st.sampled_from(MODES))
def test_a_mode_keeps_what_the_user_wrote(text: str, mode: str) -> None:
    asked = prompts.with_mode(text, mode)  # type: ignore[arg-type]
    assert text.rstrip() in asked
    assert asked == text or mode in ("segment", "explain")


@given(TEXTS)
def test_segment_mode_asks_for_a_mask_once(text: str) -> None:
    asked = prompts.with_mode(text, "segment")
    assert "segment" in asked.lower()
    assert prompts.with_mode(asked, "segment") == asked


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("the dog", "What is the dog in this image? Please output segmentation mask."),
        ("Where is the dog?", "Where is the dog? Please output segmentation mask."),
        ("Find the dog", "Find the dog. Please output segmentation mask."),
        ("Segment the dog", "Segment the dog"),
    ],
)
def test_segment_mode_follows_the_evaluation_templates(text: str, asked: str) -> None:
    assert prompts.with_mode(text, "segment") == asked


@pytest.mark.parametrize(
    ("first", "joined"), [("Where?", "Where? B"), ("a dog", "a dog. B"), ("a dog. ", "a dog. B"), ("哪里？", "哪里？ B"), ("أين؟", "أين؟ B")]
)
def test_join_puts_one_full_stop(first: str, joined: str) -> None:
    assert prompts.join(first, "B") == joined


@pytest.mark.parametrize("text", ["Where is it?", "find the dog", "It stands there.", "Can you see it", " ".join(["word"] * 15)])
def test_sentences_are_seen(text: str) -> None:
    assert prompts.looks_like_sentence(text)


@pytest.mark.parametrize("text", ["the dog", "a red car on the left", "", "  "])
def test_phrases_are_no_sentences(text: str) -> None:
    assert not prompts.looks_like_sentence(text)


def test_evaluation_questions_are_the_references() -> None:
    assert prompts.evaluation_question("the dog", False) == "What is the dog in this image? Please output segmentation mask."
    assert prompts.evaluation_question("Where is it?", True) == "Where is it? Please output segmentation mask."


def test_choice_depends_on_the_generator_alone() -> None:
    draws = [[prompts.choose("abcdef", np.random.default_rng(seed)) for _ in range(3)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    generator = np.random.default_rng(0)
    assert {prompts.choose("abc", generator) for _ in range(60)} == set("abc")


@given(TEXTS, st.sampled_from(MODES + PLUS_MODES))
def test_lisa_plus_is_told_its_task_once(text: str, mode: str) -> None:
    asked = prompts.with_mode(text, mode, "lisa_plus")  # type: ignore[arg-type]
    assert text.rstrip() in asked
    assert (asked == text) if mode == "auto" else asked.endswith(prompts.TASKS[mode])
    assert prompts.with_mode(asked, mode, "lisa_plus") == asked  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "mode", "asked"), [
    ("the dogs", "instances", "What is the dogs in this image? Please output segmentation mask. Generate instance segmentation masks. Each countable "
     "object within the same category should have a separate mask. Ignore uncountable categories for individual masking."),
    ("Who is taller?", "text", "Who is taller? Respond to the question using text only. Do not generate any segmentation masks."),
    ("Who is taller?", "reason", "Who is taller? Answer the question with a step-by-step explanation."),
    ("Who is taller?", "explain", "Who is taller? Please output segmentation mask and explain why. Provide a textual answer and generate a semantic "
     "segmentation mask. Focus on categorizing the entire class without separating individual instances."),
])  # fmt: skip
def test_the_sentences_of_lisa_plus(text: str, mode: str, asked: str) -> None:
    """As its training writes them: LISA's question, a space, the task."""
    assert prompts.with_mode(text, mode, "lisa_plus") == asked  # type: ignore[arg-type]
