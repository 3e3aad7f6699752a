"""`fcos train`: from a train.json, or from a folder by way of a proposed one."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fcos.errors import ConfigError

EPILOG = """\b
Examples:
  fcos train pictures/                      proposes a train.json, writes it and trains
  fcos train train.json                     trains with a config file
  fcos train train.json epoches=24 lr_base=0.02
  fcos train train.json load=true           goes on where the run stopped
  fcos train runs/birds/config.json run_folder=runs/again
                                            repeats a run
`fcos config` lists every setting.
"""


@click.command(epilog=EPILOG)
@click.argument("source", type=click.Path(path_type=Path), metavar="TRAIN_JSON|FOLDER")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("train.json"),
    show_default=True,
    help="With FOLDER: the config file to write.",
)
def command(source: Path, overrides: tuple[str, ...], output: Path) -> None:
    """Train a detector.

    TRAIN_JSON holds the settings; KEY=VALUE changes one for this training. A FOLDER of pictures with boxes
    needs none: a train.json is proposed from data and machine, written, and used.
    """
    from fcos.cli.init import write_proposal
    from fcos.config import load_config

    if source.is_dir():
        if {"TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"} & os.environ.keys():
            raise ConfigError(
                "under torchrun and srun a training starts from a train.json, not from a folder",
                where=str(source),
                fix=f"fcos init {source}, then start with the train.json that it writes",
            )
        if os.environ.get("LOCAL_RANK", "0") == "0":  # on several GPUs, each process runs this command again
            write_proposal(source, output)
        source = output
    config = load_config(source, overrides)

    from fcos.engine.run import train  # brings torch: a wrong setting is answered at once

    raise click.exceptions.Exit(train(config).exit_code)  # not 0 if a signal stopped it
