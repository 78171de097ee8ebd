"""The three stages of lisa-tiny. Each step depends on (seed, step) alone, so any step can be made again.

vision  neck and mask decoder learn to find pixels by noun vectors, on cached views; no language model is involved.
text    the language model learns to choose among things, on made-up scenes of nouns: a grid of noun vectors in, a question, "It is the X [SEG]." out.
joint   everything together on cached views, with a share of text steps; the prompt now comes from the state behind [SEG].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lisaseg.batching import Example, pack
from lisaseg.chat import Conversation, get_template
from lisaseg.model.lisa import LisaModel
from lisaseg.model.losses import mask_bce, mask_dice, mask_iou
from lisaseg.tokenization import TextTokenizer
from lisaseg.train.config import StageConfig
from lisaseg.train.noun_space import COCO_THINGS, NounSpace
from lisaseg.train.scenes import Scene, make_scene
from lisaseg.train.texts import NounBook
from lisaseg.train.view_queries import ViewQueries, choose_targets
from lisaseg.train.views import View, read_view
from lisaseg.vlms.base import ImageContext
from lisaseg.vlms.tiny_vision import TinyMaps


@dataclass
class Workshop:
    """Everything that stages share. noun_names: the neck's vocabulary; temperature: log of the contrastive scale (trained)."""

    model: LisaModel
    tokenizer: TextTokenizer
    book: NounBook
    space: NounSpace
    noun_names: list[str]
    views: list[Path]
    view_weights: np.ndarray
    seed: int
    temperature: nn.Parameter

    def rng(self, stage: str, step: int) -> np.random.Generator:
        """The generator of one step of one stage."""
        return np.random.default_rng([self.seed, sum(stage.encode()), step])

    def draw_views(self, n: int, rng: np.random.Generator) -> list[View]:
        """n views by weight."""
        return [read_view(self.views[int(i)]) for i in rng.choice(len(self.views), size=n, p=self.view_weights)]

    def context(self, views: list[View]) -> TinyMaps:
        """Run the neck on cached features."""
        trunk = {k: torch.stack([v.trunk[k] for v in views]) for k in views[0].trunk}
        valid = torch.tensor([v.info.valid for v in views])
        maps: TinyMaps = self.model.vlm.vision.neck(trunk, valid)  # type: ignore[union-attr,operator]
        return maps


def _named(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    return {f"{prefix}.{n}": p for n, p in module.named_parameters() if p.requires_grad}


class VisionStage:
    """Stage "vision": noun vectors prompt the decoder; soft names of pixels by cross-entropy."""

    def __init__(self, name: str, config: StageConfig, shop: Workshop) -> None:
        self.name, self.config, self.shop = name, config, shop
        self.neck, self.decoder = shop.model.vlm.vision.neck, shop.model.mask_decoder  # type: ignore[union-attr]
        self.position = {n: i for i, n in enumerate(shop.noun_names)}

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        return [(self.config.lr, {**_named(self.neck, "neck"), **_named(self.decoder, "decoder")})]  # type: ignore[arg-type]

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng = self.shop.rng(self.name, step)
        views = self.shop.draw_views(self.config.batch, rng)
        maps = self.shop.context(views)
        prompts, targets, index = [], [], []
        for b, view in enumerate(views):
            for k in choose_targets(view, self.config.queries, rng):
                prompts.append(view.info.names[k])
                targets.append(view.targets[k])
                index.append(b)
        if not targets:  # nothing is large enough in any of these views; a mean over no mask is no number
            naming = self.pixel_names(maps.pixel, views, rng)
            return self.config.noun_weight * naming, {"naming": naming.item()}
        vectors = self.shop.space(prompts)
        noise = torch.from_numpy(rng.standard_normal(vectors.shape).astype(np.float32))
        vectors = F.normalize(vectors + 0.5 * rng.random() * F.normalize(noise, dim=-1), dim=-1)
        logits, scores = self.decoder.decode(maps, vectors, torch.tensor(index))  # type: ignore[operator]
        target = torch.stack(targets)
        weights = self.shop.model.config.loss_weights
        bce, dice = mask_bce(logits, target).mean(), mask_dice(logits, target).mean()
        iou = mask_iou(logits, target)
        naming = self.pixel_names(maps.pixel, views, rng)
        loss = weights["bce"] * bce + weights["dice"] * dice + self.config.noun_weight * naming + 0.1 * F.mse_loss(scores, iou)
        return loss, {"bce": bce.item(), "dice": dice.item(), "naming": naming.item(), "iou": float(iou.mean())}

    def pixel_names(self, pixel: Tensor, views: list[View], rng: np.random.Generator, per_view: int = 300) -> Tensor:
        """Cross-entropy of labelled pixels over the names that could stand in that picture, classes balanced."""
        losses = []
        for b, view in enumerate(views):
            known = [k for k, n in enumerate(view.info.names) if n in self.position and view.info.kinds[k] in ("category", "cutout")]
            if not known:
                continue
            known.sort(key=lambda k: -int((view.targets[k] == 1).sum()))  # small things on top of large ones
            label = torch.full((52, 52), -1)
            for place, k in enumerate(known):
                label[view.targets[k, ::2, ::2] == 1] = place
            names = [view.info.names[k] for k in known]
            rivals = [n for n in self._rivals(view, rng) if n in self.position and n not in names]
            candidates = torch.tensor([self.position[n] for n in names + rivals])
            ys, xs = (label >= 0).nonzero(as_tuple=True)
            if not len(ys):
                continue
            classes = label[ys, xs]
            counts = torch.bincount(classes, minlength=len(names)).float()
            p = (1.0 / counts[classes]).double().numpy()
            pick = torch.from_numpy(rng.choice(len(ys), size=per_view, p=p / p.sum()))
            features = pixel[b, :, ys[pick], xs[pick]].T
            nouns = self.neck.nouns[candidates].to(features.dtype)  # type: ignore[index,union-attr]
            scores = (features @ nouns.T).float() * self.neck.name_scale.exp()  # type: ignore[union-attr,operator]
            losses.append(F.cross_entropy(scores, classes[pick]))
        return torch.stack(losses).mean() if losses else pixel.sum() * 0.0

    def _rivals(self, view: View, rng: np.random.Generator) -> list[str]:
        """Names that a labelled pixel of this view surely does not have: what is labelled exhaustively here, and some of the whole vocabulary.

        A person's pixels are also a shirt's, so where only persons are labelled, garments must not be rivals: the 80 COCO things are.
        """
        everything = self.shop.noun_names
        if view.info.source == "cutouts":
            return everything
        some = [everything[int(i)] for i in rng.integers(len(everything), size=40)] if len(view.info.scope) > 1 else list(COCO_THINGS)
        return [*view.info.scope, *(n for n in some if n not in view.info.scope)]


def noun_loss(shop: Workshop, prompts: Tensor, names: list[str], rng: np.random.Generator, rivals: list[str]) -> tuple[Tensor, float]:
    """Pull prompt embeddings (N, C) to the vectors of their names: contrastive over names and rivals, plus 1 - cosine. Also the hit rate."""
    if not names:
        return prompts.sum() * 0.0, 1.0
    q = F.normalize(prompts, dim=-1)
    pool = shop.book.categories + shop.noun_names
    extra = [pool[int(i)] for i in rng.integers(len(pool), size=200)]
    vocabulary = list(dict.fromkeys([*names, *rivals, *extra]))
    vectors = shop.space(vocabulary)
    logits = q @ vectors.T * shop.temperature.exp()
    label = torch.tensor([vocabulary.index(n) for n in names])
    cosine = (q * vectors[label]).sum(-1)
    hit = float((logits.argmax(-1) == label).float().mean())
    return F.cross_entropy(logits, label) + (1 - cosine).mean(), hit


class LanguageStage:
    """What "text" and "joint" share: the trained parts of the language side and the text step."""

    def __init__(self, name: str, config: StageConfig, shop: Workshop) -> None:
        self.name, self.config, self.shop = name, config, shop
        self.template = get_template(shop.model.config.chat_template)

    def language_parameters(self) -> dict[str, nn.Parameter]:
        """LoRA, projector, seg head, the [SEG] rows, the contrastive temperature."""
        model = self.shop.model
        lora = {n: p for n, p in model.vlm.language_model.named_parameters() if p.requires_grad}
        assert all("lora_" in n for n in lora), "only adapters of the language model are trained"
        vlm = model.vlm
        return {
            **{f"language_model.{n}": p for n, p in lora.items()},
            **_named(vlm.vision.projector, "projector"),  # type: ignore[union-attr,arg-type]
            **_named(model.seg_head, "seg_head"),
            "seg_in": vlm.seg_in,  # type: ignore[dict-item]
            "seg_out": vlm.seg_out,  # type: ignore[dict-item]
            "temperature": self.shop.temperature,
        }

    def pack(self, conversations: list[list[Conversation]], targets: list[Tensor]):  # type: ignore[no-untyped-def]
        """Pack conversations of B pictures."""
        examples = [Example(c, t) for c, t in zip(conversations, targets, strict=True)]
        return pack(examples, self.shop.tokenizer, self.template, self.shop.model.vlm.n_image_tokens, self.shop.model.config.seg_state)

    def text_step(self, rng: np.random.Generator, scenes: int) -> tuple[Tensor, dict[str, float]]:
        """Loss on made-up scenes of nouns."""
        shop = self.shop
        made: list[Scene] = [make_scene(shop.book, self.config, rng) for _ in range(scenes)]
        grids = torch.stack([s.noun_grid(shop.space, rng) for s in made])
        context = ImageContext(shop.model.vlm.vision.projector(grids), None)  # type: ignore[union-attr,operator]
        batch = self.pack([s.conversations for s in made], [torch.zeros(len(s.targets), 1, 1, dtype=torch.uint8) for s in made])
        out = shop.model(batch, context, masks=False)
        names = [n for s in made for n in s.targets]
        rivals = list(dict.fromkeys(n for s in made for n in s.names))
        noun, hit = noun_loss(shop, out.prompts, names, rng, rivals)
        loss = out.losses["loss"] + self.config.noun_weight * noun
        return loss, {"text_ce": out.losses["ce"].item(), "text_noun": noun.item(), "text_hit": hit, "text_seg": out.seg_accuracy}


class TextStage(LanguageStage):
    """Stage "text": the language model on scenes of nouns."""

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        return [(self.config.lr, {n: p for n, p in self.language_parameters().items() if not n.startswith("projector.context")})]

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        return self.text_step(self.shop.rng(self.name, step), self.config.batch)


class JointStage(LanguageStage):
    """Stage "joint": pictures, with a share of text steps."""

    def __init__(self, name: str, config: StageConfig, shop: Workshop) -> None:
        super().__init__(name, config, shop)
        self.vision = VisionStage(name, config, shop)
        self.queries = ViewQueries(shop.book, config)

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        vision = {**_named(self.vision.neck, "neck"), **_named(self.vision.decoder, "decoder")}  # type: ignore[arg-type]
        return [(self.config.lr, self.language_parameters()), (self.config.vision_lr, vision)]

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng = self.shop.rng(self.name, step)
        if rng.random() < self.config.text_share:
            return self.text_step(rng, self.config.batch)
        views = self.shop.draw_views(self.config.batch, rng)
        asked = [self.queries.make(view, rng) for view in views]
        maps = self.shop.context(views)
        context = ImageContext(self.shop.model.vlm.vision.tokens(maps), maps)  # type: ignore[union-attr,operator]
        batch = self.pack([a.conversations for a in asked], [a.targets for a in asked])
        out = self.shop.model(batch, context)
        pairs = [(i, n) for i, n in enumerate(n for a in asked for n in a.noun_targets) if n]
        chosen = out.prompts[torch.tensor([i for i, _ in pairs], dtype=torch.long)]
        rivals = list(dict.fromkeys(n for v in views for n in v.info.names))
        noun, hit = noun_loss(self.shop, chosen, [n for _, n in pairs], rng, rivals)
        naming = self.vision.pixel_names(maps.pixel, views, rng)
        loss = out.losses["loss"] + self.config.noun_weight * noun + 0.3 * naming
        if len(out.scores):
            loss = loss + 0.1 * F.mse_loss(out.scores, out.iou)
        values = {k: v.item() for k, v in out.losses.items() if k != "loss"}
        values |= {"noun": noun.item(), "hit": hit, "naming": naming.item(), "seg": out.seg_accuracy}
        if len(out.iou):
            values["iou"] = float(out.iou.mean())
        return loss, values
