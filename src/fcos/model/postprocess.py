"""Predictions to detections (section 3.1 and 3.3 of the paper; rules of the official code).

The defaults are the paper's rules as we apply them. Where another code base does otherwise, a parameter of
`PostProcess` says what; `fcos.config.conventions` has the set of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms

from fcos.config.conventions import ClipBoxes, RankBy, Score, ThresholdOn
from fcos.model.head import HeadOutput
from fcos.model.points import PointGrid, distances_to_boxes


class ImageDetections(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        boxes_xyxy: original image pixels, 0 <= x1 < x2 <= width, 0 <= y1 < y2 <= height.
        scores: in [0, 1].
        labels: 0-based.
        found_at: x, y of the point that each comes from, original image pixels, and the stride of its level,
            network input pixels; None where that is not known.
    """

    boxes_xyxy: Float[Tensor, "detections 4"]
    scores: Float[Tensor, " detections"]
    labels: Int64[Tensor, " detections"]
    found_at: Float[Tensor, "detections 3"] | None = None

    def of(self, chosen: Tensor) -> ImageDetections:
        """Those that an index or a mask chooses."""
        found_at = None if self.found_at is None else self.found_at[chosen]
        return ImageDetections(self.boxes_xyxy[chosen], self.scores[chosen], self.labels[chosen], found_at)

    def cpu(self) -> ImageDetections:
        """The same on the CPU."""
        found_at = None if self.found_at is None else self.found_at.cpu()
        return ImageDetections(self.boxes_xyxy.cpu(), self.scores.cpu(), self.labels.cpu(), found_at)


@dataclass(frozen=True)
class PostProcess:
    """Threshold, best candidates of each level, NMS within each class, best of the image.

    Attributes:
        score_threshold: that a candidate must exceed.
        nms_iou: overlap above which the lower of two detections of a class goes.
        candidates_per_level: (point, class) pairs of each level that enter NMS.
        detections_per_image: kept of each image.
        threshold_on: what must exceed the threshold: the classification score alone, its product with the
            quality, or the final score.
        score: final score: the square root of the product of class score and quality, or the product.
        rank_by: the best candidates of a level are those of the best final score, or class score.
        clip: boxes are clipped to the resized image, or to the original one, before NMS, which drops those in
            the padding; or to the original one after NMS.
        keep_empty: boxes that clipping leaves without area stay.
        inclusive_boxes: sides are last pixels (official code): they end at width - 1, NMS adds 1 to widths
            and heights, and detections come in the order of the candidates, level by level.
        keep_ties: keep all that score as the last of `detections_per_image`.
        agnostic_nms: NMS over all classes together, so that an object has one box.
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.6
    candidates_per_level: int = 1000
    detections_per_image: int = 100
    threshold_on: ThresholdOn = "class"
    score: Score = "sqrt"
    rank_by: RankBy = "score"
    clip: ClipBoxes = "resized"
    keep_empty: bool = False
    inclusive_boxes: bool = False
    keep_ties: bool = False
    agnostic_nms: bool = False

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
        found = []
        for entered, scale, size in self._before_nms(output, grid, sizes_hw, original_sizes_hw):
            kept = entered.of(self._suppress(entered))
            kept = kept._replace(boxes_xyxy=kept.boxes_xyxy * scale)
            if self.clip == "after_nms":
                kept = self._solid(kept._replace(boxes_xyxy=self._clip(kept.boxes_xyxy, size)))
            found.append(kept)
        return found

    def candidates(
        self,
        output: HeadOutput,
        grid: PointGrid,
        sizes_hw: Int64[Tensor, "batch 2"],
        original_sizes_hw: Int64[Tensor, "batch 2"],
    ) -> list[ImageDetections]:
        """What enters NMS, best first; arguments as above."""
        entering = []
        for entered, scale, _ in self._before_nms(output, grid, sizes_hw, original_sizes_hw):
            placed = entered._replace(boxes_xyxy=entered.boxes_xyxy * scale)
            entering.append(placed.of(entered.scores.argsort(descending=True)))
        return entering

    def scores(self, output: HeadOutput) -> Float[Tensor, "batch points classes"]:
        """Final score of every point and class; -1 where the threshold is not exceeded."""
        return self._scores_and_ranks(output)[0]

    def _scores_and_ranks(self, output: HeadOutput) -> tuple[Tensor, Tensor]:
        """Final scores, and what chooses the candidates of a level; both -1 below the threshold."""
        class_scores = output.logits.float().sigmoid()
        product = scores = class_scores
        if output.quality is not None:
            product = class_scores * output.quality.float().sigmoid()[..., None]
            # sqrt: the scale of a probability again (2006.09214, section 3.3), same order as the product.
            scores = product.sqrt() if self.score == "sqrt" else product
        tested = {"class": class_scores, "product": product, "score": scores}[self.threshold_on]
        passes = tested > self.score_threshold
        scores = torch.where(passes, scores, -1.0)
        ranks = torch.where(passes, class_scores, -1.0) if self.rank_by == "class" else scores
        return scores, ranks

    def _before_nms(
        self,
        output: HeadOutput,
        grid: PointGrid,
        sizes_hw: Int64[Tensor, "batch 2"],
        original_sizes_hw: Int64[Tensor, "batch 2"],
    ) -> Iterator[tuple[ImageDetections, Tensor, Tensor]]:
        """Of each image: what enters NMS; the scale of its boxes to the original, and its size (xyxy)."""
        scores, ranks = self._scores_and_ranks(output)
        for i in range(len(sizes_hw)):
            point, label = self._best_of_levels(ranks[i], grid.points_per_level)
            best = scores[i][point, label]
            boxes = distances_to_boxes(grid.points[point], output.distances[i].float()[point])
            limit, original = (
                sizes[i].flip(0).repeat(2).to(boxes.dtype) for sizes in (sizes_hw, original_sizes_hw)
            )
            scale = original / limit
            found_at = torch.cat([grid.points[point] * scale[:2], grid.strides[point, None]], dim=1)
            if self.clip != "after_nms":
                boxes = self._clip(boxes, limit)
                if self.clip == "original":
                    boxes, scale = boxes * scale, torch.ones_like(scale)
            entered = ImageDetections(boxes, best, label, found_at)
            if self.clip != "after_nms":
                # Clipping leaves nothing of what lies in the padding; the IoU of nothing would keep it all.
                entered = self._solid(entered)
            yield entered, scale, original

    def _best_of_levels(self, ranks: Tensor, points_per_level: list[int]) -> tuple[Tensor, Tensor]:
        """Point and class index of the best candidates of each level."""
        points, labels = [], []
        first = 0
        for level in torch.split(ranks, points_per_level):
            point, label = (level >= 0).nonzero(as_tuple=True)
            if not self.inclusive_boxes or len(point) > self.candidates_per_level:
                count = min(self.candidates_per_level, len(point))
                best = level[point, label].topk(count, sorted=not self.inclusive_boxes).indices
                point, label = point[best], label[best]
            points.append(point + first)
            labels.append(label)
            first += len(level)
        return torch.cat(points), torch.cat(labels)

    def _clip(self, boxes: Tensor, limit: Tensor) -> Tensor:
        return torch.minimum(boxes.clamp(min=0), limit - 1 if self.inclusive_boxes else limit)

    def _solid(self, found: ImageDetections) -> ImageDetections:
        """Without the boxes that have no area."""
        if self.keep_empty:
            return found
        return found.of((found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all(dim=1))

    def _suppress(self, found: ImageDetections) -> Tensor:
        """Index of what NMS and the limit of the image leave."""
        boxes, scores, labels, _ = found
        if self.inclusive_boxes:
            boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + 1], dim=1)
        if self.agnostic_nms:
            labels = torch.zeros_like(labels)
        kept: Tensor = batched_nms(boxes, scores, labels, self.nms_iou)
        most = self.detections_per_image
        if self.keep_ties and len(kept) > most:
            most = int((scores[kept] >= scores[kept[most - 1]]).sum())
        kept = kept[:most]
        return kept.sort().values if self.inclusive_boxes else kept
