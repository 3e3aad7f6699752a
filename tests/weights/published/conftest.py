"""What other code bases computed with random weights at small width, and those weights as we read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fcos.config import TrainConfig
from fcos.data.batch import Batch, GroundTruth, Sample, collate
from fcos.data.loader import build_eval_transform
from fcos.model.build import build_model
from fcos.model.fcos import FCOS
from fcos.weights.published.read import read_published

SIZE = {"short_side": 160, "view_size": 256}  # of the network input in all vectors
FOLDERS = {
    "adelaidet_r50_1x": "AdelaiDet",
    "adelaidet_r50_1x_iou": "AdelaiDet",
    "detectron2_r50": "detectron2",
    "mmdet_r50_caffe": "MMDetection",
    "mmdet_r50_caffe_tricks": "MMDetection",
    "official_r50_imprv": "the official repository",
    "torchvision_r50": "torchvision",
}


@dataclass(frozen=True)
class Case:
    """A published file as we read it, the image, and the folder with what its authors' code computed."""

    folder: Path
    vectors: Callable[[str], Path]
    origin: str
    config: TrainConfig
    model: FCOS
    batch: Batch

    @property
    def rules(self) -> str:
        return self.config.rules

    def array(self, file: str) -> Any:
        return np.load(self.vectors(f"{self.folder.name}/{file}"))  # a large one may not be shipped

    def head(self, name: str) -> Tensor:
        """Predictions `(points, channels)` of all levels, in our order."""
        levels = self.array("head.npz")
        flat = [torch.from_numpy(levels[f"{name}_p{i}"])[0].flatten(1).T for i in range(3, 8)]
        return torch.cat(flat)


@pytest.fixture(scope="session", params=list(FOLDERS))
def case(request: pytest.FixtureRequest, vectors: Callable[[str], Path]) -> Case:
    """Each of the folders in turn."""
    folder = vectors(request.param)
    image = torch.from_numpy(np.load(vectors("input.npy"))).permute(2, 0, 1)
    file = read_published(folder / "state_dict.pth")
    config = TrainConfig(**{**file.card.settings, **SIZE})
    model = build_model(config, len(file.card.class_names))
    model.load_state_dict({**model.state_dict(), **file.tensors_for(model.state_dict())})
    nothing = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    resized = build_eval_transform(config)(image)
    batch = collate([Sample(resized, nothing, 0, (203, 317), 0)], 32)
    return Case(folder, vectors, FOLDERS[request.param], config, model.eval(), batch)
