"""From a preset or folder to a complete model: config, language model, trained tensors, adapters merged, everything checked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lisaseg.errors import ModelLoadError, UsageError
from lisaseg.model.checkpoint import LANGUAGE, load_language_model, load_strict, merge_lora
from lisaseg.model.config import LisaConfig
from lisaseg.model.lisa import LisaModel
from lisaseg.model.published import added_tokens, hub_folder, is_published, read_config
from lisaseg.tokenization import SentencePieceTokenizer, TextTokenizer, Tokenizer

if TYPE_CHECKING:
    from lisaseg.model.devices import DeviceMap

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name


def pick_device(device: str) -> torch.device:
    """ "auto" -> cuda, mps or cpu; UsageError if the device is unknown or not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"Unknown device {device!r}.", next_step="Use auto, cpu, cuda, cuda:1 or mps.") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0, "mps": int(torch.backends.mps.is_available())}
    if (chosen.index or 0) >= count.get(chosen.type, 0):
        raise UsageError(f"The device {device!r} is not available here.", next_step="Use --device cpu, or see `lisaseg doctor`.")
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" -> bfloat16 where it is computed in hardware, else float32."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UsageError(f"Unknown dtype {dtype!r}.", next_step=f"Use auto, {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    if device.type == "cpu":
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported() else torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def model_folder(name: str | Path, offline: bool = False) -> Path:
    """Folder of a preset, a path or a published checkpoint; it holds config.json and weights."""
    from lisaseg import store

    path = Path(name)
    if not path.is_dir() and _HUB_ID.fullmatch(str(name)) and not path.parent.exists():
        return hub_folder(str(name), offline)
    if path.is_dir() or (len(path.parts) > 1 and not any(p.name == str(name) for p in store.presets())):
        published = (path / "config.json").is_file() and is_published(path)
        for file in () if published else ("config.json", "model.safetensors"):
            if not (path / file).is_file():
                raise ModelLoadError(
                    f"{path} is not a lisaseg model: {file} is missing.",
                    next_step="Give a folder with config.json and model.safetensors, or a name of `lisaseg models list`.",
                    code="not_a_model",
                )
        return path
    return store.preset_dir(str(name))


def read_tiny_config(folder: Path) -> LisaConfig:
    """config.json of a folder in lisaseg's own layout; ModelLoadError says what is wrong with it."""
    try:
        values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if values.get("model_type") != LisaConfig.model_type:
            raise ValueError(f"model_type is {values.get('model_type')!r}, not {LisaConfig.model_type!r}")
        return LisaConfig(**{k: v for k, v in values.items() if k not in ("model_type", "transformers_version")})
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise ModelLoadError(
            f"{folder / 'config.json'} cannot be used: {error}.", next_step="Fetch the folder again.", code="config_wrong"
        ) from error


def load_model(
    name: str | Path,
    dtype: torch.dtype,
    offline: bool = False,
    device: torch.device | None = None,
    quantize: str | None = None,
    device_map: str | DeviceMap | None = None,
) -> tuple[LisaModel, Tokenizer]:
    """The model of a preset or folder on `device`, complete, adapters merged; language model and vision in `dtype`, the rest in float32.

    `quantize` ("8bit", "4bit") and `device_map` (see `devices.place`) are for published checkpoints, whose tensors are placed as they are read.
    """
    device = device or torch.device("cpu")
    folder = model_folder(name, offline)
    if is_published(folder):
        return load_published(folder, dtype, device, offline, quantize=quantize, device_map=device_map)
    for option, value in (("quantize", quantize), ("device_map", device_map)):
        if value is not None:
            raise UsageError(f"{option}={value!r} is not available for {name}: it is small already.", next_step=f"Leave {option} out.")
    config = read_tiny_config(folder)
    file = folder / "model.safetensors"
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file} is damaged: {error}.", next_step="Fetch it again.", code="weights_damaged") from error
    from transformers.initialization import no_init_weights

    if config.language_model is None:
        raise ModelLoadError(f"{folder / 'config.json'} names no language_model.", next_step="Fetch the folder again.", code="config_wrong")
    language_model, language_folder = load_language_model(config.language_model, dtype, offline)
    with no_init_weights():  # every tensor is read from the file
        model = LisaModel(config, language_model)
    lora = config.lora or {"rank": 1, "alpha": 1}
    used = merge_lora(model, tensors, int(lora["rank"]), int(lora["alpha"]))
    stray = [n for n in tensors if n.startswith(LANGUAGE) and n not in used]
    if stray:
        raise ModelLoadError(f"{file} holds {stray[0]}, which no part of the model takes.", next_step="Fetch it again.", code="tensors")
    load_strict(model, {n: t for n, t in tensors.items() if n not in used}, file)
    model.requires_grad_(False)
    model.vlm.set_compute_dtype(dtype)
    return model.to(device).eval(), TextTokenizer(language_folder, model.vlm.seg_token_id, model.vlm.image_token_id)


def load_published(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    offline: bool = False,
    chat_template: str | None = None,
    quantize: str | None = None,
    device_map: str | DeviceMap | None = None,
) -> tuple[LisaModel, SentencePieceTokenizer]:
    """A published checkpoint and its tokenizer; `chat_template` as for `read_config`."""
    from lisaseg.vlms.llava import IMAGE_TOKEN_ID

    added = added_tokens(folder)
    tokenizer = SentencePieceTokenizer(folder / "tokenizer.model", added, IMAGE_TOKEN_ID)  # cheap: before the weights
    config, tower = read_config(folder, added, chat_template, offline)
    return fill_published(config, folder, tower, dtype, device, quantize, device_map), tokenizer


def fill_published(
    config: LisaConfig,
    folder: Path,
    tower: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantize: str | None = None,
    device_map: str | DeviceMap | None = None,
) -> LisaModel:
    """The model of `read_config` with its weights, in eval mode and frozen; ModelLoadError names the next cheaper setting if memory runs out."""
    from lisaseg.model.devices import place
    from lisaseg.model.memory import Setting, cheaper, check_fits, memory_limit
    from lisaseg.model.quantize import check_quantize, quantize_layers
    from lisaseg.model.streaming import empty_model, load_tower, load_weights

    check_quantize(quantize)
    setting, model = Setting(dtype, quantize), empty_model(config)
    if device_map is None:
        check_fits(model, setting, device)
    if quantize is not None:
        quantize_layers(model.vlm.language_model, quantize, dtype)
    placing = place(model, setting, device, device_map)
    with memory_limit(f"{folder} in {setting} on {device}", cheaper(setting, device), ModelLoadError):
        load_weights(model, folder, dtype, placing)
        load_tower(model, tower, dtype, placing)
        for part in (model.vlm.vision, model.vlm.projector, model.seg_head, model.mask_decoder):  # buffers, which no file holds
            part.to(device)  # type: ignore[union-attr]
        if placing.table:
            placing.connect(model.vlm.language_model)
        else:
            model.vlm.language_model.to(device)
    return model.eval()
