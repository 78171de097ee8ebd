"""The stages really train: finite losses, gradients where they belong and nowhere else, the same steps again, and a model that loads."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny_random
from tests.train import workshop
from torch import Tensor

from lisaseg.batching import Example, pack
from lisaseg.chat import CHATML
from lisaseg.errors import TrainingError
from lisaseg.model import assemble
from lisaseg.model.lisa import LisaModel
from lisaseg.tokenization import TextTokenizer
from lisaseg.train.config import StageConfig
from lisaseg.train.loop import Trainer
from lisaseg.train.run import STAGES, load_stage, parameter_table, write_model
from lisaseg.train.stages import JointStage, TextStage, VisionStage, Workshop
from lisaseg.train.view_sources import CachedViews
from lisaseg.train.views import View, ViewInfo, read_view
from lisaseg.vlms.base import ImageContext

KINDS = ("vision", "text", "joint")
CONFIGS = {
    "vision": StageConfig(kind="vision", steps=2, batch=2, queries=2, warmup=0, lr=1e-3),
    "text": StageConfig(kind="text", steps=2, batch=2, queries=3, warmup=0, lr=1e-3, p_absent=0.2, p_chat=0.2),
    "joint": StageConfig(kind="joint", steps=2, batch=2, queries=2, warmup=0, lr=1e-3, vision_lr=1e-3, text_share=0.0, p_absent=0.2),
}
# Softmax is blind to what all keys share, so a bias of attention keys can have no effect; what it gets is rounding.
NO_EFFECT = ("k_proj.bias",)
TRAINS = {
    "vision": ("neck.", "decoder."),
    "text": ("language_model.", "projector.nouns.", "projector.position", "projector.gain", "seg_head.", "seg_in", "seg_out", "temperature"),
    "joint": ("neck.", "decoder.", "language_model.", "projector.", "seg_head.", "seg_in", "seg_out", "temperature"),
}

Stage = VisionStage | TextStage | JointStage


def again(shop: Workshop) -> Workshop:
    """The same workshop, untrained, as another process would build it."""
    return workshop.build_shop(shop.tokenizer, shop.book, shop.views, shop.seed)


def stage_of(shop: Workshop, kind: str, **changes: Any) -> Stage:
    return STAGES[kind](kind, CONFIGS[kind].model_copy(update=changes), shop)  # type: ignore[no-any-return]


def paths_of(shop: Workshop) -> list[Path]:
    """Files of the cached views."""
    assert isinstance(shop.views, CachedViews)
    return shop.views.paths


def step_of(stage: Stage, step: int) -> tuple[Tensor, dict[str, float]]:
    """Loss and numbers of one step."""
    loss, values = stage.loss(stage.prepare(step))  # type: ignore[arg-type]
    return loss, {key: float(value) for key, value in values.items()}


def trainer_of(shop: Workshop, out: Path, kind: str, **changes: Any) -> Trainer:
    stage = stage_of(shop, kind, **changes)
    return Trainer(stage, workshop.build_recipe(out, {kind: stage.config}), out)


def tensors(shop: Workshop) -> dict[str, Tensor]:
    """Everything that could change: parameters, buffers, the temperature."""
    return {"temperature": shop.temperature.detach().clone(), **{n: t.clone() for n, t in shop.model.state_dict().items()}}


def owners(stage: Stage, shop: Workshop) -> dict[str, str]:
    """Name in the model -> name in the stage's groups, by identity."""
    learned = {id(p): name for _, group in stage.groups() for name, p in group.items()}
    named = [*shop.model.named_parameters(), ("temperature", shop.temperature)]
    return {name: learned[id(p)] for name, p in named if id(p) in learned}


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_reach_all_that_learns_and_nothing_else(shop: Workshop, tmp_path: Path, kind: str) -> None:
    trainer = trainer_of(shop, tmp_path, kind)
    before, alive = tensors(shop), set()
    for name, p in trainer.named.items():
        p.register_post_accumulate_grad_hook(lambda p, name=name: alive.add(name) if p.grad.any() else None)  # type: ignore[misc]
    means = trainer.run()
    assert means["loss"] > 0 and all(math.isfinite(v) for v in means.values())
    dead = set(trainer.named) - alive
    assert all(name.endswith(NO_EFFECT) for name in dead), dead
    after, learned = tensors(shop), owners(trainer.stage, shop)  # type: ignore[arg-type]
    assert len(learned) == len(trainer.named)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed <= set(learned), "frozen parts keep every bit"
    assert {learned[name] for name in set(learned) - changed} <= dead


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_trains_what_it_is_for(shop: Workshop, kind: str) -> None:
    stage = stage_of(shop, kind)
    names = [name for _, group in stage.groups() for name in group]
    assert len(names) == len(set(names)), "a parameter is in one group"
    assert all(name.startswith(TRAINS[kind]) for name in names)
    assert all(any(name.startswith(part) for name in names) for part in TRAINS[kind])
    language = [name for name in names if name.startswith("language_model.")]
    assert all("lora_" in name for name in language) and len(language) == (0 if kind == "vision" else 2 * 7 * 2)
    assert not any("trunk" in name for name in owners(stage, shop))


def test_learning_rates_of_joint_are_of_language_and_vision(shop: Workshop) -> None:
    (language_lr, language), (vision_lr, vision) = stage_of(shop, "joint", lr=0.5, vision_lr=0.25).groups()
    assert (language_lr, vision_lr) == (0.5, 0.25)
    assert {name.split(".")[0] for name in vision} == {"neck", "decoder"} and not {"neck", "decoder"} & {name.split(".")[0] for name in language}


@pytest.mark.parametrize(("kind", "text_share"), [("vision", 0.0), ("text", 0.0), ("joint", 0.0), ("joint", 1.0)])
def test_a_step_depends_on_seed_and_number_alone(shop: Workshop, kind: str, text_share: float) -> None:
    stage = stage_of(shop, kind, text_share=text_share)
    with torch.no_grad():
        third = step_of(stage, 3)
        step_of(stage, 4)
        np.random.seed(5)
        torch.manual_seed(5)
        repeated, other = step_of(stage, 3), step_of(stage, 4)
        shop.seed += 1
        reseeded = step_of(stage, 3)
    assert torch.equal(repeated[0], third[0]) and repeated[1] == third[1]
    assert other[1] != third[1] and reseeded[1] != third[1]


def test_text_share_is_the_share_of_text_steps(shop: Workshop) -> None:
    kinds = []
    for share in (0.0, 1.0):
        with torch.no_grad():
            kinds.append(set(step_of(stage_of(shop, "joint", text_share=share), 0)[1]))
    assert kinds[1] == {"text_ce", "text_noun", "text_hit", "text_seg"} and {"bce", "dice", "iou", "naming"} <= kinds[0]


def test_a_killed_joint_run_ends_as_one_that_never_stopped(shop: Workshop, tmp_path: Path) -> None:
    changes = {"steps": 4, "text_share": 0.3}
    trainer_of(shop, tmp_path / "whole", "joint", **changes).run()
    killed = again(shop)
    first = trainer_of(killed, tmp_path / "killed", "joint", **changes)
    prepare = first.stage.prepare

    def until_three(k: int) -> Any:
        if k == 3:
            raise KeyboardInterrupt
        return prepare(k)

    first.stage.prepare = until_three  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    resumed = again(shop)
    second = trainer_of(resumed, tmp_path / "killed", "joint", **changes)
    assert second.resume() and second.step == 2, "the last checkpoint is of step 2"
    second.run()
    whole, parts = tensors(shop), tensors(resumed)
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(whole[name], tensor) for name, tensor in tensors(again(shop)).items())
    logs = [[json.loads(line) for line in (tmp_path / run / "joint/log.jsonl").read_text().splitlines()] for run in ("whole", "killed")]
    losses = [{entry["step"]: entry["loss"] for entry in log} for log in logs]
    assert losses[0] == losses[1] and list(losses[0]) == [1, 2, 3, 4]


def outputs(model: LisaModel, tokenizer: TextTokenizer) -> tuple[Tensor, Tensor]:
    """Logits of the answers and of the masks of two lessons about one picture."""
    chats = [tiny_random.conversation((q, tiny_random.LESSONS[q])) for q in (tiny_random.ONE, tiny_random.TWO)]
    example = Example(chats, torch.zeros(3, 104, 104, dtype=torch.uint8))
    batch = pack([example], tokenizer, CHATML, model.vlm.n_image_tokens)
    context = tiny_random.encode_pictures(model, [workshop.paint("wide")])
    with torch.no_grad():
        words = model.vlm.logits(model.states(batch, context)[batch.label_row, batch.label_col])
        return words, model(batch, ImageContext(context.tokens, context.maps)).mask_logits


@pytest.fixture
def trained(shop: Workshop, tmp_path: Path) -> tuple[Workshop, Path]:
    """A workshop after two joint steps large enough to matter, and its checkpoint."""
    trainer = trainer_of(shop, tmp_path, "joint", lr=2e-2)
    trainer.run()
    return shop, trainer.checkpoint


def test_a_checkpoint_brings_a_stage_back(trained: tuple[Workshop, Path]) -> None:
    shop, checkpoint = trained
    other = again(shop)
    load_stage(other, checkpoint)
    one, two = tensors(shop), tensors(other)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_written_model_loads_and_answers_alike(trained: tuple[Workshop, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, _ = trained
    untouched = outputs(again(shop).model, shop.tokenizer)
    for card in ("an earlier one", "# Card\n"):  # the second replaces the first
        write_model(shop, tmp_path / "model", card)
    folder = tmp_path / "model"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "MODEL_CARD.md"} and not list(tmp_path.glob("model.*"))
    assert (folder / "MODEL_CARD.md").read_text() == "# Card\n"
    stored = load_file(folder / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16} and not any("language_model" in n and "lora_" not in n for n in stored)
    # The weights cache would be filled from the network; the language model that training started from stands in for it.
    base = tiny_random.build_model().vlm.language_model
    shop.tokenizer._tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(assemble, "load_language_model", lambda name, dtype, offline: (copy.deepcopy(base).to(dtype), tmp_path))
    model, tokenizer = assemble.load_model(folder, torch.float32)
    assert not any("lora_" in name for name, _ in model.named_parameters()), "adapters are merged"
    for mine, loaded, before in zip(outputs(shop.model, shop.tokenizer), outputs(model, tokenizer), untouched, strict=True):
        moved, error = (mine - before).abs().max(), (mine - loaded).abs().max()
        assert error < 0.01 * mine.abs().max() and error < 0.05 * moved, "fp16 rounding, far less than what training moved"


@pytest.mark.parametrize(
    "named",
    ["neck.extra", "tail.weight", "seg_in"],  # no such parameter, no such part, another shape
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(shop: Workshop, tmp_path: Path, named: str) -> None:
    before, fitting = tensors(shop), torch.ones(shop.model.vlm.hidden_size)
    save_file({"param/seg_out": fitting, f"param/{named}": torch.zeros(1)}, tmp_path / "last.safetensors")
    with pytest.raises(TrainingError, match=named):
        load_stage(shop, tmp_path / "last.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(shop).items())


def test_the_parameter_table_is_complete(shop: Workshop) -> None:
    table = parameter_table(shop.model)
    assert sum(table.values()) == sum(p.numel() for p in shop.model.parameters())
    assert {"lora", "language model", "seg_head", "mask_decoder", "vlm.vision.trunk", "vlm.vision.neck", "vlm.vision.projector"} <= set(table)


# single parts


def test_views_without_anything_to_segment_are_survived(shop: Workshop, tmp_path: Path) -> None:
    paths = paths_of(shop)
    for path in paths:
        view = read_view(path)
        info = ViewInfo(view.info.id, "small_train", view.info.valid)
        none = torch.zeros(0, 104, 104, dtype=torch.uint8)
        save_file({**view.trunk, "targets": none, "instances": none}, tmp_path / path.name, metadata={"info": json.dumps(info.__dict__)})
    shop.views = CachedViews([tmp_path / path.name for path in paths])
    for kind in ("vision", "joint"):
        loss, values = step_of(stage_of(shop, kind), 0)
        loss.backward()
        assert torch.isfinite(loss) and all(math.isfinite(v) for v in values.values()), kind


def test_views_are_drawn_by_weight(shop: Workshop) -> None:
    shop.view_weights = np.array([0.0, 1.0, 0.0])
    assert {view.info.id for view in shop.draw_views(5, shop.rng("a", 0))} == {"tall"}


def test_rivals_of_a_pixel_could_not_be_its_name(shop: Workshop) -> None:
    stage = stage_of(shop, "vision")
    wide, square = read_view(paths_of(shop)[0]), read_view(paths_of(shop)[2])
    assert isinstance(stage, VisionStage)
    assert set(wide.info.scope) <= set(stage._rivals(wide, shop.rng("a", 0)))
    assert "shirt" not in stage._rivals(square, shop.rng("a", 0)), "where one thing is labelled, its parts have no verdict"
    pasted = View(ViewInfo("c", "cutouts", (1.0, 1.0)), {}, wide.targets[:0], wide.instances[:0])
    assert stage._rivals(pasted, shop.rng("a", 0)) == shop.noun_names


def test_right_pixel_names_cost_little(shop: Workshop) -> None:
    stage, view = stage_of(shop, "vision"), read_view(paths_of(shop)[0])
    assert isinstance(stage, VisionStage)
    small = view.targets[:, ::2, ::2] == 1
    order = sorted(range(len(small)), key=lambda k: -int((view.targets[k] == 1).sum()))
    pixels = []
    for shift in (0, 1):  # the right names, then each thing called by another's name
        pixel = torch.zeros(1, 256, 52, 52)
        for place, k in enumerate(order):
            vector = shop.space([view.info.names[order[(place + shift) % len(order)]]])[0]
            pixel[0, :, small[k]] = vector[:, None] * 4
        pixels.append(float(stage.naming([view], shop.rng("a", 0)).loss(pixel, stage.neck).detach()))
    assert pixels[0] < 0.01 and pixels[1] > 10


def test_prompts_at_their_noun_cost_little(shop: Workshop) -> None:
    names = ["dog", "cat", "cup"]
    right = shop.space(names) * 3
    for prompts, low in ((right, True), (right.flip(0), False)):
        loss, hit = shop.nouns([0, 1, 2], names, ["tree", "dog"], shop.rng("a", 0)).loss(prompts, shop.temperature)
        assert (loss.item() < 0.05 and hit == 1.0) if low else (loss.item() > 2 and hit < 0.5)
    nothing, hit = shop.nouns([], [], ["tree"], shop.rng("a", 0)).loss(right[:0].requires_grad_(), shop.temperature)
    assert nothing.item() == 0 and nothing.requires_grad and hit == 1.0


# learning


def curves(trainer: Trainer) -> dict[str, list[float]]:
    """Means of every five steps."""
    trainer.recipe.log_every, trainer.recipe.save_every = 5, 1000
    told: list[dict[str, float]] = []
    trainer.run(progress=lambda step, end, means: told.append(means))
    return {key: [means[key] for means in told] for key in told[0]}


def test_vision_learns_two_views_by_heart(shop: Workshop, tmp_path: Path) -> None:
    shop.views, shop.view_weights = CachedViews(paths_of(shop)[:2]), np.array([0.5, 0.5])
    iou = curves(trainer_of(shop, tmp_path, "vision", steps=40, batch=1, queries=3, lr=3e-4, warmup=5))["iou"]
    assert iou[0] < 0.4 and iou[-1] > 0.7, iou


@pytest.mark.long
def test_joint_learns_to_answer_and_to_segment_a_view(shop: Workshop, tmp_path: Path) -> None:
    shop.views, shop.view_weights = CachedViews(paths_of(shop)[:1]), np.array([1.0])
    plain = {"p_absent": 0.0, "p_chat": 0.0, "p_definition": 0.0}
    told = curves(trainer_of(shop, tmp_path, "joint", steps=40, batch=1, queries=3, lr=1e-2, vision_lr=3e-4, warmup=5, **plain))
    assert told["iou"][0] < 0.4 and told["iou"][-1] > 0.7, told["iou"]
    assert told["hit"][0] < 0.5 and told["hit"][-1] > 0.9, "prompts find their nouns"
    assert told["seg"][0] < 0.2 and told["seg"][-1] > 0.9 and told["ce"][-1] < 0.6 * told["ce"][0], "[SEG] is emitted where it belongs"
