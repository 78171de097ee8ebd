"""F: what breaks in practice, done on purpose. Each time: the right status or exit code, one line in the log, and the next good request succeeds.

Which test is which of the 29 faults stands in `tests/server/demands.py`. Nothing here means seconds: what has to come first is compared with
something that would take minutes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from tests.server.running import ROOT, Server, code_of, events, picture, until
from tests.server.sizes import size

pytestmark = pytest.mark.serve


@pytest.fixture(autouse=True, params=range(size(1, 5)))
def again(request: pytest.FixtureRequest) -> int:
    """Every fault once, or five times at long size."""
    return int(request.param)


def in_background(server: Server, image_id: str, prompt: str, **more: Any) -> Any:
    return ThreadPoolExecutor(1).submit(server.ask, image_id, prompt, server.client(), **more)


def test_engine_killed_under_a_request(start: Callable[..., Server]) -> None:
    server = start("--max-batch", "1")
    image_id = server.upload(picture())
    session = server.http.post("/v1/sessions", json={"image_id": image_id}).json()["id"]
    server.http.post(f"/v1/sessions/{session}/messages", json={"prompt": "before"})
    running = in_background(server, image_id, "!hang")
    until(lambda: server.metric("lisaseg_running"))
    waiting = in_background(server, image_id, "waiting")
    until(lambda: server.metric("lisaseg_queue_depth"))
    os.kill(server.engines[0], signal.SIGKILL)
    response = running.result()
    assert code_of(response) == "engine_restarted" and response.status_code == 503 and int(response.headers["retry-after"]) >= 1
    assert waiting.result().status_code == 200, "what was not begun is not lost"
    answer = server.http.post(f"/v1/sessions/{session}/messages", json={"prompt": "after"}).json()
    assert answer["raw_text"].startswith("Turn 2"), "the session goes on"
    assert server.metric('lisaseg_engine_restarts_total{reason="died"}') == 1
    assert len(server.logged("engine lost")) == len(server.logged("request", code="engine_restarted", status=503)) == 1


@pytest.mark.parametrize(("prompt", "status", "code"), [("!raise", 500, "internal"), ("!oom", 503, "out_of_memory")])
def test_one_question_of_a_batch_fails(start: Callable[..., Server], prompt: str, status: int, code: str) -> None:
    server = start("--max-batch", "4", "--limit", "heartbeat_seconds=600")
    image_id = server.upload(picture())
    os.kill(server.engines[0], signal.SIGSTOP)  # until all four have asked
    jobs = [in_background(server, image_id, text) for text in ("one", prompt, "two", "three")]
    until(lambda: server.metric("lisaseg_running") + server.metric("lisaseg_queue_depth") == 4)
    os.kill(server.engines[0], signal.SIGCONT)
    responses = [job.result() for job in jobs]
    assert [response.status_code for response in responses] == [200, status, 200, 200] and code_of(responses[1]) == code
    assert len(until(lambda: server.logged("request", code=code, status=status))) == 1
    assert server.ask(image_id, "after").status_code == 200 and server.metric('lisaseg_engine_restarts_total{reason="died"}') == 0


def test_a_stream_ends_with_an_error_when_the_engine_dies(start: Callable[..., Server]) -> None:
    server = start()
    image_id = server.upload(picture())
    with server.http.stream("POST", "/v1/segment", json={"image_id": image_id, "prompt": "!crash", "stream": True}) as response:
        name, data = events(response)[-1]
    assert response.status_code == 200 and name == "error" and data["error"]["code"] == "engine_restarted"
    assert server.ask(image_id, "after").status_code == 200


def test_idle_engine_killed(start: Callable[..., Server]) -> None:
    server = start()
    image_id = server.upload(picture())
    os.kill(server.engines[0], signal.SIGKILL)
    until(lambda: server.http.get("/readyz").json()["status"] == "restarting")
    assert server.http.get("/healthz").status_code == 200
    assert server.ask(image_id, "after").status_code == 200


def test_engine_stopped_and_engine_hung(start: Callable[..., Server]) -> None:
    limits = ("heartbeat_seconds=4", "hang_seconds=0.5", "deadline_seconds=4")
    server = start(*(part for limit in limits for part in ("--limit", limit)))
    image_id = server.upload(picture())
    os.kill(server.engines[0], signal.SIGSTOP)
    assert code_of(server.ask(image_id, "stopped")) in ("engine_restarted", "deadline_exceeded")
    server.wait_ready()
    assert server.ask(image_id, "after the stop").status_code == 200
    assert server.metric('lisaseg_engine_restarts_total{reason="silent"}') == 1
    response = server.ask(image_id, "!hang")
    assert response.status_code == 504 and code_of(response) == "deadline_exceeded"
    until(lambda: server.metric('lisaseg_engine_restarts_total{reason="hung"}'))
    server.wait_ready()
    assert server.ask(image_id, "after the hang").status_code == 200


def test_deadline_in_the_queue(start: Callable[..., Server]) -> None:
    server = start("--stub-seconds", "20", "--max-batch", "1", "--limit", "deadline_seconds=1")
    image_id = server.upload(picture())
    first = in_background(server, image_id, "first")
    until(lambda: server.metric("lisaseg_running"))
    begin = time.monotonic()
    assert code_of(server.ask(image_id, "second")) == "deadline_exceeded" and time.monotonic() - begin > 0.8
    assert code_of(first.result()) == "deadline_exceeded"
    assert server.metric("lisaseg_queue_depth") == 0 and server.metric("lisaseg_batch_size_sum") == 1, "the second never ran"
    until(lambda: len(server.logged("request", code="deadline_exceeded", status=504)) == 2)


def test_client_gone_frees_its_place(start: Callable[..., Server]) -> None:
    """Far sooner than the answer, which would take an hour; the stub looks for it eight times in that hour, so the queue shows it."""
    server = start("--stub-seconds", "3600", "--max-batch", "1", "--limit", "deadline_seconds=3600")
    image_id = server.upload(picture())
    gone = 'lisaseg_answers_total{outcome="cancelled"}'
    for k, stream in enumerate((True, False), start=1):
        body = {"image_id": image_id, "prompt": "x", "stream": stream}
        patience = httpx2.Timeout(300, read=0.5)
        with pytest.raises(httpx2.ReadTimeout), server.client(timeout=patience) as http, http.stream("POST", "/v1/segment", json=body) as response:
            for _ in response.iter_bytes():
                pass
        until(lambda k=k: server.metric(gone) == k)
        assert server.metric("lisaseg_queue_depth") == 0
    os.kill(server.engines[0], signal.SIGKILL)
    until(lambda: server.metric("lisaseg_running") == 0)


def test_a_place_that_was_left_is_given_to_the_next(start: Callable[..., Server]) -> None:
    server = start("--stub-seconds", "4", "--max-batch", "1")
    image_id = server.upload(picture())
    with server.client() as http, http.stream("POST", "/v1/segment", json={"image_id": image_id, "prompt": "x", "stream": True}) as response:
        assert b"event: start" in next(response.iter_bytes())
    answer = server.ask(image_id, "next")
    assert answer.status_code == 200 and server.metric('lisaseg_answers_total{outcome="cancelled"}') == 1
    assert server.metric('lisaseg_answers_total{outcome="done"}') == 1


def test_client_gone_leaves_the_session_as_it_was(start: Callable[..., Server]) -> None:
    server = start("--stub-seconds", "5", "--limit", "heartbeat_seconds=600")
    session = server.http.post("/v1/sessions", json={"image_id": server.upload(picture())}).json()["id"]
    path = f"/v1/sessions/{session}"
    os.kill(server.engines[0], signal.SIGSTOP)  # so that it is busy for as long as this needs
    with server.client() as http, http.stream("POST", f"{path}/messages", json={"prompt": "x", "stream": True}) as response:
        parts = response.iter_bytes()
        assert b"event: start" in next(parts)
        assert code_of(server.http.post(f"{path}/messages", json={"prompt": "y"})) == "session_busy"
        assert code_of(server.http.post(f"{path}/undo")) == "session_busy"
    os.kill(server.engines[0], signal.SIGCONT)
    until(lambda: server.http.post(f"{path}/messages", json={"prompt": "z"}).status_code == 200)
    assert [turn["prompt"] for turn in server.http.get(path).json()["turns"]] == ["z"]


def raw(server: Server, data: bytes, seconds: float = 60.0) -> bytes:
    """Send bytes, shut the sending side, return what comes."""
    host, port = server.url[7:].split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def test_half_an_upload(start: Callable[..., Server]) -> None:
    server = start()
    before = server.resources()["fds"]
    head = b"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n--b\r\n"
    for _ in range(20):
        raw(server, head)
    until(lambda: server.resources()["fds"] <= before + 2)
    for body in (b"--b\r\nContent-Dis", b"no boundary", b"--b--\r\n", b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n'):
        response = server.http.post("/v1/images", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
        assert code_of(response) in ("invalid_multipart", "missing_image")
    assert code_of(server.http.post("/v1/images", content=b"x", headers={"Content-Type": "multipart/form-data"})) == "invalid_multipart"
    server.upload(picture())


def test_slow_heads_and_slow_bodies(start: Callable[..., Server]) -> None:
    server = start("--limit", "head_seconds=3", "--limit", "body_seconds=1")
    host, port = server.url[7:].split(":")
    loris = [socket.create_connection((host, int(port))) for _ in range(200)]
    for connection in loris:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
    with server.client() as http:
        assert http.get("/healthz").status_code == 200
    for connection in loris:
        connection.settimeout(60)
        assert connection.recv(100) == b"", "closed"
        connection.close()
    head = b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_disk_full(start: Callable[..., Server]) -> None:
    server = start()
    image_id = server.upload(picture())
    soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100, hard))
    response = server.http.post("/v1/images", files={"file": ("x", picture(5))})
    assert response.status_code == 503 and code_of(response) == "storage_full"
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
    server.upload(picture(5))
    assert server.ask(image_id, "after").status_code == 200


def test_store_out_of_order(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start()
    image_id = server.upload(picture())
    for path in (tmp_path / "state" / "images").iterdir():
        path.unlink()
    assert code_of(server.ask(image_id, "x")) == "image_expired"
    assert code_of(server.http.get(f"/v1/images/{image_id}/content")) == "image_expired"
    assert server.upload(picture()) == image_id
    assert server.ask(image_id, "after").status_code == 200


def test_sigterm_under_load(start: Callable[..., Server]) -> None:
    server = start("--stub-seconds", "0.5", "--max-batch", "4", "--limit", "heartbeat_seconds=600")
    image_id = server.upload(picture())
    os.kill(server.engines[0], signal.SIGSTOP)  # until everybody is where this test wants them
    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(server.ask, image_id, f"{k}", server.client()) for k in range(12)]
        until(lambda: server.metric("lisaseg_running") + server.metric("lisaseg_queue_depth") == 12)
        engine = server.engines[0]
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.http.get("/readyz").json()["status"] == "draining")
        response = server.ask(image_id, "late")
        assert response.status_code == 503 and code_of(response) == "draining"
        os.kill(engine, signal.SIGCONT)
        assert [job.result().status_code for job in jobs] == [200] * 12
    assert server.process.wait(60) == 0
    assert len(server.logged("draining", running=12)) == 1 and len(server.logged("request", code="draining")) == 1


def test_second_signal_ends_at_once(start: Callable[..., Server]) -> None:
    """The answer and the drain would each take an hour."""
    server = start("--stub-seconds", "3600", "--limit", "deadline_seconds=3600", "--limit", "drain_seconds=3600")
    in_background(server, server.upload(picture()), "x")
    until(lambda: server.metric("lisaseg_running"))
    engine = server.engines[0]
    server.process.send_signal(signal.SIGINT)
    until(lambda: server.http.get("/readyz").json()["status"] == "draining")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(120) == 0
    until(lambda: not psutil.pid_exists(engine))


def test_killed_server_leaves_no_engine_and_loses_nothing(start: Callable[..., Server]) -> None:
    server = start()
    image_id = server.upload(picture())
    session = server.http.post("/v1/sessions", json={"image_id": image_id}).json()["id"]
    answer = server.http.post(f"/v1/sessions/{session}/messages", json={"prompt": "one"}, headers={"Idempotency-Key": "k1"}).json()
    engine = server.engines[0]
    server.kill()
    until(lambda: not psutil.pid_exists(engine) or psutil.Process(engine).status() == psutil.STATUS_ZOMBIE)
    second = start()
    path = f"/v1/sessions/{session}"
    assert second.http.get(path).json()["turns"][0]["answer"] == answer
    again = second.http.post(f"{path}/messages", json={"prompt": "one"}, headers={"Idempotency-Key": "k1"}).json()
    assert again == answer and len(second.http.get(path).json()["turns"]) == 1, "a repeat changes nothing, even after a restart"
    assert second.http.post(f"{path}/messages", json={"prompt": "two"}).json()["raw_text"] == "Turn 2: two [SEG]."
    assert second.ask(image_id, "x").status_code == 200


def refused(tmp_path: Path, *options: str, code: int = 2, seconds: float = 300.0) -> str:
    """stderr of a server that must not start."""
    command = [sys.executable, "-m", "lisaseg", "serve", "--state", str(tmp_path / "refused"), "--offline", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds, check=False)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr


def test_what_must_not_start(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start()
    port = server.url.rsplit(":", 1)[1]
    assert "is in use" in refused(tmp_path, "--port", port)
    assert "in use by another server" in refused(tmp_path, "--port", "0", "--state", str(tmp_path / "state"))
    assert "cannot hold the state" in refused(tmp_path, "--port", "0", "--state", "/proc/self/read-only")
    assert "no key is set" in refused(tmp_path, "--host", "0.0.0.0")
    assert "printable ASCII" in refused(tmp_path, "--key", "short")
    assert "names no limit" in refused(tmp_path, "--limit", "colour=red")
    assert "max_queue" in refused(tmp_path, "--limit", "max_queue=0")


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    assert "error:" in refused(tmp_path, "--port", "0", "-m", str(tmp_path / "nowhere"), code=3)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "lisaseg"}))
    (broken / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert "error:" in refused(tmp_path, "--port", "0", "-m", str(broken), code=3)


def test_an_engine_that_never_gets_ready(tmp_path: Path) -> None:
    message = refused(tmp_path, "--port", "0", "--engine", "stub", "--limit", "load_seconds=0.01", code=3)
    assert "3 times before it was ready" in message


def test_questions_while_the_model_loads(start: Callable[..., Server]) -> None:
    server = start(engine="lisa", wait=False)
    image_id = server.upload(picture())
    response = server.ask(image_id, "early")
    assert response.status_code == 503 and code_of(response) == "model_loading" and int(response.headers["retry-after"]) >= 1
    assert server.http.get("/healthz").status_code == 200 and server.http.get("/").status_code == 200


def test_two_engines_share_the_work(start: Callable[..., Server]) -> None:
    server = start("--workers", "2", "--stub-seconds", "0.1", "--max-batch", "1")
    until(lambda: server.http.get("/readyz").json()["engines"] == ["ready", "ready"])
    images = [server.upload(picture(k)) for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda k: server.ask(images[k % 8], f"{k}", server.client()), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert server.metric('lisaseg_encoder_runs_total{encoder="image"}') == 8, "each picture at one engine"
    victim = server.engines[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: server.metric('lisaseg_engine_restarts_total{reason="died"}') == 1)
    assert {server.ask(image, "after").status_code for image in images} == {200}


def test_threads_do_not_pile_up(start: Callable[..., Server]) -> None:
    server = start()
    image_id = server.upload(picture())
    before = server.resources()["threads"]
    for k in range(1, 4):
        os.kill(server.engines[0], signal.SIGKILL)
        until(lambda k=k: server.metric('lisaseg_engine_restarts_total{reason="died"}') == k)
        server.wait_ready()
        assert server.ask(image_id, "x").status_code == 200
    until(lambda: server.resources()["threads"] <= before + 3)
    assert threading.active_count() < 50
