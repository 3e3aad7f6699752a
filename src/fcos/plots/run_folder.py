"""What a finished run left in its folder, ready to be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fcos.config import TrainConfig, load_config
from fcos.data.annotations import Annotations
from fcos.data.card import DataCard, data_card, read_cards
from fcos.data.check import CheckReport, check, drop_invalid
from fcos.data.classes import with_classes_of
from fcos.data.formats import read_annotations, read_names
from fcos.errors import ConfigError, DatasetError


@dataclass(frozen=True)
class FinishedRun:
    """A run that measured something.

    Attributes:
        annotations: of the evaluation, with the labels of the model.
        results: what its best model found in them, as in a COCO results file.
        cards: of its data sets, training first.
    """

    folder: Path
    config: TrainConfig
    annotations: Annotations
    results: Sequence[Mapping[str, Any]]
    cards: dict[str, DataCard]


def read_run(folder: Path) -> FinishedRun:
    """Read a run folder and the evaluation annotations that it names.

    Raises:
        ConfigError: it is no run folder, or the run measured nothing.
        DatasetError: there are no results.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ConfigError(
            f"{folder} is not the folder of a run: it has no config.json",
            fix="give a folder that `fcos train` made, for example runs/train",
        )
    config = load_config(config_file)
    if not config.list_eval:
        raise ConfigError(
            "there is nothing to report: the run measured nothing",
            where=f'file {config_file}, "list_eval"',
            fix="train with list_eval",
        )
    results = read_results(folder)  # first: reading the annotations may take long
    cards = read_cards(folder)
    if not cards:
        cards["training"] = _read_card(config)
    annotations, checked = _eval_set(config, cards)
    cards.setdefault("evaluation", data_card(annotations, checked))
    return FinishedRun(folder, config, annotations, results, cards)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """What the best model of a run found in the evaluation pictures."""
    for file in (folder / "results.json", folder / "eval" / "results.json"):
        if file.is_file():
            content: list[dict[str, Any]] = msgspec.json.decode(file.read_bytes())  # hundreds of MB at times
            return content
    raise DatasetError(
        "there are no results",
        where=str(folder / "results.json"),
        fix=f"`fcos eval {folder}` writes them",
    )


def _eval_set(config: TrainConfig, cards: Mapping[str, DataCard]) -> tuple[Annotations, CheckReport]:
    """As the training read it."""
    names = tuple(cards["training"].card.boxes_per_class)
    annotations = read_annotations(
        Path(config.list_eval),
        root=_folder(config.root_eval),
        names=_names(config),
        format=config.data_format,
    )
    # The training has decoded all pixels; only where it left some out is it to be found again which.
    left_some_out = "evaluation" not in cards or cards["evaluation"].num_problems != 0
    report = check(annotations, decode=config.skip_invalid and left_some_out)
    return with_classes_of(drop_invalid(annotations, report), names), report


def _read_card(config: TrainConfig) -> DataCard:
    """Of the training set of a run without data.json, which an earlier version of fcos made."""
    annotations = read_annotations(
        Path(config.list_train),
        root=_folder(config.root_train),
        names=_names(config),
        format=config.data_format,
    )
    return data_card(annotations, check(annotations, decode=False))


def _names(config: TrainConfig) -> tuple[str, ...] | None:
    return read_names(Path(config.name_file))[0] if config.name_file else None


def _folder(path: str) -> Path | None:
    return Path(path) if path else None
