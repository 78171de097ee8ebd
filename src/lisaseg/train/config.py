"""What a training recipe may say: a TOML file checked by pydantic, so a wrong key is an error with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lisaseg.train.recipe import Strict, checked, read_recipe


class StageConfig(Strict):
    """One stage of training.

    Attributes:
        kind: "vision" (neck and mask decoder towards nouns), "text" (language model on scenes of nouns), "joint" (everything, on pictures).
        steps: optimiser steps. batch: pictures or scenes a step. queries: conversations a picture or scene at most.
        lr: peak learning rate; `vision_lr` for neck and decoder in the joint stage, 0 = they are frozen.
        warmup: steps of linear warm-up, then cosine to 5 %.
        trunk_lr: of EfficientNet in the stages that see pictures; 0 = the trunk is frozen. It needs `data.live`.
        text_share: share of text batches in the joint stage; text_batch: scenes in them (0 = `batch`).
        p_definition, p_absent, p_chat: mix of what is asked.
        p_category: share of the things of a picture that are asked for; p_referring: how often one of several of a name is asked for by its place
        or size. Both are there to leave a group of data out.
        p_implicit: share of texts that are implicit queries, not definitions (half of it where nothing fits).
        p_attribute: share of scenes where one thing alone has what is asked for. reason_share: share of pictures from `data.reason`.
        These three are 0 for a model that learns no reasoning query.
        noun_weight: weight of the noun-space losses.
        feature_dropout: at most this share of the trunk's channels and of YOLO's boxes is hidden in a picture, so that few pictures are not learned
        by heart (the strength differs from picture to picture, as in arXiv 2208.09910).
        absent_names: so many names a view that are not there prompt the decoder, whose estimate of its own IoU shall be 0 for them.
        score_weight: weight of that estimate.
    """

    kind: Literal["vision", "text", "joint"]
    steps: int = Field(gt=0)
    batch: int = Field(default=8, gt=0)
    queries: int = Field(default=4, gt=0)
    lr: float = Field(default=6e-4, gt=0)
    vision_lr: float = Field(default=3e-4, ge=0)
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    trunk_lr: float = Field(default=0.0, ge=0)
    text_share: float = 0.15
    text_batch: int = Field(default=0, ge=0)
    p_definition: float = 0.6
    p_absent: float = 0.15
    p_chat: float = 0.12
    p_category: float = Field(default=1.0, ge=0, le=1)
    p_referring: float = Field(default=0.25, ge=0, le=1)
    p_implicit: float = Field(default=0.0, ge=0, le=1)
    p_attribute: float = Field(default=0.0, ge=0, le=1)
    reason_share: float = Field(default=0.0, ge=0, le=1)
    noun_weight: float = 0.5
    feature_dropout: float = Field(default=0.0, ge=0, lt=1)
    absent_names: int = Field(default=0, ge=0)
    score_weight: float = Field(default=0.1, ge=0)


class DataConfig(Strict):
    """Where the training data is.

    Attributes:
        pool: folder with COCO-format files and images/. files: name -> number of views (1 plain, 2 also an augmented one).
        weights: name -> relative sampling weight of its pictures; "cutouts" names the composites.
        live: make every view anew in every step (for a GPU) instead of caching trunk features of fixed views.
        paste: share of live windows that get things of other pictures pasted into them. window: smallest live window, as a share of the area.
        reason: JSONL files with reasoning queries (lisaseg's native format), used by stages with a `reason_share`.
        cutouts: folder of cut-outs or None. composites: how many pictures are pasted together. wordnet: `dict` folder or None (usual places).
        nouns: how many of its nouns. base: folder with base archives.
        cache: folder for features and noun vectors that several runs may share; the run's own if None.
    """

    pool: Path
    files: dict[str, int]
    weights: dict[str, float]
    live: bool = False
    paste: float = Field(default=0.0, ge=0, le=1)
    window: float = Field(default=0.3, gt=0, le=0.9)
    reason: list[Path] = Field(default_factory=list)
    cutouts: Path | None = None
    composites: int = 0
    wordnet: str | None = None
    nouns: int = 6000
    base: Path
    cache: Path | None = None


class AskingConfig(Strict):
    """How the finished model is asked: settings of `LisaConfig`, where each is explained. None = the start model's, or `LisaConfig`'s default.

    They can be changed in the config.json of a model afterwards, too: nothing is learned with them.
    """

    candidates: int | None = Field(default=None, ge=0)
    prior_share: float | None = Field(default=None, ge=0, le=1)
    name_temperature: float | None = Field(default=None, gt=0)
    min_worth: float | None = None
    min_score: float | None = Field(default=None, ge=0)
    refusal_bias: float | None = None
    read_as: dict[str, list[str]] | None = None


class Recipe(Strict):
    """A whole recipe.

    Attributes:
        out: run folder. start: model folder of this kind whose parts the run starts from: `start_parts`, "vision" (trunk, neck, mask decoder) and
            "language" (adapters, projector, seg head, [SEG] rows).
        seg_hidden, seg_state: see `LisaConfig`.
        only: names of stages to run, all if empty; earlier ones are loaded from their checkpoints.
        device: "auto", "cpu", "cuda". threads: of torch on a CPU, 0 = its choice. workers: processes that prepare steps, 0 = none.
        minutes: stop after so long with a checkpoint, 0 = never; the same command goes on from there.
        asking: how the finished model is asked.
    """

    out: Path
    start: Path | None = None
    start_parts: tuple[Literal["vision", "language"], ...] = ("vision", "language")
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    workers: int = Field(default=0, ge=0)
    minutes: float = Field(default=0.0, ge=0)
    bf16: bool = True
    lora_rank: int = 16
    lora_alpha: int = 32
    seg_hidden: int = Field(default=576, ge=0)
    seg_state: Literal["emit", "at"] = "emit"
    save_every: int = 100
    log_every: int = 10
    only: list[str] = Field(default_factory=list)
    data: DataConfig
    stages: dict[str, StageConfig]
    asking: AskingConfig = Field(default_factory=AskingConfig)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe of stages with `key.path=value` overrides; `UsageError` names the file or key that is wrong, see `lisaseg.train.recipe`."""
    return checked(Recipe, read_recipe(path, overrides or []), path)
