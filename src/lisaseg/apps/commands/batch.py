"""`lisaseg batch`: the same questions about many pictures."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lisaseg.apps.commands.options import (
    DEFAULT_MODEL,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    FormatsOption,
    ModelOption,
    ModeOption,
    OfflineOption,
    QuantizeOption,
    TokensOption,
    load_predictor,
)
from lisaseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lisaseg.apps.batch import Outcome
    from lisaseg.apps.batch_inputs import Pair

FAILURES = 1


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(batch)


def batch(
    source: Annotated[str, typer.Argument(metavar="IN", help='Folder, picture, pattern in quotes ("photos/**/*.jpg"), or JSONL of image and text.')],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for results; an interrupted run goes on where it was.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Ask this about every picture.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help=".txt, .csv (prompt, perhaps image) or .jsonl.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    mode: ModeOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions asked together.")] = 8,
    shard: Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Do part I of N only, 1/4 to 4/4.")] = None,
    formats: FormatsOption = None,
    files: Annotated[bool, typer.Option(help="Write overlay, masks and JSON of each answer.")] = True,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="ray: spread over a Ray cluster (extra `ray`).")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Of ray: models loaded at the same time.")] = 1,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
    device_map: DeviceMapOption = None,
    offline: OfflineOption = False,
    max_new_tokens: TokensOption = None,
) -> None:
    """Ask about many pictures: resumable, sharded; what fails is listed in failed.jsonl and the exit code is 1."""
    from lisaseg.apps.batch import Results, export, export_name
    from lisaseg.apps.batch_inputs import in_shard, work_list
    from lisaseg.formats import FORMATS

    part = _shard(shard)
    for name in formats or []:
        FORMATS.get(name)  # an unknown one must fail now, not after hours
    everything = work_list(source, out, prompt, prompts)
    pairs = [pair for pair in everything if part is None or in_shard(pair, part)]
    setting = {"model": model, "mode": mode, "max_new_tokens": max_new_tokens, "prompt": prompt, "quantize": quantize}
    with Results(out, part, setting) as results:
        for name in (formats or []) if part is None else []:
            results.claim(export_name(name))  # what is in the way must be told now, too
        before = sum(pair.key in results.done for pair in pairs)
        begin, counts = time.perf_counter(), Counter[str]()
        if before < len(pairs):
            options: dict[str, Any] = {"name": model, "device": device, "dtype": dtype, "offline": offline}
            options |= {"quantize": quantize, "device_map": device_map}
            limits = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
            outcomes = _outcomes(engine, workers, options, pairs, batch_size, results, (out if files else None, mode, limits))
            for outcome in _with_progress(outcomes, len(pairs) - before):
                results.add(outcome)
                counts["failed" if outcome.failed else outcome.record["answer"]["status"]] += 1
        results.finish(pair.key for pair in everything)
        _summary(len(pairs), before, counts, time.perf_counter() - begin, results.failures)
        for name in formats or []:
            if part is None:
                typer.echo(f"wrote {export(results, everything, name)}", err=True)
        if formats and part is not None:
            typer.echo("note: --format is written by a last run without --shard.", err=True)
    typer.echo(str(results.results))
    if counts["failed"]:
        raise typer.Exit(FAILURES)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UsageError(f"--shard {text!r} is not of the form I/N.", next_step="Write 1/4, 2/4, 3/4 and 4/4 for four processes.")
    return int(first), int(second)


def _outcomes(
    engine: str, workers: int, options: dict[str, Any], pairs: Sequence[Pair], batch_size: int, results: Any, rest: tuple[Any, ...]
) -> Iterator[Outcome]:
    from lisaseg.apps.batch import Worker, run_local

    if engine == "ray":
        from lisaseg.apps.batch_ray import run_ray

        return run_ray(options, [pair for pair in pairs if pair.key not in results.done], batch_size, workers, rest)
    return run_local(Worker(load_predictor(**options), *rest), pairs, batch_size, results.done.__contains__)


def _with_progress(outcomes: Iterator[Outcome], total: int) -> Iterator[Outcome]:
    """The outcomes, with a bar on stderr if that is a terminal."""
    import sys

    if not sys.stderr.isatty():
        yield from outcomes
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("asking", total=total)
        for outcome in outcomes:
            yield outcome
            bar.advance(task)


def _summary(total: int, before: int, counts: Counter[str], seconds: float, failures: Path) -> None:
    now = sum(counts.values())
    speed = f" in {seconds:.1f} s, {seconds / now:.2f} s each" if now else ""
    kinds = "".join(f", {counts[name]} {words}" for name, words in _WORDS.items() if counts[name])
    typer.echo(f"{total} questions: {before} done before, {now} asked{speed}{kinds}", err=True)
    if counts["failed"]:
        typer.secho(f"{counts['failed']} failed, see {failures}; run again to retry them.", fg="yellow", err=True)


_WORDS = {"masks": "with masks", "no_target": "without a target", "no_mask_requested": "answered in words", "truncated": "cut short"}
