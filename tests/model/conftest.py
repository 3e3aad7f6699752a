"""Ground truth and targets of other code bases, and a small network, for the tests of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fcos.model.backbone import Backbone
from fcos.model.fcos import FCOS, FeaturePyramid, Head

STRIDES = (8, 16, 32, 64, 128)
RANGES = (64.0, 128.0, 256.0, 512.0)
NETWORK_HW = (160, 256)  # of the network input in all vectors


@dataclass(frozen=True)
class Peer:
    """What another code base computed, with random weights, on the same image.

    Attributes:
        targets: per point, by name as in the vectors' README.
        head: predictions of each level, NCHW.
        losses: by ground truth ("A", "B", "A+B", "empty").
        boxes: of each ground truth, xyxy, network input pixels.
        labels: the same, 0-based (from 1 in the official code).
    """

    targets: dict[str, Any]
    head: dict[str, Any]
    losses: dict[str, Any]
    boxes: dict[str, Tensor]
    labels: dict[str, Tensor]

    def predicted(self, name: str) -> Tensor:
        """Predictions `(points, channels)` of all levels, in our order."""
        levels = [torch.from_numpy(self.head[f"{name}_p{level}"])[0] for level in range(3, 8)]
        return torch.cat([level.flatten(1).T for level in levels])


@pytest.fixture(scope="session")
def peer(vectors: Callable[[str], Path]) -> Callable[[str], Peer]:
    """The vectors of a code base, by the name of their folder."""

    def read(name: str) -> Peer:
        folder = vectors(name)
        losses = json.loads((folder / "losses.json").read_text())
        ground_truth = losses["gt"]
        boxes = {key: gt["boxes_xyxy_network_input_pixels"] for key, gt in ground_truth.items()}
        return Peer(
            dict(np.load(folder / "targets.npz")),
            dict(np.load(folder / "head.npz")),
            losses,
            {key: torch.tensor(value, dtype=torch.float32).reshape(-1, 4) for key, value in boxes.items()},
            {key: torch.tensor(gt["labels"], dtype=torch.int64) for key, gt in ground_truth.items()},
        )

    return read


@pytest.fixture
def network() -> FCOS:
    """A small network with random weights, on ResNet-18 with nothing frozen but its batch norm."""
    torch.manual_seed(0)
    backbone = Backbone("resnet18", freeze_stages=0)
    pyramid = FeaturePyramid(backbone.channels, 48, len(STRIDES))
    head = Head(48, 48, 3, 1, STRIDES, distance_init=1.0)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    return FCOS(backbone, pyramid, head, STRIDES, mean, std).eval()
