"""A server in a process of its own, as users start it, for tests and benchmarks."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
KEYS = tuple(f"key-{name}-0123456789abcdef" for name in ("ann", "bob", "cat", "dan", "eve", "fay"))


class Server:
    """`lisaseg serve` on a free port, or another command that serves.

    Args:
        state: its state folder.
        options: further command-line arguments.
        engine: "stub" or "lisa".
        keys: API keys; the first is used by `http`.
        command: what is run, with the options that only it has.
    """

    def __init__(
        self,
        state: Path,
        *options: str,
        engine: str = "stub",
        keys: tuple[str, ...] = (),
        wait: bool = True,
        command: tuple[str, ...] = ("serve", "--log-format", "json", "--port", "0"),
    ) -> None:
        self.state, self.keys = state, keys
        words = [sys.executable, "-m", "lisaseg", *command, "--state", str(state), "--engine", engine, "--offline"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        if keys:
            state.mkdir(parents=True, exist_ok=True)
            (state / "keys").write_text("\n".join(keys))
            words += ["--key-file", str(state / "keys")]
        self.process = subprocess.Popen([*words, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self.url = ""
        self._found = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        if not self._found.wait(120) or not self.url:
            raise RuntimeError(f"the server did not start: {self.lines[-5:]}")
        self.http = self.client(keys[0] if keys else None)
        if wait:
            self.wait_ready()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if len(self.lines) > 200_000:  # of hours
                del self.lines[:100_000]
            if not self.url and (match := re.search(r"at (http://\S+)", line)):
                self.url = match[1]
                self._found.set()
        self._found.set()

    def client(self, key: str | None = None, timeout: Any = 300.0) -> httpx2.Client:
        """A client with a key of its own."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, timeout=timeout, headers=headers, verify=False)  # plain HTTP: reading certificates takes time

    def wait_ready(self, seconds: float = 180.0) -> None:
        """Until questions are answered."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.lines[-5:]}")
            if self.http.get("/readyz").status_code == 200:
                return
            time.sleep(0.05)
        raise TimeoutError(self.lines[-5:])

    def metric(self, name: str) -> float:
        """The value of one line of /metrics, labels included in the name; 0 if it is not there."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def logged(self, event: str, **facts: Any) -> list[dict[str, Any]]:
        """The lines of the log with this event and these facts."""
        lines = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [line for line in lines if line["event"] == event and facts.items() <= line.items()]

    @property
    def engines(self) -> list[int]:
        """Process ids of the engines."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            if any("spawn_main" in part for part in child.cmdline()):
                found.append(child.pid)
        return found

    def resources(self) -> dict[str, float]:
        """Of the HTTP process and its engines: rss (bytes), fds, threads."""
        processes = [psutil.Process(pid) for pid in (self.process.pid, *self.engines)]
        return {
            "rss": sum(p.memory_info().rss for p in processes),
            "fds": sum(p.num_fds() for p in processes),
            "threads": sum(p.num_threads() for p in processes),
        }

    def peak_bytes(self, reset: bool = False) -> int:
        """The most memory that the HTTP process ever held, or held since the last reset (Linux)."""
        folder = Path(f"/proc/{self.process.pid}")
        if reset:
            (folder / "clear_refs").write_text("5")
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())[0])

    def computed_seconds(self) -> float:
        """Processor time of the HTTP process and its engines: on an idle machine the time on the clock; other programs are not our budget."""
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in (self.process.pid, *self.engines))

    def stop(self, seconds: float = 120.0) -> int:
        """SIGTERM, then the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)

    def upload(self, data: bytes, http: httpx2.Client | None = None) -> str:
        """Id of an uploaded picture."""
        response = (http or self.http).post("/v1/images", files={"file": ("x", data)})
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    def ask(self, image_id: str, prompt: str, http: httpx2.Client | None = None, **more: Any) -> httpx2.Response:
        """One stateless question."""
        return (http or self.http).post("/v1/segment", json={"image_id": image_id, "prompt": prompt, **more})


def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait until something is so; long, because a busy machine is slow. Whoever means "soon" compares with something slower, not with a clock."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def picture(seed: int = 0, height: int = 24, width: int = 32) -> bytes:
    """A PNG of noise."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def code_of(response: httpx2.Response) -> str:
    """The error code of a response, after checking its form; "" for a success."""
    if response.is_success:
        return ""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param", "request_id", "help_url"}
    assert error["request_id"] == response.headers["x-request-id"]
    clean(response.text)
    return str(error["code"])


def clean(text: str) -> None:
    """Nothing of the inside of the server: no address, path, trace or repr."""
    for leak in ("0x", "Traceback", "/home", "/tmp", "/usr", "site-packages", "object at", ".py", "BytesIO"):
        assert leak not in text, f"{leak!r} in {text[:300]}"


def events(response: httpx2.Response) -> list[tuple[str, Any]]:
    """The whole event stream."""
    found, name = [], ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            found.append((name, json.loads(line[6:])))
    return found
