"""`fcos quickstart`: build a data set, train, evaluate and draw, with nothing to download."""

from __future__ import annotations

from pathlib import Path

import click

from fcos.cli.options import FOLDER, overrides_argument
from fcos.cli.output import json_option, print_json
from fcos.files import check_writable
from fcos.terminal import counted

NUM_DRAWN = 12

EPILOG = """\b
Examples:
  fcos quickstart
  fcos quickstart --out digits epochs=20
  fcos quickstart --out digits --data-only      only generate the data set, to try other commands on
"""


@click.command(epilog=EPILOG)
@click.option(
    "--out",
    type=FOLDER,
    default=Path("quickstart"),
    show_default=True,
    help="Folder for the data set and the run.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the data set and the training.",
)
@click.option(
    "--num-train", type=click.IntRange(min=1), default=1500, show_default=True, help="Images to train on."
)
@click.option(
    "--num-eval", type=click.IntRange(min=1), default=100, show_default=True, help="Images to evaluate on."
)
@click.option("--data-only", is_flag=True, help="Only generate the data set.")
@overrides_argument()
@json_option
def command(
    out: Path,
    seed: int,
    num_train: int,
    num_eval: int,
    data_only: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train and evaluate a small detector in five minutes, offline.

    Generates a data set of handwritten digits on photographs, trains a small model on it, evaluates it on
    held-out images and draws its predictions. KEY=VALUE overrides a setting, as in `fcos train`.
    """
    from fcos.config import load_config

    load_config(None, overrides)  # a typo is reported before anything is written

    from fcos.data.quickstart import make_digits

    check_writable(out)
    make_digits(out, num_train=num_train, num_eval=num_eval, seed=seed)
    click.echo(
        f"data set: {out}: {counted(num_train, 'image')} to train on, {num_eval} held out", err=as_json
    )
    if data_only:
        if as_json:
            print_json({"folder": out, "images_train": num_train, "images_eval": num_eval})
        return

    from fcos.cli.train import result_of
    from fcos.report.after_training import train_and_draw

    config = load_config(out / "train.json", [*_proposed(out, overrides), *overrides])
    run = train_and_draw(config)
    if not run.finished:
        raise click.exceptions.Exit(run.exit_code)
    if as_json:
        print_json(result_of(run))
        return
    _show(run.folder, Path(config.list_eval), Path(config.root_eval))


def _proposed(out: Path, overrides: tuple[str, ...]) -> list[str]:
    """The run folder, unless the user gives one."""
    given = {override.partition("=")[0] for override in overrides}
    return [] if "run_folder" in given else [f"run_folder={out / 'run'}"]


def _show(run: Path, list_eval: Path, root_eval: Path) -> None:
    """Draw held-out images; print the numbers, and what to do next."""
    from fcos.cli.train import show_result
    from fcos.data.splits import spread
    from fcos.detector import Detector
    from fcos.predict.draw import draw_side_by_side

    detector = Detector.load(run)
    annotations = detector.read_annotations(list_eval, root=root_eval)
    images = run / "images"
    images.mkdir(exist_ok=True)
    for index in spread(len(annotations), NUM_DRAWN):
        record = annotations[index]
        drawn = draw_side_by_side(detector.predict(record.path), record)
        drawn.save(images / record.path.name, quality=92)
    show_result(run, (("images", images),))
    click.echo("\nYour own images with boxes (COCO, Pascal VOC, YOLO or a list):\n  fcos train FOLDER")
