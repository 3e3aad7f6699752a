"""`fcos demo`: a local page to try a model in the browser."""

from __future__ import annotations

import socket
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcos.cli.options import agnostic_nms_option, device_option
from fcos.errors import FcosError
from fcos.files import is_hidden

if TYPE_CHECKING:
    from fcos.detector import Detector

NUM_EXAMPLES = 12

EPILOG = """\b
Examples:
  fcos demo runs/train                           the page, with examples from its evaluation list
  fcos demo best.safetensors --examples photos/
  curl --data-binary @street.jpg http://127.0.0.1:8000/predict
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="RUN_OR_MODEL", type=click.Path(path_type=Path))
@click.option(
    "--examples",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of example images for the page; default: some of the run's evaluation images.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 accepts connections from the network.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0: any free port."
)
@click.option("--open/--no-open", "open_browser", default=True, help="Open the page in a browser.")
@agnostic_nms_option
@device_option
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
    try:
        from fcos.demo.connections import serve
        from fcos.demo.guard import served_hosts
        from fcos.demo.server import build_app
    except ImportError as error:
        raise FcosError(f"the demo page needs {error.name}", fix="pip install 'fcos-torch[demo]'") from error

    from fcos.detector import Detector

    listening = listen(host, port)
    detector = Detector.load(model, device, agnostic_nms=agnostic_nms)
    pictures = images_of(examples) if examples else images_of_run(model, detector)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}"
    click.echo(f"{address}  (stop with Ctrl-C)")
    if open_browser:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    serve(build_app(detector, pictures, hosts=served_hosts(host)), listening)


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address, before the model is loaded: a port in use fails at once."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # requests are accepted already, and wait until the model is loaded
    except OSError as error:
        listening.close()
        raise FcosError(
            f"cannot listen on {host}, port {port}: {error.strerror}",
            fix="give another --port, or --port 0 for any free one",
        ) from error
    return listening


def images_of(folder: Path) -> list[Path]:
    """The first images of a folder, by name."""
    from fcos.data.image_files import is_image

    images = (file for file in sorted(folder.iterdir()) if is_image(file.name) and not is_hidden(file.name))
    return [file for file in images if file.is_file()][:NUM_EXAMPLES]


def images_of_run(run: Path, detector: Detector) -> list[Path]:
    """Some of the images that a run was evaluated on, where they still exist."""
    from fcos.config import load_config
    from fcos.data.splits import spread

    settings = run / "config.json"
    if not settings.is_file():
        return []
    config = load_config(settings)
    if not config.list_eval:
        return []
    try:
        annotations = detector.read_annotations(
            config.list_eval, root=config.root_eval or None, format=config.data_format, skip_invalid=True
        )
    except FcosError:  # moved away since: the page works without them
        return []
    return [annotations[index].path for index in spread(len(annotations), NUM_EXAMPLES)]
