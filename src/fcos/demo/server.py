"""A detector behind HTTP: the demo page, and `POST /predict` for programs.

    curl --data-binary @street.jpg http://127.0.0.1:8000/predict

Pictures come in the body of the request and are never written to disk; of the host's files only the page and
the examples that were given at the start can be read. ``/openapi.json`` describes the interface.
"""

from __future__ import annotations

import io
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from fcos import __version__
from fcos.api import Detector
from fcos.data.image import to_pixels
from fcos.detections import Detections
from fcos.model.points import level_name
from fcos.plots.boxes import class_colour

MAX_BYTES = 32 * 2**20  # of one picture file
MAX_PIXELS = 64_000_000  # of one picture; 200 MB as RGB
LEAST_SCORE = 0.05  # the page gets everything above it, and filters by itself
# Others of Pillow's decoders start programs (EPS: Ghostscript) or are hardly ever tried.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

PAGE_FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}

# Everything comes from this server; pictures also from the browser itself (files, webcam).
CONTENT_POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'"


class Found(BaseModel):
    """One detection, in pixels of the upright picture.

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
    """What is in one picture, best score first; sizes in pixels of the upright picture."""

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
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The application.

    Args:
        detector: ready to use; one picture is searched at a time.
        examples: picture files that the page offers.
        max_bytes: of the file of one picture.
        max_pixels: of one picture.
        hosts: names by which it may be asked; None: any. A page from elsewhere can point a name of its own at
            this machine (DNS rebinding); with `LOCAL_HOSTS` it gets no answer.
    """
    app = FastAPI(  # FastAPI's own page of the interface loads scripts from elsewhere
        title="fcos",
        version=__version__,
        description="Detections of one picture.",
        docs_url=None,
        redoc_url=None,
    )
    one_at_a_time = threading.Lock()

    @app.middleware("http")
    async def _only_from_here(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if hosts is not None and request.url.hostname not in hosts:
            detail = f"{request.url.hostname} is not served: `fcos demo --host ...` says for whom to answer"
            return JSONResponse({"detail": detail}, 421)
        response = await call_next(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Content-Security-Policy"] = CONTENT_POLICY
        return response

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return _page_file("page.html")

    @app.get("/page.css", include_in_schema=False)
    def style() -> Response:
        return _page_file("page.css")

    @app.get("/page.js", include_in_schema=False)
    def script() -> Response:
        return _page_file("page.js")

    @app.get("/about")
    def about() -> About:
        """The classes of the model, and from which score on its detections are worth showing."""
        return About(
            model=detector.path.parent.name or detector.path.name,
            class_names=detector.class_names,
            class_colours=tuple(
                "#{:02x}{:02x}{:02x}".format(*class_colour(label))
                for label in range(len(detector.class_names))
            ),
            threshold=detector.threshold,
            num_examples=len(examples),
            max_bytes=max_bytes,
        )

    @app.get("/examples/{number}", response_class=FileResponse)
    def example(number: int) -> FileResponse:
        """An example picture, counted from 0."""
        if not 0 <= number < len(examples):
            raise HTTPException(404, f"there are {len(examples)} examples")
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
            413: {"description": "the file is too long, or the picture has too many pixels"},
            415: {"description": "the file is no picture that can be read"},
        },
    )
    async def predict(
        request: Request,
        score_threshold: Annotated[float, Query(ge=0, le=1, description="least score")] = LEAST_SCORE,
    ) -> Answer:
        """Detections of the picture in the request's body (the file as it is: JPEG, PNG, WebP, ...)."""
        content = await _read_body(request, max_bytes)
        return await run_in_threadpool(_predict, content, score_threshold)

    def _predict(content: bytes, score_threshold: float) -> Answer:
        with one_at_a_time:  # decoding too: many large pictures at once would fill the memory
            image = open_picture(content, max_pixels)
            started_at = time.perf_counter()
            found = detector.predict(image, score_threshold)
            elapsed_ms = (time.perf_counter() - started_at) * 1000
        assert found.image is not None
        return Answer(
            width=found.image.width,
            height=found.image.height,
            detections=_found(found),
            elapsed_ms=elapsed_ms,
        )

    return app


def _found(detections: Detections) -> list[Found]:
    labels, scores, boxes = (
        part.tolist() for part in (detections.labels, detections.scores, detections.boxes_xyxy)
    )
    places = [None] * len(labels) if detections.found_at is None else detections.found_at.tolist()
    return [
        Found(
            class_name=detections.class_names[label],
            label=label,
            score=score,
            box_xyxy=box,
            level=place and level_name(int(place[2])),
            point_xy=place and place[:2],
        )
        for label, score, box, place in zip(labels, scores, boxes, places, strict=True)
    ]


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The body; refused as soon as it is too long, whatever was announced."""
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > max_bytes:
                detail = f"the file is longer than {max_bytes / 2**20:.0f} MB: scale the picture"
                raise HTTPException(413, detail)
    except ClientDisconnect:  # nobody reads this answer
        raise HTTPException(400, "the picture ended early") from None
    if not content:
        raise HTTPException(415, "there is no picture in the request: send the file as its body")
    return bytes(content)


def open_picture(content: bytes, max_pixels: int) -> Image.Image:
    """The picture of a file's bytes, decoded and upright.

    ``except Exception`` because Pillow's decoders raise nearly any kind on broken files.

    Raises:
        HTTPException: 413 with too many pixels, 415 if it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures: the limit is ours
            opened = Image.open(io.BytesIO(content), formats=_formats())
        num_pixels = opened.width * opened.height
        if num_pixels <= max_pixels:
            return Image.fromarray(to_pixels(opened).permute(1, 2, 0).numpy())
    except Image.DecompressionBombError:
        num_pixels = None
    except UnidentifiedImageError:
        raise HTTPException(
            415, "this is no picture that can be read: send a JPEG, PNG, WebP, ... file as the body"
        ) from None
    except Exception as error:
        raise HTTPException(415, f"this picture is broken and cannot be read ({error})") from error
    size = "far too many" if num_pixels is None else f"{num_pixels / 1e6:.0f} million"
    raise HTTPException(
        413, f"the picture has {size} pixels, at most {max_pixels / 1e6:.0f} million are taken: scale it"
    )


@cache
def _formats() -> list[str]:
    """Those of `FORMATS` that this Pillow, with what is plugged into it, can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _page_file(name: str) -> Response:
    content = files("fcos.demo").joinpath(name).read_bytes()
    return Response(content, media_type=PAGE_FILES[name], headers={"Cache-Control": "no-cache"})
