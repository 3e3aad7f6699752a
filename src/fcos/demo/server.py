"""A detector behind HTTP: the demo page, and `POST /predict` for programs.

    curl --data-binary @street.jpg http://127.0.0.1:8000/predict

Images come in the body of the request (`body`) and are never written to disk; of the host's files only the
page and the examples that were given at the start can be read. ``/openapi.json`` describes the interface.
What other pages may not ask stands in `guard`, how long a client may take in `connections`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import torch
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel
from torch import Tensor

from fcos import __version__
from fcos.demo.body import MAX_BYTES, MAX_PIXELS, Inbox, busy, open_image
from fcos.demo.guard import Guard
from fcos.detector import Detector
from fcos.model.points import level_name
from fcos.predict.detections import Detections
from fcos.predict.draw import class_colour
from fcos.terminal import counted, printable_line

MIN_SCORE = 0.05  # the page gets everything above it and filters itself
WAIT_SECONDS = 60.0  # for others to be done
IMAGES_IN_MEMORY = 2  # decoded: one is in the network, the next is being read

PAGE_FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


class Found(BaseModel):
    """One detection, in pixels of the upright image.

    Attributes:
        box_xyxy: x1, y1, x2, y2.
        level: of the pyramid that found it, such as P3; null where an exported model does not say.
        point_xy: of this level that found it.
    """

    class_name: str
    label: int
    score: float
    box_xyxy: tuple[float, float, float, float]
    level: str | None
    point_xy: tuple[float, float] | None


class Answer(BaseModel):
    """Detections of one image, best score first; sizes in pixels of the upright image."""

    width: int
    height: int
    detections: list[Found]
    elapsed_ms: float


class About(BaseModel):
    """The model behind the page; colours as #rrggbb, in the order of the classes."""

    model: str
    class_names: tuple[str, ...]
    class_colours: tuple[str, ...]
    threshold: float
    num_examples: int
    max_bytes: int


def build_app(
    detector: Detector,
    examples: Sequence[Path] = (),
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The application.

    Args:
        detector: ready to use; it predicts one image at a time.
        examples: image files that the page offers.
        max_bytes: of the file of one image.
        max_pixels: of one image.
        hosts: names by which it may be asked, besides addresses; None: any.
    """
    app = FastAPI(  # FastAPI's own page of the interface loads scripts from elsewhere
        title="fcos",
        version=__version__,
        description="Detections of one image.",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Guard, hosts=hosts)
    app.add_exception_handler(RequestValidationError, _refuse)
    class_names = tuple(map(printable_line, detector.class_names))
    inbox, turns = Inbox(max_bytes), Turns()

    for name, path in (("page.html", "/"), ("page.css", "/page.css"), ("page.js", "/page.js")):
        app.add_api_route(path, _page_file(name), include_in_schema=False)

    @app.get("/about")
    async def about() -> About:
        """The classes of the model, and the score from which detections are worth showing."""
        return About(
            model=printable_line(detector.path.parent.name or detector.path.name),
            class_names=class_names,
            class_colours=tuple(
                "#{:02x}{:02x}{:02x}".format(*class_colour(label)) for label in range(len(class_names))
            ),
            threshold=detector.threshold,
            num_examples=len(examples),
            max_bytes=max_bytes,
        )

    @app.get("/examples/{number}", response_class=FileResponse)
    async def example(number: int) -> FileResponse:
        """An example image, counted from 0."""
        if not 0 <= number < len(examples):
            raise HTTPException(404, f"there are {counted(len(examples), 'example')}")
        if not examples[number].is_file():
            raise HTTPException(404, "this example no longer exists")
        return FileResponse(examples[number])

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
        score_threshold: Annotated[float, Query(ge=0, le=1, description="least score")] = MIN_SCORE,
    ) -> Answer:
        """Detections of the image in the request body (an image file: JPEG, PNG, WebP, ...)."""
        content = await inbox.read(request)
        try:
            async with turns.slot():
                if await request.is_disconnected():
                    raise HTTPException(400, "the client has disconnected")
                async with turns.decoding:
                    image = await asyncio.to_thread(open_image, content, max_pixels)
                async with turns.predicting:
                    return await asyncio.to_thread(_predict, image, score_threshold)
        finally:
            inbox.forget(len(content))

    def _predict(image: Tensor, score_threshold: float) -> Answer:
        started_at = time.perf_counter()
        try:
            found = detector.predict(image, score_threshold)
        except (MemoryError, torch.OutOfMemoryError):
            raise HTTPException(503, "not enough memory for this image: resize it") from None
        elapsed_ms = (time.perf_counter() - started_at) * 1000
        return Answer(
            width=image.shape[2],
            height=image.shape[1],
            detections=_found(found, class_names),
            elapsed_ms=elapsed_ms,
        )

    return app


class Turns:
    """Who may decode and predict: one at a time each, so that memory does not grow with the clients.

    Whoever waits holds no thread: the page and `/about` are answered meanwhile.
    """

    def __init__(self) -> None:
        self.decoding, self.predicting = asyncio.Lock(), asyncio.Lock()
        self._slots = asyncio.Semaphore(IMAGES_IN_MEMORY)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Room for one decoded image.

        Raises:
            HTTPException: 503 after `WAIT_SECONDS`.
        """
        try:
            await asyncio.wait_for(self._slots.acquire(), WAIT_SECONDS)
        except asyncio.TimeoutError:
            raise busy() from None
        try:
            yield
        finally:
            self._slots.release()


def _found(detections: Detections, class_names: Sequence[str]) -> list[Found]:
    labels, scores, boxes = (
        part.tolist() for part in (detections.labels, detections.scores, detections.boxes_xyxy)
    )
    places = [None] * len(labels) if detections.found_at is None else detections.found_at.tolist()
    return [
        Found(
            class_name=class_names[label],
            label=label,
            score=score,
            box_xyxy=box,
            level=place and level_name(int(place[2])),
            point_xy=place and place[:2],
        )
        for label, score, box, place in zip(labels, scores, boxes, places, strict=True)
    ]


async def _refuse(_: Request, error: Exception) -> Response:
    """A wrong parameter, in one sentence like every other refusal."""
    assert isinstance(error, RequestValidationError)
    wrong = (f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
    return JSONResponse({"detail": printable_line("; ".join(wrong))}, 422)


def _page_file(name: str) -> Callable[[], Awaitable[Response]]:
    content = files("fcos.demo").joinpath(name).read_bytes()

    async def answer() -> Response:
        return Response(content, media_type=PAGE_FILES[name], headers={"Cache-Control": "no-cache"})

    return answer
