"""Convolutions in 8-bit integers, as many as the accuracy allows.

The network is calibrated on pictures and measured on annotations. Where quantising all of it costs too much,
parts of it stay in float32: first each of them alone, the cheapest first; if no single one is enough, the
most sensitive ones together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fcos.data.annotations import Annotations
from fcos.errors import FcosError
from fcos.export.calibration import PARTS, Calibration
from fcos.export.card import to_metadata
from fcos.export.exported import open_exported, predictor_of
from fcos.export.formats import FORMATS, card_of, graph_of
from fcos.files import written
from fcos.metrics.coco import evaluate_detections
from fcos.predict.predictor import Predictor
from fcos.weights.load import ExportFormat, LoadedModel

Measure = Callable[[frozenset[str]], float]  # parts left in float32 -> AP


@dataclass(frozen=True)
class Trial:
    """One way to quantise: which parts stay in float32, and the AP of the result."""

    left_out: tuple[str, ...]
    ap: float


@dataclass(frozen=True)
class Search:
    """How quantising went.

    Attributes:
        ap_before: of the network.
        trials: in the order in which they were made.
        chosen: the trial that is within the limit, else the best one.
        is_within: whether it is.
    """

    ap_before: float
    trials: tuple[Trial, ...]
    chosen: Trial
    is_within: bool


def search(ap_before: float, measure: Measure, most_loss: float) -> Search:
    """Find what to leave in float32.

    Args:
        ap_before: of the network, in [0, 1].
        measure: quantises all but some parts, and gives the AP.
        most_loss: of AP that is accepted.
    """
    trials: list[Trial] = []

    def is_enough(*left_out: str) -> bool:
        trials.append(Trial(left_out, measure(frozenset(left_out))))
        return trials[-1].ap >= ap_before - most_loss

    def outcome(chosen: Trial, *, is_within: bool) -> Search:
        return Search(ap_before, tuple(trials), chosen, is_within)

    if is_enough():
        return outcome(trials[-1], is_within=True)
    for part in PARTS:
        if is_enough(part):
            return outcome(trials[-1], is_within=True)
    sensitive = [trial.left_out[0] for trial in sorted(trials[1:], key=lambda trial: -trial.ap)]
    for count in range(2, len(sensitive) + 1):
        if is_enough(*sensitive[:count]):
            return outcome(trials[-1], is_within=True)
    return outcome(max(trials, key=lambda trial: trial.ap), is_within=False)


def export_int8(
    loaded: LoadedModel,
    name: ExportFormat,
    path: Path,
    calibration: Calibration,
    annotations: Annotations,
    most_loss: float,
    on_trial: Callable[[tuple[str, ...]], None] = lambda left_out: None,
) -> Search:
    """Write a model in 8-bit integers, unless it loses too much.

    Args:
        loaded: the model.
        name: of the format.
        path: to write.
        calibration: pictures like those that it will see.
        annotations: with the labels of the model, to measure on.
        most_loss: of AP, in [0, 1].
        on_trial: called with what stays in float32 before each trial.
    """
    check_int8(name)
    format = FORMATS[name]
    assert format.quantise is not None
    quantise = format.quantise
    model = format.convert(*graph_of(loaded, name))
    card = card_of(loaded)

    def write(partial: Path, left_out: frozenset[str], note: str = "") -> None:
        notes = (*card.notes, *([note] if note else []))
        metadata = to_metadata(replace(card, precision="int8", notes=notes), loaded.config)
        format.save(quantise(model, calibration, left_out), metadata, partial)

    def measure(left_out: frozenset[str]) -> float:
        on_trial(tuple(part for part in PARTS if part in left_out))
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / path.name
            write(trial, left_out)
            return average_precision(predictor_of(open_exported(trial)), annotations)

    before = average_precision(Predictor.of(loaded, torch.device("cpu")), annotations)
    found = search(before, measure, most_loss)
    if found.is_within:
        with written(path) as partial:
            write(partial, frozenset(found.chosen.left_out), _note(found, calibration, annotations))
    return found


def check_int8(name: ExportFormat) -> None:
    """Refuse a format without 8-bit integers."""
    if FORMATS[name].quantise is None:
        raise FcosError(
            f"the format {name} has no 8-bit integers", fix="--format openvino (the fastest) or onnx"
        )


def average_precision(detector: Predictor, annotations: Annotations) -> float:
    """COCO's AP."""
    return evaluate_detections(annotations, detector.find(annotations)).map_mean


def _note(found: Search, calibration: Calibration, annotations: Annotations) -> str:
    parts = f"{' and '.join(found.chosen.left_out)} in float32; " if found.chosen.left_out else ""
    return (
        f"8-bit integers, calibrated on {len(calibration)} pictures; {parts}AP {found.ap_before:.4f} -> "
        f"{found.chosen.ap:.4f} on {len(annotations)} pictures"
    )
