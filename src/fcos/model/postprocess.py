"""Predictions to detections (section 3.1 and 3.3 of the paper; rules of the official code)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms

from fcos.model.head import HeadOutput
from fcos.model.points import PointGrid, distances_to_boxes


class ImageDetections(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        boxes_xyxy: original image pixels, 0 <= x1 < x2 <= width, 0 <= y1 < y2 <= height.
        scores: in [0, 1].
        labels: 0-based.
    """

    boxes_xyxy: Float[Tensor, "detections 4"]
    scores: Float[Tensor, " detections"]
    labels: Int64[Tensor, " detections"]


@dataclass(frozen=True)
class PostProcess:
    """Threshold, best candidates of each level, NMS within each class, best of the image.

    Attributes:
        score_threshold: that the classification score alone must exceed.
        nms_iou: overlap above which the lower of two detections of a class goes.
        candidates_per_level: (point, class) pairs of each level that enter NMS.
        detections_per_image: kept of each image.
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.6
    candidates_per_level: int = 1000
    detections_per_image: int = 100

    def __call__(
        self,
        output: HeadOutput,
        grid: PointGrid,
        sizes_hw: Int64[Tensor, "batch 2"],
        original_sizes_hw: Int64[Tensor, "batch 2"],
    ) -> list[ImageDetections]:
        """Detections of each image of a batch.

        Args:
            output: of the network.
            grid: its points.
            sizes_hw: height, width of each image inside the padding.
            original_sizes_hw: height, width of each image before resizing.
        """
        return [
            self._suppress(boxes, scores, labels, scale)
            for boxes, scores, labels, scale in self._before_nms(output, grid, sizes_hw, original_sizes_hw)
        ]

    def candidates(
        self,
        output: HeadOutput,
        grid: PointGrid,
        sizes_hw: Int64[Tensor, "batch 2"],
        original_sizes_hw: Int64[Tensor, "batch 2"],
    ) -> list[ImageDetections]:
        """What enters NMS, best first; arguments as above."""
        entering = []
        for boxes, scores, labels, scale in self._before_nms(output, grid, sizes_hw, original_sizes_hw):
            order = scores.argsort(descending=True)
            entering.append(ImageDetections((boxes * scale)[order], scores[order], labels[order]))
        return entering

    def scores(self, output: HeadOutput) -> Float[Tensor, "batch points classes"]:
        """Score of every point and class; -1 where that of the class alone does not exceed the threshold."""
        class_scores = output.logits.float().sigmoid()
        scores = class_scores
        if output.quality is not None:
            # sqrt: the scale of a probability again (2006.09214, section 3.3), same order as the product.
            scores = (class_scores * output.quality.float().sigmoid()[..., None]).sqrt()
        return torch.where(class_scores > self.score_threshold, scores, -1.0)

    def _before_nms(
        self,
        output: HeadOutput,
        grid: PointGrid,
        sizes_hw: Int64[Tensor, "batch 2"],
        original_sizes_hw: Int64[Tensor, "batch 2"],
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of each image: boxes in network input pixels, scores, labels, scale to the original."""
        scores = self.scores(output)
        for i in range(len(sizes_hw)):
            point, label = self._best_of_levels(scores[i], grid.points_per_level)
            best = scores[i][point, label]
            boxes = distances_to_boxes(grid.points[point], output.distances[i].float()[point])
            limit = sizes_hw[i].flip(0).repeat(2).to(boxes.dtype)
            boxes = torch.minimum(boxes.clamp(min=0), limit)
            # Clipping leaves nothing of what lies in the padding, and the IoU of nothing would keep it all.
            solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            scale = original_sizes_hw[i].flip(0).repeat(2).to(limit) / limit
            yield boxes[solid], best[solid], label[solid], scale

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor, scale: Tensor) -> ImageDetections:
        kept = batched_nms(boxes, scores, labels, self.nms_iou)[: self.detections_per_image]
        return ImageDetections(boxes[kept] * scale, scores[kept], labels[kept])

    def _best_of_levels(self, scores: Tensor, points_per_level: list[int]) -> tuple[Tensor, Tensor]:
        """Point and class index of the best candidates of each level."""
        points, labels = [], []
        first = 0
        for level in torch.split(scores, points_per_level):
            point, label = (level >= 0).nonzero(as_tuple=True)
            best = level[point, label].topk(min(self.candidates_per_level, len(point))).indices
            points.append(point[best] + first)
            labels.append(label[best])
            first += len(level)
        return torch.cat(points), torch.cat(labels)
