"""`lisaseg train`: from a recipe to a model folder; stages apart or in one go, interrupted or not, end in the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.train import workshop
from typer.testing import CliRunner

from lisaseg import train
from lisaseg.apps import cli
from lisaseg.datasets.cutouts import Cutouts
from lisaseg.datasets.pool import Pool
from lisaseg.errors import TrainingError, UsageError
from lisaseg.tokenization import TextTokenizer
from lisaseg.train import run as door
from lisaseg.train.config import load_recipe
from lisaseg.train.noun_space import NounSpace
from lisaseg.train.run import STAGES, run, view_weights, vocabulary
from lisaseg.train.texts import NounBook
from lisaseg.train.view_sources import CachedViews
from lisaseg.vlms.tiny_trunk import TinyTrunk

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("lisa-tiny*.toml"))
STEPS = {"vision": 1, "text": 1, "joint": 2}


# what a recipe may say


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_can_be_built(path: Path) -> None:
    recipe = load_recipe(path)
    assert all(config.kind in STAGES for config in recipe.stages.values())
    assert all(config.warmup < config.steps for config in recipe.stages.values())


@pytest.mark.parametrize("change", ["seed.x=1", "data.pool.x=1", "stages.text.steps.more=1", "out.a.b=1"])
def test_a_value_is_no_table(tmp_path: Path, change: str) -> None:
    key = change.partition("=")[0]
    with pytest.raises(UsageError, match=rf"--set {key}: {key.split('.')[-2 if key != 'out.a.b' else 0]} is a value, not a table"):
        load_recipe(workshop.write_recipe(tmp_path), ["seed=1", change])


@pytest.mark.parametrize("change", ["stages=3", "data.files=3", "stages.text=3", "data.weights.small_train=much"])
def test_a_table_is_no_value(tmp_path: Path, change: str) -> None:
    with pytest.raises(UsageError, match=f"key {change.partition('=')[0]}"):
        load_recipe(workshop.write_recipe(tmp_path), [change])


def test_a_missing_recipe_is_wrong_use(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["train", str(tmp_path / "missing.toml")])
    assert result.exit_code == 2 and "missing.toml" in result.output and "Traceback" not in result.output


def test_an_unknown_stage_stops_before_anything_is_made(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["train", str(workshop.write_recipe(tmp_path)), "--set", 'only=["joint", "video"]'])
    assert result.exit_code == 2 and "unknown stages: video" in result.output and "vision, text, joint" in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"small.toml"}


def test_missing_data_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["train", str(workshop.write_recipe(tmp_path))])
    assert result.exit_code == 2 and "small_train" in result.output and "Traceback" not in result.output


def test_missing_libraries_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"peft and tensorboard.*lisaseg\[train\]"):
        train.run_recipe(workshop.write_recipe(tmp_path))


# what is trained, in which order


@pytest.fixture
def built(tiny_tokenizer: TextTokenizer, small_book: NounBook, cached: list[Path], one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run gets a fresh workshop of the tiny random model; how a real one is built is tested below."""
    monkeypatch.setattr(door, "build_workshop", lambda recipe, log: workshop.build_shop(tiny_tokenizer, small_book, CachedViews(cached[:2])))


def log_of(out: Path, stage: str) -> list[int]:
    return [json.loads(line)["step"] for line in (out / stage / "log.jsonl").read_text().splitlines()]


def model_of(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def test_stages_apart_or_in_one_go_end_in_the_same_model(built: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, one, apart = workshop.write_recipe(tmp_path), tmp_path / "one", tmp_path / "apart"
    run(recipe, [f"out={one}"])
    told = capsys.readouterr()
    assert told.out == "" and [line.split()[:2] for line in told.err.splitlines()] == [
        ["vision", "1/1"], ["text", "1/1"], ["joint", "1/2"], ["joint", "2/2"], ["model", "written"]
    ]  # fmt: skip
    assert {stage: log_of(one, stage) for stage in STEPS} == {stage: list(range(1, n + 1)) for stage, n in STEPS.items()}
    for stage in ("text", "vision", "joint"):
        run(recipe, [f"out={apart}", f'only=["{stage}"]'])
    assert "vision: loaded" in capsys.readouterr().err
    for stage in STEPS:
        a, b = (load_file(out / stage / "last.safetensors") for out in (one, apart))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a), stage
    assert model_of(one) == model_of(apart)
    run(recipe, [f"out={one}"])
    assert "joint: resumed at step 2" in capsys.readouterr().err, "a finished run makes no further step"
    assert model_of(one) == model_of(apart) and log_of(one, "joint") == [1, 2]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_runs(built: None, tmp_path: Path, path: Path) -> None:
    """Two steps of each stage, small; the trunk is not there to learn (tests/train/test_live_views.py has it learn)."""
    small = ("steps=2", "batch=1", "queries=2", "warmup=1", "text_batch=1", "trunk_lr=0.0", "reason_share=0.0")
    stages = load_recipe(path).stages
    run(path, [f"out={tmp_path / 'run'}", "workers=0", "device=cpu", *(f"stages.{name}.{change}" for name in stages for change in small)])
    assert all(log_of(tmp_path / "run", name)[-1] == 2 for name in stages)
    assert model_of(tmp_path / "run")


def test_stages_that_are_left_out_are_told(built: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(workshop.write_recipe(tmp_path), ['only=["text"]'])
    assert "vision: has no checkpoint, goes on untrained" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"text", "model"}, "later stages are left alone"
    run(workshop.write_recipe(tmp_path), ['only=["text"]'], resume=False)
    assert log_of(tmp_path / "run", "text") == [1, 1], "without resume it starts again"


def test_a_dry_run_counts_and_writes_nothing(built: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(workshop.write_recipe(tmp_path), [], dry_run=True)
    told = capsys.readouterr().err
    assert all(part in told for part in ("lora", "seg_head", "mask_decoder", " M")) and not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_recipe_is_refused(built: None, tmp_path: Path) -> None:
    run(workshop.write_recipe(tmp_path), ['only=["text"]'])
    shutil.move(tmp_path / "run/text", tmp_path / "run/vision")
    with pytest.raises(TrainingError, match=r"another set of parameters.*--no-resume"):
        run(workshop.write_recipe(tmp_path), ['only=["vision"]'])


# how everything is built


def test_a_recipe_builds_its_workshop(world: Path, trunk: TinyTrunk, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(world)
    shop = door.build_workshop(recipe, print)
    assert [path.stem for path in shop.views.paths] == ["wide", "wide+a", "tall", "tall+a", "square", "square+a", "composite_0", "composite_1"]
    assert all(path.is_file() for path in shop.views.paths) and "views 8/8" in capsys.readouterr().err
    assert shop.view_weights.sum() == pytest.approx(1) and shop.view_weights[:6].sum() == pytest.approx(0.8)
    assert shop.noun_names == ["dog", "cat", "cup", "tree", "sky", "person", "teapot", "lamp", "kite", "drum"]
    assert shop.book.of("teapot").name == "teapot" and "gannet" in shop.book.nouns
    vision: Any = shop.model.vlm.vision
    for name, tensor in trunk.state_dict().items():
        torch.testing.assert_close(vision.trunk.state_dict()[name], tensor, rtol=2e-3, atol=1e-6)
    for buffer, n in ((vision.neck.nouns, 10), (vision.neck.coco_nouns, 80), (vision.neck.imagenet_nouns, 1000)):
        assert buffer.shape == (n, 256)
        torch.testing.assert_close(buffer.norm(dim=-1), torch.ones(n))
    assert torch.equal(vision.neck.nouns, shop.space(shop.noun_names))
    learned = {name for name, p in shop.model.named_parameters() if p.requires_grad}
    assert not any(".trunk." in n or (".language_model." in n and "lora_" not in n) for n in learned)
    assert shop.model.config.lora == {"rank": 4, "alpha": 8} and len([n for n in learned if "lora_A" in n]) == 14
    times = [path.stat().st_mtime_ns for path in shop.views.paths]
    vectors = shop.space(["dog", "gannet"])
    again = NounSpace(recipe.data.base, recipe.out / "noun_space.safetensors", [])
    torch.testing.assert_close(again(["gannet", "dog"]), vectors.flip(0))
    pools, cutouts = [Pool(recipe.data.pool, "small_train")], Cutouts(recipe.data.cutouts or "")
    assert door.prepare_views(recipe, pools, cutouts, vision.trunk)[0] == shop.views.paths[0]
    assert [path.stat().st_mtime_ns for path in shop.views.paths] == times, "what is there is not made again"


def test_a_recipe_trains_from_files_to_a_model(world: Path) -> None:
    train.run_recipe(world)
    out = world.parent / "run"
    assert {path.name for path in out.iterdir()} == {"views", "noun_space.safetensors", "vision", "text", "joint", "model"}
    config = json.loads((out / "model/config.json").read_text())
    assert config["language_model"] == "smollm2-135m-instruct" and len(config["nouns"]) == 10 and config["lora"] == {"rank": 4, "alpha": 8}
    assert all(torch.isfinite(t).all() for t in load_file(out / "model/model.safetensors").values())


def test_weights_are_shared_as_the_recipe_says(pool: Pool, tmp_path: Path) -> None:
    recipe = load_recipe(workshop.write_recipe(tmp_path), ["data.weights.small_train=3.0", "data.weights.cutouts=1.0"])
    p = view_weights(recipe, [pool], n_composites=4)
    assert len(p) == 6 + 4 and p.sum() == pytest.approx(1) and (p > 0).all()
    assert p[:6].sum() == pytest.approx(0.75) and np.allclose(p[6:], 0.0625), "a file's weight is split among its views"
    assert np.allclose(p[0:6:2], p[1:6:2]), "a picture's views are alike"
    assert view_weights(recipe, [pool], n_composites=0).sum() == pytest.approx(1)


def test_the_vocabulary_names_each_thing_once(pool: Pool, tmp_path: Path) -> None:
    names = vocabulary(load_recipe(workshop.write_recipe(tmp_path)), [pool, pool], Cutouts(workshop.write_cutouts(tmp_path / "c")))
    assert names == ["dog", "cat", "cup", "tree", "sky", "person", "teapot", "lamp", "kite", "drum"]
