"""Load of several kinds against a server, and what came of it. Tests judge the reports; `benchmarks/serve.py` writes them down."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2
from tests.server.running import Server, picture

PATIENCE = 300.0  # seconds: a busy machine is slow, and that is no failure


@dataclass
class Report:
    """statuses: how often each came. seconds: of the successes. wrong: answers that were not the one of their question.

    turns: for each success, how many answers came from its question to its answer: a measure of waiting that a slow machine does not change.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    refused_seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    no_retry_after: int = 0
    wall: float = 0.0

    def at(self, share: float, what: str = "seconds") -> float:
        """A quantile of the times (or turns) of successes."""
        ordered = sorted(getattr(self, what))
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def add(self, response: httpx2.Response, seconds: float, expected: str, answered_before: int) -> None:
        """Count one response."""
        self.statuses[response.status_code] += 1
        if response.status_code == 200:
            self.seconds.append(seconds)
            self.turns.append(self.statuses[200] - answered_before)
            self.wrong += json.loads(response.content)["raw_text"] != expected
        elif response.status_code in (429, 503):
            self.refused_seconds.append(seconds)
            self.no_retry_after += int(response.headers.get("retry-after", "0")) < 1


def _client(server: Server, key: str | None = None) -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE, limits=limits, headers=headers, verify=False)


async def _ask(http: httpx2.AsyncClient, report: Report, image_id: str, prompt: str) -> None:
    begin, answered = time.perf_counter(), report.statuses[200]
    response = await http.post("/v1/segment", json={"image_id": image_id, "prompt": prompt})
    report.add(response, time.perf_counter() - begin, f"Turn 1: {prompt} [SEG].", answered)


def steady(server: Server, clients: int, requests: int) -> Report:
    """L1: so many clients, each asking again as soon as it is answered."""
    images = [server.upload(picture(k)) for k in range(10)]

    async def run() -> Report:
        report, left = Report(), iter(range(requests))

        async def one(http: httpx2.AsyncClient) -> None:
            for n in left:
                await _ask(http, report, images[n % 10], f"question {n}")

        async with _client(server) as http:
            begin = time.perf_counter()
            await asyncio.gather(*(one(http) for _ in range(clients)))
            report.wall = time.perf_counter() - begin
        return report

    return asyncio.run(run())


def burst(server: Server, requests: int) -> Report:
    """L2: all at once."""
    image_id = server.upload(picture(0))

    async def run() -> Report:
        report = Report()
        async with _client(server) as http:
            await asyncio.gather(*(_ask(http, report, image_id, f"burst {n}") for n in range(requests)))
        return report

    return asyncio.run(run())


def fairness(server: Server, seconds: float) -> tuple[Report, Report, Report]:
    """L3: the quiet keys alone, then beside a key that sends 50 a second. Returns (quiet alone, quiet beside, loud)."""
    loud_key, *quiet_keys = server.keys

    async def paced(key: str, rate: float, report: Report, image_id: str, end: float) -> None:
        pending: list[asyncio.Task[None]] = []
        async with _client(server, key) as http:
            while time.perf_counter() < end:
                pending.append(asyncio.create_task(_ask(http, report, image_id, f"{rate} {len(pending)}")))
                await asyncio.sleep(1 / rate)
            await asyncio.gather(*pending)

    images = {key: server.upload(picture(1), server.client(key)) for key in server.keys}

    async def run(loud: bool) -> tuple[Report, Report]:
        quiet, noisy, end = Report(), Report(), time.perf_counter() + seconds
        tasks = [paced(key, 2.0, quiet, images[key], end) for key in quiet_keys]
        if loud:
            tasks.append(paced(loud_key, 50.0, noisy, images[loud_key], end))
        await asyncio.gather(*tasks)
        return quiet, noisy

    alone, _ = asyncio.run(run(False))
    return (alone, *asyncio.run(run(True)))


def sessions(server: Server, number: int, turns: int, images: int, clients: int = 8) -> tuple[list[str], int]:
    """L4: so many conversations, one after the other in each client. Returns their paths in the order of their beginning, and the wrong answers."""
    known = [server.upload(picture(k)) for k in range(images)]

    async def run() -> tuple[list[str], int]:
        paths: list[str] = []
        wrong, left = 0, iter(range(number))

        async def one(http: httpx2.AsyncClient) -> None:
            nonlocal wrong
            for n in left:
                paths.append(f"/v1/sessions/{(await http.post('/v1/sessions', json={'image_id': known[n % images]})).json()['id']}")
                path = paths[-1]
                for turn in range(turns):
                    answer = (await http.post(f"{path}/messages", json={"prompt": f"{n} {turn}"})).json()
                    wrong += answer.get("raw_text") != f"Turn {turn + 1}: {n} {turn} [SEG]."

        async with _client(server) as http:
            await asyncio.gather(*(one(http) for _ in range(clients)))
        return paths, wrong

    return asyncio.run(run())


def mixed(server: Server, seconds: float, requests: int = 0, seed: int = 0) -> Counter[str]:
    """S: good, bad and abandoned requests of all kinds, as fast as eight clients send them. Returns how often each status came.

    For so long and, on a slow machine longer, until there were so many requests.
    """
    images = [server.upload(picture(k)) for k in range(5)]
    good = json.dumps({"image_id": images[0], "prompt": "x"}).encode()

    async def run() -> Counter[str]:
        seen: Counter[str] = Counter()
        end = time.perf_counter() + seconds

        async def one(n: int) -> None:
            rng = random.Random(seed * 100 + n)
            async with _client(server) as http:
                while time.perf_counter() < end or seen.total() < requests:
                    kind = rng.choice(_KINDS)
                    try:
                        status = await kind(http, images, rng, good)
                    except (TimeoutError, httpx2.HTTPError) as error:
                        status = type(error).__name__
                    seen[str(status)] += 1

        await asyncio.gather(*(one(n) for n in range(8)))
        return seen

    return asyncio.run(run())


async def _good(http: httpx2.AsyncClient, images: list[str], rng: random.Random, body: bytes) -> Any:
    return (await http.post("/v1/segment", json={"image_id": rng.choice(images), "prompt": f"good {rng.random()}"})).status_code


async def _upload(http: httpx2.AsyncClient, images: list[str], rng: random.Random, body: bytes) -> Any:
    return (await http.post("/v1/images", files={"file": ("x.png", picture(rng.randrange(500)))})).status_code


async def _session(http: httpx2.AsyncClient, images: list[str], rng: random.Random, body: bytes) -> Any:
    session = (await http.post("/v1/sessions", json={"image_id": rng.choice(images)})).json()
    path = f"/v1/sessions/{session['id']}"
    await http.post(f"{path}/messages", json={"prompt": "one"}, headers={"Idempotency-Key": "a"})
    await http.post(f"{path}/undo")
    return (await http.post(f"{path}/messages", json={"prompt": "two", "stream": True})).status_code


async def _bad(http: httpx2.AsyncClient, images: list[str], rng: random.Random, body: bytes) -> Any:
    cut = body[: rng.randrange(len(body))] + bytes([rng.randrange(256)])
    return (await http.post("/v1/segment", content=cut, headers={"Content-Type": "application/json"})).status_code


async def _bad_image(http: httpx2.AsyncClient, images: list[str], rng: random.Random, body: bytes) -> Any:
    data = picture(3)[: rng.randrange(1, 900)]
    return (await http.post("/v1/images", files={"file": ("x.png", data)})).status_code


async def _gone(http: httpx2.AsyncClient, images: list[str], rng: random.Random, body: bytes) -> Any:
    """Leave in mid-stream."""
    async with http.stream("POST", "/v1/segment", json={"image_id": images[0], "prompt": "gone", "stream": True}) as response:
        async for _ in response.aiter_bytes():
            return "left"
    return response.status_code


async def _impatient(http: httpx2.AsyncClient, images: list[str], rng: random.Random, body: bytes) -> Any:
    await asyncio.wait_for(http.post("/v1/segment", json={"image_id": images[0], "prompt": "impatient"}), 0.001)
    return "answered"


_KINDS = (_good, _good, _good, _upload, _session, _bad, _bad_image, _gone, _impatient)
