"""Training on data in memory: the numbers of files, resuming, and noticing other data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcos import Detector
from fcos.config import load_config
from fcos.data.formats import read_annotations
from fcos.detector import with_items
from fcos.errors import CheckpointError, ConfigError, DatasetError
from fcos.train.callbacks import Callback, TrainEvent

from ..rectangles import COLORS, Tiny

IN_MEMORY = {"root_train": "", "list_train": "", "root_eval": "", "list_eval": "", "name_file": ""}
NAMES = list(COLORS)


def items(tiny: Tiny, split: str) -> list[tuple[Any, dict[str, Any]]]:
    annotations = read_annotations(tiny.data / f"{split}.txt", root=tiny.data / split, names=NAMES)
    return [
        (np.array(Image.open(record.path)), {"boxes": record.boxes_xyxy, "labels": record.labels})
        for record in annotations
    ]


class StopAfter(Callback):
    """Ends this process's training, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, event: TrainEvent) -> None:
        if event.step == self.step:
            raise KeyboardInterrupt


def test_data_in_memory_train_to_the_same_numbers_as_files(tiny: Tiny) -> None:
    tiny.train("files", epochs=1)
    train, evaluation = items(tiny, "train"), items(tiny, "eval")

    config = tiny.config("memory", epochs=1, **IN_MEMORY)
    detector = Detector.train(config, data=train, eval_data=evaluation, names=NAMES)

    assert tiny.lines("memory") == tiny.lines("files") != []
    assert tiny.lines("memory", "eval") == tiny.lines("files", "eval") != []
    assert detector.class_names == ("red", "blue")
    [measured] = tiny.lines("memory", "eval")
    assert detector.evaluate(evaluation, batch_size=4).map_mean == pytest.approx(
        measured["map_mean"], abs=1e-9
    )
    # The run can be used without this program.
    assert Path(load_config(tiny.runs / "memory" / "config.json").list_eval).is_file()


def test_a_run_in_memory_resumes_with_the_same_data_and_refuses_others(tiny: Tiny) -> None:
    train = items(tiny, "train")
    settings = {"save_steps": 1, "epochs": 1, **IN_MEMORY}
    Detector.train(tiny.config("whole", **settings), data=train, names=NAMES)
    config = tiny.config("killed", **settings)
    with pytest.raises(KeyboardInterrupt):
        Detector.train(config, data=train, names=NAMES, callbacks=[StopAfter(2)])
    assert tiny.checkpoint("killed")["state"]["step"] == 1

    again = tiny.config("killed", **settings, load=True)
    brighter = [((image // 2) + 100, target) for image, target in train]
    with pytest.raises(
        CheckpointError, match="the training data differs from the data that the run was started"
    ):
        Detector.train(again, data=brighter, names=NAMES)

    Detector.train(again, data=train, names=NAMES)
    whole, resumed = tiny.checkpoint("whole"), tiny.checkpoint("killed")
    for part in ("model", "optimizer", "data"):
        assert not list(Tiny.differences(whole[part], resumed[part]))


def test_problems_of_data_in_memory_name_the_item_before_training_starts(tiny: Tiny) -> None:
    train = items(tiny, "train")
    train[3][1]["boxes"] = np.array([[5, 5, float("nan"), 9]])
    train[3][1]["labels"] = np.array([0])
    with pytest.raises(DatasetError) as caught:
        Detector.train(tiny.config("run", **IN_MEMORY), data=train, names=NAMES)
    assert "1 box cannot be used" in str(caught.value)
    assert re.search(r"annotation \d+, image 'item_3-\w+\.bmp': box \[5, 5, nan, 9\] has", str(caught.value))
    assert not (tiny.runs / "run").exists()


def test_a_list_and_data_in_memory_are_not_given_together(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r'"list_eval" is .*eval\.txt, but data in memory is given too'):
        Detector.train(tiny.config("run"), eval_data=items(tiny, "eval"), names=NAMES)


def test_files_of_one_name_and_box_stay_apart_in_training_and_evaluation(tmp_path: Path) -> None:
    config = load_config({"run_folder": str(tmp_path / "run")})
    for split in ("train", "eval"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 6)).save(tmp_path / split / "0.png")
        item = tmp_path / split / "0.png", {"boxes": [[0, 0, 8, 6]], "labels": [0]}
        config = with_items(config, split, [item], ["cat"])

    [train], [evaluation] = map(read_annotations, (Path(config.list_train), Path(config.list_eval)))
    assert [train.path.parent.name, evaluation.path.parent.name] == ["train", "eval"]
