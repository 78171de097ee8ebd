"""Where training starts (a released model, lisa-tiny, the paper's parts), and that what is exported is what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.datasets.recipe_root import make_root
from tests.train import lisa_world as world

import lisaseg
from lisaseg.datasets.mixture import Task
from lisaseg.errors import ModelLoadError, TrainingError, UsageError
from lisaseg.model.assemble import load_model
from lisaseg.train.lisa_config import LisaRecipe
from lisaseg.train.lisa_data import Collator, open_groups, probe_batches
from lisaseg.train.lisa_model import Trainee, open_trainee
from lisaseg.train.lisa_run import export_run, rebuild
from lisaseg.train.recipe import checked, read_recipe
from lisaseg.types import Sample, Turn

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ["optim.steps=2", "optim.batch=1", "optim.accumulation=2", "probe.every=1", "probe.size=2", "data.workers=0", "device='cpu'"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_data(tmp_path_factory.mktemp("data"))


def toml(values: dict[str, Any], prefix: str) -> list[str]:
    return [f"{prefix}.{key}={json.dumps(value)}" for key, value in values.items()]


def read(path: Path, overrides: list[str]) -> LisaRecipe:
    return checked(LisaRecipe, read_recipe(path, overrides), path)


def same_masks(trained: Trainee, loaded: Any, recipe: LisaRecipe) -> None:
    """States, masks and logits of tokens of both on the same pictures."""
    micro = probe_batches(recipe, Collator(trained, recipe.data), open_groups(recipe.data))[0]
    with torch.no_grad():
        outs = []
        for model in (trained.model.eval(), loaded):
            context = model.encode_image(micro.inputs)
            logits = model.vlm.logits(model.states(micro.batch, context))
            outs.append((logits, model(micro.batch, context, pixels=micro.pixels, placements=micro.placements)))
    (a_words, a), (b_words, b) = outs
    assert float((a.mask_logits - b.mask_logits).abs().max()) < 1e-3
    assert float((a_words - b_words).abs().max()) < 1e-3
    assert float(a.mask_logits.abs().max()) > 0.1


# -- the paper's parts


def test_parts_make_a_lisa_and_only_what_none_holds_is_new(tmp_path: Path, data: Path) -> None:
    parts, original = world.write_parts(tmp_path)
    path = world.write_recipe(tmp_path / "r.toml", tmp_path, data, tmp_path / "run")
    path.write_text(path.read_text().replace(f'start = "{tmp_path}"\n', ""))
    trainee = open_trainee(read(path, toml(parts, "model.parts")), CPU)
    assert trainee.added == {"[SEG]": 384, "<im_start>": 385, "<im_end>": 386}
    assert trainee.tokenizer.seg_id == trainee.model.vlm.seg_token_id == 384
    wanted, own = original.state_dict(), trainee.model.state_dict()
    for name, tensor in own.items():
        plain = name.replace(".base_layer", "")
        if "lora_" in name or name.startswith("seg_head."):
            continue
        rows = 384 if name.endswith(("embed_tokens.weight", "lm_head.weight")) else None
        assert torch.equal(tensor[:rows], wanted[plain][:rows]), name
    new = own["vlm.language_model.lm_head.weight"][384:]
    assert 0.01 < float(new.std()) < 0.03
    world.train(path, *toml(parts, "model.parts"), *SMALL)
    out = export_run(tmp_path / "run", tmp_path / "LISA", "last")
    assert lisaseg.load(out, dtype="float32", device="cpu", offline=True).model.config.chat_template == "llava_v1"
    same_masks(rebuild(tmp_path / "run", "last"), load_model(out, torch.float32, offline=True)[0], read(path, toml(parts, "model.parts")))
    assert json.loads((out / "config.json").read_text())["trained_on"] == [{"name": data.parent.name, "split": "train"}]


@pytest.mark.parametrize("lost", ["mask_decoder.iou_token.weight", "image_encoder.pos_embed"])
def test_a_part_that_lacks_a_tensor_is_refused(tmp_path: Path, data: Path, lost: str) -> None:
    parts, _ = world.write_parts(tmp_path)
    tensors = torch.load(parts["sam"], weights_only=True)
    torch.save({k: v for k, v in tensors.items() if k != lost} | {"stray": torch.zeros(1)}, parts["sam"])
    path = world.write_recipe(tmp_path / "r.toml", tmp_path, data, tmp_path / "run")
    path.write_text(path.read_text().replace(f'start = "{tmp_path}"\n', ""))
    with pytest.raises(ModelLoadError, match=rf"unexpected: model\.visual_model\.stray.*missing: model\.visual_model\.{lost}"):
        open_trainee(read(path, toml(parts, "model.parts")), CPU)


def test_float16_leaves_sams_encoder_alone(tmp_path: Path, data: Path) -> None:
    path = world.write_recipe(tmp_path / "r.toml", world.write_model(tmp_path / "LISA"), data, tmp_path / "run", optim__precision="float16")
    model = open_trainee(read(path, []), CPU).model
    assert next(model.vlm.language_model.model.layers.parameters()).dtype == torch.float16
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        features = model.mask_decoder.encode(torch.randn(1, 3, 64, 64))  # type: ignore[operator]
    assert features.embedding.dtype == torch.float32


# -- lisa-tiny


@pytest.fixture
def tiny(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides that point recipes/finetune.toml to a small random lisa-tiny."""
    folder = world.write_tiny(tmp_path, monkeypatch)
    mine = f"data.jsonl.mine.path={json.dumps(str(data))}"
    return [f"model.start={json.dumps(str(folder))}", mine, f"out={json.dumps(str(tmp_path / 'run'))}", "optim.precision='float32'"]


def test_tiny_goes_on_with_its_own_adapters(tiny: list[str], tmp_path: Path) -> None:
    trainee = open_trainee(read(RECIPES / "finetune.toml", tiny), CPU)
    stored = load_file(tmp_path / "tiny" / "model.safetensors")
    learned = {name.replace(".default.weight", ".weight"): p for name, p in trainee.learned().items()}
    assert {"vlm.seg_in", "vlm.seg_out"} < set(learned) < set(stored)
    assert {name for name in stored if "lora_" in name} < set(learned)
    assert all(p.dtype == torch.float32 and torch.equal(p, stored[name].float()) for name, p in learned.items())
    assert not any(name.startswith("vlm.vision") for name in learned)
    open_neck = open_trainee(read(RECIPES / "finetune.toml", [*tiny, "model.neck=true"]), CPU).learned()
    assert any("vision.neck" in name for name in open_neck) and not any("trunk" in name for name in open_neck)


def test_tiny_is_exported_as_it_lies_and_can_go_on(tiny: list[str], tmp_path: Path) -> None:
    world.train(RECIPES / "finetune.toml", *tiny, *SMALL, "optim.lr=0.003", "optim.accumulation=1", "probe.every=0")
    out = export_run(tmp_path / "run", tmp_path / "out", "last")
    before, after = load_file(tmp_path / "tiny" / "model.safetensors"), load_file(out / "model.safetensors")
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    for name, tensor in before.items():
        moved = not torch.equal(tensor.float(), after[name].float())
        assert moved == (not name.startswith("vlm.vision.")) or "score" in name or "lora_A" in name, name
    same_masks(rebuild(tmp_path / "run", "last"), load_model(out, torch.float32)[0], read(RECIPES / "finetune.toml", tiny))
    again = [f"model.start={json.dumps(str(out))}", *tiny[1:2], f"out={json.dumps(str(tmp_path / 'again'))}", "optim.precision='float32'"]
    learned = open_trainee(read(RECIPES / "finetune.toml", again), CPU).learned()
    assert all(torch.equal(p, after[name.replace(".default.weight", ".weight")]) for name, p in learned.items())


def test_export_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run of"):
        export_run(tmp_path, tmp_path / "out")
    world.train(world.write_recipe(tmp_path / "r.toml", world.write_model(tmp_path / "LISA"), data, tmp_path / "run"), "optim.steps=1")
    out = export_run(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UsageError, match="exists"):
        export_run(tmp_path / "run", out)
    with pytest.raises(UsageError, match="already"):
        export_run(out, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="damaged"):
        export_run(tmp_path / "run", tmp_path / "twice")


def test_tiny_keeps_its_tables(tiny: list[str]) -> None:
    for change, says in (("model.tokens='all'", "tokens"), ("model.quantize='4bit'", "quantize")):
        with pytest.raises(UsageError, match=says):
            open_trainee(read(RECIPES / "finetune.toml", [*tiny, change]), CPU)


def test_words_are_read_in_training_as_in_asking(tiny: list[str], tmp_path: Path) -> None:
    config = tmp_path / "tiny" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "read_as": {"cat": ["dog"]}}))
    for change, kept in (((), {"cat": ["dog"]}), (("model.read_as={}",), {})):
        recipe = read(RECIPES / "finetune.toml", [*tiny, *change])
        trainee = open_trainee(recipe, CPU)
        assert trainee.model.config.read_as == kept
        collate = Collator(trainee, recipe.data)
        dog, cat = (
            collate([Task(Sample("a", np.zeros((20, 30, 3), np.uint8)), ((Turn(f"Where is the {word}?", "It is not here."),),), "mine", 0)]).batch.ids
            for word in ("dog", "cat")
        )
        assert torch.equal(dog, cat) == bool(kept)
    world.train(RECIPES / "finetune.toml", *tiny, *SMALL, "model.read_as={}", "probe.every=0")
    out = export_run(tmp_path / "run", tmp_path / "out", "last")
    assert json.loads((out / "config.json").read_text()).get("read_as", {}) == {}


# -- every recipe


def test_finetune_recipe_runs(tiny: list[str], tmp_path: Path) -> None:
    world.train(RECIPES / "finetune.toml", *tiny[:3], *SMALL, "optim.accumulation=1", "probe.size=1")  # in its own precision
    assert len(world.read_log(tmp_path / "run")) == 2


@pytest.mark.parametrize(("name", "processes"), [("lisa-7b", 2), ("lisa-13b", 1)])
def test_paper_recipes_run(tmp_path: Path, name: str, processes: int) -> None:
    """Once as they are meant: shared out by FSDP2, in bfloat16, with gradient checkpointing."""
    parts, _ = world.write_parts(tmp_path / "parts")
    changes = [*toml(parts, "model.parts"), f"data.root={json.dumps(str(make_root(tmp_path / 'dataset')))}", f"out={tmp_path / 'run'}", *SMALL]
    if processes > 1:
        world.train_apart(RECIPES / f"{name}.toml", *changes, "optim.steps=4", world=processes)
    else:
        world.train(RECIPES / f"{name}.toml", *changes)
    assert lisaseg.load(export_run(tmp_path / "run", tmp_path / "out"), device="cpu", dtype="float32", offline=True).model is not None


def test_qlora_recipe_runs(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("bitsandbytes")
    start = world.write_model(tmp_path / "LISA")
    changes = [f"model.start={json.dumps(str(start))}", f"data.jsonl.mine.path={json.dumps(str(data))}", f"out={json.dumps(str(tmp_path / 'run'))}"]
    world.train(RECIPES / "lisa-7b-qlora-24gb.toml", *changes, *SMALL)
    assert lisaseg.load(export_run(tmp_path / "run", tmp_path / "out"), device="cpu", dtype="float32", offline=True).model is not None


def test_every_lisa_recipe_is_tested() -> None:
    """A new recipe needs a line above."""
    general = {path.stem for path in RECIPES.glob("*.toml") if read_recipe(path).get("kind") == "lisa"}
    assert general == {"finetune", "lisa-7b", "lisa-13b", "lisa-7b-qlora-24gb"}
