"""A folder in the layout of the published checkpoints, made of a small random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.published_random import LANGUAGE, SAM, VISION, build_config
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from lisaseg.model.lisa import LisaModel
from lisaseg.model.published import published_key

TOKENS = Path(__file__).parent / "golden" / "tokens_a"
VOCABULARY = 387  # of the tokenizer in TOKENS


def random_model(projector: str = "linear", seed: int = 0) -> LisaModel:
    """A random model whose vocabulary is that of TOKENS."""
    torch.manual_seed(seed)
    config = build_config(projector)
    config.vlm["seg_token_id"] = 384
    config.language_config["vocab_size"] = VOCABULARY
    return LisaModel(config).eval()


def published_tensors(model: LisaModel) -> dict[str, Tensor]:
    """Its tensors under the reference's names, with the rotary buffers that old files hold."""
    out = {key: tensor.detach().clone() for name, tensor in model.state_dict().items() if (key := published_key(name)) is not None}
    return out | {f"model.layers.{k}.self_attn.rotary_emb.inv_freq": torch.ones(8) for k in range(2)}


def write_folder(folder: Path, model: LisaModel, projector: str = "linear", form: str = "bin", shards: int = 2, **changes: object) -> Path:
    """Write model and tokenizer; form: "bin" or "safetensors"; 1 shard = one file, no index. changes: of config.json; None drops a key."""
    folder.mkdir(parents=True)
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    tower.load_state_dict(model.vlm.vision.state_dict())  # type: ignore[union-attr]
    tower.save_pretrained(folder / "clip")
    for name in ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(TOKENS / name, folder / name)
    values = {k: v for k, v in LANGUAGE.items() if k not in ("model_type", "initializer_range")} | {
        "model_type": "llava", "architectures": ["LISAForCausalLM"], "train_mask_decoder": True, "out_dim": 32, "vocab_size": VOCABULARY,
        "mm_use_im_start_end": True, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "vision_tower": "./clip",
        "mm_projector_type": projector, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
    } | changes  # fmt: skip
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    (folder / "sam_config.json").write_text(json.dumps(SAM | {"prompt_embed_dim": 32}))
    write_weights(folder, published_tensors(model), form, shards)
    return folder


def write_weights(folder: Path, tensors: dict[str, Tensor], form: str = "bin", shards: int = 2) -> dict[str, str]:
    """Write the weight files and, for several, their index; returns {tensor: file}."""
    stem, names = ("pytorch_model", "bin") if form == "bin" else ("model", "safetensors"), sorted(tensors)
    files = [f"{stem[0]}-{k + 1:05d}-of-{shards:05d}.{stem[1]}" for k in range(shards)] if shards > 1 else [".".join(stem)]
    places = {name: files[k * shards // len(names)] for k, name in enumerate(names)}
    for file in files:
        part = {name: tensors[name].contiguous() for name in names if places[name] == file}
        if form == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file)
    if shards > 1:
        (folder / f"{'.'.join(stem)}.index.json").write_text(json.dumps({"weight_map": places}))
    return places
