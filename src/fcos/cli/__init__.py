"""The command `fcos`: one file per command, imported only when that command is used.

`fcos --help` must answer at once, so nothing here imports torch, and the one-line descriptions are here, not
in the commands' files. A new command is a file with a click object `command`, and a line in `COMMANDS`.
"""

from __future__ import annotations

import atexit
import difflib
import errno
import gc
import keyword
import os
import sys
from importlib import import_module
from typing import IO, Any

import click

from fcos.errors import FcosError, OutputError
from fcos.format_names import FORMAT_NAMES
from fcos.terminal import safe_output

COMMANDS = {  # each fits into a line of 80 columns
    "quickstart": "See it work: train and evaluate a small detector, offline.",
    "init": "Propose a train.json for a folder of images.",
    "train": "Train from a train.json or a folder.",
    "eval": "Compute COCO metrics and AP per class of a run or model file.",
    "compare": "Measure AP, latency and size of several models, to choose one.",
    "analyze": "Print and plot the curves of one or more runs.",
    "report": "Write an HTML report on a run, or a comparison of two.",
    "predict": "Detect objects in images and videos; draw them, write JSON.",
    "export": "Export a model: ONNX, OpenVINO, torch.export, ncnn, LiteRT, web.",
    "demo": "Try a model in the browser.",
    "serve": "Run a model as an HTTP service: batching, health, metrics.",
    "check": "Summarize a data set and report its problems.",
    "info": "Describe a model file and how it will be used.",
    "import": "Convert weights of another code base to a model file.",
    "convert": f"Convert annotations to any format: {', '.join(FORMAT_NAMES)}.",
    "config": "List all settings with their defaults, units and meaning.",
}

EPILOG = """\b
Examples:
  fcos quickstart                    see it work, nothing to download
  fcos train images/                 train on your own folder
  fcos train train.json epochs=24    train from a config file, one setting changed
  fcos predict runs/train photo.jpg  use the trained model
"""


class UserError(click.ClickException):
    """An `FcosError` as shown on the command line: no traceback, exit code 2."""

    exit_code = 2

    def __init__(self, error: FcosError) -> None:
        super().__init__(str(error))
        self.kind = type(error).__name__

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the kind in red, then what happened, where, and how to fix it."""
        click.echo(click.style(f"{self.kind}: ", fg="red", bold=True) + self.message, file=file, err=True)


class LazyGroup(click.Group):
    """Imports a command only when it is used."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As in click; what is printed is safe for a terminal."""
        if os.environ.get("NO_COLOR"):  # https://no-color.org; rich heeds it by itself
            kwargs["color"] = False
        if "_FCOS_COMPLETE" in os.environ:  # a shell reads what is printed, as bytes
            return super().main(*args, **kwargs)
        with safe_output():
            return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a new user needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's file."""
        if cmd_name not in COMMANDS:
            return None
        file = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command = import_module(f"fcos.cli.{file}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click; for an unknown command, suggest the closest match."""
        name = args[0]
        if name in COMMANDS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"Did you mean '{nearest[0]}'?" if nearest else f"Commands: {', '.join(COMMANDS)}."
        raise click.UsageError(f"There is no command '{name}'. {hint}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a user's error is shown without traceback, Ctrl-C ends in one line."""
        try:
            return super().invoke(ctx)
        except FcosError as error:
            raise UserError(error) from error
        except click.NoSuchOption as error:
            if error.ctx is None or all(one.name != "overrides" for one in error.ctx.command.params):
                raise
            answer = f"{error.message} {_as_setting(error.option_name)}"
            raise click.NoSuchOption(error.option_name, answer, ctx=error.ctx) from error
        except OSError as error:
            # An OSError with a file name is a bug; click exits silently on a closed pipe (`| head`).
            if error.filename is not None or error.errno in (None, errno.EPIPE):
                raise
            sys.stdout = open(os.devnull, "w", encoding="utf-8")
            raise UserError(OutputError(f"the output cannot be written: {error.strerror}")) from error
        except KeyboardInterrupt:
            click.echo("\nstopped by Ctrl-C", err=True)
            ctx.exit(130)  # 128 + SIGINT, what shells expect


def _as_setting(option: str) -> str:
    """How to write something given as an option (--epochs, or another tool's --imgsz) as a setting."""
    from fcos.config import ALIASES, TrainConfig
    from fcos.config.other_tools import nearest, settings_for, why_none

    if why := why_none(option):
        return f"There is no such setting either; {why}."
    keys = settings_for(option) or [nearest(option, TrainConfig.model_fields) or "KEY"]
    words = " or ".join(f"{ALIASES.get(key, key)}=VALUE" for key in keys)
    return f"Settings are given without dashes: {words}."


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from fcos import __version__

        click.echo(f"fcos {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def main() -> None:
    """FCOS object detection: train on images with boxes, evaluate, inspect and deploy."""
    from fcos.cpu.memory import keep_freed_memory

    keep_freed_memory()
    atexit.register(gc.freeze)  # else Python collects garbage in all of torch at exit: about a second
