"""The exported graph: images in, detections out, for any batch size and image size.

It consists of the steps of `FCOS`, `Head`, the points and `PostProcess`. Two of them differ here, since a
graph cannot loop over a varying number of candidates: selecting the candidates of a level (`_candidates`: the
same number for every image) and NMS (`_keep`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from fcos.cpu.fold import folded
from fcos.export.suppress import moved_apart, suppress, suppress_with_torchvision
from fcos.model.fcos import FCOS
from fcos.model.points import Size, distances_to_boxes, level_points
from fcos.model.postprocess import INVALID, PostProcess, whwh

INPUTS = ("images", "sizes_hw", "original_sizes_hw")
OUTPUTS = ("boxes_xyxy", "scores", "labels", "image_index")

# Run: runs the graph of a file, `INPUTS` to `OUTPUTS`. OpenRun: makes such a function for a number of
# concurrent calls in threads, which share the cores.
Run = Callable[..., tuple[Tensor, ...]]
OpenRun = Callable[[int], Run]


class DetectionGraph(nn.Module):
    """A detector as one module that can be traced.

    Args:
        model: the network, which is copied.
        postprocess: the model's.
        torchvision_nms: use torchvision's NMS operator, for torch programs; otherwise one that is converted
            to ONNX's.
    """

    def __init__(self, model: FCOS, postprocess: PostProcess, *, torchvision_nms: bool = False) -> None:
        super().__init__()
        self.network, self.rules, self.torchvision_nms = baked(model), postprocess, torchvision_nms
        self.num_classes = self.network.num_classes

    def forward(
        self, images: Tensor, sizes_hw: Tensor, original_sizes_hw: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detections of a batch.

        Args:
            images: `(N, 3, H, W)` RGB in 0..255, uint8 (float32 if resizing does not round), resized and
                padded at the bottom and right; H and W are multiples of 32.
            sizes_hw: `(N, 2)` int64, height and width of each image inside the padding.
            original_sizes_hw: `(N, 2)` int64, height and width of each image before resizing.

        Returns:
            boxes_xyxy `(M, 4)` float32 in original pixels, scores `(M,)` float32, labels `(M,)` int64 and
            image_index `(M,)` int64: the image that each belongs to; image by image, best first.
        """
        features = self.network.features(images, sizes_hw)
        levels = [self._candidates(i, feature, images) for i, feature in enumerate(features)]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))

        rules, original = self.rules, whwh(original_sizes_hw)[:, None]
        boxes, scale = rules.clip_before_nms(boxes, whwh(sizes_hw)[:, None], original)
        if rules.clip != "after_nms":
            scores = torch.where(rules.stay(boxes), scores, INVALID)
        image, place = self._keep(boxes, scores, labels).unbind(1)
        boxes = boxes[image, place] * scale[image, 0]
        scores, labels = scores[image, place], labels[image, place]
        if rules.clip == "after_nms":
            boxes = rules.clip_boxes(boxes, original[image, 0])
            stay = rules.stay(boxes)
            boxes, scores, labels, image = boxes[stay], scores[stay], labels[stay], image[stay]
        return boxes, scores, labels, image

    def _candidates(self, index: int, feature: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes `(N, K, 4)` in network input pixels, final scores `(N, K)` and labels that enter NMS.

        They are the best of a level: always the same number K, while `PostProcess` has a variable number; if
        an image has fewer, the rest have the score `INVALID`.

        Points are first ranked by their best class, so that only 1,000 of 22,400 are ranked class by class:
        the point of any of the best K pairs of point and class is among the best K points, since scores
        increase with the class score.
        """
        network, rules, most = self.network, self.rules, self.rules.candidates_per_level
        output = network.head.level(feature, index)
        logits, distances = output.logits.flatten(2), output.distances.flatten(2)
        quality = None if output.quality is None else output.quality.flatten(1)
        # Sizes of the feature map: in a trace, those that `make_grid` computes are different formulas.
        grid_hw, image_hw = (feature.shape[2], feature.shape[3]), (images.shape[2], images.shape[3])
        points = level_points(grid_hw, network.strides[index], image_hw, place=network.points)

        ranks = rules.scores_and_ranks(logits.amax(dim=1), quality)[1]
        point = ranks.topk(_at_most(most, ranks.shape[1]), dim=1).indices
        logits = logits.gather(2, point[:, None].expand(-1, self.num_classes, -1)).transpose(1, 2)
        quality = None if quality is None else quality.gather(1, point)[..., None]
        scores, ranks = (part.flatten(1) for part in rules.scores_and_ranks(logits, quality))
        pair = ranks.topk(_at_most(most, ranks.shape[1]), dim=1).indices
        place = torch.div(pair, self.num_classes, rounding_mode="floor")
        label = pair - place * self.num_classes
        if rules.point_order:
            key = point.gather(1, place) * self.num_classes + label
            order = key.argsort(dim=1)
            pair, place, label = (part.gather(1, order) for part in (pair, place, label))
        point = point.gather(1, place)
        distances = distances.gather(2, point[:, None].expand(-1, 4, -1)).transpose(1, 2)
        return distances_to_boxes(points[point], distances), scores.gather(1, pair), label

    def _keep(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Image and index of the candidates kept by NMS and `detections_per_image`, `(M, 2)`."""
        rules, most = self.rules, self.rules.detections_per_image
        # If an image has fewer candidates, the other boxes may contain anything, even infinity.
        boxes = torch.where((scores > INVALID)[..., None], boxes, 0.0)
        boxes, labels = rules.compared_by_nms(boxes, labels)
        num_classes = 1 if rules.agnostic_nms else self.num_classes
        if self.torchvision_nms:
            apart = moved_apart(boxes, labels, num_classes, images_too=True)
            kept = suppress_with_torchvision(apart, scores, rules.nms_iou)
        else:
            # The limit is a constant of the graph. Ties may exceed it: with them, allow the maximum possible.
            limit = rules.candidates_per_level * len(self.network.strides) if rules.keep_ties else most
            apart = moved_apart(boxes, labels, num_classes)
            kept = suppress(apart, scores, rules.nms_iou, limit)
        if self.torchvision_nms or rules.keep_ties:
            kept = kept[self._within_limit(kept, scores)]
        if rules.point_order:
            kept = kept[(kept[:, 0] * boxes.shape[1] + kept[:, 1]).argsort()]
        return kept

    def _within_limit(self, kept: Tensor, scores: Tensor) -> Tensor:
        """Which of the kept candidates (image by image, best first) are within the limit of their image."""
        most, image = self.rules.detections_per_image, kept[:, 0]
        best = scores[image, kept[:, 1]]
        num_kept = torch.zeros_like(scores[:, 0]).scatter_add(0, image, torch.ones_like(best))
        first = (num_kept.cumsum(0) - num_kept).to(torch.int64)
        rank = torch.arange(kept.shape[0]) - first[image]
        if not self.rules.keep_ties:
            return rank < most
        last = torch.where(rank == most - 1, best, 0.0)
        return best >= torch.zeros_like(scores[:, 0]).scatter_add(0, image, last)[image]


def _at_most(most: int, count: Size) -> Size:
    """The smaller number, as a separate symbol.

    While a graph is traced, sizes are formulas, and a minimum in a formula makes everything with that size
    slow to trace and to load. A number read from a tensor is just a symbol.
    """
    smaller: Any = torch.scalar_tensor(torch.sym_min(most, count), dtype=torch.int64).item()
    torch._check(smaller >= 1)
    torch._check(smaller <= count)
    size: Size = smaller
    return size


# The network of plain layers --------------------------------------------------------------------------------


def baked(model: FCOS) -> FCOS:
    """An equivalent copy of plain layers, in evaluation mode on the CPU.

    The sides of its input must be multiples of 32: then TensorFlow's "same" padding is constant.
    """
    network = folded(model).cpu()
    for name, module in list(network.named_modules()):
        if isinstance(module, Conv2dSame):
            network.set_submodule(name, _padded(module))
    return network


def _padded(conv: nn.Conv2d) -> nn.Module:
    """The convolution with constant padding, as a separate layer if the two sides differ."""
    # `Conv2dSame` adds no state, only the computation of the padding in each pass.
    conv.__class__ = nn.Conv2d
    shape = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    (top, bottom), (left, right) = (_same_padding(*side) for side in shape)
    if (top, left) == (bottom, right):
        conv.padding = (top, left)
        return conv
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)


def _same_padding(kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's padding before and after, for a side that is a multiple of the stride."""
    total = max(0, (kernel - 1) * dilation + 1 - stride)
    return total // 2, total - total // 2
