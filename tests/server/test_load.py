"""L1-L4 and S: many at once, more than fit, one that shouts, more sessions than are kept, and a long mixture of everything.

What is asserted is order and number, never seconds: these tests also run on machines that are busy with other things. The seconds stand in
`docs/reliability.md`, measured by `benchmarks/serve.py`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.server import load
from tests.server.running import KEYS, Server, code_of, picture, until
from tests.server.sizes import size, soak_seconds

pytestmark = pytest.mark.serve
PATIENT = ("--limit", "deadline_seconds=600")


def test_a_hundred_clients_lose_nothing(start: Callable[..., Server]) -> None:
    """Nobody waits longer than three rounds: the ideal is that between a question and its answer each of the others is answered once."""
    clients, requests = 100, size(2_000, 20_000)
    server = start("--stub-seconds", "0.05", "--max-queue", "128", *PATIENT)
    report = load.steady(server, clients, requests)
    assert report.statuses == {200: requests} and report.wrong == 0
    batches, asked = server.metric("lisaseg_batch_size_count"), server.metric("lisaseg_batch_size_sum")
    assert asked == requests and asked / batches >= 6
    assert report.at(0.99, "turns") <= 3 * clients, f"median {report.at(0.5, 'turns')}, 99 % {report.at(0.99, 'turns')}"
    assert server.stop() == 0


def test_a_burst_is_answered_or_refused_at_once(start: Callable[..., Server]) -> None:
    for _ in range(size(1, 5)):
        server = start("--stub-seconds", "0.2", "--max-queue", "64", *PATIENT, state=os.urandom(4).hex())
        report = load.burst(server, 500)
        assert set(report.statuses) == {200, 503} and report.statuses.total() == 500 and report.statuses[200] >= 64
        assert report.no_retry_after == 0 and report.wrong == 0
        assert server.ask(server.upload(picture(1)), "after").status_code == 200
        assert server.stop() == 0


def test_a_refusal_waits_for_nobody(start: Callable[..., Server]) -> None:
    """It comes while all those before it still wait for their answers."""
    server = start("--stub-seconds", "300", "--max-queue", "2", "--max-batch", "1", *PATIENT)
    image_id = server.upload(picture(1))
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(server.ask, image_id, "0", server.client())]
        until(lambda: server.metric("lisaseg_running") == 1)
        waiting += [pool.submit(server.ask, image_id, f"{k}", server.client()) for k in (1, 2)]
        until(lambda: server.metric("lisaseg_queue_depth") == 2)
        refused = server.ask(image_id, "one too many")
        assert code_of(refused) == "overloaded" and int(refused.headers["retry-after"]) >= 1
        assert not any(job.done() for job in waiting)
        server.kill()


def test_a_loud_key_does_not_slow_the_others(start: Callable[..., Server]) -> None:
    """50 a second of one key beside five keys that ask twice a second: the five are never refused."""
    server = start("--stub-seconds", "0.05", "--limit", "requests_per_minute=300", *PATIENT, keys=KEYS)
    alone, beside, loud = load.fairness(server, size(5, 60))
    assert set(alone.statuses) == set(beside.statuses) == {200} and beside.wrong == loud.wrong == 0
    assert loud.statuses[429] > 0 and loud.no_retry_after == 0 and loud.statuses[200] > 0


def test_who_asks_once_does_not_wait_for_who_asks_often(start: Callable[..., Server]) -> None:
    """40 questions of one key wait, ten batches of them, and then one of another key: it is in the next batch."""
    options = ("--stub-seconds", "0.1", "--max-batch", "4", "--limit", "concurrent_per_key=50", "--limit", "heartbeat_seconds=600")
    server = start(*options, *PATIENT, keys=KEYS)
    images = [server.upload(picture(1), server.client(key)) for key in KEYS[:2]]
    os.kill(server.engines[0], signal.SIGSTOP)  # until all have asked
    with ThreadPoolExecutor(41) as pool:
        jobs = [pool.submit(server.ask, images[0], f"{k}", server.client(KEYS[0])) for k in range(40)]
        until(lambda: server.metric("lisaseg_running") + server.metric("lisaseg_queue_depth") == 40)
        jobs.append(pool.submit(server.ask, images[1], "quiet", server.client(KEYS[1])))
        until(lambda: server.metric("lisaseg_running") + server.metric("lisaseg_queue_depth") == 41)
        os.kill(server.engines[0], signal.SIGCONT)
        assert {job.result().status_code for job in jobs} == {200}
    until(lambda: len(server.logged("request", route="/v1/segment")) == 41)
    owners = [line["owner"] for line in server.logged("request", route="/v1/segment")]
    quiet = next(name for name in set(owners) if owners.count(name) == 1)
    assert owners.index(quiet) < 12, "the order in which the answers left, four together"


def test_more_sessions_than_are_kept(start: Callable[..., Server]) -> None:
    number, kept, images = 1_200, 1_000, 50
    server = start("--stub-seconds", "0", "--limit", f"max_sessions={kept}", *PATIENT)
    load.sessions(server, 40, turns=5, images=images)  # warm-up; they are the first to go
    server.peak_bytes(reset=True)
    before = server.peak_bytes()
    paths, wrong = load.sessions(server, number, size(5, 20), images)
    assert wrong == 0 and server.peak_bytes() - before <= 50e6
    codes = [code_of(server.http.get(path)) for path in paths]
    assert codes.count("session_expired") == number - kept and codes.count("") == kept
    assert set(codes[number - kept + 8 :]) == {""}, "those that were not used for longest; eight clients are never quite in step"
    assert server.metric('lisaseg_encoder_runs_total{encoder="image"}') == images, "each picture once, follow-ups never"


def _soak(server: Server, seconds: float, requests: int, grown: float = 50e6) -> None:
    load.mixed(server, max(5.0, seconds / 20), seed=1)  # warm-up
    before = server.resources()
    seen = load.mixed(server, seconds, requests)
    assert server.ask(server.upload(picture(1)), "after").status_code == 200
    lost = server.metric('lisaseg_answers_total{outcome="engine_restarted"}')  # somebody kills engines in the longest one
    assert {status for status in seen if status.startswith("5")} <= ({"503"} if lost else set()) and seen["503"] <= lost, seen
    assert seen["200"] > requests / 4 and seen["left"] and seen["400"] and seen["422"], seen
    until(lambda: server.resources()["fds"] <= before["fds"] + 12 and server.resources()["threads"] <= before["threads"] + 4)
    assert server.resources()["rss"] - before["rss"] <= grown, (before, server.resources())
    assert not list((server.state / "images").glob("*.tmp*")) and not list(server.state.glob("*.tmp*")), "files that are being written"


def test_a_soak_leaves_nothing_behind(start: Callable[..., Server]) -> None:
    _soak(start("--stub-seconds", "0.005", *PATIENT), size(20, 300), 3_000)


@pytest.mark.long
def test_a_long_soak_with_deaths_leaves_nothing_behind(start: Callable[..., Server]) -> None:
    """S2: LISASEG_SOAK_MINUTES of it, and every ten minutes the engine is killed (twice, if it is shorter)."""
    server, seconds, over = start("--stub-seconds", "0.005", *PATIENT), soak_seconds(), threading.Event()

    def killer() -> None:
        while not over.wait(min(600.0, seconds / 3)):
            for engine in server.engines:
                os.kill(engine, signal.SIGKILL)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        _soak(server, seconds, requests=0, grown=100e6)
    finally:
        over.set()
        thread.join()
    assert server.metric('lisaseg_engine_restarts_total{reason="died"}') >= 1
