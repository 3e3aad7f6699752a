"""Whether an exported file finds what the network finds, how long both take, and how large they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from fcos.predict.detections import Detections
from fcos.predict.predictor import Predictor

MOST_PIXELS = 0.5  # that a side of a box may differ by, original pixels
MOST_SCORE = 1e-3
EQUAL_SCORES = 1e-5  # what two computations in float32 differ by
AT_LIMIT = 1e-4  # the same for overlaps
ROUNDS = 7
MOST_SECONDS = 60.0  # of timing
SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Check:
    """An exported file beside the network.

    Attributes:
        num_pictures: that both looked at.
        num_detections: of the network.
        num_same: that the file found too.
        num_ties: where equal scores, and so the last digits, decided between overlapping boxes.
        most_pixels: by which a side of a box differs, of those.
        most_score: by which a score differs, of those.
        problems: detections that only one of them has, in words.
        before_ms: median time from file to detections, of the network.
        after_ms: of the exported file.
        before_bytes: size of the model file.
        after_bytes: of the exported file.
    """

    num_pictures: int
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

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """Two sets of detections of one picture.

    Attributes:
        pairs: index in the first and in the second, of the same.
        only_first: index of those that the second lacks.
        only_second: index of those that the first lacks.
        num_ties: of the others, that the last digits decided.
    """

    pairs: tuple[tuple[int, int], ...]
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    num_ties: int


def check_export(before: Predictor, after: Predictor, pictures: Sequence[Path]) -> Check:
    """Compare on pictures; the time is that of the first."""
    num_detections = num_same = num_ties = 0
    most_pixels = most_score = 0.0
    problems: list[str] = []
    for path in pictures:
        first, second = before.predict(path, 0.0), after.predict(path, 0.0)
        same = compare(first, second, before.config.nms_iou, agnostic_nms=before.config.agnostic_nms)
        num_detections += len(first)
        num_same += len(same.pairs)
        num_ties += same.num_ties
        for i, j in same.pairs:
            most_pixels = max(most_pixels, float((first.boxes_xyxy[i] - second.boxes_xyxy[j]).abs().max()))
            most_score = max(most_score, float((first.scores[i] - second.scores[j]).abs()))
        problems += [f"{path.name}: only PyTorch found {_say(first, i)}" for i in same.only_first]
        problems += [f"{path.name}: only the file found {_say(second, j)}" for j in same.only_second]
    before_ms, after_ms = latencies([before, after], pictures[0])
    return Check(
        len(pictures),
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
    """Which detections are the same: class, box to `MOST_PIXELS`, score to `MOST_SCORE`.

    Two computations differ in the last digits, and where scores or overlaps are equal up to these, they
    decide: which of two overlapping boxes NMS keeps (and then which of their neighbours), and which
    detections are the last of a full picture. Such detections are ties.
    """
    pixels = (first.boxes_xyxy[:, None] - second.boxes_xyxy[None]).abs().amax(dim=2)
    scores = (first.scores[:, None] - second.scores[None]).abs()
    same = (pixels <= MOST_PIXELS) & (scores <= MOST_SCORE) & (first.labels[:, None] == second.labels[None])
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
    ties_first, ties_second = _ties(first, second, only_first, only_second, nms_iou, agnostic_nms)
    return Difference(
        tuple(pairs),
        tuple(i for i in only_first if i not in ties_first),
        tuple(j for j in only_second if j not in ties_second),
        max(len(ties_first), len(ties_second)),
    )


def _ties(
    first: Detections,
    second: Detections,
    only_first: list[int],
    only_second: list[int],
    nms_iou: float,
    agnostic_nms: bool,
) -> tuple[set[int], set[int]]:
    """Those that only one has, and that follow from equal scores.

    Groups of overlapping ones that begin with equal scores, what overlaps another by just the limit of NMS,
    and what has the score of the last of a full picture.
    """
    overlap = box_iou(first.boxes_xyxy[only_first], second.boxes_xyxy[only_second])
    one_class = first.labels[only_first][:, None] == second.labels[only_second][None]
    competes = (overlap > nms_iou - MOST_SCORE) & (one_class | agnostic_nms)
    last = 0.0
    if len(first) == len(second) > 0:
        last = float(torch.minimum(first.scores.min(), second.scores.min())) + EQUAL_SCORES
    ties_first = {i for i in only_first if first.scores[i] <= last}
    ties_second = {j for j in only_second if second.scores[j] <= last}
    ties_first |= {i for i in only_first if _at_the_limit(first, i, nms_iou, agnostic_nms)}
    ties_second |= {j for j in only_second if _at_the_limit(second, j, nms_iou, agnostic_nms)}
    for rows, columns in _groups(competes):
        mine, theirs = [only_first[row] for row in rows], [only_second[column] for column in columns]
        if abs(float(first.scores[mine].max() - second.scores[theirs].max())) <= EQUAL_SCORES:
            ties_first.update(mine)
            ties_second.update(theirs)
    return ties_first, ties_second


def _at_the_limit(found: Detections, index: int, nms_iou: float, agnostic_nms: bool) -> bool:
    """Whether a detection overlaps another that NMS compares it with by just the limit."""
    overlap = box_iou(found.boxes_xyxy[index : index + 1], found.boxes_xyxy)[0]
    compared = (found.labels == found.labels[index]) | agnostic_nms
    return bool((((overlap - nms_iou).abs() < AT_LIMIT) & compared).any())


def _groups(linked: Tensor) -> list[tuple[list[int], list[int]]]:
    """Rows and columns of a table that are linked with each other, directly or through others."""
    groups = []
    rows_left = set(range(linked.shape[0]))
    while rows_left:
        rows, columns = {min(rows_left)}, set[int]()
        while True:
            more_columns = set(linked[sorted(rows)].any(dim=0).nonzero()[:, 0].tolist())
            more_rows = rows | set(linked[:, sorted(more_columns)].any(dim=1).nonzero()[:, 0].tolist())
            if (more_rows, more_columns) == (rows, columns):
                break
            rows, columns = more_rows, more_columns
        rows_left -= rows
        if columns:
            groups.append((sorted(rows), sorted(columns)))
    return groups


def _say(found: Detections, index: int) -> str:
    box = ", ".join(f"{side:.1f}" for side in found.boxes_xyxy[index].tolist())
    return f"{found.class_name(index)} {float(found.scores[index]):.4f} at [{box}]"


def latencies(detectors: Sequence[Predictor], picture: Path, rounds: int = ROUNDS) -> list[float]:
    """Median ms of each from file to detections; in turn, so that all see the same machine."""
    times: list[list[float]] = [[] for _ in detectors]
    for detector in detectors:
        detector.predict(picture, 0.0)
    began_at = time.perf_counter()
    for _ in range(rounds):
        for detector, mine in zip(detectors, times, strict=True):
            started_at = time.perf_counter()
            detector.predict(picture, 0.0)
            mine.append((time.perf_counter() - started_at) * 1000)
        if time.perf_counter() - began_at > MOST_SECONDS:
            break
    return [statistics.median(mine) for mine in times]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
