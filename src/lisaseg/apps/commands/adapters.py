"""`lisaseg mcp` and `lisaseg gradio`: lisaseg inside of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lisaseg.apps.commands.options import (
    DEFAULT_MODEL,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    OfflineOption,
    QuantizeOption,
    load_predictor,
    need_package,
)

UrlOption = Annotated[str | None, typer.Option("--url", help="Ask this server (`lisaseg serve`) instead of loading a model; its key: LISASEG_KEY.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(mcp)


def mcp(
    model: ModelOption = DEFAULT_MODEL,
    url: UrlOption = None,
    root: Annotated[list[Path] | None, typer.Option("--root", metavar="DIR", help="Read pictures from this folder only; may be repeated.")] = None,
    allow_url_host: Annotated[
        list[str] | None, typer.Option("--allow-url-host", metavar="NAME", help="Fetch pictures from this host (https); * for any public one.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
    device_map: DeviceMapOption = None,
    offline: OfflineOption = False,
) -> None:
    """Be the tools of a desktop assistant (MCP, on standard input and output)."""
    need_package("mcp", "mcp")
    from lisaseg.apps.mcp.stdio import Desk, run

    asker = _asker(url)
    run(Desk(lambda: asker or load_predictor(model, device, dtype, offline, quantize, device_map), root or (), allow_url_host or ()))


def _asker(url: str | None) -> Any:
    """A client of a server, or None; a malformed URL is told now and not with the first question."""
    from lisaseg.client import Client

    return None if url is None else Client(url)
