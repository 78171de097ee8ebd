"""One engine process, seen from the HTTP process: start it, talk to it, watch it, start it again.

Messages are JSON over a pipe. A thread reads, so that a stuck engine never stops the event loop. The engine ends when the pipe does: a server that is
killed leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from lisaseg.apps.server import engine
from lisaseg.apps.server.logs import log
from lisaseg.apps.server.metrics import Metrics
from lisaseg.apps.server.settings import Settings

ENGINE_OPTIONS = ("engine", "model", "device", "dtype", "quantize", "device_map", "offline", "workers", "log_format", "stub_seconds")
FRESH_SECONDS = 5.0  # a ready engine that was silent for longer is not called ready
FIRST_TRIES = 3  # crashes before the engine was ever ready: then the server gives up
PAUSES = (0.2, 1.0, 5.0, 15.0, 30.0)  # seconds before a new start, by the number of failures in a row


class Worker:
    """One engine process.

    Args:
        index: which of `settings.workers`.
        on_message: called in the event loop with every message of the engine except its heartbeat.
        on_death: called in the event loop when the process is gone: the jobs that it had are lost.
        on_failure: called with a sentence when there will be no engine: the model cannot be loaded.
    """

    def __init__(
        self,
        index: int,
        settings: Settings,
        metrics: Metrics,
        *,
        on_message: Callable[[dict[str, Any]], None],
        on_death: Callable[[], None],
        on_failure: Callable[[str, int], None],
    ) -> None:
        self.index, self.settings, self.metrics = index, settings, metrics
        self.on_message, self.on_death, self.on_failure = on_message, on_death, on_failure
        self.state = "loading"  # loading, ready, restarting, failed, stopped
        self.ever_ready = False
        self.facts: dict[str, Any] = {}  # of the ready message
        self.busy_until: float | None = None  # monotonic time at which a running batch counts as hung
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._last_sign = 0.0
        self._sending = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def answers(self) -> bool:
        """Whether the engine is ready and was heard of lately."""
        return self.state == "ready" and time.monotonic() - self._last_sign < FRESH_SECONDS

    @property
    def pid(self) -> int | None:
        """Process id of the engine, if it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Begin to keep an engine alive."""
        self._task = asyncio.get_running_loop().create_task(self._keep_alive())

    async def stop(self) -> None:
        """End the engine."""
        self.state = "stopped"
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._end_process)

    async def ready(self) -> None:
        """Wait until the engine can answer."""
        await self._ready.wait()

    async def send(self, message: dict[str, Any]) -> bool:
        """Tell the engine something; False if it is dead. What to do about that is decided elsewhere."""
        data = json.dumps(message).encode()
        async with self._sending:  # one message at a time
            if self._pipe is not None:
                with contextlib.suppress(OSError, ValueError):
                    await asyncio.to_thread(self._pipe.send_bytes, data)
                    return True
        return False

    async def _keep_alive(self) -> None:
        failures = 0
        while True:
            begin = time.monotonic()
            was_ready = False
            try:
                await asyncio.to_thread(self._start_process)
                reason = await self._watch()
                was_ready = self.state == "ready"
            except OSError as error:
                reason = f"cannot start ({type(error).__name__})"
            self._ready.clear()
            if was_ready:
                self.metrics.ready.dec()
            self.busy_until = None
            await asyncio.to_thread(self._end_process)
            self.on_death()
            if self.state == "failed":
                return
            failures = failures + 1 if not was_ready or time.monotonic() - begin < 60 else 1
            log.error("engine lost", extra={"engine": self.index, "reason": reason, "failures": failures})
            self.metrics.restarts.labels(reason.partition(" ")[0]).inc()
            if not self.ever_ready and failures >= FIRST_TRIES:
                self._fail(f"The engine ended {failures} times before it was ready; its own messages stand above.", 3)
                return
            self.state = "restarting" if self.ever_ready else "loading"
            await asyncio.sleep(PAUSES[min(failures, len(PAUSES)) - 1])

    def _start_process(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads and locks
        ours, theirs = context.Pipe(duplex=True)
        options = {name: getattr(self.settings, name) for name in ENGINE_OPTIONS}
        options["limits"] = self.settings.limits.model_dump()
        process = context.Process(target=engine.main, args=(theirs, options), name=f"lisaseg-engine-{self.index}", daemon=True)
        process.start()
        theirs.close()
        self._process, self._pipe, self._last_sign = process, ours, time.monotonic()
        self._ended.clear()
        assert self._task is not None
        threading.Thread(target=self._read, args=(ours, self._task.get_loop()), name="engine-reader", daemon=True).start()

    def _read(self, pipe: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Thread: hand every message to the event loop until the pipe ends."""
        while True:
            try:
                message = json.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                message = {"event": "end"}
            except ValueError:
                continue  # cut off by a death in mid-message
            try:
                loop.call_soon_threadsafe(self._take, pipe, message)
            except RuntimeError:  # the loop has ended
                return
            if message["event"] == "end":
                return

    def _take(self, pipe: Connection, message: dict[str, Any]) -> None:
        if pipe is not self._pipe:
            return  # late words of an earlier process
        self._last_sign = time.monotonic()
        event = message["event"]
        if event == "end":
            self._ready.clear()
            self._ended.set()
        elif event == "ready":
            self.state, self.ever_ready, self.facts = "ready", True, message
            self._ready.set()
            self.metrics.ready.inc()
            log.info("engine ready", extra={"engine": self.index, "pid": self.pid, "load_seconds": message["load_seconds"]})
        elif event == "failed":
            self._fail(message["message"], message["exit_code"])
        elif event != "beat":
            self.on_message(message)

    def _fail(self, message: str, exit_code: int) -> None:
        if not self.ever_ready:  # a model that was there before will come back
            self.state = "failed"
            self.on_failure(message, exit_code)

    async def _watch(self) -> str:
        """Return why the engine is no more, or must not be any more."""
        limits, begin, process = self.settings.limits, time.monotonic(), self._process
        assert process is not None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 0.1)
            now = time.monotonic()
            if self._ended.is_set() or not process.is_alive():
                await asyncio.to_thread(process.join, 1.0)
                return f"died (exit code {process.exitcode})"
            if self._ready.is_set():
                if now - self._last_sign > limits.heartbeat_seconds:
                    return "silent"
                if self.busy_until is not None and now > self.busy_until:
                    return "hung"
            elif now - begin > limits.load_seconds:
                return "slow to load"
            if self.state == "failed":
                return "failed"

    def _end_process(self) -> None:
        process, pipe, self._process = self._process, self._pipe, None
        if process is not None:
            process.kill()  # it has nothing to save, and this also ends one that is stopped
            process.join(5)
        self._pipe = None
        if pipe is not None:
            pipe.close()
