"""Metrics: equal to the published protocol, exact under sharding, blind to order and to ignored pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file
from tests.golden.places import EXTRAS

from lisaseg.errors import DataError, UsageError
from lisaseg.eval.metrics import EMPTY_RULES, MaskMetrics, boundary, count_pixels

SHAPE = (3, 4)
PRED = hnp.arrays(np.bool_, SHAPE)
TRUE = hnp.arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 1, 255]))
PAIRS = st.lists(st.tuples(PRED, TRUE, st.sampled_from(["a", "b"])), max_size=8)


def measured(pairs: list[tuple[np.ndarray, np.ndarray, str]]) -> MaskMetrics:
    metrics = MaskMetrics()
    for pred, target, kind in pairs:
        metrics.update(pred, target, kind=kind)
    return metrics


def mask(*rows: str) -> np.ndarray:
    return np.array([[{".": 0, "x": 1, "?": 255}[c] for c in row] for row in rows], np.uint8)


def test_golden_values_of_the_reference() -> None:
    truth, arrays = json.loads((EXTRAS / "metrics.json").read_text()), load_file(EXTRAS / "metrics.safetensors")
    metrics = MaskMetrics()
    for i, rows in enumerate(truth["per_sample"]):
        for k, row in enumerate(rows):
            iou = metrics.update(arrays[f"pred_logits_{i}"][k] > 0, arrays[f"gt_{i}"][k])
            assert (metrics.counts[-1].intersection, metrics.counts[-1].union) == (row["intersection"], row["union"])
            assert iou == pytest.approx(row["iou"], abs=1e-5)
    scores = metrics.compute()
    assert scores.n == truth["n_masks"]
    assert scores.giou == pytest.approx(truth["giou"], abs=1e-5)
    assert scores.ciou == pytest.approx(truth["ciou"], abs=1e-5)


@pytest.mark.parametrize(
    ("pred", "target", "iou"),
    [
        (mask("xx.."), mask("xx.."), 1.0),
        (mask("xx.."), mask("x..."), 0.5),
        (mask("...."), mask("x..."), 0.0),
        (mask("...."), mask("...."), 1.0),  # nothing there, nothing said
        (mask("x..."), mask("...."), 0.0),
        (mask("xxxx"), mask("????"), 1.0),  # no verdict at all
        (mask("x..."), mask("..??"), 0.0),
        (mask("xxx."), mask("x??."), 1.0),
    ],
)
def test_iou_by_hand(pred: np.ndarray, target: np.ndarray, iou: float) -> None:
    assert MaskMetrics().update(pred > 0, target) == iou


def test_giou_and_ciou_differ_where_sizes_differ() -> None:
    metrics = MaskMetrics()
    metrics.update(mask("xxxxxxxx") > 0, mask("xxxxxxxx"))
    metrics.update(mask("x.......") > 0, mask(".x......"))
    scores = metrics.compute()
    assert (scores.giou, scores.ciou) == (0.5, 0.8)


def test_precision_includes_its_threshold_exactly() -> None:
    metrics = MaskMetrics()
    metrics.update(mask("xxxxxxx...") > 0, mask("xxxxxxxxxx"))  # 7/10; 0.7 in floats would be fragile
    assert metrics.compute().precision == {"0.5": 1, "0.6": 1, "0.7": 1, "0.8": 0, "0.9": 0}


def test_refusal_rates() -> None:
    metrics = MaskMetrics()
    for pred, target in [("....", "...."), ("x...", "...."), ("x...", "...x"), ("....", "xx.."), ("x...", "xx.."), ("....", "..??")]:
        metrics.update(mask(pred) > 0, mask(target))
    scores = metrics.compute()
    assert (scores.n_acc, scores.t_acc) == (1 / 2, 2 / 3)
    assert (scores.n_no_target, scores.n_target) == (2, 3)  # an ignored area could hold the target: in neither


def test_nothing_to_measure_is_none() -> None:
    scores = MaskMetrics().compute()
    assert (scores.n, scores.giou, scores.ciou, scores.n_acc, scores.t_acc, scores.precision["0.5"]) == (0, None, None, None, None, None)
    assert MaskMetrics().interval() is None
    refused = MaskMetrics()
    refused.update(mask("..") > 0, mask(".."))
    assert (refused.compute().giou, refused.compute().ciou) == (1.0, None)


@given(PAIRS, st.integers(0, 8))
def test_merge_is_a_single_pass(pairs: list[tuple[np.ndarray, np.ndarray, str]], cut: int) -> None:
    whole, parts = measured(pairs), (measured(pairs[:cut]), measured(pairs[cut:]))
    for joined in (parts[0].merge(parts[1]), parts[1].merge(parts[0])):
        assert all(joined.compute(rule) == whole.compute(rule) for rule in EMPTY_RULES)
        assert joined.interval(resamples=20) == whole.interval(resamples=20)
        assert {k: v.compute() for k, v in joined.groups("kind").items()} == {k: v.compute() for k, v in whole.groups("kind").items()}
    assert len(parts[0]) == len(pairs[:cut])  # merging leaves the shards as they are


@given(PAIRS)
def test_shards_survive_json(pairs: list[tuple[np.ndarray, np.ndarray, str]]) -> None:
    metrics = measured(pairs)
    assert MaskMetrics.from_rows(json.loads(json.dumps(metrics.to_rows()))).counts == metrics.counts


@given(PAIRS, st.randoms(use_true_random=False))
def test_order_does_not_matter(pairs: list[tuple[np.ndarray, np.ndarray, str]], random: object) -> None:
    mixed = list(pairs)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert measured(mixed).compute() == measured(pairs).compute()
    assert measured(mixed).interval(resamples=20) == measured(pairs).interval(resamples=20)


@given(PAIRS)
def test_bounds(pairs: list[tuple[np.ndarray, np.ndarray, str]]) -> None:
    metrics = measured(pairs)
    scores = metrics.compute()
    for value in (scores.giou, scores.ciou, scores.boundary_iou, scores.n_acc, scores.t_acc, *scores.precision.values()):
        assert value is None or 0 <= value <= 1
    steps = [scores.precision[f"0.{t}"] or 0 for t in range(5, 10)]
    assert steps == sorted(steps, reverse=True)
    interval = metrics.interval(resamples=50)
    assert (interval is None) == (len(pairs) < 2), "one mask says nothing about others"
    if interval:
        ious = [c.iou for c in metrics.counts]
        assert min(ious) - 1e-12 <= interval[0] <= interval[1] <= max(ious) + 1e-12


@given(PRED, PRED, TRUE)
def test_ignored_pixels_do_not_count(pred: np.ndarray, other: np.ndarray, target: np.ndarray) -> None:
    changed = np.where(target == 255, other, pred)
    assert count_pixels(pred, target) == count_pixels(changed, target)


@given(PRED, TRUE)
def test_a_perfect_answer_scores_one_and_swapping_changes_nothing(pred: np.ndarray, target: np.ndarray) -> None:
    assert count_pixels(target == 1, target).iou == 1
    truth = (target == 1).astype(np.uint8)
    assert count_pixels(pred, truth).iou == count_pixels(truth > 0, pred.astype(np.uint8)).iou


def test_the_interval_is_seeded_and_narrows_with_more_masks(rng: np.random.Generator) -> None:
    few, many = MaskMetrics(), MaskMetrics()
    for k in range(400):
        pred, target = rng.random((4, 4)) > 0.5, (rng.random((4, 4)) > 0.5).astype(np.uint8)
        many.update(pred, target)
        if k < 25:
            few.update(pred, target)
    low, high = few.interval(seed=3)
    assert (low, high) == few.interval(seed=3) != few.interval(seed=4)
    assert low < few.compute().giou < high
    narrow = many.interval()
    assert narrow[1] - narrow[0] < (high - low) / 2


@pytest.mark.parametrize(
    ("pred", "target"),
    [
        (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8)),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool)),
        (np.zeros((2, 2), bool), np.zeros((2, 3), np.uint8)),
        (np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2), np.uint8)),
        (np.zeros((2, 2), bool), np.full((2, 2), 2, np.uint8)),
    ],
)
def test_wrong_arrays_are_refused(pred: np.ndarray, target: np.ndarray) -> None:
    with pytest.raises(DataError):
        MaskMetrics().update(pred, target)


def test_every_rule_for_empty_targets_by_hand() -> None:
    metrics = MaskMetrics()
    for pred, target in [("xx..", "xx.."), ("....", "...."), ("x...", "....")]:  # right; nothing there, nothing said; nothing there, something said
        metrics.update(mask(pred) > 0, mask(target))
    found = {rule: metrics.compute(rule) for rule in EMPTY_RULES}
    assert {rule: scores.giou for rule, scores in found.items()} == {"lisa": 2 / 3, "gres": 2 / 3, "zero": 1 / 3, "skip": 1}
    assert {rule: scores.ciou for rule, scores in found.items()} == {"lisa": 2 / 3, "gres": 2 / 3, "zero": 2 / 3, "skip": 1}
    assert {rule: scores.precision["0.5"] for rule, scores in found.items()} == {"lisa": 2 / 3, "gres": 1, "zero": 1 / 3, "skip": 1}
    assert {(scores.n_acc, scores.t_acc) for scores in found.values()} == {(0.5, 1)}
    assert {rule: scores.n for rule, scores in found.items()} == {"lisa": 3, "gres": 3, "zero": 3, "skip": 1}
    with pytest.raises(UsageError, match="lisa, gres"):
        metrics.compute("mine")


def by_definition(shape: np.ndarray, ignore: np.ndarray) -> np.ndarray:
    """The boundary band, pixel by pixel."""
    d = max(1, round(0.02 * float(np.hypot(*shape.shape))))
    solid, band = np.pad(shape | ignore, d), np.zeros_like(shape)
    for y, x in np.argwhere(shape & ~ignore):
        band[y, x] = not solid[y : y + 2 * d + 1, x : x + 2 * d + 1].all()
    return band


BIG = (50, 90)  # here the band is two pixels wide


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.98), st.booleans())
def test_the_boundary_is_what_its_definition_says(seed: int, share: float, hide: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = np.kron(rng.random((5, 9)) < share, np.ones((10, 10))) > 0
    ignore = (np.kron(rng.random((5, 9)) < 0.2, np.ones((10, 10))) > 0) if hide else np.zeros(BIG, bool)
    assert np.array_equal(boundary(shape, ignore), by_definition(shape, ignore))
    assert np.array_equal(boundary(shape), by_definition(shape, np.zeros(BIG, bool)))


def test_boundary_iou_sees_what_iou_does_not() -> None:
    true = np.zeros((200, 200), np.uint8)
    true[20:180, 20:180] = 1
    frayed = true > 0
    frayed[20:26, 20:180:2] = False  # a comb along one side
    count = count_pixels(frayed, true)
    assert count.iou > 0.97 and count.boundary_iou < 0.8
    assert count_pixels(true > 0, true).boundary_iou == 1


@given(PRED, PRED, TRUE)
def test_the_boundary_too_is_blind_to_ignored_pixels(pred: np.ndarray, other: np.ndarray, target: np.ndarray) -> None:
    count, changed = count_pixels(pred, target), count_pixels(np.where(target == 255, other, pred), target)
    assert (count.edge_intersection, count.edge_union) == (changed.edge_intersection, changed.edge_union)


def test_masks_of_one_picture_are_drawn_together() -> None:
    """Ten questions about one picture are one piece of evidence: the interval is that of the pictures, not of the questions."""
    one, many = MaskMetrics(), MaskMetrics()
    for k in range(8):
        pred, target = mask("xx" if k % 2 else "x."), mask("xx")
        one.update(pred > 0, target, picture=k)
        for _ in range(10):
            many.update(pred > 0, target, picture=k)
    assert one.interval(by="picture") == many.interval(by="picture") == one.interval()
    low, high = many.interval()
    wide = many.interval(by="picture")
    assert high - low < (wide[1] - wide[0]) / 2
