"""From a question about an encoded picture to an answer in tokens and masks.

Shapes: N masks, D hidden, H x W the picture's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lisaseg import prompts
from lisaseg.chat import Conversation, get_template, read_as, render
from lisaseg.imaging import Picture, Placement
from lisaseg.model.lisa import LisaModel
from lisaseg.model.weighing import Asked, Priors, weigh_names
from lisaseg.tokenization import Tokenizer
from lisaseg.types import SEG_TEXT, Mode, Turn
from lisaseg.vlms.base import ImageContext
from lisaseg.vlms.decoding import Generation, left_pad

MAX_SEGMENTS = 16  # masks of one answer: a model that repeats [SEG] must not fill the memory
LONGEST_NAME = 6  # tokens of a name behind which "[SEG]." is still guessed


@dataclass
class Encoded:
    """A picture that the model has looked at.

    features: mask features, made when the first mask is needed. placement: where the picture lies on the canvas of the masks; None until then if the
    mask decoder has pixels of its own. priors: see `weigh_names`.
    """

    picture: Picture
    placement: Placement | None
    context: ImageContext
    features: Any = field(default=None)
    priors: Priors = field(default_factory=dict)


@dataclass
class Job:
    """One checked question on its way: picture, conversation with an open turn, mode, prompt ids; `encoded` follows once all are checked."""

    picture: Picture
    conversation: Conversation
    mode: Mode
    ids: list[int]
    instruction: str
    encoded: Encoded = field(init=False)


class Answering:
    """A model with its tokenizer and chat template."""

    def __init__(self, model: LisaModel, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.template = get_template(model.config.chat_template)
        self.stop_id = tokenizer.special(self.template.end)
        self._opening = tokenizer.plain(prompts.NAMED_OPENING) if model.config.nouns else []  # such a model names what it draws
        unnamed = [self._answer_ids(text.format(seg=SEG_TEXT)) for text in prompts.UNNAMED_ANSWERS]
        self._usual = [self._opening, *unnamed, self._answer_ids(prompts.NO_TARGET)]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Ids of a conversation with an open or a closed turn, the picture's slot expanded."""
        conversation = conversation.read_as(self.model.config.read_as)
        return self.tokenizer.encode(render(conversation, self.template), self.model.vlm.n_image_tokens).ids

    def answer(self, jobs: Sequence[Job], max_new_tokens: int, on_text: Callable[[int, str], None] | None = None) -> list[Generation]:
        """Answers in tokens, one for each job; all jobs have one mode. on_text: called with (row, text so far)."""
        rows = self._generate(jobs, max_new_tokens, on_text)
        forced = [k for k, row in enumerate(rows) if jobs[k].mode in prompts.MASK_MODES and not row.states and not self._refuses(row)]
        if forced:  # a mask was asked for and neither given nor refused: open the answer for the model
            tell = None if on_text is None else lambda row, text: on_text(forced[row], text)
            for k, row in zip(forced, self._generate([jobs[k] for k in forced], max_new_tokens, tell, prompts.FORCED_OPENING), strict=True):
                rows[k] = row
        return [self._cut(row) for row in rows]

    def _generate(
        self, jobs: Sequence[Job], max_new_tokens: int, on_text: Callable[[int, str], None] | None = None, opening: str = ""
    ) -> list[Generation]:
        """Generate answers; `opening` is put in the model's mouth and a `[SEG]` behind it."""
        tokenizer, device = self.tokenizer, self.model.device
        head = tokenizer.encode([("answer", opening)], 0).ids if opening else []
        prompt = [torch.tensor(job.ids + head, device=device) for job in jobs]
        context = ImageContext.join([job.encoded.context for job in jobs])
        sofar = [list(head) for _ in jobs]

        def on_token(row: int, token: int) -> None:
            if on_text is not None and token != self.stop_id:
                sofar[row].append(token)
                on_text(row, tokenizer.decode(sofar[row]))

        text_only = jobs[0].mode == "text"
        bias = {} if text_only else {tokenizer.plain(prompts.NO_TARGET)[0]: float(self.model.config.refusal_bias)}
        if opening:
            bias = {tokenizer.seg_id: 1e6}
        rows = self.model.generate_answers(
            prompt,
            context,
            range(len(jobs)),
            stop_id=self.stop_id,
            max_new_tokens=max_new_tokens,
            ban=[tokenizer.seg_id] if text_only else [],
            bias=bias,
            on_token=on_token,
            draft=None if text_only else lambda ids: self.guess(head + ids),
        )
        for row in rows:
            row.ids[:0] = head
            if head or not self.model.config.candidates:
                row.reading = None  # it holds the opening, too; or nobody weighs names, and at 7B it is large
        return rows

    def guess(self, ids: list[int]) -> list[int]:
        """What usually follows the beginning of an answer; perhaps nothing."""
        for usual in self._usual:
            if usual[: len(ids)] == ids and len(usual) > len(ids):
                return usual[len(ids) :]
        seg, ending = self.tokenizer.seg_id, self._answer_ids(f"{SEG_TEXT}.")
        if ids[-1:] == [seg]:
            return ending[1:]
        n = len(self._opening)
        naming = n and ids[:n] == self._opening and seg not in ids and len(ids) <= n + LONGEST_NAME
        return ending if naming else []

    def _answer_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode([("answer", text), ("answer_end", self.template.end)], 0).ids

    def force(self, jobs: Sequence[Job], wanted: Sequence[int]) -> list[Generation]:
        """What `answer` would give if the model had answered with so many masks, from one pass over prompt and answer."""
        ids, embeds = [], []
        for job, n in zip(jobs, wanted, strict=True):
            answer = self.model.config.evaluation_answer.replace(SEG_TEXT, ", ".join([SEG_TEXT] * n))
            turn = Turn(job.conversation.turns[-1].instruction, answer, (np.zeros((1, 1), np.uint8),) * n)
            ids.append(self.prompt_ids(job.conversation.answer(turn)))
            row = torch.tensor(ids[-1], device=self.model.device)
            embeds.append(self.model.vlm.embed(row[None], job.encoded.context.tokens, row.new_zeros(1))[0])
        feed, mask = left_pad(embeds)
        hidden = self.model.vlm.hidden_states(feed, mask, (mask.cumsum(1) - 1).clamp(min=0))
        shift = 1 if self.model.config.seg_state == "emit" else 0
        rows = []
        for job, row_ids, states in zip(jobs, ids, hidden, strict=True):
            places = [
                k - shift - len(row_ids) for k, token in enumerate(row_ids) if token == self.tokenizer.seg_id
            ]  # from the end: padding is in front
            rows.append(Generation(row_ids[len(job.ids) :], [states[k] for k in places], True))
        return rows

    def reconsider(self, job: Job, row: Generation) -> Generation:
        """The answer with the name that fits the picture best; see `weigh_names`."""
        if job.mode == "text":
            return row
        encoded, neutral = job.encoded, self.prompt_ids(Conversation().ask(prompts.NEUTRAL_QUESTION))
        instruction = read_as(job.instruction, self.model.config.read_as)
        asked = Asked(job.ids, instruction, neutral, job.mode in prompts.DOUBTED_MODES)
        about = encoded.context, row, lambda states: self._decode(encoded, states)[1], encoded.priors
        return weigh_names(self.model, self.tokenizer, asked, *about)

    def _cut(self, row: Generation) -> Generation:
        """An answer with too many `[SEG]` ends in front of the first that is too many."""
        if len(row.states) <= MAX_SEGMENTS:
            return row
        places = [k for k, token in enumerate(row.ids) if token == self.tokenizer.seg_id]
        return Generation(row.ids[: places[MAX_SEGMENTS]], row.states[:MAX_SEGMENTS], False)

    def _refuses(self, row: Generation) -> bool:
        return self.tokenizer.decode(row.ids).startswith(prompts.NO_TARGET_PREFIX)

    def masks(self, encoded: Encoded, row: Generation) -> tuple[list[np.ndarray], list[float | None]]:
        """N masks (H, W) bool and N scores [0, 1]; nothing is encoded or decoded for an answer without `[SEG]`."""
        if not row.states:
            return [], []
        placement = self._mask_features(encoded)
        logits, scores = self._decode(encoded, torch.stack(row.states))
        # one at a time: at the picture's own size a mask of logits can be large
        masks = [placement.undo(one[None].cpu())[0].gt(0).numpy() for one in logits]
        return masks, [None if s != s else round(float(s), 4) for s in scores.tolist()]

    def _decode(self, encoded: Encoded, states: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, h, w) on the canvas and scores (N,) for states (N, D) behind `[SEG]`, N > 0."""
        self._mask_features(encoded)
        index = torch.zeros(len(states), dtype=torch.long, device=states.device)
        return self.model.decode_masks(encoded.features, self.model.prompt_embeddings(states), index)

    def _mask_features(self, encoded: Encoded) -> Placement:
        """See to it that the picture is encoded for masks, once; returns where it lies on their canvas."""
        decoder: Any = self.model.mask_decoder
        if encoded.features is None:
            pixels = None
            if decoder.needs_pixels:
                pixels, encoded.placement = decoder.preprocess(encoded.picture.rgb)
                pixels = pixels[None].to(self.model.device)
            encoded.features = self.model.encode_mask_features(encoded.context, pixels)
        if encoded.placement is None:
            raise ValueError(f"Neither {self.model.vlm.family} nor the mask decoder says where the picture lies on the canvas.")
        return encoded.placement
