"""What a step needs, made on the CPU (perhaps in another process) from (seed, step) alone, and moved to the device before the loss is computed.

Shapes: B views, N masks, V names, P labelled pixels a view, C = 256 noun space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lisaseg.batching import Batch
from lisaseg.train.views import View

if TYPE_CHECKING:
    from lisaseg.mask_decoders.tiny import TinyMaskDecoder
    from lisaseg.vlms.tiny_vision import TinyMaps, TinyNeck

T = TypeVar("T")


def to_device(value: T, device: torch.device) -> T:
    """The same value with every tensor in it on `device`; looks into dataclasses, dicts, lists and tuples."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
    elif is_dataclass(value) and not isinstance(value, type):
        moved = replace(value, **{f.name: to_device(getattr(value, f.name), device) for f in fields(value)})
    elif isinstance(value, dict):
        moved = {k: to_device(v, device) for k, v in value.items()}
    elif isinstance(value, (list, tuple)):
        moved = type(value)(to_device(v, device) for v in value)
    return moved  # type: ignore[no-any-return]


@dataclass
class Pictures:
    """B views. valid (B, 2) share of the canvas that is picture; pixels (B, 3, 416, 416) uint8, or the trunk's features, stacked."""

    valid: Tensor
    pixels: Tensor | None
    trunk: dict[str, Tensor]

    @classmethod
    def of(cls, views: Sequence[View]) -> Pictures:
        """Stack views of one kind."""
        pixels = [v.pixels for v in views if v.pixels is not None]
        trunk = {k: torch.stack([v.trunk[k] for v in views]) for k in views[0].trunk}
        return cls(torch.tensor([v.info.valid for v in views]), torch.stack(pixels) if pixels else None, trunk)


@dataclass
class Naming:
    """Labelled pixels of R of the views, classes balanced, and the names that could stand there.

    view (R,): which of the B views; at (R, P): pixel in the flattened 52 x 52 grid; candidates (R, V): rows of the neck's names, the true ones first,
    -1 = no name; truth (R, P): place of the pixel's name among the candidates.
    """

    view: Tensor
    at: Tensor
    candidates: Tensor
    truth: Tensor

    def loss(self, pixel: Tensor, neck: TinyNeck) -> Tensor:
        """Cross-entropy of the pixels (B, 256, 52, 52) over their candidates, mean over views; 0 if no view has any."""
        if not len(self.view):
            return pixel.sum() * 0.0
        features = pixel[self.view].flatten(2).gather(2, self.at[:, None].expand(-1, pixel.shape[1], -1))  # (R, C, P)
        nouns = neck.nouns[self.candidates.clamp(min=0)].to(features.dtype)  # (R, V, C)
        scores = torch.einsum("rvc,rcp->rvp", nouns, features).float() * neck.name_scale.exp()
        return F.cross_entropy(scores.masked_fill((self.candidates < 0)[..., None], float("-inf")), self.truth)


def make_naming(rows: list[tuple[int, list[int], np.ndarray, np.ndarray]]) -> Naming:
    """From (view, candidates, pixels (P,), truth (P,)) of each view that has any."""
    width = max((len(c) for _, c, _, _ in rows), default=0)
    candidates = torch.tensor([[*c, *([-1] * (width - len(c)))] for _, c, _, _ in rows], dtype=torch.long).view(len(rows), width)
    at, truth = (torch.from_numpy(np.stack([row[k] for row in rows])) if rows else torch.zeros(0, 0, dtype=torch.long) for k in (2, 3))  # type: ignore[misc]
    return Naming(torch.tensor([row[0] for row in rows], dtype=torch.long), at, candidates, truth)


@dataclass
class NounTargets:
    """Prompt embeddings that should lie at a noun: which (n,) rows of the prompts, label (n,) row of vectors (V, C)."""

    which: Tensor
    label: Tensor
    vectors: Tensor

    def loss(self, prompts: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Contrastive over the vectors plus 1 - cosine, and the share of prompts (N, C) that are nearest to their noun."""
        if not len(self.which):
            return prompts.sum() * 0.0, prompts.new_ones(())
        q = F.normalize(prompts[self.which], dim=-1)
        logits = q @ self.vectors.T * temperature.exp()
        cosine = (q * self.vectors[self.label]).sum(-1)
        hit = (logits.argmax(-1) == self.label).float().mean()
        return F.cross_entropy(logits, self.label) + (1 - cosine).mean(), hit.detach()


@dataclass
class Absent:
    """Prompts (M, C) of names that are not in their view (M,)."""

    prompts: Tensor
    view: Tensor

    def loss(self, maps: TinyMaps, decoder: TinyMaskDecoder) -> Tensor:
        """Mean square of the decoder's estimate of its own IoU, which is 0 for what is not there; 0 for no prompt."""
        if not len(self.prompts):
            return maps.mid.sum() * 0.0
        return decoder.decode(maps, self.prompts, self.view)[1].square().mean()


@dataclass
class VisionStep:
    """A step of stage "vision": masks prompted by noun vectors. prompts (N, C), view (N,), targets (N, 104, 104)."""

    pictures: Pictures
    prompts: Tensor
    view: Tensor
    targets: Tensor
    naming: Naming
    absent: Absent


@dataclass
class TextStep:
    """A step on made-up scenes: grids (B, 81, C) of noun vectors."""

    grids: Tensor
    batch: Batch
    nouns: NounTargets


@dataclass
class JointStep:
    """A step on pictures."""

    pictures: Pictures
    batch: Batch
    nouns: NounTargets
    naming: Naming
    absent: Absent
