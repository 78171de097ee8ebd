"""`lisaseg train` and `lisaseg export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lisaseg.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(train)
    app.command()(export)


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file; recipes/finetune.toml and others come with the package.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Override one value; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe, data and model, then stop.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint of the run, if there is one.")] = True,
) -> None:
    """Train or fine-tune as a recipe says."""
    for override in overrides or []:
        if not override.partition("=")[0].strip() or "=" not in override:
            raise UsageError(f"--set {override!r} is not of the form key=value.", next_step="Write for example --set optim.lr=1e-4.")
    from lisaseg.train import run_recipe

    run_recipe(recipe, overrides or [], resume=resume, dry_run=dry_run)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder: `out` of the recipe.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the model.")],
    last: Annotated[bool, typer.Option("--last", help="The last checkpoint instead of the best one.")] = False,
) -> None:
    """Write the model of a run, ready for `-m OUT`: adapters merged, config and tokenizer beside the weights."""
    from lisaseg.train.lisa_run import export_run

    typer.echo(export_run(run, out, "last" if last else "best"))
