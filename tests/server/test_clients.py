"""C: the real client packages against a server with lisa-tiny: our own `Client`, equal to the local model, and OpenAI's SDK."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from tests.server.running import EXAMPLES, KEYS, Server, picture
from tests.server.sizes import size

import lisaseg
from lisaseg.apps.server.schemas import Answer
from lisaseg.errors import ImageError, InstructionError, ServiceError, UsageError
from lisaseg.formats import rle

pytestmark = pytest.mark.serve
QUESTIONS = [
    ("coffee.jpg", "the thing one drinks from"),
    ("cat.jpg", "Segment the cat."),
    ("cat.jpg", "the zebra"),
    ("astronaut.jpg", "Where is the person?"),
]


@pytest.fixture(scope="module")
def local() -> lisaseg.Predictor:
    return lisaseg.load("lisa-tiny", dtype="float32", offline=True)


@pytest.fixture
def remote(tiny: Server) -> Iterator[lisaseg.Client]:
    with lisaseg.Client(tiny.url) as client:
        yield client


def same(a: lisaseg.Answer, b: lisaseg.Answer) -> None:
    assert (a.text, a.raw_text, a.status, a.instruction, a.image_size, a.model) == (
        b.text,
        b.raw_text,
        b.status,
        b.instruction,
        b.image_size,
        b.model,
    )
    assert (a.usage, a.warnings, len(a.segments)) == (b.usage, b.warnings, len(b.segments))
    for one, other in zip(a.segments, b.segments, strict=True):
        assert (one.span, one.phrase, one.index) == (other.span, other.phrase, other.index)
        assert (one.mask & other.mask).sum() >= 0.99 * (one.mask | other.mask).sum()
    assert a.image is not None and b.image is not None and np.array_equal(a.image, b.image)


def test_remote_answers_are_local_answers(local: lisaseg.Predictor, remote: lisaseg.Client) -> None:
    for photo, text in QUESTIONS:
        same(remote.ask(EXAMPLES / photo, text), local.ask(EXAMPLES / photo, text))
    pairs = [(EXAMPLES / photo, text) for photo, text in QUESTIONS]
    for a, b in zip(remote.ask_batch(pairs, mode="segment"), local.ask_batch(pairs, mode="segment"), strict=True):
        same(a, b)
    assert remote.ask_batch([]) == []


@pytest.mark.parametrize("kind", ["path", "bytes", "pil", "array"])
def test_pictures_of_every_kind(local: lisaseg.Predictor, remote: lisaseg.Client, kind: str) -> None:
    path = EXAMPLES / "cat.jpg"
    source: Any = {"path": str(path), "bytes": path.read_bytes(), "pil": Image.open(path), "array": np.asarray(Image.open(path).convert("RGB"))}[kind]
    same(remote.ask(source, "the cat", max_new_tokens=12), local.ask(source, "the cat", max_new_tokens=12))


def test_remote_chats_are_local_chats(local: lisaseg.Predictor, remote: lisaseg.Client, tiny: Server) -> None:
    here, there = local.chat(EXAMPLES / "coffee.jpg"), remote.chat(EXAMPLES / "coffee.jpg")
    heard: list[str] = []
    for text, mode in (("What is this?", "text"), ("the cup", "explain"), ("and its handle?", "auto")):
        same(there.ask(text, mode=mode, on_text=heard.append), here.ask(text, mode=mode))  # type: ignore[arg-type]
    assert heard[-1] == there.turns[-1].text
    same(there.undo(), here.undo())  # type: ignore[arg-type]
    before = tiny.metric('lisaseg_encoder_runs_total{encoder="image"}')
    same(there.ask("the table"), here.ask("the table"))
    assert tiny.metric('lisaseg_encoder_runs_total{encoder="image"}') == before, "a follow-up encodes nothing"
    assert len(there.turns) == len(here.turns) == 3


def test_first_words_come_soon(tiny: Server) -> None:
    """Long before the answer is complete, and within a second of computing time: other programs are not our budget."""
    times = []
    for photo in ("rocket", "photographer", "astronaut"):
        image_id = tiny.upload((EXAMPLES / f"{photo}.jpg").read_bytes())
        begin = tiny.computed_seconds()
        body = {"image_id": image_id, "prompt": f"the {photo}", "stream": True, "max_new_tokens": 4}
        with tiny.http.stream("POST", "/v1/segment", json=body) as response:
            next(line for line in response.iter_lines() if line == "event: delta")
            times.append(tiny.computed_seconds() - begin)
    assert sorted(times)[1] <= 1.0, times


def test_remote_errors_are_local_errors(remote: lisaseg.Client) -> None:
    with pytest.raises(ImageError):
        remote.ask(b"no picture", "x")
    with pytest.raises(InstructionError):
        remote.ask(picture(), "  ")
    with pytest.raises(UsageError):
        remote.ask(picture(), "x", mode="loud")  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        lisaseg.Client("localhost:8000")
    with pytest.raises(ServiceError, match="cannot be reached"):
        lisaseg.Client("http://127.0.0.1:9", retries=0).ask(picture(), "x")
    with pytest.raises(ServiceError) as refused:
        remote.ask(picture(), "x", max_new_tokens=100_000)
    assert refused.value.code == "invalid_request" and "512" in str(refused.value)


def test_one_schema_everywhere(local: lisaseg.Predictor, tiny: Server) -> None:
    """What the command line prints and what the service sends differ by the envelope alone."""
    path = EXAMPLES / "cat.jpg"
    printed = local.ask(path, "the cat").to_dict()
    sent = tiny.ask(tiny.upload(path.read_bytes()), "the cat").json()
    Answer.model_validate(sent, strict=False)
    assert set(sent) == {*printed, "id", "object", "created", "mode"} and set(sent) == set(Answer.model_fields)
    assert set(sent["image"]) == {*printed["image"], "id"} and set(sent["timings_ms"]) == {*printed["timings_ms"], "queue"}
    for mine, theirs in zip(printed["segments"], sent["segments"], strict=True):
        assert set(mine) == set(theirs) and mine["mask"].keys() == theirs["mask"].keys()


def test_a_client_outlives_a_restart(start: Callable[..., Server]) -> None:
    server = start()
    with lisaseg.Client(server.url) as client:
        chat = client.chat(picture(4))
        chat.ask("one")
        server.http.delete(f"/v1/images/{chat._image_id}")
        assert chat.ask("two").raw_text == "Turn 2: two [SEG].", "the picture is sent again"
        __import__("os").kill(server.engines[0], signal.SIGKILL)
        assert chat.ask("three").raw_text == "Turn 3: three [SEG]."


def test_three_replicas_of_which_one_dies_every_few_seconds(start: Callable[..., Server]) -> None:
    """K: whoever asks again at another replica gets every answer, and the right one."""
    requests, pause, rng = size(1_000, 10_000), size(3, 5), random.Random(0)
    servers = [start("--stub-seconds", "0.02", state=f"replica{k}") for k in range(3)]
    left, wrong, done, kills = iter(range(requests)), [], [], 0
    pictures = [picture(k) for k in range(4)]

    def user(n: int) -> None:
        for k in left:
            for attempt in itertools.count():
                try:
                    with lisaseg.Client(servers[(n + k + attempt) % 3].url, retries=0, timeout=300) as client:
                        answer = client.ask(pictures[n], f"user {n} question {k}")
                    break
                except (ServiceError, OSError):
                    time.sleep(0.05)
            (done if answer.raw_text == f"Turn 1: user {n} question {k} [SEG]." else wrong).append(k)

    users = [threading.Thread(target=user, args=(n,), daemon=True) for n in range(4)]
    for thread in users:
        thread.start()
    while any(thread.is_alive() for thread in users):
        users[0].join(pause)
        victim = rng.randrange(3)
        servers[victim].kill()
        kills += 1
        servers[victim] = start("--stub-seconds", "0.02", state=f"replica{victim}", wait=False)
    assert not wrong and sorted(done) == list(range(requests)) and kills >= 3, f"{len(done)} answers, {kills} deaths"


@pytest.fixture
def sdk(tiny: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0)


def content(text: str, photo: str = "cat.jpg") -> Any:
    url = "data:image/jpeg;base64," + base64.b64encode((EXAMPLES / photo).read_bytes()).decode()
    return [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]


def test_openai_sdk_asks(sdk: openai.OpenAI, local: lisaseg.Predictor) -> None:
    assert [model.id for model in sdk.models.list()] == ["lisa-tiny"] and sdk.models.retrieve("lisa-tiny").owned_by == "lisaseg"
    messages: Any = [{"role": "user", "content": content("the cat")}]
    reply = sdk.chat.completions.create(model="lisa-tiny", messages=messages, max_tokens=40, temperature=0.2)
    expected = local.ask(EXAMPLES / "cat.jpg", "the cat", max_new_tokens=40)
    message = reply.choices[0].message
    assert message.content == expected.text and reply.choices[0].finish_reason == "stop"
    mask = rle.decode(message.segments[0]["mask"])  # type: ignore[attr-defined]
    assert (mask & expected.masks[0]).sum() >= 0.99 * (mask | expected.masks[0]).sum()
    assert reply.usage is not None and reply.usage.total_tokens == expected.usage["prompt_tokens"] + expected.usage["completion_tokens"]
    messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": "its ear"}]
    chat = local.chat(EXAMPLES / "cat.jpg")
    chat.ask("the cat", max_new_tokens=40)
    assert sdk.chat.completions.create(model="lisa-tiny", messages=messages).choices[0].message.content == chat.ask("its ear").text


@pytest.mark.parametrize("mode", ["auto", "text"])
def test_openai_sdk_streams(sdk: openai.OpenAI, tiny: Server, mode: str) -> None:
    image_id = tiny.upload((EXAMPLES / "cat.jpg").read_bytes())
    messages: Any = [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": [{"type": "text", "text": "the cat"}, {"type": "image_url", "image_url": None, "uuid": image_id}]},
    ]
    options: Any = {"model": "lisa-tiny", "messages": messages, "extra_body": {"lisaseg": {"mode": mode, "mask_format": "none"}}}
    whole = sdk.chat.completions.create(**options).choices[0].message
    chunks = list(sdk.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.content
    last = chunks[-2].choices[0]
    assert last.finish_reason == "stop" and len(last.delta.segments) == (whole.content or "").count("[mask")  # type: ignore[attr-defined]
    assert [warning["code"] for warning in last.delta.warnings] == ["system_ignored"]  # type: ignore[attr-defined]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0
    assert mode == "auto" or len(chunks) > 5, "words came one by one"


def test_openai_sdk_understands_our_errors(sdk: openai.OpenAI, start: Callable[..., Server]) -> None:
    picture_of_text: Any = [{"role": "user", "content": "no picture here"}]
    with pytest.raises(openai.BadRequestError) as missing:
        sdk.chat.completions.create(model="lisa-tiny", messages=picture_of_text)
    assert missing.value.code == "missing_image" and missing.value.param == "messages"
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model="gpt-5", messages=picture_of_text)
    bad: list[Any] = [
        [{"role": "user", "content": content("a")}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": content("a")}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": [*content("a"), *content("b", "rocket.jpg")]}],
        [],
    ]
    for messages in bad:
        with pytest.raises(openai.BadRequestError):
            sdk.chat.completions.create(model="lisa-tiny", messages=messages)
    guarded = start(keys=KEYS)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0).models.list()
    assert openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEYS[2]).models.list().data


def test_openai_sdk_waits_as_it_is_told(start: Callable[..., Server]) -> None:
    """More questions at once than a key may send: the async SDK reads `Retry-After` by itself, and each question gets its own answer."""
    server = start("--limit", "requests_per_minute=90", keys=KEYS[:1])
    image_id = server.upload(picture())

    async def run() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEYS[0], max_retries=8) as client:

            async def one(n: int) -> str | None:
                parts: Any = [{"type": "text", "text": f"question {n}"}, {"type": "image_url", "image_url": None, "uuid": image_id}]
                reply = await client.chat.completions.create(model="lisa-tiny", messages=[{"role": "user", "content": parts}])
                return reply.choices[0].message.content

            return await asyncio.gather(*(one(n) for n in range(14)))

    assert asyncio.run(run()) == [f"Turn 1: question {n} [mask 1]." for n in range(14)]
    assert any('"rate_limited"' in line for line in server.lines), "it was refused at times"
