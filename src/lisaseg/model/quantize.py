"""8- and 4-bit weights by bitsandbytes: the linear maps inside the language model's layers, and nothing else.

Embeddings, `lm_head`, projector, seg head, vision tower and SAM keep their dtype. They are a small share of the memory, and what they compute decides
whether there is a `[SEG]` and where its mask lies; the reference quantises the first three too, and its users report answers without masks.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from typing import Any

import torch
from torch import Tensor, nn

from lisaseg.errors import UsageError

KINDS = ("8bit", "4bit")
BYTES = {
    "8bit": 1.0,
    "4bit": 0.5 + 1 / 128 + 4 / 16384,
}  # of one weight with its scales: nf4 has one byte for 64 weights, and four for 256 such bytes
# What they say asks for nothing: int8 products round float32 inputs to float16; a faster 4-bit kernel for CPUs could be fetched.
_CHATTY = ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops")


def check_quantize(kind: str | None) -> None:
    """UsageError unless `kind` is None or can be done here."""
    if kind is None:
        return
    if kind not in KINDS:
        raise UsageError(f"quantize={kind!r} is not known.", next_step=f"Use {' or '.join(KINDS)}, or leave it out.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(f"quantize={kind!r} needs bitsandbytes, which is not installed.", next_step="pip install 'lisaseg[quant]'")


def quantize_layers(language_model: Any, kind: str, dtype: torch.dtype) -> None:
    """Replace the linear maps in the layers of a transformers causal LM by bitsandbytes', still without memory; products are in `dtype`.

    In 4 bits, maps to a width that is no multiple of 32 stay as they are: the product on CPUs cannot do them, and no real model has any.
    """
    bnb = import_bitsandbytes()
    for parent in list(language_model.model.layers.modules()):
        for leaf, old in list(parent.named_children()):
            if type(old) is not nn.Linear or (kind == "4bit" and old.out_features % 32):
                continue
            size = (old.in_features, old.out_features, old.bias is not None)
            with torch.device("meta"):
                if kind == "4bit":
                    new = bnb.nn.Linear4bit(*size, compute_dtype=dtype, quant_type="nf4")
                else:
                    new = bnb.nn.Linear8bitLt(*size, has_fp16_weights=False, threshold=6.0)
            setattr(parent, leaf, new.requires_grad_(False))


def is_quantized(parameter: object) -> bool:
    """Whether a parameter is one of bitsandbytes'."""
    return type(parameter).__name__ in ("Params4bit", "Int8Params")


def quantized(module: Any, value: Tensor, device: torch.device) -> nn.Parameter:
    """The weight of one of `quantize_layers`' modules, made of `value` (out, in) and put on `device`."""
    bnb = import_bitsandbytes()
    if isinstance(module, bnb.nn.Linear4bit):
        return bnb.nn.Params4bit(value, requires_grad=False, quant_type="nf4", module=module).to(device)  # type: ignore[no-any-return]
    return bnb.nn.Int8Params(value, requires_grad=False, has_fp16_weights=False).to(device)  # type: ignore[no-any-return]


def import_bitsandbytes() -> Any:
    """bitsandbytes, quiet, and without the native code that it would fetch from the hub when it is imported (if the package `kernels` is there)."""
    if "bitsandbytes" not in sys.modules:
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        hidden = sys.modules.get("kernels")
        sys.modules["kernels"] = None  # type: ignore[assignment] # importing it fails now, which bitsandbytes can live with
        try:
            import bitsandbytes  # noqa: F401
        finally:
            del sys.modules["kernels"]
            if hidden is not None:
                sys.modules["kernels"] = hidden
    return sys.modules["bitsandbytes"]
