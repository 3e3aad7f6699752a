"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from fcos.errors import FcosError
from fcos.format_names import FORMAT_NAMES

DEVICES = ("auto", "cpu", "cuda", "mps")


def _convert_device(ctx: click.Context, param: click.Parameter, value: str) -> str | list[int]:
    """A name as it is, GPU numbers as a list; whether the device exists is checked when it is used."""
    if value in DEVICES:
        return value
    if all(number.isdigit() for number in value.split(",")):
        return [int(number) for number in value.split(",")]
    raise click.BadParameter(f"{value!r} is neither one of {', '.join(DEVICES)} nor GPU numbers")


def device_of(model: Path, device: str | list[int]) -> str | list[int]:
    """The device for a model: exported files run on the CPU, so for them "auto" is never a GPU."""
    from fcos.weights.load import format_of

    return "cpu" if device == "auto" and format_of(model) else device


def announce(model: Path) -> None:
    """Say which classes the detector of this package knows, to whoever gave no model of their own."""
    from fcos.weights.everyday import EVERYDAY, EVERYDAY_FILE
    from fcos.weights.model_file import read_model

    if str(model) == EVERYDAY:
        names = read_model(EVERYDAY_FILE)[0].class_names
        click.echo(
            f"using the everyday detector, which knows {len(names)} classes: {', '.join(names)}\n"
            "train one for your own classes with: fcos train FOLDER",
            err=True,
        )


def _complete_setting(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the beginning of a key to `key=`, and `key=` to values where a setting has a few choices."""
    from fcos.config import TrainConfig, choices

    key, equals, beginning = incomplete.partition("=")
    if not equals:
        fields = TrainConfig.model_fields.items()
        keys = [CompletionItem(f"{k}=", help=field.description) for k, field in fields if k.startswith(key)]
        return keys or [CompletionItem(incomplete, type="file")]  # `fcos config` takes a train.json too
    if key not in TrainConfig.model_fields:
        return []
    values = [value.strip('"') for value in choices(key)]
    return [CompletionItem(f"{key}={value}") for value in values if value.startswith(beginning)]


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    callback=_convert_device,
    help="auto, cpu, cuda, mps, or GPU numbers such as 0,1,2,3 to split the images.",
)
num_processes_option = click.option(
    "--num-processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes to split the images between, with --device cpu.",
)
root_option = click.option(
    "--root", type=click.Path(path_type=Path), help="Folder of the images; default: found automatically."
)
names_option = click.option(
    "--names", type=click.Path(path_type=Path), help="Class names, one per line, the first 'background'."
)
format_option = click.option(
    "--from",
    "--format",
    "format",
    type=click.Choice(["auto", *FORMAT_NAMES]),
    default="auto",
    help="Format of the annotations; default: detected automatically.",
)
minutes_option = click.option(
    "--minutes",
    type=click.FloatRange(min=1),
    help="With FOLDER: how long the training may take; it has as many epochs as fit (time_limit).",
)
agnostic_nms_option = click.option(
    "--agnostic-nms",
    is_flag=True,
    default=None,
    help="Class-agnostic NMS: one box per object; default: the model's setting.",
)
host_option = click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 accepts connections from the network.",
)
port_option = click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0: any free port."
)


@contextmanager
def needs_demo() -> Iterator[None]:
    """Explain an import that fails within the block: the extra of `fcos demo` and `fcos serve`."""
    try:
        yield
    except ImportError as error:
        raise FcosError(f"the server needs {error.name}", fix="pip install 'fcos-torch[demo]'") from error


def views_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--tile`, `--overlap` and `--tta`, which `Detector.load` takes."""
    for option in (
        click.option(
            "--tta",
            is_flag=True,
            default=None,
            help="Test-time augmentation: also predict mirrored and at other sizes; about 6 times slower.",
        ),
        click.option(
            "--overlap",
            type=click.FloatRange(0, 0.9),
            metavar="SHARE",
            help="Overlap of neighboring tiles, as a share of their side; default: 0.2.",
        ),
        click.option(
            "--tile",
            type=click.IntRange(min=0),
            metavar="PIXELS",
            help="For small objects in large images: also predict square tiles with this side; 0: none; "
            "default: the model's setting.",
        ),
    ):
        command = option(command)
    return command


def overrides_argument(name: str = "overrides", metavar: str = "[KEY=VALUE]...") -> Callable[[Any], Any]:
    """The settings to change: the last arguments of a command."""
    return click.argument(name, nargs=-1, metavar=metavar, shell_complete=_complete_setting)
