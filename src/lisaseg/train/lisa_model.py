"""The model of a run: opened for training, with adapters apart, what learns in float32 and what does not in the format that the recipe asks for.

What a checkpoint holds is never initialised anew: before the first step every tensor is, bit for bit, the one that was read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lisaseg.chat import ChatTemplate, get_template
from lisaseg.errors import ModelLoadError, UsageError
from lisaseg.model.assemble import load_published, model_folder
from lisaseg.model.checkpoint import LANGUAGE, load_language_model, load_strict
from lisaseg.model.config import LisaConfig
from lisaseg.model.lisa import LisaModel
from lisaseg.model.published import added_tokens, is_published
from lisaseg.model.quantize import import_bitsandbytes
from lisaseg.model.streaming import read_tensors, weight_files
from lisaseg.tokenization import TextTokenizer, Tokenizer
from lisaseg.train.lisa_config import LisaRecipe, ModelSettings

_MODULE = re.compile(re.escape(LANGUAGE) + r"(.+)\.lora_A\.weight$")


@dataclass
class Trainee:
    """A model that is ready to learn.

    family: "tiny" (weights folder beside a cached language model) or "llava" (published layout). folder: what it was opened from, for the export of
    config and tokenizer. added: added tokens and their ids ({} for "tiny", whose [SEG] stands outside the vocabulary).
    """

    model: LisaModel
    tokenizer: Tokenizer
    template: ChatTemplate
    family: str
    folder: Path
    added: dict[str, int]

    def learned(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that learns."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


class NewRows(nn.Module):
    """A table of the vocabulary (embedding or output layer) of which only some rows learn; those lie apart.

    Args:
        base: an `nn.Embedding` or a linear layer without bias; it is frozen.
        rows: indices of the rows that learn.
    """

    rows: Tensor

    def __init__(self, base: Any, rows: list[int]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.register_buffer("rows", torch.tensor(rows, device=base.weight.device), persistent=False)
        self.values = nn.Parameter(base.weight.detach()[rows].float().clone())

    @property
    def weight(self) -> Tensor:
        """The whole table as it is now, in the format of the base."""
        return self.base.weight.detach().index_copy(0, self.rows, self.values.detach().to(self.base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Ids (...) -> embeddings (..., D), or states (..., D) -> logits (..., V)."""
        out: Tensor = self.base(x)
        if not isinstance(self.base, nn.Embedding):
            return out.index_copy(-1, self.rows, (x @ self.values.to(x.dtype).T).to(out.dtype))
        for k, row in enumerate(self.rows.tolist()):
            out = torch.where((x == row)[..., None], self.values[k].to(out.dtype), out)
        return out


def open_trainee(recipe: LisaRecipe, device: torch.device) -> Trainee:
    """Open what a recipe starts from and make the parts trainable that it names.

    Args:
        recipe: the whole recipe.
        device: where a large model is put as it is read; lisa-tiny comes on the CPU.

    Raises:
        ModelLoadError: the start could not be had completely.
        UsageError: an option that this model does not have.
    """
    settings = recipe.model
    dtype = frozen_dtype(recipe)
    if settings.parts is not None:
        from lisaseg.train.lisa_parts import open_parts

        trainee = open_parts(settings.parts, dtype, device, settings, recipe.seed)
    else:
        folder = model_folder(str(settings.start), settings.offline)
        trainee = _open_published(folder, settings, dtype, device) if is_published(folder) else _open_tiny(folder, settings, dtype)
    torch.manual_seed(recipe.seed)  # new adapters
    _make_trainable(trainee, settings, dtype)
    if settings.gradient_checkpointing:
        trainee.model.vlm.language_model.activation_checkpointing_enable()
    return trainee


def frozen_dtype(recipe: LisaRecipe) -> torch.dtype:
    """Number format of what does not learn."""
    name = recipe.optim.precision if recipe.model.frozen == "auto" else recipe.model.frozen
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _open_published(folder: Path, settings: ModelSettings, dtype: torch.dtype, device: torch.device) -> Trainee:
    model, tokenizer = load_published(folder, dtype, device, settings.offline, settings.chat_template, settings.quantize)
    if settings.tokens == "all" and dtype != torch.float32:  # they learn, so they must not have been rounded on the way
        tables = {"model.embed_tokens.weight": model.vlm.language_model.get_input_embeddings()}
        tables["lm_head.weight"] = model.vlm.language_model.get_output_embeddings()
        for file in weight_files(folder)[0]:
            for key, tensor in read_tensors(file):
                if key in tables:
                    tables[key].weight.data = tensor.to(device, torch.float32, copy=True)
    return Trainee(model, tokenizer, get_template(model.config.chat_template), "llava", folder, added_tokens(folder))


def _open_tiny(folder: Path, settings: ModelSettings, dtype: torch.dtype) -> Trainee:
    """lisa-tiny or a descendant of it: its adapters stay adapters."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, file = LisaConfig.from_pretrained(folder), folder / "model.safetensors"
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file} is damaged: {error}.", next_step="Fetch it again.", code="weights_damaged") from error
    if settings.tokens == "all":
        raise UsageError('This model keeps its language model\'s tables as they are: model.tokens is "all".', next_step='Say tokens = "new".')
    if settings.quantize:
        raise UsageError("This model is small: quantize is for the large ones.", next_step="Leave model.quantize out.")
    language_model, language_folder = load_language_model(config.language_model, dtype, settings.offline)
    model = LisaModel(config, language_model).eval()
    adapters = {name: tensor for name, tensor in tensors.items() if name.startswith(LANGUAGE)}
    load_strict(model, {name: tensor for name, tensor in tensors.items() if name not in adapters}, file)
    model.vlm.set_compute_dtype(dtype)
    if adapters:
        _take_adapters(model, adapters, file, settings.lora.dropout)
    tokenizer = TextTokenizer(language_folder, model.vlm.seg_token_id, model.vlm.image_token_id)
    config.chat_template = settings.chat_template or config.chat_template
    config.read_as = config.read_as if settings.read_as is None else settings.read_as
    template = get_template(config.chat_template)
    return Trainee(model, tokenizer, template, "tiny", folder, {})


def _take_adapters(model: LisaModel, adapters: dict[str, Tensor], file: Path, dropout: float) -> None:
    """Put the adapters of a weight file beside the language model's maps, unmerged."""
    names = [match[1] for name in adapters if (match := _MODULE.match(name))]
    lora = model.config.lora or {}
    add_adapters(model, int(lora["rank"]), int(lora["alpha"]), dropout, "|".join(re.escape(name) for name in names))
    own = {name.replace(".default.weight", ".weight"): p for name, p in model.named_parameters() if "lora_" in name}
    wrong = sorted(set(own) ^ set(adapters)) or [name for name in own if own[name].shape != adapters[name].shape]
    if wrong:
        raise ModelLoadError(f"{file} does not fit the language model: {wrong[0]}.", next_step="Fetch the folder again.", code="tensors")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(adapters[name])


def add_adapters(model: LisaModel, rank: int, alpha: int, dropout: float, pattern: str) -> None:
    """LoRA on the maps of the language model whose names match, and only there; in float32, the second factor zero.

    Raises:
        UsageError: nothing matches.
    """
    if find_spec("bitsandbytes"):
        import_bitsandbytes()  # peft would, less quietly
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=pattern)
    try:
        inject_adapter_in_model(lora, model.vlm.language_model)
    except ValueError as error:
        raise UsageError(f"No adapters could be added: {error}.", next_step="See the names of the maps in model.lora.targets.") from error
    for name, p in model.vlm.language_model.named_parameters():
        if "lora_" in name:
            p.data = p.data.float()


def _make_trainable(trainee: Trainee, settings: ModelSettings, dtype: torch.dtype) -> None:
    model, language_model = trainee.model, trainee.model.vlm.language_model
    model.requires_grad_(False)
    has_adapters = any("lora_" in name for name, _ in language_model.named_parameters())
    if settings.quantize:
        language_model.is_loaded_in_4bit = True  # peft chooses its adapter by it
    if settings.lora.rank and not has_adapters:
        targets = "|".join(re.escape(target) for target in settings.lora.targets)
        add_adapters(model, settings.lora.rank, settings.lora.alpha, settings.lora.dropout, rf"model\.layers\.\d+\.\w+\.({targets})")
        if trainee.family == "tiny":
            model.config.lora = {"rank": settings.lora.rank, "alpha": settings.lora.alpha}
    for name, p in language_model.named_parameters():
        p.requires_grad_("lora_" in name and settings.lora.rank > 0)
    _open_rows(trainee, settings, dtype)
    sam = getattr(model.mask_decoder, "sam", None)
    if sam is not None and dtype == torch.float16:  # SAM's neck overflows in it
        keep_out_of_autocast(sam.vision_encoder.float())
    elif sam is not None:
        sam.vision_encoder.to(dtype)
    if settings.mask_decoder and sam is not None:
        model.mask_decoder.freeze_unreached()  # type: ignore[operator]
    elif settings.mask_decoder:
        model.mask_decoder.requires_grad_(True)
    model.seg_head.requires_grad_(settings.seg_head)
    if settings.neck:
        if trainee.family != "tiny":
            raise UsageError("This model has no neck to train.", next_step="Leave model.neck out.")
        for part in (model.vlm.vision.neck, model.vlm.vision.projector):  # type: ignore[union-attr]
            part.requires_grad_(True)  # type: ignore[operator]
    for p in trainee.learned().values():
        p.data = p.data.float()


def keep_out_of_autocast(module: nn.Module) -> None:
    """Have a module compute in the format of its weights, whatever is asked for around it."""
    compute = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(module.parameters()).device.type, enabled=False):
            return compute(*args, **kwargs)

    module.forward = forward  # type: ignore[method-assign]


def _open_rows(trainee: Trainee, settings: ModelSettings, dtype: torch.dtype) -> None:
    """Make the rows of the vocabulary trainable: all of them, or those of the new tokens."""
    vlm: Any = trainee.model.vlm
    if trainee.family == "tiny":  # [SEG] has rows of its own
        vlm.seg_in.requires_grad_(True)
        vlm.seg_out.requires_grad_(True)
        return
    language_model = vlm.language_model
    if settings.tokens == "new":
        for get, put in (("get_input_embeddings", "set_input_embeddings"), ("get_output_embeddings", "set_output_embeddings")):
            rows = NewRows(getattr(language_model, get)(), sorted(trainee.added.values()))
            rows.base.to(dtype)
            getattr(language_model, put)(rows)
        return
    table = language_model.get_input_embeddings().requires_grad_(True)
    language_model.get_output_embeddings().requires_grad_(True)
    if dtype != torch.float32:  # the table is float32 while it learns; what leaves it is as small as everything behind it
        table.register_forward_hook(lambda module, args, out: out.to(dtype))
