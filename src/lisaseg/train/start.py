"""Where a run of lisa-tiny starts: the base archives, or parts of a model folder of the same kind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from lisaseg.errors import TrainingError
from lisaseg.model.assemble import model_folder, read_tiny_config
from lisaseg.model.config import LisaConfig
from lisaseg.model.lisa import LisaModel
from lisaseg.train.config import AskingConfig

_LANGUAGE = ("vlm.language_model.", "vlm.vision.projector.", "seg_head.", "vlm.seg_in", "vlm.seg_out")


def start_config(start: Path) -> LisaConfig:
    """What the model that a run starts from says of itself.

    Raises:
        ModelLoadError: it is no model folder.
        TrainingError: it is a model of another kind.
    """
    config = read_tiny_config(model_folder(start))
    if config.vlm.get("family") != "tiny":
        raise TrainingError(f"start={start} is not a model of lisa-tiny's kind.", next_step="Fine-tune other models with recipes/finetune.toml.")
    return config


# how a model is asked, not what it has learned: a run that goes on from a whole model keeps it
ASKED = (*AskingConfig.model_fields, "evaluation_answer")


def keep_settings(config: LisaConfig, start: LisaConfig) -> None:
    """Give a new model the settings of answering of the model that it goes on from."""
    for key in ASKED:
        setattr(config, key, getattr(start, key))


def start_from(model: LisaModel, start: Path, parts: Sequence[str]) -> None:
    """Copy parts of a model folder into a new model with adapters: "vision" (trunk, neck, mask decoder), "language" (all else that was trained).

    Raises:
        TrainingError: a tensor of these parts is missing or has another shape, as when rank or seg head of the recipe differ.
    """
    file = model_folder(start) / "model.safetensors"
    tensors = load_file(file)
    own = {name.replace(".default.weight", ".weight"): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    own = {name: tensor for name, tensor in own.items() if "lora_" in name or not name.startswith("vlm.language_model.")}
    wanted = {name: tensor for name, tensor in own.items() if ("language" if name.startswith(_LANGUAGE) else "vision") in parts}
    wrong = [name for name, tensor in wanted.items() if name not in tensors or tensors[name].shape != tensor.shape]
    if wrong:
        raise TrainingError(
            f"{file}: {wrong[0]} is missing or has another shape than this recipe's model.",
            next_step="Give the recipe the lora_rank and seg_hidden of that model, or take less of it with start_parts.",
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name].to(tensor.dtype))


def check_space(neck_nouns: Tensor, space_nouns: Tensor, start: Path) -> None:
    """A model lives in the noun space of its training: the vectors (V, C) of its own names must be those of this run's space.

    Raises:
        TrainingError: they are not.
    """
    cosine = F.cosine_similarity(neck_nouns.float(), space_nouns.float().to(neck_nouns.device), dim=-1)
    if len(cosine) and float(cosine.median()) < 0.99:
        raise TrainingError(
            f"The noun space of this run is not the one that {start} was trained in (median cosine of its names {float(cosine.median()):.2f}).",
            next_step="Use the data.nouns and data.wordnet of its recipe, or the noun_space.safetensors of its run in data.cache.",
        )


def fingerprint(module: nn.Module) -> str:
    """12 hex digits that differ when any weight differs: names the folder of a trunk's features."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
