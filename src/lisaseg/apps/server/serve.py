"""Start the server, tell where it is, and end it in order.

On SIGTERM (or Ctrl-C) new questions are refused and running ones finished; a second signal ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import h11
import uvicorn
from fastapi import APIRouter
from uvicorn.protocols.http.h11_impl import H11Protocol

from lisaseg.apps.server.app import create_app, service_of
from lisaseg.apps.server.logs import log
from lisaseg.apps.server.settings import Settings
from lisaseg.errors import UsageError

LAST_SECONDS = 5  # for responses that are being written when the drain is over
MAX_HEAD = 32 * 1024


def run(settings: Settings, more: Sequence[APIRouter] = (), does: str = "", about: str = "") -> int:
    """Serve until a signal comes; returns the exit code.

    Args:
        settings: see there.
        more: further routes, see `create_app`.
        does, about: what the first line on stderr says that lisaseg does, and what else; for other doors than the service itself.

    Raises:
        UsageError: the port is taken, or the state folder cannot be used.
    """
    _raise_file_limit()
    server: _Server | None = None
    failure: list[tuple[str, int]] = []

    def on_failure(message: str, code: int) -> None:
        failure.append((message, code))
        if server is not None:
            server.should_exit = True

    listener = _listen(settings.host, settings.port)
    with contextlib.closing(listener):
        gate = create_app(settings, on_failure, more)
        protocol = type("TimedProtocol", (_TimedProtocol,), {"head_seconds": settings.limits.head_seconds})
        config = uvicorn.Config(
            gate, http=protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False, proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEAD, timeout_graceful_shutdown=LAST_SECONDS, backlog=2048,
        )  # fmt: skip
        url = _url(settings.host, listener.getsockname()[1])
        greeting = f"lisaseg {does or f'serves {settings.model_name}'} at {url}  ({about or f'API: {url}/docs'}, end with Ctrl-C)"
        server = _Server(config, settings, service_of(gate), greeting)
        asyncio.run(server.serve(sockets=[listener]))
    if failure:
        print(f"error: {failure[0][0]}", file=sys.stderr, flush=True)
        return failure[0][1]
    return 0


class _Server(uvicorn.Server):
    """uvicorn with our way to end."""

    def __init__(self, config: uvicorn.Config, settings: Settings, service: Any, greeting: str) -> None:
        super().__init__(config)
        self.settings, self.service, self.greeting = settings, service, greeting
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.greeting, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which raises the signal again at the end: a drained server exits with 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        yield

    def _on_signal(self) -> None:
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        scheduler, limit = self.service.scheduler, self.settings.limits.drain_seconds
        scheduler.draining = True
        log.info("draining", extra={"running": scheduler.active.total()})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while not scheduler.idle:
                    await asyncio.sleep(0.05)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn then leaves out the end of the lifespan
            await self.service.stop()


class _TimedProtocol(H11Protocol):
    """uvicorn's HTTP with a time for the head of a request: a connection that sends a byte now and then is closed."""

    head_seconds = 10.0
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        waiting = self.conn.their_state is h11.IDLE
        if not waiting and self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        elif waiting and self._alarm is None:
            self._alarm = self.loop.call_later(self.head_seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._alarm = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only with the protocol named
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        reason = {errno.EADDRINUSE: "is in use", errno.EACCES: "may not be used by this user"}.get(error.errno or 0, "cannot be used")
        raise UsageError(
            f"{host}:{port} {reason}.", next_step="Choose another with --port, or end what listens there.", code="port_in_use"
        ) from error
    return listener


def _url(host: str, port: int) -> str:
    shown = "127.0.0.1" if host == "0.0.0.0" else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _raise_file_limit() -> None:
    """Every connection is an open file; the usual soft limit of 1024 is less than a busy server needs."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has none
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(65_536, hard) if hard != resource.RLIM_INFINITY else max(soft, 65_536), hard))
