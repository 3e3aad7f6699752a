"""Decode the output of the network in this folder into detections; needs only NumPy.

`card` is the content of `metadata.json`. The network takes RGB pixels in 0..255 as float32: an image
resized as described in the card, and padded at the bottom and right with `pixel_mean`.
"""

from typing import Any

import numpy as np


def decode(
    output: Any, card: Any, input_hw: tuple[int, int], size_hw: tuple[int, int], original_hw: tuple[int, int]
) -> tuple[Any, Any, Any]:
    """Boxes `(N, 4)` xyxy in original pixels, scores `(N,)` and labels `(N,)` of an image, best first.

    Args:
        output: `(classes + 5, points)` float32: logits, distances to the four sides, and quality (if the
            model predicts it); points level by level, row by row.
        card: class names, strides, thresholds.
        input_hw: height, width of the input of the network.
        size_hw: height, width of the resized image within it.
        original_hw: height, width of the image before resizing.
    """
    count = len(card["class_names"])
    logits, distances, quality = np.split(output, [count, count + 4])
    classes, quality = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-quality))
    product = classes * quality if len(quality) else classes
    scores = np.sqrt(product) if len(quality) else classes
    passes = {"class": classes, "product": product, "score": scores}[card["threshold_on"]]
    scores = np.where(passes > card["score_threshold"], scores, -1)
    found, first = [], 0
    for stride in card["strides"]:
        rows, columns = (-(-side // stride) for side in input_hw)
        level = scores[:, first : first + rows * columns]
        best = np.argsort(-level, axis=None, kind="stable")[: card["candidates_per_level"]]
        label, point = np.unravel_index(best[level.flat[best] >= 0], level.shape)
        y, x = ((side + np.float32(0.5)) * stride for side in np.divmod(point, columns))
        left, top, right, bottom = distances[:, first + point]
        found.append(np.stack([x - left, y - top, x + right, y + bottom, level[label, point], label]))
        first += rows * columns
    entering = np.concatenate(found, axis=1).T
    entering[:, :4] = entering[:, :4].clip(0, [*size_hw[::-1], *size_hw[::-1]])
    entering = entering[(entering[:, :2] < entering[:, 2:4]).all(axis=1)]
    entering, kept = entering[np.argsort(-entering[:, 4], kind="stable")], np.zeros((0, 6))
    while len(entering) and len(kept) < card["detections_per_image"]:  # NMS
        best, entering = entering[0], entering[1:]
        kept = np.concatenate([kept, best[None]])
        sides = np.minimum(best[2:4], entering[:, 2:4]) - np.maximum(best[:2], entering[:, :2])
        shared = sides.clip(0).prod(axis=1)
        areas = [(boxes[..., 2:4] - boxes[..., :2]).prod(axis=-1) for boxes in (best, entering)]
        rivals = card["agnostic_nms"] | (entering[:, 5] == best[5])
        entering = entering[~rivals | (shared <= card["nms_iou"] * (areas[0] + areas[1] - shared))]
    scale = np.array([*original_hw[::-1], *original_hw[::-1]]) / [*size_hw[::-1], *size_hw[::-1]]
    return (
        (kept[:, :4] * scale).astype(np.float32),
        kept[:, 4].astype(np.float32),
        kept[:, 5].astype(np.int64),
    )
