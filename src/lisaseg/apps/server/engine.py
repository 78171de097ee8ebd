"""The engine process: the only one that loads torch. It gets batches over a pipe, answers them and sends text while it comes.

Three threads: one reads the pipe (and ends the process when the server is gone), one says every second that the process lives, the main one works.
Whatever happens to one question, the others of its batch are answered: a batch that fails is split. Only a lost device ends the process, which is
then started again.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

from lisaseg.apps.server import logs
from lisaseg.apps.server.catalogue import ApiError, from_lisaseg
from lisaseg.errors import LisaSegError

if TYPE_CHECKING:
    from lisaseg.predictor import Predictor

BEAT_SECONDS = 1.0
Say = Callable[[dict[str, Any]], None]


class Engine(Protocol):
    """What answers batches. facts: of the ready message."""

    facts: dict[str, Any]

    def answer(self, batch: dict[str, Any], say: Say, cancelled: set[str]) -> None:
        """Say "text", then "answer" or "error", for every job that is not cancelled."""
        ...

    def usage(self) -> dict[str, Any]:
        """counters (since the start of the process), cache_bytes, cache_pictures."""
        ...

    def rest(self) -> None:
        """Nothing happened for long: let go of what was kept."""
        ...


class Cancelled(Exception):
    """Nobody waits for any question of the batch any more."""


def main(pipe: Connection, options: dict[str, Any]) -> None:
    """Run until the pipe ends. Options are fields of `Settings`, `limits` as a dict."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides when the engine ends
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.set_up(options["log_format"])
    line = _Line(pipe)
    begin = time.perf_counter()
    try:
        engine = build(options)
    except LisaSegError as error:
        line.say({"event": "failed", "message": str(error), "exit_code": error.exit_code})
        return
    line.say({"event": "ready", "load_seconds": round(time.perf_counter() - begin, 2), **engine.facts})
    idle = options["limits"]["image_idle_seconds"]
    while True:
        try:
            batch = line.inbox.get(timeout=idle)
        except queue.Empty:
            engine.rest()
            continue
        engine.answer(batch, line.say, line.cancelled)
        line.cancelled.clear()
        line.say({"event": "batch", **engine.usage()})


def build(options: dict[str, Any]) -> Engine:
    """The engine that the options name."""
    if options["engine"] == "stub":
        from lisaseg.apps.server.stub import StubEngine

        return StubEngine(options)
    from lisaseg.startup import collector_paused

    with collector_paused():
        import torch

        from lisaseg.predictor import load

    if options["workers"] > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // options["workers"]))
    predictor = load(options["model"], **{name: options[name] for name in ("device", "dtype", "quantize", "device_map", "offline")})
    return LisaEngine(predictor, options["limits"])


class _Line:
    """The engine's end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.cancelled: set[str] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def say(self, message: dict[str, Any]) -> None:
        """Send one message; without a server there is nothing to live for."""
        data = json.dumps(message).encode()
        try:
            with self._lock:
                self.pipe.send_bytes(data)
        except OSError:
            os._exit(0)

    def _listen(self) -> None:
        while True:
            try:
                message = json.loads(self.pipe.recv_bytes())
            except (EOFError, OSError):
                os._exit(0)
            if message["do"] == "cancel":
                self.cancelled.add(message["id"])
            else:
                self.inbox.put(message)

    def _beat(self) -> None:
        while True:
            self.say({"event": "beat"})
            time.sleep(BEAT_SECONDS)


class LisaEngine:
    """A predictor that answers batches.

    Args:
        predictor: the loaded model.
        limits: fields of `Limits`.
    """

    def __init__(self, predictor: Predictor, limits: dict[str, Any]) -> None:
        import torch

        from lisaseg.imaging import ImageLimits

        self.predictor, self._torch = predictor, torch
        self.predictor.remembered_bytes = limits["feature_cache_bytes"]
        self._pictures: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()  # opened ones, while the predictor remembers them
        self._limits = ImageLimits(limits["max_image_pixels"], limits["max_image_side"], limits["max_image_aspect"], limits["max_body_bytes"])
        config = self.predictor.model.config
        self.facts = {
            "model": self.predictor.name,
            "revises": config.candidates > 0 or config.min_score > 0,
            "device": str(self.predictor.model.device),
            "precision": str(self.predictor.setting),
            "modes": list(self.predictor.modes),
        }

    def answer(self, batch: dict[str, Any], say: Say, cancelled: set[str]) -> None:
        """See `Engine`."""
        jobs = []
        for message in batch["jobs"]:
            try:
                jobs.append((message, self._prepare(message, batch)))
            except LisaSegError as error:
                refuse(say, message, _image_gone(error))
        self._run(jobs, batch["max_new_tokens"], say, cancelled)

    def usage(self) -> dict[str, Any]:
        """See `Engine`."""
        counters = self.predictor.counters
        kept = self.predictor._remembered
        return {
            "counters": {"image": counters["image_encodings"], "mask": counters["mask_encodings"]},
            "cache_bytes": kept.nbytes,
            "cache_pictures": len(kept),
        }

    def rest(self) -> None:
        """See `Engine`."""
        self.predictor._remembered.clear()

    def _prepare(self, message: dict[str, Any], batch: dict[str, Any]) -> Any:
        """A checked question with its picture and history; LisaSegError if it cannot be used."""
        from lisaseg import prompts
        from lisaseg.chat import Conversation
        from lisaseg.imaging import open_image
        from lisaseg.tokenization import clean_instruction
        from lisaseg.types import SEG_TEXT, Turn

        turns, style = [], self.predictor.model.config.prompt_style
        for prompt, mode, raw in message["history"]:
            stand_ins = (_stand_in(),) * raw.count(SEG_TEXT)
            turns.append(Turn(prompts.with_mode(clean_instruction(prompt), mode, style), raw, stand_ins))
        conversation = Conversation(tuple(turns))
        sha256 = message["image"]["sha256"]
        picture = self._pictures.get(sha256)
        if picture is None:
            picture = open_image(message["image"]["path"], self._limits, name="The picture")
            self._pictures[sha256] = picture
        return self.predictor._job(picture, conversation, message["prompt"], batch["mode"], batch["max_new_tokens"])

    def _run(self, jobs: list[tuple[dict[str, Any], Any]], max_new_tokens: int, say: Say, cancelled: set[str]) -> None:
        jobs = [pair for pair in jobs if pair[0]["id"] not in cancelled]
        if not jobs:
            return

        def on_text(row: int, raw: str) -> None:
            if all(message["id"] in cancelled for message, _ in jobs):
                raise Cancelled
            if jobs[row][0]["live"]:
                say({"event": "text", "id": jobs[row][0]["id"], "raw": raw})

        try:
            answers = self.predictor._answer([job for _, job in jobs], max_new_tokens, on_text)
            for (message, _), (_, answer) in zip(jobs, answers, strict=True):
                say({"event": "answer", "id": message["id"], "answer": answer.to_dict()})
        except Cancelled:
            return
        except Exception as error:
            if isinstance(error, self._torch.AcceleratorError) and not self._out_of_memory(error):
                _report(error)  # nothing can be computed there any more: a new process may find the device again
                raise SystemExit(1) from error
            self._split(jobs, error, max_new_tokens, say, cancelled)

    def _split(self, jobs: list[tuple[dict[str, Any], Any]], error: Exception, max_new_tokens: int, say: Say, cancelled: set[str]) -> None:
        """After a failure: halves if memory ran out, else one by one, so that only the question that fails alone gets an error."""
        memory = self._out_of_memory(error)
        if memory and self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()
        if len(jobs) == 1:
            _report(error)
            refuse(say, jobs[0][0], ApiError("out_of_memory" if memory else "internal"))
            return
        step = (len(jobs) + 1) // 2 if memory else 1
        for k in range(0, len(jobs), step):
            self._run(jobs[k : k + step], max_new_tokens, say, cancelled)

    def _out_of_memory(self, error: Exception) -> bool:
        code, said = getattr(error, "code", ""), str(error).lower()[:200]
        return (
            isinstance(error, MemoryError | self._torch.OutOfMemoryError)
            or code == "out_of_memory"
            or any(word in said for word in ("alloc", "out of memory"))
        )


def _stand_in() -> Any:
    """In place of a mask of an earlier turn: only their number counts."""
    import numpy as np

    return np.zeros((1, 1), np.uint8)


def _image_gone(error: LisaSegError) -> ApiError:
    return ApiError("image_expired", param="image_id") if error.code == "image_not_found" else from_lisaseg(error, "prompt")


def refuse(say: Say, message: dict[str, Any], error: ApiError) -> None:
    """Say that a question failed."""
    say({"event": "error", "id": message["id"], "code": error.code, "message": error.message, "param": error.param})


def _report(error: Exception) -> None:
    """Kind and place of a fault to stderr, without its words: they may hold what a user wrote."""
    logs.log.error("engine: a question failed", extra={"exception": type(error).__name__, "where": logs.where(error)})
