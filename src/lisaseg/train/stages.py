"""The stages of lisa-tiny. Each step depends on (seed, step) alone, so any step can be made again.

vision  neck and mask decoder learn to find pixels by noun vectors; no language model is involved.
text    the language model learns to choose among things, on made-up scenes of nouns: a grid of noun vectors in, a question, "It is the X [SEG]." out.
joint   everything together on pictures, with a share of text steps; the prompt now comes from the state behind [SEG].

A stage first prepares a step (on the CPU, perhaps in another process) and then computes its loss on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lisaseg.batching import Batch, Example, pack
from lisaseg.chat import Conversation, get_template
from lisaseg.model.lisa import LisaModel
from lisaseg.model.losses import mask_bce, mask_dice, mask_iou
from lisaseg.tokenization import TextTokenizer
from lisaseg.train.config import StageConfig
from lisaseg.train.noun_space import COCO_THINGS, NounSpace
from lisaseg.train.prepared import Absent, JointStep, Naming, NounTargets, Pictures, TextStep, VisionStep, make_naming
from lisaseg.train.reason_views import ReasonViews
from lisaseg.train.scenes import make_scene
from lisaseg.train.texts import NounBook
from lisaseg.train.view_queries import ViewQueries, choose_targets
from lisaseg.train.view_sources import ViewSource
from lisaseg.train.views import View
from lisaseg.vlms.base import ImageContext
from lisaseg.vlms.tiny_vision import TinyMaps

Values = dict[str, Tensor]  # numbers for the log


@dataclass
class Workshop:
    """Everything that stages share. noun_names: the neck's vocabulary; temperature: log of the contrastive scale (trained); reason: samples with
    reasoning queries, if the recipe has any."""

    model: LisaModel
    tokenizer: TextTokenizer
    book: NounBook
    space: NounSpace
    noun_names: list[str]
    views: ViewSource
    view_weights: np.ndarray
    seed: int
    temperature: nn.Parameter
    reason: ReasonViews | None = None

    def rng(self, stage: str, step: int) -> np.random.Generator:
        """The generator of one step of one stage."""
        return np.random.default_rng([self.seed, sum(stage.encode()), step])

    def draw_views(self, n: int, rng: np.random.Generator) -> list[View]:
        """n views by weight."""
        return [self.views.draw(int(i), rng) for i in rng.choice(len(self.views), size=n, p=self.view_weights)]

    def context(self, pictures: Pictures, dropout: float = 0.0) -> TinyMaps:
        """Run the neck, on cached features or behind the trunk; `dropout`: see `feature_dropout`."""
        vision = self.model.vlm.vision
        trunk = pictures.trunk
        if pictures.pixels is not None:
            trunk = vision.trunk(pictures.pixels.float() / 255)  # type: ignore[union-attr,operator]
        if dropout > 0:
            trunk = drop_features(trunk, dropout)
        maps: TinyMaps = vision.neck(trunk, pictures.valid)  # type: ignore[union-attr,operator]
        return maps

    def nouns(self, which: list[int], names: list[str], rivals: list[str], rng: np.random.Generator) -> NounTargets:
        """Targets of the prompts `which` in noun space: their names, among rivals and 200 others."""
        pool = self.book.categories + self.noun_names
        extra = [pool[int(i)] for i in rng.integers(len(pool), size=200)] if names else []
        place = {name: i for i, name in enumerate(dict.fromkeys([*names, *rivals, *extra]))}
        label = torch.tensor([place[n] for n in names], dtype=torch.long)
        return NounTargets(torch.tensor(which, dtype=torch.long), label, self.space(list(place)))


def drop_features(trunk: dict[str, Tensor], most: float) -> dict[str, Tensor]:
    """Hide channels of every map (B, C, H, W) and boxes of YOLO, the others scaled up; the share is drawn for each picture from [0, most)."""
    share = torch.rand(len(trunk["boxes"]), 1, device=trunk["boxes"].device) * most
    out = dict(trunk)
    for key in ("s4", "s8", "s16", "s32"):
        x = trunk[key]
        kept = (torch.rand(x.shape[:2], device=x.device) >= share) / (1 - share)
        out[key] = x * kept[..., None, None].to(x.dtype)
    out["scores"] = trunk["scores"] * (torch.rand(trunk["scores"].shape[:2], device=share.device) >= share)[..., None]
    return out


def _named(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    return {f"{prefix}.{n}": p for n, p in module.named_parameters() if p.requires_grad}


class VisionStage:
    """Stage "vision": noun vectors prompt the decoder; soft names of pixels by cross-entropy."""

    def __init__(self, name: str, config: StageConfig, shop: Workshop) -> None:
        self.name, self.config, self.shop = name, config, shop
        vision = shop.model.vlm.vision
        self.trunk, self.neck, self.decoder = vision.trunk, vision.neck, shop.model.mask_decoder  # type: ignore[union-attr]
        self.position = {n: i for i, n in enumerate(shop.noun_names)}

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        """Neck and decoder; and EfficientNet if it learns. YOLO never does: its boxes are an input of the neck."""
        lite: nn.Module = self.trunk.lite  # type: ignore[union-attr,assignment]
        lite.requires_grad_(self.config.trunk_lr > 0)
        lite.classifier.requires_grad_(False)  # type: ignore[union-attr]
        lite.head.requires_grad_(False)  # type: ignore[union-attr]
        for part in (self.neck, self.decoder):
            part.requires_grad_(True)  # type: ignore[operator]  # an earlier stage may have frozen them
        own = {**_named(self.neck, "neck"), **_named(self.decoder, "decoder")}  # type: ignore[arg-type]
        trunk = [(self.config.trunk_lr, _named(lite, "trunk.lite"))] if self.config.trunk_lr > 0 else []
        return [(self.config.lr, own), *trunk]

    def prepare(self, step: int) -> VisionStep:
        """Views, masks of things in them, noisy noun vectors as prompts."""
        rng = self.shop.rng(self.name, step)
        views = self.shop.draw_views(self.config.batch, rng)
        names, targets, index = [], [torch.zeros(0, 104, 104, dtype=torch.uint8)], []
        for b, view in enumerate(views):
            for k in choose_targets(view, self.config.queries, rng):
                names.append(view.info.names[k])
                targets.append(view.targets[k][None])
                index.append(b)
        vectors = self.shop.space(names)
        noise = torch.from_numpy(rng.standard_normal(vectors.shape).astype(np.float32))
        vectors = F.normalize(vectors + 0.5 * rng.random() * F.normalize(noise, dim=-1), dim=-1)
        absent = self.absent(views, rng)
        return VisionStep(Pictures.of(views), vectors, torch.tensor(index, dtype=torch.long), torch.cat(targets), self.naming(views, rng), absent)

    def loss(self, made: VisionStep) -> tuple[Tensor, Values]:
        """2 BCE + 0.5 Dice of the masks, names of pixels, and the decoder's estimate of its own IoU."""
        maps = self.shop.context(made.pictures, self.config.feature_dropout)
        naming = made.naming.loss(maps.pixel, self.neck)  # type: ignore[arg-type]
        absent = made.absent.loss(maps, self.decoder)  # type: ignore[arg-type]
        values = {"naming": naming.detach()} | ({"absent": absent.detach()} if self.config.absent_names else {})
        rest = self.config.noun_weight * naming + self.config.score_weight * absent
        if not len(made.targets):  # nothing is large enough in any of these views; a mean over no mask is no number
            return rest, values
        logits, scores = self.decoder.decode(maps, made.prompts, made.view)  # type: ignore[operator]
        weights = self.shop.model.config.loss_weights
        bce, dice = mask_bce(logits, made.targets).mean(), mask_dice(logits, made.targets).mean()
        iou = mask_iou(logits, made.targets)
        loss = weights["bce"] * bce + weights["dice"] * dice + rest + self.config.score_weight * F.mse_loss(scores, iou)
        return loss, values | {"bce": bce.detach(), "dice": dice.detach(), "iou": iou.mean()}

    def absent(self, views: list[View], rng: np.random.Generator) -> Absent:
        """Names that are not there, every second one the nearest to a name that is, of a few drawn."""
        names, index = [], []
        for b, view in enumerate(views):
            there = self.shop.space(view.info.names)
            for k in range(self.config.absent_names if view.info.absent else 0):
                some = [view.info.absent[int(i)] for i in rng.integers(len(view.info.absent), size=8 if k % 2 and len(there) else 1)]
                near = int((self.shop.space(some) @ there.T).amax(1).argmax()) if len(some) > 1 else 0
                names.append(some[near])
                index.append(b)
        return Absent(self.shop.space(names), torch.tensor(index, dtype=torch.long))

    def naming(self, views: list[View], rng: np.random.Generator, per_view: int = 300) -> Naming:
        """Labelled pixels and the names that could stand in that picture, classes balanced."""
        rows = []
        for b, view in enumerate(views):
            known = [k for k, n in enumerate(view.info.names) if n in self.position and view.info.kinds[k] in ("category", "cutout")]
            if not known:
                continue
            known.sort(key=lambda k: -int((view.targets[k] == 1).sum()))  # small things on top of large ones
            label = np.full((52, 52), -1)
            for place, k in enumerate(known):
                label[view.targets[k, ::2, ::2].numpy() == 1] = place
            at = np.flatnonzero(label >= 0)
            if not len(at):
                continue
            names = [view.info.names[k] for k in known]
            rivals = [n for n in self._rivals(view, rng) if n in self.position and n not in names]
            classes = label.reshape(-1)[at]
            p = 1.0 / np.bincount(classes, minlength=len(names))[classes]
            pick = rng.choice(len(at), size=per_view, p=p / p.sum())
            rows.append((b, [self.position[n] for n in names + rivals], at[pick], classes[pick]))
        return make_naming(rows)

    def _rivals(self, view: View, rng: np.random.Generator) -> list[str]:
        """Names that a labelled pixel of this view surely does not have: what is labelled exhaustively here, and some of the whole vocabulary.

        A person's pixels are also a shirt's, so where only persons are labelled, garments must not be rivals: the 80 COCO things are.
        """
        everything = self.shop.noun_names
        if view.info.source == "cutouts":
            return everything
        some = [everything[int(i)] for i in rng.integers(len(everything), size=40)] if len(view.info.scope) > 1 else list(COCO_THINGS)
        return [*view.info.scope, *(n for n in some if n not in view.info.scope)]


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

    def pack(self, conversations: list[list[Conversation]], targets: list[Tensor]) -> Batch:
        """Pack conversations of B pictures."""
        examples = [Example(c, t) for c, t in zip(conversations, targets, strict=True)]
        return pack(examples, self.shop.tokenizer, self.template, self.shop.model.vlm.n_image_tokens, self.shop.model.config.seg_state)

    def prepare_text(self, rng: np.random.Generator, scenes: int) -> TextStep:
        """Made-up scenes of nouns."""
        shop = self.shop
        made = [make_scene(shop.book, self.config, rng) for _ in range(scenes)]
        grids = torch.stack([s.noun_grid(shop.space, rng) for s in made])
        batch = self.pack([s.conversations for s in made], [torch.zeros(len(s.targets), 1, 1, dtype=torch.uint8) for s in made])
        names = [n for s in made for n in s.targets]
        rivals = list(dict.fromkeys(n for s in made for n in s.names))
        return TextStep(grids, batch, shop.nouns(list(range(len(names))), names, rivals, rng))

    def text_loss(self, made: TextStep) -> tuple[Tensor, Values]:
        """Cross-entropy of the answers, and prompts towards their nouns."""
        context = ImageContext(self.shop.model.vlm.vision.projector(made.grids), None)  # type: ignore[union-attr,operator]
        out = self.shop.model(made.batch, context, masks=False)
        noun, hit = made.nouns.loss(out.prompts, self.shop.temperature)
        values = {"text_ce": out.losses["ce"].detach(), "text_noun": noun.detach(), "text_hit": hit, "text_seg": torch.tensor(out.seg_accuracy)}
        return out.losses["loss"] + self.config.noun_weight * noun, values


class TextStage(LanguageStage):
    """Stage "text": the language model on scenes of nouns."""

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        """The language side, without the part of the projector that needs pictures."""
        return [(self.config.lr, {n: p for n, p in self.language_parameters().items() if not n.startswith("projector.context")})]

    def prepare(self, step: int) -> TextStep:
        """Scenes of one step."""
        return self.prepare_text(self.shop.rng(self.name, step), self.config.batch)

    def loss(self, made: TextStep) -> tuple[Tensor, Values]:
        """See `text_loss`."""
        return self.text_loss(made)


class JointStage(LanguageStage):
    """Stage "joint": pictures, with a share of text steps; a share of the pictures may come with reasoning queries."""

    def __init__(self, name: str, config: StageConfig, shop: Workshop) -> None:
        super().__init__(name, config, shop)
        self.vision = VisionStage(name, config, shop)
        self.queries = ViewQueries(shop.book, config)
        self.frozen_vision = config.vision_lr == 0 and config.trunk_lr == 0

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        """Language side; neck and decoder with a rate of their own unless it is 0; EfficientNet if it learns."""
        (_, vision), *trunk = self.vision.groups()
        if self.frozen_vision:
            for parameter in vision.values():
                parameter.requires_grad_(False)
            return [(self.config.lr, self.language_parameters())]
        return [(self.config.lr, self.language_parameters()), (self.config.vision_lr, vision), *trunk]

    def prepare(self, step: int) -> TextStep | JointStep:
        """Views with conversations, or scenes."""
        rng, shop = self.shop.rng(self.name, step), self.shop
        if rng.random() < self.config.text_share:
            return self.prepare_text(rng, self.config.text_batch or self.config.batch)
        n_reason = int(rng.binomial(self.config.batch, self.config.reason_share)) if shop.reason is not None else 0
        views = shop.draw_views(self.config.batch - n_reason, rng)
        asked = [self.queries.make(view, rng) for view in views]
        for _ in range(n_reason):
            assert shop.reason is not None
            view, more = shop.reason.draw(rng, self.config)
            views.append(view)
            asked.append(more)
        batch = self.pack([a.conversations for a in asked], [a.targets for a in asked])
        pairs = [(i, n) for i, n in enumerate(n for a in asked for n in a.noun_targets) if n]
        rivals = list(dict.fromkeys(n for v in views for n in v.info.names))
        nouns = shop.nouns([i for i, _ in pairs], [n for _, n in pairs], rivals, rng)
        return JointStep(Pictures.of(views), batch, nouns, self.vision.naming(views, rng), self.vision.absent(views, rng))

    def loss(self, made: TextStep | JointStep) -> tuple[Tensor, Values]:
        """LISA's losses (CE + 2 BCE + 0.5 Dice), prompts towards their nouns, names of pixels."""
        if isinstance(made, TextStep):
            return self.text_loss(made)
        shop = self.shop
        with torch.set_grad_enabled(not self.frozen_vision):
            maps = shop.context(made.pictures, self.config.feature_dropout)
        context = ImageContext(shop.model.vlm.vision.tokens(maps), maps)  # type: ignore[union-attr,operator]
        out = shop.model(made.batch, context)
        noun, hit = made.nouns.loss(out.prompts, shop.temperature)
        naming = made.naming.loss(maps.pixel, self.vision.neck)  # type: ignore[arg-type]
        loss = out.losses["loss"] + self.config.noun_weight * noun + 0.3 * naming
        if self.config.absent_names:
            loss = loss + self.config.score_weight * made.absent.loss(maps, shop.model.mask_decoder)  # type: ignore[arg-type]
        if len(out.scores):
            loss = loss + self.config.score_weight * F.mse_loss(out.scores, out.iou)
        values = {k: v.detach() for k, v in out.losses.items() if k != "loss"}
        values |= {"noun": noun.detach(), "hit": hit, "naming": naming.detach(), "seg": torch.tensor(out.seg_accuracy)}
        return loss, values | ({"iou": out.iou.mean()} if len(out.iou) else {})
