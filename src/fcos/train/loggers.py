"""Weights & Biases and MLflow (setting `loggers`), each configured by its own environment variables.

A resumed run continues its run in the logger, whose id is stored in the run folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fcos.config import TrainConfig
from fcos.errors import ConfigError, OutputError
from fcos.files import first_line_of, write_text
from fcos.terminal import printable
from fcos.train.writers import MetricsWriter, numbers_of

PROJECT = "fcos"  # unless set in the environment


def check_loggers(config: TrainConfig) -> None:
    """Reject loggers whose packages are not installed, before training starts."""
    for name in config.loggers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f'the package of logger "{name}" is not installed',
                where=config.origin("loggers"),
                fix=f"pip install 'fcos-torch[{name}]'",
            )


class WeightsAndBiases:
    """Logs through a separate process, which also retries if the network fails.

    The step is logged as a value: wandb's own step cannot decrease, but a run that was killed repeats steps.
    """

    def __init__(self, run: Path, config: TrainConfig) -> None:
        import wandb

        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=run.name,
                id=_remembered(run, "wandb", lambda: secrets.token_hex(4)),
                resume="allow",
                dir=run,
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise OutputError(
                f"Weights & Biases cannot be used: {error}",
                where='setting "loggers"',
                fix="run `wandb login`, set WANDB_MODE=offline, or remove it from loggers",
            ) from error
        self.run.define_metric("*", step_metric="step")

    def write(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Log all numbers of an entry at its step."""
        self.run.log({"step": entry["step"], **numbers_of(kind, entry)})

    def close(self) -> None:
        """Wait until everything is sent or written."""
        self.run.finish()


class Mlflow:
    """Logs to the server or store at MLFLOW_TRACKING_URI. If the server fails later, only logging stops."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        from mlflow import MlflowClient, get_tracking_uri
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self.client: Any = MlflowClient()
        try:
            self.run_id = _remembered(run, "mlflow", lambda: self._create(run.name))
            settings = config.model_dump(mode="json").items()
            params = [Param(key, json.dumps(value, ensure_ascii=False)[:500]) for key, value in settings]
            known = self.client.get_run(self.run_id).data.params  # values cannot be changed later
            self.client.log_batch(self.run_id, params=[param for param in params if param.key not in known])
            self.client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            raise OutputError(
                f"MLflow cannot be used: {first_line_of(error)}",
                where=f"tracking URI {get_tracking_uri()}",
                fix="set MLFLOW_TRACKING_URI to a server or folder, or remove mlflow from loggers",
            ) from error

    def _create(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known else self.client.create_experiment(experiment)
        return str(self.client.create_run(experiment_id, run_name=name).info.run_id)

    def write(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Log all numbers of an entry at its step."""
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        numbers = numbers_of(kind, entry).items()
        self._send("log_batch", metrics=[Metric(key, value, now, entry["step"]) for key, value in numbers])

    def close(self) -> None:
        """Mark the run as ended."""
        self._send("set_terminated")

    def _send(self, method: str, **arguments: Any) -> None:
        from mlflow.exceptions import MlflowException

        try:
            if self.client is not None:
                getattr(self.client, method)(self.run_id, **arguments)
        except MlflowException as error:
            self.client = None
            what = printable(first_line_of(error))
            print(
                f"warning: logging to MLflow failed and is now disabled: {what}",
                file=sys.stderr,
                flush=True,
            )


def _remembered(run: Path, logger: str, new: Callable[[], str]) -> str:
    """The id of the run in a logger: from the previous session, or a new one."""
    file = run / f"{logger}_run_id.txt"
    if file.exists():
        return file.read_text(encoding="utf-8").strip()
    write_text(file, f"{(run_id := new())}\n")
    return run_id


LOGGERS: dict[str, Callable[[Path, TrainConfig], MetricsWriter]] = {
    "wandb": WeightsAndBiases,
    "mlflow": Mlflow,
}
