"""`lisaseg train RECIPE`: build everything that a recipe names, run its stages in order, write the trained part as a model folder."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lisaseg.datasets.cutouts import Cutouts
from lisaseg.datasets.pool import Pool
from lisaseg.errors import TrainingError
from lisaseg.model.assemble import pick_device
from lisaseg.model.checkpoint import load_language_model, trained_tensors
from lisaseg.model.config import LisaConfig
from lisaseg.model.lisa import LisaModel
from lisaseg.tokenization import TextTokenizer
from lisaseg.train.config import Recipe, load_recipe
from lisaseg.train.loop import Trainer, save_atomic
from lisaseg.train.noun_space import COCO_THINGS, NounSpace
from lisaseg.train.progress import reporting
from lisaseg.train.reason_views import ReasonViews
from lisaseg.train.stages import JointStage, TextStage, VisionStage, Workshop
from lisaseg.train.start import check_space, fingerprint, keep_settings, start_config, start_from
from lisaseg.train.texts import NounBook
from lisaseg.train.tiny_base import build_trunk, imagenet_names
from lisaseg.train.view_sources import CachedViews, LiveViews, ViewSource
from lisaseg.train.views import build_cache, plan_views
from lisaseg.vlms.tiny_trunk import TinyTrunk

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STAGES: dict[str, Callable[..., Any]] = {"vision": VisionStage, "text": TextStage, "joint": JointStage}


def add_lora(model: LisaModel, rank: int, alpha: int) -> None:
    """Put adapters on every linear map of the language model's layers and freeze the rest of it."""
    from peft import LoraConfig, inject_adapter_in_model

    language_model = model.vlm.language_model
    language_model.requires_grad_(False)
    pattern = r"model\.layers\.\d+\.(self_attn|mlp)\.(" + "|".join(LORA_TARGETS) + ")"
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=pattern), language_model)
    for name, p in language_model.named_parameters():
        if "lora_" in name:
            p.data = p.data.float()


def _pools(recipe: Recipe) -> list[Pool]:
    return [Pool(recipe.data.pool, name) for name in recipe.data.files]


def vocabulary(recipe: Recipe, pools: list[Pool], cutouts: Cutouts | None) -> list[str]:
    """Names that pixels are trained to have: the pool's categories in natural form, then the cut-outs' names."""
    from lisaseg.datasets.pool import natural_name

    names = [natural_name(c) for pool in pools for c in pool.category_names()]
    if cutouts is not None:
        names += [cutouts[i].name for i in range(len(cutouts))]
    return list(dict.fromkeys(names))


def prepare_views(recipe: Recipe, pools: list[Pool], cutouts: Cutouts | None, trunk: TinyTrunk) -> list[Path]:
    """Compute the missing views of the cache; paths of all in plan order. A trunk with other weights has a cache of its own."""
    folder = (recipe.data.cache or recipe.out) / "views" / fingerprint(trunk)
    plan = list(plan_views(pools, recipe.data.files, cutouts, recipe.data.composites, recipe.seed))
    if any(not (folder / f"{stem}.safetensors").is_file() for stem, _ in plan):
        fast = copy.deepcopy(trunk).to("cpu", torch.bfloat16 if recipe.bf16 else torch.float32)
        fast = fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with reporting("views", every=100) as report:
            build_cache(folder, plan, fast, report)
    return [folder / f"{stem}.safetensors" for stem, _ in plan]


def view_weights(recipe: Recipe, pools: list[Pool], n_composites: int) -> np.ndarray:
    """Sampling probability of every view, in plan order: a file's weight is shared by its views."""
    weights: list[float] = []
    for pool in pools:
        copies = 1 if recipe.data.live else recipe.data.files[pool.path.stem]
        total = recipe.data.weights.get(pool.path.stem, 1.0)
        per = pool.sampling_weights()
        scaled = total * per / per.sum() / copies
        weights += [float(w) for w in scaled for _ in range(copies)]
    weights += [recipe.data.weights.get("cutouts", 1.0) / max(1, n_composites)] * n_composites
    p = np.array(weights)
    return p / p.sum()  # type: ignore[no-any-return]


def view_source(recipe: Recipe, pools: list[Pool], cutouts: Cutouts | None, trunk: TinyTrunk) -> ViewSource:
    """Live views, or the cache, whose missing views are computed now.

    Raises:
        TrainingError: a stage wants to train the trunk on cached features.
    """
    if recipe.data.live:
        return LiveViews(pools, cutouts, recipe.data.composites, paste=recipe.data.paste, window=recipe.data.window)
    hungry = [name for name, stage in recipe.stages.items() if stage.trunk_lr > 0 or stage.reason_share > 0]
    if hungry:
        raise TrainingError(
            f"Stage {hungry[0]} trains the trunk or reads reasoning samples, but the features of the trunk are cached.",
            next_step=f"Set data.live=true, or stages.{hungry[0]}.trunk_lr=0 and reason_share=0.",
        )
    return CachedViews(prepare_views(recipe, pools, cutouts, trunk))


def brings_eyes(recipe: Recipe) -> bool:
    """Whether the model that the run starts from brings trunk, neck and their noun vectors, so that the base archives of the trunk are not needed."""
    return recipe.start is not None and "vision" in recipe.start_parts


def new_model(recipe: Recipe, nouns: list[str], space: NounSpace, imagenet: list[str]) -> tuple[LisaModel, Path]:
    """The model at step 0, with adapters, and the folder of its language model: from the base archives, or with parts of `recipe.start`."""
    language_model, folder = load_language_model("smollm2-135m-instruct", torch.bfloat16 if recipe.bf16 else torch.float32)
    config = LisaConfig(
        nouns=nouns,
        seg_hidden=recipe.seg_hidden,
        seg_state=recipe.seg_state,
        lora={"rank": recipe.lora_rank, "alpha": recipe.lora_alpha},
        language_model="smollm2-135m-instruct",
    )
    if recipe.start is not None and len(set(recipe.start_parts)) == 2:
        keep_settings(config, start_config(recipe.start))
    for key, value in recipe.asking.model_dump(exclude_none=True).items():
        setattr(config, key, value)
    torch.manual_seed(recipe.seed)
    model = LisaModel(config, language_model)
    neck = model.vlm.vision.neck  # type: ignore[union-attr]
    if not brings_eyes(recipe):
        model.vlm.vision.trunk.load_state_dict(build_trunk(recipe.data.base).state_dict())  # type: ignore[union-attr]
        neck.nouns.copy_(space(nouns))  # type: ignore[operator,union-attr]
        neck.coco_nouns.copy_(space(list(COCO_THINGS)))  # type: ignore[operator,union-attr]
        neck.imagenet_nouns.copy_(space(imagenet))  # type: ignore[operator,union-attr]
    model.vlm.vision.trunk.requires_grad_(False)  # type: ignore[union-attr]
    torch.manual_seed(recipe.seed + 1)
    add_lora(model, recipe.lora_rank, recipe.lora_alpha)
    if recipe.start is not None:
        start_from(model, recipe.start, recipe.start_parts)
        check_space(neck.nouns, space(nouns), recipe.start)  # type: ignore[union-attr,arg-type]
    return model, folder


def build_workshop(recipe: Recipe, log: Callable[[str], None]) -> Workshop:
    """Model with adapters, texts, noun space and cached views of a recipe."""
    pools = _pools(recipe)
    cutouts = Cutouts(recipe.data.cutouts) if recipe.data.cutouts else None
    book = NounBook(recipe.data.wordnet, recipe.data.nouns)
    if cutouts is not None:
        for i in range(len(cutouts)):
            book.add(cutouts[i].name, [], [])  # its tags are themes ("beach"), not names
    nouns = vocabulary(recipe, pools, cutouts) if recipe.start is None else start_config(recipe.start).nouns
    space = NounSpace(recipe.data.base, (recipe.data.cache or recipe.out) / "noun_space.safetensors", list(book.nouns))
    imagenet = [] if brings_eyes(recipe) else imagenet_names(recipe.data.base)
    space.remember([*book.nouns, *nouns, *COCO_THINGS, *imagenet])
    reason = ReasonViews(recipe.data.reason) if recipe.data.reason else None
    if reason is not None:
        space.remember([q.name.split(",")[0].strip() for _, queries in reason.pictures for q in queries if q.name])
    model, folder = new_model(recipe, nouns, space, imagenet)
    trunk: TinyTrunk = model.vlm.vision.trunk  # type: ignore[union-attr,assignment]
    views = view_source(recipe, pools, cutouts, trunk)
    log(f"{len(views)} views, {len(nouns)} names in the vision vocabulary, {len(book.nouns)} nouns with texts")
    device = pick_device(recipe.device)
    # with packed masks on a CPU, plain attention is faster than the fused kernel, most of all backward
    model.vlm.language_model.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")
    if device.type != "cpu":
        trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.to(device)
    tokenizer = TextTokenizer(folder, model.vlm.seg_token_id, model.vlm.image_token_id)
    weights = view_weights(recipe, pools, recipe.data.composites if cutouts is not None else 0)
    temperature = nn.Parameter(torch.tensor(2.7, device=device))
    return Workshop(model, tokenizer, book, space, nouns, views, weights, recipe.seed, temperature, reason)


def load_stage(shop: Workshop, file: Path) -> None:
    """Put the parameters of a stage's checkpoint into the model.

    Raises:
        TrainingError: a parameter has no place in the model, or another shape.
    """
    from safetensors.torch import load_file

    vlm = shop.model.vlm
    parts: dict[str, nn.Module] = {
        "trunk": vlm.vision.trunk,  # type: ignore[union-attr,dict-item]
        "neck": vlm.vision.neck,  # type: ignore[union-attr,dict-item]
        "decoder": shop.model.mask_decoder,
        "language_model": vlm.language_model,
        "projector": vlm.vision.projector,  # type: ignore[union-attr,dict-item]
        "seg_head": shop.model.seg_head,
    }
    own = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
    own |= {"seg_in": vlm.seg_in, "seg_out": vlm.seg_out, "temperature": shop.temperature}  # type: ignore[dict-item]
    values = {key.removeprefix("param/"): value for key, value in load_file(file).items() if key.startswith("param/")}
    for name, value in values.items():
        if name not in own or own[name].shape != value.shape:
            raise TrainingError(f"{file}: {name} {tuple(value.shape)} does not fit the model.", next_step="Train that stage again.")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def write_model(shop: Workshop, folder: Path, card: str) -> None:
    """The trained part as a model folder: config.json, model.safetensors (fp16), MODEL_CARD.md. Written aside, then renamed."""
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_atomic(trained_tensors(shop.model), aside / "model.safetensors", {"format": "pt"})
    (aside / "config.json").write_text(json.dumps(shop.model.config.to_diff_dict(), indent=1, sort_keys=True) + "\n")
    (aside / "MODEL_CARD.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def run(path: Path, overrides: list[str], *, resume: bool = True, dry_run: bool = False) -> None:
    """Run the recipe; see `lisaseg train --help`."""
    recipe = load_recipe(path, overrides)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    unknown = set(recipe.only) - set(recipe.stages)
    if unknown:
        raise TrainingError(f"`only` names unknown stages: {', '.join(sorted(unknown))}.", next_step=f"Known: {', '.join(recipe.stages)}.")

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    shop = build_workshop(recipe, log)
    if dry_run:
        for part, n in parameter_table(shop.model).items():
            log(f"{part:24s} {n / 1e6:8.2f} M")
        return
    order = list(recipe.stages)
    deadline = time.monotonic() + 60 * recipe.minutes if recipe.minutes else None
    for name, config in recipe.stages.items():
        trainer = Trainer(STAGES[config.kind](name, config, shop), recipe, recipe.out)
        if recipe.only and name not in recipe.only:
            if order.index(name) < min(order.index(o) for o in recipe.only):
                if trainer.checkpoint.is_file():
                    load_stage(shop, trainer.checkpoint)
                log(f"{name}: " + ("loaded" if trainer.checkpoint.is_file() else "has no checkpoint, goes on untrained"))
            continue
        if resume and trainer.resume():
            log(f"{name}: resumed at step {trainer.step}")
        with reporting(name) as report:
            trainer.run(progress=report, deadline=deadline)
        if trainer.step < config.steps:
            log(f"{name}: stopped at step {trainer.step} of {config.steps} after {recipe.minutes:g} minutes; run the same command again to go on")
            return
    write_model(shop, recipe.out / "model", "# Model card\n\nWritten by `lisaseg train`; not evaluated yet.\n")
    log(f"model written to {recipe.out / 'model'}")


def parameter_table(model: LisaModel) -> dict[str, int]:
    """Number of parameters by part; LoRA apart."""
    table: dict[str, int] = {}
    for name, p in model.named_parameters():
        part = (
            "lora"
            if "lora_" in name
            else "language model"
            if "language_model" in name
            else ".".join(name.split(".")[:3] if "vision" in name else name.split(".")[:1])
        )
        table[part] = table.get(part, 0) + p.numel()
    return table
