"""The paired bootstrap: right about what is certain, calibrated about what is not, and about one data set only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisaseg.errors import UsageError
from lisaseg.eval.compare import compare, read_report
from lisaseg.eval.summary import report_of


def report(
    ious: list[float], model: str = "m", *, empty: str = "lisa", pictures: int | None = None, seen: str = "d", absent: int = 0
) -> dict[str, Any]:
    """A report whose k-th query reached ious[k]; every mask has 1000 pixels in the union. The last `absent` queries have no target."""
    rows = []
    for k, iou in enumerate(ious):
        counts = [round(1000 * iou), 1000, round(1000 * iou), 0, 0, 0] if k < len(ious) - absent else [0, 1000 if iou == 0 else 0, 0, 0, 0, 0]
        row: dict[str, Any] = {"at": [k, 0], "id": str(k), "text": "q", "kind": "k", "name": "", "is_sentence": False, "source": "s", "ious": None}
        row |= {"picture": f"p{k % pictures if pictures else k}", "digest": f"{seen}{k}", "target_share": 0.1, "counts": [counts], "iou": iou}
        rows.append(row | {"present": True, "status": "masks", "right_name": None, "seconds": 0, "scores": [1.0], "answer": "[SEG]"})
    return report_of(rows, {"model": model, "mode": "generated", "template": "evaluation", "precision": "float32", "ask_mode": "auto"}, empty=empty)


IOUS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=12)


@settings(max_examples=25)
@given(IOUS, st.data())
def test_the_difference_is_that_of_the_reports_and_turns_with_them(a: list[float], data: st.DataObject) -> None:
    b = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=len(a), max_size=len(a)))
    one, two = report(a), report(b)
    forth, back = (compare(*pair, resamples=300) for pair in ((one, two), (two, one)))
    for name, x, y in (("giou", 0, 0), ("ciou", 1, 1)):
        assert forth.differences[x].difference == pytest.approx(one[name] - two[name], abs=1e-5)
        assert forth.differences[y].ci95 == pytest.approx(tuple(-v for v in reversed(back.differences[y].ci95)))
        assert forth.differences[y].p == back.differences[y].p and 0 < forth.differences[y].p <= 1
    assert (forth.better, forth.worse, forth.equal) == (back.worse, back.better, back.equal)
    assert forth.better + forth.worse + forth.equal == forth.n == len(a)


def test_a_report_does_not_differ_from_itself() -> None:
    found = compare(report([0.1, 0.5, 0.9]), report([0.1, 0.5, 0.9])).differences[0]
    assert (found.difference, found.ci95, found.p) == (0, (0, 0), 1)


def test_better_everywhere_is_certain_and_better_on_one_is_not() -> None:
    base = [0.2 + 0.01 * k for k in range(30)]
    sure = compare(report([x + 0.1 for x in base]), report(base)).differences[0]
    assert sure.difference == pytest.approx(0.1) and sure.ci95[0] > 0.099 and sure.p < 0.001
    luck = compare(report([1.0, *base[1:]]), report(base)).differences[0]
    assert luck.ci95[0] == 0 and luck.p == pytest.approx(2 * (29 / 30) ** 30, abs=0.03)  # twice the chance that the one is never drawn


@pytest.mark.parametrize("pictures", [1, 2, 5, 9])
def test_few_pictures_prove_little_however_clear_they_are(pictures: int) -> None:
    """Of two equal models, one wins on all of so many pictures with this probability; a bootstrap of one picture would be sure of anything."""
    (giou, ciou) = compare(report([0.9] * pictures), report([0.1] * pictures)).differences
    assert giou.difference == pytest.approx(0.8, abs=0.01) and giou.p == ciou.p == 2.0 ** (1 - pictures)


def test_pairing_sees_what_two_intervals_do_not() -> None:
    rng = np.random.default_rng(0)
    base = [float(x) for x in rng.uniform(0.1, 0.9, 40)]
    a, b = report([x + 0.03 for x in base]), report(base)
    assert a["giou_ci95"][0] < b["giou_ci95"][1], "the single intervals overlap"
    assert compare(a, b).differences[0].p < 0.001


def test_questions_about_one_picture_are_one_piece_of_evidence() -> None:
    a, b = [0.6, 0.4] * 20, [0.5, 0.5] * 20
    a[0::2] = [0.9] * 20
    apart = compare(report(a), report(b)).differences[0]
    together = compare(report(a, pictures=2), report(b, pictures=2)).differences[0]
    assert together.p > 0.2 > 0.01 > apart.p and together.ci95[1] - together.ci95[0] > 2 * (apart.ci95[1] - apart.ci95[0])


@pytest.mark.parametrize("rule", ["lisa", "zero", "skip"])
def test_the_rule_for_empty_targets_is_that_of_the_reports(rule: str) -> None:
    a, b = report([1.0, 0.5, 1.0, 0.0], empty=rule, absent=2), report([0.5, 0.5, 0.0, 0.0], empty=rule, absent=2)
    found = compare(a, b, resamples=200)
    assert (found.differences[0].a, found.differences[0].b) == (pytest.approx(a["giou"]), pytest.approx(b["giou"]))
    assert (found.differences[1].a, found.differences[1].b) == (pytest.approx(a["ciou"]), pytest.approx(b["ciou"]))


def test_other_data_or_another_rule_is_refused() -> None:
    with pytest.raises(UsageError, match="differ in their data") as caught:
        compare(report([0.1, 0.2]), report([0.1, 0.2], seen="e"))
    assert caught.value.code == "different_data"
    with pytest.raises(UsageError, match="rule for empty targets"):
        compare(report([0.1, 0.2]), report([0.1, 0.2], empty="skip"))
    forced = report([0.1, 0.2]) | {"mode": "teacher_forced"}
    assert compare(report([0.1, 0.2]), forced).differs == ("mode: generated / teacher_forced",)


@pytest.mark.parametrize(
    "content", [None, "no JSON", "[]", "{}", '{"per_sample": [], "data_hash": "x"}', '{"per_sample": [{"iou": 1}], "data_hash": "x"}']
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(UsageError, match="is no report"):
        read_report(tmp_path)


def test_a_report_is_read_from_its_folder_and_its_file(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report([0.1, 0.2])))
    assert read_report(tmp_path) == read_report(tmp_path / "report.json")
