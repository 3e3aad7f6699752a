"""`--json`: stdout is one JSON value and nothing else, for every command that has a result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from fcos.cli import main
from fcos.cli.output import print_json
from fcos.cli.train import left_in

COMMANDS_WITHOUT_RESULT = {"demo", "serve"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: two lists with an image of a cat each, class names, and the images."""
    monkeypatch.chdir(tmp_path)
    for part, names in (("train", "abc"), ("eval", "c")):
        for name in names:
            Image.new("RGB", (64, 48), (90, 110, 90)).save(tmp_path / f"{name}.png")
        lines = [f"{name}.png 10 10 40 50 1" for name in names]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "names.txt").write_text("background\ncat\ndog\nbird\n")
    return tmp_path


def ask(*words: str | Path, exit_code: int = 0) -> Any:
    result = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def test_check_tells_problems_and_common_images(folder: Path) -> None:
    with (folder / "train.txt").open("a") as file:
        file.write("a.png 10 10 10 50 1\nmissing.png 1 1 9 9 1\n")
    answer = ask("check", "train.txt", "eval.txt", "--names", "names.txt", exit_code=1)

    first, second = answer["parts"]
    assert first["card"]["boxes_per_class"] == {"cat": 5, "dog": 0, "bird": 0}
    assert [problem["fix"] != "" for problem in first["problems"]] == [True, True]
    assert first["problems"][1]["where"].endswith("train.txt, line 5, image 'missing.png'")
    assert second["problems"] == []
    (shared,) = answer["common"]
    assert shared["between"] == ["train.txt", "eval.txt"]
    assert [[Path(path).name for path in pair] for pair in shared["images"]] == [["c.png", "c.png"]]


def test_convert_names_what_it_wrote(folder: Path) -> None:
    answer = ask("convert", "train.txt", "--names", "names.txt", "--to", "voc", "-o", "voc")
    assert (answer["out"], answer["name_file"], answer["root"]) == ("voc", "voc/names.txt", None)
    assert (answer["images"], answer["boxes"], answer["class_names"]) == (3, 3, ["cat", "dog", "bird"])
    assert (folder / answer["name_file"]).is_file()


def test_init_gives_each_setting_with_its_reason(folder: Path) -> None:
    answer = ask("init", ".", "-o", "birds.json")
    assert answer["file"] == "birds.json"
    written = json.loads((folder / "birds.json").read_text())
    assert {key: entry["value"] for key, entry in answer["settings"].items()} == written
    assert all(entry["because"] for entry in answer["settings"].values())


def test_config_gives_values(folder: Path) -> None:
    assert ask("config", "epochs=7")["epochs"] == 7
    assert ask("config")["epochs"]["takes"] == "an integer, at least 1"
    assert "short_side" in ask("config", "--presets")["fcos_lite0"]


def test_eval_gives_numbers_and_null_where_there_is_nothing_to_find(folder: Path, model_file: Path) -> None:
    answer = ask("eval", model_file, "--list", "eval.txt", "--device", "cpu", "--out", "measured")
    assert answer["images"] == 1
    assert len(answer["metrics"]) == 12
    assert 0 <= answer["metrics"]["map_mean"] <= 1
    assert answer["metrics"]["map_small"] is None
    assert answer["per_class_ap"]["dog"] is None
    assert len(json.loads(Path(answer["results"]).read_text())) == answer["detections"]


def test_info_names_the_classes(folder: Path, model_file: Path) -> None:
    assert ask("info", model_file)["class_names"] == ["cat", "dog", "bird"]


def test_train_gives_run_model_and_numbers(folder: Path) -> None:
    tiny = ("backbone=test_efficientnet", "fpn_channels=8", "head_channels=8", "head_convs=1", "epochs=2")
    sizes = ("view_size=64", "short_side=null", "strides=8,16,32", "regress_ranges=16,32")
    data = ("list_train=train.txt", "list_eval=eval.txt", "name_file=names.txt", "nbatch_train=2")
    usual = ("pretrain=false", "device=cpu", "num_workers=0", "run_folder=run", "freeze_stages=0")
    (folder / "train.json").write_text("{}")

    answer = ask("train", "train.json", *tiny, *sizes, *data, *usual, "warmup_iter=0", "tensorboard=false")

    assert answer["finished"]
    assert Path(answer["model"]) == folder / "run" / "best.safetensors"
    assert answer["epoch"] in (1, 2)
    assert len(answer["metrics"]) == 12
    assert answer["metrics"]["map_small"] is None
    curves = ask("analyze", "run", "-o", "curves.png")
    assert [epoch for epoch, _ in curves["run"]["map_mean"]] == [1, 2]
    assert [what for what, _ in left_in(folder / "run")] == ["report", "curves", "model"]
    report = ask("report", "run", "--device", "cpu")
    assert Path(report["report"]).stat().st_size == report["bytes"]


def test_quickstart_makes_only_the_data_set_if_that_is_wanted(tmp_path: Path) -> None:
    words = ("--num-train", "2", "--num-eval", "1", "--data-only")
    answer = ask("quickstart", "--out", tmp_path / "digits", *words)
    assert answer == {"folder": str(tmp_path / "digits"), "images_train": 2, "images_eval": 1}
    assert len(list((tmp_path / "digits" / "images" / "train").iterdir())) == 2
    assert not (tmp_path / "digits" / "run").exists()


@pytest.mark.parametrize(
    "name", sorted(set(main.list_commands(click.Context(main))) - COMMANDS_WITHOUT_RESULT)
)
def test_every_command_with_a_result_has_the_option(name: str) -> None:
    assert "--json" in CliRunner().invoke(main, [name, "--help"]).output


def test_numbers_that_json_does_not_have_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": math.nan, Path("b"): (1.5, math.inf), "c": {"d": "größer"}})
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": {"d": "größer"}}


def test_control_characters_are_escaped_as_json_does(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["\x1b[2J", "\x7f", "\x9b", "\u202e", "\ud800", "a\nb"]
    print_json(names)
    text = capsys.readouterr().out
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert json.loads(text) == names
