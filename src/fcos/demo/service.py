"""The service: `POST /predict` (`endpoint`), `/healthz` and `/metrics`, in one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from fcos import __version__
from fcos.cpu.memory import keep_freed_memory
from fcos.demo.endpoint import build_endpoint
from fcos.demo.metrics import Metered, Metrics
from fcos.detector import Detector
from fcos.terminal import printable_line

WARM_UP_HW = (480, 640)


class Health(BaseModel):
    """The answer of a process that is ready."""

    status: str
    model: str
    version: str


def build_service(detector: Detector, **options: Any) -> FastAPI:
    """The application, after a warm-up prediction, so that the first request is as fast as others.

    Options are those of `build_endpoint`.
    """
    detector.predict(torch.zeros((3, *WARM_UP_HW), dtype=torch.uint8))
    metrics = Metrics()
    app = build_endpoint(detector, on_pass=metrics.on_pass, **options)
    app.add_middleware(Metered, metrics=metrics)
    health = Health(status="ok", model=printable_line(str(detector.path)), version=__version__)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Responds as soon as the model is loaded, also while the network is busy."""
        return health

    @app.get("/metrics", response_class=Response)
    async def metrics_text() -> Response:
        """Counters and histograms, as text for Prometheus."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return app


def worker(model: Path, device: str | Sequence[int], agnostic_nms: bool | None, **options: Any) -> FastAPI:
    """The application of one worker process."""
    keep_freed_memory()
    return build_service(Detector.load(model, device, agnostic_nms=agnostic_nms), **options)
