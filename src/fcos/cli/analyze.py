"""`fcos analyze`: the curves of runs, as numbers and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fcos.cli.output import json_option, print_json
from fcos.files import check_writable
from fcos.terminal import printable_line

EPILOG = """\b
Examples:
  fcos analyze runs/train
  fcos analyze runs/train runs/train-2 -o compared.png
  fcos analyze runs/train --json            [epoch, value] pairs for other programs
"""


@click.command(epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("curves.png"),
    show_default=True,
    help="The picture to write; its suffix chooses the format (png, pdf, svg).",
)
@json_option
def command(runs: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Print AP after every epoch and draw it, with losses and learning rate.

    RUN is the folder of a training; several are drawn into one picture.
    """
    import numpy as np

    from fcos.plots.curves import EVAL_CURVES, curve, plot_curves, read_metrics, run_names

    check_writable(output)
    names = run_names(runs)
    if as_json:
        print_json({name: _curves(run) for run, name in zip(runs, names, strict=True)})
    for run, name in zip(runs, names, strict=True) if not as_json else ():
        metrics = read_metrics(run)
        if len(runs) > 1:
            click.echo(f"# {printable_line(name)}")
        for curve_name in EVAL_CURVES:
            values = curve(metrics, curve_name)[:, 1]
            # as the seed prints them; only never shortened, and never as 3.e-04
            with np.printoptions(threshold=len(values) + 1, suppress=True):
                click.echo(f"{curve_name}\n{np.round(values, 4)}")
    plot_curves(runs, output)
    click.echo(f"curves are in {printable_line(str(output))}", err=True)


def _curves(run: Path) -> dict[str, Any]:
    """Every curve of a run: `[epoch, value]` of what was measured, `[step, value]` of the training."""
    from fcos.plots.curves import EVAL_CURVES, curve, read_metrics, train_curves

    metrics = read_metrics(run)
    measured = {name: curve(metrics, name, "epoch").tolist() for name in EVAL_CURVES}
    return measured | {name: curve(metrics, name).tolist() for name in train_curves(metrics)}
