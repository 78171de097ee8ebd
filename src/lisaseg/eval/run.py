"""Ask a model every question of a data set and measure what comes back.

Two modes. "generated": the model's own words decide whether there is a mask; a refusal, or an answer without a mask, is an empty prediction (IoU 0
where something is there, 1 where nothing is). "teacher_forced": the answer is put into the model's mouth and only the mask behind its `[SEG]` is
measured. All published numbers of LISA's line are of the second kind and never see a refusal.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, Protocol, get_args

import numpy as np

from lisaseg.errors import DataError, UsageError
from lisaseg.eval.instances import InstanceMetrics
from lisaseg.eval.metrics import MaskMetrics
from lisaseg.eval.provenance import picture_hash, query_hash
from lisaseg.eval.summary import Report, Row, names_target, report_of
from lisaseg.formats import rle
from lisaseg.imaging import open_image
from lisaseg.prompts import evaluation_question
from lisaseg.types import MODES, Answer, Mode, Query, Sample

EvalMode = Literal["generated", "teacher_forced"]
Key = tuple[int, int]  # place of the sample in the data, place of the query in the sample


def _reference_question(query: Query) -> str:
    """The reference's evaluation question; texts of the referring sets are lowercased there."""
    return evaluation_question(query.text.lower() if query.kind == "referring" else query.text, query.is_sentence)


TEMPLATES: dict[str, Callable[[Query], str]] = {"evaluation": _reference_question, "plain": lambda query: query.text}


class Asker(Protocol):
    """What can be evaluated: a `Predictor`, a baseline, or anything else that answers. `ask_forced` is needed for mode "teacher_forced" only."""

    name: str

    def ask_batch(self, pairs: Sequence[tuple[Any, str]], *, mode: Mode = "auto") -> list[Answer]:
        """Answers to (picture, instruction), in order; the picture is uint8 `(H, W, 3)`."""
        ...


@dataclass(frozen=True)
class Asking:
    """How a model is asked. The numbers depend on the first three fields, and on nothing else of it.

    Attributes:
        mode: "generated" or "teacher_forced".
        template: "evaluation" (the reference's question) or "plain" (the text alone).
        ask_mode: as for `Predictor.ask`; of generated answers only.
        batch_size: questions asked together; those about one picture follow each other, so that it is encoded once.
    """

    mode: EvalMode = "generated"
    template: str = "evaluation"
    ask_mode: Mode = "auto"
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, get_args(EvalMode)),
            ("template", self.template, TEMPLATES),
            ("ask_mode", self.ask_mode, MODES),
        ):
            if value not in known:
                raise UsageError(f"Unknown {name} {value!r}.", next_step=f"Use one of: {', '.join(known)}.")
        if self.batch_size < 1:
            raise UsageError(f"batch_size is {self.batch_size}.", next_step="Use 1 or more.")


@dataclass(frozen=True)
class _Asked:
    """One question that is to be asked."""

    key: Key
    sample: Sample
    query: Query
    rgb: np.ndarray
    picture: str
    digest: str


def evaluate(
    asker: Asker,
    samples: Iterable[Sample],
    *,
    mode: EvalMode = "generated",
    ask_mode: Mode = "auto",
    batch_size: int = 8,
    template: str = "evaluation",
    empty: str = "lisa",
    progress: Callable[[int], None] | None = None,
    on_answer: Callable[[Sample, Query, Answer, float], None] | None = None,
    seed: int = 0,
) -> Report:
    """Ask every query of every sample and measure the masks, in memory. `lisaseg eval` does the same with files; see `lisaseg.apps.evaluate`.

    Args:
        asker: a loaded model or a baseline.
        samples: read as they are needed; a query without masks means that nothing in the picture fits.
        mode, ask_mode, batch_size, template: see `Asking`.
        empty: how queries without a target count; a key of `lisaseg.eval.metrics.EMPTY_RULES`.
        progress: called with the number of answered questions after each batch.
        on_answer: called with sample, query, answer and IoU, in order; the place to keep pictures.
        seed: of the bootstrap interval.

    Returns:
        The content of report.json, JSON-ready; `docs/evaluation.md` says what each number means. Of an answer to a query with one target all masks
        together are the prediction; with several targets the k-th mask belongs to the k-th target, missing masks are empty and surplus ones join the
        last.

    Raises:
        UsageError: no samples, unknown mode, template or rule.
        DataError: a mask has another size than its picture; names the sample.
        ImageError, InstructionError: a picture or text cannot be used. Nothing is left out in silence.
    """
    protocol = Asking(mode, template, ask_mode, batch_size)
    rows: list[Row] = []
    for batch in answer_rows(asker, enumerate(samples), protocol, {}):
        for row, sample, query, answer in batch:
            rows.append(row)
            if on_answer is not None:
                on_answer(sample, query, answer, row["iou"])
        if progress is not None:
            progress(len(rows))
    if not rows:
        raise UsageError("There is nothing to evaluate: the data holds no query.", next_step="Check the file with `lisaseg data check`.")
    return report_of(rows, head_of(asker, protocol), empty=empty, seed=seed)


def head_of(asker: Asker, protocol: Asking) -> dict[str, Any]:
    """The fields of a report that are known before the first answer."""
    head = {"model": asker.name, "mode": protocol.mode, "template": protocol.template}
    held = str(getattr(asker, "setting", "unknown"))  # "4bit (bfloat16)": how the weights were quantised is part of it
    return head | {"ask_mode": protocol.ask_mode if protocol.mode == "generated" else None, "precision": held}


def answer_rows(
    asker: Asker, samples: Iterable[tuple[int, Sample]], protocol: Asking, done: Mapping[Key, Row]
) -> Iterator[list[tuple[Row, Sample, Query, Answer]]]:
    """Ask batch by batch; each yield holds the rows of one batch with what they came from.

    Args:
        samples: with their places in the data.
        done: rows of an earlier run; their questions are not asked again.

    Raises:
        UsageError: the data differs from that of `done`, or the asker cannot be teacher-forced. Else as `evaluate`.
    """
    for batch in _batches(samples, protocol.batch_size, done):
        start = perf_counter()
        texts = [TEMPLATES[protocol.template](one.query) for one in batch]
        if protocol.mode == "teacher_forced":
            answers = _forced(asker, batch, texts)
        else:
            answers = asker.ask_batch([(one.rgb, text) for one, text in zip(batch, texts, strict=True)], mode=protocol.ask_mode)
        seconds = (perf_counter() - start) / len(batch)
        yield [(_row(one, answer, seconds), one.sample, one.query, answer) for one, answer in zip(batch, answers, strict=True)]


def _forced(asker: Any, batch: Sequence[_Asked], texts: Sequence[str]) -> list[Answer]:
    if not hasattr(asker, "ask_forced"):
        raise UsageError(f"{asker.name} writes no answers that could be forced.", next_step="Evaluate it with --mode generated.")
    wanted = [max(1, len(one.query.masks)) for one in batch]
    return list(asker.ask_forced([(one.rgb, text, n) for one, text, n in zip(batch, texts, wanted, strict=True)]))


def _batches(samples: Iterable[tuple[int, Sample]], size: int, done: Mapping[Key, Row]) -> Iterator[list[_Asked]]:
    """Up to `size` questions with the opened picture; queries of one sample stay together."""
    batch: list[_Asked] = []
    for place, sample in samples:
        if not sample.queries:
            continue
        rgb = open_image(sample.image).rgb
        picture = picture_hash(rgb)
        for k, query in enumerate(sample.queries):
            digest = query_hash(sample, query, picture)
            old = done.get((place, k))
            if old is not None and old["digest"] != digest:
                raise UsageError(
                    f"Sample {sample.id!r} is not what it was when this evaluation began.",
                    next_step="Start again without --resume.",
                    code="data_changed",
                )
            if old is None:
                batch.append(_Asked((place, k), sample, query, rgb, picture, digest))
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


def _row(asked: _Asked, answer: Answer, seconds: float) -> Row:
    """The line of one query: what was asked and said, and the pixel counts from which every score can be computed again."""
    sample, query, metrics = asked.sample, asked.query, MaskMetrics()
    try:
        for pred, target in _pairs(query, answer):
            metrics.update(pred, target)
        found, scores = [s.mask for s in answer.segments], [s.score for s in answer.segments]
        instances = InstanceMetrics().update(asked.key, found, scores, query.masks) if len(query.masks) > 1 else None
    except DataError as error:
        raise DataError(f"Sample {sample.id!r}, query {query.text[:60]!r}: {error.message}", next_step=error.next_step) from error
    pixels = asked.rgb.shape[0] * asked.rgb.shape[1]
    row: Row = {"at": list(asked.key), "id": sample.id, "text": query.text, "kind": query.kind, "name": query.name, "is_sentence": query.is_sentence}
    row |= {"source": sample.source, "present": any(c.target for c in metrics.counts), "answer": answer.raw_text, "status": answer.status}
    row |= {"right_name": names_target(answer, query), "iou": round(statistics.fmean(c.iou for c in metrics.counts), 6)}
    row["boundary_iou"] = round(statistics.fmean(c.boundary_iou for c in metrics.counts), 6)
    row |= {"target_share": round(sum(c.target for c in metrics.counts) / pixels, 6), "scores": scores}
    row["counts"] = [numbers[:-1] for numbers in metrics.to_rows()]
    row["ious"] = [list(line) for line in instances.ious] if instances else None
    row |= {"picture": asked.picture, "digest": asked.digest, "seconds": round(seconds, 4), "masks": [rle.encode(mask) for mask in found]}
    return row
