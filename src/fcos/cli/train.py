"""`fcos train`: train from a train.json, or from a folder with a proposed one."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcos.cli.options import PATH, minutes_option, output_option, overrides_argument
from fcos.cli.output import json_option, print_json
from fcos.cli.processes import is_first_process
from fcos.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from fcos.train.run import Run

EPILOG = """\b
Examples:
  fcos train images/                        proposes and writes a train.json, then trains
  fcos train images/ --minutes 30           with image size and epochs for half an hour
  fcos train train.json                     trains with a config file
  fcos train train.json epochs=24 lr_base=0.02
  fcos train train.json time_limit=60 patience=10
                                            ends after an hour, or 10 evaluations without a
                                            better AP
  fcos train train.json load=true           resumes where the run stopped
  fcos train runs/birds/config.json load=true epochs=48
                                            resumes this run, or extends it
  fcos train train.json --json              prints run, model and metrics as JSON at the end
  fcos train runs/birds/config.json run_folder=runs/again
                                            repeats a run
`fcos config` lists every setting.
"""


@click.command(epilog=EPILOG)
@click.argument("source", type=PATH, metavar="TRAIN_JSON|FOLDER")
@overrides_argument()
@output_option("With FOLDER: the config file to write.", default=Path("train.json"), show_default=True)
@minutes_option
@json_option
def command(
    source: Path, overrides: tuple[str, ...], output: Path, minutes: float | None, as_json: bool
) -> None:
    """Train a detector.

    TRAIN_JSON contains the settings; KEY=VALUE overrides one of them. For a FOLDER of annotated images,
    `fcos train` proposes settings for the data and the machine, writes them to a train.json, and uses that.
    """
    from fcos.cli.init import print_proposal, write_proposal
    from fcos.config import check_overrides, load_config

    if "=" in source.name and not source.exists():
        raise ConfigError(
            f"{source} is a setting; the first argument must be a train.json or a folder",
            where="command line",
            fix=f"fcos train train.json {' '.join(map(str, (source, *overrides)))}",
        )
    if source.is_dir():
        check_overrides(overrides)
        if {"TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"} & os.environ.keys():
            raise ConfigError(
                "under torchrun and srun, training needs a train.json, not a folder",
                where=str(source),
                fix=f"fcos init {source}, then train with the train.json that it writes",
            )
        if os.environ.get("LOCAL_RANK", "0") == "0":  # on several GPUs, each process runs this command again
            proposals = write_proposal(source, output, overrides, minutes=minutes)
            print_proposal(proposals, output, err=as_json)
        source = output
    elif minutes is not None:
        raise click.UsageError("--minutes chooses settings for a FOLDER; a train.json has its own.")
    config = load_config(source, overrides)

    from fcos.report.after_training import train_and_draw  # imports torch: a wrong setting is reported before

    run = train_and_draw(config)
    if as_json and is_first_process():
        print_json(result_of(run))
    elif run.finished and is_first_process():
        show_result(run.folder)
    raise click.exceptions.Exit(run.exit_code)  # not 0 if a signal stopped it


def show_result(folder: Path, more: tuple[tuple[str, Path], ...] = ()) -> None:
    """Print the twelve COCO metrics of the best epoch, the files of the run, and next steps."""
    from fcos.metrics.coco import summary_of

    if best := best_line(folder):
        click.echo(f"\nEvaluation images, best epoch ({best['epoch']}):\n{summary_of(best['stats'])}\n")
    for what, file in [*left_in(folder), *more]:
        click.echo(f"{what + ':':10}{file}")
    run = shlex.quote(str(folder))
    click.echo(
        f"\nNext steps:\n  fcos predict {run} PHOTO.jpg     draw its detections\n"
        f"  fcos demo {run}                  try it in the browser\n"
        f"  fcos export {run} --format onnx  or openvino, torch, ncnn, litert"
    )


def best_line(folder: Path) -> dict[str, Any] | None:
    """The best epoch's line of metrics.jsonl; None if nothing was evaluated or the file is gone."""
    from fcos.report.curves import best_evaluation, read_metrics

    try:
        return best_evaluation(read_metrics(folder))
    except DatasetError as error:  # the training itself is complete
        click.echo(f"warning: {error.what}: {error.where}", err=True)
        return None


def left_in(folder: Path) -> list[tuple[str, Path]]:
    """The result files of a run, by kind."""
    names = {"report": "report.html", "curves": "curves.png", "model": "best.safetensors"}
    if not (folder / names["model"]).is_file():
        names["model"] = "last.safetensors"  # nothing was evaluated
    return [(what, folder / name) for what, name in names.items() if (folder / name).is_file()]


def result_of(run: Run) -> dict[str, Any]:
    """The result of a run: its folder, its model, and the metrics of the best epoch.

    `epoch` and `metrics` are None if nothing was evaluated, `model` if no model was written.
    """
    from fcos.metrics.coco import named_numbers

    best = best_line(run.folder)
    return {
        "run": run.folder,
        "finished": run.finished,
        "model": dict(left_in(run.folder)).get("model"),
        "epoch": best and best["epoch"],
        "metrics": best and named_numbers(best["stats"]),
    }
