"""LLaVA: a CLIP tower, a projector and LLaMA, composed of transformers' parts. The language side of the published LISA checkpoints.

transformers' own Llava class has a projector of two layers and cannot hold the first version's single one, so the parts are put together here.
Shapes: B images, T image tokens, D hidden, S side of the tower's pixels.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from lisaseg.imaging import CLIP_MEAN, CLIP_STD, fit_shortest_crop, normalize
from lisaseg.vlms.base import ImageContext, VisionLanguageModel

IMAGE_TOKEN_ID = -200  # LLaVA's placeholder; no row of the table


def build_projector(kind: str, vision: int, hidden: int) -> nn.Module:
    """LLaVA's projectors by name: "linear", or "mlp2x_gelu" and its like: N linear layers with GELU between."""
    if kind == "linear":
        return nn.Linear(vision, hidden)
    match = re.fullmatch(r"mlp([1-9])x_gelu", kind)
    if match is None:
        raise ValueError(f"Unknown projector {kind!r}: linear and mlp2x_gelu are known.")
    layers: list[nn.Module] = [nn.Linear(vision, hidden)]
    for _ in range(int(match.group(1)) - 1):
        layers += [nn.GELU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers)


class LlavaVLM(VisionLanguageModel):
    """LLaVA with `[SEG]` as an ordinary row of the vocabulary.

    Args:
        language_model: a transformers LlamaForCausalLM whose tables hold the added tokens.
        vision: values of the tower's CLIPVisionConfig.
        seg_token_id: id of `[SEG]`; checkpoints differ.
        projector: see `build_projector`.
        select_layer: which of the tower's hidden states is the feature; -2 is the last but one.
        select_feature: "patch", without the class token, or "cls_patch", with it.
    """

    family: ClassVar[str] = "llava"

    def __init__(
        self,
        language_model: Any,
        vision: dict[str, Any],
        seg_token_id: int,
        projector: str = "linear",
        select_layer: int = -2,
        select_feature: str = "patch",
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.hidden_size = int(language_model.config.hidden_size)
        self.vision: Any = CLIPVisionModel(CLIPVisionConfig(**vision)).requires_grad_(False)
        self.side = int(self.vision.config.image_size)
        self.projector = build_projector(projector, int(self.vision.config.hidden_size), self.hidden_size)
        self.seg_token_id, self.image_token_id = seg_token_id, IMAGE_TOKEN_ID
        self.select_layer, self.with_class = select_layer, select_feature == "cls_patch"
        self.n_image_tokens = (self.side // int(self.vision.config.patch_size)) ** 2 + self.with_class

    def preprocess(self, rgb: np.ndarray) -> tuple[dict[str, Tensor], None]:
        """uint8 (H, W, 3) -> pixels (3, S, S): shortest side to S, centre crop, normalised. No placement: the margins are lost here."""
        return {"pixels": normalize(fit_shortest_crop(rgb, self.side), CLIP_MEAN, CLIP_STD)}, None

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) -> features of the patches (B, T, width of the tower); the tower is frozen."""
        with torch.no_grad():
            weight = self.vision.embeddings.patch_embedding.weight
            states = self.vision(pixel_values=pixels.to(weight.dtype), output_hidden_states=True).hidden_states
        return states[self.select_layer][:, 0 if self.with_class else 1 :]  # type: ignore[no-any-return]

    def encode_image(self, inputs: dict[str, Tensor]) -> ImageContext:
        features = self.features(inputs["pixels"])
        return ImageContext(self.projector(features.to(next(self.projector.parameters()).dtype)), None)

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        self.vision.to(dtype)
        self.projector.to(dtype)

    def embed_ids(self, ids: Tensor) -> Tensor:
        return self.language_model.get_input_embeddings()(ids.clamp(min=0)).to(ids.device)  # type: ignore[no-any-return]
