"""I and P through REST: every picture and prompt of the corpora, accepted as documented or refused with its code. Z1: what no corpus thinks of."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpora.images import ACCEPT, image_cases
from tests.corpora.instructions import instruction_cases
from tests.server.load import PATIENCE
from tests.server.running import Server, clean, code_of, picture
from tests.server.sizes import size

from lisaseg.apps.server.app import REQUESTS
from lisaseg.apps.server.bodies import parse
from lisaseg.apps.server.catalogue import CATALOGUE, ApiError, from_lisaseg
from lisaseg.errors import ImageError
from lisaseg.formats.answer import answer_from_dict
from lisaseg.imaging import ImageLimits, open_image

pytestmark = pytest.mark.serve
GONE = {"image_not_found": "corrupt_image"}


def test_pictures(stub: Server) -> None:
    cases = [case for case in image_cases() if len(case.data) <= 25 * 2**20]
    assert len(cases) >= 180
    stub.peak_bytes(reset=True)
    before = stub.peak_bytes()
    for n, case in enumerate(cases):
        begin = stub.computed_seconds()
        if n % 2:
            response = stub.http.post("/v1/images", files={"file": (case.filename, case.data, "image/png")})
        else:
            value = base64.b64encode(case.data).decode()
            response = stub.http.post(
                "/v1/images", json={"image": {"type": "base64", "value": f"data:image/jpeg;base64,{value}" if n % 4 else value}}
            )
        assert stub.computed_seconds() - begin < 2, case.name
        if case.expected != ACCEPT:
            assert response.status_code in (400, 413, 415, 422), case.name
            wanted = {GONE.get(case.expected, case.expected)} | ({"missing_image"} if not case.data else set())
            assert code_of(response) in wanted, (case.name, response.text)
            continue
        facts = response.json()
        assert response.status_code == 201, (case.name, response.text)
        assert case.rgb is not None and (facts["height"], facts["width"]) == case.rgb.shape[:2], case.name
        assert not case.warning or case.warning in [warning["code"] for warning in facts["warnings"]], case.name
        assert not case.normalized or case.normalized in facts["normalized"], case.name
        clean(response.text)
        if n % 5 == 0:
            answer = stub.ask(facts["id"], "x").json()
            assert answer_from_dict(answer).masks.shape[1:] == case.rgb.shape[:2], case.name
    assert stub.peak_bytes() - before <= 300e6
    assert stub.ask(stub.upload(picture()), "after").status_code == 200


def _ask_all(server: Server, cases: Any) -> None:
    image_id = server.upload(picture(0, 48, 64))

    async def run() -> None:
        busy = asyncio.Semaphore(32)
        async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE) as http:

            async def one(case: Any) -> None:
                body = json.dumps({"image_id": image_id, "prompt": case.text, "max_new_tokens": 1})
                async with busy:
                    response = await http.post("/v1/segment", content=body, headers={"Content-Type": "application/json"})
                if case.expected != ACCEPT:
                    assert response.status_code == 422 and code_of(response) == case.expected, case.name
                    return
                assert response.status_code == 200, (case.name, response.text)
                answer = response.json()
                if answer["usage"]["image_tokens"] > 1:  # the real model; the stub repeats the prompt
                    assert len(answer["segments"]) == answer["raw_text"].count("[SEG]") == answer["text"].count("[mask "), case.name
                    assert answer["usage"]["image_tokens"] == 81 and answer["usage"]["completion_tokens"] == 1

            await asyncio.gather(*(one(case) for case in cases))

    asyncio.run(run())
    assert server.ask(image_id, "the cup").status_code == 200


def test_prompts_get_their_codes(start: Callable[..., Server]) -> None:
    cases = [case for case in instruction_cases() if case.expected != ACCEPT or "[SEG]" not in case.text]
    assert len(instruction_cases()) >= 400
    _ask_all(start("--stub-seconds", "0", "--limit", "deadline_seconds=600"), cases)


def _short() -> list[Any]:
    return [case for case in instruction_cases() if len(case.text) <= 300 or case.expected != ACCEPT]


def test_prompts_make_no_masks(tiny: Server) -> None:
    """Through the real tokenizer and model: nobody's text makes a mask, a slot or a fault. All 400 go through the tokenizer in `make test`."""
    _ask_all(tiny, _short()[:: size(10, 1)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        name: JSON | values
        for name, values in {
            "prompt": st.text(max_size=30),
            "image_id": st.just("img_x"),
            "image": st.fixed_dictionaries({"type": st.sampled_from(["base64", "url"]), "value": st.text(max_size=30)}),
            "history": st.lists(st.fixed_dictionaries({"prompt": st.text(max_size=5), "raw_text": st.text(max_size=5)}), max_size=3),
            "mode": st.sampled_from(["auto", "text", "x"]),
            "mask_format": st.sampled_from(["rle", "polygon", "png", "none"]),
            "max_new_tokens": st.integers(),
            "stream": st.booleans(),
            "messages": st.lists(
                st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": JSON | st.text(max_size=9)}), max_size=4
            ),
            "model": st.just("lisa-tiny"),
            "answers": st.lists(st.dictionaries(st.sampled_from(["image", "segments", "text", "status"]), JSON, max_size=4), max_size=2),
            "to": st.sampled_from(["json", "zip", "overlay", "yolo", "x"]),
        }.items()
    },
)
PATHS = ("/v1/segment", "/v1/sessions", "/v1/sessions/ses_x/messages", "/v1/sessions/ses_x/retry", "/v1/images", "/v1/chat/completions", "/v1/export")


@settings(max_examples=size(400, 40_000))
@given(path=st.sampled_from(PATHS), body=FIELDS | JSON)
def test_objects_of_any_form(stub: Server, path: str, body: Any) -> None:
    response = stub.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code < 500, response.text
    if not response.is_success:
        code_of(response)


@settings(max_examples=size(400, 40_000))
@given(path=st.sampled_from(PATHS), data=st.data())
def test_bytes_of_any_form(stub: Server, path: str, data: Any) -> None:
    good = b'{"prompt": "x", "image_id": "img_x", "history": [{"prompt": "a", "raw_text": "b [SEG]"}], "max_new_tokens": 5}'
    body = bytearray(data.draw(st.just(good) | st.binary(max_size=80)))
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, max(0, len(body) - 1)))
        body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    response = stub.http.post(path, content=bytes(body), headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500
    code_of(response)


@settings(max_examples=size(150, 15_000))
@given(data=st.data())
def test_pictures_that_were_tampered_with(stub: Server, data: Any) -> None:
    cases = [case for case in image_cases("plain_modes", "orientations", "animations") if case.expected == ACCEPT and len(case.data) < 20_000]
    body = bytearray(data.draw(st.sampled_from(cases)).data)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    response = stub.http.post("/v1/images", files={"file": ("x", bytes(body))})
    assert response.status_code in (201, 400, 422), response.text
    clean(response.text)


@functools.cache
def _seeds() -> tuple[list[bytes], list[bytes]]:
    """Small files of every kind of the corpus, and a body of every request."""
    pictures = [case.data for case in image_cases() if case.expected == ACCEPT and len(case.data) < 4_000]
    value = base64.b64encode(picture()).decode()
    turn = {"prompt": "a", "raw_text": "b [SEG]", "mode": "auto"}
    answer = {
        "text": "t",
        "raw_text": "[SEG]",
        "status": "masks",
        "image": {"width": 4, "height": 3},
        "segments": [],
        "instruction": "x",
        "model": "m",
    }
    bodies: list[Any] = [
        {"image": {"type": "base64", "value": value}},
        {"prompt": "x", "image_id": "img_x", "history": [turn], "mode": "segment", "mask_format": "png", "max_new_tokens": 5, "stream": True},
        {"image_id": "img_x", "history": [turn, turn]},
        {"answers": [answer], "to": "coco", "labels": ["cup"], "name": "n"},
        {"model": "lisa-tiny", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}], "n": 1},
    ]
    return pictures, [json.dumps(body).encode() for body in bodies]


def _mutated(rng: random.Random, seed: bytes) -> bytes:
    """Bytes overwritten, left out, put in, repeated, and the end cut off."""
    body = bytearray(seed)
    for _ in range(rng.randint(1, 6)):
        place, length = rng.randrange(len(body) + 1), rng.choice((0, 1, 1, 2, 4, 9))
        body[place : place + length] = rng.choice((b"", rng.randbytes(length), body[:length], bytes([rng.choice(b'{}[]",:\\0-e\xff')])))
    return bytes(body[: rng.randrange(len(body) + 1)] if rng.random() < 0.1 else body)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_mutations_are_read_or_refused() -> None:
    """Z1 in bulk: what decodes pictures and what reads bodies, without HTTP around them. Any other exception would be a 500."""
    rng, (pictures, requests), outcomes = random.Random(0), _seeds(), Counter[str]()
    small = ImageLimits(max_pixels=1_000_000)
    for n in range(size(10_000, 1_000_000)):
        data = _mutated(rng, rng.choice(pictures if n % 2 else requests))
        try:
            if n % 2:
                open_image(data, small)
            else:
                parse(data, rng.choice(REQUESTS))
            outcomes["read"] += 1
        except ImageError as error:
            code = from_lisaseg(error)
            outcomes[code.code] += 1
            clean(json.dumps(code.body("req_x")))
        except ApiError as error:
            outcomes[error.code] += 1
            clean(json.dumps(error.body("req_x")))
    assert all(CATALOGUE[code].status < 500 for code in outcomes if code != "read"), outcomes
    assert {"read", "invalid_json", "invalid_request", "corrupt_image", "unsupported_format"} <= set(outcomes), outcomes
