"""gIoU, cIoU, precision and the refusal rates of reasoning and referring segmentation, by the published protocol.

For each mask only whole numbers are kept (pixels of the intersection, the prediction, the target and the ignored area), so shards that were measured
apart and merged give exactly the scores of one pass, in whatever order. Differences to the published code: no epsilon is added to a denominator
(it moves gIoU by less than 1e-4), and a score without anything to measure is None, not 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lisaseg.errors import DataError
from lisaseg.types import IGNORE, TARGET

PRECISION_TENTHS = (5, 6, 7, 8, 9)  # Prec@0.5 ... Prec@0.9; tenths, so that the comparison stays exact


@dataclass(frozen=True)
class MaskCount:
    """Pixel counts of one predicted mask against one target; ignored pixels are in none but the last.

    Attributes:
        intersection, predicted, target: pixels in both, in the prediction, in the target.
        ignored: pixels without a verdict.
        tags: names by which scores can be grouped, for example (("kind", "physics"),).
    """

    intersection: int
    predicted: int
    target: int
    ignored: int = 0
    tags: tuple[tuple[str, str], ...] = ()

    @property
    def union(self) -> int:
        """Pixels in prediction or target."""
        return self.predicted + self.target - self.intersection

    @property
    def iou(self) -> float:
        """In [0, 1]; 1 if prediction and target are both empty, 0 if only one of them is."""
        return self.intersection / self.union if self.union else 1.0


@dataclass(frozen=True)
class Scores:
    """What `MaskMetrics.compute` gives; all but `n` in [0, 1], None if there is nothing to measure.

    Attributes:
        n: number of masks.
        giou: mean of the masks' IoU.
        ciou: sum of intersections / sum of unions.
        precision: share of masks with IoU >= threshold, by threshold ("0.5" to "0.9").
        n_acc: share of queries without a target (and without ignored pixels, which could be one) for which no pixel was predicted.
        t_acc: share of queries with a target for which at least one pixel was predicted.
        n_target, n_no_target: how many queries of either sort.
    """

    n: int
    giou: float | None
    ciou: float | None
    precision: dict[str, float | None]
    n_acc: float | None
    t_acc: float | None
    n_target: int
    n_no_target: int


def count_pixels(pred: np.ndarray, target: np.ndarray, **tags: object) -> MaskCount:
    """Compare one mask with its target.

    Args:
        pred: bool `(H, W)`.
        target: uint8 `(H, W)`: 0 background, 1 target, 255 ignore (no verdict, whatever was predicted there).
        tags: names for grouping.

    Raises:
        DataError: another shape, type or value.
    """
    if pred.dtype != np.bool_ or target.dtype != np.uint8 or pred.ndim != 2 or pred.shape != target.shape:
        raise DataError(
            "A prediction must be bool (H, W) and its target uint8 of the same shape, "
            f"got {pred.dtype} {pred.shape} and {target.dtype} {target.shape}.",
            next_step="Cut logits at 0 and resize them to the picture before measuring.",
        )
    hit, hidden = target == TARGET, target == IGNORE
    if int(target.max(initial=0)) > TARGET and bool((target[~hidden] > TARGET).any()):
        raise DataError("A target mask holds values other than 0, 1 and 255.", next_step="Map the values before measuring.")
    return MaskCount(
        intersection=int(np.count_nonzero(pred & hit)),
        predicted=int(np.count_nonzero(pred & ~hidden)),
        target=int(np.count_nonzero(hit)),
        ignored=int(np.count_nonzero(hidden)),
        tags=tuple(sorted((name, str(value)) for name, value in tags.items())),
    )


@dataclass
class MaskMetrics:
    """Collects masks one by one; `merge` joins shards, `compute` gives the scores. `counts` are the masks so far, in the order of arrival."""

    counts: list[MaskCount] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.counts)

    def update(self, pred: np.ndarray, target: np.ndarray, **tags: object) -> float:
        """Add one mask: pred bool `(H, W)`, target uint8 `(H, W)` in {0, 1, 255}; returns its IoU. Raises DataError as `count_pixels`."""
        count = count_pixels(pred, target, **tags)
        self.counts.append(count)
        return count.iou

    def merge(self, *others: MaskMetrics) -> MaskMetrics:
        """A new object that holds these masks and those of `others`."""
        return MaskMetrics([count for part in (self, *others) for count in part.counts])

    def compute(self) -> Scores:
        """Scores of all masks; they do not depend on the order."""
        n, rows = len(self.counts), self.counts
        union = sum(row.union for row in rows)
        targets = [row for row in rows if row.target]
        without = [row for row in rows if not row.target and not row.ignored]
        return Scores(
            n=n,
            giou=_share(math.fsum(row.iou for row in rows), n),
            ciou=_share(sum(row.intersection for row in rows), union),
            precision={f"0.{t}": _share(sum(10 * row.intersection >= t * row.union for row in rows), n) for t in PRECISION_TENTHS},
            n_acc=_share(sum(row.predicted == 0 for row in without), len(without)),
            t_acc=_share(sum(row.predicted > 0 for row in targets), len(targets)),
            n_target=len(targets),
            n_no_target=len(without),
        )

    def groups(self, tag: str) -> dict[str, MaskMetrics]:
        """Masks by the value of a tag, sorted by value; those without the tag are left out."""
        found: dict[str, MaskMetrics] = {}
        for value, count in self._tagged(tag):
            found.setdefault(value, MaskMetrics()).counts.append(count)
        return dict(sorted(found.items()))

    def interval(self, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
        """Percentile bootstrap interval of gIoU over masks; the same for any order of them. None if there are no masks."""
        if not self.counts:
            return None
        values = np.sort(np.array([row.iou for row in self.counts]))  # sorted: the draw must not depend on the order of shards
        rng = np.random.default_rng(seed)
        means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)])
        low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def to_rows(self) -> list[list[Any]]:
        """JSON-ready, one `[intersection, predicted, target, ignored, {tags}]` a mask: what a shard writes."""
        return [[c.intersection, c.predicted, c.target, c.ignored, dict(c.tags)] for c in self.counts]

    @classmethod
    def from_rows(cls, rows: list[list[Any]]) -> MaskMetrics:
        """Undo `to_rows`."""
        return cls([MaskCount(int(i), int(p), int(t), int(g), tuple(sorted(tags.items()))) for i, p, t, g, tags in rows])

    def _tagged(self, tag: str) -> Iterator[tuple[str, MaskCount]]:
        for count in self.counts:
            for name, value in count.tags:
                if name == tag:
                    yield value, count


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
