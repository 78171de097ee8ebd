"""The study of docs/study.md: which part of LISA's idea carries lisa-tiny? Train the variants, ask each of them, write tables and figures.

    python benchmarks/study.py train base no-vqa --start MODEL --pool DIR --cutouts DIR --base DIR --work runs/study  (small models, minutes each)
    python benchmarks/study.py tune tuned tuned-no-rephrasings --start MODEL --reason DIR --work runs/study  (fine-tuning of a whole one)
    python benchmarks/study.py score base zero-shot=MODEL shipped=lisa-tiny --reason DIR --work runs/study  (-> benchmarks/results/study/)
    python benchmarks/study.py write  (-> docs/study.md (`make study`))

A name may carry a seed: base:1. MODEL is a lisa-tiny that has seen no reasoning query (the model after stage "joint" of recipes/lisa-tiny.toml).
What was trained or asked already is not done again; a training that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lisaseg.apps.evaluate import EvalPlan, run
from lisaseg.eval.charts import bars
from lisaseg.eval.compare import compare
from lisaseg.formats import write_aside

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "study.md", ROOT / "docs" / "images" / "study"
SETS = {"val": "val", "val_plain": "val_plain", "val_no_target": "val_no_target"}

SMALL: dict[str, tuple[str, list[str]]] = {  # variant -> what is different, settings of recipes/study.toml
    "base": ("everything", []),
    "no-categories": ("no questions for all of a category", ["stages.joint.p_category=0"]),
    "no-referring": ("no questions by place or size", ["stages.joint.p_referring=0"]),
    "no-parts": ("no clothing and parts of persons", ["data.weights.ccp_train=0"]),
    "no-vqa": ("no captions, lists and yes-no questions", ["stages.joint.p_chat=0"]),
    "no-scenes": ("no made-up scenes of nouns", ["stages.joint.text_share=0"]),
    "linear-head": ("one linear layer as seg head", ["seg_hidden=0"]),
    "at-token": ("the state at `[SEG]`, not the one that emitted it", ['seg_state="at"']),
}
TUNED = {"tuned": True, "tuned-no-rephrasings": False}  # variant -> whether rephrasings are kept
ROW = ("picture", "iou", "counts", "kind", "is_sentence", "source", "name", "target_share", "right_name", "status", "present")
KEPT = ("model_hash", "data_hash", "n", "pictures", "mode", "template", "precision", "empty_target", "giou", "giou_ci95", "ciou", "n_acc", "t_acc")
KEPT += ("refused_absent", "refused_present", "right_name")


def named(item: str) -> tuple[str, int]:
    """ "base:1" -> ("base", 1)."""
    name, _, seed = item.partition(":")
    return name, int(seed or 0)


def train(args: argparse.Namespace) -> None:
    """Train small models with recipes/study.toml."""
    from lisaseg.train import run_recipe

    for item in args.names:
        name, seed = named(item)
        out, start = args.work / f"{name}.{seed}", time.time()
        if (out / "model").is_dir():
            continue
        settings = [*SMALL[name][1], f"seed={seed}", f"out={out}", f"start={args.start}", f"data.cache={args.work / 'cache'}"]
        settings += [f"data.pool={args.pool}", f"data.cutouts={args.cutouts}", f"data.base={args.base}", f"threads={args.threads}"]
        run_recipe(ROOT / "recipes" / "study.toml", settings)
        print(f"{item}: {time.time() - start:.0f} s", flush=True)


def tune(args: argparse.Namespace) -> None:
    """Fine-tune a whole model on the reasoning samples with recipes/finetune.toml, and export it."""
    from lisaseg.train import run_recipe
    from lisaseg.train.lisa_run import export_run

    for item in args.names:
        name, seed = named(item)
        out = args.work / f"{name}.{seed}"
        if (out / "model").is_dir():
            continue
        data = args.work / f"{name}.jsonl"
        lines = [json.loads(line) for line in (args.reason / "train.jsonl").read_text("utf-8").splitlines() if line.strip()]
        for line in lines:
            line["image"] = str((args.reason / line["image"]).resolve())
            if not TUNED[name]:
                line.pop("rephrasings", None)
        write_aside(data, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        settings = [f"out={out / 'run'}", f"seed={seed}", f"model.start={args.start}", f"data.jsonl.mine.path={data}"]
        run_recipe(ROOT / "recipes" / "finetune.toml", settings)
        export_run(out / "run", out / "model")


def score(args: argparse.Namespace) -> None:
    """Ask models and keep what the page needs: name, name:seed (of --work), or name=MODEL."""
    for item in args.names:
        item, _, model = item.partition("=")
        name, seed = named(item)
        model = model or str(args.work / f"{name}.{seed}" / "model")
        sets = {}
        for key in SETS:
            limit = 100 if name in SMALL and key == "val_plain" else None
            plan = EvalPlan(model, str(args.reason / f"{key}.jsonl"), offline=True, limit=limit)
            report = run(plan, args.work / "eval" / f"{name}.{seed}" / key, resume=True)
            assert report is not None
            rows = [{k: row[k] for k in ROW} for row in report["per_sample"]]
            sets[key] = {k: report.get(k) for k in KEPT} | {"model": name, "data": key, "per_sample": rows}
        found: dict[str, Any] = {"name": name, "seed": seed, "sets": sets}
        log = args.work / f"{name}.{seed}" / "joint" / "log.jsonl"
        if log.is_file():
            found["training"] = json.loads(log.read_text().splitlines()[-1])
        text = json.dumps(found, ensure_ascii=False)
        write_aside(RESULTS / "study" / f"{name}.{seed}.json", (text.replace('{"picture"', '\n{"picture"') + "\n").encode())


# --- the page -------------------------------------------------------------------------------------------------------------------------------------


def load() -> dict[str, dict[int, dict[str, Any]]]:
    """variant -> seed -> its scores, of all result files."""
    out: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted((RESULTS / "study").glob("*.json")):
        found = json.loads(file.read_text("utf-8"))
        out.setdefault(found["name"], {})[found["seed"]] = found["sets"]
    return out


def percent(value: float | None) -> str:
    """A share as "12.3"."""
    return "-" if value is None else f"{100 * value:.1f}"


def interval(report: dict[str, Any]) -> str:
    """gIoU with its interval."""
    low, high = report["giou_ci95"]
    return f"{percent(report['giou'])} ({percent(low)} to {percent(high)})"


def against(report: dict[str, Any], other: dict[str, Any]) -> str:
    """The difference of two reports in gIoU with its interval, bold where the interval leaves out 0."""
    found = compare(report, other).differences[0]
    text = f"{100 * found.difference:+.1f} ({100 * found.ci95[0]:+.1f} to {100 * found.ci95[1]:+.1f})"
    return f"**{text}**" if found.ci95[0] * found.ci95[1] > 0 else text


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def ablations(found: dict[str, Any]) -> str:
    """Every small variant beside the base of the same seed."""
    rows = []
    for name, (what, _) in SMALL.items():
        for seed, sets in sorted(found.get(name, {}).items()):
            row = [f"`{name}`" + (f", seed {seed}" if len(found[name]) > 1 else ""), what]
            for key in ("val", "val_plain"):
                row += [interval(sets[key]), "" if name == "base" else against(sets[key], found["base"][seed][key])]
            rows.append([*row, percent(sets["val_plain"]["right_name"])])
    return table(["variant", "what is different", "`val` (102)", "less base", "`val_plain` (first 100)", "less base", "right name"], rows)


def seeds(found: dict[str, Any]) -> str:
    """What chance alone does: the base with several seeds."""
    rows = []
    for key in ("val", "val_plain"):
        values = [100 * sets[key]["giou"] for _, sets in sorted(found["base"].items())]
        spread = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "-"
        rows.append([f"`{key}`", ", ".join(f"{v:.1f}" for v in values), f"{statistics.fmean(values):.1f}", spread])
    return table(["set", "gIoU of the seeds", "mean", "standard deviation"], rows)


def whole(found: dict[str, Any]) -> str:
    """Zero-shot, fine-tuned, shipped and the baselines."""
    titles = {
        "zero-shot": "zero-shot: no reasoning query in training",
        "tuned": "fine-tuned on the 239 samples",
        "tuned-no-rephrasings": "the same without rephrasings",
        "shipped": "lisa-tiny as it ships",
    }
    rows = []
    for name, title in titles.items():
        for seed, sets in sorted(found.get(name, {}).items()):
            row = [title + (f", seed {seed}" if len(found[name]) > 1 else "")]
            for key in ("val", "val_plain"):
                row += [interval(sets[key]), "" if name == "zero-shot" else against(sets[key], found["zero-shot"][0][key])]
            rows.append([*row, percent(sets["val_plain"]["refused_present"]), percent(sets["val_no_target"]["n_acc"])])
    for name, sets in json.loads((RESULTS / "baselines.json").read_text()).items():
        refused = 1 - sets["val_plain"]["t_acc"]
        row = [f"baseline: {name}", interval(sets["val"]), "", interval(sets["val_plain"]), ""]
        rows.append([*row, percent(refused), percent(sets["val_no_target"]["n_acc"])])
    head = ["", "`val` (n = 102)", "less zero-shot", "`val_plain` (n = 205)", "less zero-shot", "refused of `val_plain`", "N-acc (n = 15)"]
    return table(head, rows)


def figure(found: dict[str, Any]) -> str:
    """Bars of everything on val, and of the whole models on val_plain."""
    lines = []
    for key, names in {"val": ("zero-shot", *TUNED, "shipped", *SMALL), "val_plain": ("zero-shot", *TUNED, "shipped")}.items():
        rows = [(name, found[name][0][key]) for name in names if 0 in found.get(name, {})]
        chart = bars(key, f"gIoU on {key}", "", rows)
        write_aside(IMAGES / f"{key}.png", chart.png())
        lines.append(f"![gIoU of every model on {key}, with intervals](images/study/{key}.png)")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {"whole": whole, "ablations": ablations, "seeds": seeds, "figure": figure}


def write(args: argparse.Namespace) -> None:
    """Fill the blocks of the page."""
    found = load()
    IMAGES.mkdir(parents=True, exist_ok=True)

    def fill(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{BLOCKS[match[1]](found)}\n<!-- end -->"

    page = re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", fill, PAGE.read_text("utf-8"), flags=re.DOTALL)
    write_aside(PAGE, page.encode())
    print(PAGE.relative_to(ROOT))


def main() -> None:
    """One of the four commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, needs in (
        ("train", ("start", "pool", "cutouts", "base", "work")),
        ("tune", ("start", "reason", "work")),
        ("score", ("reason", "work")),
    ):
        sub = commands.add_parser(name)
        sub.add_argument("names", nargs="+")
        sub.add_argument("--threads", type=int, default=0)
        for need in needs:
            sub.add_argument(f"--{need}", type=Path, required=True)
    commands.add_parser("write")
    args = parser.parse_args()
    {"train": train, "tune": tune, "score": score, "write": write}[args.command](args)


if __name__ == "__main__":
    main()
