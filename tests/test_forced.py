"""`Predictor.ask_forced`: the published protocol, where the answer is given and only its masks are the model's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from tests import tiny_random
from tests.tiny_random import GREETING, ONE, noise

from lisaseg.errors import LisaSegError
from lisaseg.predictor import Predictor


def test_a_forced_answer_has_its_masks_whatever_the_model_would_say(predictor: Predictor) -> None:
    answers = predictor.ask_forced([(noise(0), GREETING, 1), (noise(1), tiny_random.ABSENT, 1), (noise(0), ONE, 2)])
    assert [a.status for a in answers] == ["masks"] * 3
    assert [a.raw_text for a in answers] == ["It is [SEG].", "It is [SEG].", "It is [SEG], [SEG]."]
    assert [len(a.masks) for a in answers] == [1, 1, 2] and all(m.any() for a in answers for m in a.masks)
    assert predictor.counters["image_encodings"] == 2
    assert predictor.ask_forced([]) == []


@pytest.mark.parametrize("convention", ["emit", "at"])
def test_forcing_what_the_model_says_gives_the_masks_that_it_draws(predictor: Predictor, convention: str) -> None:
    """The state behind a forced [SEG] is the state behind the same generated [SEG]."""
    model = copy.deepcopy(predictor.model)
    model.config.evaluation_answer, model.config.seg_state = tiny_random.LESSONS[ONE], convention
    asker = Predictor(model, predictor.tokenizer, "random")
    said, forced = asker.ask(noise(3), ONE), asker.ask_forced([(noise(3), ONE, 1)])[0]
    assert forced.raw_text == said.raw_text and forced.segments[0].phrase == said.segments[0].phrase == "the cup"
    assert said.segments[0].score == pytest.approx(forced.segments[0].score, abs=1e-3)
    assert (said.masks[0] == forced.masks[0]).mean() > 0.999


def test_batched_is_one_by_one(predictor: Predictor) -> None:
    triples = [(noise(k % 2, 40 + 9 * k), text, 1 + k % 2) for k, text in enumerate((ONE, GREETING, "x", "a much longer question about it"))]
    for one, many in zip([predictor.ask_forced([t])[0] for t in triples], predictor.ask_forced(triples), strict=True):
        assert one.raw_text == many.raw_text and np.mean(one.masks == many.masks) > 0.999


def test_no_score_turns_a_forced_mask_into_a_refusal(predictor: Predictor) -> None:
    kept, predictor.model.config.min_score = predictor.model.config.min_score, 2.0
    try:
        assert predictor.ask(noise(0), ONE).status == "no_target"
        assert predictor.ask_forced([(noise(0), ONE, 1)])[0].status == "masks"
    finally:
        predictor.model.config.min_score = kept


def test_bad_input_is_refused_as_by_ask(predictor: Predictor) -> None:
    for triple in ((noise(0), "  ", 1), (np.zeros((0, 3, 3), np.uint8), ONE, 1)):
        with pytest.raises(LisaSegError):
            predictor.ask_forced([triple])
