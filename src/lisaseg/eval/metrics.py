"""gIoU, cIoU, boundary IoU, precision and the refusal rates of reasoning and referring segmentation, by the published protocol.

For each mask only whole numbers are kept (pixels of the intersection, the prediction, the target, the ignored area and the edges), so shards that
were measured apart and merged give exactly the scores of one pass, in whatever order, and nothing is padded. Differences to the published code: no
epsilon is added to a denominator (it moves gIoU by less than 1e-4), and a score without anything to measure is None, not 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lisaseg.errors import DataError, UsageError
from lisaseg.types import IGNORE, TARGET

# How a mask counts whose target is empty ("there is none"). Published numbers differ in this, so a report names its rule.
EMPTY_RULES = {
    "lisa": "an empty prediction scores 1, any pixel scores 0; both count in gIoU, cIoU and Prec@ (LISA's code, the default)",
    "gres": "as lisa, but Prec@ is over the masks with a target only (GRES / ReLA's code for gRefCOCO)",
    "zero": "scores 0 even if the prediction is empty as well (code that computes I / (U + epsilon))",
    "skip": "is left out of gIoU, cIoU and Prec@; only N-acc sees it (sets in which everything asked for exists)",
}
EDGE_SHARE = 0.02  # width of the boundary band as a share of the picture's diagonal, the default of arXiv 2103.16562
PRECISION_TENTHS = (5, 6, 7, 8, 9)  # Prec@0.5 ... Prec@0.9; tenths, so that the comparison stays exact


@dataclass(frozen=True)
class MaskCount:
    """Pixel counts of one predicted mask against one target; ignored pixels are in none but the last.

    Attributes:
        intersection, predicted, target: pixels in both, in the prediction, in the target.
        ignored: pixels without a verdict.
        edge_intersection, edge_union: the same two for the boundary bands alone, see `boundary`.
        tags: names by which scores can be grouped, for example (("kind", "physics"),).
    """

    intersection: int
    predicted: int
    target: int
    ignored: int = 0
    edge_intersection: int = 0
    edge_union: int = 0
    tags: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, numbers: Sequence[int], tags: Mapping[str, str]) -> MaskCount:
        """From the six counts in their order, and tags; those with an empty value are dropped."""
        intersection, predicted, target, ignored, edge_intersection, edge_union = (int(n) for n in numbers)
        pairs = tuple(sorted((name, value) for name, value in tags.items() if value))
        return cls(intersection, predicted, target, ignored, edge_intersection, edge_union, pairs)

    @property
    def union(self) -> int:
        """Pixels in prediction or target."""
        return self.predicted + self.target - self.intersection

    @property
    def iou(self) -> float:
        """In [0, 1]; 1 if prediction and target are both empty, 0 if only one of them is."""
        return self.intersection / self.union if self.union else 1.0

    @property
    def boundary_iou(self) -> float:
        """IoU of the boundary bands, in [0, 1]; the plain IoU where no edge has a verdict (everything empty, or cut off by ignored pixels)."""
        return self.edge_intersection / self.edge_union if self.edge_union else self.iou


@dataclass(frozen=True)
class Scores:
    """What `MaskMetrics.compute` gives; all but the counts in [0, 1], None if there is nothing to measure.

    Attributes:
        n: number of masks that count under the rule.
        giou: mean of the masks' IoU.
        ciou: sum of intersections / sum of unions.
        boundary_iou: mean of the masks' boundary IoU.
        precision: share of masks with IoU >= threshold, by threshold ("0.5" to "0.9").
        n_acc: share of queries without a target (and without ignored pixels, which could be one) for which no pixel was predicted.
        t_acc: share of queries with a target for which at least one pixel was predicted.
        n_target, n_no_target: how many queries of either sort.
    """

    n: int
    giou: float | None
    ciou: float | None
    boundary_iou: float | None
    precision: dict[str, float | None]
    n_acc: float | None
    t_acc: float | None
    n_target: int
    n_no_target: int


def boundary(mask: np.ndarray, ignore: np.ndarray | None = None) -> np.ndarray:
    """The band along a mask's edge, inside of it (boundary IoU, arXiv 2103.16562).

    Args:
        mask: bool `(H, W)`.
        ignore: bool `(H, W)`, pixels without a verdict; an edge that only they form is no edge.

    Returns:
        Bool `(H, W)`: pixels of the mask whose square of side 2 d + 1, d = 2 % of the diagonal but at least 1, holds a pixel outside of mask and
        ignored area, or reaches out of the picture.
    """
    height, width = mask.shape
    d = max(1, round(EDGE_SHARE * math.hypot(height, width)))
    solid = mask if ignore is None else mask | ignore
    for axis, size in ((0, height), (1, width)):
        edge = [(d + 1, d) if a == axis else (0, 0) for a in (0, 1)]
        sums = np.pad(solid, edge).cumsum(axis, dtype=np.int32)
        solid = (sums.take(range(2 * d + 1, size + 2 * d + 1), axis) - sums.take(range(size), axis)) == 2 * d + 1
    band = mask & ~solid
    return band if ignore is None else band & ~ignore


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
    said = pred & ~hidden
    pred_edge, true_edge = boundary(said, hidden), boundary(hit, hidden)
    return MaskCount(
        intersection=int(np.count_nonzero(said & hit)),
        predicted=int(np.count_nonzero(said)),
        target=int(np.count_nonzero(hit)),
        ignored=int(np.count_nonzero(hidden)),
        edge_intersection=int(np.count_nonzero(pred_edge & true_edge)),
        edge_union=int(np.count_nonzero(pred_edge | true_edge)),
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

    def compute(self, empty: str = "lisa") -> Scores:
        """Scores of all masks; they do not depend on the order.

        Args:
            empty: how masks with an empty target count; a key of `EMPTY_RULES`.

        Raises:
            UsageError: unknown rule.
        """
        if empty not in EMPTY_RULES:
            raise UsageError(f"Unknown rule for empty targets {empty!r}.", next_step=f"Use one of: {', '.join(EMPTY_RULES)}.")
        targets = [row for row in self.counts if row.target]
        without = [row for row in self.counts if not row.target and not row.ignored]
        rows = targets if empty == "skip" else self.counts
        judged = targets if empty in ("skip", "gres") else self.counts

        def worth(row: MaskCount, value: float) -> float:
            return 0.0 if empty == "zero" and not row.union else value

        hits = {t: sum(10 * r.intersection >= t * r.union and (empty != "zero" or r.union > 0) for r in judged) for t in PRECISION_TENTHS}
        return Scores(
            n=len(rows),
            giou=_share(math.fsum(worth(row, row.iou) for row in rows), len(rows)),
            ciou=_share(sum(row.intersection for row in rows), sum(row.union for row in rows)),
            boundary_iou=_share(math.fsum(worth(row, row.boundary_iou) for row in rows), len(rows)),
            precision={f"0.{t}": _share(n, len(judged)) for t, n in hits.items()},
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

    def interval(self, *, by: str | None = None, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
        """Percentile bootstrap interval of gIoU; the same for any order of the masks. None if there is nothing to draw from: fewer than two piles.

        Args:
            by: a tag, for example "picture": masks that share its value are drawn together, because questions about one picture succeed and fail
                together and are no independent evidence. None, or a mask without the tag: each mask for itself.
            resamples, confidence, seed: of the bootstrap.
        """
        piles: dict[tuple[str, int], list[float]] = {}
        for k, row in enumerate(sorted(self.counts, key=lambda r: r.iou)):  # sorted: the draw must not depend on the order of shards
            value = dict(row.tags).get(by, "") if by else ""
            piles.setdefault((value, -1 if value else k), []).append(row.iou)
        if len(piles) < 2:
            return None
        sums = np.array([[math.fsum(pile), len(pile)] for _, pile in sorted(piles.items())])
        rng = np.random.default_rng(seed)
        times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)  # how often each is drawn
        drawn = times @ sums
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def to_rows(self) -> list[list[Any]]:
        """JSON-ready, one `[intersection, predicted, target, ignored, edge_intersection, edge_union, {tags}]` a mask: what a shard writes."""
        return [[c.intersection, c.predicted, c.target, c.ignored, c.edge_intersection, c.edge_union, dict(c.tags)] for c in self.counts]

    @classmethod
    def from_rows(cls, rows: list[list[Any]]) -> MaskMetrics:
        """Undo `to_rows`."""
        return cls([MaskCount.of(numbers, tags) for *numbers, tags in rows])

    def _tagged(self, tag: str) -> Iterator[tuple[str, MaskCount]]:
        for count in self.counts:
            for name, value in count.tags:
                if name == tag:
                    yield value, count


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
