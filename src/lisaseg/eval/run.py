"""Ask a model every question of a data set and measure what it answers: its own words decide whether there is a mask ("generated" mode).

The published protocol puts "[SEG]" in the model's mouth (teacher forcing) and so never sees a refusal. Here a refusal, or an answer without a mask,
is an empty prediction: IoU 0 where something is there, 1 where nothing is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lisaseg.errors import DataError, UsageError
from lisaseg.eval.metrics import MaskMetrics
from lisaseg.formats import rle
from lisaseg.imaging import open_image
from lisaseg.prompts import evaluation_question
from lisaseg.types import Answer, Mode, Query, Sample

if TYPE_CHECKING:
    from lisaseg.predictor import Predictor

Report = dict[str, Any]
TEMPLATES: dict[str, Callable[[Query], str]] = {
    "evaluation": lambda query: evaluation_question(query.text, query.is_sentence),  # ReasonSeg's
    "plain": lambda query: query.text,
}
_LIBRARIES = ("lisaseg", "torch", "transformers", "numpy", "pillow")
_ARTICLE = re.compile(r"^(?:the|an?|his|her|their|its|this|that)\s+", re.IGNORECASE)


def evaluate(
    predictor: Predictor,
    samples: Iterable[Sample],
    *,
    mode: Mode = "auto",
    batch_size: int = 8,
    template: str = "evaluation",
    progress: Callable[[int], None] | None = None,
    on_answer: Callable[[Sample, Query, Answer, float], None] | None = None,
    seed: int = 0,
) -> Report:
    """Ask every query of every sample and measure the masks.

    Args:
        predictor: a loaded model.
        samples: read as they are needed; a query without masks means that nothing in the picture fits.
        mode: as for `Predictor.ask`.
        batch_size: questions asked together; those about one picture follow each other, so that it is encoded once.
        template: "evaluation" (ReasonSeg's question) or "plain" (the text alone).
        progress: called with the number of answered questions after each batch.
        on_answer: called with sample, query, answer and IoU, in order; the place to keep pictures.
        seed: of the bootstrap interval.

    Returns:
        The content of report.json, JSON-ready. Of an answer to a query with one target all masks together are the prediction; with several
        targets the k-th mask belongs to the k-th target, missing masks are empty and surplus ones join the last.

    Raises:
        UsageError: no samples, unknown template.
        DataError: a mask has another size than its picture; names the sample.
        ImageError, InstructionError: a picture or text cannot be used. Nothing is left out in silence.
    """
    if template not in TEMPLATES:
        raise UsageError(f"Unknown template {template!r}.", next_step=f"Use one of: {', '.join(TEMPLATES)}.")
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}.", next_step="Use 1 or more.")
    metrics, rows, digest, seconds = MaskMetrics(), [], hashlib.sha256(), 0.0
    sources: dict[str, None] = {}
    for batch in _batches(samples, batch_size):
        start = time.perf_counter()
        answers = predictor.ask_batch([(rgb, TEMPLATES[template](query)) for _, query, rgb in batch], mode=mode)
        seconds += time.perf_counter() - start
        for (sample, query, rgb), answer in zip(batch, answers, strict=True):
            row = _measure(metrics, sample, query, answer)
            rows.append(row)
            sources[sample.source] = None
            _add_to_digest(digest, sample, query, rgb)
            if on_answer is not None:
                on_answer(sample, query, answer, row["iou"])
        if progress is not None:
            progress(len(rows))
    if not rows:
        raise UsageError("There is nothing to evaluate: the data holds no query.", next_step="Check the file with `lisaseg data check`.")
    head: Report = {"model": predictor.name, "model_hash": None, "data": ", ".join(filter(None, sources)), "data_hash": digest.hexdigest()}
    head |= {"split": None, "n": len(rows), "mode": "generated", "ask_mode": mode, "template": template}
    tail = {"versions": library_versions(), "contaminated": None, "seconds_per_sample": round(seconds / len(rows), 4), "per_sample": rows}
    return head | _summary(metrics, rows, seed) | {"precision": _precision(predictor)} | tail


def folder_hash(folder: str | Path) -> str:
    """sha256 (hex) over names and contents of the files of a model folder: the `model_hash` of a report."""
    digest, root = hashlib.sha256(), Path(folder)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(root).as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of what the numbers depend on; libraries that are not installed are left out."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def names_target(answer: Answer, query: Query) -> bool | None:
    """Whether a mask's phrase ("the dog") is the name of the target, or one of several ("chair, couch"); None if no name is known."""
    if not query.name or not query.masks:
        return None
    names = {plain_name(name) for name in query.name.split(",")}
    return any(plain_name(segment.phrase) in names for segment in answer.segments)


def plain_name(phrase: str) -> str:
    """ "The Dog" -> "dog"."""
    return _ARTICLE.sub("", " ".join(phrase.split())).lower()


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[tuple[Sample, Query, np.ndarray]]]:
    """Up to `size` questions with the opened picture; queries of one sample stay together."""
    batch: list[tuple[Sample, Query, np.ndarray]] = []
    for sample in samples:
        if not sample.queries:
            continue
        rgb = open_image(sample.image).rgb
        for query in sample.queries:
            batch.append((sample, query, rgb))
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


def _pairs(query: Query, answer: Answer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions, bool `(H, W)`, and their targets, uint8 `(H, W)`: at least one pair."""
    targets = list(query.masks) or [np.zeros(answer.image_size, np.uint8)]
    pred = [np.zeros(answer.image_size, dtype=bool) for _ in targets]
    for k, segment in enumerate(answer.segments):
        pred[min(k, len(targets) - 1)] |= segment.mask
    return list(zip(pred, targets, strict=True))


def _measure(metrics: MaskMetrics, sample: Sample, query: Query, answer: Answer) -> dict[str, Any]:
    """Add the masks of one answer; returns its line of `per_sample`."""
    tags = {"kind": query.kind, "is_sentence": str(query.is_sentence).lower(), "source": sample.source, "name": query.name}
    try:
        ious = [metrics.update(pred, target, **{k: v for k, v in tags.items() if v}) for pred, target in _pairs(query, answer)]
    except DataError as error:
        raise DataError(f"Sample {sample.id!r}, query {query.text[:60]!r}: {error.message}", next_step=error.next_step) from error
    row = {"id": sample.id, "text": query.text, "kind": query.kind, "name": query.name, "present": bool(query.masks), "answer": answer.raw_text}
    return row | {"status": answer.status, "right_name": names_target(answer, query), "iou": round(statistics.fmean(ious), 6)}


def _summary(metrics: MaskMetrics, rows: list[dict[str, Any]], seed: int) -> Report:
    """All scores, JSON-ready; `by` repeats the main ones for each kind, for sentences and phrases, and for each source."""
    scores, interval = asdict(metrics.compute()), metrics.interval(seed=seed)
    named = [row["right_name"] for row in rows if row["right_name"] is not None]
    out: Report = {key: _rounded(scores[key]) for key in ("giou", "ciou")}
    out["giou_ci95"] = [_rounded(value) for value in interval] if interval else None
    out |= {key: _rounded(scores[key]) for key in ("n_acc", "t_acc")}
    for key, wanted in (("refused_absent", False), ("refused_present", True)):  # stated refusals, not just missing masks
        refused = [row["status"] == "no_target" for row in rows if row["present"] is wanted]
        out[key] = _rounded(sum(refused) / len(refused)) if refused else None
    out["right_name"] = _rounded(sum(named) / len(named)) if named else None
    out["n_named"] = len(named)
    out["prec_at"] = {threshold: _rounded(value) for threshold, value in scores["precision"].items()}
    out["status"] = {status: sum(row["status"] == status for row in rows) for status in sorted({row["status"] for row in rows})}
    out["by"] = {tag: {value: _brief(part) for value, part in metrics.groups(tag).items()} for tag in ("kind", "is_sentence", "source")}
    return out


def _brief(metrics: MaskMetrics) -> dict[str, Any]:
    scores = metrics.compute()
    return {"n": scores.n, "giou": _rounded(scores.giou), "ciou": _rounded(scores.ciou)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _precision(predictor: Predictor) -> str:
    """Number format of the weights, "float32"; it moves scores, so it belongs into the report."""
    return str(getattr(getattr(predictor, "model", None), "dtype", "unknown")).removeprefix("torch.")


def _add_to_digest(digest: Any, sample: Sample, query: Query, rgb: np.ndarray) -> None:
    """What was asked, about which pixels, and what is true: the same data in another folder has the same hash."""
    digest.update(f"{sample.id}\0{query.text}\0{query.is_sentence}\0{rgb.shape}\0".encode("utf-8", "backslashreplace"))
    digest.update(rgb.data)
    for mask in query.masks:
        for value in (1, 255):
            digest.update(rle.encode(mask == value)["counts"].encode())
        digest.update(b"\0")
