"""`fcos report`: an HTML report on a run, or on the differences between two."""

from __future__ import annotations

from pathlib import Path

import click

from fcos.cli.options import PATH, device_option, output_option
from fcos.cli.output import json_option, print_json
from fcos.files import check_writable
from fcos.terminal import printable_line

EPILOG = """\b
Examples:
  fcos report runs/train                       writes runs/train/report.html
  fcos report runs/train --images 200          with more examples
  fcos report runs/before runs/after           what changed, and whether it is significant
"""


@click.command(epilog=EPILOG)
@click.argument("run", metavar="RUN", type=PATH)
@click.argument("other", metavar="[RUN_B]", required=False, type=PATH)
@output_option("The page to write; default: report.html in RUN, or comparison.html in RUN_B.")
@click.option(
    "--images",
    type=click.IntRange(min=0),
    help="Number of example images; default: 48, or 24 for two runs.",
)
@device_option
@json_option
def command(
    run: Path,
    other: Path | None,
    output: Path | None,
    images: int | None,
    device: str | list[int],
    as_json: bool,
) -> None:
    """Write a self-contained HTML report on a run.

    RUN is a run folder. With RUN_B, the report compares the two on the images that both were evaluated on.
    """
    from fcos.report.finished_run import read_run

    page = output or (run / "report.html" if other is None else other / "comparison.html")
    check_writable(page)
    first = read_run(run)
    options = {} if images is None else {"max_images": images}
    if other is not None:
        from fcos.report.comparison import write_comparison

        write_comparison(first, read_run(other), page, **options)
    else:
        from fcos.predict.device import torch_device
        from fcos.report.page import write_report

        write_report(first, page, device=torch_device(device), **options)
    if as_json:
        print_json({"report": page, "bytes": page.stat().st_size})
        return
    click.echo(f"{printable_line(str(page))} ({page.stat().st_size / 2**20:.1f} MB)")
