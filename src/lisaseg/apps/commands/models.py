"""`lisaseg models ...`: weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lisaseg.apps.commands.options import DEFAULT_MODEL, OfflineOption


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(no_args_is_help=True, help="List, fetch, check and convert weights.")
    group.command("list")(models_list)
    group.command("pull")(models_pull)
    group.command("verify")(models_verify)
    group.command("convert")(models_convert)
    app.add_typer(group, name="models")


def models_list(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Models known by name, their licence, size and state."""
    from dataclasses import asdict

    from lisaseg.apps.console import show_table
    from lisaseg.store import presets

    known = presets()
    if as_json:
        typer.echo(json.dumps([asdict(info) for info in known], ensure_ascii=False))
        return
    rows = [[i.name, i.state, f"{i.size_mb} MB" if i.size_mb else "?", i.description, i.licence, i.trained_on] for i in known]
    show_table(["name", "state", "size", "what it is", "licence", "trained on"], rows)


def models_pull(name: Annotated[str, typer.Argument(help="Name of a preset.")] = DEFAULT_MODEL, offline: OfflineOption = False) -> None:
    """Fetch, check and convert the weights of a model once; resumes after an interruption."""
    from lisaseg.apps.console import transfer_bar
    from lisaseg.store import pull

    with transfer_bar(name) as progress:
        folder = pull(name, progress=progress, offline=offline)
    typer.echo(str(folder))


def models_verify(name: Annotated[str, typer.Argument(help="Name of a preset.")] = DEFAULT_MODEL) -> None:
    """Read every weight file and compare it with its checksum; exit 3 if one is wrong."""
    from lisaseg.apps.console import show_table
    from lisaseg.store import verify

    checks = verify(name)
    show_table(["", "check", "detail", "next step"], [["OK" if c.ok else "FAIL", c.name, c.detail, c.next_step] for c in checks])
    if not all(check.ok for check in checks):
        raise typer.Exit(3)


def models_convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a published LISA checkpoint (.bin or safetensors).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder; an existing one is refused.")],
) -> None:
    """Turn a published checkpoint into safetensors with a manifest of every tensor."""
    from lisaseg.model.convert import convert_checkpoint

    convert_checkpoint(source, out)
    typer.echo(str(out))
