"""The parts of one running server, and the way of a question through them: check, queue, answer, store, stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from lisaseg.apps.server.catalogue import ApiError, from_lisaseg
from lisaseg.apps.server.jobs import Job, Rates
from lisaseg.apps.server.label_studio_files import LabelStudioFiles
from lisaseg.apps.server.logs import log, where
from lisaseg.apps.server.metrics import Metrics
from lisaseg.apps.server.pictures import Pictures
from lisaseg.apps.server.scheduler import Scheduler
from lisaseg.apps.server.schemas import Ask
from lisaseg.apps.server.settings import Settings
from lisaseg.apps.server.storage import Storage, StoredImage, StoredTurn
from lisaseg.chat import spans
from lisaseg.errors import InstructionError
from lisaseg.formats import rle
from lisaseg.formats.mask_forms import mask_to_json
from lisaseg.tokenization import clean_instruction
from lisaseg.types import MaskFormat

PING_SECONDS, LOOK_SECONDS, SWEEP_SECONDS = 15.0, 0.25, 30.0
Keep = Callable[[dict[str, Any]], Awaitable[None]]


class Service:
    """What the routes work with.

    Args:
        settings: see there.
        on_failure: called with a sentence and an exit code if the server cannot go on.
    """

    def __init__(self, settings: Settings, on_failure: Callable[[str, int], None]) -> None:
        self.settings, self.limits = settings, settings.limits
        self.metrics = Metrics()
        self.storage = Storage(settings.state, settings.limits, settings.id_secret)
        self.pictures = Pictures(settings, self.storage)
        reads = settings.label_studio_url and "label-studio" in settings.integrations
        self.label_studio = LabelStudioFiles(settings.label_studio_url, settings.label_studio_key) if reads else None
        self.rates = Rates(settings.limits.requests_per_minute)
        self.scheduler = Scheduler(settings, self.metrics, on_failure)
        self.busy: set[tuple[str, str]] = set()  # (owner, session) that somebody holds
        self.started = time.time()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Start engines and upkeep."""
        self.scheduler.start()
        self.background(self._sweep())

    async def stop(self) -> None:
        """End everything."""
        await self.scheduler.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.pictures.close()
        self.storage.close()

    def background(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine as a task that is not lost."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def limit_rate(self, owner: str) -> None:
        """Count a request of this key; ApiError `rate_limited`."""
        if self.settings.keys:
            self.rates.take(owner)

    def job(self, owner: str, image: StoredImage, ask: Ask, prompt: str, mode: str, history: Sequence[StoredTurn]) -> Job:
        """A checked question; ApiError if the prompt or a number is out of bounds."""
        try:
            clean_instruction(prompt, self.limits.max_prompt_chars)
            for turn in history:
                clean_instruction(turn.prompt)
        except InstructionError as error:
            raise from_lisaseg(error, "prompt") from error
        if len(history) >= self.limits.max_turns:
            raise ApiError("too_many_turns", f"The conversation has {len(history)} turns, as many as it may have.")
        tokens = ask.max_new_tokens or min(self.limits.default_new_tokens, self.limits.max_new_tokens)
        if tokens > self.limits.max_new_tokens:
            message = f"max_new_tokens is {tokens}; the limit of this server is {self.limits.max_new_tokens}."
            raise ApiError("invalid_request", message, param="max_new_tokens")
        return Job(
            owner=owner,
            image={"path": str(image.path), "sha256": image.sha256},
            prompt=prompt,
            mode=mode,
            max_new_tokens=tokens,
            deadline=time.monotonic() + self.limits.deadline_seconds,
            history=[[turn.prompt, turn.mode, turn.raw_text] for turn in history],
            live=ask.stream,
        )

    def begin(self, job: Job, image: StoredImage, keep: Keep | None = None, hold: Hold | None = None) -> Asking:
        """Put a job into the queue; `keep` stores the answer, and then the hold on the session ends."""
        position = self.scheduler.submit(job)
        return Asking(self, job, image, keep, hold.hand_over() if hold else None, position)

    async def _sweep(self) -> None:
        while True:
            try:
                await self.storage.run(self.storage.sweep)
                self.metrics.sessions.set(await self.storage.run(self.storage.session_count))
                self.metrics.images.set(await self.storage.run(self.storage.image_bytes))
            except ApiError as error:
                log.error("sweep failed", extra={"where": where(error)})
            await asyncio.sleep(SWEEP_SECONDS)


class Hold:
    """Nobody else may change a session meanwhile: a context that ends at its end, unless it is handed over to a question under way."""

    def __init__(self, service: Service, owner: str, session_id: str) -> None:
        self._busy, self._key, self._handed = service.busy, (owner, session_id), False

    def __enter__(self) -> Hold:
        if self._key in self._busy:
            raise ApiError("session_busy")
        self._busy.add(self._key)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._handed:
            self.end()

    def hand_over(self) -> Hold:
        """Who takes it calls `end`."""
        self._handed = True
        return self

    def end(self) -> None:
        """Let others in."""
        self._busy.discard(self._key)


class Asking:
    """A question under way. Its work is a task of its own: it goes on, stores the turn and frees the session whatever becomes of the response."""

    def __init__(self, service: Service, job: Job, image: StoredImage, keep: Keep | None, hold: Hold | None, position: int) -> None:
        self.service, self.job, self.image, self.keep, self.hold, self.position = service, job, image, keep, hold, position
        self.events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        service.background(self._work())

    async def _work(self) -> None:
        """Move events from the job to the response: ("text", raw), then ("answer", dict) or ("error", ApiError)."""
        try:
            while True:
                event, value = await self.job.events.get()
                if event == "answer":
                    value = self._envelope(value)
                    if self.keep is not None:
                        await self.keep(value)
                self.events.put_nowait((event, value))
                if event != "text":
                    return
        except ApiError as error:
            self.events.put_nowait(("error", error))
        except Exception as error:
            log.error("unexpected %s", type(error).__name__, extra={"where": where(error)})
            self.events.put_nowait(("error", ApiError("internal")))
        finally:
            if self.hold is not None:
                self.hold.end()

    def _envelope(self, answer: dict[str, Any]) -> dict[str, Any]:
        """`Answer.to_dict()` with what the service knows about it."""
        head = {"id": self.job.id, "object": "answer", "created": int(time.time()), "mode": self.job.mode}
        timings = {"queue": round(self.job.queue_ms, 3), **{name: round(ms, 3) for name, ms in answer["timings_ms"].items()}}
        answer = {**answer, "model": self.service.settings.model_name}
        return {**head, **answer, "image": {"id": self.image.id, **answer["image"]}, "timings_ms": timings}

    async def stream(self, request: Request) -> AsyncIterator[tuple[str, Any]]:
        """The events; ("ping", None) in long pauses. Ends the job if the client is gone."""
        quiet = time.monotonic()
        try:
            while True:
                try:
                    event, value = await asyncio.wait_for(self.events.get(), LOOK_SECONDS)
                except TimeoutError:
                    if await request.is_disconnected():
                        return
                    if time.monotonic() - quiet > PING_SECONDS:
                        quiet = time.monotonic()
                        yield "ping", None
                    continue
                quiet = time.monotonic()
                yield event, value
                if event != "text":
                    return
        finally:
            self.service.scheduler.cancel(self.job)

    async def answer(self, request: Request) -> dict[str, Any]:
        """The whole answer; ApiError if it failed."""
        async for event, value in self.stream(request):
            if event == "answer":
                return value  # type: ignore[no-any-return]
            if event == "error":
                raise value
        raise ApiError("deadline_exceeded", "The client went away.")  # nobody reads this


async def respond(service: Service, request: Request, asking: Asking, ask: Ask) -> Response:
    """The answer as JSON, or as a stream if it was asked for."""
    if ask.stream:
        return event_stream(_events(service, request, asking, ask.mask_format))
    return JSONResponse(await with_masks(service, await asking.answer(request), ask.mask_format))


async def repeat(service: Service, answer: dict[str, Any], ask: Ask) -> Response:
    """An answer that was given before, in the form of this request."""
    shaped = await with_masks(service, answer, ask.mask_format)
    if not ask.stream:
        return JSONResponse(shaped)

    async def events() -> AsyncIterator[bytes]:
        yield sse("start", {"id": shaped["id"], "queue_position": 0})
        yield sse("delta", {"text": shaped["text"]})
        for segment in shaped["segments"]:
            yield sse("segment", segment)
        yield sse("done", shaped)

    return event_stream(events())


async def _events(service: Service, request: Request, asking: Asking, mask_format: MaskFormat) -> AsyncIterator[bytes]:
    yield sse("start", {"id": asking.job.id, "queue_position": asking.position})
    sent = ""
    async for event, value in asking.stream(request):
        if event == "ping":
            yield b": ping\n\n"
        elif event == "error":
            request.scope["state"]["code"] = value.code
            yield sse("error", value.body(request.state.request_id))
        else:
            text = value["text"] if event == "answer" else readable(value)
            if text.startswith(sent):
                if len(text) > len(sent):
                    yield sse("delta", {"text": text[len(sent) :]})
            else:
                yield sse("replace", {"text": text})
            sent = text
        if event == "answer":
            shaped = await with_masks(service, value, mask_format)
            for segment in shaped["segments"]:
                yield sse("segment", segment)
            yield sse("done", shaped)


def readable(raw: str) -> str:
    """Raw text so far as people see it, without half a character at its end."""
    return spans(raw.rstrip("\ufffd").lstrip())[0]


def sse(event: str, data: Any) -> bytes:
    """One event of a stream."""
    return f"event: {event}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """A response that is not buffered on its way."""
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def with_masks(service: Service, answer: dict[str, Any], mask_format: MaskFormat) -> dict[str, Any]:
    """The answer with masks in another form."""
    if mask_format == "rle":
        return answer

    def shaped() -> list[dict[str, Any]]:
        return [{**segment, "mask": mask_to_json(rle.decode(segment["mask"]), mask_format)} for segment in answer["segments"]]

    return {**answer, "segments": await service.pictures.work(shaped)}
