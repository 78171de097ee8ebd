"""What is in `deploy/`: the nginx configuration in a real nginx before two real servers; of the container files, what can be read without Docker."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from tests.server.running import KEYS, ROOT, Server, code_of, events, picture

import lisaseg
from lisaseg.apps.commands.serve import serve

pytestmark = pytest.mark.serve
DEPLOY = ROOT / "deploy"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def proxied(start: Callable[..., Server], tmp_path: Path) -> Iterator[tuple[str, list[Server]]]:
    """URL of nginx and the two servers behind it."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    options = ("--stub-seconds", "1", "--allow-host", f"127.0.0.1:{port}")
    servers = [start(*options, state=f"replica{k}", keys=KEYS) for k in range(2)]
    text = (DEPLOY / "nginx.conf").read_text("utf-8").replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("/tmp/nginx", f"{tmp_path}/nginx")
    for k, server in enumerate(servers, start=1):
        text = text.replace(f"lisaseg{k}:8000", server.url[7:])
    (tmp_path / "nginx.conf").write_text(text, "utf-8")
    command = [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
    check = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr
    process = subprocess.Popen([*command, "-g", "daemon off;"], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(1_200):
        try:
            httpx2.get(f"{url}/healthz")
            break
        except httpx2.ConnectError:
            time.sleep(0.05)
    yield url, servers
    process.terminate()
    process.wait(60)


def test_two_replicas_behind_nginx(proxied: tuple[str, list[Server]]) -> None:
    url, servers = proxied
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEYS[0]}", "X-Lisaseg-Session": "visitor-1"}, timeout=300) as http:
        image_id = http.post("/v1/images", files={"file": ("x", picture())}).json()["id"]
        session = http.post("/v1/sessions", json={"image_id": image_id}).json()["id"]
        path = f"/v1/sessions/{session}/messages"
        for k in range(4):
            assert http.post(path, json={"prompt": f"{k}"}).json()["raw_text"] == f"Turn {k + 1}: {k} [SEG].", "always the same replica"
        begin, arrivals = time.monotonic(), []
        with http.stream("POST", path, json={"prompt": "a streamed question", "stream": True}) as response:
            for line in response.iter_lines():
                arrivals += [time.monotonic() - begin] if line == "event: delta" else []
        assert arrivals[-1] - arrivals[0] > 0.1, "nginx does not hold the stream back: then all would arrive together"
        home = next(s for s in servers if s.http.get(f"/v1/sessions/{session}").status_code == 200)
        home.kill()
        assert code_of(http.post(path, json={"prompt": "after"})) == "session_expired", "the other replica knows that it existed"
        assert http.get("/metrics").status_code == 404
        with http.stream("POST", "/v1/segment", json={"image_id": image_id, "prompt": "x", "stream": True}) as response:
            assert response.status_code == 410 and not events(response)
    with lisaseg.Client(url, KEYS[0]) as client:
        chat = client.chat(picture(5))
        assert [chat.ask(f"{k}").raw_text for k in range(2)] == ["Turn 1: 0 [SEG].", "Turn 2: 1 [SEG]."]


def test_the_container_files_keep_their_promises() -> None:
    docker, compose = (DEPLOY / "Dockerfile").read_text("utf-8"), (DEPLOY / "compose.yaml").read_text("utf-8")
    known = {option.envvar for default in serve.__annotations__.values() for option in getattr(default, "__metadata__", ()) if option.envvar}
    if not known:  # postponed annotations
        known = set(re.findall(r'envvar="(\w+)"', Path(serve.__code__.co_filename).read_text("utf-8")))
    assert set(re.findall(r"(LISASEG_\w+)[=:]", docker + compose)) - {"LISASEG_CACHE", "LISASEG_MEMORY"} <= known
    assert re.search(r"^USER 10001", docker, re.M) and "HEALTHCHECK" in docker and "/readyz" in docker and 'VOLUME ["/weights", "/state"]' in docker
    assert compose.count("read_only: true") == 2 and "cap_drop: [ALL]" in compose and "no-new-privileges" in compose
    for copied in re.findall(r"^COPY (?!--)(.*) \S+$", docker, re.M):
        assert all((ROOT / name).exists() for name in copied.split())
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert ignored[0] == "**" and {"!src", "!pyproject.toml", "!constraints.txt"} <= set(ignored)
