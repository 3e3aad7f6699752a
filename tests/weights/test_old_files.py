"""A model file that an earlier version wrote (0.1.0 of 2026-11-26) loads and detects what it did then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fcos import Detector

FOLDER = Path(__file__).parent / "version_1"


def test_model_file_of_format_1_detects_what_it_did_when_it_was_written() -> None:
    detector = Detector.load(FOLDER / "model.safetensors", "cpu")
    assert detector.class_names == ("red", "blue")
    assert detector.config.backbone_channels == [4, 8, 8, 8, 8]

    then = json.loads((FOLDER / "detections.json").read_text())
    now = detector.predict(FOLDER / "image.png", 0.05)

    assert len(now) > 5
    assert now.labels.tolist() == then["labels"]
    assert now.scores.tolist() == pytest.approx(then["scores"], abs=1e-5)
    assert now.boxes_xyxy.flatten().tolist() == pytest.approx(
        [side for box in then["boxes"] for side in box], abs=1e-2
    )
