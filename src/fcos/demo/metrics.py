"""The metrics at `/metrics` for Prometheus, summed over all workers."""

from __future__ import annotations

import os
import time

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client's folder for its workers; set before its import
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)
CLIENT_GONE = "499"  # nginx's status for a client that disconnected


class Metrics:
    """The counters and histograms of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fcos_requests", "Requests to /predict, by HTTP status.", ["status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "fcos_request_seconds",
            "Seconds from the headers of a request to its response.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.pass_seconds = Histogram(
            "fcos_pass_seconds", "Seconds of a forward pass.", buckets=SECONDS, registry=self.registry
        )
        self.pass_images = Histogram(
            "fcos_pass_images", "Images per forward pass.", buckets=IMAGES, registry=self.registry
        )

    def on_pass(self, num_images: int, seconds: float) -> None:
        """Record a forward pass."""
        self.pass_images.observe(num_images)
        self.pass_seconds.observe(seconds)

    def text(self) -> bytes:
        """The text that Prometheus reads."""
        registry = self.registry
        if MULTIPROC in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class Metered:
    """Middleware that counts and times the requests to `/predict`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] != "/predict":
            await self.app(scope, receive, send)
            return
        status, started_at = CLIENT_GONE, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self.metrics.requests.labels(status).inc()
            self.metrics.request_seconds.observe(time.perf_counter() - started_at)
