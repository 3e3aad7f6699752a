"""A finished run: its settings, data and results, for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from fcos.config import TrainConfig, load_config
from fcos.data.annotations import Annotations
from fcos.data.check import CheckReport, check, drop_invalid
from fcos.data.names import with_classes_of
from fcos.data.summary import DataSummary, read_summaries, summarize
from fcos.errors import ConfigError, DatasetError
from fcos.files import read_json
from fcos.train.data import read_eval_set, read_train_set


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended.

    Attributes:
        annotations: valid evaluation data, with the labels of the model; or training data if the run was not
            evaluated.
        results: detections of its best model, as in a COCO results file; None: the run was not evaluated.
        cards: summaries of its data sets, if known.
    """

    folder: Path
    config: TrainConfig
    annotations: Annotations
    results: Sequence[Mapping[str, Any]] | None
    cards: dict[str, DataSummary]


def read_run(folder: Path) -> FinishedRun:
    """Read a run folder and the annotations that it was evaluated on.

    Raises:
        ConfigError: it is not a run folder.
        DatasetError: there are no results.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ConfigError(
            f"{folder} is not the folder of a run: it has no config.json",
            fix="give a folder that `fcos train` created, for example runs/train",
        )
    config = load_config(config_file)
    results = read_results(folder) if config.list_eval else None  # first: annotations may take long
    cards = read_summaries(folder)
    if results is None or not cards:
        train_set, checked = _usable(read_train_set(config), config, cards.get("training"))
        cards.setdefault("training", summarize(train_set, checked))
    if results is None:
        return FinishedRun(folder, config, train_set, None, cards)
    class_names = tuple(cards["training"].counts.boxes_per_class)
    eval_set = read_eval_set(config, class_names)
    annotations, checked = _usable(eval_set, config, cards.get("evaluation"))
    annotations = with_classes_of(annotations, class_names)
    cards.setdefault("evaluation", summarize(annotations, checked))
    return FinishedRun(folder, config, annotations, results, cards)


class _Row(TypedDict):
    """A detection, as in a COCO results file."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The detections of a run's best model in the evaluation images."""
    for file in (folder / "results.json", folder / "eval" / "results.json"):
        if file.is_file():
            fix = f"write it again: `fcos eval {folder} --out {file.parent}`"
            rows: list[Any] = read_json(file, list[_Row], "a results file", fix)
            return rows
    raise DatasetError(
        "there are no results",
        where=str(folder / "results.json"),
        fix=f"write them: `fcos eval {folder}`",
    )


def _usable(
    annotations: Annotations, config: TrainConfig, card: DataSummary | None
) -> tuple[Annotations, CheckReport]:
    """The data of a list that training used, without invalid images and boxes."""
    # Training has decoded all images; decode them again only to find which it skipped.
    left_some_out = card is None or card.num_problems != 0
    report = check(annotations, decode=config.skip_invalid and left_some_out)
    return drop_invalid(annotations, report), report
