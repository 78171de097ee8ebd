"""SOCKET 2: mask decoders, one file a family.

A mask decoder is an `nn.Module` with

    prompt_width: int                       C, the width of a prompt embedding
    encode(pixels, maps) -> features        once per image; `maps` is what the vision tower made of it, `pixels` (B, 3, S, S) or None
    decode(features, prompts (N, C), image_index (N,)) -> (logits (N, h, w) float32 on the canvas, scores (N,) in [0, 1] or NaN)
    needs_pixels: bool                      whether `encode` wants pixels of its own
    canvas: int                             side S of the square canvas that logits refer to
    preprocess(rgb) -> (pixels, placement)  only if `needs_pixels`: uint8 (H, W, 3) -> (3, S, S) and where the picture lies on the canvas

N = 0 is legal. Add yours to `MASK_DECODERS` or name it "package.module:Class".
"""

from __future__ import annotations

from lisaseg.registry import Registry

MASK_DECODERS = Registry("mask_decoders", {"tiny": "lisaseg.mask_decoders.tiny:TinyMaskDecoder", "sam": "lisaseg.mask_decoders.sam:SamMaskDecoder"})
