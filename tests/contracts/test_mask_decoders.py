"""What every mask decoder must hold. A new one: register it, add a builder below."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import published_random
from tests.tiny_random import encode_pictures, noise
from torch import Tensor

from lisaseg.imaging import Placement
from lisaseg.mask_decoders import MASK_DECODERS
from lisaseg.model.lisa import LisaModel
from lisaseg.tokenization import TextTokenizer

Taught = tuple[LisaModel, TextTokenizer]
B = 3
PICTURES = (noise(1), noise(2, 90, 30), noise(3, 64, 64))


def build_tiny(taught: Taught) -> tuple[Any, list[Any]]:
    decoder, context = taught[0].mask_decoder, encode_pictures(taught[0], list(PICTURES))
    return decoder, [decoder.encode(None, c.maps) for c in (context, *context.split())]


def build_sam(_: Taught) -> tuple[Any, list[Any]]:
    decoder: Any = published_random.build_model().mask_decoder
    pixels = torch.stack([decoder.preprocess(rgb)[0] for rgb in PICTURES])
    return decoder, [decoder.encode(p) for p in (pixels, *pixels.split(1))]


Built = tuple[Any, list[Any]]
# name -> a small decoder with random weights in eval mode; its features of all PICTURES together, then of each alone
BUILDERS: dict[str, Callable[[Taught], Built]] = {"tiny": build_tiny, "sam": build_sam}


@pytest.fixture(scope="module", params=MASK_DECODERS.names())
def built(request: pytest.FixtureRequest, taught: Taught) -> Built:
    name = request.param
    assert name in BUILDERS, f"tests/contracts/test_mask_decoders.py has no builder for {name!r}: add one to BUILDERS"
    return BUILDERS[name](taught)


def prompts(decoder: Any, n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, decoder.prompt_width, generator=torch.Generator().manual_seed(seed))


def decode(built: Built, given: Tensor, index: list[int]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return built[0].decode(built[1][0], given, torch.tensor(index, dtype=torch.long))


def test_says_what_it_needs(built: Built) -> None:
    decoder = built[0]
    assert isinstance(decoder.needs_pixels, bool)
    assert decoder.prompt_width > 0 and decoder.canvas > 0


@pytest.mark.parametrize("n", [0, 1, 4])
def test_shapes_and_ranges(built: Built, n: int) -> None:
    logits, scores = decode(built, prompts(built[0], n), [k % B for k in range(n)])
    assert logits.dtype == scores.dtype == torch.float32
    assert logits.shape == (n, *logits.shape[2:], logits.shape[2]) and scores.shape == (n,)
    assert torch.isfinite(logits).all()
    assert all(math.isnan(s) or 0 <= s <= 1 for s in scores.tolist())


def test_pixels_of_its_own_keep_the_way_back(built: Built) -> None:
    if not built[0].needs_pixels:
        return
    for rgb in (noise(0, 1, 1), noise(0, 3, 200), noise(0, 33, 47)):
        pixels, placement = built[0].preprocess(rgb)
        height, width = placement.resized_hw
        assert placement.original_hw == rgb.shape[:2] and pixels.shape == (3, placement.canvas, placement.canvas)
        assert placement.canvas == built[0].canvas and torch.isfinite(pixels).all()
        assert not pixels[:, height:].any() and not pixels[:, :, width:].any(), "padding is zero after normalising"


def test_logits_cover_the_canvas(built: Built) -> None:
    logits, _ = decode(built, prompts(built[0], 1), [0])
    canvas = built[0].canvas
    assert canvas % logits.shape[-1] == 0
    assert Placement((30, 60), (canvas // 2, canvas), canvas).undo(logits).shape == (1, 30, 60)


@settings(max_examples=8)
@given(st.lists(st.integers(0, B - 1), min_size=1, max_size=6))
def test_a_batch_is_a_loop(built: Built, index: list[int]) -> None:
    given_prompts = prompts(built[0], len(index))
    logits, scores = decode(built, given_prompts, index)
    for k, b in enumerate(index):
        with torch.no_grad():
            one, score = built[0].decode(built[1][1 + b], given_prompts[k : k + 1], torch.tensor([0]))
        torch.testing.assert_close(one[0], logits[k], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(score[0], scores[k], atol=1e-4, rtol=1e-3, equal_nan=True)


def test_prompt_and_picture_both_matter(built: Built) -> None:
    one, two = prompts(built[0], 2)
    logits, _ = decode(built, torch.stack([one, one, two]), [0, 1, 0])
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


def test_gradient_reaches_prompts_and_parameters(built: Built) -> None:
    decoder, features = built[0], built[1][0]
    given_prompts = prompts(decoder, 3).requires_grad_()
    logits, scores = decoder.decode(features, given_prompts, torch.tensor([0, 1, 0]))
    (logits.square().mean() + scores.nan_to_num().square().mean()).backward()
    assert given_prompts.grad is not None and torch.isfinite(given_prompts.grad).all()
    assert (given_prompts.grad.abs().sum(1) > 0).all()
    dead = [name for name, p in decoder.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    decoder.zero_grad(set_to_none=True)
    assert not dead, f"no gradient reaches {dead}"


def test_no_prompt_is_no_work_and_no_error_in_training(built: Built) -> None:
    decoder, features = built[0], built[1][0]
    none = prompts(decoder, 0).requires_grad_()
    logits, scores = decoder.decode(features, none, torch.zeros(0, dtype=torch.long))
    assert logits.shape[0] == scores.shape[0] == 0
