"""`lisaseg data ...`: check, convert, count and add annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lisaseg.errors import UsageError

if TYPE_CHECKING:
    from lisaseg.datasets.check import Found

BAD = 2
FORMAT_NAMES = "jsonl, coco, coco-polygons, labelme, yolo, png, png-index, reasonseg, labelstudio, cvat"  # a test holds it equal to the registry
ImagesOption = Annotated[Path | None, typer.Option("--images", metavar="DIR", help="Folder of the pictures, if the annotations do not say it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(no_args_is_help=True, help="Check, convert, count and add annotations.")
    group.command()(check)
    group.command()(convert)
    group.command()(stats)
    group.command(name="pseudo-label")(pseudo_label)
    app.add_typer(group, name="data")


def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A lisaseg JSONL file, or the root folder of published data sets.")],
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="NAME", help="Of a root: look for this set only; may be repeated.")] = None,
    every: Annotated[bool, typer.Option("--every", help="Of a root: read every sample, not three of each set.")] = False,
    headers: Annotated[bool, typer.Option("--headers-only", help="Of a file: do not decode the pictures (faster, misses truncated ones).")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find every fault of a JSONL file (file, line, field, what to do), or list what a data root holds; exit 2 if something is wrong."""
    if path.is_dir():
        from lisaseg.datasets.check import check_root

        wrong = _show_root(path, check_root(path, sets or None, every=every), as_json)
    elif path.is_file():
        wrong = _check_file(path, not headers, as_json)
    else:
        raise UsageError(
            f"There is no file or folder {path}.", next_step="Give a JSONL file, or the folder that holds ade20k/, coco/, refer_seg/ ..."
        )
    if wrong:
        raise typer.Exit(BAD)


def _show_root(path: Path, rows: list[Found], as_json: bool) -> bool:
    from dataclasses import asdict

    from lisaseg.datasets.check import table

    if as_json:
        typer.echo(json.dumps({"path": str(path), "kind": "root", "sets": [asdict(row) for row in rows]}, ensure_ascii=False))
    else:
        typer.echo(table(rows))
    counts = {status: sum(row.status == status for row in rows) for status in ("found", "missing", "faulty")}
    typer.echo(", ".join(f"{count} {status}" for status, count in counts.items()), err=True)
    return bool(counts["faulty"]) or not counts["found"]


def _check_file(path: Path, decode: bool, as_json: bool) -> bool:
    from dataclasses import asdict

    from lisaseg.apps.console import printable
    from lisaseg.formats.jsonl_check import check_jsonl

    samples, faulty = 0, 0
    faults: list[dict[str, Any]] = []
    for _, found in check_jsonl(path, decode_images=decode):
        samples += 1
        faulty += bool(found)
        for fault in found:
            if as_json:
                faults.append(asdict(fault))
            else:
                typer.echo(printable(str(fault)))
    if as_json:
        document = {"path": str(path), "kind": "jsonl", "samples": samples, "faulty": faulty, "faults": faults}
        typer.echo(json.dumps(document, ensure_ascii=False))
    typer.echo(f"{path}: {samples} samples, " + (f"{faulty} of them faulty" if faulty else "no faults"), err=True)
    if not samples:
        typer.echo("error: the file holds no sample.", err=True)
    return bool(faulty) or not samples


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="File or folder to read.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File or folder to write; an existing one is refused.")],
    from_format: Annotated[str, typer.Option("--from", metavar="F", help=f"Format of SRC: {FORMAT_NAMES}.")],
    to_format: Annotated[str, typer.Option("--to", metavar="F", help="Format of OUT.")],
    images: ImagesOption = None,
) -> None:
    """Write annotations in another format, whole or not at all; says what the new format cannot hold."""
    from lisaseg.formats.convert import convert as run

    done = run(source, out, from_format, to_format, images=images)
    for loss, n in done.losses.items():
        typer.secho(f"note: {to_format}: {loss} ({n} texts).", fg="yellow", err=True)
    typer.echo(f"{done.written} texts written, of {done.queries} in {done.samples} samples.", err=True)
    typer.echo(str(out))


def stats(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A lisaseg JSONL file, or another format with --from.")],
    against: Annotated[Path | None, typer.Option("--against", metavar="F2", help="Also say what FILE shares with this one (contamination).")] = None,
    from_format: Annotated[str, typer.Option("--from", metavar="F", help="Format of both.")] = "jsonl",
    images: ImagesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count what is in a data set: masks and their areas, texts by kind and length, sizes, duplicates, overlap with another."""
    from lisaseg.apps.console import show_table
    from lisaseg.datasets.stats import describe, overlap, read_contents
    from lisaseg.formats import FORMATS

    read = FORMATS.get(from_format).read
    for path in (file, against):
        if path is not None and not path.exists():
            raise UsageError(f"There is no {path}.", next_step="Check the path.")
    contents = read_contents(read(file, images))
    report = {"path": str(file), **describe(contents)}
    if against is not None:
        report["overlap"] = {"against": str(against), **overlap(contents, read_contents(read(against, images)))}
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
    else:
        show_table(["measure", "value"], list(_rows(report)))


def pseudo_label(
    pool: Annotated[Path, typer.Argument(metavar="POOL", help="Folder with COCO files and images/, as the recipes of lisa-tiny read it.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="COCO file in it, with or without .json.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Copy of the COCO file to write, with the masks that were added.")],
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="A model of lisa-tiny's kind.")] = "lisa-tiny",
    least: Annotated[
        float, typer.Option("--least", min=0, max=1, help="IoU that a mask must have by the model's own estimate.")
    ] = 0.65,  # pseudo_labels.LEAST, without torch
) -> None:
    """Draw masks of what a COCO file leaves unlabelled, as far as the model is sure of them, for self-training; the file itself stays as it is."""
    from lisaseg.datasets.pool import Pool
    from lisaseg.predictor import load
    from lisaseg.train.progress import reporting
    from lisaseg.train.pseudo_labels import add_pseudo_labels

    photos = Pool(pool, file)
    if out.resolve() == photos.path.resolve():
        raise UsageError(f"--out is the file that is read ({out}).", next_step="Give the copy a name of its own.")
    predictor = load(model)
    with reporting("photos", every=100) as report:
        added = add_pseudo_labels(photos, predictor.model, out, least, report)
    typer.echo(f"{added} masks added in {len(photos)} photos.", err=True)
    typer.echo(str(out))


def _rows(report: dict[str, Any], before: str = "") -> Any:
    """(measure, value) for each leaf of a report; small maps on one line."""
    for key, value in report.items():
        name = f"{before}{key}".replace("_", " ")
        if key in ("overlap", "duplicates"):
            yield from _rows(value, f"{key}: ")
        elif isinstance(value, dict):
            yield [name, "  ".join(f"{k}: {v}" for k, v in value.items())]
        elif isinstance(value, list):
            yield from ([name, str(item)] for item in value)
        else:
            yield [name, "-" if value is None else str(value)]
