"""`evaluate`: every query is asked once, together with its neighbours, and what comes back is measured as promised."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tiny_random
from tests.eval.scripted import Scripted, answer_with

from lisaseg.errors import DataError, LisaSegError, UsageError
from lisaseg.eval.provenance import folder_hash
from lisaseg.eval.run import evaluate
from lisaseg.eval.summary import names_target, plain_name
from lisaseg.types import Answer, Query, Sample

H, W = 6, 8


def box(left: int, right: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((H, W), np.uint8)
    mask[:, left:right] = value
    return mask


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)


def sample(name: str, *queries: Query, seed: int = 0) -> Sample:
    return Sample(name, picture(seed), queries, source="set")


LEFT, WHOLE = box(0, 4) > 0, box(0, 8) > 0
DOG = Query("the barking one", (box(0, 4),), name="dog", kind="function")
NOTHING = Query("a zebra", (), kind="absent")


def always(*masks: np.ndarray, phrase: str = "", raw: str | None = None) -> Scripted:
    return Scripted(lambda rgb, text, mode: answer_with(rgb.shape[:2], masks, phrase, raw))


def test_scores_by_hand() -> None:
    report = evaluate(always(LEFT, phrase="the dog"), [sample("a", DOG), sample("b", Query("All?", (box(0, 8),), True, "sky")), sample("c", NOTHING)])
    assert [row["iou"] for row in report["per_sample"]] == [1, 0.5, 0]
    assert (report["n"], report["giou"], report["ciou"], report["n_acc"], report["t_acc"]) == (3, 0.5, 0.5, 0, 1)
    assert (report["right_name"], report["n_named"], report["refused_absent"], report["refused_present"]) == (0.5, 2, 0, 0)
    by = {tag: {key: (v["n"], v["giou"], v["ciou"]) for key, v in groups.items()} for tag, groups in report["by"].items()}
    assert by["kind"] == {"absent": (1, 0, 0), "category": (1, 0.5, 0.5), "function": (1, 1, 1)}
    assert by["is_sentence"]["true"] == (1, 0.5, 0.5)
    assert by["size"] == {"large": (2, 0.75, 0.666667)}
    assert report["giou_ci95"] is None, "all are about one picture"
    assert report["prec_at"] == {"0.5": 0.666667, "0.6": 0.333333, "0.7": 0.333333, "0.8": 0.333333, "0.9": 0.333333}


def test_the_report_has_the_promised_fields() -> None:
    report = evaluate(always(LEFT), [sample("a", DOG)])
    fields = {"model", "model_hash", "data", "data_hash", "split", "n", "mode", "giou", "ciou", "giou_ci95", "n_acc", "t_acc", "by", "precision"}
    assert fields | {"template", "versions", "contaminated", "seconds_per_sample", "per_sample"} <= set(report)
    assert (report["model"], report["data"], report["mode"], report["precision"]) == ("scripted", "set", "generated", "float32")
    assert {"id", "text", "answer", "status", "iou"} <= set(report["per_sample"][0])
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize("raw", [None, "A nice picture."])
def test_without_a_mask_something_present_scores_0_and_something_absent_1(raw: str | None) -> None:
    report = evaluate(always(raw=raw), [sample("a", DOG, NOTHING)])
    assert [row["iou"] for row in report["per_sample"]] == [0, 1]
    assert (report["n_acc"], report["t_acc"]) == (1, 0)
    assert (report["refused_absent"], report["refused_present"]) == ((1, 1) if raw is None else (0, 0))  # silence is not a stated refusal


def test_masks_of_an_answer_are_joined_for_one_target_and_matched_in_order_for_several() -> None:
    halves = (LEFT, box(4, 8) > 0)
    one = evaluate(always(*halves), [sample("a", Query("all", (box(0, 8),)))])
    two = evaluate(always(*halves), [sample("a", Query("both", (box(0, 4), box(4, 8))))])
    turned = evaluate(always(*halves[::-1]), [sample("a", Query("both", (box(0, 4), box(4, 8))))])
    few = evaluate(always(LEFT), [sample("a", Query("both", (box(0, 4), box(4, 8))))])
    many = evaluate(always(LEFT, box(4, 6) > 0, box(6, 8) > 0), [sample("a", Query("both", (box(0, 4), box(4, 8))))])
    assert [r["giou"] for r in (one, two, turned, few, many)] == [1, 1, 0, 0.5, 1]


def test_questions_follow_the_template() -> None:
    queries = (Query("the mug", (box(0, 1),)), Query("What holds tea?", (box(0, 1),), True))
    asked = {}
    for template in ("evaluation", "plain"):
        predictor = always(LEFT)
        evaluate(predictor, [sample("a", *queries)], template=template)
        asked[template] = [text for _, text in predictor.calls[0]]
    referring = always(LEFT)
    evaluate(referring, [sample("a", Query("The Left Mug", (box(0, 1),), kind="referring"))])
    assert referring.calls[0][0][1] == "What is the left mug in this image? Please output segmentation mask."  # as the reference lowercases them
    assert asked["plain"] == ["the mug", "What holds tea?"]
    assert asked["evaluation"] == [
        "What is the mug in this image? Please output segmentation mask.",
        "What holds tea? Please output segmentation mask.",
    ]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), max_size=6), st.integers(1, 7))
def test_batching_asks_everything_once_in_order_and_changes_no_score(counts: list[int], size: int) -> None:
    samples = [sample(f"s{k}", *(Query(f"q{k}.{j}", (box(0, 1 + j),)) for j in range(n)), seed=k) for k, n in enumerate(counts)]
    predictor, done, seen = always(LEFT), [], []
    if not sum(counts):
        with pytest.raises(UsageError, match="nothing to evaluate"):
            evaluate(predictor, samples, batch_size=size)
        return
    report = evaluate(
        predictor, samples, batch_size=size, template="plain", progress=done.append, on_answer=lambda s, q, a, iou: seen.append((q.text, iou))
    )
    texts = [q.text for s in samples for q in s.queries]
    assert [text for call in predictor.calls for _, text in call] == [row["text"] for row in report["per_sample"]] == texts
    assert all(len(call) <= size for call in predictor.calls) and done[-1] == len(texts)
    assert [(row["text"], row["iou"]) for row in report["per_sample"]] == [(text, round(iou, 6)) for text, iou in seen]
    alone = evaluate(always(LEFT), samples, batch_size=1, template="plain")
    assert {**alone, "seconds_per_sample": 0} == {**report, "seconds_per_sample": 0}


def test_the_data_hash_follows_the_data() -> None:
    def value(*samples: Sample) -> str:
        return evaluate(always(LEFT), samples)["data_hash"]

    same = value(sample("a", DOG))
    assert same == value(sample("a", DOG)) == evaluate(always(), [sample("a", DOG)], batch_size=3)["data_hash"]
    changed = [sample("b", DOG), sample("a", DOG, seed=1), sample("a", Query("other", DOG.masks)), sample("a", Query(DOG.text, (box(0, 5),)))]
    changed.append(sample("a", Query(DOG.text, (np.maximum(box(0, 4), box(5, 6, 255)),))))
    assert len({same, *(value(one) for one in changed)}) == 1 + len(changed)


@pytest.mark.parametrize(("phrase", "name"), [("The  Dog", "dog"), ("dining table", "dining table"), ("a couch", "couch"), ("theatre", "theatre")])
def test_articles_and_capitals_do_not_make_a_name_wrong(phrase: str, name: str) -> None:
    assert plain_name(phrase) == name


def test_right_names() -> None:
    def said(phrase: str) -> Answer:
        return answer_with((H, W), [LEFT], phrase)

    assert names_target(said("the couch"), Query("x", (box(0, 1),), name="chair, couch")) is True
    assert names_target(said("dog house"), DOG) is False
    assert names_target(answer_with((H, W), []), DOG) is False  # a refusal names nothing
    assert names_target(said("dog"), Query("x", (box(0, 1),))) is None
    assert names_target(said("dog"), Query("dog", (), name="dog")) is None


def test_a_wrong_size_names_the_sample() -> None:
    with pytest.raises(DataError, match="Sample 'tall'"):
        evaluate(always(LEFT), [sample("fine", DOG), sample("tall", Query("x", (np.zeros((H + 1, W), np.uint8),)))])


@pytest.mark.parametrize("wrong", [{"template": "poem"}, {"batch_size": 0}, {"mode": "forced"}, {"ask_mode": "loud"}, {"empty": "maybe"}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        evaluate(always(LEFT), [sample("a", DOG)], **wrong)


def test_a_missing_picture_is_an_error_not_a_gap(tmp_path: Path) -> None:
    with pytest.raises(LisaSegError, match=r"gone\.png"):
        evaluate(always(LEFT), [Sample("a", tmp_path / "gone.png", (DOG,))])


def test_the_model_hash_follows_names_and_bytes(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        (tmp_path / name / "MODEL_CARD.md").write_text(name)  # written after the evaluation: must not count
        return folder_hash(tmp_path / name)

    assert folder("a", x="1", y="2") == folder("b", y="2", x="1")
    assert len({folder("a"), folder("c", x="2", y="1"), folder("d", x="1"), folder("e", x="12")}) == 4


def test_a_real_model_is_evaluated_and_looks_at_each_picture_once(tmp_path: Path) -> None:
    from lisaseg.predictor import Predictor

    model = tiny_random.build_model()
    predictor = Predictor(model, tiny_random.build_tokenizer(tiny_random.write_tokenizer(tmp_path), model), "random")
    shape = (40, 60)
    true = tuple(np.ones(shape, np.uint8) for _ in range(1))
    samples = [Sample(f"s{k}", tiny_random.noise(k), tuple(Query(f"thing {j}", true) for j in range(3))) for k in range(2)]
    answers: list[Answer] = []
    report = evaluate(predictor, samples, ask_mode="segment", batch_size=2, on_answer=lambda s, q, a, iou: answers.append(a))
    assert report["n"] == len(answers) == 6 and predictor.counters["image_encodings"] == 2
    by_hand = [answer.masks.any(0).mean() if len(answer.masks) else 0 for answer in answers]  # the target is the whole picture
    assert [row["iou"] for row in report["per_sample"]] == pytest.approx(by_hand, abs=1e-6)
    assert report["status"].get("masks", 0) + report["status"].get("truncated", 0) == 6 and report["giou"] > 0


def test_teacher_forcing_needs_an_asker_that_can_be_forced() -> None:
    with pytest.raises(UsageError, match="generated"):
        evaluate(always(LEFT), [sample("a", DOG)], mode="teacher_forced")


def test_several_targets_give_average_precision_and_one_target_does_not() -> None:
    both = Query("both", (box(0, 4), box(4, 8)))
    found = evaluate(always(LEFT, box(4, 8) > 0), [sample("a", both), sample("b", DOG)])["instances"]
    assert found == {"ap": 1, "ap50": 1, "ap75": 1}
    assert evaluate(always(LEFT), [sample("a", both)])["instances"]["ap50"] == pytest.approx(51 / 101, abs=1e-6)  # one of two found: recall 0.5
    assert evaluate(always(), [sample("a", both)])["instances"]["ap"] == 0
    assert evaluate(always(LEFT), [sample("b", DOG)])["instances"] is None


def test_rules_for_empty_targets_are_named_and_shown_side_by_side() -> None:
    report = evaluate(always(LEFT), [sample("a", DOG, NOTHING)])
    assert report["empty_target"] == "lisa" and report["giou"] == 0.5
    assert {rule: scores["giou"] for rule, scores in report["by_empty_rule"].items()} == {"lisa": 0.5, "gres": 0.5, "zero": 0.5, "skip": 1}
    silent = evaluate(always(), [sample("a", DOG, NOTHING)], empty="zero")
    assert (silent["giou"], silent["by_empty_rule"]["lisa"]["giou"], silent["n_acc"]) == (0, 0.5, 1)
