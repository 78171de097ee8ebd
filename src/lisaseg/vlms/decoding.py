"""Greedy decoding with a KV cache: one prompt or many together, and how likely given answers are.

Shapes: Q conversations (rows), T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lisaseg.vlms.base import VisionLanguageModel

SegState = Literal["emit", "at"]


@dataclass
class Reading:
    """A prompt that the language model has read, and k tokens of an answer. cache: keys and values of all. states (1 + k, D): of the last token
    of the prompt and of each token of the answer."""

    cache: Any
    states: Tensor


@dataclass
class Generation:
    """What one row generated.

    ids: new token ids, the stop token included if it was reached. states: (n_seg, D) one for each generated `[SEG]`. finished: False = length limit.
    reading: the prompt and all of `ids` but the last, if they were read alone, for whoever wants to know what else could have been answered.
    """

    ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    finished: bool = False
    reading: Reading | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Rules:
    """How to decode.

    stop_id: token that ends an answer. max_new_tokens: length limit.
    seg_id, seg_state: which state prompts a mask: the one that emitted `[SEG]` ("emit") or the one at its position ("at").
    ban: ids that are never generated. bias: id -> number added to its logit at the first new token only.
    on_token: called with (row, id) for each new token.
    draft: new ids so far -> a guess at the next ones, perhaps empty. A guess is read together with the token before it and kept as far as greedy
        decoding says the same (speculative decoding, arXiv 2211.17192), so it changes nothing but the number of passes. Heard for single rows only.
    """

    stop_id: int
    max_new_tokens: int
    seg_id: int
    seg_state: SegState = "emit"
    ban: Sequence[int] = ()
    bias: dict[int, float] | None = None
    on_token: Callable[[int, int], None] | None = None
    draft: Callable[[list[int]], list[int]] | None = None

    def scores(self, vlm: VisionLanguageModel, hidden: Tensor, first: int) -> Tensor:
        """Scores of the tokens that follow states (n, D): (n, V) float32. first: so many of the states, from the front, emit a first new token."""
        scores = vlm.logits(hidden).float()
        if self.ban:
            scores[:, list(self.ban)] = float("-inf")
        for token, value in (self.bias or {}).items():
            scores[:first, token] += value
        return scores

    def take(self, row: Generation, place: int, token: int, hidden: Tensor) -> None:
        """Append a token that the state `hidden` (D,) emitted."""
        row.ids.append(token)
        row.finished = token == self.stop_id
        if token == self.seg_id and self.seg_state == "emit":
            row.states.append(hidden)
        if self.on_token is not None:
            self.on_token(place, token)

    def passed(self, row: Generation, hidden: Tensor) -> None:
        """`hidden` (D,) is the state at the position of the row's last token."""
        if self.seg_state == "at" and row.ids and row.ids[-1] == self.seg_id:
            row.states.append(hidden)


def decode_one(vlm: VisionLanguageModel, prompt_TD: Tensor, rules: Rules) -> Generation:
    """Greedy decoding of one prompt; what `rules.draft` guesses is checked in the same pass."""
    row, guess, states = Generation(), _guess(rules, []), []
    cache, feed, over = _new_cache(), prompt_TD, False
    if guess:
        feed = torch.cat([feed, vlm.embed_ids(torch.tensor(guess, device=feed.device)).to(feed.dtype)])
    while not over:
        start, taken = cache.get_seq_length(), len(row.ids)
        position = torch.arange(start, start + len(feed), device=feed.device)[None]
        hidden = vlm.hidden_states(feed[None], None, position, cache)[0, -1 - len(guess) :]  # each but the last emits a token of the guess
        over = _follow(row, guess, hidden, rules.scores(vlm, hidden, 0 if taken else 1).argmax(-1).tolist(), rules)
        states.append(hidden[: len(row.ids) - taken])
        cache.crop(len(prompt_TD) + len(row.ids) - 1 - cache.get_seq_length())  # what was read of a wrong guess, or of the last token
        guess = _guess(rules, row.ids)
        feed = vlm.embed_ids(torch.tensor([row.ids[-1], *guess], device=feed.device))
    row.reading = Reading(cache, torch.cat(states))
    return row


def _guess(rules: Rules, ids: list[int]) -> list[int]:
    room = rules.max_new_tokens - len(ids) - 1
    return rules.draft(ids)[:room] if rules.draft is not None and room > 0 else []


def _follow(row: Generation, guess: Sequence[int], hidden: Tensor, new: Sequence[int], rules: Rules) -> bool:
    """Take the tokens `new` as far as the guess went right, and one more; True if the row is over."""
    for k, token in enumerate(new):
        rules.passed(row, hidden[k])
        if len(row.ids) == rules.max_new_tokens:
            return True
        rules.take(row, 0, token, hidden[k])
        if row.finished:
            return True
        if k < len(guess) and token != guess[k]:
            return False
    state_to_come = rules.seg_state == "at" and row.ids[-1] == rules.seg_id
    return len(row.ids) == rules.max_new_tokens and not state_to_come


def decode_many(vlm: VisionLanguageModel, prompts: Sequence[Tensor], rules: Rules, use_cache: bool = True) -> list[Generation]:
    """Greedy decoding of Q prompts (T, D) of any lengths, together. use_cache: False re-runs whole prompts at each step; same result, slower."""
    rows = [Generation() for _ in prompts]
    feed, mask = left_pad(prompts)
    cache = _new_cache() if use_cache else None
    for step in range(rules.max_new_tokens + 1):
        position = (mask.cumsum(1) - 1).clamp(min=0)
        hidden = vlm.hidden_states(feed, mask, position[:, -feed.shape[1] :], cache)[:, -1]  # (Q, D)
        going = [r for r, row in enumerate(rows) if not row.finished]
        for r in going:
            rules.passed(rows[r], hidden[r])
        if step == rules.max_new_tokens:
            break
        new = rules.scores(vlm, hidden, len(rows) if step == 0 else 0).argmax(-1)
        for r in going:
            rules.take(rows[r], r, int(new[r]), hidden[r])
        if all(row.finished for row in rows):
            break
        step_embeds = vlm.embed_ids(new)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        feed = step_embeds if cache is not None else torch.cat([feed, step_embeds], 1)
    return rows


def read(vlm: VisionLanguageModel, prompt_TD: Tensor) -> Reading:
    """Read a prompt (T, D)."""
    cache = _new_cache()
    hidden = vlm.hidden_states(prompt_TD[None], None, torch.arange(len(prompt_TD), device=prompt_TD.device)[None], cache)
    return Reading(cache, hidden[0, -1:])


def score(vlm: VisionLanguageModel, reading: Reading, continuations: Sequence[Sequence[int]], after: int = 0) -> tuple[Tensor, Tensor]:
    """How likely each of n continuations of a prompt and the first `after` tokens of the answer is; what was read is not read again.

    Returns:
        log probability (n, L) of every token, 0 behind its end; the states (n, D) that emitted their last tokens.
    """
    n, device = len(continuations), reading.states.device
    lengths = torch.tensor([len(c) for c in continuations], device=device)
    longest = int(lengths.max())
    ids = torch.tensor([[*c, *([0] * (longest - len(c)))] for c in continuations], device=device)
    hidden = reading.states[after].expand(n, 1, -1)
    if longest > 1:
        cache = copy.deepcopy(reading.cache)
        cache.crop(after + 1 - len(reading.states))
        t = cache.get_seq_length()
        cache.batch_repeat_interleave(n)
        inside = torch.arange(longest - 1, device=device)[None] < lengths[:, None]
        mask = torch.cat([torch.ones(n, t, device=device, dtype=torch.long), inside.long()], 1)
        position = torch.arange(t, t + longest - 1, device=device).expand(n, -1)
        hidden = torch.cat([hidden, vlm.hidden_states(vlm.embed_ids(ids[:, :-1]), mask, position, cache)], 1)  # (n, L, D): each predicts its token
    logp = vlm.logits(hidden).float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    logp = logp * (torch.arange(longest, device=device)[None] < lengths[:, None])
    return logp, hidden[torch.arange(n, device=device), lengths - 1]


def left_pad(embeds: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts (T_q, D) of different lengths -> (Q, T, D) with zeros in front and a mask (Q, T) of 0 and 1."""
    longest = max(len(e) for e in embeds)
    padded = torch.stack([torch.cat([e.new_zeros(longest - len(e), e.shape[-1]), e]) for e in embeds])
    mask = torch.tensor([[0] * (longest - len(e)) + [1] * len(e) for e in embeds], device=padded.device)
    return padded, mask


def _new_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()
