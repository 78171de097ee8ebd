"""Measure the service on this machine and write the figures down: `make bench-serve` (about four minutes).

benchmarks/results/serve.json    the figures
docs/reliability.md              the same for people, made of the JSON alone (`--render` makes only this)
"""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.server import load  # noqa: E402
from tests.server.demands import FAULTS, ROWS  # noqa: E402
from tests.server.running import EXAMPLES, KEYS, Server, picture, until  # noqa: E402

from lisaseg import __version__  # noqa: E402

RESULT, PAGE = ROOT / "benchmarks" / "results" / "serve.json", ROOT / "docs" / "reliability.md"


@contextmanager
def server(*options: str, **more: Any) -> Iterator[Server]:
    """A server that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        running = Server(Path(folder) / "state", *options, **more)
        try:
            yield running
            assert running.process.poll() == -signal.SIGKILL or running.stop() == 0
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
    statuses = {str(k): v for k, v in sorted(report.statuses.items())}
    return {"requests": 500, "queue": 64, "statuses": statuses, "without_retry_after": report.no_retry_after, "refusal_p95_seconds": refusal()}


def refusal() -> float:
    """How soon one client hears that the queue is full."""
    with server("--stub-seconds", "60", "--max-queue", "1", "--max-batch", "1") as s, ThreadPoolExecutor(2) as pool:
        image_id, times = s.upload(picture()), []
        for k, gauge in enumerate(("lisaseg_running", "lisaseg_queue_depth")):
            pool.submit(s.ask, image_id, f"{k}", s.client())
            until(lambda gauge=gauge: s.metric(gauge))
        for _ in range(50):
            begin = time.perf_counter()
            assert s.ask(image_id, "one too many").status_code == 503
            times.append(time.perf_counter() - begin)
        s.process.kill()
    return round(sorted(times)[47], 4)


def sessions() -> dict[str, Any]:
    with server("--stub-seconds", "0") as s:
        load.sessions(s, 40, turns=5, images=50)
        before, begin = s.resources()["rss"], time.monotonic()
        paths, wrong = load.sessions(s, 1200, turns=5, images=50)
        seconds, after = time.monotonic() - begin, s.resources()["rss"]
        expired = sum(s.http.get(path).status_code == 410 for path in paths)
        encodings = s.metric('lisaseg_encoder_runs_total{encoder="image"}')
    grown = {"grown_mb": round((after - before) / 1e6, 1), "turns_per_second": round(6000 / seconds, 1)}
    return {"sessions": 1200, "expired": expired, "wrong": wrong, "encodings_for_50_pictures": int(encodings), **grown}


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
        image_id = s.upload(picture())
        os.kill(s.engines[0], signal.SIGKILL)
        begin = time.monotonic()
        while s.ask(image_id, "x").status_code != 200:
            time.sleep(0.02)
    return {"stub_engine_back_seconds": round(time.monotonic() - begin, 2)}


def measured(figures: dict[str, Any]) -> dict[str, str]:
    """A sentence for each figure."""
    s, b, f, k, m = (figures[name] for name in ("steady", "burst", "fairness", "soak", "model"))
    statuses = ", ".join(f"{n} x {status}" for status, n in b["statuses"].items())
    refusal = f"; a refusal takes {1e3 * b['refusal_p95_seconds']:.0f} ms (p95)" if "refusal_p95_seconds" in b else ""
    faults = sum(n for status, n in k["outcomes"].items() if status.startswith("5"))
    grown = f"grown by {k['grown']['rss_mb']} MB, {k['grown']['fds']:g} files, {k['grown']['threads']:g} threads"
    times = f"p50 {s['p50_seconds']} s, p99 {s['p99_seconds']} s (ideal {s['ideal_seconds']} s)"
    five = f"the five: {f['quiet_refused']} refused, p95 {f['quiet_p95_alone_seconds']} s alone, {f['quiet_p95_beside_seconds']} s beside it"
    words = f"first words {m['first_words_median_seconds']} s (worst {m['first_words_worst_seconds']} s)"
    asked = f"question {m['question_median_seconds']} s, follow-up {m['follow_up_median_seconds']} s"
    start = f"page after {m['page_seconds']} s, answers after {m['ready_seconds']} s"
    found = {
        "steady": f"{s['failures']} failures, {s['wrong']} mixed up; mean batch {s['mean_batch']}, {s['requests_per_second']} a second, {times}",
        "burst": f"{statuses}; {b['without_retry_after']} refusals without Retry-After{refusal}",
        "fairness": f"{five}; the one: {f['loud_refused']} x 429",
        "soak": f"{k['seconds']:g} s, {sum(k['outcomes'].values()):,} requests, {faults} x 5xx; {grown}",
        "restart": f"engine killed: the next answer after {figures['restart']['stub_engine_back_seconds']} s (engine without a model)",
        "model": f"lisa-tiny: {start}; one user: {words}, {asked}; "
        f"{m['encodings_for_5_pictures_and_10_questions']} encodings for 5 pictures and 10 questions",
    }
    if "sessions" in figures:
        c = figures["sessions"]
        found["sessions"] = (
            f"{c['expired']} x 410, {c['wrong']} wrong, {c['encodings_for_50_pictures']} encodings for 50 pictures; grown by {c['grown_mb']} MB, "
            f"{c['turns_per_second']} turns a second"
        )
    return found


def render(figures: dict[str, Any]) -> str:
    """docs/reliability.md."""
    found = measured(figures)
    rows = []
    for row in ROWS:
        tests = "see below" if row.id == "F" else "<br>".join(f"`{test}`" for test in row.tests)
        size = f"{row.pr}; long: {row.long}" if row.long else row.pr
        rows.append(f"| {row.id} | {row.what} | {size} | {tests} | {found.get(row.figure, '')} |")
    faults = [f"| {k} | {name} | {'<br>'.join(f'`{test}`' for test in tests)} |" for k, (name, tests) in enumerate(FAULTS.items(), start=1)]
    where = f"Measured on {figures['machine']}, lisaseg {figures['version']}; clients and server share the cores."
    table = "| | what must hold | size of the test | tests (below `tests/`) | measured |\n|---|---|---|---|---|\n" + "\n".join(rows)
    broken = "| | fault | tests |\n|---|---|---|\n" + "\n".join(faults)
    return f"{HEAD}\n## Tests and figures\n\n{where}\n\n{table}\n\n## F: the 29 faults\n\n{broken}\n"


HEAD = """<!-- Written by benchmarks/serve.py; change it there, or in tests/server/demands.py. -->
# Reliability of the service

What the service promises, where it is tested, and what was measured.

- Every request is answered: its own answer, or an error of the catalogue; nothing waits for ever.
- A full queue, a loud key, a model that loads and a server that ends refuse at once and say when to come back.
- An engine that dies, stops, hangs or loses its device is replaced; what it worked on fails with `engine_restarted`, what waits is answered.
- One question of a batch that fails does not harm the others.
- Sessions and pictures survive the death of engine and server; all that is kept is bounded.
- SIGTERM: running requests finish, new ones get 503 `draining`, exit code 0.
- A picture is encoded once; a follow-up question encodes nothing.
- Whatever is sent as picture, prompt, JSON or bytes: 2xx or 4xx, and nothing of the inside in the response.
- Without a key nothing is served but what holds nothing; another key's things do not exist. A URL never leads into a private network.
- `lisaseg.Client` and OpenAI's SDK get what the local model says.

`make test-serve` runs the tests on real processes (a stub engine answers by a rule where the HTTP layer is meant, lisa-tiny elsewhere),
`make test-long` the same at the long size, `make bench-serve` measures again and rewrites this page. The tests assert order and number, so that a
busy machine does not fail them; seconds are measured, not asserted.

Not tested here: Docker images, GPUs under load, more hours than somebody gives the long soak.
"""


def main() -> None:
    """Measure and write, or only write."""
    if "--render" not in sys.argv:
        machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} before"
        parts = {part.__name__: part() for part in (steady, burst, fairness, sessions, restart, model)}
        figures = {"machine": machine, "version": __version__, **parts, "soak": soak(60.0)}
        RESULT.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    PAGE.write_text(render(json.loads(RESULT.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
