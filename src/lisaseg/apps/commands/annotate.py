"""`lisaseg annotate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lisaseg.apps.commands.options import DEFAULT_MODEL, DeviceMapOption, DeviceOption, DtypeOption, ModelOption, OfflineOption, QuantizeOption
from lisaseg.apps.commands.serve import require_serve


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(annotate)


def annotate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The pictures, to any depth.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="lisaseg JSONL file to make or to go on with; default: DIR/annotations.jsonl.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    no_model: Annotated[bool, typer.Option("--no-model", help="Draw by hand; load nothing.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any free one. Drafts belong to the port: stay with one.")] = 8010,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
    device_map: DeviceMapOption = None,
    offline: OfflineOption = False,
    state: Annotated[Path | None, typer.Option(hidden=True)] = None,
    engine: Annotated[str, typer.Option(hidden=True)] = "lisa",
    stub_seconds: Annotated[float, typer.Option(hidden=True)] = 0.05,
) -> None:
    """Make a reasoning-segmentation data set in the browser, on this machine only."""
    require_serve()
    from lisaseg.apps.annotate.run import run

    loading: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "quantize": quantize, "device_map": device_map, "offline": offline}
    if code := run(folder, out, state, port=port, workers=0 if no_model else 1, engine=engine, stub_seconds=stub_seconds, **loading):
        raise typer.Exit(code)
