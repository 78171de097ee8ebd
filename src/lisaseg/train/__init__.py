"""Training. `recipe.py` reads recipes; those with `kind = "lisa"` go to `lisa_run.py` (LISA from its parts, fine-tuning), the others to `run.py`
(the stages that make lisa-tiny)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def run_recipe(path: Path, overrides: list[str] | None = None, *, resume: bool = True, dry_run: bool = False) -> None:
    """Run a recipe file with `key=value` overrides; see `lisaseg.train.run`. Heavy imports happen here, not at import of the package.

    Raises:
        UsageError: the recipe is wrong, or a library that only training needs is not installed; known before anything heavy is loaded.
        TrainingError: the run cannot start or go on.
    """
    from lisaseg.errors import UsageError
    from lisaseg.train.config import load_recipe
    from lisaseg.train.recipe import checked, read_recipe

    values = read_recipe(path, overrides or [])
    general = values.get("kind") == "lisa"
    if general:
        from lisaseg.train.lisa_config import LisaRecipe

        checked(LisaRecipe, values, path)
    else:
        load_recipe(path, overrides)
    missing = [name for name in ("peft", "tensorboard") if find_spec(name) is None]
    if missing:
        raise UsageError(f"Training needs {' and '.join(missing)}, not installed here.", next_step="Run `pip install 'lisaseg[train]'`.")
    if general:
        from lisaseg.train.lisa_run import run
    else:
        from lisaseg.train.run import run  # lisa-tiny's stages

    run(path, overrides or [], resume=resume, dry_run=dry_run)
