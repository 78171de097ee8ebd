"""The table of baselines in docs/evaluation.md: every baseline on every reasoning set, through `lisaseg eval`.

    python benchmarks/baselines.py --reason DATA/reason --base DIR --work out/baselines --out benchmarks/results/baselines.json

`--work` keeps the answers: what is there is not asked again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lisaseg.apps.evaluate import EvalPlan, run
from lisaseg.eval.baselines import NAMES, PREFIX
from lisaseg.formats import write_aside

SETS = ("val", "val_plain", "val_no_target")
KEPT = (
    "data",
    "data_hash",
    "model_hash",
    "n",
    "pictures",
    "mode",
    "giou",
    "giou_ci95",
    "ciou",
    "boundary_iou",
    "prec_at",
    "n_acc",
    "t_acc",
    "right_name",
)


def cell(report: dict[str, Any], key: str) -> str:
    """A score with its interval, if it has one, in percent."""
    value, interval = report[key], report["giou_ci95"] if key == "giou" else None
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else "")


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: one line a baseline."""
    lines = ["| baseline | `val` (n = 102) | T-acc | `val_plain` (n = 205) | T-acc | `val_no_target` (n = 15): N-acc |", "|---|---|---|---|---|---|"]
    for name, sets in results.items():
        cells = [name]
        for key in SETS[:2]:
            cells += [f"{cell(sets[key], 'giou')} / {cell(sets[key], 'ciou')}", cell(sets[key], "t_acc")]
        lines.append("| " + " | ".join([*cells, cell(sets["val_no_target"], "n_acc")]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--reason", type=Path, required=True, help="folder with val.jsonl, val_plain.jsonl, val_no_target.jsonl")
    parser.add_argument("--base", type=Path, required=True, help="packages of the detector baselines")
    parser.add_argument("--work", type=Path, required=True, help="folder for reports")
    parser.add_argument("--out", type=Path, help="JSON with the scores")
    args = parser.parse_args()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name in NAMES:
        for data in SETS:
            plan = EvalPlan(PREFIX + name, str(args.reason / f"{data}.jsonl"), base=args.base, offline=True)
            report = run(plan, args.work / data / name, resume=True)
            assert report is not None
            results.setdefault(name, {})[data] = {key: report[key] for key in KEPT}
    if args.out:
        write_aside(args.out, (json.dumps(results, indent=1) + "\n").encode())
    print(table(results))


if __name__ == "__main__":
    main()
