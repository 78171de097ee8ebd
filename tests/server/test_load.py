"""L1-L4 and S: many at once, more than fit, one that shouts, more sessions than are kept, and a long mixture of everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.server import load
from tests.server.running import KEYS, Server, code_of, picture

pytestmark = pytest.mark.serve


def test_a_hundred_clients_lose_nothing(start: Callable[..., Server]) -> None:
    server = start("--stub-seconds", "0.05", "--max-queue", "128")
    report = load.steady(server, clients=100, requests=2000)
    assert report.statuses == {200: 2000} and report.wrong == 0
    batches, asked = server.metric("lisaseg_batch_size_count"), server.metric("lisaseg_batch_size_sum")
    assert asked == 2000 and asked / batches >= 6
    ideal = 100 / 8 * 0.05  # seconds: a hundred wait for batches of eight
    assert report.at(0.99) <= 3 * ideal, f"p50 {report.at(0.5):.2f} s, p99 {report.at(0.99):.2f} s"
    assert server.stop() == 0


def test_a_burst_is_answered_or_refused_at_once(start: Callable[..., Server]) -> None:
    server = start("--stub-seconds", "0.2", "--max-queue", "64")
    report = load.burst(server, 500)
    assert set(report.statuses) == {200, 503} and report.statuses.total() == 500 and report.statuses[200] >= 64
    assert report.no_retry_after == 0 and report.wrong == 0
    assert server.ask(server.upload(picture(1)), "after").status_code == 200


def test_a_refusal_is_quick(start: Callable[..., Server]) -> None:
    import threading
    import time

    server = start("--stub-seconds", "2", "--max-queue", "2", "--max-batch", "1")
    image_id = server.upload(picture(1))
    threads = [threading.Thread(target=server.ask, args=(image_id, f"{k}", server.client())) for k in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    begin = time.perf_counter()
    assert code_of(server.ask(image_id, "one too many")) == "overloaded"
    assert time.perf_counter() - begin <= 0.1
    for thread in threads:
        thread.join()


def test_a_loud_key_does_not_slow_the_others(start: Callable[..., Server]) -> None:
    server = start("--stub-seconds", "0.05", "--limit", "requests_per_minute=300", keys=KEYS)
    alone, beside, loud = load.fairness(server, 5.0)
    assert set(alone.statuses) == set(beside.statuses) == {200} and beside.wrong == loud.wrong == 0
    assert loud.statuses[429] > 0 and loud.no_retry_after == 0 and loud.statuses[200] > 0
    assert beside.at(0.95) <= 2 * alone.at(0.95) + 0.05


def test_more_sessions_than_are_kept(start: Callable[..., Server]) -> None:
    server = start("--stub-seconds", "0", "--limit", "max_sessions=100")
    images = [server.upload(picture(k)) for k in range(10)]
    paths = []
    for n in range(120):
        session = server.http.post("/v1/sessions", json={"image_id": images[n % 10]}).json()
        paths.append(f"/v1/sessions/{session['id']}")
        for turn in range(3):
            answer = server.http.post(f"{paths[-1]}/messages", json={"prompt": f"q{turn}"})
            assert answer.json()["raw_text"] == f"Turn {turn + 1}: q{turn} [SEG]."
    assert [code_of(server.http.get(path)) for path in paths] == ["session_expired"] * 20 + [""] * 100
    assert server.metric('lisaseg_encoder_runs_total{encoder="image"}') == 10, "each picture once, follow-ups never"


def _soak(server: Server, seconds: float) -> None:
    load.mixed(server, max(5.0, seconds / 4), seed=1)  # warm-up
    before = server.resources()
    seen = load.mixed(server, seconds)
    assert server.ask(server.upload(picture(1)), "after").status_code == 200
    after = server.resources()
    assert not {status for status in seen if status.startswith("5")}, seen
    assert seen["200"] > 20 * seconds and seen["left"] and seen["400"] and seen["422"], seen
    assert after["rss"] - before["rss"] <= 50e6, (before, after)
    assert after["fds"] <= before["fds"] + 12 and after["threads"] <= before["threads"] + 4, (before, after)


def test_a_soak_leaves_nothing_behind(start: Callable[..., Server]) -> None:
    _soak(start("--stub-seconds", "0.005"), 20)


@pytest.mark.long
def test_a_soak_of_five_minutes_leaves_nothing_behind(start: Callable[..., Server]) -> None:
    _soak(start("--stub-seconds", "0.005"), 300)
