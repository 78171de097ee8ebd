"""An engine that answers by a fixed rule after a fixed time: for load tests of the HTTP layer, never for users.

The answer repeats the prompt and the mask follows from picture and prompt, so that a test sees whether each client got its own answer. A few prompts
make faults: `!crash`, `!hang`, `!raise`, `!oom`, `!stop`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from typing import Any

import numpy as np

from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.engine import Say, refuse
from lisaseg.errors import ImageError
from lisaseg.imaging import open_image
from lisaseg.types import MODES, Answer, Segment, Status


class StubEngine:
    """See the head of the file. Options: `stub_seconds` for one batch of any size."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.seconds = float(options["stub_seconds"])
        self.facts: dict[str, Any] = {"model": "stub", "revises": False, "device": "none", "precision": "none", "modes": list(MODES)}
        self._seen: set[str] = set()
        self.encodings = 0

    def answer(self, batch: dict[str, Any], say: Say, cancelled: set[str]) -> None:
        """See `Engine`."""
        for job in batch["jobs"]:
            _fault(job["prompt"])
            if job["image"]["sha256"] not in self._seen:
                self._seen.add(job["image"]["sha256"])
                self.encodings += 1
        end = time.monotonic() + self.seconds
        words = 8
        for k in range(1, words + 1):
            time.sleep(max(0.0, (end - time.monotonic()) / (words - k + 1)))
            if all(job["id"] in cancelled for job in batch["jobs"]):
                return
            for job in batch["jobs"]:
                if job["live"]:
                    say({"event": "text", "id": job["id"], "raw": text_of(job)[: k * len(text_of(job)) // words]})
        for job in batch["jobs"]:
            if job["prompt"] in ("!raise", "!oom"):
                refuse(say, job, ApiError("internal" if job["prompt"] == "!raise" else "out_of_memory"))
                continue
            try:
                picture = open_image(job["image"]["path"])
            except ImageError:
                refuse(say, job, ApiError("image_expired", param="image_id"))
                continue
            say({"event": "answer", "id": job["id"], "answer": answer_of(job, picture.size).to_dict()})

    def usage(self) -> dict[str, Any]:
        """See `Engine`."""
        return {"counters": {"image": self.encodings, "mask": self.encodings}, "cache_bytes": 0, "cache_pictures": len(self._seen)}

    def rest(self) -> None:
        """See `Engine`."""
        self._seen.clear()


def text_of(job: dict[str, Any]) -> str:
    """The raw answer to a job."""
    return f"Turn {len(job['history']) + 1}: {job['prompt']}" + ("" if "text" in job["prompt"] else " [SEG].")


def answer_of(job: dict[str, Any], size: tuple[int, int]) -> Answer:
    """The whole answer: the mask is a rectangle that depends on picture and prompt."""
    from lisaseg.chat import spans

    raw = text_of(job)
    text, places, phrases = spans(raw)
    seed = hashlib.sha256(f"{job['image']['sha256']} {job['prompt']}".encode()).digest()
    mask = np.zeros(size, bool)
    mask[: 1 + seed[0] % size[0], : 1 + seed[1] % size[1]] = True
    segments = tuple(Segment.from_mask(k, mask, place, 0.5, phrases[k]) for k, place in enumerate(places))
    status: Status = "masks" if segments else "no_mask_requested"
    usage = {"prompt_tokens": 10, "completion_tokens": 8, "image_tokens": 1}
    return Answer(text, raw, status, segments, size, job["prompt"], "stub", None, {"encode": 0.0, "generate": 1.0, "mask": 1.0}, usage)


def _fault(prompt: str) -> None:
    if prompt == "!crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif prompt == "!stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif prompt == "!hang":
        time.sleep(3600)
