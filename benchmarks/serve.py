"""Measure the service on this machine and write the figures down: `make bench-serve` (about three minutes).

benchmarks/results/serve.json    the figures
docs/reliability.md              the same for people, made of the JSON alone (`--render` makes only this)
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.server import load  # noqa: E402
from tests.server.running import EXAMPLES, KEYS, Server, picture  # noqa: E402

from lisaseg import __version__  # noqa: E402

RESULT, PAGE = ROOT / "benchmarks" / "results" / "serve.json", ROOT / "docs" / "reliability.md"


@contextmanager
def server(*options: str, **more: Any) -> Iterator[Server]:
    """A server that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        running = Server(Path(folder) / "state", *options, **more)
        try:
            yield running
            assert running.stop() == 0
        finally:
            running.kill()


def steady() -> dict[str, Any]:
    with server("--stub-seconds", "0.05", "--max-queue", "128") as s:
        report = load.steady(s, clients=100, requests=2000)
        mean = s.metric("lisaseg_batch_size_sum") / s.metric("lisaseg_batch_size_count")
    failures = report.statuses.total() - report.statuses[200]
    times = {"p50_seconds": round(report.at(0.5), 3), "p99_seconds": round(report.at(0.99), 3), "ideal_seconds": 0.625}
    rate = round(2000 / report.wall, 1)
    return {
        "requests": 2000,
        "clients": 100,
        "failures": failures,
        "wrong": report.wrong,
        "mean_batch": round(mean, 2),
        "requests_per_second": rate,
        **times,
    }


def burst() -> dict[str, Any]:
    with server("--stub-seconds", "0.2", "--max-queue", "64") as s:
        report = load.burst(s, 500)
    return {
        "requests": 500,
        "queue": 64,
        "statuses": {str(k): v for k, v in sorted(report.statuses.items())},
        "without_retry_after": report.no_retry_after,
    }


def fairness() -> dict[str, Any]:
    with server("--stub-seconds", "0.05", "--limit", "requests_per_minute=300", keys=KEYS) as s:
        alone, beside, loud = load.fairness(s, 8.0)
    return {
        "quiet_refused": beside.statuses.total() - beside.statuses[200],
        "loud_refused": loud.statuses[429],
        "quiet_p95_alone_seconds": round(alone.at(0.95), 3),
        "quiet_p95_beside_seconds": round(beside.at(0.95), 3),
    }


def soak(seconds: float) -> dict[str, Any]:
    with server("--stub-seconds", "0.005") as s:
        load.mixed(s, seconds / 4, seed=1)
        before = s.resources()
        seen = load.mixed(s, seconds)
        after = s.resources()
    grown = {name: round((after[name] - before[name]) / (1e6 if name == "rss" else 1), 1) for name in before}
    return {
        "seconds": seconds,
        "outcomes": dict(seen.most_common()),
        "grown": {"rss_mb": grown["rss"], "fds": grown["fds"], "threads": grown["threads"]},
    }


def model() -> dict[str, Any]:
    """lisa-tiny: start, first words, a question, a follow-up."""
    begin = time.monotonic()
    with server(engine="lisa", wait=False) as s:
        page = time.monotonic() - begin
        s.wait_ready()
        ready = time.monotonic() - begin
        first, whole, follow = [], [], []
        for photo in ("coffee", "cat", "rocket", "astronaut", "photographer"):
            image_id = s.upload((EXAMPLES / f"{photo}.jpg").read_bytes())
            session = s.http.post("/v1/sessions", json={"image_id": image_id}).json()["id"]
            for prompt, times in (("the main thing in the picture", whole), ("What is behind it?", follow)):
                begin, words = time.monotonic(), 0.0
                body = {"prompt": prompt, "stream": True}
                with s.http.stream("POST", f"/v1/sessions/{session}/messages", json=body) as response:
                    for line in response.iter_lines():
                        words = words or (time.monotonic() - begin if line == "event: delta" else 0.0)
                times.append(time.monotonic() - begin)
                first.append(words)
        encodings = s.metric('lisaseg_encoder_runs_total{encoder="image"}')
    return {
        "page_seconds": round(page, 2),
        "ready_seconds": round(ready, 2),
        "first_words_median_seconds": round(statistics.median(first), 2),
        "first_words_worst_seconds": round(max(first), 2),
        "question_median_seconds": round(statistics.median(whole), 2),
        "follow_up_median_seconds": round(statistics.median(follow), 2),
        "encodings_for_5_pictures_and_10_questions": int(encodings),
    }


def restart() -> dict[str, Any]:
    with server() as s:
        import signal

        image_id = s.upload(picture())
        os.kill(s.engines[0], signal.SIGKILL)
        begin = time.monotonic()
        while s.ask(image_id, "x").status_code != 200:
            time.sleep(0.02)
    return {"stub_engine_back_seconds": round(time.monotonic() - begin, 2)}


def render(figures: dict[str, Any]) -> str:
    """docs/reliability.md."""
    s, b, f, k, m = (figures[name] for name in ("steady", "burst", "fairness", "soak", "model"))
    statuses = ", ".join(f"{n} x {status}" for status, n in b["statuses"].items())
    faults = sum(n for status, n in k["outcomes"].items() if status.startswith("5"))
    grown = f"grown by {k['grown']['rss_mb']} MB, {k['grown']['fds']:g} files, {k['grown']['threads']:g} threads"
    times = f"p50 {s['p50_seconds']} s, p99 {s['p99_seconds']} s (ideal {s['ideal_seconds']} s)"
    five = f"the five: {f['quiet_refused']} refused, p95 {f['quiet_p95_alone_seconds']} s alone, {f['quiet_p95_beside_seconds']} s beside it"
    words = f"first words {m['first_words_median_seconds']} s (worst {m['first_words_worst_seconds']} s)"
    asked = f"question {m['question_median_seconds']} s, follow-up {m['follow_up_median_seconds']} s"
    rows = {
        "100 clients, 2,000 requests, 50 ms a batch of 8": f"{s['failures']} failures, {s['wrong']} mixed up; mean batch {s['mean_batch']}, "
        f"{s['requests_per_second']} a second, {times}",
        "500 at once, queue of 64": f"{statuses}; {b['without_retry_after']} refusals without Retry-After",
        "one key at 50 a second beside five at 2": f"{five}; the one: {f['loud_refused']} x 429",
        f"{k['seconds']:g} s of good, bad and abandoned requests": f"{sum(k['outcomes'].values()):,} requests, {faults} x 5xx; {grown}",
        "engine killed": f"the next answer after {figures['restart']['stub_engine_back_seconds']} s (engine without a model)",
        "lisa-tiny, start": f"page after {m['page_seconds']} s, answers after {m['ready_seconds']} s",
        "lisa-tiny, one user": f"{words}, {asked}; {m['encodings_for_5_pictures_and_10_questions']} encodings for 5 pictures and 10 questions",
    }
    table = "\n".join(f"| {what} | {came} |" for what, came in rows.items())
    where = f"On {figures['machine']}, lisaseg {figures['version']}; clients and server share the cores."
    return f"{HEAD}\n## Measured\n\n{where}\n\n| what | what came of it |\n|---|---|\n{table}\n"


HEAD = """<!-- Written by benchmarks/serve.py; change it there. -->
# Reliability of the service

What the service promises, where it is tested, and what was measured. `make test-serve` runs the tests on real processes (a stub engine answers by a
rule where the HTTP layer is meant, lisa-tiny elsewhere); `make bench-serve` measures again and rewrites this page.

| promise | tests in `tests/server` |
|---|---|
| Every request is answered: its own answer, or an error of the catalogue; nothing waits for ever. | `test_load.py`, `test_faults.py` |
| A full queue, a loud key, a model that loads and a server that ends refuse at once and say when to come back. | `test_load.py`, `test_faults.py` |
| An engine that dies, stops or hangs is replaced; what it worked on fails with `engine_restarted`, what waits is answered. | `test_faults.py` |
| One question of a batch that fails does not harm the others. | `test_parts.py` |
| Sessions and pictures survive the death of engine and server; all that is kept is bounded. | `test_faults.py`, `test_parts.py` |
| SIGTERM: running requests finish, new ones get 503 `draining`, exit code 0. | `test_faults.py` |
| A picture is encoded once; a follow-up question encodes nothing. | `test_load.py`, `test_clients.py` |
| Whatever is sent as picture, prompt, JSON or bytes: 2xx or 4xx, and nothing of the inside in the response. | `test_corpora.py`, `test_gate.py` |
| Without a key nothing is served but what holds nothing; another key's things do not exist. | `test_gate.py` |
| A URL never leads into a private network. | `test_parts.py` |
| `lisaseg.Client` and OpenAI's SDK get what the local model says. | `test_clients.py` |

Not tested here: Docker images, GPUs under load, days of running.
"""


def main() -> None:
    """Measure and write, or only write."""
    if "--render" not in sys.argv:
        machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} before"
        parts = {part.__name__: part() for part in (steady, burst, fairness, restart, model)}
        figures = {"machine": machine, "version": __version__, **parts, "soak": soak(60.0)}
        RESULT.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    PAGE.write_text(render(json.loads(RESULT.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
