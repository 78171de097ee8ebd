"""What every vision-language family shares: image tokens in place, hidden states, greedy generation with a KV cache.

Shapes: B images, Q conversations (rows), T tokens, D hidden, N masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lisaseg.imaging import Placement

SegState = Literal["emit", "at"]


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


@dataclass
class Generation:
    """What one row generated.

    ids: new token ids, the stop token included if it was reached. states: (n_seg, D) one for each generated `[SEG]`. finished: False = length limit.
    """

    ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    finished: bool = False


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
        use_cache: bool = True,
    ) -> list[Generation]:
        """Greedy decoding of Q prompts of any lengths, together.

        Args:
            embeds: one (T, D) prompt for each row.
            stop_id: token that ends an answer.
            seg_state: which state prompts the mask: the one that emitted `[SEG]` ("emit") or the one at its position ("at").
            ban: ids that are never generated. bias: id -> number added to its logit at the first new token only.
            on_token: called with (row, id) for each new token.
            use_cache: False re-runs the whole prompt at each step; same result, slower.
        """
        from transformers import DynamicCache

        rows = [Generation() for _ in embeds]
        feed, mask = left_pad(embeds)
        cache = DynamicCache() if use_cache else None
        waiting: list[int] = []  # rows whose last token is a [SEG] with its own state still to come ("at")
        for step in range(max_new_tokens + 1):
            position = (mask.cumsum(1) - 1).clamp(min=0)
            hidden = self.hidden_states(feed, mask, position[:, -feed.shape[1] :], cache)[:, -1]  # (Q, D)
            for r in waiting:
                rows[r].states.append(hidden[r])
            waiting = []
            if step == max_new_tokens or all(row.finished for row in rows):
                break
            scores = self._scores(hidden, ban, bias if step == 0 else None)
            new = scores.argmax(-1)
            for r, token in enumerate(new.tolist()):
                if rows[r].finished:
                    continue
                rows[r].ids.append(token)
                rows[r].finished = token == stop_id
                if token == self.seg_token_id and seg_state == "emit":
                    rows[r].states.append(hidden[r])
                elif token == self.seg_token_id:
                    waiting.append(r)
                if on_token is not None:
                    on_token(r, token)
            if all(row.finished for row in rows):
                break
            step_embeds = self.embed_ids(new)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            feed = step_embeds if cache is not None else torch.cat([feed, step_embeds], 1)
        return rows

    def _scores(self, hidden_QD: Tensor, ban: Sequence[int], bias: dict[int, float] | None) -> Tensor:
        """Scores of the next token of each row: (Q, V) float32."""
        scores = self.logits(hidden_QD).float()
        if ban:
            scores[:, list(ban)] = float("-inf")
        for token, value in (bias or {}).items():
            scores[:, token] += value
        return scores

    def seen_names(self, context: ImageContext, k: int) -> list[int]:
        """Indices in the config's `nouns` of the k names that the tower sees most clearly in one picture; none if the family has no such list."""
        return []

    @torch.no_grad()
    def score_continuations(self, prompt_TD: Tensor, continuations: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """How likely each continuation of one prompt is: log probability of every token (n, L), 0 behind its end, and the states (n, D) that emitted
        their last tokens. The prompt is read once for all."""
        from transformers import DynamicCache

        n, device = len(continuations), prompt_TD.device
        lengths = torch.tensor([len(c) for c in continuations], device=device)
        longest = int(lengths.max())
        ids = torch.tensor([[*c, *([0] * (longest - len(c)))] for c in continuations], device=device)
        cache = DynamicCache()
        t = len(prompt_TD)
        first = self.hidden_states(prompt_TD[None], None, torch.arange(t, device=device)[None], cache)[:, -1:]
        cache.batch_repeat_interleave(n)
        inside = torch.arange(longest - 1, device=device)[None] < lengths[:, None]
        mask = torch.cat([torch.ones(n, t, device=device, dtype=torch.long), inside.long()], 1)
        position = torch.arange(t, t + longest - 1, device=device).expand(n, -1)
        rest = self.hidden_states(self.embed_ids(ids[:, :-1]), mask, position, cache)
        hidden = torch.cat([first.expand(n, -1, -1), rest], 1)  # (n, L, D): each predicts the token of its place
        logp = self.logits(hidden).float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        logp = logp * (torch.arange(longest, device=device)[None] < lengths[:, None])
        return logp, hidden[torch.arange(n, device=device), lengths - 1]


def left_pad(embeds: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts (T_q, D) of different lengths -> (Q, T, D) with zeros in front and a mask (Q, T) of 0 and 1."""
    longest = max(len(e) for e in embeds)
    padded = torch.stack([torch.cat([e.new_zeros(longest - len(e), e.shape[-1]), e]) for e in embeds])
    mask = torch.tensor([[0] * (longest - len(e)) + [1] * len(e) for e in embeds], device=padded.device)
    return padded, mask
