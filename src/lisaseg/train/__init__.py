"""Training: recipes, the loop, the stages of lisa-tiny."""

from __future__ import annotations

from pathlib import Path


def run_recipe(path: Path, overrides: list[str] | None = None, *, resume: bool = True, dry_run: bool = False) -> None:
    """Run a recipe file with `key=value` overrides; see `lisaseg.train.run`. Heavy imports happen here, not at import of the package."""
    from lisaseg.train.run import run

    run(path, overrides or [], resume=resume, dry_run=dry_run)
