"""`lisaseg serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lisaseg.apps.commands.options import (
    DEFAULT_MODEL,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    OfflineOption,
    QuantizeOption,
    need_package,
)
from lisaseg.errors import UsageError

IntegrationsOption = Annotated[
    str, typer.Option(metavar="NAME,...", envvar="LISASEG_INTEGRATIONS", help="Open doors for tools: label-studio, x-anylabeling, mcp.")
]
LabelStudioUrlOption = Annotated[
    str,
    typer.Option(metavar="URL", envvar="LABEL_STUDIO_URL", help="Label Studio whose uploads are read with the token in LABEL_STUDIO_API_KEY."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(serve)


def serve(
    model: ModelOption = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(envvar="LISASEG_HOST", help="Where to listen; beyond this machine a key is required.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, envvar="LISASEG_PORT", help="0: any free one.")] = 8000,
    key: Annotated[str | None, typer.Option(envvar="LISASEG_KEY", help="API key; better in the environment or in --key-file.")] = None,
    key_file: Annotated[Path | None, typer.Option(metavar="FILE", envvar="LISASEG_KEY_FILE", help="API keys, one a line.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without a key.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, envvar="LISASEG_WORKERS", help="Engine processes; each loads the model.")] = 1,
    limit: Annotated[list[str] | None, typer.Option("--limit", metavar="NAME=VALUE", help="Change a limit of /v1/limits; may be repeated.")] = None,
    max_queue: Annotated[int | None, typer.Option(min=1, envvar="LISASEG_MAX_QUEUE", help="Questions that may wait.")] = None,
    max_batch: Annotated[int | None, typer.Option(min=1, envvar="LISASEG_MAX_BATCH", help="Questions answered together.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="Another name of this server, as browsers call it.")
    ] = None,
    allow_url_host: Annotated[
        list[str] | None, typer.Option("--allow-url-host", metavar="NAME", help="Fetch pictures from this host (https); * for any public one.")
    ] = None,
    integrations: IntegrationsOption = "",
    label_studio_url: LabelStudioUrlOption = "",
    state: Annotated[Path | None, typer.Option(metavar="DIR", envvar="LISASEG_STATE", help="Where pictures and sessions are kept.")] = None,
    log_format: Annotated[Literal["text", "json"], typer.Option(envvar="LISASEG_LOG_FORMAT", help="Form of the log on stderr.")] = "text",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
    device_map: DeviceMapOption = None,
    offline: OfflineOption = False,
    engine: Annotated[str, typer.Option(hidden=True)] = "lisa",
    stub_seconds: Annotated[float, typer.Option(hidden=True)] = 0.05,
) -> None:
    """Serve the web page and the HTTP API."""
    require_serve(integrations)
    from lisaseg.apps.server import logs
    from lisaseg.apps.server.integrations import names_in
    from lisaseg.apps.server.serve import run
    from lisaseg.apps.server.settings import Limits, Settings
    from lisaseg.store.cache import cache_dir

    pairs = [*(limit or []), *(f"{n}={v}" for n, v in (("max_queue", max_queue), ("max_batch", max_batch)) if v is not None)]
    loading: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "quantize": quantize, "device_map": device_map, "offline": offline}
    settings = Settings(
        state=state or cache_dir() / f"serve-{port}",
        host=host,
        port=port,
        engine=engine,
        workers=workers,
        keys=_keys(key, key_file),
        insecure=insecure,
        allow_hosts=tuple(name.lower() for name in allow_host or ()),
        url_hosts=tuple(allow_url_host or ()),
        integrations=names_in(integrations),
        label_studio_url=label_studio_url,
        label_studio_key=os.environ.get("LABEL_STUDIO_API_KEY", ""),
        limits=Limits.parse(pairs),
        log_format=log_format,
        stub_seconds=stub_seconds,
        **loading,
    )
    logs.set_up(log_format)
    if code := run(settings):
        raise typer.Exit(code)


def require_serve(integrations: str = "") -> None:
    """UsageError if the packages of the service, or of an integration, are not installed."""
    for name, extra in (("fastapi", "serve"), ("uvicorn", "serve"), *([("mcp", "mcp")] if "mcp" in integrations.lower() else [])):
        need_package(name, extra)


def _keys(key: str | None, file: Path | None) -> tuple[str, ...]:
    keys = [key] if key else []
    if file is not None:
        try:
            lines = file.read_text("utf-8").split("\n")
        except (OSError, UnicodeError) as error:
            raise UsageError(f"{file} cannot be read.", next_step="Give --key-file a text file with one key a line.") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UsageError(f"{file} holds no key.", next_step="Write one key a line.")
        keys += found
    return tuple(dict.fromkeys(keys))
