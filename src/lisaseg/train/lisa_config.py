"""What a recipe with `kind = "lisa"` may say: training of a LISA from its parts, and fine-tuning of any model that `lisaseg.load` opens.

The defaults are the paper's where the paper says something (arXiv 2308.00692, section 4.1, and the released training script).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from lisaseg.datasets.mixture import PAPER_RATES, PAPER_SETS
from lisaseg.train.recipe import Strict


class Parts(Strict):
    """What the paper starts from.

    Attributes:
        llava: folder or hub id of LLaVA (a LLaMA with its projector and tokenizer).
        sam: weight file of SAM, with the names of the original release ("sam_vit_h_4b8939.pth").
        clip: folder or hub id of the vision tower; None = the one that LLaVA's config names.
        sam_config: JSON file with SAM's sizes; None = ViT-H.
    """

    llava: str
    sam: Path
    clip: str | None = None
    sam_config: Path | None = None


class LoraSettings(Strict):
    """Adapters on the language model. rank 0 = none. A model that has adapters already (lisa-tiny) goes on with its own; only `dropout` counts then.

    targets: names of the linear maps of a layer, for example q_proj.
    """

    rank: int = Field(default=8, ge=0)
    alpha: int = Field(default=16, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: list[str] = Field(default=["q_proj", "v_proj"])


class ModelSettings(Strict):
    """Where training starts, and what learns.

    Attributes:
        start: what `lisaseg.load` takes: "lisa-tiny", a folder, a hub id; or leave it out and give `parts`.
        lora: adapters of the language model.
        tokens: "all" rows of the embedding and of the output layer, as the paper; or only those of the "new" tokens ([SEG] and the like).
        seg_head, mask_decoder: learn or stay as they are. neck: lisa-tiny's neck and projector learn, too.
        frozen: number format of what does not learn, "float32" or "bfloat16"; "auto" = that of `precision`. SAM's encoder is never put into float16.
        quantize: "4bit": the language model's frozen weights as NF4 (bitsandbytes), as QLoRA does.
        gradient_checkpointing: compute the language model's activations again in the backward pass instead of keeping them.
        chat_template: see `lisaseg.chat`; None = the model's own.
        read_as: see `LisaConfig`; None = the model's own. lisa-tiny reads "woman" as "person": {} lets it learn the difference.
        offline: open no network connection.
    """

    start: str | None = None
    parts: Parts | None = None
    lora: LoraSettings = LoraSettings()
    tokens: Literal["all", "new"] = "all"
    seg_head: bool = True
    mask_decoder: bool = True
    neck: bool = False
    frozen: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Literal["4bit"] | None = None
    gradient_checkpointing: bool = False
    chat_template: str | None = None
    read_as: dict[str, list[str]] | None = None
    offline: bool = False

    @model_validator(mode="after")
    def _one_start(self) -> ModelSettings:
        if (self.start is None) == (self.parts is None):
            raise ValueError("give either model.start or model.parts")
        return self


class JsonlSettings(Strict):
    """A file in lisaseg's own format (docs/formats.md). rate: relative to the other groups'."""

    path: Path
    rate: float = Field(default=1, gt=0)


class DataSettings(Strict):
    """What is learned.

    Attributes:
        root: folder laid out as for the reference implementation; `lisaseg data check ROOT` says what is there.
        sets: group -> names of registered sets, read from `root`. rates: group -> rate. splits: set -> split, if not its training split.
        jsonl: name -> a file of yours.
        questions: most questions about one picture.
        explanation: of pictures with an explanation, the share that is answered by it alone, without a mask; -1 = explanations are not used.
        templates: "lisa" = the reference's questions and answers; "named" = lisa-tiny's: plainer questions, "It is the dog [SEG].".
        max_text_tokens: a conversation is cut behind so many tokens (the picture's not counted); a mask whose [SEG] is cut off is left out.
        loss_side: longest side, in pixels, at which masks are compared with logits; 0 = the picture's own size, as LISA does.
        skip_faults: pass over samples that are wrong, count and report them; false = stop at the first, with its file and line.
        workers: processes that read ahead; 0 = read in the training process.
    """

    root: Path | None = None
    sets: dict[str, list[str]] = Field(default_factory=dict)
    rates: dict[str, float] = Field(default_factory=lambda: dict(PAPER_RATES))
    splits: dict[str, str] = Field(default_factory=dict)
    jsonl: dict[str, JsonlSettings] = Field(default_factory=dict)
    questions: int = Field(default=3, gt=0)
    explanation: float = Field(default=0.1, ge=-1, le=1)
    templates: Literal["lisa", "named"] = "lisa"
    max_text_tokens: int = Field(default=257, ge=16)
    loss_side: int = Field(default=0, ge=0)
    skip_faults: bool = False
    workers: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _something(self) -> DataSettings:
        if self.root is not None and not self.sets:
            self.sets = {group: list(names) for group, names in PAPER_SETS.items()}
        if not self.sets and not self.jsonl:
            raise ValueError("give root (with sets) or jsonl")
        if self.sets and self.root is None:
            raise ValueError("sets need root")
        unknown = [group for group in self.sets if group not in self.rates]
        if unknown:
            raise ValueError(f"the groups {unknown} of sets have no entry in rates")
        return self


class OptimSettings(Strict):
    """AdamW, linear warm-up, linear decay to 0.

    Attributes:
        steps: optimiser steps. batch: pictures a process at a time. accumulation: such batches a step; the effective batch is
            batch x accumulation x processes.
        lr: peak. warmup: steps. clip: largest norm of the gradient. precision: what matrices are multiplied in.
    """

    steps: int = Field(default=10_000, gt=0)
    batch: int = Field(default=2, gt=0)
    accumulation: int = Field(default=10, gt=0)
    lr: float = Field(default=3e-4, gt=0)
    warmup: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"


class ProbeSettings(Strict):
    """A small fixed set that is measured (teacher-forced) at step 0 and every `every` steps: [SEG] accuracy and IoU.

    Attributes:
        every: steps between two measurements; 0 = none.
        size: number of pictures.
        jsonl: a file to take them from; None = pictures of the training data, asked in a fixed way.
        patience: stop with a message if after so many steps neither number has risen above what it was at step 0; 0 = never.
    """

    every: int = Field(default=500, ge=0)
    size: int = Field(default=16, gt=0)
    jsonl: Path | None = None
    patience: int = Field(default=1500, ge=0)


class LisaRecipe(Strict):
    """A whole recipe.

    Attributes:
        out: run folder. seed: of every draw.
        device: "auto" (an accelerator if there is one) or "cpu".
        parallel: with several processes: "ddp" (a copy of everything on each), "fsdp" (parameters, gradients and optimiser shared out) or "deepspeed"
            (ZeRO-2: gradients and optimiser shared out; `accelerate launch --use_deepspeed` sets it, too).
        save_every: steps between checkpoints. keep: how many of the newest stay, beside the best one. log_every: steps between lines of the log.
    """

    kind: Literal["lisa"]
    out: Path
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu"] = "auto"
    parallel: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    save_every: int = Field(default=500, gt=0)
    keep: int = Field(default=2, gt=0)
    log_every: int = Field(default=10, gt=0)
    model: ModelSettings
    data: DataSettings
    optim: OptimSettings = OptimSettings()
    probe: ProbeSettings = ProbeSettings()

    @model_validator(mode="after")
    def _fits(self) -> LisaRecipe:
        if self.parallel == "fsdp" and self.model.quantize:
            raise ValueError('parallel = "fsdp" cannot share out quantised weights: use "ddp"')
        if self.parallel != "ddp" and self.optim.precision == "float16":
            raise ValueError(f'parallel = "{self.parallel}" needs precision "bfloat16" or "float32"')
        return self
