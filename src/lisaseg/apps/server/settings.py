"""Every limit of the service, in one place: flags, `/v1/limits` and the code that obeys them read it here."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lisaseg.apps.server.integrations import INTEGRATIONS
from lisaseg.errors import UsageError

MIN_KEY_LENGTH = 16


class Limits(BaseModel):
    """What a client may cost. Sizes in bytes, times in seconds. `lisaseg serve --limit NAME=VALUE` changes one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: int = Field(default=25 * 2**20, ge=1024, description="Largest request body.")
    max_image_pixels: int = Field(default=50_000_000, ge=1, description="Width times height of a picture.")
    max_image_side: int = Field(default=16_384, ge=1, description="Longer side of a picture.")
    max_image_aspect: float = Field(default=200.0, ge=1, description="Longer side divided by shorter side.")
    max_prompt_chars: int = Field(default=2000, ge=1, le=2000, description="Characters of a prompt after cleaning.")
    max_new_tokens: int = Field(default=512, ge=1, description="The most that a request may ask for.")
    default_new_tokens: int = Field(default=64, ge=1, description="Length limit of an answer unless the request says otherwise.")
    max_turns: int = Field(default=20, ge=1, le=20, description="Turns of one conversation.")
    max_queue: int = Field(default=64, ge=1, description="Questions that wait; one more is refused with 503.")
    max_batch: int = Field(default=8, ge=1, description="Questions that the model answers together.")
    max_batch_chars: int = Field(default=8000, ge=1, description="Questions of a batch times the longest conversation among them, in characters.")
    batch_wait_seconds: float = Field(default=0.005, ge=0, le=1, description="How long an idle engine waits for company of a question.")
    deadline_seconds: float = Field(default=60.0, gt=0, description="A question that is not answered by then fails with 504.")
    hang_seconds: float = Field(
        default=30.0, gt=0, description="An engine that is still busy this long after the last deadline of its batch is killed."
    )
    heartbeat_seconds: float = Field(default=10.0, gt=0, description="An engine that is silent for so long is killed.")
    load_seconds: float = Field(default=900.0, gt=0, description="Time to load the model.")
    body_seconds: float = Field(default=30.0, gt=0, description="Time for a request body to arrive.")
    head_seconds: float = Field(default=10.0, gt=0, description="Time for a request head to arrive.")
    requests_per_minute: int = Field(default=600, ge=1, description="POST requests of one key, averaged; a tenth of it may come at once.")
    concurrent_per_key: int = Field(default=10, ge=1, description="Questions of one key, waiting or running.")
    max_sessions: int = Field(default=1000, ge=1, description="Sessions; the one that was not used for longest makes room.")
    session_idle_seconds: float = Field(default=1800.0, gt=0, description="A session expires if it is not used for so long.")
    session_max_seconds: float = Field(default=14_400.0, gt=0, description="A session expires at this age.")
    image_idle_seconds: float = Field(default=1800.0, gt=0, description="A picture without sessions expires if it is not used for so long.")
    max_image_store_bytes: int = Field(default=2 * 2**30, ge=1, description="Pictures on disk; those that were not used for longest make room.")
    feature_cache_bytes: int = Field(default=2 * 2**30, ge=1, description="Encoded pictures in the memory of an engine.")
    upload_memory_bytes: int = Field(default=256 * 2**20, ge=1, description="Request bodies that are held at the same time.")
    drain_seconds: float = Field(default=30.0, ge=0, description="Time for running requests after SIGTERM.")

    @classmethod
    def parse(cls, pairs: Iterable[str]) -> Limits:
        """Limits from `NAME=VALUE` strings.

        Raises:
            UsageError: unknown name or impossible value.
        """
        values: dict[str, Any] = {}
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals or name not in cls.model_fields:
                raise UsageError(f"--limit {pair!r} names no limit.", next_step=f"Write NAME=VALUE with one of: {', '.join(cls.model_fields)}.")
            values[name] = value.replace("_", "")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(f"--limit {first['loc'][0]}: {first['msg']}.", next_step="Give a number in its range.") from None


@dataclass(frozen=True)
class Settings:
    """How one server runs.

    Attributes:
        host, port: where it listens; port 0 = any free one.
        model, device, dtype, quantize, device_map, offline: as in `lisaseg.load`; every engine is loaded so, at each start.
        engine: "lisa", or "stub" (answers by a fixed rule without a model; for load tests of the HTTP layer only).
        workers: engine processes, each with the model in memory; 0 = no model, questions are refused.
        keys: accepted API keys; none = everybody who can connect.
        insecure: listen beyond loopback without a key.
        allow_hosts: further names in `Host` (and pages in `Origin`) that are the server's own.
        url_hosts: hosts that pictures are fetched from; "*" = any public one; none = URLs are refused.
        integrations: names of `integrations.INTEGRATIONS` whose routes are served.
        label_studio_url, label_studio_key: a Label Studio and an access token for its files (`label_studio_files`); empty = they are not read.
        state: folder for pictures and sessions.
        log_format: "text" or "json".
    """

    state: Path
    host: str = "127.0.0.1"
    port: int = 8000
    model: str = "lisa-tiny"
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    device_map: str | None = None
    offline: bool = False
    engine: str = "lisa"
    workers: int = 1
    keys: tuple[str, ...] = ()
    insecure: bool = False
    allow_hosts: tuple[str, ...] = ()
    url_hosts: tuple[str, ...] = ()
    integrations: tuple[str, ...] = ()
    label_studio_url: str = ""
    label_studio_key: str = field(default="", repr=False)
    limits: Limits = field(default_factory=Limits)
    log_format: str = "text"
    stub_seconds: float = 0.05

    def __post_init__(self) -> None:
        if not self.keys and not self.insecure and not is_loopback(self.host):
            raise UsageError(
                f"Listening on {self.host} lets other machines in, and no key is set.",
                next_step="Give --key-file (or LISASEG_KEY), listen on 127.0.0.1, or say --insecure if a proxy in front asks for keys.",
            )
        if any(len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key for key in self.keys):
            raise UsageError(
                f"A key must have {MIN_KEY_LENGTH} or more printable ASCII characters without blanks.",
                next_step="Make one: `python -c 'import secrets; print(secrets.token_urlsafe(24))'`.",
            )

        if unknown := [name for name in self.integrations if name not in INTEGRATIONS]:
            raise UsageError(f"There is no integration {unknown[0]!r}.", next_step=f"--integrations takes: {', '.join(INTEGRATIONS)}.")

    @property
    def model_name(self) -> str:
        """What clients see of `model`: of a folder only its own name."""
        return self.model if not Path(self.model).exists() else Path(self.model).resolve().name

    @property
    def id_secret(self) -> bytes | None:
        """What signs ids: made of the keys, so that replicas behind one proxy know each other's ids; None without keys."""
        return hashlib.sha256("\n".join(["ids", *sorted(self.keys)]).encode()).digest() if self.keys else None

    @property
    def own_hosts(self) -> frozenset[str] | None:
        """Names that `Host` may carry, lower case without port; None = any (a key is asked for, and the public names are not known)."""
        names = {name.lower() for name in self.allow_hosts}
        if is_loopback(self.host):
            return frozenset({"localhost", "127.0.0.1", "::1", self.host.lower()} | names)
        return frozenset({self.host.lower(), "localhost", "127.0.0.1", "::1"} | names) if names else None


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
