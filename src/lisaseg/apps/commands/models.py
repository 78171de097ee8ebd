"""`lisaseg models ...`: weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lisaseg.apps.commands.options import DEFAULT_MODEL, DeviceOption, DtypeOption, OfflineOption, load_predictor
from lisaseg.errors import UsageError

if TYPE_CHECKING:
    from lisaseg.predictor import Predictor


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(no_args_is_help=True, help="List, fetch, check and convert weights.")
    group.command("list")(models_list)
    group.command("pull")(models_pull)
    group.command("verify")(models_verify)
    group.command("convert")(models_convert)
    group.command("memory")(models_memory)
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


def models_verify(
    name: Annotated[str, typer.Argument(help="Preset, or folder or hub id of a published checkpoint.")] = DEFAULT_MODEL,
    picture: Annotated[bool, typer.Option(help="Repeat the stored answer, if there is one: loads the whole model.")] = True,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
) -> None:
    """Read every weight file and compare it with its checksum; exit 3 if one is wrong."""
    from lisaseg.apps.console import show_table
    from lisaseg.store import is_preset, verify

    if is_preset(name):
        checks = verify(name)
    else:
        from lisaseg.model.verify import verify_checkpoint

        load = partial(_load, device=device) if picture else None
        checks = verify_checkpoint(name, offline=offline, load=load)
    show_table(["", "check", "detail", "next step"], [["OK" if c.ok else "FAIL", c.name, c.detail, c.next_step] for c in checks])
    if not all(check.ok for check in checks):
        raise typer.Exit(3)


def models_convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder or hub id of a published LISA checkpoint (.bin or safetensors).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder; an existing one is refused.")],
    picture: Annotated[bool, typer.Option(help="Also load it, ask about a picture and keep the answer for `models verify`.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    offline: OfflineOption = False,
) -> None:
    """Turn a published checkpoint into safetensors with a manifest of every tensor."""
    from lisaseg.model.convert import convert_checkpoint

    convert_checkpoint(source, out, offline=offline)
    if picture:
        from lisaseg.model.verify import record_picture

        record_picture(out, _load(out, dtype, device=device))
    typer.echo(str(out))


def models_memory(
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="A published checkpoint; without it, the public sizes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print bytes as JSON.")] = False,
) -> None:
    """How much memory a published checkpoint needs in each precision, counted from its config; no weights are read."""
    from lisaseg.apps.console import show_table
    from lisaseg.model.memory import PARTS, PUBLIC, empty_public, memory_table
    from lisaseg.model.published import read_config
    from lisaseg.model.streaming import empty_model

    if folder is not None and not folder.is_dir():
        raise UsageError(
            f"There is no folder {folder}.", next_step="Give the folder of a published checkpoint, or leave it out for the public sizes."
        )
    models = {name: empty_public(name) for name in PUBLIC} if folder is None else {folder.name: empty_model(read_config(folder, offline=True)[0])}
    tables = {name: memory_table(model) for name, model in models.items()}
    if as_json:
        typer.echo(json.dumps({name: dict(table) for name, table in tables.items()}))
        return
    head = ["model", "setting", *PARTS, "weights", "one question"]
    rows = [[name, setting, *(f"{size / 1e9:.2f} GB" for size in sizes.values())] for name, table in tables.items() for setting, sizes in table]
    show_table(head, rows)


def _load(folder: Path, dtype: str, device: str) -> Predictor:
    return load_predictor(str(folder), device, dtype, offline=True)
