"""Counters for Prometheus, in a registry of our own so that several servers can live in one process (tests do)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What the service counts. Labels are bounded: routes are templates, codes are those of the catalogue."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("lisaseg_requests", "Requests by route, method and status.", ["route", "method", "status"], registry=registry)
        self.latency = Histogram("lisaseg_request_seconds", "Time from head to end of response.", ["route"], buckets=SECONDS, registry=registry)
        self.answers = Counter("lisaseg_answers", "Questions by outcome: done, cancelled, or an error code.", ["outcome"], registry=registry)
        self.stages = Histogram("lisaseg_stage_seconds", "Time of a question by stage.", ["stage"], buckets=SECONDS, registry=registry)
        self.batches = Histogram("lisaseg_batch_size", "Questions answered together.", buckets=(1, 2, 4, 6, 8, 16, 32, 64), registry=registry)
        self.encodings = Counter("lisaseg_encoder_runs", "Pictures encoded, by encoder (image, mask).", ["encoder"], registry=registry)
        self.queue = Gauge("lisaseg_queue_depth", "Questions that wait.", registry=registry)
        self.running = Gauge("lisaseg_running", "Questions that the engines work on.", registry=registry)
        self.cache = Gauge("lisaseg_cache_bytes", "Encoded pictures in the memory of the engines.", registry=registry)
        self.cached = Gauge("lisaseg_cache_pictures", "Encoded pictures in the memory of the engines.", registry=registry)
        self.sessions = Gauge("lisaseg_sessions", "Sessions on disk.", registry=registry)
        self.images = Gauge("lisaseg_image_store_bytes", "Pictures on disk.", registry=registry)
        self.restarts = Counter("lisaseg_engine_restarts", "Engines that were started again.", ["reason"], registry=registry)
        self.ready = Gauge("lisaseg_engines_ready", "Engines that can answer.", registry=registry)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
        self.requests.labels(route, known, str(status)).inc()
        self.latency.labels(route).observe(seconds)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
