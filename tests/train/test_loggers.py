"""With the real libraries: Weights & Biases offline, MLflow with a store in a file."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fcos.config import load_config
from fcos.errors import ConfigError
from fcos.train.loggers import check_loggers

if TYPE_CHECKING:
    from ..rectangles import Tiny


def needs(package: str) -> pytest.MarkDecorator:
    """Both are large, so they are extras of their own and not part of `dev`."""
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def train(tiny: Tiny, *settings: str, **environment: str) -> str:
    """`fcos train` in a process of its own, since these libraries change the one that they are used in."""
    words = [str(tiny.data / "train.json"), *tiny.arguments("run", seed=1), *settings]
    done = subprocess.run(
        [sys.executable, "-m", "fcos", "train", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def python(code: str, *words: str, **environment: str) -> Any:
    """What a script prints as JSON."""
    command = [sys.executable, "-W", "ignore", "-c", code, *words]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def steps_and_losses(tiny: Tiny) -> list[list[float]]:
    return [[line["step"], line["loss"]] for line in tiny.lines("run")]


def test_logger_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        tiny.train("run", loggers=["mlflow", "wandb"])
    assert caught.value.what == 'the package of logger "mlflow" is not installed'
    assert caught.value.fix == "pip install 'fcos-torch[mlflow]'"
    assert not (tiny.runs / "run").exists()
    check_loggers(tiny.config("run"))  # none


def test_loggers_are_a_list_or_words() -> None:
    for word in ("loggers=wandb,mlflow", 'loggers=["wandb","mlflow"]'):
        assert load_config(None, [word]).loggers == ["wandb", "mlflow"]
    assert load_config({"loggers": "wandb"}).loggers == ["wandb"]
    with pytest.raises(ConfigError, match='use a list of "wandb" or "mlflow"'):
        load_config({"loggers": "comet"})


# Its files are logs like LevelDB's: blocks of 32 KiB, parts with checksum (4 bytes), length (2) and kind (1).
SCAN_WANDB = """
import json, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record

def records(content):
    place, record = 7, b""
    while place + 7 < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""

ids, rows, config = [], [], {}
for file in sorted(Path(sys.argv[1]).glob("offline-run-*/*.wandb")):
    for record in records(file.read_bytes()):
        if record.HasField("run"):
            ids.append(record.run.run_id)
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            items = [(item.key or "/".join(item.nested_key), item.value_json) for item in record.history.item]
            rows.append({key: json.loads(value) for key, value in items})
print(json.dumps([ids, rows, config.get("epochs")]))
"""


@needs("wandb")
def test_weights_and_biases_gets_every_number_and_a_resumed_run_goes_on(tiny: Tiny) -> None:
    offline = {"WANDB_MODE": "offline"}
    train(tiny, "loggers=wandb", **offline)
    train(tiny, "loggers=wandb", "load=true", "epochs=3", **offline)
    ids, rows, epochs = python(SCAN_WANDB, str(tiny.runs / "run" / "wandb"))
    assert len(set(ids)) == 1
    assert [(tiny.runs / "run" / "wandb_run_id.txt").read_text().strip()] == sorted(set(ids))
    losses = [[row["step"], row["train/loss"]] for row in rows if "train/loss" in row]
    assert losses == steps_and_losses(tiny)
    measured = [[row["step"], row["eval/map_mean"]] for row in rows if "eval/map_mean" in row]
    assert measured == [[line["step"], line["map_mean"]] for line in tiny.lines("run", "eval")]
    assert epochs == 3


@needs("wandb")
def test_weights_and_biases_without_a_login_is_explained(tiny: Tiny, tmp_path: Path) -> None:
    words = [str(tiny.data / "train.json"), *tiny.arguments("run", loggers=["wandb"])]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-m", "fcos", "train", *words],
        env=environment | {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "OutputError: Weights & Biases cannot be used: " in done.stderr
    assert "fix: run `wandb login`, set WANDB_MODE=offline, or remove it from loggers" in done.stderr


READ_MLFLOW = """
import json
from mlflow import MlflowClient

client = MlflowClient()
[experiment] = [one for one in client.search_experiments() if one.name == "fcos"]
[run] = client.search_runs([experiment.experiment_id])
series = {
    key: [[metric.step, metric.value] for metric in client.get_metric_history(run.info.run_id, key)]
    for key in ("train/loss", "eval/map_mean")
}
print(json.dumps([run.info.run_name, run.info.status, series, run.data.params["epochs"]]))
"""


@needs("mlflow")
def test_mlflow_gets_every_number_and_a_resumed_run_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    train(tiny, "loggers=mlflow", **store)
    train(tiny, "loggers=mlflow", "load=true", "epochs=3", **store)
    name, status, series, epochs = python(READ_MLFLOW, **store)
    assert (name, status) == ("run", "FINISHED")
    assert series["train/loss"] == steps_and_losses(tiny)
    assert series["eval/map_mean"] == [[line["step"], line["map_mean"]] for line in tiny.lines("run", "eval")]
    assert epochs == "2"  # MLflow's parameters never change: as the run began


@needs("mlflow")
def test_mlflow_that_fails_later_ends_only_the_logging(tiny: Tiny, tmp_path: Path) -> None:
    from mlflow.exceptions import MlflowException

    from fcos.train.loggers import Mlflow

    class Client:
        def log_batch(self, run_id: str, **arguments: Any) -> None:
            raise MlflowException("the server is gone")

    logger = object.__new__(Mlflow)
    logger.client, logger.run_id = Client(), "1"
    logger.write("train", {"step": 1, "loss": 0.5})
    logger.write("train", {"step": 2, "loss": 0.5})
    logger.close()
    assert logger.client is None
