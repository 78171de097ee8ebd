"""What waits for the engine: jobs, and the queue that shares it fairly among keys."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lisaseg.apps.server.catalogue import ApiError


@dataclass(eq=False)
class Job:
    """One question on its way through the service.

    Attributes:
        owner: whose it is; the queue is fair among owners.
        image: {"path", "sha256"} of the picture, for the engine.
        history: [[prompt, mode, raw_text], ...] oldest first.
        live: send text while it is generated.
        deadline: `time.monotonic()` at which it fails.
        events: ("text", raw text so far), then one ("answer", dict) or ("error", ApiError).
        queue_ms: how long it waited, once it runs.
    """

    owner: str
    image: dict[str, str]
    prompt: str
    mode: str
    max_new_tokens: int
    deadline: float
    history: list[list[str]] = field(default_factory=list)
    live: bool = False
    id: str = field(default_factory=lambda: f"ans_{secrets.token_hex(12)}")
    events: asyncio.Queue[tuple[str, Any]] = field(default_factory=asyncio.Queue)
    submitted: float = field(default_factory=time.monotonic)
    queue_ms: float = 0.0
    finished: bool = False

    @property
    def chars(self) -> int:
        """Length of what the model reads, picture aside."""
        return len(self.prompt) + sum(len(prompt) + len(raw) for prompt, _, raw in self.history)

    @property
    def kind(self) -> tuple[str, int]:
        """Only jobs of one kind can share a batch."""
        return self.mode, self.max_new_tokens

    def message(self) -> dict[str, Any]:
        """What the engine is told."""
        return {"id": self.id, "image": self.image, "prompt": self.prompt, "history": self.history, "live": self.live}

    def end(self, event: str, value: Any) -> bool:
        """Finish with ("answer", dict) or ("error", ApiError); False if it was finished already."""
        if self.finished:
            return False
        self.finished = True
        self.events.put_nowait((event, value))
        return True


class FairQueue:
    """First come, first served within an owner; turn by turn among owners, so nobody waits behind another's pile."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Job]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Job]:
        return iter([job for line in self._lines.values() for job in line])

    def put(self, job: Job) -> None:
        """Append to the line of its owner."""
        self._lines.setdefault(job.owner, deque()).append(job)
        self._size += 1

    def remove(self, job: Job) -> bool:
        """Take a job out of the line; False if it is not there."""
        line = self._lines.get(job.owner)
        if line is None or job not in line:
            return False
        line.remove(job)
        self._size -= 1
        if not line:
            del self._lines[job.owner]
        return True

    def take(self, most: int, chars: int = 10**9) -> list[Job]:
        """Up to `most` jobs of one kind: that of the first in turn. An owner whose first job does not fit keeps its turn.

        A batch is padded to its longest conversation, so one long one would slow all: number of jobs times the longest is at most `chars`.
        """
        batch: list[Job] = []
        longest = 0
        while len(batch) < most:
            owner = next((o for o, line in self._lines.items() if not batch or self._fits(line[0], batch, longest, chars)), None)
            if owner is None:
                break
            job = self._lines[owner].popleft()
            self._size -= 1
            batch.append(job)
            longest = max(longest, job.chars)
            if self._lines[owner]:
                self._lines.move_to_end(owner)
            else:
                del self._lines[owner]
        return batch

    @staticmethod
    def _fits(job: Job, batch: list[Job], longest: int, chars: int) -> bool:
        return job.kind == batch[0].kind and (len(batch) + 1) * max(longest, job.chars) <= chars


class Rates:
    """A token bucket for each key. Without keys there is one owner, the user of this machine, and no rate."""

    def __init__(self, per_minute: int) -> None:
        self.rate, self.burst = per_minute / 60.0, max(10.0, per_minute / 10.0)
        self._buckets: dict[str, tuple[float, float]] = {}  # as many as there are keys

    def take(self, owner: str) -> None:
        """Take one token of this owner, or raise `rate_limited` with the time until the next."""
        now = time.monotonic()
        tokens, then = self._buckets.get(owner, (self.burst, now))
        tokens = min(self.burst, tokens + (now - then) * self.rate)
        self._buckets[owner] = (max(0.0, tokens - 1.0) if tokens >= 1.0 else tokens, now)
        if tokens < 1.0:
            raise ApiError("rate_limited", retry_after=(1.0 - tokens) / self.rate)
