"""A small model of the published kind (LLaVA with SAM) with random weights: nothing downloaded, nothing real."""

from __future__ import annotations

import torch

from lisaseg.model.config import LisaConfig
from lisaseg.model.lisa import LisaModel

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
SAM = {"image_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": [1], "window_size": 3, "decoder_mlp_dim": 48,
       "iou_head_hidden_dim": 24}  # fmt: skip
LANGUAGE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "initializer_range": 0.1,
}


def build_config(projector: str = "linear") -> LisaConfig:
    """The configuration: `[SEG]` is the last row of the vocabulary."""
    vlm = {"family": "llava", "vision": VISION, "seg_token_id": 299, "projector": projector}
    decoder = {"family": "sam", **SAM}
    return LisaConfig(
        vlm=vlm, mask_decoder=decoder, prompt_width=32, seg_hidden=64, chat_template="llava_v1", language_config=dict(LANGUAGE), nouns=None
    )


def build_model(projector: str = "linear", seed: int = 0) -> LisaModel:
    """The random model in eval mode; weights are large enough that every part has an effect that a test can see."""
    torch.manual_seed(seed)
    model = LisaModel(build_config(projector))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith("vlm.language_model"):
                parameter.normal_(std=0.1)
            elif not parameter.any():
                parameter.normal_(std=0.05)
    return model.eval()
