"""What the paper starts from: LLaVA, SAM and CLIP put together. Only what none of them holds is new: the seg head and the rows of the new tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lisaseg.chat import get_template
from lisaseg.errors import ModelLoadError
from lisaseg.model.assemble import model_folder
from lisaseg.model.config import LisaConfig
from lisaseg.model.devices import Placing
from lisaseg.model.lisa import build_seg_head
from lisaseg.model.memory import kept_dtype
from lisaseg.model.published import COMPUTED, published_key, read_json, tower_config, tower_folder
from lisaseg.model.quantize import check_quantize, quantize_layers
from lisaseg.model.streaming import empty_model, load_tower, place_tensor, read_tensors, weight_files
from lisaseg.tokenization import SentencePieceTokenizer
from lisaseg.train.lisa_config import ModelSettings, Parts
from lisaseg.train.lisa_model import Trainee
from lisaseg.types import SEG_TEXT
from lisaseg.vlms.llava import IMAGE_TOKEN_ID

ADDED = (SEG_TEXT, "<im_start>", "<im_end>")  # in the order in which the reference adds those that are not there
SAM_PREFIX = "model.visual_model."
NEW_STD = 0.02  # of new rows, as LLaMA initialises
_TABLES = ("vlm.language_model.model.embed_tokens.weight", "vlm.language_model.lm_head.weight")
_PASSED_OVER = ("model.vision_tower.", "vision_tower.")  # some LLaVA files hold the tower; it is read from its own place
_LLAMA = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
          "max_position_embeddings", "hidden_act", "rope_theta", "rope_scaling", "bos_token_id", "eos_token_id")  # fmt: skip


def open_parts(parts: Parts, dtype: torch.dtype, device: torch.device, settings: ModelSettings, seed: int) -> Trainee:
    """A LISA before its first step.

    Args:
        parts: where the parts are.
        dtype: of the language side. Rows of the vocabulary, seg head and SAM come in float32.
        device: where tensors are put as they are read.
        settings: of the model; its chat template is "llava_v1" if None, as for all published checkpoints.
        seed: of what is new.

    Raises:
        ModelLoadError: a part is missing or incomplete; names each tensor and its file.
    """
    folder = model_folder(parts.llava, settings.offline) if not Path(parts.llava).is_dir() else Path(parts.llava)
    added = new_vocabulary(folder)
    tokenizer = SentencePieceTokenizer(folder / "tokenizer.model", added, IMAGE_TOKEN_ID)
    config, tower = parts_config(parts, folder, added, settings.chat_template, settings.offline)
    model, placing = empty_model(config), Placing(device, {})
    check_quantize(settings.quantize)
    if settings.quantize is not None:
        quantize_layers(model.vlm.language_model, settings.quantize, dtype)
    torch.manual_seed(seed)
    model.seg_head = build_seg_head(model.vlm.hidden_size, config.seg_hidden, config.prompt_width).to(device)
    names = [name for name in model.state_dict(keep_vars=True) if not name.startswith(("vlm.vision.", "seg_head."))]
    wanted: dict[str, list[str]] = {}
    for name in names:
        wanted.setdefault(str(published_key(name)), []).append(name)
    parameters, problems = dict(model.named_parameters(remove_duplicate=False)), list[str]()
    for key, file, tensor in _all_tensors(folder, parts.sam):
        if key not in wanted:
            problems.append(f"unexpected: {key} in {file.name}")
            continue
        for name in wanted.pop(key):
            shape = model.get_parameter(name).shape if name in parameters else model.get_buffer(name).shape
            if name in _TABLES:
                tensor = _with_new_rows(tensor, shape)
            if tensor.shape != shape:
                problems.append(f"wrong shape: {key} in {file.name} is {tuple(tensor.shape)}, not {tuple(shape)}")
                continue
            place_tensor(model, name, tensor, torch.float32 if name in _TABLES else kept_dtype(name, dtype), placing)
    problems += [f"missing: {key}" for key in wanted]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ModelLoadError(f"{folder} and {parts.sam} do not make a LISA ({shown}).", next_step="Fetch the named parts again.", code="tensors")
    load_tower(model, tower, dtype, placing)
    return Trainee(model.to(device).eval(), tokenizer, get_template(config.chat_template), "llava", folder, added)


def new_vocabulary(folder: Path) -> dict[str, int]:
    """The added tokens of a LLaVA folder and behind them those of LISA that it lacks."""
    from sentencepiece import SentencePieceProcessor

    file = folder / "tokenizer.model"
    if not file.is_file():
        raise ModelLoadError(f"{file} is missing.", next_step="Fetch LLaVA again, with its tokenizer files.", code="tokenizer_missing")
    size = SentencePieceProcessor(model_file=str(file)).vocab_size()
    listed = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    found = {str(token): int(number) for token, number in listed.items() if int(number) >= size}
    for token in ADDED:
        if token not in found:
            found[token] = size + len(found)
    return found


def parts_config(parts: Parts, folder: Path, added: dict[str, int], chat_template: str | None, offline: bool) -> tuple[LisaConfig, Path]:
    """Config of the model to come, and the folder of its vision tower."""
    values = read_json(folder / "config.json")
    source = tower_folder(folder, values | ({"vision_tower": parts.clip} if parts.clip else {}), offline)
    sam = read_json(parts.sam_config) if parts.sam_config else {}
    width = int(sam.pop("prompt_embed_dim", 256))
    try:
        language = {"model_type": "llama"} | {k: values[k] for k in _LLAMA if values.get(k) is not None}
        vlm = {
            "family": "llava",
            "vision": tower_config(source),
            "seg_token_id": added[SEG_TEXT],
            "projector": values.get("mm_projector_type") or "linear",
            "select_layer": int(values.get("mm_vision_select_layer", -2)),
            "select_feature": values.get("mm_vision_select_feature") or "patch",
        }
        config = LisaConfig(
            vlm=vlm,
            mask_decoder={"family": "sam"} | sam,
            prompt_width=width,
            seg_hidden=int(values["hidden_size"]),
            seg_state="emit",
            chat_template=chat_template or "llava_v1",
            language_config=language | {"vocab_size": max(added.values()) + 1, "tie_word_embeddings": False},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{folder / 'config.json'} cannot be used: {error!r}.", next_step="Fetch LLaVA again.", code="config_wrong") from error
    return config, source


def _all_tensors(folder: Path, sam: Path) -> Iterator[tuple[str, Path, Tensor]]:
    """(the reference's key, file, tensor) of LLaVA, then of SAM."""
    for file in weight_files(folder)[0]:
        for key, tensor in read_tensors(file):
            if not key.startswith(_PASSED_OVER) and not COMPUTED.match(key):
                yield key, file, tensor
    if not sam.is_file():
        raise ModelLoadError(f"There is no {sam}.", next_step="Download SAM's weights and name the file in model.parts.sam.", code="weights_missing")
    for key, tensor in read_tensors(sam):
        if key not in ("pixel_mean", "pixel_std"):
            yield SAM_PREFIX + key, sam, tensor


def _with_new_rows(tensor: Tensor, shape: torch.Size) -> Tensor:
    """A table of the vocabulary with as many rows as are wanted: new ones behind those that it has, or cut (some are padded)."""
    if tensor.shape[1:] != shape[1:] or tensor.shape == shape:
        return tensor
    new = torch.randn(max(0, shape[0] - len(tensor)), shape[1]) * NEW_STD
    return torch.cat([tensor[: shape[0]].float(), new])
