"""SAM (arXiv 2304.02643) prompted by one embedding instead of points: image encoder, prompt encoder and mask decoder of transformers' `SamModel`.

As LISA uses it: the prompt embedding is the only sparse prompt, the dense prompt is "no mask", and the first of the four mask tokens is the mask.
Shapes: B images, N masks (prompts), C prompt width, S side of the canvas, g = S / patch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from lisaseg.imaging import SAM_MEAN, SAM_STD, Placement, fit_longest_side, normalize


@dataclass
class SamFeatures:
    """What the image encoder made of B pictures: embedding (B, C, g, g)."""

    embedding: Tensor


def sam_config(
    prompt_width: int,
    image_size: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    global_attn_indexes: Sequence[int],
    window_size: int,
    decoder_mlp_dim: int,
    decoder_num_heads: int,
    iou_head_hidden_dim: int,
) -> SamConfig:
    """SAM's own numbers as transformers writes them."""
    vision = {
        "hidden_size": embed_dim,
        "output_channels": prompt_width,
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads,
        "image_size": image_size,
        "patch_size": patch_size,
        "global_attn_indexes": list(global_attn_indexes),
        "window_size": window_size,
        "num_pos_feats": prompt_width // 2,
        "mlp_dim": 4 * embed_dim,
        "initializer_range": 0.02,  # the library's 1e-10 makes the picture invisible to an untrained encoder
    }
    prompt = {"hidden_size": prompt_width, "image_size": image_size, "patch_size": patch_size}
    decoder = {
        "hidden_size": prompt_width,
        "mlp_dim": decoder_mlp_dim,
        "num_attention_heads": decoder_num_heads,
        "iou_head_hidden_dim": iou_head_hidden_dim,
        "layer_norm_eps": 1e-5,  # of the published weights; the library's default is 1e-6
    }
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


class SamMaskDecoder(nn.Module):
    """SAM; the defaults are ViT-H's.

    It stays in float32, the image encoder perhaps in bfloat16: its neck overflows in float16. What the loss cannot reach is frozen: the two encoders
    (as LISA trains), the score head and the hypernetworks of the three mask tokens that are not read.

    Args:
        prompt_width: C, the width of a prompt embedding.
        image_size: S, side of the canvas in pixels.
        patch_size, embed_dim, depth, num_heads, global_attn_indexes, window_size: of the image encoder.
        decoder_mlp_dim, decoder_num_heads, iou_head_hidden_dim: of the mask decoder.
        scores: give the IoU that the score head predicts. LISA trains the decoder under that head without it, so its numbers mean little; NaN by
            default.
    """

    needs_pixels = True

    def __init__(
        self,
        prompt_width: int = 256,
        image_size: int = 1024,
        patch_size: int = 16,
        embed_dim: int = 1280,
        depth: int = 32,
        num_heads: int = 16,
        global_attn_indexes: Sequence[int] = (7, 15, 23, 31),
        window_size: int = 14,
        decoder_mlp_dim: int = 2048,
        decoder_num_heads: int = 8,
        iou_head_hidden_dim: int = 256,
        scores: bool = False,
    ) -> None:
        super().__init__()
        self.prompt_width, self.canvas, self.scores = prompt_width, image_size, scores
        self.sam: Any = SamModel(
            sam_config(
                prompt_width,
                image_size,
                patch_size,
                embed_dim,
                depth,
                num_heads,
                global_attn_indexes,
                window_size,
                decoder_mlp_dim,
                decoder_num_heads,
                iou_head_hidden_dim,
            )
        )
        self.freeze_unreached()

    def freeze_unreached(self) -> None:
        """Make trainable what LISA trains: the mask decoder without the parts that no loss reads."""
        self.sam.requires_grad_(False)
        self.sam.mask_decoder.requires_grad_(True)
        self.sam.mask_decoder.iou_prediction_head.requires_grad_(False)
        self.sam.mask_decoder.output_hypernetworks_mlps[1:].requires_grad_(False)

    def preprocess(self, rgb: np.ndarray) -> tuple[Tensor, Placement]:
        """uint8 (H, W, 3) -> pixels (3, S, S), normalised and then padded with zeros at the right and bottom; and where the picture lies."""
        canvas, placement = fit_longest_side(rgb, self.canvas)
        pixels = normalize(canvas, SAM_MEAN, SAM_STD)
        height, width = placement.resized_hw
        pixels[:, height:] = 0
        pixels[:, :, width:] = 0
        return pixels, placement

    def encode(self, pixels: Tensor | None, maps: Any = None) -> SamFeatures:
        """Pixels (B, 3, S, S) -> features of B pictures; `maps` of the vision tower are not needed."""
        if pixels is None:
            raise ValueError("SAM encodes the picture itself: give it the pixels of `preprocess`.")
        encoder = self.sam.vision_encoder
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in encoder.parameters())
        with torch.set_grad_enabled(learns):
            embedding = encoder(pixels.to(encoder.pos_embed.dtype)).last_hidden_state
        return SamFeatures(embedding.to(self.sam.mask_decoder.mask_tokens.weight.dtype))

    def predict(self, features: SamFeatures, prompts_NC: Tensor, image_index_N: Tensor) -> tuple[Tensor, Tensor]:
        """Features of B pictures, prompts (N, C), image_index (N,) -> logits (N, 4g, 4g) and the score head's raw IoU (N,), both float32."""
        dtype = features.embedding.dtype
        if len(prompts_NC) == 0:
            side = 4 * features.embedding.shape[-1]
            return prompts_NC.new_zeros((0, side, side), dtype=torch.float32), prompts_NC.new_zeros((0,), dtype=torch.float32)
        images = features.embedding[image_index_N]
        no_mask = self.sam.prompt_encoder.no_mask_embed.weight.to(dtype).view(1, -1, 1, 1)
        masks, iou = self.sam.mask_decoder(
            image_embeddings=images,
            image_positional_embeddings=self.dense_position().to(dtype).expand(len(images), -1, -1, -1),
            sparse_prompt_embeddings=prompts_NC.to(dtype)[:, None, None],
            dense_prompt_embeddings=no_mask.expand_as(images),
            multimask_output=False,
        )
        return masks[:, 0, 0].float(), iou[:, 0, 0].float()

    def dense_position(self) -> Tensor:
        """SAM's positional encoding of the whole grid, (1, C, g, g) float32."""
        return self.sam.get_image_wide_positional_embeddings().float()  # type: ignore[no-any-return]

    def decode(self, features: SamFeatures, prompts_NC: Tensor, image_index_N: Tensor) -> tuple[Tensor, Tensor]:
        """Features of B pictures, prompts (N, C), image_index (N,) -> logits (N, 4g, 4g) float32 on the canvas, scores (N,) in [0, 1] or NaN."""
        logits, iou = self.predict(features, prompts_NC, image_index_N)
        return logits, iou.clamp(0, 1) if self.scores else torch.full_like(iou.detach(), float("nan"))
