"""`lisaseg doctor` and `lisaseg bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lisaseg.apps.commands.options import DEFAULT_MODEL, DeviceMapOption, DeviceOption, DtypeOption, ModelOption, OfflineOption, QuantizeOption


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(doctor)
    app.command()(bench)


def doctor() -> None:
    """Check this machine and installation; exit 1 if something would fail."""
    from lisaseg.apps import doctor as checks
    from lisaseg.apps.console import show_table

    findings = checks.examine()
    show_table(["", "check", "detail", "next step"], [[f.level, f.name, f.detail, f.next_step] for f in findings])
    if any(finding.level == "FAIL" for finding in findings):
        raise typer.Exit(1)


def bench(
    image: Annotated[Path | None, typer.Argument(metavar="[IMAGE]", help="A picture; without one, a synthetic picture is made.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    runs: Annotated[int, typer.Option(min=1, help="Warm questions to take the median of.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers here as well.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
    device_map: DeviceMapOption = None,
    offline: OfflineOption = False,
) -> None:
    """Measure how fast a model answers on this machine."""
    from lisaseg.apps.bench import measure, rows_of
    from lisaseg.apps.console import show_table

    result = measure(model, image, runs=runs, device=device, dtype=dtype, quantize=quantize, device_map=device_map, offline=offline)
    if json_file is not None:
        from lisaseg.formats import write_aside

        write_aside(json_file, (json.dumps(result, indent=1) + "\n").encode())
    show_table(["measure", "value", "note"], rows_of(result))
