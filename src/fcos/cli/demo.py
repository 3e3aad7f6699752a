"""`fcos demo`: a local page to try a model in the browser."""

from __future__ import annotations

import threading
import webbrowser
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcos.cli.eval import run_config
from fcos.cli.options import PATH, announce, needs_demo, server_options
from fcos.errors import FcosError
from fcos.files import data_below

if TYPE_CHECKING:
    from fcos.detector import Detector

NUM_EXAMPLES = 12

EPILOG = """\b
Examples:
  fcos demo                                      the everyday detector, with 20 classes
  fcos demo runs/train                           the page, with examples from its evaluation list
  fcos demo best.safetensors --examples photos/
  fcos export everyday --format web              the page for any static host: no server, no installation
  curl --data-binary @street.jpg http://127.0.0.1:8000/predict
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="[RUN_OR_MODEL]", type=PATH, default="everyday")
@click.option(
    "--examples",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of example images for the page; default: some of the run's evaluation images.",
)
@server_options
@click.option("--open/--no-open", "open_browser", default=True, help="Open the page in a browser.")
def command(
    model: Path,
    examples: Path | None,
    host: str,
    port: int,
    open_browser: bool,
    agnostic_nms: bool | None,
    device: str | list[int],
) -> None:
    """Try a model in the browser: drop, paste or select images, or use the webcam.

    The page sends images only to this server. Programs can use it too: POST an image file to /predict;
    /openapi.json describes the API. Needs pip install 'fcos-torch[demo]'.
    """
    with needs_demo():
        from fcos.demo.connections import address_of, listen, serve
        from fcos.demo.guard import served_hosts
        from fcos.demo.server import build_app

    from fcos.detector import Detector

    listening = listen(host, port)
    announce(model)
    detector = Detector.load(model, device, agnostic_nms=agnostic_nms)
    example_files = images_of(examples) if examples else images_of_run(detector)
    address = address_of(listening, host)
    click.echo(f"{address}  (stop with Ctrl-C)")
    if open_browser:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    app = build_app(detector, example_files, hosts=served_hosts(host))
    serve(lambda: app, listening)


def images_of(folder: Path) -> list[Path]:
    """The first images of a folder and its subfolders, by name."""
    from fcos.data.image_files import IMAGE_SUFFIXES

    files = (file for file in data_below(folder, *IMAGE_SUFFIXES) if file.is_file())
    return list(islice(files, NUM_EXAMPLES))


def images_of_run(detector: Detector) -> list[Path]:
    """Some of the images that a run was evaluated on, where they still exist."""
    from fcos.data.splits import spread
    from fcos.train.data import read_eval_set

    run = run_config(detector.path)
    if run is None or not run.list_eval:
        return []
    try:
        annotations = read_eval_set(run, detector.class_names)
    except FcosError:  # moved since then: the page works without them
        return []
    paths = [annotations[index].path for index in spread(len(annotations), NUM_EXAMPLES)]
    return [path for path in paths if path.is_file()]
