"""The published LISA checkpoints: their folder layout, their config and their keys, read as they are.

A folder holds config.json (model_type "llava"), weights with the reference's names in one or several `.safetensors` or `.bin` files, and the
tokenizer. It holds no vision tower: config.json says where that is. SAM's sizes stand in `sam_config.json`; without it SAM is ViT-H.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lisaseg.chat import TEMPLATES
from lisaseg.errors import ModelLoadError
from lisaseg.model.config import LisaConfig
from lisaseg.types import SEG_TEXT

_AGAIN = "Fetch the checkpoint again."
_SAM_SIZES = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "global_attn_indexes", "window_size", "decoder_mlp_dim",
              "decoder_num_heads", "iou_head_hidden_dim")  # fmt: skip
_LLAMA = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "vocab_size",
          "max_position_embeddings", "hidden_act", "rope_theta", "rope_scaling", "tie_word_embeddings", "bos_token_id", "eos_token_id")  # fmt: skip

# Our names -> the reference's, tried in order; what a pattern leaves is the same in both.
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^vlm\.language_model\.", ""),
        (r"^vlm\.projector\.", "model.mm_projector."),
        (r"^seg_head\.", "model.text_hidden_fcs.0."),
        (r"^mask_decoder\.sam\.", "model.visual_model."),
        (r"\.(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
         ".prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
        (r"\.vision_encoder\.patch_embed\.projection\.", ".image_encoder.patch_embed.proj."),
        (r"\.vision_encoder\.layers\.(\d+)\.layer_norm(\d)\.", r".image_encoder.blocks.\1.norm\2."),
        (r"\.vision_encoder\.layers\.", ".image_encoder.blocks."),
        (r"\.vision_encoder\.neck\.conv1\.", ".image_encoder.neck.0."),
        (r"\.vision_encoder\.neck\.layer_norm1\.", ".image_encoder.neck.1."),
        (r"\.vision_encoder\.neck\.conv2\.", ".image_encoder.neck.2."),
        (r"\.vision_encoder\.neck\.layer_norm2\.", ".image_encoder.neck.3."),
        (r"\.vision_encoder\.", ".image_encoder."),
        (r"\.prompt_encoder\.point_embed\.", ".prompt_encoder.point_embeddings."),
        (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
        (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
        (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
        (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
        (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
        (r"\.transformer\.layers\.(\d+)\.layer_norm(\d)\.", r".transformer.layers.\1.norm\2."),
        (r"\.transformer\.layer_norm_final_attn\.", ".transformer.norm_final_attn."),
        (r"\.mask_decoder\.upscale_conv1\.", ".mask_decoder.output_upscaling.0."),
        (r"\.mask_decoder\.upscale_layer_norm\.", ".mask_decoder.output_upscaling.1."),
        (r"\.mask_decoder\.upscale_conv2\.", ".mask_decoder.output_upscaling.3."),
        (r"\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.0\.", r".\1.layers.1."),
        (r"\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.proj_in\.", r".\1.layers.0."),
        (r"\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.proj_out\.", r".\1.layers.2."),
    )
)  # fmt: skip
# Stored, but ours are computed: the only tensors of a checkpoint that may be left over.
COMPUTED = re.compile(r"^model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$")


def published_key(name: str) -> str | None:
    """The reference's name of one of our tensors; None for the vision tower, which no checkpoint holds."""
    if name.startswith("vlm.vision."):
        return None
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def is_published(folder: Path) -> bool:
    """Whether config.json is that of a LISA checkpoint in the public layout."""
    values = read_json(folder / "config.json")
    return values.get("model_type") != LisaConfig.model_type and (
        "train_mask_decoder" in values or "LISAForCausalLM" in values.get("architectures", [])
    )


def hub_folder(name: str, offline: bool = False) -> Path:
    """Folder of a checkpoint or tower in the hub's cache, fetched if need be and allowed.

    Of weights in both forms only the safetensors are fetched. After an interruption whole files are kept and the one that broke is fetched again.
    """
    from huggingface_hub import HfApi, snapshot_download

    wanted, without = ["*.json", "*.safetensors", "*.bin", "tokenizer.model"], ["training_args.bin", "optimizer*", "runs/*"]
    try:
        if offline:  # pickles that were left out are no gap; `weight_files` sees whether those that are needed are there
            without.append("*.bin")
        else:
            with contextlib.suppress(Exception):  # no connection, say: the download below finds out, and the cache may do
                without += ["*.bin"] if any(file.endswith(".safetensors") for file in HfApi().list_repo_files(name)) else []
        return Path(snapshot_download(name, local_files_only=offline, allow_patterns=wanted, ignore_patterns=without))
    except Exception as error:  # the hub's client raises its own errors, those of its HTTP client and OSError
        step = "Load it once without offline." if offline else "Check the name and the connection, or give a local folder; what was fetched is kept."
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(f"{name} cannot be had: {reason}", next_step=step, code="not_fetched") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ModelLoadError if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing.", next_step=_AGAIN, code="not_a_model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}.", next_step=_AGAIN, code="config_wrong") from error
    if not isinstance(values, dict):
        raise ModelLoadError(f"{path} holds no JSON object.", next_step=_AGAIN, code="config_wrong")
    return values


def added_tokens(folder: Path) -> dict[str, int]:
    """Added tokens and their ids, of added_tokens.json or tokenizer_config.json; holds `[SEG]`."""
    found: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        found = {str(token): int(number) for token, number in read_json(folder / "added_tokens.json").items()}
    elif (folder / "tokenizer_config.json").is_file():
        decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
        found = {str(entry["content"]): int(number) for number, entry in decoder.items() if int(number) > 2}  # 0 to 2 are sentencepiece's own
    if SEG_TEXT not in found:
        raise ModelLoadError(
            f"{folder} does not say which id {SEG_TEXT} has: added_tokens.json is missing or lacks it.",
            next_step="Fetch the checkpoint again, with its tokenizer files.",
            code="tokenizer_missing",
        )
    return found


def tower_folder(folder: Path, values: Mapping[str, Any], offline: bool = False) -> Path:
    """Folder of the vision tower: beside the checkpoint, anywhere on this machine, or in the hub's cache.

    Always a folder: given a hub id, transformers looks for adapters and the hub's client for news on the line, whatever it is told.
    """
    named = values.get("vision_tower") or values.get("mm_vision_tower")
    if not isinstance(named, str) or not named:
        raise ModelLoadError(f"{folder / 'config.json'} names no vision_tower.", next_step=_AGAIN, code="config_wrong")
    if (folder / named).is_dir():
        return folder / named
    if named.startswith((".", "/")):
        raise ModelLoadError(
            f"The vision tower {folder / named} is not there.", next_step="Put the CLIP folder there, or correct vision_tower.", code="tower_missing"
        )
    try:
        return hub_folder(named, offline)
    except ModelLoadError as error:
        step = "Load it once without offline, or put its folder into the checkpoint and name it in vision_tower." if offline else error.next_step
        raise ModelLoadError(f"The vision tower {error.message}", next_step=step, code="tower_missing") from error


def read_config(
    folder: Path, added: Mapping[str, int] | None = None, chat_template: str | None = None, offline: bool = False
) -> tuple[LisaConfig, Path]:
    """config.json of a published checkpoint -> ours, and the folder of its vision tower.

    Args:
        folder: the checkpoint.
        added: added tokens, if its tokenizer files are elsewhere.
        chat_template: "llava_v1" or "llava_llama_2"; None = `conv_type` of config.json, else "llava_v1", which all published checkpoints use.
        offline: open no connection for the tower.

    Raises:
        ModelLoadError: missing or wrong files.
    """
    values = read_json(folder / "config.json")
    source = tower_folder(folder, values, offline)
    sizes = folder / "sam_config.json"
    sam = read_json(sizes) if sizes.is_file() else {}
    added = added or added_tokens(folder)
    seg = added[SEG_TEXT]
    try:
        wrapped = values.get("mm_use_im_start_end", True)  # LISA's code always wraps the picture, LISA++'s never does
        template = chat_template or values.get("conv_type") or "llava_v1"
        width = int(values["out_dim"])
        if sam.get("prompt_embed_dim", width) != width:
            raise ValueError(f"out_dim {width} is not SAM's prompt_embed_dim {sam['prompt_embed_dim']}")
        if values.get("prompt_style", "lisa") not in ("lisa", "lisa_plus"):
            raise ValueError(f"prompt_style is {values['prompt_style']!r}, not lisa or lisa_plus")
        if template not in TEMPLATES:
            raise ValueError(f"the chat template {template!r} is not known: {', '.join(TEMPLATES)} are")
        if wrapped and not {"<im_start>", "<im_end>"} <= set(added):
            raise ValueError("mm_use_im_start_end is true, and the added tokens hold no <im_start> and <im_end>")
        if not 0 < seg < int(values["vocab_size"]):
            raise ValueError(f"{SEG_TEXT} has id {seg}, the vocabulary {values['vocab_size']} rows")
        vlm = {
            "family": "llava",
            "vision": tower_config(source),
            "seg_token_id": seg,
            "projector": values.get("mm_projector_type") or "linear",
            "select_layer": int(values.get("mm_vision_select_layer", -2)),
            "select_feature": values.get("mm_vision_select_feature") or "patch",
        }
        config = LisaConfig(
            vlm=vlm,
            mask_decoder={"family": "sam"} | {k: sam[k] for k in _SAM_SIZES if k in sam},
            prompt_width=width,
            seg_hidden=int(values["hidden_size"]),
            seg_state="emit",
            evaluation_answer="[SEG].",
            chat_template=template if wrapped else f"{template}_bare",
            prompt_style=values.get("prompt_style") or ("lisa" if wrapped else "lisa_plus"),
            language_config={"model_type": "llama"} | {k: values[k] for k in _LLAMA if values.get(k) is not None},
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelLoadError(f"{folder / 'config.json'} cannot be used: {what}.", next_step=_AGAIN, code="config_wrong") from error
    return config, source


def tower_config(folder: Path) -> dict[str, Any]:
    """Values of the CLIPVisionConfig in a folder."""
    from transformers import CLIPVisionConfig

    try:
        read = CLIPVisionConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise tower_wrong(folder, error) from error
    return {k: v for k, v in read.to_diff_dict().items() if k not in ("transformers_version", "architectures", "dtype", "torch_dtype", "model_type")}


def tower_wrong(folder: Path, error: Exception) -> ModelLoadError:
    """What to say when the vision tower is there and cannot be read."""
    return ModelLoadError(f"The vision tower {folder} cannot be read: {str(error).splitlines()[0]}", next_step=_AGAIN, code="tower_missing")
