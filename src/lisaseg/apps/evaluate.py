"""`lisaseg eval`: ask, measure, write the report; resumable, in one process or several."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lisaseg.errors import LisaSegError, UsageError

if TYPE_CHECKING:
    from lisaseg.eval.compare import Comparison
    from lisaseg.eval.data import OpenedData
    from lisaseg.eval.run import Asking


@dataclass(frozen=True)
class EvalPlan:
    """Everything that an evaluation needs, in plain values, so that it can be handed to another process.

    Attributes:
        model: preset, folder, hub id, or "baseline:<name>".
        data, root, split: see `lisaseg.eval.data.open_data`.
        mode, template, batch_size: see `lisaseg.eval.run.Asking`.
        empty: rule for empty targets, see `lisaseg.eval.metrics.EMPTY_RULES`.
        limit: only the first so many samples.
        device, dtype, offline: see `lisaseg.load`.
        base: folder with the packages of the detector baselines.
        quantize, device_map: see `lisaseg.load`.
    """

    model: str
    data: str
    root: Path | None = None
    split: str | None = None
    mode: str = "generated"
    template: str = "evaluation"
    batch_size: int = 8
    empty: str = "lisa"
    limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False
    base: Path | None = None
    quantize: str | None = None
    device_map: str | None = None

    def asking(self) -> Asking:
        """The checked part that the numbers depend on."""
        from lisaseg.eval.run import Asking

        return Asking(mode=self.mode, template=self.template, batch_size=self.batch_size)  # type: ignore[arg-type]

    def open(self) -> OpenedData:
        """The data."""
        from lisaseg.eval.data import open_data

        return open_data(self.data, self.root, self.split)

    def places(self, data: OpenedData) -> range:
        """Places of the samples that are evaluated."""
        return range(len(data.dataset) if self.limit is None else min(self.limit, len(data.dataset)))


def run(plan: EvalPlan, out: Path | None, *, shard: tuple[int, int] = (1, 1), processes: int = 1, resume: bool = False) -> dict[str, Any] | None:
    """Evaluate and write the report into `out`, which also keeps the answers; without `out` nothing stays on disk.

    Args:
        plan: what.
        out: folder.
        shard: (number from 1, of how many): only this part of the pictures.
        processes: so many shards at once, each in a process of its own.
        resume: go on where an earlier run into `out` stopped.

    Returns:
        The report; None if other shards have still to be run.

    Raises:
        UsageError: options that do not fit together, answers of another evaluation in `out`, or a process failed. DataError, ModelLoadError as usual.
    """
    from lisaseg.eval.metrics import EMPTY_RULES

    plan.asking()
    if plan.empty not in EMPTY_RULES:
        raise UsageError(f"Unknown rule for empty targets {plan.empty!r}.", next_step=f"Use one of: {', '.join(EMPTY_RULES)}.")
    if not 1 <= shard[0] <= shard[1] or processes < 1:
        raise UsageError(f"There is no shard {shard[0]} of {shard[1]}.", next_step="Shards are counted from 1: --shard 1/4 to --shard 4/4.")
    if out is None:
        if shard[1] > 1 or resume:
            raise UsageError("--shard and --resume need a folder that keeps the answers.", next_step="Add --out DIR.")
        with tempfile.TemporaryDirectory() as folder:
            return _run(plan, Path(folder), shard, processes, resume, write=False)
    return _run(plan, out, shard, processes, resume, write=True)


def _run(plan: EvalPlan, out: Path, shard: tuple[int, int], processes: int, resume: bool, write: bool) -> dict[str, Any] | None:
    data = plan.open()
    places = plan.places(data)
    wanted = sum(data.count(place) for place in places)
    if not wanted:
        raise UsageError("There is nothing to evaluate: the data holds no query.", next_step="Check the file with `lisaseg data check`.")
    if processes == 1:
        head, facts = answer_shard(plan, out, shard, resume, _show(wanted if shard[1] == 1 else None))
    elif shard[1] > 1:
        raise UsageError("--shard and --processes exclude each other.", next_step="Use --processes here, or --shard on each machine.")
    else:
        head, facts = _answer_in_processes(plan, out, processes, resume, wanted)
    from lisaseg.eval.journal import read_rows
    from lisaseg.eval.provenance import contamination
    from lisaseg.eval.summary import report_of

    rows = [row for row in read_rows(out, head).values() if row["at"][0] in places]
    if len(rows) < wanted:
        print(f"{len(rows)} of {wanted} queries are answered; the last shard to finish writes the report.", file=sys.stderr)
        return None
    fields = {key: head[key] for key in ("model", "model_hash", "mode", "template", "ask_mode", "precision")}
    report = report_of(rows, fields | {"data": data.title, "split": data.split, "limit": plan.limit}, empty=plan.empty)
    report["contaminated"], report["contamination"] = contamination(facts["trained_on"], data.name, data.split, report["data_hash"])
    if write:
        from lisaseg.eval.page import write_report

        write_report(out, report, rows, data.dataset)
    return report


def answer_shard(
    plan: EvalPlan, out: Path, shard: tuple[int, int], resume: bool, progress: Callable[[int], None] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load the model, ask the questions of one shard that are not answered yet, and keep the answers in `out`.

    Returns:
        (what the answers rest on, what else is known of the model).
    """
    from lisaseg.apps.askers import build_asker, model_facts
    from lisaseg.eval.journal import Journal
    from lisaseg.eval.run import answer_rows, head_of

    data, asker = plan.open(), build_asker(plan)
    facts = model_facts(plan)
    head = head_of(asker, plan.asking()) | {"model": plan.model, "model_hash": facts["hash"], "data": data.title, "split": data.split}
    places = plan.places(data)[shard[0] - 1 :: shard[1]]  # whole pictures, so that each is encoded once; every place in exactly one shard
    journal = Journal(out, head, shard, resume)
    try:
        done = len(journal.done)
        for batch in answer_rows(asker, ((place, data.dataset[place]) for place in places), plan.asking(), journal.done):
            journal.append(row for row, *_ in batch)
            done += len(batch)
            if progress is not None:
                progress(done)
    finally:
        journal.close()
    return head, facts


def _answer_in_processes(plan: EvalPlan, out: Path, processes: int, resume: bool, wanted: int) -> tuple[dict[str, Any], dict[str, Any]]:
    from lisaseg.eval.journal import clear

    if not resume and out.is_dir():
        clear(out)
    context = multiprocessing.get_context("spawn")  # torch must not be forked
    results: Any = context.SimpleQueue()
    workers = [context.Process(target=_work, args=(plan, out, (k, processes), results)) for k in range(1, processes + 1)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
    failed = [k for k, worker in enumerate(workers, start=1) if worker.exitcode]
    if failed:
        raise UsageError(
            f"Process {failed[0]} of {processes} ended early (see above); the answers so far are kept in {out}.", next_step="Go on with --resume."
        )
    return results.get()  # type: ignore[no-any-return]


def _work(plan: EvalPlan, out: Path, shard: tuple[int, int], results: Any) -> None:
    """One process: its share of the processor's cores, its share of the pictures."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // shard[1])))  # heard when torch is loaded
    try:
        found = answer_shard(plan, out, shard, resume=True)
    except LisaSegError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    if shard[0] == 1:
        results.put(found)


def _show(wanted: int | None) -> Callable[[int], None] | None:
    """Progress on a terminal: one line on stderr that overwrites itself."""
    if not sys.stderr.isatty():
        return None
    return lambda done: print(f"\r{done}{f' of {wanted}' if wanted else ''} queries ", end="", file=sys.stderr, flush=True)


def percent(value: float | None) -> str:
    """0.123 -> "12.3 %"; "-" for nothing to measure."""
    return "-" if value is None else f"{100 * value:.1f} %"


def rows_of(report: dict[str, Any]) -> list[list[str]]:
    """The report as rows (measure, value)."""
    interval = report.get("giou_ci95")
    spread = f"95 % interval {percent(interval[0])} to {percent(interval[1])}" if interval else "one picture: no interval"
    contaminated = {True: "YES: " + str(report.get("contamination")), False: "no", None: "unknown"}[report["contaminated"]]
    rows = [
        ["model", str(report["model"])],
        ["data", f"{report['data']} ({report['n']} queries, {report['pictures']} pictures)"],
        ["mode", str(report["mode"])],
        ["gIoU", f"{percent(report['giou'])}  ({spread})"],
        ["cIoU", percent(report["ciou"])],
        ["boundary IoU", percent(report["boundary_iou"])],
        ["Prec@0.5", percent(report["prec_at"]["0.5"])],
        ["N-acc: no mask where nothing is there", percent(report["n_acc"])],
        ["T-acc: a mask where something is there", percent(report["t_acc"])],
    ]
    if report["instances"]:
        rows.append(["AP, AP50, AP75", ", ".join(percent(report["instances"][key]) for key in ("ap", "ap50", "ap75"))])
    return [*rows, ["seconds a query", f"{report['seconds_per_sample']:.2f}"], ["contaminated", contaminated]]


def comparison_rows(found: Comparison) -> list[list[str]]:
    """One row a score: A, B, difference, interval, p."""
    rows = []
    for d in found.differences:
        rows.append([d.score, percent(d.a), percent(d.b), f"{100 * d.difference:+.1f}", f"{100 * d.ci95[0]:+.1f} to {100 * d.ci95[1]:+.1f}"])
        rows[-1].append(f"{d.p:.4f}")
    return rows
