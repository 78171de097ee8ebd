"""Is A better than B, or is it chance? A paired bootstrap of two reports about the same data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lisaseg.errors import UsageError
from lisaseg.eval.summary import Report, metrics_of


@dataclass(frozen=True)
class Difference:
    """A - B in one score. All in [-1, 1] but p.

    a, b: the two scores. difference: a - b. ci95: percentile bootstrap interval of the difference. p: two-sided, the share of resamples in which the
    difference has the other sign, doubled; small = unlikely to be chance. The bootstrap is too sure of few pictures, so p is at least 2 / 2^pictures,
    the chance that all of them favour one side.
    """

    score: str
    a: float
    b: float
    difference: float
    ci95: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two reports side by side. better, worse, equal: queries on which A's IoU is higher, lower, the same. differs: other settings."""

    a: str
    b: str
    data: str
    n: int
    pictures: int
    differences: tuple[Difference, ...]
    better: int
    worse: int
    equal: int
    differs: tuple[str, ...]


def read_report(path: Path) -> Report:
    """The report of a file, or of a folder that `lisaseg eval --out` wrote. UsageError if there is none."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_bytes())
        if not isinstance(report, dict) or not report["per_sample"] or "counts" not in report["per_sample"][0] or not report["data_hash"]:
            raise ValueError("no rows with pixel counts")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{file} is no report of `lisaseg eval` ({str(error)[:80]}).", next_step="Give report.json or its folder.") from error
    return report


def compare(a: Report, b: Report, *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Resample the pictures, the same ones for both, and look at the difference of the scores.

    Queries about one picture are drawn together: they succeed and fail together and are no independent evidence.

    Args:
        a, b: reports with `per_sample`.
        resamples, seed: of the bootstrap.

    Raises:
        UsageError: the reports are about different data, or count empty targets by different rules.
    """
    for key, what in (("data_hash", "data"), ("empty_target", "rule for empty targets"), ("n", "number of queries")):
        if a.get(key) != b.get(key):
            raise UsageError(
                f"The reports differ in their {what}: {_short(a, key)} and {_short(b, key)}.",
                next_step="Evaluate both models on the same file, with the same --empty.",
                code="different_data",
            )
    sums_a, sums_b = _sums(a), _sums(b)
    rng = np.random.default_rng(seed)
    totals = _resampled(np.concatenate([sums_a, sums_b], 1), resamples, rng)
    found = []
    for name, top, bottom in (("gIoU", 0, 1), ("cIoU", 2, 3)):
        score_a, score_b = (_ratio(sums.sum(0)[top], sums.sum(0)[bottom]) for sums in (sums_a, sums_b))
        differences = _ratio(totals[:, top], totals[:, bottom]) - _ratio(totals[:, 4 + top], totals[:, 4 + bottom])
        other = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
        low, high = np.quantile(differences, [0.025, 0.975])
        p = min(1.0, max(2 * (other + 1) / (resamples + 1), 2.0 ** (1 - len(sums_a))))  # never 0: resampling cannot show that something is impossible
        found.append(Difference(name, float(score_a), float(score_b), float(score_a - score_b), (float(low), float(high)), p))
    pairs = [(row["iou"], other["iou"]) for row, other in zip(a["per_sample"], b["per_sample"], strict=True)]
    better, worse = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    differs = tuple(f"{key}: {a.get(key)} / {b.get(key)}" for key in ("mode", "template", "precision", "ask_mode") if a.get(key) != b.get(key))
    return Comparison(
        str(a["model"]), str(b["model"]), str(a["data"]), len(pairs), len(sums_a), tuple(found), better, worse, len(pairs) - better - worse, differs
    )


def _sums(report: Report) -> np.ndarray:
    """For each picture: sum of IoU and number of masks that count, intersection, union. (P, 4) float64, pictures in the order of the data."""
    piles: dict[str, np.ndarray] = {}
    rows = [{**row, "at": k} for k, row in enumerate(report["per_sample"])]
    rule = report["empty_target"]
    for row in rows:
        scores = metrics_of([row])
        part = scores.compute(rule)
        counted = [c for c in scores.counts if c.target or rule != "skip"]
        numbers = [(part.giou or 0.0) * part.n, part.n, sum(c.intersection for c in counted), sum(c.union for c in counted)]
        piles[row["picture"]] = piles.get(row["picture"], np.zeros(4)) + numbers
    return np.array(list(piles.values()))


def _resampled(sums: np.ndarray, resamples: int, rng: np.random.Generator, block: int = 500) -> np.ndarray:
    """Column sums over pictures drawn with replacement: sums (P, K) -> (resamples, K). Drawn in blocks, so that memory stays small."""
    shares = np.full(len(sums), 1 / len(sums))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([rng.multinomial(len(sums), shares, size=size) @ sums for size in sizes])


def _ratio(part: Any, whole: Any) -> Any:
    return part / np.maximum(whole, 1e-12)


def _short(report: Mapping[str, Any], key: str) -> str:
    return f"{report.get('data')} ({str(report.get(key))[:12]})"
