"""What a run tells; most of it is asserted where trainings run: `test_run.py`, `test_callbacks.py`."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from fcos.config import load_config
from fcos.train.checkpoint import RunState
from fcos.train.devices import build_fabric
from fcos.train.log import Meter
from fcos.train.output import RunOutput


@pytest.mark.parametrize("tensorboard", [True, False])
def test_writers_of_a_resumed_run_begin_at_its_next_step(tmp_path: Path, tensorboard: bool) -> None:
    """TensorBoard then hides the steps of a session that was killed after its last checkpoint."""
    config, state = load_config({"tensorboard": tensorboard}), RunState(step=4, total_steps=10)
    with mock.patch("fcos.train.output.open_writers", return_value=[]) as opened:
        RunOutput(build_fabric("cpu"), config, tmp_path, state, Meter(8), 2.5, (), lambda: None).close()
    opened.assert_called_once_with(tmp_path, 5, tensorboard=tensorboard)


def test_a_logger_that_cannot_be_opened_leaves_the_terminal_alone(tmp_path: Path) -> None:
    state = RunState(step=0, total_steps=4)
    config = load_config({"loggers": ["wandb"], "tensorboard": False})
    with (
        mock.patch.dict("fcos.train.output.LOGGERS", {"wandb": mock.Mock(side_effect=OSError("offline"))}),
        mock.patch("fcos.train.output.Display") as display,
        pytest.raises(OSError, match="offline"),
    ):
        RunOutput(build_fabric("cpu"), config, tmp_path, state, Meter(8), 2.5, (), lambda: None)
    display.assert_not_called()
