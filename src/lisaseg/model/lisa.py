"""The heart of lisaseg: embedding-as-mask (LISA, arXiv 2308.00692).

A vision-language model reads picture and instruction; the last-layer state behind each `[SEG]` goes through the seg head and prompts the
mask decoder.
`forward` (training) and `generate` (asking) walk the same line: `encode_image` -> states -> `prompt_embeddings` -> `decode_masks`.
Shapes: B images, Q conversations, T tokens, D hidden, N masks, C prompt width, H W pixels of the decoder's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lisaseg.batching import Batch
from lisaseg.imaging import Placement
from lisaseg.mask_decoders import MASK_DECODERS
from lisaseg.model.config import LisaConfig
from lisaseg.model.losses import answer_loss, mask_bce, mask_dice, mask_iou
from lisaseg.vlms import VLMS
from lisaseg.vlms.base import ImageContext, VisionLanguageModel
from lisaseg.vlms.decoding import Generation


@dataclass
class ForwardOutput:
    """What a training step sees.

    losses: weighted "ce", "bce", "dice" and their sum "loss" (scalars). prompts (N, C) and mask_logits (N, H, W) in the order of `Batch.targets`;
    scores (N,), iou (N,) without gradient; seg_accuracy: share of `[SEG]` labels that were predicted.
    """

    losses: dict[str, Tensor]
    prompts: Tensor
    mask_logits: Tensor
    scores: Tensor
    iou: Tensor
    seg_accuracy: float


def build_seg_head(hidden: int, middle: int, width: int) -> nn.Sequential:
    """Language -> prompt: D -> middle -> C with ReLU between; `middle` 0 = one linear layer."""
    if middle == 0:
        return nn.Sequential(nn.Linear(hidden, width))
    return nn.Sequential(nn.Linear(hidden, middle), nn.ReLU(), nn.Linear(middle, width))


class LisaModel(PreTrainedModel):  # type: ignore[misc]
    """A vision-language model, a seg head and a mask decoder.

    Args:
        config: which parts and conventions.
        language_model: a ready transformers causal LM; None = an empty one is built from `config.language_config`.
    """

    config_class = LisaConfig
    base_model_prefix = "lisa"
    _supports_sdpa = True
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, config: LisaConfig, language_model: Any = None) -> None:
        super().__init__(config)
        if language_model is None:
            language_model = _empty_language_model(config)
        decoder = {k: v for k, v in config.mask_decoder.items() if k != "family"}
        self.vlm: VisionLanguageModel = VLMS.get(config.vlm["family"]).build(language_model, config)
        self.seg_head = build_seg_head(self.vlm.hidden_size, config.seg_hidden, config.prompt_width)
        self.mask_decoder = MASK_DECODERS.get(config.mask_decoder["family"])(prompt_width=config.prompt_width, **decoder)
        self.image_encodings = 0
        self.mask_encodings = 0

    def _init_weights(self, module: nn.Module) -> None:
        """Parts initialise themselves."""

    @property
    def device(self) -> torch.device:
        """Where inputs go; a language model over several devices fetches them from here."""
        return next(self.seg_head.parameters()).device

    def encode_image(self, inputs: dict[str, Tensor]) -> ImageContext:
        """Preprocessed pictures, stacked -> tokens and maps; counted, so that tests can hold "once per image"."""
        self.image_encodings += len(next(iter(inputs.values())))
        return self.vlm.encode_image(inputs)

    def prompt_embeddings(self, states: Tensor) -> Tensor:
        """States behind `[SEG]` (N, D) -> prompt embeddings (N, C), float32. N = 0 is legal."""
        return self.seg_head(states.to(next(self.seg_head.parameters()).dtype)).float()  # type: ignore[no-any-return]

    def encode_mask_features(self, context: ImageContext, pixels: Tensor | None = None) -> Any:
        """Mask features of B pictures; called only when a mask is needed, once per image."""
        self.mask_encodings += len(context.tokens)
        return self.mask_decoder.encode(pixels, context.maps)  # type: ignore[operator]

    def decode_masks(self, features: Any, prompts: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """Mask features of B images, prompts (N, C), image_index (N,) -> logits (N, H, W) float32 on the canvas, scores (N,)."""
        return self.mask_decoder.decode(features, prompts, image_index)  # type: ignore[operator,no-any-return]

    def states(self, batch: Batch, context: ImageContext) -> Tensor:
        """Last-layer states of packed rows: (B, T, D)."""
        embeds = self.vlm.embed(batch.ids, context.tokens, torch.arange(len(batch.ids), device=batch.ids.device))
        attention = torch.zeros(batch.attention.shape, dtype=embeds.dtype, device=embeds.device)
        attention = attention.masked_fill(~batch.attention, torch.finfo(embeds.dtype).min)
        return self.vlm.hidden_states(embeds, attention, batch.position_ids)

    def forward(
        self,
        batch: Batch,
        context: ImageContext,
        masks: bool = True,
        pixels: Tensor | None = None,
        placements: Sequence[Placement] | None = None,
    ) -> ForwardOutput:
        """Losses of one packed batch.

        Args:
            batch: B packed rows, row b about picture b.
            context: the B encoded pictures.
            masks: False leaves the mask decoder out (scenes that have no pixels).
            pixels: (B, 3, S, S) of a mask decoder that wants its own.
            placements: measure the masks at the pictures' own sizes, as LISA does; None = `batch.targets` lie on the decoder's grid already.
        """
        weights = self.config.loss_weights
        hidden = self.states(batch, context)
        logits = self.vlm.logits(hidden[batch.label_row, batch.label_col])
        losses = {"ce": weights["ce"] * answer_loss(logits, batch.labels)}
        seg = batch.labels == self.vlm.seg_token_id
        seg_accuracy = float((logits[seg].argmax(-1) == self.vlm.seg_token_id).float().mean()) if bool(seg.any()) else 1.0
        prompts = self.prompt_embeddings(hidden[batch.seg_row, batch.seg_col])
        n = len(prompts)
        mask_logits, scores, iou = prompts.new_zeros(0, 1, 1), prompts.new_zeros(0), prompts.new_zeros(0)
        if masks and n:
            features = self.mask_decoder.encode(pixels, context.maps)  # type: ignore[operator]
            mask_logits, scores = self.decode_masks(features, prompts, batch.seg_row)
            bce, dice, iou = _mask_losses(mask_logits, batch, placements)
            losses["bce"], losses["dice"] = weights["bce"] * bce.mean(), weights["dice"] * dice.mean()
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return ForwardOutput(losses, prompts, mask_logits, scores, iou, seg_accuracy)

    @torch.no_grad()
    def generate_answers(
        self,
        prompts: Sequence[Tensor],
        context: ImageContext,
        image_index: Sequence[int],
        *,
        stop_id: int,
        max_new_tokens: int,
        ban: Sequence[int] = (),
        bias: dict[int, float] | None = None,
        on_token: Callable[[int, int], None] | None = None,
        draft: Callable[[list[int]], list[int]] | None = None,
        use_cache: bool = True,
    ) -> list[Generation]:
        """Answer Q prompts (each (T,) ids with the picture's slot expanded) about the pictures of `context`.

        Each `Generation.states` holds, for each generated `[SEG]`, the state that the config's convention names.
        """
        embeds = [
            self.vlm.embed(ids[None], context.tokens, torch.tensor([b], device=ids.device))[0] for ids, b in zip(prompts, image_index, strict=True)
        ]
        return self.vlm.generate(
            embeds,
            stop_id=stop_id,
            max_new_tokens=max_new_tokens,
            seg_state=self.config.seg_state,
            ban=ban,
            bias=bias,
            on_token=on_token,
            draft=draft,
            use_cache=use_cache,
        )


def _mask_losses(logits: Tensor, batch: Batch, placements: Sequence[Placement] | None) -> tuple[Tensor, Tensor, Tensor]:
    """BCE, Dice and IoU of each mask, (N,) each, on the decoder's grid or, with placements, at the size of each picture."""
    if placements is None:
        pairs = [(logits, torch.cat(batch.targets))]
    else:
        rows = enumerate(zip(placements, batch.targets, strict=True))
        pairs = [(placement.undo(logits[batch.seg_row == b]), target) for b, (placement, target) in rows if len(target)]
    measured = [(mask_bce(a, t), mask_dice(a, t), mask_iou(a, t)) for a, t in ((a, t.to(a.device)) for a, t in pairs)]
    bce, dice, iou = (torch.cat(parts) for parts in zip(*measured, strict=True))
    return bce, dice, iou


def _empty_language_model(config: LisaConfig) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if not config.language_config:
        raise ValueError("The config names no language model and holds no language_config.")
    values = dict(config.language_config)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
