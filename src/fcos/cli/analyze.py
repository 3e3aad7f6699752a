"""`fcos analyze`: print and plot the curves of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fcos.cli.options import PATH, output_option
from fcos.cli.output import json_option, new_table, print_json, print_table
from fcos.files import check_writable
from fcos.terminal import printable_line

Metrics = list[dict[str, Any]]  # of a run, as `read_metrics` gives them

EPILOG = """\b
Examples:
  fcos analyze runs/train
  fcos analyze runs/train runs/train-2 -o compared.png
  fcos analyze runs/train --arrays          in the format of xytpai/fcos
  fcos analyze runs/train --json            [epoch, value] pairs for other programs
"""


@click.command(epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=PATH)
@output_option(
    "Plot to write: png, pdf or svg, by its suffix. Default: curves.png in the run folder, or in the working "
    "directory for several runs."
)
@click.option("--arrays", is_flag=True, help="Print the curves as arrays, in the format of xytpai/fcos.")
@json_option
def command(runs: tuple[Path, ...], output: Path | None, arrays: bool, as_json: bool) -> None:
    """Print AP per epoch, and plot it with the losses and the learning rate.

    RUN is a run folder; several runs are plotted in one image.
    """
    from fcos.report.curves import check_format, plot_curves, read_metrics, run_names

    # Fails first if one of them is not a run, before an output path in it is chosen.
    metrics_of = dict(zip(run_names(runs), map(read_metrics, runs), strict=True))
    output = output or (runs[0] / "curves.png" if len(runs) == 1 else Path("curves.png"))
    check_format(output)
    check_writable(output)
    if as_json:
        print_json({name: _curves(metrics) for name, metrics in metrics_of.items()})
    elif arrays:
        for name, metrics in metrics_of.items():
            _print_arrays(metrics, f"# {printable_line(name)}\n" if len(runs) > 1 else "")
    else:
        _print_table(metrics_of)
    plot_curves(runs, output)
    click.echo(f"curves saved to {printable_line(str(output))}", err=True)


def _print_table(metrics_of: dict[str, Metrics]) -> None:
    """A row with AP and loss for each evaluated epoch; the best is marked."""
    from fcos.report.curves import EVAL_CURVES, best_evaluation, curve

    for name, metrics in metrics_of.items():
        lines = [line for line in metrics if line["kind"] == "eval"]
        losses = dict(curve(metrics, "loss").tolist())
        if len(metrics_of) > 1:
            click.echo(printable_line(name))
        if not lines:
            click.echo("not evaluated yet")
            continue
        best = best_evaluation(metrics)
        table = new_table("epoch", "step", "AP", "AP50", "AP75", "loss", "")
        for line in lines:
            before = [loss for step, loss in losses.items() if step <= line["step"]]
            loss = f"{before[-1]:.4g}" if before else "-"
            values = [f"{line[key]:.4f}" if line[key] >= 0 else "-" for key in EVAL_CURVES]
            mark = "best" if line is best else ""
            table.add_row(f"{line['epoch']}", f"{line['step']}", *values, loss, mark)
        print_table(table)


def _print_arrays(metrics: Metrics, title: str) -> None:
    """As xytpai/fcos prints them, but never abbreviated, and never as 3.e-04."""
    import numpy as np

    from fcos.report.curves import EVAL_CURVES, curve

    click.echo(title, nl=False)
    for name in EVAL_CURVES:
        values = curve(metrics, name)[:, 1]
        with np.printoptions(threshold=len(values) + 1, suppress=True):
            click.echo(f"{name}\n{np.round(values, 4)}")


def _curves(metrics: Metrics) -> dict[str, Any]:
    """Every curve of a run: `[epoch, value]` of evaluations, `[step, value]` of the training."""
    from fcos.report.curves import EVAL_CURVES, curve, train_curves

    measured = {name: curve(metrics, name, "epoch").tolist() for name in EVAL_CURVES}
    return measured | {name: curve(metrics, name).tolist() for name in train_curves(metrics)}
