"""What every vision-language family shares: image tokens in place, hidden states, decoding.

Shapes: B images, Q conversations (rows), T tokens, D hidden, N masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lisaseg.imaging import Placement
from lisaseg.vlms.decoding import Generation, Reading, Rules, SegState, decode_many, decode_one, read, score


@dataclass
class ImageContext:
    """B encoded pictures. tokens (B, T_image, D) for the language model; maps: what the family's tower offers to the mask decoder.

    `maps` has `split() -> list` (one picture each) and the class method `join(list)`; None = the mask decoder looks at the pixels itself.
    """

    tokens: Tensor
    maps: Any

    def split(self) -> list[ImageContext]:
        """One context for each picture, a copy: a view would keep the whole batch in memory as long as one picture is remembered."""
        if len(self.tokens) == 1:
            return [self]
        maps = [None] * len(self.tokens) if self.maps is None else self.maps.split()
        return [ImageContext(t[None].clone(), m) for t, m in zip(self.tokens, maps, strict=True)]

    @classmethod
    def join(cls, contexts: Sequence[ImageContext]) -> ImageContext:
        """The contexts of several pictures as one."""
        if len(contexts) == 1:
            return contexts[0]
        first = contexts[0].maps
        return cls(torch.cat([c.tokens for c in contexts]), None if first is None else type(first).join([c.maps for c in contexts]))


class VisionLanguageModel(nn.Module):
    """Base of all families.

    Subclasses set `language_model` (a transformers causal LM), `image_token_id`, `seg_token_id`, `n_image_tokens`, `hidden_size`, and implement
    `preprocess` and `encode_image`; they may override `embed_ids` and `logits` if `[SEG]` has a row of its own outside the vocabulary.
    """

    family: ClassVar[str]
    language_model: Any
    image_token_id: int
    seg_token_id: int
    n_image_tokens: int
    hidden_size: int

    @classmethod
    def build(cls, language_model: Any, config: Any) -> VisionLanguageModel:
        """The family with the arguments that a `LisaConfig` holds; override it if the family needs more of the config than `config.vlm`."""
        return cls(language_model, **{k: v for k, v in config.vlm.items() if k != "family"})  # type: ignore[call-arg]

    def preprocess(self, rgb: np.ndarray) -> tuple[dict[str, Tensor], Placement | None]:
        """uint8 (H, W, 3) -> tensors of one picture, without batch axis, for `encode_image`; and where the picture lies on the canvas.

        None instead of a placement if the mask decoder has pixels and a canvas of its own.
        """
        raise NotImplementedError

    def encode_image(self, inputs: dict[str, Tensor]) -> ImageContext:
        """Stacked outputs of `preprocess` -> tokens and maps of B pictures."""
        raise NotImplementedError

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Put frozen towers into `dtype`; the language model comes in it already. Nothing by default."""

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Token ids (any shape) -> embeddings (..., D); image placeholders may give anything."""
        return self.language_model.get_input_embeddings()(ids).to(ids.device)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Last-layer states (..., D) -> scores over the vocabulary (..., V), `[SEG]` at index `seg_token_id`."""
        return self.language_model.get_output_embeddings()(hidden).to(hidden.device)  # type: ignore[no-any-return]

    def embed(self, ids_QT: Tensor, tokens: Tensor, image_index_Q: Tensor) -> Tensor:
        """Put the picture's tokens where `ids` holds the image id: one index space, no offset. tokens (B, T_image, D) -> (Q, T, D)."""
        embeds = self.embed_ids(ids_QT)
        slot = ids_QT == self.image_token_id
        counts = slot.sum(1)
        if bool(((counts != 0) & (counts != tokens.shape[1])).any()):
            raise ValueError(f"A row has {counts.tolist()} image slots, {tokens.shape[1]} or 0 are legal.")
        rows = tokens[image_index_Q[counts > 0]].reshape(-1, tokens.shape[-1]).to(embeds.dtype)
        return embeds.masked_scatter(slot[..., None].expand_as(embeds), rows)

    def hidden_states(self, embeds: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: Any = None) -> Tensor:
        """Last-layer states after the final norm: (Q, T, D) -> (Q, T, D)."""
        out = self.language_model.model(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache, use_cache=cache is not None
        )
        return out.last_hidden_state.to(embeds.device)  # type: ignore[no-any-return] # its last layer may be on another device

    @torch.no_grad()
    def generate(
        self,
        embeds: Sequence[Tensor],
        *,
        stop_id: int,
        max_new_tokens: int,
        seg_state: SegState = "emit",
        ban: Sequence[int] = (),
        bias: dict[int, float] | None = None,
        on_token: Callable[[int, int], None] | None = None,
        draft: Callable[[list[int]], list[int]] | None = None,
        use_cache: bool = True,
    ) -> list[Generation]:
        """Greedy decoding of Q prompts of any lengths, together. embeds: one (T, D) prompt for each row; the others: see `decoding.Rules`."""
        rules = Rules(stop_id, max_new_tokens, self.seg_token_id, seg_state, ban, bias, on_token, draft)
        if len(embeds) == 1 and use_cache:
            return [decode_one(self, embeds[0], rules)]
        return decode_many(self, embeds, rules, use_cache)

    def seen_names(self, context: ImageContext, k: int) -> list[int]:
        """Indices in the config's `nouns` of the k names that the tower sees most clearly in one picture; none if the family has no such list."""
        return []

    @torch.no_grad()
    def read(self, prompt_TD: Tensor) -> Reading:
        """Read a prompt (T, D) once, for `score_continuations`."""
        return read(self, prompt_TD)

    @torch.no_grad()
    def score_continuations(self, reading: Reading, continuations: Sequence[Sequence[int]], after: int = 0) -> tuple[Tensor, Tensor]:
        """How likely each of n continuations of a prompt and the first `after` tokens of its answer is: log p (n, L) of each token, 0 behind its end,
        and the states (n, D) that emitted their last tokens."""
        return score(self, reading, continuations, after)
