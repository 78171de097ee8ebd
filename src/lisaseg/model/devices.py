"""A language model over several devices: GPUs first, then memory, then disk (accelerate). Everything else stays on one device.

The vision tower, projector, seg head and mask decoder are *pinned*: they are small beside the language model, and a mask decoder that is cut in two
is slower than one that waits.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lisaseg.errors import ModelLoadError, UsageError
from lisaseg.model.memory import Setting, bytes_of, cheaper
from lisaseg.model.quantize import is_quantized

log = logging.getLogger(__name__)

LANGUAGE = "vlm.language_model."
_RESERVE = 3_000_000_000  # bytes kept free on the pinned device for what one question makes: attention of the mask encoder, keys and values

DeviceMap = Mapping[str, str | int]


@dataclass
class Placing:
    """Where each tensor goes while a model is read.

    Args:
        pinned: device of everything but the language model.
        table: {module of the language model: device, "cpu" or "disk"}; {} = all on `pinned`.
        folder: of the weights on disk, or None.
    """

    pinned: torch.device
    table: DeviceMap
    folder: tempfile.TemporaryDirectory[str] | None = None

    def __post_init__(self) -> None:
        self._index: dict[str, Any] = {}

    @property
    def away(self) -> list[str]:
        """Where weights lie that are fetched when they are needed: of "cpu" and "disk"."""
        return sorted({str(device) for device in self.table.values()} & ({"disk"} if self.pinned.type == "cpu" else {"cpu", "disk"}))

    def device_of(self, name: str) -> torch.device | None:
        """Device of one of the model's tensors; None = the disk."""
        if not self.table or not name.startswith(LANGUAGE):
            return self.pinned
        inner = name.removeprefix(LANGUAGE)
        found = next(self.table[m] for m in sorted(self.table, key=len, reverse=True) if m == "" or inner == m or inner.startswith(f"{m}."))
        return None if found == "disk" else torch.device(found)

    def to_disk(self, name: str, value: Tensor) -> None:
        """Write a tensor of the language model beside the others; its parameter stays empty."""
        from accelerate.utils import offload_weight

        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="lisaseg-offload-")
        self._index = offload_weight(value, name.removeprefix(LANGUAGE), self.folder.name, self._index)

    def connect(self, language_model: Any) -> None:
        """Have the parts of a filled language model fetch their inputs, and their weights where those are elsewhere."""
        if not self.table:
            return
        from accelerate import dispatch_model
        from accelerate.utils import save_offload_index

        if self.folder is not None:
            save_offload_index(self._index, self.folder.name)
            language_model.offload_folder = self.folder  # lives as long as the model
        if self.away:
            log.warning("A part of the language model is fetched from %s for every token: answers are slow.", " and ".join(self.away))
        logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # says the same in other words
        dispatch_model(
            language_model,
            dict(self.table),
            main_device="cpu" if self.pinned.type == "cpu" else self.pinned,
            offload_dir=None if self.folder is None else Path(self.folder.name),
            skip_keys=language_model._skip_keys_device_placement,
        )


def place(model: Any, setting: Setting, pinned: torch.device, wanted: str | DeviceMap | None) -> Placing:
    """Decide where the language model of an empty model goes.

    Args:
        wanted: None = all on `pinned`; "auto" = by the free memory of each GPU, then of the machine, then the disk; or the table itself.

    Raises:
        UsageError: a table that leaves a part out, or names a device that is not there.
        ModelLoadError: quantised weights do not fit the GPUs; bitsandbytes cannot leave them elsewhere.
    """
    language_model = model.vlm.language_model
    if wanted is None:
        return Placing(pinned, {})
    if pinned.type == "cuda":
        pinned = torch.device("cuda", pinned.index or 0)  # as tables write it
    if isinstance(wanted, str):
        if wanted != "auto":
            raise UsageError(f"device_map={wanted!r} is not known.", next_step='Use "auto", a table {module: device}, or leave it out.')
        table = _automatic(model, setting, pinned)
    else:
        table = dict(wanted)
        _check(language_model, table)
    placing = Placing(pinned, table)
    if placing.away and setting.quantize is not None:
        raise ModelLoadError(
            f"In {setting} a part of the language model would be left to the {' and '.join(placing.away)}, which bitsandbytes cannot do.",
            next_step=cheaper(setting, torch.device("cpu")),
            code="out_of_memory",
        )
    whole = not placing.away and {torch.device(device) for device in table.values()} == {pinned}
    return Placing(pinned, {}) if whole else placing


def _automatic(model: Any, setting: Setting, pinned: torch.device) -> dict[str, str | int]:
    from accelerate import infer_auto_device_map
    from accelerate.utils import CustomDtype, get_max_memory

    language_model = model.vlm.language_model
    memory = get_max_memory()
    beside = sum(size for part, size in bytes_of(model, setting).items() if part != "language model")
    mine = "cpu" if pinned.type == "cpu" else (pinned.index or 0)
    memory[mine] = max(0, memory[mine] - beside - _RESERVE)
    small = {"8bit": torch.int8, "4bit": CustomDtype.INT4}.get(str(setting.quantize))
    special = {name: small for name, p in language_model.named_parameters() if small is not None and is_quantized(p)}
    return infer_auto_device_map(  # type: ignore[no-any-return]
        language_model,
        max_memory=memory,
        no_split_module_classes=list(language_model._no_split_modules),
        dtype=setting.dtype,
        special_dtypes=special or None,
    )


def _check(language_model: Any, table: dict[str, str | int]) -> None:
    for module, device in table.items():
        try:
            known = device == "disk" or torch.device(device).type in ("cpu", "mps") or torch.empty(0, device=device) is not None
        except (RuntimeError, AssertionError, TypeError):
            known = False
        if not known:
            raise UsageError(
                f"device_map names {device!r} for {module or 'the language model'}, which is not there.", next_step="See `lisaseg doctor`."
            )
    for name, _ in language_model.named_parameters():
        if not any(m == "" or name.startswith(f"{m}.") for m in table):
            raise UsageError(
                f"device_map says nothing about {name}.",
                next_step='Cover model.embed_tokens, every model.layers.N, model.norm and lm_head, or use "auto".',
            )
