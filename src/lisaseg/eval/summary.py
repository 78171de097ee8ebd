"""From the rows of an evaluation to its report. Everything is computed from the rows, so rows of several shards or runs give the same report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lisaseg.eval.instances import InstanceMetrics, QueryInstances
from lisaseg.eval.metrics import EMPTY_RULES, MaskCount, MaskMetrics
from lisaseg.eval.provenance import data_hash, library_versions
from lisaseg.types import Answer, Query

Report = dict[str, Any]
Row = dict[str, Any]  # one query: what was asked, what was said, pixel counts; see `lisaseg.eval.run`

SIZES = (("tiny", 0.01), ("small", 0.05), ("medium", 0.2), ("large", 1.0))  # share of the picture that the target covers, upper bounds
GROUPS = ("kind", "is_sentence", "source", "size")
_NOT_REPORTED = ("masks", "seconds", "at")
_ARTICLE = re.compile(r"^(?:the|an?|his|her|their|its|this|that)\s+", re.IGNORECASE)


def report_of(rows: Sequence[Row], head: Mapping[str, Any], *, empty: str = "lisa", seed: int = 0) -> Report:
    """The content of report.json.

    Args:
        rows: one a query, in any order.
        head: what was evaluated and how ("model", "mode", "template", ...); it may override "data", "split", "model_hash" and "contaminated".
        empty: the rule for empty targets. seed: of the bootstrap interval.
    """
    rows = sorted(rows, key=lambda row: row["at"])
    metrics = metrics_of(rows)
    out: Report = {"model": None, "model_hash": None, "data": ", ".join(dict.fromkeys(row["source"] for row in rows if row["source"]))}
    out |= {"data_hash": data_hash(row["digest"] for row in rows), "split": None, "n": len(rows)}
    out |= {"pictures": len({row["picture"] for row in rows}), **head}
    out |= _scores(metrics, rows, empty, seed)
    out["versions"] = library_versions()
    out.setdefault("contaminated", None)
    out["seconds_per_sample"] = round(sum(row["seconds"] for row in rows) / len(rows), 4)
    out["per_sample"] = [{key: value for key, value in row.items() if key not in _NOT_REPORTED} for row in rows]
    return out


def metrics_of(rows: Sequence[Row]) -> MaskMetrics:
    """The masks of the rows, with tags for grouping."""
    counts = []
    for row in rows:
        tags = {"kind": row["kind"], "is_sentence": str(row["is_sentence"]).lower(), "source": row["source"], "name": row["name"]}
        tags |= {"picture": row["picture"], "size": size_of(row["target_share"])}
        counts += [MaskCount.of(numbers, tags) for numbers in row["counts"]]
    return MaskMetrics(counts)


def size_of(share: float) -> str:
    """Name of the size of a target that covers this share of the picture; "" for none."""
    return next((name for name, most in SIZES if share <= most), SIZES[-1][0]) if share > 0 else ""


def names_target(answer: Answer, query: Query) -> bool | None:
    """Whether a mask's phrase ("the dog") is the name of the target, or one of several ("chair, couch"); None if no name is known."""
    if not query.name or not query.masks:
        return None
    names = {plain_name(name) for name in query.name.split(",")}
    return any(plain_name(segment.phrase) in names for segment in answer.segments)


def plain_name(phrase: str) -> str:
    """ "The Dog" -> "dog"."""
    return _ARTICLE.sub("", " ".join(phrase.split())).lower()


def _scores(metrics: MaskMetrics, rows: Sequence[Row], empty: str, seed: int) -> Report:
    """All scores, JSON-ready; `by` repeats the main ones for each kind, for sentences and phrases, for each source and size of target."""
    found, interval = asdict(metrics.compute(empty)), metrics.interval(by="picture", seed=seed)
    named = [row["right_name"] for row in rows if row["right_name"] is not None]
    out: Report = {key: _rounded(found[key]) for key in ("giou", "ciou")}
    out["giou_ci95"] = [_rounded(value) for value in interval] if interval else None
    out |= {key: _rounded(found[key]) for key in ("boundary_iou", "n_acc", "t_acc")}
    for key, wanted in (("refused_absent", False), ("refused_present", True)):  # stated refusals, not just missing masks
        refused = [row["status"] == "no_target" for row in rows if row["present"] is wanted]
        out[key] = _rounded(sum(refused) / len(refused)) if refused else None
    out["right_name"] = _rounded(sum(named) / len(named)) if named else None
    out |= {"n_named": len(named), "n_target": found["n_target"], "n_no_target": found["n_no_target"]}
    out["prec_at"] = {threshold: _rounded(value) for threshold, value in found["precision"].items()}
    out["empty_target"] = empty
    out["by_empty_rule"] = {rule: {k: _rounded(getattr(metrics.compute(rule), k)) for k in ("giou", "ciou")} for rule in EMPTY_RULES}
    ap = _instances(rows).compute()
    out["instances"] = {key: _rounded(value) for key, value in ap.items()} if ap else None
    out["status"] = {status: sum(row["status"] == status for row in rows) for status in sorted({row["status"] for row in rows})}
    out["by"] = {tag: {value: _brief(part, empty, seed) for value, part in metrics.groups(tag).items()} for tag in GROUPS}
    out["by"]["size"] = {name: out["by"]["size"][name] for name, _ in SIZES if name in out["by"]["size"]}
    return out


def _instances(rows: Sequence[Row]) -> InstanceMetrics:
    """Queries with several targets; AP of the others would only repeat gIoU."""
    several = [row for row in rows if row["ious"] is not None]
    made = []
    for row in several:
        targets = len(row["ious"][0]) if row["ious"] else sum(bool(counts[2]) for counts in row["counts"])
        scores = tuple(1.0 if score is None else float(score) for score in row["scores"])
        made.append(QueryInstances(tuple(row["at"]), scores, tuple(tuple(line) for line in row["ious"]), targets))
    return InstanceMetrics(made)


def _brief(metrics: MaskMetrics, empty: str, seed: int) -> dict[str, Any]:
    scores, interval = metrics.compute(empty), metrics.interval(by="picture", seed=seed)
    values = {"n": scores.n, "giou": _rounded(scores.giou), "ciou": _rounded(scores.ciou)}
    return values | {"giou_ci95": [_rounded(value) for value in interval] if interval else None}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
