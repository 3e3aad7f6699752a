"""Compare an exported file with the network: detections, speed and size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import box_iou

from fcos.predict.detections import Detections
from fcos.predict.predictor import Predictor

MAX_PIXELS = 0.5  # difference of a side of a box, original pixels
MAX_SCORE = 1e-3
EQUAL_SCORES = 1e-5  # rounding of scores in float32
AT_LIMIT = 1e-4  # rounding of overlaps
ROUNDS = 7
MAX_SECONDS = 60.0  # of timing
SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Check:
    """The comparison of an exported file with the network.

    Attributes:
        num_images: images predicted with both.
        num_detections: of the network.
        num_same: detections of the network that the file has too.
        num_ties: differences explained by rounding: equal scores, or overlaps at the NMS threshold.
        most_pixels: maximum difference of box sides, of matching detections.
        most_score: maximum difference of scores, of matching detections.
        problems: detections that only one of them has, as text.
        before_ms, after_ms: median time from file to detections, of the network and of the exported file.
        before_bytes, after_bytes: sizes of the model file and of the exported file.
    """

    num_images: int
    num_detections: int
    num_same: int
    num_ties: int
    most_pixels: float
    most_score: float
    problems: tuple[str, ...]
    before_ms: float
    after_ms: float
    before_bytes: int
    after_bytes: int


@dataclass(frozen=True)
class Difference:
    """The comparison of two sets of detections of one image.

    Attributes:
        pairs: indices of matching detections in the first and in the second set.
        only_first, only_second: indices of detections that the other set lacks.
        num_ties: other differences, explained by rounding.
    """

    pairs: tuple[tuple[int, int], ...]
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    num_ties: int


def check_export(before: Predictor, after: Predictor, images: Sequence[Path]) -> Check:
    """Compare on all images, and measure the latency of both on the first."""
    num_detections = num_same = num_ties = 0
    most_pixels = most_score = 0.0
    problems: list[str] = []
    for path in images:
        first, second = before.predict(path, 0.0), after.predict(path, 0.0)
        same = compare(first, second, before.config.nms_iou, agnostic_nms=before.config.agnostic_nms)
        num_detections += len(first)
        num_same += len(same.pairs)
        num_ties += same.num_ties
        for i, j in same.pairs:
            most_pixels = max(most_pixels, float((first.boxes_xyxy[i] - second.boxes_xyxy[j]).abs().max()))
            most_score = max(most_score, float((first.scores[i] - second.scores[j]).abs()))
        problems += [f"{path.name}: only in PyTorch: {_in_words(first, i)}" for i in same.only_first]
        problems += [f"{path.name}: only in the file: {_in_words(second, j)}" for j in same.only_second]
    before_ms, after_ms = latencies([before, after], images[0])
    return Check(
        len(images),
        num_detections,
        num_same,
        num_ties,
        most_pixels,
        most_score,
        tuple(problems),
        before_ms,
        after_ms,
        size_of(before.path),
        size_of(after.path),
    )


def compare(
    first: Detections, second: Detections, nms_iou: float, *, agnostic_nms: bool = False
) -> Difference:
    """Match detections: same class, boxes within `MAX_PIXELS`, scores within `MAX_SCORE`.

    The two computations round differently. If scores or overlaps are equal up to rounding, rounding decides
    which of two overlapping boxes NMS keeps (and therefore which of their neighbors), and which detections
    are the last within the limit of an image. Such detections are ties.
    """
    pixels = (first.boxes_xyxy[:, None] - second.boxes_xyxy[None]).abs().amax(dim=2)
    scores = (first.scores[:, None] - second.scores[None]).abs()
    same = (pixels <= MAX_PIXELS) & (scores <= MAX_SCORE) & (first.labels[:, None] == second.labels[None])
    pairs: list[tuple[int, int]] = []
    free = torch.ones(len(second), dtype=torch.bool)
    for i in range(len(first)):
        if (candidates := (same[i] & free).nonzero()[:, 0]).numel():
            j = int(candidates[pixels[i, candidates].argmin()])
            free[j] = False
            pairs.append((i, j))
    taken = {i for i, _ in pairs}
    only_first = [i for i in range(len(first)) if i not in taken]
    only_second: list[int] = free.nonzero()[:, 0].tolist()
    ties = _ties(first, second, only_first, only_second, nms_iou, agnostic_nms=agnostic_nms)
    ties_first, ties_second = ties[: len(only_first)], ties[len(only_first) :]
    return Difference(
        tuple(pairs),
        tuple(i for i, is_tie in zip(only_first, ties_first, strict=True) if not is_tie),
        tuple(j for j, is_tie in zip(only_second, ties_second, strict=True) if not is_tie),
        max(sum(ties_first), sum(ties_second)),
    )


def _ties(
    first: Detections,
    second: Detections,
    only_first: list[int],
    only_second: list[int],
    nms_iou: float,
    *,
    agnostic_nms: bool,
) -> list[bool]:
    """Which unmatched detections are explained by rounding.

    These are detections with the lowest score within the limit of the image, detections whose overlap with
    another equals the NMS threshold, and groups of overlapping detections whose best scores are equal.
    """
    alone = (first, only_first), (second, only_second)
    boxes, scores, labels = (
        torch.cat([getattr(found, name)[indices] for found, indices in alone])
        for name in ("boxes_xyxy", "scores", "labels")
    )
    if not len(boxes):
        return []
    ties = torch.zeros(len(boxes), dtype=torch.bool)
    if len(first) == len(second):
        ties |= scores <= torch.minimum(first.scores.min(), second.scores.min()) + EQUAL_SCORES
    ties |= torch.cat([_at_the_limit(found, indices, nms_iou, agnostic_nms) for found, indices in alone])
    of_second = torch.arange(len(boxes)) >= len(only_first)
    linked = box_iou(boxes, boxes) > nms_iou - MAX_SCORE
    linked &= (labels[:, None] == labels) | agnostic_nms
    linked &= of_second[:, None] != of_second
    linked |= torch.eye(len(boxes), dtype=torch.bool)
    for _ in range(len(boxes).bit_length()):  # transitive closure
        linked = linked.float() @ linked.float() > 0
    best, other_best = (
        torch.where(linked & side, scores, -1).amax(dim=1) for side in (of_second, ~of_second)
    )
    ties |= (best - other_best).abs() <= EQUAL_SCORES
    return [bool(is_tie) for is_tie in ties]


def _at_the_limit(found: Detections, indices: list[int], nms_iou: float, agnostic_nms: bool) -> Tensor:
    """Whether the overlap of detections with another that NMS compares them to is just at the threshold."""
    overlap = box_iou(found.boxes_xyxy[indices], found.boxes_xyxy)
    compared = (found.labels[indices][:, None] == found.labels) | agnostic_nms
    is_at_limit: Tensor = (((overlap - nms_iou).abs() < AT_LIMIT) & compared).any(dim=1)
    return is_at_limit


def _in_words(found: Detections, index: int) -> str:
    box = ", ".join(f"{side:.1f}" for side in found.boxes_xyxy[index].tolist())
    return f"{found.class_name(index)} {float(found.scores[index]):.4f} at [{box}]"


def latencies(predictors: Sequence[Predictor], image: Path) -> list[float]:
    """Median ms of each from file to detections; in turn, so that all get the same share of the machine."""
    times: list[list[float]] = [[] for _ in predictors]
    for predictor in predictors:
        predictor.predict(image, 0.0)
    began_at = time.perf_counter()
    for _ in range(ROUNDS):
        for predictor, mine in zip(predictors, times, strict=True):
            started_at = time.perf_counter()
            predictor.predict(image, 0.0)
            mine.append((time.perf_counter() - started_at) * 1000)
        if time.perf_counter() - began_at > MAX_SECONDS:
            break
    return [statistics.median(mine) for mine in times]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
