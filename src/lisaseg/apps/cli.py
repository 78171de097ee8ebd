"""The command line. Results go to stdout, everything else to stderr; exit codes are part of the contract (see `EPILOG`).

Nothing heavy is imported before a command needs it: `lisaseg --help` loads typer and nothing of torch, numpy or Pillow.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lisaseg import __version__
from lisaseg.apps.commands import adapters, annotate, ask, batch, data, evaluate, models, serve, tools, train
from lisaseg.errors import LisaSegError

EPILOG = (
    "Exit codes: 0 done; 1 done, with failures; 2 wrong use or bad input; 3 the model could not be loaded; "
    "4 the answer holds no mask although one was asked for; 130 interrupted."
)


class Doors(TyperGroup):
    """Turns every `LisaSegError` of every command into one line on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the class."""
        try:
            return super().invoke(ctx)
        except LisaSegError as error:
            from lisaseg.apps.console import printable

            if ctx.params.get("debug"):
                traceback.print_exc()
            typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
            typer.echo(printable(str(error)), err=True)
            raise typer.Exit(error.exit_code) from error


app = typer.Typer(
    cls=Doors,
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for group in (ask, serve, annotate, adapters, batch, data, models, train, evaluate, tools):  # in the order of the help
    group.register(app)


def main() -> None:
    """Entry point of `lisaseg`."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):  # a console or pipe of another encoding shows an escape, or loses a character, instead of failing
            stream.reconfigure(errors=errors)
    app(prog_name="lisaseg")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lisaseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", envvar="LISASEG_DEBUG", help="Show tracebacks and detailed logs.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log progress to stderr.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Ask a question about a picture, get the answer in words and in pixels."""
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("lisaseg").setLevel(level)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers heeds it too
