"""`POST /predict`: detections of the image in the body of a request, for the demo and the service.

    curl --data-binary @street.jpg http://127.0.0.1:8000/predict

Images are never written to disk. ``/openapi.json`` describes the interface. Requests of other pages are
rejected in `guard`, slow clients in `connections`, images that are too large in `body`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import torch
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from fcos import __version__
from fcos.demo.batching import Batches
from fcos.demo.body import Inbox, busy, decode_image
from fcos.demo.guard import Guard
from fcos.detector import Detector
from fcos.model.points import level_name
from fcos.model.postprocess import ImageDetections
from fcos.terminal import printable_line

MIN_SCORE = 0.05  # the page gets everything above it and filters itself
WAIT_SECONDS = 60.0  # for other requests to finish
DECODED_AT_ONCE = 2  # images in memory at their original size


class Detection(BaseModel):
    """One detection, in pixels of the upright image.

    Attributes:
        box_xyxy: x1, y1, x2, y2.
        level: pyramid level that predicted it, such as P3; null for exported models, which do not state it.
        point_xy: point of this level that predicted it.
    """

    class_name: str
    label: int
    score: float
    box_xyxy: tuple[float, float, float, float]
    level: str | None
    point_xy: tuple[float, float] | None


class Answer(BaseModel):
    """Detections of one image, best score first; sizes in pixels of the upright image.

    Attributes:
        elapsed_ms: of the forward pass, which may have been shared with other images.
    """

    width: int
    height: int
    detections: list[Detection]
    elapsed_ms: float


def build_endpoint(
    detector: Detector,
    *,
    batch_size: int | None = None,
    on_pass: Callable[[int, float], None] = lambda num_images, seconds: None,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """An application with only this route, to which others can be added.

    Args:
        detector: predicts the images of concurrent requests in batches.
        batch_size: maximum images per forward pass; None: as `Detector.predict` chooses.
        on_pass: called after each forward pass with its number of images and seconds.
        hosts: host names to serve, besides IP addresses; None: any.
    """
    app = FastAPI(  # FastAPI's own documentation page loads scripts from other servers
        title="fcos",
        version=__version__,
        description="Detections of one image.",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Guard, hosts=hosts)
    app.add_exception_handler(RequestValidationError, _refuse)
    class_names = tuple(map(printable_line, detector.class_names))
    batches = Batches(detector, batch_size, on_pass)
    inbox = Inbox()
    # Memory does not grow with the number of clients; waiting blocks no thread, so other routes respond.
    slots = asyncio.Semaphore(2 * batches.most)  # images of one pass, and of the next
    decoding = asyncio.Semaphore(DECODED_AT_ONCE)

    @app.post(
        "/predict",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
        responses={
            403: {"description": "the request comes from a page of another origin"},
            413: {"description": "the file is too large, or the image has too many pixels"},
            415: {"description": "the file is not a readable image"},
            503: {"description": "too many images at once"},
        },
    )
    async def predict(
        request: Request,
        score_threshold: Annotated[float, Query(ge=0, le=1, description="minimum score")] = MIN_SCORE,
    ) -> Answer:
        """Detections of the image in the request body (an image file: JPEG, PNG, WebP, ...)."""
        content = await inbox.read(request)
        try:
            async with _one_of(slots):
                if await request.is_disconnected():
                    raise HTTPException(400, "the client has disconnected")
                async with decoding:
                    image = await asyncio.to_thread(lambda: detector.prepare(decode_image(content)))
                found, seconds = await batches.detect(image)
        except (MemoryError, torch.OutOfMemoryError):
            raise HTTPException(503, "not enough memory for this image: resize it") from None
        finally:
            inbox.forget(len(content))
        height, width = image.original_size_hw
        return Answer(
            width=width,
            height=height,
            detections=_found(found, score_threshold, class_names),
            elapsed_ms=seconds * 1000,
        )

    return app


@asynccontextmanager
async def _one_of(slots: asyncio.Semaphore) -> AsyncIterator[None]:
    """A slot for one image; 503 after `WAIT_SECONDS`."""
    try:
        await asyncio.wait_for(slots.acquire(), WAIT_SECONDS)
    except asyncio.TimeoutError:
        raise busy() from None
    try:
        yield
    finally:
        slots.release()


def _found(detections: ImageDetections, min_score: float, class_names: Sequence[str]) -> list[Detection]:
    """The detections of at least this score, in their order (best first)."""
    labels, scores, boxes = (
        part.tolist() for part in (detections.labels, detections.scores, detections.boxes_xyxy)
    )
    places = [None] * len(labels) if detections.found_at is None else detections.found_at.tolist()
    return [
        Detection(
            class_name=class_names[label],
            label=label,
            score=score,
            box_xyxy=box,
            level=place and level_name(int(place[2])),
            point_xy=place and place[:2],
        )
        for label, score, box, place in zip(labels, scores, boxes, places, strict=True)
        if score >= min_score
    ]


async def _refuse(_: Request, error: Exception) -> Response:
    """Describe an invalid parameter in one sentence, as in other error responses."""
    assert isinstance(error, RequestValidationError)
    wrong = (f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
    return JSONResponse({"detail": printable_line("; ".join(wrong))}, 422)
