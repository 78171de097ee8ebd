"""Configuration of a lisaseg model: which parts, which conventions."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class LisaConfig(PreTrainedConfig):  # type: ignore[misc]
    """What a checkpoint's config.json says.

    Args:
        vlm: {"family": name, ...arguments of the family}.
        mask_decoder: {"family": name, ...arguments}.
        prompt_width: C, what the seg head gives to the mask decoder.
        seg_hidden: width of the seg head's hidden layer; 0 = one linear layer.
        seg_state: "emit" = the mask prompt is the state that emitted `[SEG]` (published LISA checkpoints); "at" = the state at its position.
        chat_template: name in `lisaseg.chat.TEMPLATES`.
        prompt_style: "lisa", or "lisa_plus": the checkpoint knows the sentences that tell it its task (`lisaseg.prompts.TASKS`).
        refusal_bias: added to the logit of a refusal's first word in mode "auto": trades false refusals against false masks.
        candidates: how many of the names that the tower sees an answer "It is the NAME [SEG]." is weighed against; 0 = plain greedy decoding.
        prior_share: how much of a name's likelihood without a question is taken off when it is weighed, [0, 1] (see `weigh_names`).
        name_temperature: by how much the language model is too sure of its names (see `weigh_names`), above 0.
        min_score: in the modes "auto" and "explain" an answer whose every mask scores less than this (the decoder's estimate of its own IoU,
            [0, 1]) becomes a refusal: the decoder found nothing that looks like the prompt.
        min_worth: in these modes an answer "It is the NAME [SEG]." whose best name is worth less than this (see `weigh_names`) becomes a refusal,
            too; None = never.
        read_as: words of an instruction that are read as another, {"person": ["woman", "man"]}: those between which a small model cannot tell.
        evaluation_answer: what teacher-forced evaluation puts into the model's mouth, one `[SEG]`; "[SEG]." for the published checkpoints.
        trained_on: data sets that the model has seen, [{"name", "split", perhaps "data_hash"}, ...]; evaluation compares its data with them.
        loss_weights: {"ce", "bce", "dice"}; the paper's are 1, 2, 0.5.
        lora: {"rank", "alpha"} of the adapters that the weight file holds, or None if they are merged.
        language_model: name of the language model in the weights cache, or None if the weight file holds it.
        nouns: names of the vision tower's vocabulary.
    """

    model_type = "lisaseg"

    def __init__(
        self,
        vlm: dict[str, Any] | None = None,
        mask_decoder: dict[str, Any] | None = None,
        prompt_width: int = 256,
        seg_hidden: int = 576,
        seg_state: str = "emit",
        chat_template: str = "chatml",
        prompt_style: str = "lisa",
        refusal_bias: float = 0.0,
        min_score: float = 0.0,
        candidates: int = 0,
        prior_share: float = 0.0,
        name_temperature: float = 1.5,
        min_worth: float | None = None,
        read_as: dict[str, list[str]] | None = None,
        evaluation_answer: str = "It is [SEG].",
        trained_on: list[dict[str, str]] | None = None,
        loss_weights: dict[str, float] | None = None,
        lora: dict[str, Any] | None = None,
        language_model: str | None = None,
        language_config: dict[str, Any] | None = None,
        nouns: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vlm = vlm or {"family": "tiny"}
        self.mask_decoder = mask_decoder or {"family": "tiny"}
        self.prompt_width, self.seg_hidden, self.seg_state = prompt_width, seg_hidden, seg_state
        self.chat_template, self.refusal_bias, self.min_score = chat_template, refusal_bias, min_score
        self.candidates, self.prior_share, self.prompt_style = candidates, prior_share, prompt_style
        self.name_temperature, self.min_worth = name_temperature, min_worth
        self.read_as = read_as or {}
        self.evaluation_answer, self.trained_on = evaluation_answer, trained_on
        self.loss_weights = loss_weights or {"ce": 1.0, "bce": 2.0, "dice": 0.5}
        self.lora, self.language_model, self.language_config = lora, language_model, language_config
        self.nouns = nouns or []
        super().__init__(**kwargs)
