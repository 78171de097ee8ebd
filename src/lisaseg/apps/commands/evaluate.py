"""`lisaseg eval` and `lisaseg eval compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lisaseg.apps.commands.options import (
    DEFAULT_MODEL,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    OfflineOption,
    QuantizeOption,
)

# Copies of the values in lisaseg.eval, which would load numpy; a test holds them equal.
EvalMode = Literal["generated", "teacher_forced"]
Template = Literal["evaluation", "plain"]
EmptyRule = Literal["lisa", "gres", "zero", "skip"]

HELP = "Score a model or baseline on your data: gIoU, cIoU, refusals, and a report with pictures. `lisaseg eval compare A B` compares two reports."
MODE_HELP = "generated: the model's own answer counts; teacher_forced: it is made to say [SEG], as in published numbers."
EMPTY_HELP = "How a query without a target counts; docs/evaluation.md explains the rules."
DATA_HELP = "A lisaseg JSONL file, a folder of ReasonSeg, or a set's name (refcoco, grefcoco, ...) with --root."


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(invoke_without_command=True, callback=evaluate, help=HELP)
    group.command("compare")(compare)
    app.add_typer(group, name="eval")


def evaluate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Preset, folder, hub id, or baseline:{whole-image,centre-box,largest-object,detect-then-choose,name-then-segment}."
        ),
    ] = DEFAULT_MODEL,
    data: Annotated[str | None, typer.Option("--data", metavar="F", help=DATA_HELP)] = None,
    root: Annotated[Path | None, typer.Option("--root", metavar="DIR", help="Data root of a named set.")] = None,
    split: Annotated[str | None, typer.Option("--split", metavar="S", help="val, testA, testB, test, val(U), test(U), ...")] = None,
    mode: Annotated[EvalMode, typer.Option("--mode", help=MODE_HELP)] = "generated",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write report.json, .md, .html, plots and answers here.")] = None,
    template: Annotated[Template, typer.Option(help="evaluation: the reference's question around each text; plain: the text alone.")] = "evaluation",
    empty: Annotated[EmptyRule, typer.Option("--empty", help=EMPTY_HELP)] = "lisa",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions asked together; no score depends on it.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples, for a trial.")] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only this part of the pictures; all shards share --out.")] = "1/1",
    processes: Annotated[int, typer.Option(min=1, help="So many processes, each with its own copy of the model.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the answers that are in --out and ask only the rest.")] = False,
    base: Annotated[Path | None, typer.Option("--base", metavar="DIR", help="Packages of the detector baselines.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
    device_map: DeviceMapOption = None,
    offline: OfflineOption = False,
) -> None:
    """The command without a sub-command; its help is `HELP`."""
    if context.invoked_subcommand is not None:
        return
    from lisaseg.apps.console import show_table, warn
    from lisaseg.apps.evaluate import EvalPlan, rows_of, run
    from lisaseg.errors import UsageError

    if data is None:
        raise UsageError("`lisaseg eval` needs data.", next_step="Add --data F.jsonl, or see `lisaseg eval --help`.")
    part = shard.split("/")
    if len(part) != 2 or not all(number.isdecimal() for number in part):
        raise UsageError(f"--shard {shard!r} is no shard.", next_step="Write it as 1/4.")
    plan = EvalPlan(model, data, root, split, mode, template, batch_size, empty, limit, device, dtype, offline, base, quantize, device_map)
    report = run(plan, out, shard=(int(part[0]), int(part[1])), processes=processes, resume=resume)
    if report is None:
        return
    show_table(["measure", "value"], rows_of(report))
    if report["contaminated"]:
        warn([("contaminated", report["contamination"])])
    if out is not None:
        typer.echo(f"wrote {out / 'report.html'}", err=True)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="report.json, or its folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="report.json, or its folder.")],
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Say whether A is better than B on the same data, or whether it may be chance: a paired bootstrap."""
    from lisaseg.apps.console import show_table, warn
    from lisaseg.apps.evaluate import comparison_rows
    from lisaseg.eval import compare as paired

    found = paired.compare(paired.read_report(a), paired.read_report(b), resamples=resamples, seed=seed)
    show_table(["measure", "A", "B", "A - B", "95 % interval", "p"], comparison_rows(found))
    typer.echo(f"A = {found.a}, B = {found.b}; {found.n} queries about {found.pictures} pictures of {found.data}", err=True)
    typer.echo(f"A is better on {found.better} queries, B on {found.worse}, both are the same on {found.equal}", err=True)
    warn([("differs", f"the reports differ in {setting}") for setting in found.differs])
