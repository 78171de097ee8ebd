"""Weights in and out. A checkpoint that did not load completely never runs: every missing, unexpected or mis-shaped tensor is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lisaseg.errors import ModelLoadError

if TYPE_CHECKING:
    from lisaseg.model.lisa import LisaModel

LANGUAGE = "vlm.language_model."


def load_language_model(name: str, dtype: torch.dtype, offline: bool = False) -> tuple[Any, Path]:
    """The language model of the weights cache (pulled if needed) and its folder, which also holds the tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.initialization import no_init_weights

    from lisaseg import store

    if name != "smollm2-135m-instruct":
        raise ModelLoadError(f"Unknown language model {name!r} in config.json.", next_step="Known: smollm2-135m-instruct.", code="config_wrong")
    folder = store.pull("lisa-tiny", offline=offline)
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(folder / "model.safetensors").items()}
    with no_init_weights():  # from_pretrained makes the same, in five times the time
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder, dtype=dtype, local_files_only=True))
    wrong = model.load_state_dict(tensors, strict=False, assign=True)
    if wrong.unexpected_keys or set(wrong.missing_keys) - {"lm_head.weight"}:
        first = (*wrong.unexpected_keys, *wrong.missing_keys)[0]
        raise ModelLoadError(
            f"{folder / 'model.safetensors'} does not fit its config.json, first at {first}.",
            next_step="Delete the folder: it is fetched again.",
            code="tensors",
        )
    model.tie_weights()
    return model.eval(), folder


def trained_tensors(model: LisaModel) -> dict[str, Tensor]:
    """Everything but the frozen language model, fp16; adapters as `...q_proj.lora_A.weight`."""
    out = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(LANGUAGE) and "lora_" not in name:
            continue
        out[name.replace(".default.weight", ".weight")] = tensor.detach().to(torch.float16).contiguous()  # a loaded trunk is channels-last
    return out


def merge_lora(model: LisaModel, tensors: dict[str, Tensor], rank: int, alpha: int) -> set[str]:
    """Add the adapters to the language model's weights in float32: W + alpha / rank * B A. Returns the names that were used."""
    used = set()
    pattern = re.compile(re.escape(LANGUAGE) + r"(.+)\.lora_A\.weight$")
    with torch.no_grad():
        for name, a in tensors.items():
            match = pattern.match(name)
            if match is None:
                continue
            other = name.replace("lora_A", "lora_B")
            if other not in tensors:
                raise ModelLoadError(f"The adapter {other} is missing.", next_step="The file is incomplete: fetch it again.", code="tensor_missing")
            weight, b = _weight(model, match.group(1), name), tensors[other]
            if a.ndim != 2 or b.ndim != 2 or (a.shape[1], b.shape[0]) != (weight.shape[1], weight.shape[0]) or a.shape[0] != b.shape[1]:
                raise ModelLoadError(
                    f"The adapter {name} {tuple(a.shape)} with lora_B {tuple(b.shape)} does not fit the weight {tuple(weight.shape)}.",
                    next_step="Use the language model named in config.json.",
                    code="tensor_shape",
                )
            weight.copy_(torch.addmm(weight.float(), b.float(), a.float(), alpha=alpha / rank))
            used |= {name, other}
    return used


def _weight(model: LisaModel, module: str, adapter: str) -> Tensor:
    try:
        return model.vlm.language_model.get_submodule(module).weight
    except AttributeError:
        raise ModelLoadError(
            f"The adapter {adapter} belongs to no part of the language model.",
            next_step="Use the language model named in config.json.",
            code="tensor_unexpected",
        ) from None


def load_strict(model: LisaModel, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy tensors into the model's non-language part; ModelLoadError names every tensor that is missing, unexpected or mis-shaped."""
    own = {n: t for n, t in model.state_dict(keep_vars=True).items() if not n.startswith(LANGUAGE)}
    missing = sorted(set(own) - set(tensors))
    unexpected = sorted(set(tensors) - set(own))
    shapes = [
        f"{n} is {tuple(tensors[n].shape)}, not {tuple(own[n].shape)}" for n in sorted(set(own) & set(tensors)) if own[n].shape != tensors[n].shape
    ]
    problems = [f"missing: {n}" for n in missing] + [f"unexpected: {n}" for n in unexpected] + [f"wrong shape: {s}" for s in shapes]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ModelLoadError(
            f"{source} does not fit the model ({shown}).",
            next_step="Fetch the file again, or use the config.json that belongs to it.",
            code="tensors",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name].to(tensor.dtype))
