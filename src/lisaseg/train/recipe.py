"""Reading of recipes: a TOML file, `key.path=value` overrides, and a check by pydantic whose errors name the key."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lisaseg.errors import UsageError


class Strict(BaseModel):
    """A table of a recipe in which every key must be known."""

    model_config = ConfigDict(extra="forbid")


Checked = TypeVar("Checked", bound=BaseModel)


def recipe_file(path: Path, package: Path = Path(__file__).parents[1]) -> Path:
    """The file; or, if there is none and it is called `recipes/<name>`, what came with the package under that name: an installation has no `recipes/`
    beside it, and the documentation speaks of them."""
    shipped = package / "recipes" / path.name
    return shipped if path.parent == Path("recipes") and not path.exists() and shipped.is_file() else path


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a recipe file with `key.path=value` overrides applied (a value is TOML; a bare word is a string).

    Raises:
        UsageError: the file is missing or is not TOML, or an override has no "=" or does not fit the file.
    """
    try:
        values = tomllib.loads(recipe_file(path).read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(
            f"There is no recipe file {path}.", next_step="Name a TOML file, or recipes/finetune.toml and others of the package."
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file.", next_step="A recipe is TOML in UTF-8, see the recipes/ folder.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}.", next_step="Mend the line.") from error
    for item in overrides:
        key, found, text = item.partition("=")
        if not found or not key.strip():
            raise UsageError(f"--set {item!r} is not key=value.", next_step="Write for example --set optim.lr=1e-4.")
        _assign(values, key.strip().split("."), _toml_value(text.strip()))
    return values


def checked(kind: type[Checked], values: dict[str, Any], source: str | Path) -> Checked:
    """The values as the settings of a run; UsageError names the first key that is unknown, missing or wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        at = f"{source}, key {where}" if where else str(source)
        raise UsageError(
            f"{at}: {first['msg'].removeprefix('Value error, ').rstrip('.')}.", next_step="Mend the recipe or the --set option."
        ) from error


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {'.'.join(keys)}: {key} is a value, not a table.", next_step="Name a key that the recipe has.")
    values[keys[-1]] = value
