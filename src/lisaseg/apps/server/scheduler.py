"""From requests to batches: admit, wait in a bounded fair queue, go to an engine together, come back one by one.

An engine gets its next batch when it has finished the one before: under load the queue fills meanwhile and batches grow by themselves; at rest a
question waits `batch_wait_seconds` and runs alone. All questions about one picture go to the same engine, where it is encoded already.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.jobs import FairQueue, Job
from lisaseg.apps.server.logs import log, where
from lisaseg.apps.server.metrics import Metrics
from lisaseg.apps.server.settings import Settings
from lisaseg.apps.server.worker import Worker


class Lane:
    """One engine with its queue and its running batch."""

    def __init__(self, index: int, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.queue = FairQueue()
        self.running: dict[str, Job] = {}
        self.arrived = asyncio.Event()
        self.finished = asyncio.Event()
        self.counters: Counter[str] = Counter()
        self.worker = Worker(
            index, scheduler.settings, scheduler.metrics, on_message=self.on_message, on_death=self.on_death, on_failure=scheduler.on_failure
        )

    async def run(self) -> None:
        """Send batch after batch."""
        limits = self.scheduler.settings.limits
        while True:
            await self.arrived.wait()
            await self.worker.ready()
            if len(self.queue) < limits.max_batch:
                await asyncio.sleep(limits.batch_wait_seconds)
            batch = self.queue.take(limits.max_batch, limits.max_batch_chars)
            if not len(self.queue):
                self.arrived.clear()
            if not batch:
                continue
            self.finished.clear()
            self.running = {job.id: job for job in batch}
            now = time.monotonic()
            for job in batch:
                job.queue_ms = 1e3 * (now - job.submitted)
            self.worker.busy_until = max(job.deadline for job in batch) + limits.hang_seconds
            self.scheduler.metrics.batches.observe(len(batch))
            self.scheduler.gauge()
            mode, tokens = batch[0].kind
            jobs = [job.message() for job in batch]
            if await self.worker.send({"do": "answer", "mode": mode, "max_new_tokens": tokens, "jobs": jobs}):
                await self.finished.wait()
            else:  # it never had them
                self._put_back(batch)

    def _put_back(self, batch: list[Job]) -> None:
        for job in batch:
            if not job.finished:
                self.queue.put(job)
                self.arrived.set()
        self._end_batch()

    def on_message(self, message: dict[str, Any]) -> None:
        """Something from the engine."""
        event = message["event"]
        job = self.running.get(message.get("id", ""))
        if event == "text" and job is not None and not job.finished:
            job.events.put_nowait(("text", message["raw"]))
        elif event == "answer" and job is not None:
            self.scheduler.done(job, message["answer"])
        elif event == "error" and job is not None:
            error = ApiError(message["code"], param=message["param"])
            error.message = message["message"]  # complete, as the engine worded it
            self.scheduler.fail(job, error)
        elif event == "batch":
            self._count(message)
            for left in self.running.values():  # none, unless the engine forgot one
                self.scheduler.fail(left, ApiError("internal"))
            self._end_batch()

    def on_death(self) -> None:
        """The engine is gone; what it worked on is lost, what waits will be answered by its successor."""
        for job in self.running.values():
            self.scheduler.fail(job, ApiError("engine_restarted", retry_after=2))
        self.counters.clear()
        self._end_batch()

    def _end_batch(self) -> None:
        self.running = {}
        self.worker.busy_until = None
        self.finished.set()
        self.scheduler.gauge()

    def _count(self, message: dict[str, Any]) -> None:
        metrics = self.scheduler.metrics
        for name, value in message["counters"].items():  # since the start of the process
            metrics.encodings.labels(name).inc(max(0, value - self.counters[name]))
            self.counters[name] = value
        metrics.cache.set(message["cache_bytes"])
        metrics.cached.set(message["cache_pictures"])


class Scheduler:
    """All lanes, and the door in front of them.

    Args:
        on_failure: called once with a sentence and an exit code if the model cannot be loaded.
    """

    def __init__(self, settings: Settings, metrics: Metrics, on_failure: Callable[[str, int], None]) -> None:
        self.settings, self.metrics, self.on_failure = settings, metrics, on_failure
        self.draining = False
        self.active: Counter[str] = Counter()  # questions of each owner, waiting or running
        self.lanes = [Lane(index, self) for index in range(settings.workers)]
        self._tasks: list[asyncio.Task[None]] = []
        self._sending: set[asyncio.Task[bool]] = set()

    def start(self) -> None:
        """Start the engines; returns at once."""
        for lane in self.lanes:
            lane.worker.start()
        for loop in (*(lane.run() for lane in self.lanes), self._expire()):
            task = asyncio.get_running_loop().create_task(loop)
            task.add_done_callback(self._broken)
            self._tasks.append(task)

    async def stop(self) -> None:
        """End the engines; whatever still waits fails."""
        for task in self._tasks:
            task.cancel()
        for lane in self.lanes:
            for job in [*lane.queue, *lane.running.values()]:
                self.fail(job, ApiError("draining"))
        await asyncio.gather(*(lane.worker.stop() for lane in self.lanes))

    @property
    def state(self) -> str:
        """ready, loading, restarting, draining or failed."""
        if self.draining:
            return "draining"
        if not self.lanes:  # no model was wanted
            return "ready"
        if any(lane.worker.answers for lane in self.lanes):
            return "ready"
        first = self.lanes[0].worker.state
        return "restarting" if first == "ready" else first

    @property
    def depth(self) -> int:
        """Questions that wait."""
        return sum(len(lane.queue) for lane in self.lanes)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self.active.total()

    @property
    def revises(self) -> bool:
        """Whether the model may change text that was already sent."""
        return any(lane.worker.facts.get("revises", True) for lane in self.lanes)

    @property
    def facts(self) -> dict[str, Any]:
        """What an engine said of its model when it was ready: device, precision, modes; {} before."""
        return next((lane.worker.facts for lane in self.lanes if lane.worker.facts), {})

    def submit(self, job: Job) -> int:
        """Let a job in; returns its place in the queue. ApiError `draining`, `model_loading`, `invalid_request`, `overloaded`, `rate_limited`."""
        if self.draining:
            raise ApiError("draining", retry_after=5)
        if not self.lanes:
            raise ApiError("model_not_found", "This server runs without a model.", next_step="Start it with one.")
        if not any(lane.worker.ever_ready for lane in self.lanes):
            raise ApiError("model_loading", retry_after=2)
        if job.mode not in (modes := self.facts["modes"]):
            message = f"The model {self.settings.model_name} does not know the mode {job.mode!r}."
            raise ApiError("invalid_request", message, param="mode", next_step=f"Use one of: {', '.join(modes)}.")
        if self.settings.keys and self.active[job.owner] >= self.settings.limits.concurrent_per_key:
            raise ApiError("rate_limited", f"This key has {self.active[job.owner]} questions that are not answered yet.")
        if self.depth >= self.settings.limits.max_queue:
            raise ApiError("overloaded", f"The queue of {self.settings.limits.max_queue} questions is full.", retry_after=2)
        lane = self._lane_of(job)
        lane.queue.put(job)
        lane.arrived.set()
        self.active[job.owner] += 1
        self.gauge()
        return len(lane.queue)

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more: give its place to others."""
        if job.finished:
            return
        for lane in self.lanes:
            lane.queue.remove(job)
            if job.id in lane.running:
                self._tell(lane, {"do": "cancel", "id": job.id})
        self._finish(job, "error", ApiError("internal"), "cancelled")

    def done(self, job: Job, answer: dict[str, Any]) -> None:
        """A job was answered."""
        for stage, ms in {**answer["timings_ms"], "queue": job.queue_ms}.items():
            self.metrics.stages.labels(stage).observe(ms / 1e3)
        self._finish(job, "answer", answer, "done")

    def fail(self, job: Job, error: ApiError) -> None:
        """A job failed."""
        self._finish(job, "error", error, error.code)

    def gauge(self) -> None:
        """Show what waits and runs."""
        self.metrics.queue.set(self.depth)
        self.metrics.running.set(sum(len(lane.running) for lane in self.lanes))

    def _finish(self, job: Job, event: str, value: Any, outcome: str) -> None:
        if job.end(event, value):
            self.metrics.answers.labels(outcome).inc()
            self.active[job.owner] -= 1
            if not self.active[job.owner]:
                del self.active[job.owner]
            self.gauge()

    def _lane_of(self, job: Job) -> Lane:
        """The lane of the picture; another one only while its engine is away."""
        home = int(job.image["sha256"][:8], 16) % len(self.lanes)
        order = self.lanes[home:] + self.lanes[:home]
        return next((lane for lane in order if lane.worker.state == "ready"), order[0])

    async def _expire(self) -> None:
        """Fail what is past its deadline, waiting or running."""
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            for lane in self.lanes:
                for job in [*lane.queue, *lane.running.values()]:
                    if now > job.deadline and not job.finished:
                        waiting = lane.queue.remove(job)
                        self.fail(job, ApiError("deadline_exceeded"))
                        if not waiting:
                            self._tell(lane, {"do": "cancel", "id": job.id})

    def _tell(self, lane: Lane, message: dict[str, Any]) -> None:
        """Send without waiting: an engine that is stuck must not stop the others."""
        task = asyncio.get_running_loop().create_task(lane.worker.send(message))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _broken(self, task: asyncio.Task[None]) -> None:
        """A loop of the scheduler ended by a fault: better no server than one that never answers."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("scheduler: %s at %s", type(error).__name__, where(error))
            self.on_failure("The scheduler failed; the log says where.", 1)
