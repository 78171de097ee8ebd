"""The mask decoder of lisa-tiny: a dot product in noun space, refined by SAM's two-way transformer with high-resolution skips.

Shapes: B images, N masks (prompts), C = 256 prompt width, H W grid.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayTransformer

COMMIT = 2.0  # the mean logit that the surest 1 % of the pixels of every mask reach at least


def commit(logits_NHW: Tensor, valid_N2: Tensor, top: float = 0.01) -> Tensor:
    """Lift each mask so that it is never empty: add max(0, 2 - mean of its surest 1 % logits inside the picture).

    Whether there is anything to segment is the language model's decision ([SEG] or not); once made, the decoder commits. Without this, an unusual
    prompt gives low logits everywhere and an empty mask. logits (N, H, W), valid (N, 2) share of the canvas that is picture.
    """
    n, h, w = logits_NHW.shape
    if n == 0:
        return logits_NHW
    rows, columns = ((share * side).round().clamp(min=1) for share, side in zip(valid_N2.unbind(1), (h, w), strict=True))
    at = [torch.arange(side, device=logits_NHW.device) for side in (h, w)]
    inside = (at[0] < rows[:, None])[:, :, None] & (at[1] < columns[:, None])[:, None, :]
    k_N = (rows * columns * top + 1e-3).long().clamp(min=1)  # the small number: float32 may end just below a whole number
    best = logits_NHW.masked_fill(~inside, float("-inf")).flatten(1).topk(max(1, int(top * h * w))).values
    counted = torch.arange(best.shape[1], device=best.device) < k_N[:, None]
    sure = best.masked_fill(~counted, 0.0).sum(1) / k_N
    return logits_NHW + F.relu(COMMIT - sure)[:, None, None]


def per_mask(x: Tensor, index_N: Tensor) -> Tensor:
    """The rows of x (B, ...) that N masks look at: (N, ...). On a CPU by stacking, whose backward is faster than that of an index."""
    if x.device.type != "cpu":
        return x[index_N]
    rows = x.unbind(0)
    return torch.stack([rows[b] for b in index_N.tolist()])


class TinyMaskDecoder(nn.Module):
    """`decode(maps, prompts, image_index)` -> logits on the canvas at 104 x 104 and an estimate of each mask's IoU.

    Args:
        prompt_width: C, the width of a prompt embedding.
    """

    needs_pixels = False  # it reads the vision tower's maps
    canvas = 416  # side of the vision tower's canvas, in pixels

    def __init__(self, prompt_width: int = 256) -> None:
        super().__init__()
        self.prompt_width = prompt_width
        config = SamMaskDecoderConfig(
            hidden_size=prompt_width, mlp_dim=512, num_hidden_layers=2, num_attention_heads=8, attention_downsample_rate=2, layer_norm_eps=1e-5
        )
        config._attn_implementation = "eager"  # 3 tokens against 676 pixels: faster than fused kernels
        self.two_way = SamTwoWayTransformer(config)
        self.tokens = nn.Parameter(torch.randn(2, prompt_width) * 0.02)  # mask token, score token
        self.position = nn.Parameter(torch.randn(1, prompt_width, 26, 26) * 0.02)
        self.similarity = nn.Conv2d(1, prompt_width, 1)
        self.up1 = nn.ConvTranspose2d(prompt_width, 64, 2, 2)
        self.skip1 = nn.Conv2d(128, 64, 1)
        self.up2 = nn.ConvTranspose2d(64, 32, 2, 2)
        last = nn.Linear(128, 33)
        nn.init.zeros_(last.weight)  # training starts from the plain dot product
        nn.init.zeros_(last.bias)
        self.hyper = nn.Sequential(nn.Linear(prompt_width, 128), nn.GELU(), last)
        self.score = nn.Sequential(nn.Linear(prompt_width, 64), nn.GELU(), nn.Linear(64, 1))
        self.scale = nn.Parameter(torch.tensor(2.3))  # log
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def encode(self, pixels: Tensor | None, maps: Any) -> Any:
        """Mask features of B images. This decoder shares the vision tower's maps, so nothing is computed."""
        return maps

    def decode(self, maps: Any, prompts_NC: Tensor, image_index_N: Tensor) -> tuple[Tensor, Tensor]:
        """maps of B images, prompts (N, C), image_index (N,) -> logits (N, 104, 104) float32, scores (N,) in [0, 1]. N = 0 is legal."""
        n, dtype = len(prompts_NC), maps.mid.dtype
        if n == 0:
            return prompts_NC.new_zeros((0, 104, 104), dtype=torch.float32), prompts_NC.new_zeros((0,), dtype=torch.float32)
        q_NC = F.normalize(prompts_NC.float(), dim=-1).to(dtype)
        dots = torch.einsum("nc,nchw->nhw", q_NC, per_mask(maps.pixel, image_index_N))
        coarse = dots.float() * self.scale.exp() + self.bias  # (N, 52, 52)

        image = per_mask(maps.mid, image_index_N) + self.similarity(F.avg_pool2d(coarse[:, None].to(dtype), 2))
        tokens = torch.cat([self.tokens.to(dtype).expand(n, -1, -1), q_NC[:, None] * 4.0], 1)[:, None]  # (N, 1, 3, C)
        tokens, image = self.two_way(tokens, image, self.position.to(dtype).expand(n, -1, -1, -1), attention_similarity=None)[:2]
        image = image[:, 0].transpose(1, 2).contiguous().view(n, -1, 26, 26)
        up = F.gelu(self.up1(image) + per_mask(self.skip1(maps.half), image_index_N))
        up = F.gelu(self.up2(up) + per_mask(maps.fine, image_index_N))  # (N, 32, 104, 104)
        hyper = self.hyper(tokens[:, 0, 0])  # (N, 33): 32 weights and a bias
        refine = torch.einsum("nc,nchw->nhw", hyper[:, :32], up) + hyper[:, 32, None, None]
        logits = F.interpolate(coarse[:, None], scale_factor=2.0, mode="bilinear", align_corners=False)[:, 0] + refine.float()
        return commit(logits, maps.valid[image_index_N]), self.score(tokens[:, 0, 1])[:, 0].float().sigmoid()
