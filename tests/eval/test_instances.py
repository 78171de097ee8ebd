"""AP of several masks: the numbers of pycocotools, whatever the order and the shards."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lisaseg.eval.instances import InstanceMetrics, QueryInstances
from lisaseg.formats import rle

SIDE = 24


def blob(rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    y, x = rng.integers(0, SIDE - 8, 2)
    h, w = rng.integers(4, 9, 2)
    mask[y : y + h, x : x + w] = True
    return mask


def near(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.roll(mask, tuple(rng.integers(-1, 2, 2)), (0, 1)) if rng.random() < 0.7 else blob(rng)


def by_pycocotools(queries: list[tuple[list[np.ndarray], list[float], list[np.ndarray]]]) -> dict[str, float]:
    images = [{"id": k, "height": SIDE, "width": SIDE} for k in range(len(queries))]
    true = [(k, mask) for k, (_, _, targets) in enumerate(queries) for mask in targets]
    said = [(k, mask, score) for k, (pred, scores, _) in enumerate(queries) for mask, score in zip(pred, scores, strict=True)]
    shared = {"category_id": 1, "iscrowd": 0}
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = {"images": images, "categories": [{"id": 1}], "annotations": [
            {"id": n, "image_id": k, "area": int(m.sum()), "segmentation": rle.encode(m), **shared} for n, (k, m) in enumerate(true, start=1)
        ]}  # fmt: skip
        truth.createIndex()
        found.dataset = {"images": images, "categories": [{"id": 1}], "annotations": [
            {"id": n, "image_id": k, "area": int(m.sum()), "segmentation": rle.encode(m), "score": s, **shared}
            for n, (k, m, s) in enumerate(said, start=1)
        ]}  # fmt: skip
        found.createIndex()
        run = COCOeval(truth, found, "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {"ap": run.stats[0], "ap50": run.stats[1], "ap75": run.stats[2]}


def measured(queries: list[tuple[list[np.ndarray], list[float], list[np.ndarray]]], places: list[int]) -> InstanceMetrics:
    metrics = InstanceMetrics()
    for k in places:
        pred, scores, targets = queries[k]
        metrics.update((k, 0), pred, scores, [target.astype(np.uint8) for target in targets])
    return metrics


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_equal_to_pycocotools_in_any_order_and_shards(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    queries = []
    for _ in range(n):
        targets = [blob(rng) for _ in range(rng.integers(1, 4))]
        pred = [near(targets[rng.integers(len(targets))], rng) for _ in range(rng.integers(0, 5))]
        queries.append((pred, [float(s) for s in rng.choice([0.2, 0.5, 0.5, 0.9], len(pred))], targets))
    order = [int(k) for k in rng.permutation(n)]
    found = measured(queries, order).compute()
    parts = measured(queries, order[: n // 2]), measured(queries, order[n // 2 :])
    assert found == measured(queries, list(range(n))).compute() == parts[1].merge(parts[0]).compute()
    assert found == pytest.approx(by_pycocotools(queries), abs=1e-9)


def test_nothing_to_find_is_none_and_nothing_found_is_zero() -> None:
    assert InstanceMetrics().compute() is None
    assert InstanceMetrics([QueryInstances((0, 0), (0.5,), ((),), 0)]).compute() is None
    assert InstanceMetrics([QueryInstances((0, 0), (), (), 2)]).compute() == {"ap": 0, "ap50": 0, "ap75": 0}
