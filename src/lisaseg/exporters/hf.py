"""A trained model as a folder that `lisaseg.load` opens like a released one: safetensors, config and tokenizer beside them.

A model in the published layout is written with its adapters merged and under the reference's names; lisa-tiny keeps its adapters, because its
language model lies in the weights cache and is not written again.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lisaseg.errors import UsageError
from lisaseg.model.checkpoint import LANGUAGE
from lisaseg.model.published import published_key, read_json

if TYPE_CHECKING:
    from lisaseg.model.lisa import LisaModel

SHARD_BYTES = 4_000_000_000
EXPORT_FILE = "export.json"
_TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def check_target(run: Path, out: Path) -> None:
    """UsageError if `out` exists, or if `run` is a model that has been exported already."""
    if (run / EXPORT_FILE).is_file():
        raise UsageError(f"{run} is an exported model: its adapters are merged already.", next_step="Use it as it is: `lisaseg ask -m FOLDER ...`.")
    if out.exists():
        raise UsageError(f"{out} exists.", next_step="Name a new folder; nothing is overwritten.")


def export_model(
    model: LisaModel,
    family: str,
    source: Path,
    out: Path,
    *,
    added: dict[str, int] | None = None,
    trained_on: list[dict[str, str]] | None = None,
    note: dict[str, Any] | None = None,
) -> Path:
    """Write a trained model.

    Args:
        model: adapters apart, as it was trained, on the CPU. What learned is float32 and is written so; the rest in the format that it has.
        family: "tiny" or "llava".
        source: folder that config and tokenizer are taken from.
        out: does not exist yet; appears when everything is written.
        added: added tokens and their ids, for "llava".
        trained_on: name and split of every data set that the model has seen, for config.json; None = not known.
        note: kept in `export.json`.

    Returns:
        `out`.

    Raises:
        UsageError: `out` exists.
    """
    if out.exists():
        raise UsageError(f"{out} exists.", next_step="Name a new folder; nothing is overwritten.")
    aside = out.with_name(f"{out.name}.part{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        if family == "tiny":
            _write_tiny(model, aside)
        else:
            _write_published(model, source, aside, added or {})
        values = read_json(aside / "config.json")
        values.pop("trained_on", None)  # of the model that training began with: no longer the whole truth
        (aside / "config.json").write_text(json.dumps(values | ({"trained_on": trained_on} if trained_on else {}), indent=1, sort_keys=True) + "\n")
        (aside / EXPORT_FILE).write_text(json.dumps({"format": 1, **(note or {})}, indent=1) + "\n")
        for file in aside.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes 0600
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def merged_tensors(model: LisaModel) -> dict[str, Tensor]:
    """All tensors under their plain names, with adapters merged (in float32) and new rows in their tables."""
    modules: dict[str, Any] = dict(model.named_modules())
    out: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        if "lora_" in name or (leaf == "values" and hasattr(modules[path], "rows")):
            continue
        parent, _, last = path.rpartition(".")
        if last == "base_layer":  # of an adapter
            tensor, path = _merged(tensor, modules[parent]), parent
        elif last == "base" and hasattr(modules[parent], "rows"):
            tensor, path = modules[parent].weight, parent
        out[f"{path}.{leaf}" if path else leaf] = tensor.detach()
    return out


def _merged(weight: Tensor, adapter: Any) -> Tensor:
    """W + alpha / rank * B A: added in float32, rounded once."""
    a, b = adapter.lora_A["default"].weight.float(), adapter.lora_B["default"].weight.float()
    return (weight.float() + b @ a * float(adapter.scaling["default"])).to(weight.dtype)


def _write_tiny(model: LisaModel, folder: Path) -> None:
    """The layout of lisa-tiny's weights: everything but the language model, adapters included."""
    from safetensors.torch import save_file

    tensors = {}
    for name, p in model.state_dict(keep_vars=True).items():
        if name.startswith(LANGUAGE) and "lora_" not in name:
            continue
        learned = isinstance(p, nn.Parameter) and p.requires_grad
        value = p.detach() if learned else p.detach().to(torch.float16)  # that is how the rest was stored
        tensors[name.replace(".default.weight", ".weight")] = value.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = model.config.to_diff_dict()
    (folder / "config.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def _write_published(model: LisaModel, source: Path, folder: Path, added: dict[str, int]) -> None:
    """The published layout, with the vision tower in the folder."""
    from huggingface_hub import save_torch_state_dict

    tensors: dict[str, Tensor] = {}
    for name, tensor in merged_tensors(model).items():
        key = published_key(name)
        if key is not None:
            tensors[key] = tensor.contiguous()
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD_BYTES)
    vlm: Any = model.vlm
    vlm.vision.save_pretrained(folder / "vision_tower")
    for name in _TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    (folder / "added_tokens.json").write_text(json.dumps(added) + "\n")
    vision = model.mask_decoder.sam.config.vision_config  # type: ignore[union-attr]
    decoder = model.mask_decoder.sam.config.mask_decoder_config  # type: ignore[union-attr]
    sam = {
        "image_size": vision.image_size, "patch_size": vision.patch_size, "embed_dim": vision.hidden_size, "depth": vision.num_hidden_layers,
        "num_heads": vision.num_attention_heads, "global_attn_indexes": list(vision.global_attn_indexes), "window_size": vision.window_size,
        "decoder_mlp_dim": decoder.mlp_dim, "decoder_num_heads": decoder.num_attention_heads, "iou_head_hidden_dim": decoder.iou_head_hidden_dim,
        "prompt_embed_dim": model.config.prompt_width,
    }  # fmt: skip
    (folder / "sam_config.json").write_text(json.dumps(sam, indent=1) + "\n")
    template = model.config.chat_template
    values = read_json(source / "config.json") | {
        "architectures": ["LISAForCausalLM"],
        "train_mask_decoder": True,
        "out_dim": model.config.prompt_width,
        "vocab_size": int(model.config.language_config["vocab_size"]),
        "vision_tower": "./vision_tower",
        "mm_vision_tower": "./vision_tower",
        "mm_use_im_start_end": not template.endswith("_bare"),
        "conv_type": template.removesuffix("_bare"),
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
