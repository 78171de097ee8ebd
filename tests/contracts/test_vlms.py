"""What every vision-language family must hold. A new family: register it, add a builder below."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests import published_random
from tests.tiny_random import encode_pictures, noise
from torch import Tensor

from lisaseg.model.lisa import LisaModel
from lisaseg.tokenization import TextTokenizer
from lisaseg.vlms import VLMS
from lisaseg.vlms.base import ImageContext, VisionLanguageModel
from lisaseg.vlms.decoding import Generation

Taught = tuple[LisaModel, TextTokenizer]
# name -> a small model of that family with random weights, in eval mode
BUILDERS: dict[str, Callable[[Taught], LisaModel]] = {"tiny": lambda taught: taught[0], "llava": lambda _: published_random.build_model()}
NEVER = -7  # a stop id that is never generated


@pytest.fixture(scope="module", params=VLMS.names())
def model(request: pytest.FixtureRequest, taught: Taught) -> LisaModel:
    assert request.param in BUILDERS, f"tests/contracts/test_vlms.py has no builder for the family {request.param!r}: add one to BUILDERS"
    return BUILDERS[request.param](taught)


@pytest.fixture(scope="module")
def vlm(model: LisaModel) -> VisionLanguageModel:
    return model.vlm


@pytest.fixture(scope="module")
def context(model: LisaModel) -> ImageContext:
    return encode_pictures(model, [noise(1), noise(2, 90, 30)])


def words(vlm: VisionLanguageModel, n: int, seed: int = 0) -> Tensor:
    """n ordinary token ids."""
    return torch.randint(3, vlm.seg_token_id, (n,), generator=torch.Generator().manual_seed(seed))


def prompt(vlm: VisionLanguageModel, context: ImageContext, picture: int, n: int, seed: int = 0) -> Tensor:
    """Embeddings of 3 words, the picture, n words: (T, D)."""
    ids = torch.cat([words(vlm, 3), torch.full((vlm.n_image_tokens,), vlm.image_token_id), words(vlm, n, seed)])
    return vlm.embed(ids[None], context.tokens, torch.tensor([picture]))[0].detach()


def generate(vlm: VisionLanguageModel, prompts: list[Tensor], **options: object) -> list[Generation]:
    settings = {"stop_id": NEVER, "max_new_tokens": 5, "bias": {vlm.seg_token_id: 1e6}, **options}
    return vlm.generate(prompts, **settings)  # type: ignore[arg-type]


def same(first: list[Generation], second: list[Generation]) -> None:
    assert [(row.ids, row.finished) for row in first] == [(row.ids, row.finished) for row in second]
    for a, b in zip(first, second, strict=True):
        assert len(a.states) == len(b.states)
        for x, y in zip(a.states, b.states, strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3)


def test_names_what_it_is(vlm: VisionLanguageModel) -> None:
    assert vlm.family in VLMS.names()
    assert vlm.seg_token_id != vlm.image_token_id and min(vlm.hidden_size, vlm.n_image_tokens) > 0


def test_preprocess_keeps_the_way_back(model: LisaModel, vlm: VisionLanguageModel) -> None:
    for rgb in (noise(0, 1, 1), noise(0, 3, 200), noise(0, 200, 3), noise(0, 33, 47)):
        inputs, placement = vlm.preprocess(rgb)
        if placement is None:
            assert model.mask_decoder.needs_pixels, "somebody must know where the picture lies on the canvas"
        else:
            assert placement.original_hw == rgb.shape[:2]
            assert placement.canvas == model.mask_decoder.canvas, "masks and pixels must speak of one canvas"
        assert all(torch.isfinite(value).all() for value in inputs.values())
        again, _ = vlm.preprocess(rgb)
        assert all(torch.equal(inputs[key], again[key]) for key in inputs)


def test_pictures_encode_alike_alone_and_together(model: LisaModel, context: ImageContext) -> None:
    assert context.tokens.shape == (2, model.vlm.n_image_tokens, model.vlm.hidden_size)
    for one, rgb in zip(context.split(), (noise(1), noise(2, 90, 30)), strict=True):
        torch.testing.assert_close(encode_pictures(model, [rgb]).tokens, one.tokens, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(context.tokens[0], context.tokens[1], atol=1e-4), "different pictures, different tokens"


def test_joining_the_split_is_the_same_context(context: ImageContext) -> None:
    parts = context.split()
    for joined in (ImageContext.join(parts), ImageContext.join([*reversed(parts)]).split()[1]):
        n = len(joined.tokens)
        assert torch.equal(joined.tokens, context.tokens[:n])
    joined, turned = ImageContext.join(parts), ImageContext.join([parts[1], parts[0]])
    for name, value in (vars(context.maps) if context.maps is not None else {}).items():
        assert torch.equal(getattr(joined.maps, name), value)
        assert torch.equal(getattr(turned.maps, name), value.flip(0))


def test_image_tokens_stand_in_their_slot_and_nothing_else_moves(vlm: VisionLanguageModel, context: ImageContext) -> None:
    n, text = vlm.n_image_tokens, words(vlm, 8)
    ids = torch.stack([torch.cat([text[:k], torch.full((n,), vlm.image_token_id), text[k:]]) for k in (0, 3, 8)])
    ids[:, -1] = torch.where(ids[:, -1] == vlm.image_token_id, ids[:, -1], vlm.seg_token_id)
    embeds = vlm.embed(ids, context.tokens, torch.tensor([1, 0, 1]))
    for row, (k, picture) in enumerate([(0, 1), (3, 0), (8, 1)]):
        assert torch.equal(embeds[row, k : k + n], context.tokens[picture].to(embeds.dtype))
        assert torch.equal(embeds[row, :k], vlm.embed_ids(ids[row, :k]))
        assert torch.equal(embeds[row, k + n :], vlm.embed_ids(ids[row, k + n :]))


def test_rows_with_and_without_a_picture_may_be_mixed(vlm: VisionLanguageModel, context: ImageContext) -> None:
    n = vlm.n_image_tokens
    ids = torch.stack([words(vlm, n + 2), torch.cat([words(vlm, 2), torch.full((n,), vlm.image_token_id)])])
    embeds = vlm.embed(ids, context.tokens, torch.tensor([0, 1]))
    assert torch.equal(embeds[0], vlm.embed_ids(ids[0]))
    assert torch.equal(embeds[1, 2:], context.tokens[1].to(embeds.dtype))


@pytest.mark.parametrize("excess", [-1, 1])
def test_a_slot_of_the_wrong_size_is_refused(vlm: VisionLanguageModel, context: ImageContext, excess: int) -> None:
    ids = torch.cat([words(vlm, 2), torch.full((vlm.n_image_tokens + excess,), vlm.image_token_id)])
    with pytest.raises(ValueError, match="image slots"):
        vlm.embed(ids[None], context.tokens, torch.tensor([0]))


def test_scores_are_finite_and_cover_seg(vlm: VisionLanguageModel, context: ImageContext) -> None:
    with torch.no_grad():
        hidden = vlm.hidden_states(prompt(vlm, context, 0, 4)[None], None, None)
        scores = vlm.logits(hidden)
    assert torch.isfinite(scores).all() and hidden.shape[-1] == vlm.hidden_size
    assert scores.shape[:2] == hidden.shape[:2] and scores.shape[2] > vlm.seg_token_id


@pytest.mark.parametrize("seg_state", ["emit", "at"])
def test_cache_changes_nothing(vlm: VisionLanguageModel, context: ImageContext, seg_state: str) -> None:
    prompts = [prompt(vlm, context, 0, 5), prompt(vlm, context, 1, 9, seed=1)]
    runs = [generate(vlm, prompts, seg_state=seg_state, use_cache=cache) for cache in (True, False)]
    same(*runs)
    assert all(row.ids[0] == vlm.seg_token_id and row.states for row in runs[0])


@pytest.mark.parametrize("seg_state", ["emit", "at"])
def test_a_batch_is_a_loop(vlm: VisionLanguageModel, context: ImageContext, seg_state: str) -> None:
    prompts = [prompt(vlm, context, k % 2, n, seed=k) for k, n in enumerate((5, 1, 14, 5))]
    same(generate(vlm, prompts, seg_state=seg_state), [generate(vlm, [p], seg_state=seg_state)[0] for p in prompts])


@pytest.mark.parametrize("seg_state", ["emit", "at"])
@pytest.mark.parametrize("length", [1, 4])
def test_states_are_those_that_the_convention_names(vlm: VisionLanguageModel, context: ImageContext, seg_state: str, length: int) -> None:
    start = prompt(vlm, context, 0, 6)
    row = generate(vlm, [start], seg_state=seg_state, max_new_tokens=length)[0]
    places = [k for k, token in enumerate(row.ids) if token == vlm.seg_token_id]
    assert len(row.states) == len(places) >= 1
    with torch.no_grad():
        whole = torch.cat([start, vlm.embed_ids(torch.tensor(row.ids))])
        hidden = vlm.hidden_states(whole[None], None, None)[0]
    for state, k in zip(row.states, places, strict=True):
        torch.testing.assert_close(state, hidden[len(start) + k - (seg_state == "emit")], atol=1e-4, rtol=1e-3)


def test_length_limit_stop_and_callback(vlm: VisionLanguageModel, context: ImageContext) -> None:
    prompts = [prompt(vlm, context, 0, 5), prompt(vlm, context, 1, 3, seed=2)]
    heard: list[tuple[int, int]] = []
    free = generate(vlm, prompts, bias=None, on_token=lambda row, token: heard.append((row, token)))
    assert all(len(row.ids) == 5 and not row.finished for row in free)
    assert [[t for r, t in heard if r == k] for k in (0, 1)] == [row.ids for row in free]


def test_a_row_ends_at_its_stop_token_and_others_go_on(vlm: VisionLanguageModel, context: ImageContext) -> None:
    prompts = [prompt(vlm, context, k % 2, 3 + k, seed=k) for k in range(8)]
    free = generate(vlm, prompts, bias=None)
    stop = next(t for row in free for t in row.ids[:3] if any(t not in other.ids for other in free))
    heard: list[tuple[int, int]] = []
    stopped = generate(vlm, prompts, bias=None, stop_id=stop, on_token=lambda row, token: heard.append((row, token)))
    for k, (row, whole) in enumerate(zip(stopped, free, strict=True)):
        assert row.finished == (stop in whole.ids)
        assert row.ids == (whole.ids[: whole.ids.index(stop) + 1] if row.finished else whole.ids), "the stop token is kept and ends the row"
        assert [t for r, t in heard if r == k] == row.ids
    assert {row.finished for row in stopped} == {True, False}


def test_bans_hold_and_bias_counts_once(vlm: VisionLanguageModel, context: ImageContext) -> None:
    start = [prompt(vlm, context, 0, 5)]
    free = generate(vlm, start, bias=None)[0]
    banned = generate(vlm, start, bias={free.ids[0]: 1e6}, ban=[free.ids[0], vlm.seg_token_id])[0]
    assert free.ids[0] not in banned.ids and not banned.states
    other = (free.ids[0] + 1) % vlm.seg_token_id
    assert generate(vlm, start, bias={other: 1e6})[0].ids[0] == other
    assert generate(vlm, start, bias={other: 1e6}, max_new_tokens=4)[0].ids[1:] != [other] * 3


@pytest.mark.parametrize("seg_state", ["emit", "at"])
@pytest.mark.parametrize("length", [1, 2, 6])
@pytest.mark.parametrize(("right", "wrong"), [(9, 0), (0, 3), (1, 2), (2, 9)])
def test_guesses_change_nothing_but_the_number_of_passes(
    vlm: VisionLanguageModel, context: ImageContext, monkeypatch: pytest.MonkeyPatch, seg_state: str, length: int, right: int, wrong: int
) -> None:
    start = [prompt(vlm, context, 0, 5)]
    settings = {"seg_state": seg_state, "max_new_tokens": length}
    plain = generate(vlm, start, use_cache=False, **settings)
    truth = plain[0].ids

    def draft(ids: list[int]) -> list[int]:
        assert ids == truth[: len(ids)] and len(ids) < length
        hit = truth[len(ids) :][:right]
        miss = [(token + 1) % vlm.seg_token_id for token in truth[len(ids) + len(hit) :]] or [0]
        return hit + (miss * wrong)[:wrong]

    passes: list[int] = []
    work = vlm.hidden_states
    monkeypatch.setattr(vlm, "hidden_states", lambda *args: (passes.append(1), work(*args))[1])
    heard: list[int] = []
    guessed = generate(vlm, start, draft=draft, on_token=lambda row, token: heard.append(token), **settings)
    same(guessed, plain)
    assert heard == truth
    last_is_seg = seg_state == "at" and truth[-1] == vlm.seg_token_id
    taken = 1 + min(right, length - 1)  # tokens that the first pass gives
    assert len(passes) == -(-length // taken) + last_is_seg


@pytest.mark.parametrize("after", [0, 1, 3])
def test_what_was_read_scores_any_continuation(vlm: VisionLanguageModel, context: ImageContext, after: int) -> None:
    start = prompt(vlm, context, 0, 5)
    row = generate(vlm, [start], max_new_tokens=4, draft=lambda ids: [1, 2])[0]
    begun = torch.cat([start, vlm.embed_ids(torch.tensor(row.ids[:after], dtype=torch.long))]).detach()
    ways = [row.ids[after:], words(vlm, 1).tolist(), words(vlm, 6, seed=4).tolist()]
    assert row.reading is not None
    for reading, skip in ((row.reading, after), (vlm.read(begun), 0), (row.reading, after)):
        logp, states = vlm.score_continuations(reading, ways, skip)
        for k, way in enumerate(ways):
            with torch.no_grad():
                whole = torch.cat([begun, vlm.embed_ids(torch.tensor(way[:-1], dtype=torch.long))])
                hidden = vlm.hidden_states(whole[None], None, None)[0, -len(way) :]
                each = vlm.logits(hidden).log_softmax(-1)[torch.arange(len(way)), torch.tensor(way)]
            torch.testing.assert_close(logp[k, : len(way)], each, atol=1e-4, rtol=1e-3)
            assert not logp[k, len(way) :].any()
            torch.testing.assert_close(states[k], hidden[-1], atol=1e-4, rtol=1e-3)
