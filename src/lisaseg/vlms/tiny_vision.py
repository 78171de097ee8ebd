"""The vision tower of lisa-tiny: frozen trunks, then a neck that writes every pixel as a vector in the space of noun embeddings.

The noun space: MiniLM sentence embeddings of "the object is X", centred, projected to C = 256 by PCA, unit length. A pixel of a dog is trained to lie
near the vector of "dog"; so the language model reads the picture as mixtures of nouns, and a prompt embedding finds its pixels by a dot product.
Shapes: B images, C = 256 noun space, V names of the vocabulary, T visual tokens, H W grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lisaseg.vlms.tiny_trunk import CANVAS, TinyTrunk, class_map

WIDTH = 256
TOKEN_GRID = 9


@dataclass
class TinyMaps:
    """What the neck makes of B pictures; the mask decoder reads it, so a mask costs no second look at the pixels.

    pixel (B, 256, 52, 52) noun-space features; mid (B, 256, 26, 26); half (B, 128, 52, 52); fine (B, 32, 104, 104); valid (B, 2) share of the canvas
    (height, width) that is picture, the rest is padding.
    """

    pixel: Tensor
    mid: Tensor
    half: Tensor
    fine: Tensor
    valid: Tensor

    def split(self) -> list[TinyMaps]:
        """One for each picture, a copy."""
        parts = [[part.clone() for part in getattr(self, f.name).split(1)] for f in fields(self)]
        return [TinyMaps(*row) for row in zip(*parts, strict=True)]

    @classmethod
    def join(cls, maps: Sequence[TinyMaps]) -> TinyMaps:
        """Maps of several pictures as one."""
        return cls(*(torch.cat([getattr(m, f.name) for m in maps]) for f in fields(cls)))


def _block(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(8, channels), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1))


class TinyNeck(nn.Module):
    """Trunk features -> `TinyMaps`. A feature pyramid with two transformer layers on the coarsest grid.

    Two shortcuts start it near a working detector: the drawn boxes of YOLO enter `pixel` as their class's noun vector, and EfficientNet's class
    probabilities enter the coarsest grid as a mixture of ImageNet noun vectors.
    """

    coco_nouns: Tensor
    imagenet_nouns: Tensor
    nouns: Tensor

    def __init__(self, n_nouns: int) -> None:
        super().__init__()
        c4, c8, c16, c32 = TinyTrunk.channels
        self.norms = nn.ModuleList(nn.GroupNorm(1, c) for c in (c4, c8, c16, c32))
        self.in32 = nn.Conv2d(c32 + WIDTH, WIDTH, 1)
        self.position = nn.Parameter(torch.randn(1, 169, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(WIDTH, 8, 512, 0.0, "gelu", batch_first=True, norm_first=True)
        self.context = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.in16 = nn.Conv2d(c16 + 80, WIDTH, 1)
        self.mix16 = _block(WIDTH)
        self.in8 = nn.Conv2d(c8 + 80, 128, 1)
        self.down16 = nn.Conv2d(WIDTH, 128, 1)
        self.mix8 = nn.ModuleList([_block(128), _block(128)])
        self.in4 = nn.Conv2d(c4, 32, 1)
        self.down8 = nn.Conv2d(128, 32, 1)
        self.mix4 = _block(32)
        self.to_pixel = nn.Conv2d(128, WIDTH, 1)
        self.detector_gain = nn.Parameter(torch.tensor(1.0))
        self.name_scale = nn.Parameter(torch.tensor(2.7))  # log of the softmax scale over names
        self.register_buffer("coco_nouns", torch.zeros(80, WIDTH))
        self.register_buffer("imagenet_nouns", torch.zeros(1000, WIDTH))
        self.register_buffer("nouns", torch.zeros(n_nouns, WIDTH))
        nn.init.normal_(self.to_pixel.weight, std=0.01)

    def forward(self, trunk: dict[str, Tensor], valid: Tensor) -> TinyMaps:
        dtype = self.in32.weight.dtype
        # contiguous: the backward of GroupNorm crashes on channels-last input (torch 2.13 on CPU)
        s4, s8, s16, s32 = (norm(trunk[k].to(dtype).contiguous()) for norm, k in zip(self.norms, ("s4", "s8", "s16", "s32"), strict=True))
        seen = class_map(trunk["boxes"].float(), trunk["scores"].float()).to(dtype)  # (B, 80, 52, 52)
        imagenet = torch.einsum("bkhw,kc->bchw", trunk["imagenet"].float().softmax(1).to(dtype), self.imagenet_nouns.to(dtype))
        x = self.in32(torch.cat([s32, imagenet * 4.0], 1))
        b, c, h, w = x.shape
        x = self.context(x.flatten(2).transpose(1, 2) + self.position).transpose(1, 2).contiguous().view(b, c, h, w)
        mid = self.in16(torch.cat([s16, F.avg_pool2d(seen, 2)], 1)) + F.interpolate(x, scale_factor=2.0, mode="nearest")
        mid = mid + self.mix16(mid)
        half = self.in8(torch.cat([s8, seen], 1)) + F.interpolate(self.down16(mid), scale_factor=2.0, mode="nearest")
        for block in self.mix8:
            half = half + block(half)
        fine = self.in4(s4) + F.interpolate(self.down8(half), scale_factor=2.0, mode="nearest")
        fine = fine + self.mix4(fine)
        boxes = torch.einsum("bkhw,kc->bchw", seen, self.coco_nouns.to(dtype))
        return TinyMaps(self.to_pixel(half) + self.detector_gain * boxes, mid, half, fine, valid)

    def name_probabilities(self, pixel: Tensor) -> Tensor:
        """Soft names of each pixel: (B, 256, H, W) -> (B, V, H, W), sums to 1 over V."""
        logits = torch.einsum("bchw,vc->bvhw", pixel, self.nouns.to(pixel.dtype)) * self.name_scale.exp()
        return logits.float().softmax(1)


def pool_valid(x: Tensor, valid: Tensor, grid: int = TOKEN_GRID) -> Tensor:
    """Average each picture's own area (without padding) into grid x grid cells: x (B, C, H, W), valid (B, 2) -> (B, grid * grid, C)."""
    cells = []
    for picture, (fh, fw) in zip(x.unbind(0), valid.tolist(), strict=True):
        h, w = max(1, round(fh * x.shape[-2])), max(1, round(fw * x.shape[-1]))
        cells.append(F.adaptive_avg_pool2d(picture[None, :, :h, :w], grid)[0])
    return torch.stack(cells).flatten(2).transpose(1, 2)


class TinyProjector(nn.Module):
    """Vision -> language. A token = what nouns the cell shows + its context feature + where it is.

    The noun part alone is trained on made-up scenes of nouns, long before a picture is seen; the context part starts at zero.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.nouns = nn.Sequential(nn.Linear(WIDTH, 1024), nn.GELU(), nn.Linear(1024, hidden))
        linear = nn.Linear(WIDTH, hidden)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.context = nn.Sequential(nn.LayerNorm(WIDTH), linear)
        self.position = nn.Parameter(torch.randn(TOKEN_GRID**2, hidden) * 0.02)
        self.gain = nn.Parameter(torch.tensor(0.1))  # SmolLM2's embeddings are small (std 0.1)

    def forward(self, noun_T: Tensor, context_T: Tensor | None = None) -> Tensor:
        """noun_T (B, T, 256) mixtures of noun vectors, context_T (B, T, 256) or None -> (B, T, hidden)."""
        tokens = self.gain * F.layer_norm(self.nouns(noun_T * 4.0), (self.position.shape[-1],)) + self.position
        return tokens if context_T is None else tokens + self.context(context_T)


class TinyVision(nn.Module):
    """Trunk, neck and projector. Pixels are RGB in [0, 1], (B, 3, 416, 416), picture at the top left, grey padding."""

    canvas = CANVAS
    n_tokens = TOKEN_GRID**2

    def __init__(self, hidden: int, n_nouns: int) -> None:
        super().__init__()
        self.trunk = TinyTrunk()
        self.neck = TinyNeck(n_nouns)
        self.projector = TinyProjector(hidden)

    def maps(self, pixels: Tensor, valid: Tensor) -> TinyMaps:
        """pixels (B, 3, 416, 416) in [0, 1], valid (B, 2) -> maps."""
        with torch.no_grad():
            trunk = self.trunk(pixels)
        return self.neck(trunk, valid)

    def tokens(self, maps: TinyMaps) -> Tensor:
        """Maps -> visual tokens (B, 81, hidden)."""
        shares = pool_valid(self.neck.name_probabilities(maps.pixel), maps.valid)  # (B, T, V)
        noun_T = (shares.to(maps.mid.dtype)) @ self.neck.nouns.to(maps.mid.dtype)
        return self.projector(noun_T, pool_valid(maps.mid, maps.valid))
