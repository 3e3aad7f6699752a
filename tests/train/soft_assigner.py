"""An assigner that looks at predictions, for tests of the training loop: soft labels on the papers' points.

A point should give its class the IoU of the box that it predicts now; so every number of a step depends on
what the network says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import fcos.train.step
from fcos.config import TrainConfig
from fcos.model.assign import Assigner, Targets
from fcos.model.build import build_assigner
from fcos.model.fcos import HeadOutput
from fcos.model.losses import pairwise_box_terms
from fcos.model.points import PointGrid


@dataclass(frozen=True)
class SoftAssigner:
    """The targets of another assigner with the IoU of the predicted box as score, weight and normalizer."""

    points: Assigner
    needs_predictions: ClassVar[bool] = True

    def __call__(
        self,
        grid: PointGrid,
        boxes_xyxy: list[Tensor],
        labels: list[Tensor],
        predictions: HeadOutput | None = None,
    ) -> Targets:
        targets = self.points(grid, boxes_xyxy, labels)
        assert predictions is not None
        predicted = predictions.distances.detach().float().flatten(0, 1)
        iou = pairwise_box_terms(predicted, targets.distances.flatten(0, 1))[0].reshape(targets.labels.shape)
        soft = torch.where(targets.class_scores > 0, 0.1 + 0.9 * iou, 0.0)
        return SoftTargets(*targets._replace(class_scores=soft, box_weights=soft))


class SoftTargets(Targets):
    """All three losses are divided by the sum of the soft scores."""

    def normalizers(self) -> Tensor:
        return self.class_scores.sum().repeat(3)


def soft_assigner(config: TrainConfig) -> Assigner:
    return SoftAssigner(build_assigner(config))


def install() -> None:
    """Have the trainings of this process use it."""
    fcos.train.step.build_assigner = soft_assigner  # type: ignore[assignment]
