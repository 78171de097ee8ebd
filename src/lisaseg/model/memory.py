"""How much memory a model needs in each precision, how much there is, and what to say when it is not enough.

Everything is counted on the empty model (`streaming.empty_model`), so no weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lisaseg.errors import LisaSegError, ModelLoadError
from lisaseg.model.host_memory import free_bytes
from lisaseg.model.quantize import BYTES

if TYPE_CHECKING:
    from lisaseg.model.lisa import LisaModel

Answering = TypeVar("Answering", bound=Callable[..., Any])
PARTS = {"language model": "vlm.language_model.", "vision tower": "vlm.vision.", "projector": "vlm.projector.", "seg head": "seg_head.",
         "mask decoder": "mask_decoder."}  # fmt: skip
FULL = "vlm."  # what is held in the compute dtype
_ENCODER = "mask_decoder.sam.vision_encoder."
_LAYERS = "vlm.language_model.model.layers."


# The published checkpoints' sizes, as in their config.json, so that nothing has to be fetched to count them.
_COMMON: dict[str, Any] = {
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "mm_vision_select_layer": -2, "out_dim": 256,
    "mm_vision_select_feature": "patch", "mm_use_im_start_end": True, "train_mask_decoder": True, "model_type": "llava",
}  # fmt: skip
PUBLIC: dict[str, dict[str, Any]] = {
    "LISA-7B": _COMMON | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32004,
                          "rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "LISA-13B": _COMMON | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40, "vocab_size": 32003,
                           "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
}  # fmt: skip
CLIP_L14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "image_size": 224,
            "projection_dim": 768}  # fmt: skip
# Bytes beside the weights while one question is answered in bfloat16: the mask encoder's attention above all. Measured: benchmarks/full_size_7b.py.
WORKING = 1_750_000_000


@dataclass(frozen=True)
class Setting:
    """How a model is held: the compute dtype of the language side, and how the weights of its layers are quantised."""

    dtype: torch.dtype = torch.float32
    quantize: str | None = None

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.quantize} ({name})" if self.quantize else name


def kept_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The language side in the compute dtype; seg head and mask decoder, which are small, in float32.

    The mask encoder follows into bfloat16, in which the published checkpoints were trained and measured; in float16 it would overflow.
    """
    return dtype if name.startswith(FULL) or (name.startswith(_ENCODER) and dtype is torch.bfloat16) else torch.float32


def bytes_of(model: LisaModel, setting: Setting) -> dict[str, int]:
    """Bytes of the weights of each of `PARTS`; the model may be empty, and is not quantised yet."""
    found = dict.fromkeys(PARTS, 0)
    for name, p in model.named_parameters():
        part = next((part for part, prefix in PARTS.items() if name.startswith(prefix)), None)
        if part is None:
            continue
        small = setting.quantize is not None and name.startswith(_LAYERS) and p.ndim == 2
        size = BYTES[str(setting.quantize)] if small else kept_dtype(name, setting.dtype).itemsize
        found[part] += round(p.numel() * size)
    return found


SETTINGS = (Setting(torch.float32), Setting(torch.bfloat16), Setting(torch.bfloat16, "8bit"), Setting(torch.bfloat16, "4bit"))


def memory_table(model: LisaModel) -> list[tuple[str, dict[str, int]]]:
    """(setting, bytes of each of `PARTS`, then "weights" and "one question") for the settings that people choose from, dearest first."""
    rows = []
    for setting in SETTINGS:
        parts = bytes_of(model, setting)
        weights = sum(parts.values())
        rows.append((str(setting), parts | {"weights": weights, "one question": weights + WORKING + cache_bytes(model, setting, 512)}))
    return rows


def empty_public(name: str) -> LisaModel:
    """One of `PUBLIC`, without weights."""
    from lisaseg.model.config import LisaConfig
    from lisaseg.model.streaming import empty_model

    values = PUBLIC[name]
    vlm = {"family": "llava", "vision": CLIP_L14, "seg_token_id": values["vocab_size"] - 1}
    language = {"model_type": "llama"} | {k: v for k, v in values.items() if not k.startswith(("mm_", "train_", "out_", "model_"))}
    return empty_model(LisaConfig(vlm=vlm, mask_decoder={"family": "sam"}, seg_hidden=values["hidden_size"], language_config=language))


def cache_bytes(model: LisaModel, setting: Setting, tokens: int) -> int:
    """Bytes of the keys and values of one conversation of `tokens`."""
    config = model.vlm.language_model.config
    head = config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head * tokens * setting.dtype.itemsize)


def available_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device now (for the CPU within the limit of the container, swap included); None if this system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_bytes(swap=True) if device.type == "cpu" else None


def cheaper(setting: Setting, device: torch.device) -> str:
    """The next cheaper setting than this one, as a next step."""
    if setting.quantize == "4bit":
        step = "Use lisa-tiny, which runs in 2 GB"
    elif setting.quantize == "8bit":
        step = 'Use quantize="4bit" (--quantize 4bit)'
    elif setting.dtype.itemsize > 2:
        step = 'Use dtype="bfloat16" (--dtype bfloat16)'
    else:
        step = 'Use quantize="8bit" (--quantize 8bit)'
    return step + (', or device_map="auto" to spread it.' if device.type == "cuda" and setting.quantize is None else ".")


def check_fits(model: LisaModel, setting: Setting, device: torch.device) -> None:
    """ModelLoadError if the weights cannot fit: better than a load that is killed by the system after minutes."""
    need, free = sum(bytes_of(model, setting).values()), available_bytes(device)
    if free is not None and need > free:
        raise ModelLoadError(
            f"The weights need {need / 1e9:.1f} GB in {setting}; {device} has {free / 1e9:.1f} GB free.",
            next_step=cheaper(setting, device),
            code="out_of_memory",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    said = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(text in said for text in ("out of memory", "not enough memory", "can't allocate memory"))
    )


@contextmanager
def memory_limit(doing: str, next_step: str, kind: type[LisaSegError] = LisaSegError) -> Iterator[None]:
    """Turn running out of memory inside into an error of ours; `doing` begins its sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise kind(f"{doing} needs more memory than there is.", next_step=next_step, code="out_of_memory") from error


def within_memory(answer: Answering) -> Answering:
    """Decorate a predictor's method that takes its questions first: running out of memory says what to do next."""

    @wraps(answer)
    def guarded(self: Any, questions: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        step = "Ask fewer questions at once." if len(questions) > 1 else cheaper(self.setting, self.model.device)
        with memory_limit(f"Answering in {self.setting} on {self.model.device}", step):
            return answer(self, questions, *args, **kwargs)

    return guarded  # type: ignore[return-value]
