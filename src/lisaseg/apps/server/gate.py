"""The gate: every request passes here before anything else looks at it.

In this order: request id, host, origin, key, declared size and type of the body; then the body is counted while it arrives. What is refused here was
never parsed. On the way out: headers, a metric, one log line without user content, and a JSON body for whatever went wrong inside.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.integrations import INTEGRATIONS
from lisaseg.apps.server.logs import log, where
from lisaseg.apps.server.metrics import Metrics
from lisaseg.apps.server.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/docs", "/docs/errors", "/docs/style.css", "/openapi.json", "/healthz", "/readyz"})
OPEN_PREFIX = "/web/"
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})  # asked all the time
OWNER_OF_ALL = "local"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BODY_TYPES = ("application/json", "multipart/form-data")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; font-src 'self'; "
    "manifest-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": CSP,
}


def owner_of(key: str) -> str:
    """The name under which a key's things are stored: not the key, and the same after a restart."""
    return hashlib.sha256(b"owner " + key.encode()).hexdigest()[:16]


class Gate:
    """ASGI application around another one. `state["request_id"]` and `state["owner"]` are set for what is inside."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.body_bytes = 0  # held by running requests
        self._integrations = [INTEGRATIONS[name] for name in settings.integrations]
        self._owners = {hashlib.sha256(key.encode()).digest(): owner_of(key) for key in settings.keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event of ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})

    def admit(self, scope: Scope, headers: dict[str, str]) -> str:
        """The owner of the request; ApiError if it must not come in."""
        self._check_host(headers)
        owner = self._owner(scope["path"], headers)
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and (headers.get("content-length", "0") != "0" or "transfer-encoding" in headers):
            self._check_body(headers)
        return owner

    def _check_host(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "").lower()
        own = self.settings.own_hosts
        if own is not None and _name_of(host) not in own:
            raise ApiError("host_not_allowed")
        origin = headers.get("origin", "").lower()
        if not origin:
            if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
                raise ApiError("origin_not_allowed")
            return
        there = origin.partition("://")[2]
        if there != host and _name_of(there) not in self.settings.allow_hosts:
            raise ApiError("origin_not_allowed")

    def _owner(self, path: str, headers: dict[str, str]) -> str:
        if not self._owners:
            return OWNER_OF_ALL
        offered = hashlib.sha256(self._key(path, headers).encode("utf-8", "replace")).digest()
        owner = ""
        for digest, name in self._owners.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(digest, offered):
                owner = name
        if owner:
            return owner
        if path in OPEN or path.startswith(OPEN_PREFIX):
            return ""
        raise ApiError("unauthorized")

    def _key(self, path: str, headers: dict[str, str]) -> str:
        """What the request offers as its key: a bearer, or what the tool of an enabled integration sends on its own paths."""
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return value.strip()
        return next((tool.other_key(headers) for tool in self._integrations if path.startswith(tool.prefix)), "")

    def _check_body(self, headers: dict[str, str]) -> None:
        limit = self.settings.limits.max_body_bytes
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if headers.get("content-encoding", "identity").lower() != "identity" or kind not in _BODY_TYPES:
            raise ApiError("unsupported_media_type")
        if self.body_bytes > self.settings.limits.upload_memory_bytes:
            raise ApiError("overloaded", "Too many uploads at once.")


class _Exchange:
    """One request and its response."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self.gate, self.scope, self._receive, self._send = gate, scope, receive, send
        self.begin = time.perf_counter()
        self.status, self.code, self.held, self.body_complete = 0, "", 0, False
        self.headers: dict[str, str] = {}

    async def run(self) -> None:
        for name, value in self.scope["headers"]:
            self.headers[name.decode("latin-1")] = value.decode("latin-1")
        given = self.headers.get("x-request-id", "")
        self.request_id = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        state = self.scope.setdefault("state", {})
        state["request_id"] = self.request_id
        try:
            state["owner"] = self.gate.admit(self.scope, self.headers)
            await self.gate.app(self.scope, self.receive, self.send)
        except ApiError as error:
            await self.refuse(error)
        except asyncio.CancelledError:
            self.code = self.code or "cancelled"
            raise
        except Exception as error:  # the last net: nothing of it reaches the client, and its words not the log
            log.error("unexpected %s", type(error).__name__, extra={"request_id": self.request_id, "where": where(error)})
            await self.refuse(ApiError("internal"))
        finally:
            self.gate.body_bytes -= self.held
            self._record()

    async def receive(self) -> Message:
        """The next part of the body, counted and timed; after the body, the news that the client is gone."""
        if self.body_complete:
            return await self._receive()
        limits = self.gate.settings.limits
        left = limits.body_seconds - (time.perf_counter() - self.begin)
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, left))
        except TimeoutError:
            raise ApiError("request_timeout") from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.held += size
            self.gate.body_bytes += size
            if self.held > limits.max_body_bytes:
                raise _too_large(limits.max_body_bytes)
            self.body_complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send with our headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            names = {name.lower() for name, _ in message["headers"]}
            extra = {**_HEADERS, "cache-control": "no-store", "x-request-id": self.request_id}
            if not self.body_complete and self.status >= 400 and self.headers.get("content-length", "0") != "0":
                extra["connection"] = "close"  # the rest of the body is not read
            message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items() if k.encode() not in names)]
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, if the response has not begun."""
        self.code = error.code
        self.scope["state"]["code"] = error.code
        if self.status:
            return
        body = json.dumps(error.body(self.request_id), ensure_ascii=False).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        await self.send(
            {"type": "http.response.start", "status": error.status, "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()]}
        )
        await self.send({"type": "http.response.body", "body": b"" if self.scope["method"] == "HEAD" else body})

    def _record(self) -> None:
        route = getattr(self.scope.get("route"), "path", "(none)")
        seconds = time.perf_counter() - self.begin
        self.gate.metrics.request(route, self.scope["method"], self.status or 499, seconds)
        facts = {"request_id": self.request_id, "method": self.scope["method"], "route": route, "status": self.status, "ms": round(1e3 * seconds, 1)}
        code = self.scope["state"].get("code") or self.code
        owner = self.scope["state"].get("owner", "")
        level = logging.ERROR if self.status >= 500 and self.status not in (503, 504) else logging.DEBUG if route in _QUIET else logging.INFO
        log.log(level, "request", extra={**facts, **({"code": code} if code else {}), **({"owner": owner} if owner else {})})


def _name_of(host: str) -> str:
    """`Host` or the end of an origin without its port: "[::1]:80" -> "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _too_large(limit: int) -> ApiError:
    return ApiError("body_too_large", f"The body is larger than {limit / 2**20:g} MiB.")
