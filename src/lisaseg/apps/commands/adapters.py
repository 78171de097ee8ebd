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
from lisaseg.errors import UsageError

UrlOption = Annotated[str | None, typer.Option("--url", help="Ask this server (`lisaseg serve`) instead of loading a model; its key: LISASEG_KEY.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(mcp)
    app.command()(gradio)


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


def gradio(
    model: ModelOption = DEFAULT_MODEL,
    url: UrlOption = None,
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine only with --insecure: the app asks for no key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: a free one from 7860 on.")] = 0,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine.")] = False,
    share: Annotated[bool, typer.Option("--share", help="A public link for a week, through Gradio's servers.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
    device_map: DeviceMapOption = None,
    offline: OfflineOption = False,
) -> None:
    """Start a small Gradio app, as for Spaces and Colab; `lisaseg serve` has a better page."""
    need_package("gradio", "gradio")
    from lisaseg.apps.server.settings import is_loopback

    if share and offline:
        raise UsageError("--share opens connections, --offline forbids them.", next_step="Leave out one of them.")
    if not insecure and not is_loopback(host):
        step = "Say --insecure if that is meant, or use `lisaseg serve`, which can ask for a key."
        raise UsageError(f"Listening on {host} lets other machines in, and this app asks for no key.", next_step=step)
    asker = _asker(url) or load_predictor(model, device, dtype, offline, quantize, device_map)
    from lisaseg.apps.gradio_app import launch

    launch(asker, host=host, port=port, share=share, block=True)


def _asker(url: str | None) -> Any:
    """A client of a server, or None; a malformed URL is told now and not with the first question."""
    from lisaseg.client import Client

    return None if url is None else Client(url)
