"""The losses of LISA (arXiv 2308.00692, section 3.3): cross-entropy on the answer, 2 x BCE + 0.5 x Dice on the masks. Shapes: N masks, H W pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lisaseg.types import IGNORE, TARGET


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of supervised tokens: logits (S, V) at the positions that predict labels (S,)."""
    return F.cross_entropy(logits.float(), labels) if len(labels) else logits.sum() * 0.0


def mask_bce(logits_NHW: Tensor, target_NHW: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the pixels of each mask that are not ignored (255) -> (N,)."""
    known = target_NHW != IGNORE
    loss = F.binary_cross_entropy_with_logits(logits_NHW.float(), (target_NHW == TARGET).float(), reduction="none")
    return (loss * known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)


def mask_dice(logits_NHW: Tensor, target_NHW: Tensor, smooth: float = 1e-3) -> Tensor:
    """Dice loss 1 - (2 sum(p t) + s) / (sum p + sum t + s) of each mask, ignored pixels (255) left out -> (N,).

    `smooth` 1e-3 equals the reference's scale 1000 with eps 1e-6.
    """
    known = (target_NHW != IGNORE).float()
    p = logits_NHW.float().sigmoid() * known
    t = (target_NHW == TARGET).float()
    return 1 - (2 * (p * t).flatten(1).sum(1) + smooth) / (p.flatten(1).sum(1) + t.flatten(1).sum(1) + smooth)


def mask_iou(logits_NHW: Tensor, target_NHW: Tensor) -> Tensor:
    """IoU of the masks cut at logit 0, ignored pixels (255) left out -> (N,) without gradient; 1 where both are empty."""
    known = target_NHW != IGNORE
    p, t = (logits_NHW > 0) & known, target_NHW == TARGET
    union = (p | t).flatten(1).sum(1)
    return torch.where(union > 0, (p & t).flatten(1).sum(1) / union.clamp(min=1), 1.0).detach()
