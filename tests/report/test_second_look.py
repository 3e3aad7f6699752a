"""A run's model, asked again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcos import Detector
from fcos.data.annotations import Annotations, Record
from fcos.metrics.coverage import place_objects
from fcos.report import second_look as module
from fcos.report.second_look import second_look

CPU = torch.device("cpu")


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    """Three images of colored squares."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(3):
        pixels = rng.integers(0, 255, (9, 12, 3), dtype=np.uint8).repeat(10, axis=0).repeat(10, axis=1)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        records.append(Record.make(tmp_path / f"{number}.png", [], [], number + 40, size_hw=(90, 120)))
    return Annotations.from_records(records, ("cat", "dog", "bird"), source=tmp_path, format="list")


def test_a_run_without_a_model_file_cannot_look(tmp_path: Path) -> None:
    assert second_look(tmp_path, CPU) is None


def test_candidates_are_what_the_detections_were_chosen_from(
    model_file: Path, annotations: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 60.0)  # also on a busy machine
    look = second_look(model_file.parent, CPU)
    assert look is not None
    entered = look.candidates(annotations, [2, 0])
    assert list(entered) == [42, 40]
    found = Detector.load(model_file, "cpu").predict(annotations[2].path, 0.0)
    assert len(entered[42].scores) > len(found) > 0
    assert entered[42].scores[0] == entered[42].scores.max()
    assert entered[42].scores[0] == pytest.approx(float(found.scores[0]), abs=1e-5)
    torch.testing.assert_close(entered[42].boxes_xyxy[0], found.boxes_xyxy[0], rtol=1e-4, atol=1e-3)


def test_it_stops_when_there_is_no_more_time(
    model_file: Path, annotations: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 0.0)
    look = second_look(model_file.parent, CPU)
    assert look is not None
    assert list(look.candidates(annotations, [0, 1, 2])) == [40]
    assert look.candidates(annotations, []) == {}


def test_scores_are_those_of_the_points_of_the_image(model_file: Path, annotations: Annotations) -> None:
    look = second_look(model_file.parent, CPU)
    assert look is not None
    scores, labels, quality = look.at_points(annotations, 1)
    grid = place_objects(annotations[1], look.config).grid
    assert quality is not None
    assert len(scores) == len(labels) == len(quality) == len(grid.points)
    assert 0 <= quality.min() < quality.max() <= 1
    candidates = look.candidates(annotations, [1])[41]
    assert scores.max() == pytest.approx(float(candidates.scores[0]))
    assert labels[scores.argmax()] == candidates.labels[0]
