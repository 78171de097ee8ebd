"""Look before naming: weigh the name in an answer against the names that the vision tower sees in the picture."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lisaseg import prompts
from lisaseg.model.lisa import LisaModel
from lisaseg.tokenization import Tokenizer
from lisaseg.vlms.base import ImageContext
from lisaseg.vlms.decoding import Generation, Reading

Priors = dict[tuple[int, ...], float]  # ids of "It is the NAME [SEG]" -> log p of its name in one picture when nothing in particular is asked

_SMALL = frozenset(("the", "a", "an", "her", "his", "their", "its", "this", "that"))
SURE = 0.5  # estimated IoU from which a mask of a name that the tower does not know is good enough


@dataclass(frozen=True)
class Asked:
    """A question. prompt: its ids with the picture's slot. instruction: what the user typed. neutral: ids of `prompts.NEUTRAL_QUESTION` with the
    picture's slot. doubted: the answer may become a refusal."""

    prompt: list[int]
    instruction: str
    neutral: list[int]
    doubted: bool = False


def weigh_names(
    model: LisaModel,
    tokenizer: Tokenizer,
    asked: Asked,
    context: ImageContext,
    row: Generation,
    estimate: Callable[[Tensor], Tensor],
    priors: Priors,
) -> Generation:
    """Of the names that are seen in the picture and the one that was generated, give the best; a refusal if even that is worth too little.

    "what would you stand on to ride a wave" makes "wave" likely although there may be none; its mask scores low, the surfboard's high. And "person"
    is likely whatever is asked, so what counts is how much likelier the question makes a name than it is without one (pointwise mutual information,
    as in arXiv 2104.08315). The worth of a name is
        (log p(name | question) - prior_share * log p(name | no question)) / name_temperature + log(estimated IoU of its mask).
    Only short answers "It is the NAME [SEG]." are weighed, and not where the generated name is what was asked for outright and the tower knows it or
    its mask looks good: who asks for the hair shall not get the person, but who asks for the animal may get the cat.

    Args:
        context: the picture. row: what was generated.
        estimate: states (n, D) behind `[SEG]` -> estimated IoU of their masks (n,).
        priors: what is known of the picture's names without a question; grows.
    """
    config, seg = model.config, tokenizer.seg_id
    opening = tokenizer.plain(prompts.NAMED_OPENING)
    if config.candidates < 1 or len(row.states) != 1 or row.ids[: len(opening)] != opening:
        return row
    at = row.ids.index(seg)
    if len(row.ids) > at + 3:  # more than a full stop follows: the rest would not fit another name
        return row
    name = tokenizer.decode(row.ids[len(opening) : at])
    if asks_by_name(asked.instruction, name) and (name.strip() in config.nouns or float(estimate(torch.stack(row.states))[0]) >= SURE):
        return row
    names = [config.nouns[i] for i in model.vlm.seen_names(context, config.candidates)]
    # only what stands between "It is the" and the full stop differs; the words before it are read once
    ways = [row.ids[len(opening) : at + 1], *([*tokenizer.plain(f" {name}"), seg] for name in names)]
    after = len(opening) if row.reading is not None else 0
    likely, states = name_likelihoods(model, row.reading or read_prompt(model, asked.prompt + opening, context), ways, after)
    if config.prior_share:
        neutral = functools.cache(lambda: read_prompt(model, asked.neutral + opening, context))  # not read at all if all priors are known
        prior = name_priors(lambda some: name_likelihoods(model, neutral(), some)[0], ways[0], ways[1:], priors)
        likely = likely - config.prior_share * prior.to(likely)
    scores = estimate(states)
    worth = likely / config.name_temperature + scores.clamp(min=1e-3).log()
    best = int(worth.argmax())
    if asked.doubted and config.min_worth is not None and float(worth[best]) < config.min_worth:
        return Generation(tokenizer.plain(prompts.NO_TARGET), [], row.finished)
    return row if best == 0 else Generation(opening + ways[best] + row.ids[at + 1 :], [states[best]], row.finished)


def read_prompt(model: LisaModel, prompt: list[int], context: ImageContext) -> Reading:
    """The language model reads a prompt about one picture."""
    ids = torch.tensor(prompt, device=model.device)
    return model.vlm.read(model.vlm.embed(ids[None], context.tokens, torch.zeros(1, dtype=torch.long, device=ids.device))[0])


def name_likelihoods(model: LisaModel, reading: Reading, ways: Sequence[list[int]], after: int = 0) -> tuple[Tensor, Tensor]:
    """log p (n,) of each way to go on behind `after` tokens of an answer, and the states (n, D) behind their `[SEG]`."""
    logp, states = model.vlm.score_continuations(reading, ways, after)
    return logp.sum(1), states


def name_priors(score: Callable[[Sequence[list[int]]], Tensor], own: list[int], seen: Sequence[list[int]], known: Priors) -> Tensor:
    """What `score` says (1 + n,) of the generated way to answer and of the n seen ones, looked up or added to `known`.

    The seen ones are always scored together and another one alone, so that no number depends on what was asked about the picture before.
    """
    for ways in (seen, [own]):
        if ways and tuple(ways[0]) not in known:
            known |= {tuple(way): value for way, value in zip(ways, score(ways).tolist(), strict=True)}
    return torch.tensor([known[tuple(way)] for way in (own, *seen)])


def asks_by_name(instruction: str, name: str) -> bool:
    """Whether the instruction is nothing but a question for this name ("the hair", "Where is the car?"); "to ride a wave" is more than a wave."""
    templates = (*prompts.NAME_QUESTIONS, *prompts.PHRASE_QUESTIONS, prompts.SEGMENT_PHRASE)
    return _plain(instruction) in {_plain(template.format(text=name)) for template in templates}


def _plain(text: str) -> str:
    """Words in lower case, without marks and small words that mean nothing here."""
    return " ".join(word for word in re.findall(r"[\w'-]+", text.lower()) if word not in _SMALL)
