"""Recipes are checked: a wrong key or value is an error with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lisaseg.errors import UsageError
from lisaseg.train.config import Recipe, StageConfig, load_recipe
from lisaseg.train.recipe import recipe_file

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.toml"))
STAGED = [path for path in RECIPES if path.name.startswith("lisa-tiny")]  # the others are tested in test_lisa_start.py
SMALL = """
out = "runs/a"
[data]
pool = "p"
base = "b"
files = {x = 1}
weights = {x = 0.5}
[stages.text]
kind = "text"
steps = 3
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", STAGED, ids=lambda p: p.name)
def test_every_recipe_parses(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.stages and recipe.data.files
    assert set(recipe.data.weights) - {"cutouts"} == set(recipe.data.files), "every file has a weight"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_recipe_says_how_to_run_it(path: Path) -> None:
    head = path.read_text(encoding="utf-8").split("\nout")[0]
    assert f"lisaseg train recipes/{path.name}" in head and all(word in head for word in ("hardware", "time", "score"))


def test_there_are_recipes() -> None:
    assert STAGED


def test_defaults(small: Path) -> None:
    recipe = load_recipe(small)
    assert recipe.stages["text"] == StageConfig(kind="text", steps=3) and recipe.seed == 0 and recipe.data.cutouts is None


def test_overrides_are_toml_values_or_bare_words(small: Path) -> None:
    changes = ["stages.text.steps=7", " stages.text.lr = 1e-5", "out=runs/b", 'only=["text"]', "bf16=false", "data.files.y=2", "data.pool=a=b"]
    recipe = load_recipe(small, changes)
    assert (recipe.stages["text"].steps, recipe.stages["text"].lr, recipe.only, recipe.bf16) == (7, 1e-5, ["text"], False)
    assert recipe.out == Path("runs/b") and recipe.data.files == {"x": 1, "y": 2} and recipe.data.pool == Path("a=b")


def test_a_stage_may_be_added_by_overrides(small: Path) -> None:
    assert load_recipe(small, ["stages.more.kind=vision", "stages.more.steps=1"]).stages["more"].kind == "vision"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("stages.text.stepz=3", "stages.text.stepz"),
        ("colour=1", "colour"),
        ("data.colour=1", "data.colour"),
        ("stages.text.steps=0", "stages.text.steps"),
        ("stages.text.kind=video", "stages.text.kind"),
        ("stages.text.lr=fast", "stages.text.lr"),
        ("stages.new.lr=0.1", "stages.new.kind"),
        ("seed=x", "seed"),
    ],
)
def test_wrong_keys_and_values_are_named(small: Path, change: str, named: str) -> None:
    with pytest.raises(UsageError, match=r"small\.toml") as caught:
        load_recipe(small, [change])
    assert f"key {named}:" in str(caught.value)


@pytest.mark.parametrize("change", ["seed", "seed=", "=3", ""])
def test_overrides_need_key_and_value(small: Path, change: str) -> None:
    with pytest.raises(UsageError):
        load_recipe(small, [change])


def test_missing_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "part.toml"
    path.write_text(SMALL.replace('pool = "p"\n', ""), encoding="utf-8")
    with pytest.raises(UsageError, match=r"data\.pool"):
        load_recipe(path)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe"):
        load_recipe(tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    path.write_text("out = [", encoding="utf-8")
    with pytest.raises(UsageError, match="not TOML"):
        load_recipe(path)


def test_a_recipe_is_plain_data(small: Path) -> None:
    recipe = load_recipe(small)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_an_installation_without_a_checkout_finds_the_recipes_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "site-packages" / "lisaseg"
    (package / "recipes").mkdir(parents=True)
    (package / "recipes" / "small.toml").write_text(SMALL, encoding="utf-8")
    asked = Path("recipes/small.toml")
    assert recipe_file(asked, package) == package / asked
    for other in ("recipes/other.toml", "my/recipes/small.toml", "small.toml"):
        assert recipe_file(Path(other), package) == Path(other), "a mistyped path is not another file"
    asked.parent.mkdir()
    asked.write_text(SMALL, encoding="utf-8")
    assert recipe_file(asked, package) == asked, "one's own comes first"
