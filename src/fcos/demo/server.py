"""The demo: its page, the routes that the page uses, and `POST /predict` (`endpoint`).

It serves no files of this machine but the page and the examples given at startup.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel
from starlette.routing import Route

from fcos.demo.body import MAX_BYTES
from fcos.demo.endpoint import build_endpoint
from fcos.detector import Detector
from fcos.predict.draw import class_color
from fcos.terminal import counted, printable_line
from fcos.weights.load import EVERYDAY, EVERYDAY_FILE

PAGE_FILES = {  # by path
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


class About(BaseModel):
    """The model behind the page; colors as #rrggbb, in the order of the classes."""

    model: str
    class_names: tuple[str, ...]
    class_colors: tuple[str, ...]
    threshold: float
    num_examples: int
    max_bytes: int


def build_app(detector: Detector, examples: Sequence[Path] = (), **options: Any) -> FastAPI:
    """The application; its page offers the `examples`. Options are those of `build_endpoint`."""
    app = build_endpoint(detector, **options)
    described = about_model(detector, len(examples))

    for path, (name, media_type) in PAGE_FILES.items():
        content = files("fcos.demo").joinpath(name).read_bytes()
        file = Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})
        app.router.routes.append(Route(path, file, methods=["GET"]))

    @app.get("/about")
    async def about() -> About:
        """The classes of the model, and the default minimum score of shown detections."""
        return described

    @app.get("/examples/{number}", response_class=FileResponse)
    async def example(number: int) -> FileResponse:
        """An example image, counted from 0."""
        if not 0 <= number < len(examples):
            raise HTTPException(404, f"there are {counted(len(examples), 'example')}")
        if not examples[number].is_file():
            raise HTTPException(404, "this example no longer exists")
        return FileResponse(examples[number])

    return app


def about_model(detector: Detector, num_examples: int) -> About:
    """The information about a model on the page."""
    class_names = tuple(map(printable_line, detector.class_names))
    name = EVERYDAY if detector.path == EVERYDAY_FILE else detector.path.parent.name or detector.path.name
    return About(
        model=printable_line(name),
        class_names=class_names,
        class_colors=tuple(
            "#{:02x}{:02x}{:02x}".format(*class_color(label)) for label in range(len(class_names))
        ),
        threshold=detector.threshold,
        num_examples=num_examples,
        max_bytes=MAX_BYTES,
    )
