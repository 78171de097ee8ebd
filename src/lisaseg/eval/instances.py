"""Average precision for queries with several targets ("each cup"): COCO's segmentation AP, with every query a picture and a class of its own.

Kept for each query are only the scores of its predicted masks and their IoU with its targets, so shards merge exactly. The numbers equal pycocotools'
`COCOeval` (a test holds it) without its crowd rule, and ignored pixels are cut out of both masks before the IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lisaseg.eval.metrics import count_pixels

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
RECALLS = np.linspace(0, 1, 101)  # COCO's interpolation


@dataclass(frozen=True)
class QueryInstances:
    """One query. key: its place in the data, which breaks ties between equal scores. scores: one a predicted mask. ious: `[predicted][target]`."""

    key: tuple[int, ...]
    scores: tuple[float, ...]
    ious: tuple[tuple[float, ...], ...]
    targets: int


@dataclass
class InstanceMetrics:
    """Collects queries; `merge` joins shards, `compute` gives AP."""

    queries: list[QueryInstances] = field(default_factory=list)

    def update(self, key: Sequence[int], pred: Sequence[np.ndarray], scores: Sequence[float | None], targets: Sequence[np.ndarray]) -> QueryInstances:
        """Add one query.

        Args:
            key: place of the query in the data.
            pred: bool `(H, W)` masks. scores: the model's estimate for each; None counts as 1.
            targets: uint8 `(H, W)` masks {0, 1, 255}; those without a target pixel are left out.
        """
        real = [target for target in targets if (target == 1).any()]
        ious = tuple(tuple(count_pixels(mask, target).iou for target in real) for mask in pred)
        query = QueryInstances(tuple(key), tuple(1.0 if s is None else float(s) for s in scores), ious, len(real))
        self.queries.append(query)
        return query

    def merge(self, *others: InstanceMetrics) -> InstanceMetrics:
        """A new object that holds these queries and those of `others`."""
        return InstanceMetrics([query for part in (self, *others) for query in part.queries])

    def compute(self) -> dict[str, float] | None:
        """{"ap": mean over IoU 0.50 to 0.95, "ap50", "ap75"} in [0, 1]; None without a target."""
        if not any(query.targets for query in self.queries):
            return None
        by_threshold = {threshold: self._precision(threshold) for threshold in IOU_THRESHOLDS}
        return {"ap": float(np.mean(list(by_threshold.values()))), "ap50": by_threshold[0.5], "ap75": by_threshold[0.75]}

    def _precision(self, threshold: float) -> float:
        found: list[tuple[float, tuple[int, ...], int, bool]] = []
        for query in self.queries:
            order = sorted(range(len(query.scores)), key=lambda k: -query.scores[k])[:100]  # COCO looks at 100 masks a picture
            free = set(range(query.targets))
            for rank, k in enumerate(order):
                best = max(free, key=lambda t: (query.ious[k][t], t), default=None)  # COCO gives equal overlaps to the later target
                hit = best is not None and query.ious[k][best] >= min(threshold, 1 - 1e-10)
                if hit and best is not None:
                    free.discard(best)
                found.append((-query.scores[k], query.key, rank, hit))
        hits = np.array([hit for *_, hit in sorted(found)], dtype=np.float64)
        true = hits.cumsum()
        precision = true / np.arange(1, len(hits) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a higher one
        places = np.searchsorted(true / sum(query.targets for query in self.queries), RECALLS, side="left")
        return float(np.mean([precision[p] if p < len(precision) else 0.0 for p in places]))
