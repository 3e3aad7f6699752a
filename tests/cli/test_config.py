import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fcos.cli.config import command, show
from fcos.config import GROUPS, TrainConfig
from fcos.config.presets import PRESETS


def config(*words: str) -> str:
    answer = CliRunner().invoke(command, words, catch_exceptions=False)
    assert answer.exit_code == 0
    return answer.output


def row(output: str, key: str) -> list[str]:
    return next(line.split() for line in output.splitlines() if line.split()[:1] == [key])


def test_every_setting_is_printed_with_default_unit_and_meaning() -> None:
    output = config()
    for key in TrainConfig.model_fields:
        assert row(output, key), key
    assert row(output, "view_size")[:4] == ["view_size", "1333", "pixels", "longest"]
    assert row(output, "optimizer")[-3:] == ['"sgd"', "or", '"adamw"']
    for group in GROUPS.values():
        assert f"\n {group} " in output


def test_resolved_values_say_where_they_come_from(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text('{\n"model": "fcos_lite0",\n"epochs": 5}')
    answer = json.loads(config(str(file), "seed=3", "--json"))
    assert (answer["epochs"], answer["seed"], answer["backbone"]) == (5, 3, "tf_efficientnet_lite0")
    output = config(str(file), "seed=3")
    assert row(output, "epochs")[:3] == ["epochs", "5", "file"]
    assert row(output, "seed") == ["seed", "3", "command", "line,", "seed=3"]
    assert row(output, "backbone")[2:] == ["preset", "fcos_lite0"]
    assert row(output, "momentum") == ["momentum", "0.9", "default"]


def test_override_without_a_file_is_resolved() -> None:
    assert row(config("model=fcos_seed"), "quality") == ["quality", '"none"', "preset", "fcos_seed"]


def test_presets_are_printed_with_their_changes() -> None:
    output = config("--presets")
    for name, changes in PRESETS.items():
        assert f" {name} " in output
        for key in changes:
            assert f"{key} = " in output
    assert json.loads(config("--presets", "--json")) == PRESETS


def test_settings_are_printed_as_json() -> None:
    answer = json.loads(config("--json"))
    assert list(answer) == list(TrainConfig.model_fields)
    assert answer["epochs"]["default"] == 12
    assert answer["epochs"]["takes"] == "an integer, at least 1"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2 / 3, "0.666667"),
        (60000.0, "60000"),
        (60000, "60000"),
        ([0, 1], "[0, 1]"),
        (None, "null"),
        ("a", '"a"'),
    ],
)
def test_value_is_shown_as_one_would_write_it(value: object, text: str) -> None:
    assert show(value) == text
