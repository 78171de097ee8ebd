"""`lisaseg eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lisaseg.apps.commands.options import (
    DEFAULT_MODEL,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    OfflineOption,
    OutOption,
    QuantizeOption,
    load_predictor,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("eval")(evaluate)


def evaluate(
    data: Annotated[Path, typer.Option("--data", metavar="F", help="A lisaseg JSONL file.")],
    model: ModelOption = DEFAULT_MODEL,
    out: OutOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions asked together.")] = 8,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
    device_map: DeviceMapOption = None,
    offline: OfflineOption = False,
) -> None:
    """Score a model on your data: gIoU, cIoU, refusals."""
    from lisaseg.apps.console import show_table
    from lisaseg.apps.evaluate import evaluate_file, rows_of

    show_table(
        ["measure", "value"], rows_of(evaluate_file(load_predictor(model, device, dtype, offline, quantize, device_map), data, out, batch_size))
    )
