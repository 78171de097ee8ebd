"""`lisaseg eval`: score a model on a lisaseg JSONL file and write `report.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lisaseg.errors import UsageError

if TYPE_CHECKING:
    from lisaseg.predictor import Predictor


def evaluate_file(predictor: Predictor, data: Path, out: Path | None, batch_size: int) -> dict[str, Any]:
    """Ask every query of `data`, score the answers, write `out/report.json` if `out` is given; returns the report.

    Raises:
        UsageError: there is no such file. DataError: a line of it is wrong.
    """
    from lisaseg.eval.run import evaluate, folder_hash
    from lisaseg.formats import write_aside
    from lisaseg.formats.jsonl import read_jsonl
    from lisaseg.model.assemble import model_folder

    if not data.is_file():
        raise UsageError(f"There is no file {data}.", next_step="Give a lisaseg JSONL file; docs/formats.md describes it.")
    report: dict[str, Any] = dict(evaluate(predictor, list(read_jsonl(data)), batch_size=batch_size))
    report |= {"model_hash": folder_hash(model_folder(predictor.name)), "data": data.name, "split": data.stem}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_aside(out / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    return report


def rows_of(report: dict[str, Any]) -> list[list[str]]:
    """The report as rows (measure, value)."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    low, high = report.get("giou_ci95") or (None, None)
    return [
        ["queries", str(report["n"])],
        ["gIoU", f"{percent(report['giou'])}  (95 % interval {percent(low)} to {percent(high)})"],
        ["cIoU", percent(report["ciou"])],
        ["answered without a mask, nothing there", percent(report["n_acc"])],
        ["answered with a mask, something there", percent(report["t_acc"])],
        ["seconds a query", f"{report['seconds_per_sample']:.2f}"],
    ]
