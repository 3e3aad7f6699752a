"""NMS in a graph, for each image and class.

The NMS of every format takes one set of boxes without classes, so boxes of different classes are moved apart
until they cannot overlap. torchvision moves them along a line; here they go onto a square of cells, since 80
steps of 1,400 pixels leave 0.008 pixels between two floats, and 9 steps leave 0.001.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, library
from torch.nn import functional as F

from fcos.model.postprocess import INVALID


def moved_apart(boxes_xyxy: Tensor, labels: Tensor, num_classes: int, *, images_too: bool = False) -> Tensor:
    """Boxes `(N, K, 4)` with each class in its own cell; the IoU within a class does not change."""
    side = math.ceil(math.sqrt(num_classes))
    step = boxes_xyxy.max() - boxes_xyxy.min() + 1
    row = torch.div(labels, side, rounding_mode="floor")
    column = labels - row * side
    if images_too:  # below each other
        row = row + torch.arange(boxes_xyxy.shape[0])[:, None] * side
    cell = torch.stack([column, row], dim=-1).to(boxes_xyxy.dtype) * step
    return boxes_xyxy + torch.cat([cell, cell], dim=-1)


@library.custom_op(
    "fcos::suppress",
    mutates_args=(),
    schema="(Tensor boxes_xyxy, Tensor scores, float iou, int most) -> Tensor",
)
def suppress(boxes_xyxy: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """NMS of each image; ONNX and OpenVINO have it as one operator.

    Args:
        boxes_xyxy: `(N, K, 4)`, classes moved apart.
        scores: `(N, K)`; `INVALID` where there is none.
        iou: overlap above which the lower of two is dropped.
        most: limit of each image.

    Returns:
        `(M, 2)` int64: image and place among the K; image by image, best first.
    """
    from torchvision.ops import nms

    rows = []
    for image, (boxes, score) in enumerate(zip(boxes_xyxy, scores, strict=True)):
        valid = (score > INVALID / 2).nonzero()[:, 0]
        kept = valid[nms(boxes[valid], score[valid], iou)][:most]
        rows.append(torch.stack([torch.full_like(kept, image), kept], dim=1))
    return torch.cat(rows)


@suppress.register_fake
def _(boxes_xyxy: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    count = library.get_ctx().new_dynamic_size()
    return boxes_xyxy.new_empty((count, 2), dtype=torch.int64)


def suppress_with_torchvision(boxes_xyxy: Tensor, scores: Tensor, iou: float) -> Tensor:
    """The same with torchvision's operator and no limit, all images at once: for programs of torch.

    A torch program with an operator of ours could only be opened with this package.
    """
    valid = (scores > INVALID / 2).nonzero()
    image, place = valid[:, 0], valid[:, 1]
    # torchvision tells the tracer that at least two boxes stay, and the program checks that. So two more are
    # added, without area, which overlap nothing, and dropped again.
    boxes, best = F.pad(boxes_xyxy[image, place], (0, 0, 0, 2)), F.pad(scores[image, place], (0, 2))
    kept = torch.ops.torchvision.nms(boxes, best, iou)
    kept = kept[kept < valid.shape[0]]
    order = image[kept].argsort(stable=True)
    return valid[kept[order]]
