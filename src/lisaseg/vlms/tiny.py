"""lisa-tiny's vision-language family: SmolLM2-135M-Instruct reading 81 noun-space tokens of `TinyVision`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lisaseg.imaging import Placement, fit_longest_side
from lisaseg.vlms.base import ImageContext, VisionLanguageModel
from lisaseg.vlms.tiny_vision import TOKEN_GRID, TinyVision, pool_valid


class TinyVLM(VisionLanguageModel):
    """SmolLM2 with `TinyVision`; `[SEG]` has one row outside the vocabulary, so the language model's own tables stay untouched.

    Args:
        language_model: a transformers LlamaForCausalLM.
        n_nouns: number of names in the neck's vocabulary.
    """

    family: ClassVar[str] = "tiny"

    def __init__(self, language_model: Any, n_nouns: int) -> None:
        super().__init__()
        self.language_model = language_model
        self.hidden_size = int(language_model.config.hidden_size)
        vocab = int(language_model.config.vocab_size)
        self.seg_token_id, self.image_token_id = vocab, vocab + 1
        self.vision = TinyVision(self.hidden_size, n_nouns)
        self.n_image_tokens = self.vision.n_tokens
        self.seg_in = nn.Parameter(torch.randn(self.hidden_size) * 0.1)
        self.seg_out = nn.Parameter(torch.randn(self.hidden_size) * 0.02)

    @classmethod
    def build(cls, language_model: Any, config: Any) -> TinyVLM:
        return cls(language_model, n_nouns=len(config.nouns), **{k: v for k, v in config.vlm.items() if k != "family"})

    @property
    def canvas(self) -> int:
        """Side of the square canvas in pixels."""
        return self.vision.canvas

    def preprocess(self, rgb: np.ndarray) -> tuple[dict[str, Tensor], Placement]:
        """uint8 (H, W, 3) -> pixels (3, 416, 416) in [0, 1] and valid (2,); and the placement."""
        canvas, placement = fit_longest_side(rgb, self.vision.canvas)
        pixels = torch.from_numpy(canvas).permute(2, 0, 1).float() / 255
        return {"pixels": pixels, "valid": torch.tensor(placement.valid_fraction, dtype=torch.float32)}, placement

    def encode_image(self, inputs: dict[str, Tensor]) -> ImageContext:
        maps = self.vision.maps(inputs["pixels"], inputs["valid"])
        return ImageContext(self.vision.tokens(maps), maps)

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        self.vision.trunk.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def seen_names(self, context: ImageContext, k: int) -> list[int]:
        maps = context.maps
        shares = pool_valid(self.vision.neck.name_probabilities(maps.pixel), maps.valid, 2 * TOKEN_GRID)[0]  # (cells, V)
        return [int(i) for i in shares.amax(0).topk(min(k, shares.shape[1])).indices]

    def embed_ids(self, ids: Tensor) -> Tensor:
        table = self.language_model.get_input_embeddings()
        embeds = table(ids.clamp(max=self.seg_token_id - 1))
        return torch.where((ids == self.seg_token_id)[..., None], self.seg_in.to(embeds.dtype), embeds)

    def logits(self, hidden: Tensor) -> Tensor:
        words = self.language_model.get_output_embeddings()(hidden)
        seg = hidden @ self.seg_out.to(hidden.dtype)
        return torch.cat([words, seg[..., None].to(words.dtype)], -1)
