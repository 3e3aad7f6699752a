"""`fcos analyze`: the curves of runs, as numbers and as a picture."""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = """\b
Examples:
  fcos analyze runs/train
  fcos analyze runs/train runs/train-2 -o compared.png
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
def command(runs: tuple[Path, ...], output: Path) -> None:
    """Print AP after every epoch and draw it, with losses and learning rate.

    RUN is the folder of a training; several are drawn into one picture.
    """
    import numpy as np

    from fcos.plots.curves import EVAL_CURVES, curve, plot_curves, read_metrics, run_names

    for run, name in zip(runs, run_names(runs), strict=True):
        metrics = read_metrics(run)
        if len(runs) > 1:
            click.echo(f"# {name}")
        for curve_name in EVAL_CURVES:
            values = curve(metrics, curve_name)[:, 1]
            # as the seed prints them; only never shortened, and never as 3.e-04
            with np.printoptions(threshold=len(values) + 1, suppress=True):
                click.echo(f"{curve_name}\n{np.round(values, 4)}")
    plot_curves(runs, output)
    click.echo(f"curves are in {output}", err=True)
