"""A model has one AP: what its training measured, `fcos eval` of the run and results.json are equal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from fcos.cli import main

if TYPE_CHECKING:
    from ..rectangles import Tiny

# Enough to detect the rectangles: AP is about 0.3.
LEARNS = {"epochs": 30, "eval_epochs": 30, "lr_base": 0.003, "optimizer": "adamw", "distance_init": 2.0}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_and_eval_measure_the_same(tiny: Tiny, precision: str) -> None:
    process = tiny.start("run", **LEARNS, precision=precision)  # half the time: without type checks
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    folder = tiny.runs / "run"
    [line] = tiny.lines("run", "eval")
    result = CliRunner().invoke(main, ["eval", str(folder), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    measured = list(json.loads(result.stdout)["metrics"].values())
    assert line["stats"][0] > 0.05
    assert line["stats"] == [-1 if value is None else value for value in measured]
    written = [json.loads((folder / name).read_text()) for name in ("results.json", "eval/results.json")]
    assert written[0] == written[1]
