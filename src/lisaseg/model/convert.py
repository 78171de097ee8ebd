"""A published checkpoint as safetensors: no pickle, its vision tower beside it, and a manifest with the hash of every tensor."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lisaseg.errors import ModelLoadError, UsageError
from lisaseg.model.assemble import model_folder
from lisaseg.model.published import added_tokens, is_published, read_config, read_json
from lisaseg.model.streaming import bytes_of_tensor, checksum, empty_model, fitting_tensors, read_tower
from lisaseg.store import write_manifest

SHARD_BYTES = 4_000_000_000
_KEPT = ("generation_config.json", "sam_config.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOWER = "vision_tower"


def convert_checkpoint(src: str | Path, out: str | Path, *, offline: bool = False, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a published checkpoint as safetensors in the same layout; `lisaseg.load(out)` opens it, and so does what reads the original's names.

    Args:
        src: folder or hub id of the checkpoint (`.bin` or safetensors).
        out: a folder that does not exist yet; it appears when everything is written.
        offline: open no connection.
        shard_bytes: size of one weight file, about; the memory that is needed beside the largest file of `src`.

    Returns:
        `out`: weights with their values and dtypes, config.json, tokenizer files, `vision_tower/`, and `manifest.json` with the sha256 of every file
        and, as `tensors`, of every tensor; by `crc32` (the tower's too) every load sees whether a tensor was damaged since.

    Raises:
        UsageError: `out` exists.
        ModelLoadError: `src` is no published checkpoint, or not a complete one.
    """
    target = Path(out)
    if target.exists():
        raise UsageError(f"{target} exists.", next_step="Name a new folder; nothing is overwritten.")
    folder = model_folder(src, offline)
    if not is_published(folder):
        raise ModelLoadError(f"{folder} is no published LISA checkpoint.", next_step="Give the folder with its config.json.", code="not_a_model")
    config, tower = read_config(folder, added_tokens(folder), offline=offline)
    aside = target.with_name(f"{target.name}.part{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        hashes, sums = _write_weights(empty_model(config), folder, aside, shard_bytes)
        vision = read_tower(tower)
        vision.save_pretrained(aside / _TOWER)
        write_manifest(aside / _TOWER, crc32={key: checksum(tensor) for key, tensor in vision.state_dict().items()})
        for name in _KEPT:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, aside / name)
        values = read_json(folder / "config.json") | {"vision_tower": f"./{_TOWER}", "mm_vision_tower": f"./{_TOWER}"}
        (aside / "config.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        write_manifest(aside, source=folder.name, tensors=hashes, crc32=sums)
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def tensor_sha256(name: str, tensor: Tensor) -> str:
    """sha256 over name, dtype, shape and bytes of one tensor: the same whatever file it lies in."""
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(bytes_of_tensor(tensor))
    return digest.hexdigest()


def _write_weights(model: Any, folder: Path, out: Path, shard_bytes: int) -> tuple[dict[str, str], dict[str, int]]:
    """Write the tensors in shards and their index; returns the sha256 and the CRC-32 of each."""
    hashes: dict[str, str] = {}
    sums: dict[str, int] = {}
    places: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    total = held = count = 0

    def flush() -> None:
        nonlocal held, count
        if shard:
            save_file(shard, out / f"shard-{count}", metadata={"format": "pt"})
            places.update(dict.fromkeys(shard, count))
            shard.clear()
            held, count = 0, count + 1

    for key, _, tensor in fitting_tensors(model, folder):
        size = tensor.numel() * tensor.element_size()
        if held + size > shard_bytes:
            flush()
        shard[key] = tensor.detach().clone(memory_format=torch.contiguous_format)  # a tensor of a pickle may share memory with others
        hashes[key], sums[key] = tensor_sha256(key, shard[key]), checksum(shard[key])
        held, total = held + size, total + size
    flush()
    names = [f"model-{k + 1:05d}-of-{count:05d}.safetensors" for k in range(count)]
    for k, name in enumerate(names):
        os.replace(out / f"shard-{k}", out / name)
    index = {"metadata": {"total_size": total}, "weight_map": {key: names[k] for key, k in sorted(places.items())}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")
    return hashes, sums
