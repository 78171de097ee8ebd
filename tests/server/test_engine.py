"""The engine around a real predictor: the answers are the predictor's, and whatever happens to one question spares the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny_random import ABSENT, LONG, ONE, THREE, TWO, noise

from lisaseg.apps.server.engine import LisaEngine
from lisaseg.apps.server.settings import Limits
from lisaseg.formats.answer import answer_from_dict
from lisaseg.predictor import Predictor


@pytest.fixture
def engine(predictor: Predictor) -> LisaEngine:
    return LisaEngine(predictor, Limits().model_dump())


def batch(tmp_path: Path, *prompts: str, mode: str = "auto", tokens: int = 30, history: Any = (), live: bool = False) -> dict[str, Any]:
    path = tmp_path / "picture"
    Image.fromarray(noise(1)).save(path, "PNG")
    jobs = [
        {"id": f"j{k}", "image": {"path": str(path), "sha256": "s"}, "prompt": p, "history": list(history), "live": live}
        for k, p in enumerate(prompts)
    ]
    return {"mode": mode, "max_new_tokens": tokens, "jobs": jobs}


def answers(engine: LisaEngine, work: dict[str, Any], cancelled: Any = ()) -> dict[str, dict[str, Any]]:
    said: list[dict[str, Any]] = []
    engine.answer(work, said.append, set(cancelled))
    return {m["id"]: m for m in said if m["event"] != "text"}


def test_the_engine_answers_like_the_predictor(engine: LisaEngine, predictor: Predictor, tmp_path: Path) -> None:
    said = answers(engine, batch(tmp_path, ONE, ABSENT, TWO))
    for k, prompt in enumerate((ONE, ABSENT, TWO)):
        local = predictor.ask(noise(1), prompt, max_new_tokens=30)
        remote = answer_from_dict(said[f"j{k}"]["answer"])
        assert remote.raw_text == local.raw_text and np.array_equal(remote.masks, local.masks)
    assert engine.usage()["counters"] == {"image": 1, "mask": 1} and engine.usage()["cache_pictures"] == 1


def test_history_is_a_chat(engine: LisaEngine, predictor: Predictor, tmp_path: Path) -> None:
    chat = predictor.chat(noise(1))
    first = chat.ask(ONE, mode="segment", max_new_tokens=30)
    second = chat.ask(TWO, max_new_tokens=30)
    said = answers(engine, batch(tmp_path, TWO, history=[[ONE, "segment", first.raw_text]]))
    assert said["j0"]["answer"]["usage"] == second.to_dict()["usage"] and said["j0"]["answer"]["raw_text"] == second.raw_text


def test_a_question_that_cannot_be_used_spares_the_others(engine: LisaEngine, tmp_path: Path) -> None:
    work = batch(tmp_path, ONE, "x" * 1999, TWO, tokens=30)
    work["jobs"][1]["history"] = [["word " * 390, "auto", "answer " * 900]] * 2
    said = answers(engine, work)
    assert said["j1"]["code"] == "prompt_too_long" and "tokens" in said["j1"]["message"]
    assert said["j0"]["event"] == said["j2"]["event"] == "answer"
    work = batch(tmp_path, ONE)
    work["jobs"][0]["image"] = {"path": str(tmp_path / "gone"), "sha256": "gone"}
    assert answers(engine, work)["j0"]["code"] == "image_expired"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.AcceleratorError("CUDA error: out of memory"), "out_of_memory"),
        (RuntimeError("secret /etc/x at 0x7f"), "internal"),
    ],
)
def test_a_batch_that_fails_is_split(engine: LisaEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str) -> None:
    work, sizes = engine.predictor._answer, []

    def broken(jobs: Any, *more: Any) -> Any:
        sizes.append(len(jobs))
        if any(one.instruction == ABSENT for one in jobs) or (code == "out_of_memory" and len(jobs) > 2):
            raise error
        return work(jobs, *more)

    monkeypatch.setattr(engine.predictor, "_answer", broken)
    said = answers(engine, batch(tmp_path, ONE, TWO, ABSENT, ONE))
    assert said["j2"]["code"] == code and "secret" not in str(said) and all(said[f"j{k}"]["event"] == "answer" for k in (0, 1, 3))
    assert sizes[0] == 4 and max(sizes[1:]) <= 2


def test_a_lost_device_ends_the_engine(engine: LisaEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else it were asked would fail too; its successor may find the device again (what becomes of the questions: `test_faults.py`)."""

    def lost(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(engine.predictor, "_answer", lost)
    with pytest.raises(SystemExit) as end:
        answers(engine, batch(tmp_path, ONE, TWO))
    assert end.value.code == 1


def test_masks_and_states_that_are_not_numbers(engine: LisaEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = engine.predictor.model.decode_masks
    for value in (float("nan"), -1e9):
        monkeypatch.setattr(
            engine.predictor.model, "decode_masks", lambda *a, v=value: (torch.full_like(decode(*a)[0], v), torch.full_like(decode(*a)[1], v))
        )
        answer = answers(engine, batch(tmp_path, ONE, mode="segment"))["j0"]["answer"]
        assert answer["segments"][0]["area"] == 0 and answer["segments"][0]["box_xyxy"] == [0, 0, 0, 0]
        assert "NaN" not in __import__("json").dumps(answer, allow_nan=False)


def test_nobody_waits_any_more(engine: LisaEngine, tmp_path: Path) -> None:
    cancelled: set[str] = set()
    said: list[dict[str, Any]] = []

    def say(message: dict[str, Any]) -> None:
        said.append(message)
        cancelled.add("j0")  # after the first word

    engine.answer(batch(tmp_path, LONG, live=True), say, cancelled)
    assert [m["event"] for m in said] == ["text"], "the rest was not generated"
    assert set(answers(engine, batch(tmp_path, LONG, ONE), {"j0"})) == {"j1"}


def test_an_answer_that_repeats_itself_is_cut(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lisaseg.model.answering.MAX_SEGMENTS", 2)
    assert len(predictor.ask(noise(1), TWO).segments) == 2
    cut = predictor.ask(noise(1), THREE)
    assert cut.status == "truncated" and len(cut.segments) == cut.raw_text.count("[SEG]") == 2


def test_features_are_bounded_by_bytes(predictor: Predictor, tmp_path: Path) -> None:
    engine = LisaEngine(predictor, Limits().model_dump())
    answers(engine, batch(tmp_path, ONE))
    one = engine.usage()["cache_bytes"]
    assert one > 40 * 60 * 3
    predictor.remembered_bytes = int(2.5 * one)
    predictor.ask_batch([(noise(k), ONE) for k in range(2, 7)])
    kept = predictor._remembered
    assert kept.nbytes <= 2.5 * one and 0 < len(kept) < 5
    engine.rest()
    assert engine.usage()["cache_bytes"] == 0
