"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any

import click

from fcos.errors import needs_extra
from fcos.format_names import FORMAT_NAMES

DEVICES = ("auto", "cpu", "cuda", "mps")
PATH = click.Path(path_type=Path)
FILE, FOLDER = click.Path(path_type=Path, dir_okay=False), click.Path(path_type=Path, file_okay=False)


def _convert_device(ctx: click.Context, param: click.Parameter, value: str) -> str | list[int]:
    """A name unchanged, GPU numbers as a list; whether the device exists is checked on use."""
    if value in DEVICES:
        return value
    if all(number.isdigit() for number in value.split(",")):
        return [int(number) for number in value.split(",")]
    raise click.BadParameter(f"{value!r} is neither one of {', '.join(DEVICES)} nor GPU numbers")


def _convert_one_device(ctx: click.Context, param: click.Parameter, value: str) -> str | list[int]:
    device = _convert_device(ctx, param, value)
    if isinstance(device, list) and len(device) > 1:
        raise click.BadParameter("this command runs on one device: give one GPU number")
    return device


def device_of(model: Path, device: str | list[int]) -> str | list[int]:
    """The device for a model: exported files run on the CPU, so for them "auto" is never a GPU."""
    from fcos.weights.load import format_of

    return "cpu" if device == "auto" and format_of(model) else device


def announce(model: Path) -> None:
    """If no model was given, say which classes the everyday detector knows."""
    from fcos.weights.load import EVERYDAY, EVERYDAY_FILE
    from fcos.weights.model_file import read_model

    if str(model) == EVERYDAY:
        names = read_model(EVERYDAY_FILE)[0].class_names
        click.echo(
            f"using the everyday detector, which knows {len(names)} classes: {', '.join(names)}\n"
            "train one for your own classes with: fcos train FOLDER",
            err=True,
        )


_device_option = partial(click.option, "--device", default="auto", show_default=True)
device_option = _device_option(callback=_convert_one_device, help="auto, cpu, cuda, mps, or a GPU number.")
devices_option = _device_option(
    callback=_convert_device,
    help="auto, cpu, cuda, mps, a GPU number, or several (0,1,2,3) to split the images between.",
)
num_processes_option = click.option(
    "--num-processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes to split the images between, with --device cpu.",
)
minutes_option = click.option(
    "--minutes",
    type=click.FloatRange(min=1),
    help="How long training with FOLDER may take on this machine; image size and epochs are chosen to fit.",
)
agnostic_nms_option = click.option(
    "--agnostic-nms",
    is_flag=True,
    default=None,
    help="Class-agnostic NMS: one box per object; default: the model's setting.",
)


needs_demo = partial(needs_extra, "the server", "demo")


def group(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order in which `--help` lists them."""

    def declare(command: Any) -> Any:
        return reduce(lambda declared, option: option(declared), reversed(options), command)

    return declare


def output_option(help: str, **options: Any) -> Callable[[Any], Any]:
    """`--output`, a file."""
    return click.option("-o", "--output", type=FILE, help=help, **options)


model_argument = click.argument("model", metavar="RUN_OR_MODEL", type=PATH)
annotation_options = group(
    click.option("--root", type=PATH, help="Folder of the images; default: detected automatically."),
    click.option("--names", type=PATH, help="Class names, one per line, the first 'background'."),
    click.option(
        "--from",
        "--format",
        "format",
        type=click.Choice(["auto", *FORMAT_NAMES]),
        default="auto",
        help="Format of the annotations; default: detected automatically.",
    ),
)
server_options = group(
    click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on; 0.0.0.0 accepts connections from the network.",
    ),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8000,
        show_default=True,
        help="Port; 0: any free port.",
    ),
    agnostic_nms_option,
    device_option,
)
views_options = group(  # `Detector.load` takes them
    click.option(
        "--tile",
        type=click.IntRange(min=0),
        metavar="PIXELS",
        help="For small objects in large images: also predict on square tiles of this size; 0: none; "
        "default: the model's setting.",
    ),
    click.option(
        "--overlap",
        type=click.FloatRange(0, 0.9),
        metavar="FRACTION",
        help="Overlap of neighboring tiles, as a fraction of their side; default: 0.2.",
    ),
    click.option(
        "--tta",
        is_flag=True,
        default=None,
        help="Test-time augmentation: also predict mirrored and at other sizes; about 6 times slower.",
    ),
)


def overrides_argument(name: str = "overrides", metavar: str = "[KEY=VALUE]...") -> Callable[[Any], Any]:
    """The settings to change: the last arguments of a command."""
    return click.argument(name, nargs=-1, metavar=metavar)
