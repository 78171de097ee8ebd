"""Weights of a published checkpoint onto the model, one file at a time: never more in memory than the model and one file.

The model is built empty, each tensor goes to its place in its final dtype and device, and whatever is missing, left over or of another shape is named
together with the file that it should be in.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lisaseg.errors import ModelLoadError
from lisaseg.model.config import LisaConfig
from lisaseg.model.devices import Placing
from lisaseg.model.lisa import LisaModel
from lisaseg.model.memory import kept_dtype
from lisaseg.model.published import COMPUTED, published_key, read_json, tower_wrong
from lisaseg.model.quantize import is_quantized, quantized
from lisaseg.store import read_manifest

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_TOWER_ONLY = ("text_model.", "logit_scale", "visual_projection.", "text_projection.")  # of a whole CLIP, which is the tower's usual home


def empty_model(config: LisaConfig) -> LisaModel:
    """The model without memory for its parameters; buffers, which no file holds, are real. ModelLoadError if the config describes no model."""
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=False):
            return LisaModel(config).eval().requires_grad_(False)
    except Exception as error:  # the numbers come from a file, and each library refuses bad ones in its own way
        raise ModelLoadError(
            f"config.json (with sam_config.json and the vision tower's) describes no model that can be built: {error}.",
            next_step="Fetch these files again.",
            code="config_wrong",
        ) from error


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str], Path]:
    """Weight files in order, the index's {tensor: file} ({} for a single file), and the file to blame for what no index mentions."""
    for name in _SINGLE:
        index = folder / f"{name}.index.json"
        if index.is_file():
            listed = read_json(index).get("weight_map")
            if not isinstance(listed, dict) or not listed:
                raise ModelLoadError(f"{index} lists no weights.", next_step="Fetch the checkpoint again.", code="weights_damaged")
            files = [folder / file for file in sorted(set(map(str, listed.values())))]
            lost = [file.name for file in files if file.parent != folder or not file.is_file()]
            if lost:
                raise ModelLoadError(
                    f"{folder} is incomplete: {', '.join(lost)} missing.", next_step="Fetch the rest of the checkpoint.", code="weights_missing"
                )
            return files, {str(k): str(v) for k, v in listed.items()}, index
        if (folder / name).is_file():
            return [folder / name], {}, folder / name
    raise ModelLoadError(
        f"{folder} holds no weights: neither {' nor '.join(_SINGLE)}, nor an index of several files.",
        next_step="Fetch the rest of the checkpoint.",
        code="weights_missing",
    )


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one weight file, read as they are asked for. Pickles are opened with weights_only and mapped, not read into memory."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    yield name, tensors.get_tensor(name)
            return
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):  # files older than torch 1.6 cannot be mapped
                raise
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is cut or damaged makes the readers raise nearly anything
        raise ModelLoadError(
            f"{file} is damaged or only half downloaded: {str(error).splitlines()[0] if str(error) else type(error).__name__}.",
            next_step="Fetch this file again.",
            code="weights_damaged",
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelLoadError(f"{file} holds something else than tensors.", next_step="Fetch this file again.", code="weights_damaged")
    yield from loaded.items()


def stored_checksums(file: Path) -> set[int]:
    """CRC-32 of each part of a `.bin` file, of its zip directory: one part for each tensor's memory. Empty if the file holds none: it is older than
    torch 1.6, written without them (then even the part "version" differs from its own), or no pickle."""
    if file.suffix != ".bin" or not zipfile.is_zipfile(file):
        return set()
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        try:
            for part in parts:
                if part.filename.endswith("/version"):
                    archive.read(part)
        except zipfile.BadZipFile:
            return set()
    return {part.CRC for part in parts}


def whole_memory(tensor: Tensor) -> Tensor:
    """All the memory that a tensor is a view of, as bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes: it finds damage at several GB a second."""
    return zlib.crc32(bytes_of_tensor(tensor))


def bytes_of_tensor(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor in row order."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data  # type: ignore[no-any-return]


def fitting_tensors(model: LisaModel, folder: Path) -> Iterator[tuple[str, list[str], Tensor]]:
    """(the reference's key, our names, tensor) of a published checkpoint, file by file, for those that fit the model.

    Raises:
        ModelLoadError: at the end, if any tensor was missing, unexpected, of another shape, not a number somewhere, or (where a manifest or the
            `.bin` file itself tells) changed; names each and its file.
    """
    files, index, fallback = weight_files(folder)
    sums = read_manifest(folder).get("crc32", {})
    shapes = {name: p.shape for name, p in model.state_dict(keep_vars=True).items()}
    wanted: dict[str, list[str]] = {}
    for name in shapes:
        key = published_key(name)
        if key is not None:
            wanted.setdefault(key, []).append(name)
    seen: set[str] = set()
    problems: list[str] = []
    for file in files:
        parts = stored_checksums(file)
        for key, tensor in read_tensors(file):
            if COMPUTED.match(key):
                continue
            if key not in wanted:
                problems.append(f"unexpected: {key} in {file.name}")
                continue
            seen.add(key)
            shape = shapes[wanted[key][0]]
            if tensor.shape != shape:
                problems.append(f"wrong shape: {key} in {file.name} is {tuple(tensor.shape)}, not {tuple(shape)}")
            elif not tensor.is_floating_point():
                problems.append(f"wrong kind: {key} in {file.name} is {tensor.dtype}")
            elif tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():  # either is NaN if any number is
                problems.append(f"damaged: {key} in {file.name} holds numbers that are not finite")
            elif key in sums and sums[key] != checksum(tensor):
                problems.append(f"damaged: {key} in {file.name} is not what manifest.json says")
            elif parts and checksum(whole_memory(tensor)) not in parts:
                problems.append(f"damaged: {key} in {file.name} does not agree with the file's own checksums")
            else:
                yield key, wanted[key], tensor
    problems += [f"missing: {key}, expected in {index.get(key, fallback.name)}" for key in wanted if key not in seen]
    if problems:
        shown = "; ".join(sorted(problems)[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ModelLoadError(f"{folder} does not fit the model ({shown}).", next_step="Fetch the named files again.", code="tensors")


def load_weights(model: LisaModel, folder: Path, dtype: torch.dtype, placing: Placing) -> None:
    """Fill an empty model from a published checkpoint, complete or not at all (ModelLoadError, see `fitting_tensors`)."""
    for _, names, tensor in fitting_tensors(model, folder):
        for name in names:
            place_tensor(model, name, tensor, kept_dtype(name, dtype), placing)


def load_tower(model: LisaModel, source: Path, dtype: torch.dtype, placing: Placing) -> None:
    """Fill the vision tower from its folder; strict like the rest."""
    for name, tensor in read_tower(source).state_dict().items():
        place_tensor(model, f"vlm.vision.{name}", tensor, dtype, placing)


def read_tower(source: Path) -> Any:
    """The CLIPVisionModel of a folder in float32; ModelLoadError, with the names, unless it is there completely and undamaged."""
    from transformers import CLIPVisionModel
    from transformers.utils import logging as talk

    bar, verbosity = talk.is_progress_bar_enabled(), talk.get_verbosity()
    talk.disable_progress_bar()
    talk.set_verbosity_error()  # it prints tables of what does not fit, of a whole CLIP's text side too; below is what matters
    try:
        tower, report = CLIPVisionModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise tower_wrong(source, error) from error
    finally:
        talk.set_verbosity(verbosity)
        if bar:
            talk.enable_progress_bar()
    sums = read_manifest(source).get("crc32", {})
    problems = [f"missing: {key}" for key in sorted(report["missing_keys"])]
    problems += [f"unexpected: {key}" for key in sorted(report["unexpected_keys"]) if not key.startswith(_TOWER_ONLY) and "position_ids" not in key]
    problems += [f"wrong shape: {key} is {tuple(found)}, not {tuple(wanted)}" for key, found, wanted in sorted(report["mismatched_keys"])]
    for key, tensor in tower.state_dict().items() if not problems else ():
        if not torch.stack(tensor.aminmax()).isfinite().all():
            problems.append(f"damaged: {key} holds numbers that are not finite")
        elif key in sums and sums[key] != checksum(tensor):
            problems.append(f"damaged: {key} is not what manifest.json says")
    if problems:
        raise ModelLoadError(f"The vision tower {source} does not fit ({'; '.join(problems[:8])}).", next_step="Fetch it again.", code="tensors")
    return tower


def place_tensor(model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, placing: Placing) -> None:
    """Put a copy of a tensor where an empty parameter is; a copy, because the tensor may be a window into a file."""
    path, _, leaf = name.rpartition(".")
    module: Any = model.get_submodule(path)
    device = placing.device_of(name)
    if device is None:
        placing.to_disk(name, tensor.to(dtype))
        module._parameters[leaf] = nn.Parameter(torch.empty_like(tensor, dtype=dtype, device="meta"), requires_grad=False)  # it is read in this dtype
    elif is_quantized(module._parameters.get(leaf)):
        module._parameters[leaf] = quantized(module, tensor.to(dtype=dtype, copy=True), device)
    elif leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor.to(device=device, dtype=dtype, copy=True), requires_grad=False)
    else:
        module._buffers[leaf] = tensor.to(device=device, dtype=dtype, copy=True)
