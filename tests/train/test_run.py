from __future__ import annotations

import json
import os
import shutil
import socket
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
import torch

from fcos.config import load_config
from fcos.data.annotations import Annotations, Record
from fcos.data.formats import coco, read_annotations
from fcos.data.summary import read_summaries
from fcos.errors import ConfigError, DatasetError, OutputError
from fcos.report.after_training import train_and_draw
from fcos.report.finished_run import read_run
from fcos.train.data import left_out
from fcos.train.run import hold_new_folder, train
from fcos.train.run_folder import (
    LOCK_NAME,
    FolderInUseError,
    find_run_folder,
    in_use,
    is_named_exactly,
)
from fcos.weights.load import load_model

if TYPE_CHECKING:
    from ..rectangles import Tiny

TRAIN_KEYS = {
    *("kind", "step", "epoch", "loss", "loss_classification", "loss_box", "loss_quality", "lr"),
    *("images_per_s", "num_positive", "grad_norm", "elapsed_s"),
}
EVAL_KEYS = {
    *(
        "kind",
        "step",
        "epoch",
        "map_mean",
        "map_50",
        "map_75",
        "stats",
        "per_class",
        "elapsed_s",
        "network_s",
    ),
}
EPOCH_KEYS = {"kind", "step", "epoch", "num_images", "elapsed_s", "waited_s", "start_s"}
KEYS = {"train": TRAIN_KEYS, "eval": EVAL_KEYS, "epoch": EPOCH_KEYS}


@pytest.fixture(scope="module")
def finished(tiny_of_module: Tiny) -> Path:
    """The folder of a whole run, with everything that it writes."""
    run = train_and_draw(tiny_of_module.config("run", tensorboard=True, ema_decay=0.9))
    assert (run.folder, run.finished, run.exit_code) == (tiny_of_module.runs / "run", True, 0)
    return run.folder


def test_run_folder_holds_what_is_promised(finished: Path) -> None:
    files = {"config.json", "metrics.jsonl", "last.ckpt", "best.safetensors", "last.safetensors"}
    images = {"data.json", "coverage.json", "results.json", "curves.png", "report.html", "tensorboard"}
    assert {path.name for path in finished.iterdir()} == files | images
    assert next((finished / "tensorboard").iterdir()).stat().st_size > 200
    assert "In the training set</h3>" in (finished / "report.html").read_text(encoding="utf-8")


def test_lines_of_the_metrics_have_the_promised_keys(finished: Path) -> None:
    entries = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(entry["kind"], entry["step"]) for entry in entries] == [
        *(("train", step) for step in (1, 2, 3)),
        ("epoch", 3),
        ("eval", 3),
        *(("train", step) for step in (4, 5)),
        ("epoch", 5),
        ("eval", 5),
    ]
    for entry in entries:
        assert set(entry) == KEYS[entry["kind"]]
    assert [entry["epoch"] for entry in entries] == [0.4, 0.8, pytest.approx(1.2), 1, 1, 1.6, 2.0, 2, 2]
    assert set(entries[-1]["per_class"]) == {"red", "blue"}
    evaluation, step = entries[4:6]
    assert 0 < evaluation["network_s"] < evaluation["elapsed_s"] < step["elapsed_s"]
    assert entries[-1]["stats"][:3] == [entries[-1][key] for key in ("map_mean", "map_50", "map_75")]


def test_run_can_be_repeated_from_its_config(finished: Path, tiny: Tiny) -> None:
    config = load_config(finished / "config.json", [f"run_folder={tiny.runs / 'again'}"])
    train(config)
    old, new = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (finished, tiny.runs / "again")
    )
    assert [entry.get("loss") for entry in new] == [entry.get("loss") for entry in old]


def test_model_file_opens_without_the_config(finished: Path) -> None:
    loaded = load_model(finished)
    assert loaded.path.name == "best.safetensors"
    assert loaded.card.class_names == ("red", "blue")
    assert set(loaded.card.metrics) == {"epoch", "map_mean", "map_50", "map_75"}
    assert loaded.config.view_size == 64
    assert load_model(finished / "last.safetensors").card.metrics["epoch"] == 2


def test_nothing_is_saved_but_everything_reported_without_save(tiny: Tiny) -> None:
    train_and_draw(tiny.config("run", save=False, epochs=1))
    files = {"config.json", "data.json", "metrics.jsonl", "results.json", "curves.png", "report.html"}
    files |= {"coverage.json"}
    assert {path.name for path in (tiny.runs / "run").iterdir()} == files


def test_stop_without_save_says_that_nothing_is_left(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.train_until(2, "run", save=False)
    assert run.exit_code == 128 + 15
    assert "stopped after step 2 of 5; nothing was saved, because save=false" in capsys.readouterr().err


def test_without_evaluation_the_last_model_is_the_result(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    train_and_draw(tiny.config("run", list_eval="", root_eval="", epochs=1))
    assert "no list_eval: the model is not evaluated" in capsys.readouterr().err
    assert load_model(tiny.runs / "run").path.name == "last.safetensors"
    assert tiny.lines("run", "eval") == []
    assert (tiny.runs / "run" / "curves.png").is_file()
    assert "This run was not evaluated" in (tiny.runs / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"epochs": 5, "eval_epochs": 2}, [2, 4, 5]),
        # 20 images, 48 in a step: steps end in the epochs 2, 4, 5
        ({"epochs": 5, "eval_epochs": 3, "nbatch_train": 48}, [4, 5]),
    ],
    ids=["many steps an epoch", "many epochs a step"],
)
def test_every_so_many_epochs_are_measured_and_the_last(
    tiny: Tiny, settings: dict[str, int], epochs: list[int]
) -> None:
    tiny.train("run", **settings)
    assert [line["epoch"] for line in tiny.lines("run", "eval")] == epochs


def test_what_is_trained_is_said_first(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.train("run", epochs=1, micro_batch=4)
    said = capsys.readouterr()
    assert said.out == ""
    assert "2 classes, 20 images for training, 7 for evaluation" in said.err
    assert "1 epoch, 3 steps of 8 images (2 x 4 on each device), cpu, fp32" in said.err
    assert f"run folder: {tiny.runs / 'run'}" in said.err


def test_small_boxes_are_counted_and_reported(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.train("run", epochs=1, boxarea_th=200, horizontal_flip=False)
    boxes = [
        (int(words[i + 2]) - int(words[i])) * (int(words[i + 3]) - int(words[i + 1]))
        for words in map(str.split, (tiny.data / "train.txt").read_text().splitlines())
        for i in range(1, len(words), 5)
    ]  # images have their full size, 64 pixels
    small = sum(area < 200 for area in boxes)
    assert 0 < small < len(boxes)
    said = f"{small} of {len(boxes)} training boxes ({small / len(boxes):.1%}) are smaller than 200 square"
    assert said in capsys.readouterr().err


def test_share_of_small_boxes_by_hand(tiny: Tiny) -> None:
    boxes = [[0, 0, 20, 20], [0, 0, 40, 22], [0, 0, 10, 10]]
    records = [
        Record.make(Path("a.jpg"), boxes, [0, 0, 0], 1, is_crowd=[False, False, True], size_hw=(128, 100)),
        Record.make(Path("b.jpg"), [], [], 2, size_hw=(32, 32)),
    ]
    annotations = Annotations.from_records(records, ["cat"], source=Path("list"), format="list")
    # 128 pixels become 64: 10 x 10 and 20 x 11 square pixels; the crowd is no box to learn.
    said = left_out(annotations, tiny.config("none", boxarea_th=101.0))
    assert said.startswith("1 of 2 training boxes (50.0%) are smaller than 101 square pixels after resizing")


def test_folders_of_runs_are_numbered(tmp_path: Path) -> None:
    wanted = tmp_path / "runs" / "birds"
    assert find_run_folder(wanted, load=False) == wanted
    wanted.mkdir(parents=True)
    assert find_run_folder(wanted, load=False) == wanted  # still empty
    (wanted / "config.json").touch()
    assert find_run_folder(wanted, load=False) == tmp_path / "runs" / "birds-2"
    (tmp_path / "runs" / "birds-2").mkdir()
    assert find_run_folder(wanted, load=False) == tmp_path / "runs" / "birds-3"


def test_load_goes_on_with_the_newest_run(tmp_path: Path) -> None:
    for number, name in enumerate(("birds", "birds-2", "birds-3")):
        (tmp_path / name).mkdir()
        if name != "birds-3":  # it ended before its first checkpoint
            (tmp_path / name / "last.ckpt").touch()
            os.utime(tmp_path / name / "last.ckpt", (1000 - number, 1000 - number))
    assert find_run_folder(tmp_path / "birds", load=True) == tmp_path / "birds"
    os.utime(tmp_path / "birds-2" / "last.ckpt", (2000, 2000))
    assert find_run_folder(tmp_path / "birds", load=True) == tmp_path / "birds-2"
    assert find_run_folder(tmp_path / "birds-2", load=True) == tmp_path / "birds-2"
    assert find_run_folder(tmp_path / "birds", load=True, exact=True) == tmp_path / "birds"


def test_a_deleted_run_does_not_hide_later_ones(tmp_path: Path) -> None:
    for name in ("birds", "birds-3", "birds-640"):  # birds-2 was deleted; birds-640 is somebody's name
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.ckpt").touch()
    os.utime(tmp_path / "birds" / "last.ckpt", (1000, 1000))
    os.utime(tmp_path / "birds-3" / "last.ckpt", (2000, 2000))

    assert find_run_folder(tmp_path / "birds", load=True) == tmp_path / "birds-3"
    assert find_run_folder(tmp_path / "birds", load=False) == tmp_path / "birds-4"

    shutil.rmtree(tmp_path / "birds")
    assert find_run_folder(tmp_path / "birds", load=True) == tmp_path / "birds-3"
    assert find_run_folder(tmp_path / "birds", load=False) == tmp_path / "birds"


def test_run_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "birds").touch()
    with pytest.raises(ConfigError, match="birds is a file") as caught:
        find_run_folder(tmp_path / "birds", load=False)
    assert caught.value.where == 'setting "run_folder"'
    assert caught.value.fix == "give a folder, or an unused name"


def test_a_run_is_named_exactly_but_for_an_ordinary_train_json(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text('{"run_folder": "runs/birds"}')
    assert not is_named_exactly(load_config(file))
    assert not is_named_exactly(load_config(None))
    assert is_named_exactly(load_config(file, ["run_folder=runs/birds-2"]))
    own = tmp_path / "config.json"  # as a run leaves it
    own.write_text(json.dumps({"run_folder": str(tmp_path)}))
    assert is_named_exactly(load_config(own))


def test_a_lock_names_its_owner_and_not_the_one_before(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("process 1 on host 2")
    with (
        mock.patch("fcos.train.run_folder._lock", side_effect=BlockingIOError),
        pytest.raises(OutputError) as caught,
    ):
        in_use(tmp_path).__enter__()
    assert caught.value.what == "another training run is using this folder: process 1 on host 2"
    assert caught.value.where == str(tmp_path)
    assert caught.value.fix == "wait for it to finish, stop it, or set another run_folder"
    with in_use(tmp_path):  # that process was killed
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        assert (tmp_path / LOCK_NAME).read_text() == owner
    assert not tmp_path.exists()  # nothing was written


def test_a_new_run_beside_one_that_is_starting_gets_the_next_number(tmp_path: Path) -> None:
    wanted, tried = tmp_path / "birds", list[Path]()
    lock = in_use

    def lock_of_another(folder: Path) -> AbstractContextManager[None]:
        tried.append(folder)
        if len(tried) < 3:
            folder.mkdir(exist_ok=True)
            raise FolderInUseError("another training run is using this folder")
        return lock(folder)

    with mock.patch("fcos.train.run.in_use", lock_of_another), ExitStack() as held:
        assert hold_new_folder(wanted, wanted, held) == tmp_path / "birds-3"
    assert tried == [wanted, tmp_path / "birds-2", tmp_path / "birds-3"]


def test_a_run_resumes_without_the_weights_that_it_began_with(tiny: Tiny) -> None:
    tiny.train("start", epochs=1)
    start = {"pretrain": str(tiny.runs / "start"), "load": False}
    tiny.train_until(3, "run", **start)
    (tiny.runs / "start").rename(tiny.runs / "elsewhere")
    with pytest.raises(ConfigError, match="does not exist"):
        tiny.train("run", **start)
    assert tiny.train("run", **start | {"load": True}).finished


def test_patience_that_cannot_end_the_training_is_said(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.train("run", epochs=2, patience=1)
    assert "patience=1 cannot end training early: there are only 2 evaluations" in capsys.readouterr().err
    tiny.train("other", epochs=3, patience=1)
    assert "patience=1" not in capsys.readouterr().err


def test_random_weights_that_stay_frozen_are_said(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.train("run", epochs=1, freeze_stages=1)
    tiny.train("other", epochs=1, freeze_stages=0, freeze_bn=False)
    assert capsys.readouterr().err.count("freeze_stages and freeze_bn freeze random weights") == 1


def test_missing_data_are_refused_before_anything_is_written(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        tiny.train("run", list_train=str(tiny.runs / "none.txt"))
    assert not (tiny.runs / "run").exists()


def test_invalid_data_are_refused_or_left_out(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (tiny.data / "train.txt").read_text()
    (tiny.runs / "broken.txt").write_text(lines + "none.png 1 1 5 5 1\n000.png 9 9 5 5 1\n")
    broken = {"list_train": str(tiny.runs / "broken.txt"), "epochs": 1}
    with pytest.raises(DatasetError, match="1 image and 1 box cannot be used"):
        tiny.train("run", **broken)
    assert not (tiny.runs / "run").exists()
    assert tiny.train("run", **broken, skip_invalid=True).finished
    said = capsys.readouterr().err
    assert "training: 1 image and 1 box cannot be used (skipped)" in said
    assert "21 images for training" in said


def test_evaluation_data_without_the_last_class_are_taken(tiny: Tiny) -> None:
    """Lists without a file of names: the classes are as many as the highest id."""
    lists = tiny.runs / "lists"
    lists.mkdir()
    shutil.copy(tiny.data / "train.txt", lists)
    with (lists / "eval.txt").open("w") as file:
        for line in (tiny.data / "eval.txt").read_text().splitlines():
            image, *numbers = line.split()
            numbers[4::5] = ["1"] * len(numbers[4::5])
            print(image, *numbers, file=file)
    found = {f"list_{part}": str(lists / f"{part}.txt") for part in ("train", "eval")}
    assert tiny.train("run", **found, name_file="", epochs=1).finished
    assert read_run(tiny.runs / "run").annotations.class_names == ("class_1", "class_2")


def test_evaluation_data_of_difficult_boxes_alone_are_refused(tiny: Tiny) -> None:
    annotations = read_annotations(tiny.data / "eval.txt", root=tiny.data / "eval")
    hard = replace(annotations, is_difficult=np.ones(len(annotations.labels), bool))
    coco.write(hard, tiny.data / "hard.json")
    with pytest.raises(DatasetError, match=r"so there is nothing to evaluate on\n  in: .*hard.json"):
        train(tiny.config("run", list_eval=str(tiny.data / "hard.json"), root_eval="", name_file=""))


@pytest.mark.parametrize("part", ["list_train", "list_eval"])
def test_data_without_a_box_are_refused_even_where_invalid_ones_are_left_out(tiny: Tiny, part: str) -> None:
    names = [line.split()[0] for line in (tiny.data / "train.txt").read_text().splitlines()]
    (tiny.runs / "empty.txt").write_text("\n".join(names))
    with pytest.raises(DatasetError, match=r"images, but no boxes(.|\n)*empty.txt"):
        tiny.train("run", skip_invalid=True, **{part: str(tiny.runs / "empty.txt")})
    assert not (tiny.runs / "run").exists()


def test_images_in_both_lists_are_told(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    same = {"list_eval": str(tiny.data / "train.txt"), "root_eval": str(tiny.data / "train")}
    tiny.train("run", **same, epochs=1)
    assert "warning: 20 images are in both training and evaluation" in capsys.readouterr().err
    cards = read_summaries(tiny.runs / "run")
    assert (cards["training"].num_warnings, cards["evaluation"].num_warnings) == (0, 1)
    assert cards["evaluation"].warnings[0].startswith("20 images are in both")


def test_results_are_those_of_the_best_model(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert {entry["image_id"] for entry in results} <= set(range(1, 8))
    assert all(np.isfinite(entry["bbox"]).all() for entry in results)


@pytest.mark.parametrize("has_blocks", [True, False])
def test_checkpointing_that_does_nothing_is_said(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], has_blocks: bool
) -> None:
    blocks = [torch.nn.Identity()] * has_blocks
    with mock.patch("fcos.train.run.backbone_blocks", return_value=blocks):
        tiny.train("run", activation_checkpointing=True, epochs=1, eval_epochs=1)
    said = "activation_checkpointing has no effect on the backbone: test_efficientnet has no blocks"
    assert (said in capsys.readouterr().err) == (not has_blocks)


def test_weights_of_unknown_classes_are_refused_with_the_names(tiny: Tiny) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny.train("run", class_weights={"blue": 2, "green": 3})
    assert caught.value.what == '"class_weights" has "green", which the data does not have'
    assert caught.value.fix == 'the classes are "red", "blue"'


def test_warnings_of_the_data_check_are_printed(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (tiny.data / "train.txt").read_text().splitlines()
    (tiny.runs / "twice.txt").write_text("\n".join([*lines, *lines[:7]]))
    tiny.train("run", list_train=str(tiny.runs / "twice.txt"), epochs=1)
    printed = capsys.readouterr().err
    assert printed.count("is listed twice") == 5
    assert "... and 2 more warnings of the training data: `fcos check" in printed
