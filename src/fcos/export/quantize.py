"""Quantize convolutions to 8-bit integers, as many as the accuracy allows.

The network is calibrated on images and evaluated on annotations. If quantizing all of it costs too much AP,
parts of it stay in float32: first each part alone, from the cheapest; if none is enough, the most sensitive
parts together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fcos.data.annotations import Annotations
from fcos.errors import FcosError
from fcos.export.calibration import PARTS, Calibration
from fcos.export.card import to_metadata
from fcos.export.exported import open_exported
from fcos.export.formats import FORMATS, export_card, graph_of
from fcos.files import written
from fcos.metrics.coco import evaluate_detections
from fcos.predict.predictor import Predictor
from fcos.terminal import counted
from fcos.weights.load import ExportFormat, LoadedModel

Measure = Callable[[frozenset[str]], float]  # parts in float32 -> AP


@dataclass(frozen=True)
class Trial:
    """The parts that stay in float32, and the resulting AP."""

    in_float32: tuple[str, ...]
    ap: float


@dataclass(frozen=True)
class Search:
    """The result of the search for parts that stay in float32.

    Attributes:
        chosen: the trial within the limit, otherwise the best one.
    """

    ap_before: float
    trials: tuple[Trial, ...]
    chosen: Trial
    is_within: bool


def search(ap_before: float, measure: Measure, max_loss: float) -> Search:
    """Choose the parts that stay in float32, so that AP (in [0, 1]) drops by at most `max_loss`."""
    trials: list[Trial] = []

    def choices() -> Iterator[tuple[str, ...]]:
        yield ()
        yield from ((part,) for part in PARTS)
        sensitive = [trial.in_float32[0] for trial in sorted(trials[1:], key=lambda trial: -trial.ap)]
        yield from (tuple(sensitive[:count]) for count in range(2, len(sensitive) + 1))

    for in_float32 in choices():
        trials.append(Trial(in_float32, measure(frozenset(in_float32))))
        if trials[-1].ap >= ap_before - max_loss:
            return Search(ap_before, tuple(trials), trials[-1], is_within=True)
    return Search(ap_before, tuple(trials), max(trials, key=lambda trial: trial.ap), is_within=False)


def export_int8(
    loaded: LoadedModel,
    name: ExportFormat,
    path: Path,
    calibration: Calibration,
    annotations: Annotations,
    max_loss: float,
    on_trial: Callable[[tuple[str, ...]], None] = lambda in_float32: None,
) -> Search:
    """Write a quantized model, unless it loses too much AP.

    Args:
        calibration: typical input images.
        annotations: to evaluate on, with the labels of the model.
        max_loss: of AP, in [0, 1].
        on_trial: called before each trial with the parts that stay in float32.
    """
    format, quantize = FORMATS[name], FORMATS[name].quantize
    assert quantize is not None, "the caller has checked it (`check_int8`)"
    model = format.convert(*graph_of(loaded, name))
    card = export_card(loaded)

    def write(partial: Path, in_float32: frozenset[str], note: str = "") -> None:
        notes = (*card.notes, *([note] if note else []))
        metadata = to_metadata(replace(card, precision="int8", notes=notes), loaded.config)
        format.save(quantize(model, calibration, in_float32), metadata, partial)

    def measure(in_float32: frozenset[str]) -> float:
        on_trial(tuple(part for part in PARTS if part in in_float32))
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / path.name
            write(trial, in_float32)
            exported = open_exported(trial)
            detector = Predictor(exported, exported.config, exported.card, trial)
            return average_precision(detector, annotations)

    before = average_precision(Predictor.of(loaded, torch.device("cpu")), annotations)
    found = search(before, measure, max_loss)
    if found.is_within:
        with written(path) as partial:
            write(partial, frozenset(found.chosen.in_float32), _note(found, calibration, annotations))
    return found


def check_int8(name: ExportFormat) -> None:
    """Reject a format that does not support 8-bit integers."""
    if FORMATS[name].quantize is None:
        raise FcosError(
            f"the format {name} does not support --int8",
            fix="use --format openvino (the fastest), onnx or litert",
        )


def average_precision(detector: Predictor, annotations: Annotations) -> float:
    """COCO's AP."""
    return evaluate_detections(annotations, detector.predict_dataset(annotations)).map_mean


def _note(found: Search, calibration: Calibration, annotations: Annotations) -> str:
    parts = f"{' and '.join(found.chosen.in_float32)} in float32; " if found.chosen.in_float32 else ""
    return (
        f"8-bit integers, calibrated on {counted(calibration.num_images, 'image')}; {parts}"
        f"AP {found.ap_before:.4f} -> {found.chosen.ap:.4f} on {counted(len(annotations), 'image')}"
    )
