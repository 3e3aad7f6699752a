"""Find everything that is wrong with a data set before training starts, and describe what is in it.

*Problems* make a picture or a box unusable: training refuses them, or leaves exactly those out. One problem
is of the whole data set, that it has no box, and is never left out. *Warnings* are worth knowing and change
nothing. A box that sticks out of its picture by at most `MAX_OVERHANG` pixels is neither: rounding and the
1-based pixels of VOC do that to correct boxes, and training clips them.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations, Record
from fcos.data.coco_entries import Entry, entries_by_image
from fcos.data.image import NOT_FOUND, Header, read_header, upright
from fcos.data.splits import select
from fcos.data.text import number_text, shown
from fcos.errors import DatasetError
from fcos.terminal import counted

MAX_OVERHANG = 2.0  # pixels
COCO_SMALL, COCO_LARGE = 32.0**2, 96.0**2  # square pixels, limits of COCO's area ranges

Track = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True)
class Problem:
    """One picture or box that cannot be used, or a warning; or what is wrong with the whole data set.

    Attributes:
        what: what is wrong.
        where: file and line, annotation or object.
        fix: what to do.
        record: index of the picture in the annotations; None: all of them.
        box: index of the box in its picture; None: the whole picture.
    """

    what: str
    where: str
    fix: str
    record: int | None
    box: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Card:
    """What a data set holds.

    Attributes:
        boxes_per_class, images_per_class: by class name, classes without boxes included.
        boxes_per_size: COCO's small (below 32^2 square pixels), medium, large (from 96^2), by `areas`.
        sides: shortest, median, longest height and width of the pictures, pixels; None if none opens.
    """

    num_images: int
    num_boxes: int
    num_empty: int
    num_crowd: int
    num_difficult: int
    most_boxes: int
    boxes_per_class: dict[str, int]
    images_per_class: dict[str, int]
    boxes_per_size: dict[str, int]
    sides: dict[str, tuple[int, int, int]] | None


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`.

    Attributes:
        problems: what makes pictures or boxes unusable, in the order of the annotations.
        warnings: what is worth knowing.
        card: what the data set holds.
        boxes_xyxy: `(N, 4)` all boxes, in the frame of the upright pictures.
        sizes_hw: `(images, 2)` of the upright pictures, -1 where broken.
    """

    source: Path
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    card: Card
    boxes_xyxy: NDArray[np.float64] = field(repr=False)
    sizes_hw: NDArray[np.int32] = field(repr=False)

    @property
    def num_pictures(self) -> int:
        """Pictures that cannot be used at all."""
        return sum(problem.box is None and problem.record is not None for problem in self.problems)

    @property
    def num_boxes(self) -> int:
        """Boxes that cannot be used, in pictures that can."""
        return len({(p.record, p.box) for p in self.problems if p.box is not None})

    @property
    def of_all(self) -> list[Problem]:
        """What is wrong with the whole data set, which cannot be left out."""
        return [problem for problem in self.problems if problem.record is None]

    def summary(self) -> str:
        """How many pictures and boxes cannot be used, in words."""
        if self.of_all:
            return self.of_all[0].what
        counts = ((self.num_pictures, "picture", "pictures"), (self.num_boxes, "box", "boxes"))
        parts = [f"{number} {one if number == 1 else many}" for number, one, many in counts if number]
        return f"{' and '.join(parts)} cannot be used" if parts else "everything can be used"

    def raise_problems(self, *, may_lack_boxes: bool = False) -> None:
        """Refuse the data set if it has problems, naming them.

        Args:
            may_lack_boxes: there is use for images without a single box: detections of a test set.
        """
        only_crowds = self.card.num_boxes == self.card.num_crowd
        if self.of_all and not (may_lack_boxes and only_crowds):
            [problem, *_] = self.of_all
            raise DatasetError(problem.what, where=problem.where, fix=problem.fix)
        if len(self.problems) > len(self.of_all):
            fix = 'correct them, or leave them out with "skip_invalid": true (--skip-invalid)'
            if {problem.what for problem in self.problems} == {NOT_FOUND}:
                fix = (
                    "give the folder of the images (--root; in train.json root_train and root_eval), or "
                    + fix
                )
            raise DatasetError(
                self.summary(),
                where=shown([str(problem) for problem in self.problems]),
                fix=f"`fcos check {self.source} --json` lists all; {fix}",
            )


def check(
    annotations: Annotations, *, decode: bool = True, workers: int | None = None, track: Track | None = None
) -> CheckReport:
    """Look at every picture and every box.

    Args:
        annotations: as read.
        decode: decode every picture; False reads headers only: much faster, but misses truncated files.
        workers: threads that read pictures; by default one per core.
        track: shows progress: gets an iterable and its length, yields the same.
    """
    headers, broken = _read_headers(annotations, decode, workers, track)
    sizes_hw = np.array([h.size_hw if h else (-1, -1) for h in headers], np.int32).reshape(-1, 2)
    boxes_xyxy = _upright_boxes(annotations, headers)
    problems = [*broken, *_box_problems(annotations, boxes_xyxy, sizes_hw)]
    problems.sort(key=lambda p: (p.record, -1 if p.box is None else p.box))
    return CheckReport(
        source=annotations.source,
        problems=(*lack_of_boxes(annotations), *problems),
        warnings=tuple(_warnings(annotations, headers)),
        card=describe(annotations, sizes_hw),
        boxes_xyxy=boxes_xyxy,
        sizes_hw=sizes_hw,
    )


def drop_invalid(annotations: Annotations, report: CheckReport) -> Annotations:
    """The annotations without the report's problems (if any); boxes and sizes of the upright pictures."""
    keep_box = np.ones(len(annotations.labels), bool)
    for problem in report.problems:
        if problem.record is not None and problem.box is not None:
            keep_box[annotations.first_box[problem.record] + problem.box] = False
    kept_before = np.concatenate([[0], np.cumsum(keep_box)])
    cleaned = replace(
        annotations,
        boxes_xyxy=report.boxes_xyxy[keep_box],
        labels=annotations.labels[keep_box],
        is_crowd=annotations.is_crowd[keep_box],
        is_difficult=annotations.is_difficult[keep_box],
        areas=annotations.areas[keep_box],
        first_box=kept_before[annotations.first_box].astype(np.int64),
        sizes_hw=report.sizes_hw,
    )
    unusable = {p.record for p in report.problems if p.box is None and p.record is not None}
    if len(unusable) == len(annotations):
        raise DatasetError(
            "not a single picture can be used",
            where=shown([str(problem) for problem in report.problems]),
            fix="correct the folder of pictures (root_train / root_eval / --root)",
        )
    return select(cleaned, [index for index in range(len(annotations)) if index not in unusable])


def lack_of_boxes(annotations: Annotations) -> list[Problem]:
    """The problem of annotations without a box to learn from: most likely their boxes were not understood."""
    if not annotations.is_crowd.all():
        return _fractions(annotations)
    images = counted(len(annotations), "image")
    if len(annotations.labels):
        what, fix = f"{images}, but not one box besides crowd regions", "correct 'iscrowd' in the annotations"
    else:
        what = f"{images}, but not one box (taken for format {annotations.format})"
        fix = "put the annotations where the format has them, or name them in a train.json (list_train)"
    return [Problem(what, str(annotations.source), fix, record=None)]


def _fractions(annotations: Annotations) -> list[Problem]:
    """The problem of boxes that are fractions of their images where pixels are expected: none is a pixel."""
    boxes = annotations.boxes_xyxy
    within_a_pixel = annotations.format != "yolo" and ((boxes >= 0) & (boxes <= 1)).all()
    if not within_a_pixel or (boxes == np.floor(boxes)).all():
        return []
    what = "every box lies within one pixel: the coordinates are fractions of the image, not pixels"
    fix = "multiply them by the width and height of the images"
    return [Problem(what, str(annotations.source), fix, record=None)]


def require_boxes(annotations: Annotations) -> None:
    """Refuse annotations without a box to learn from, or to measure on."""
    for problem in lack_of_boxes(annotations):
        raise DatasetError(problem.what, where=problem.where, fix=problem.fix)


def describe(annotations: Annotations, sizes_hw: NDArray[np.int32] | None = None) -> Card:
    """Count what is in the annotations; `sizes_hw` as in `CheckReport`, else as stated."""
    sizes = annotations.sizes_hw if sizes_hw is None else sizes_hw
    counts = np.diff(annotations.first_box)
    known = (annotations.labels >= 0) & (annotations.labels < annotations.num_classes)
    labels, images = annotations.labels[known], _image_of_box(annotations)[known]
    boxes_of = np.bincount(labels, minlength=annotations.num_classes)
    # A pair of picture and class as one number, so that each counts once.
    pairs = np.unique(images * max(annotations.num_classes, 1) + labels)
    images_of = np.bincount(pairs % max(annotations.num_classes, 1), minlength=annotations.num_classes)
    areas = annotations.areas[np.isfinite(annotations.areas)]
    size_range = np.digitize(areas, [COCO_SMALL, COCO_LARGE])
    opened = sizes[sizes[:, 0] > 0]
    return Card(
        num_images=len(annotations),
        num_boxes=len(annotations.labels),
        num_empty=int((counts == 0).sum()),
        num_crowd=int(annotations.is_crowd.sum()),
        num_difficult=int(annotations.is_difficult.sum()),
        most_boxes=int(counts.max(initial=0)),
        boxes_per_class=_by_name(annotations, boxes_of),
        images_per_class=_by_name(annotations, images_of),
        boxes_per_size={
            name: int((size_range == place).sum()) for place, name in enumerate(("small", "medium", "large"))
        },
        sides={
            name: (int(side.min()), int(np.median(side)), int(side.max()))
            for name, side in zip(("height", "width"), opened.T, strict=True)
        }
        if len(opened)
        else None,
    )


def common_pictures(first: Annotations, second: Annotations) -> list[tuple[Path, Path]]:
    """Pictures that are in both, by path or by content.

    Only files of equal size are compared by content, so this stays cheap for large data sets.
    """
    by_path = {os.path.realpath(record.path): record.path for record in first}
    by_size: dict[int, list[Path]] = {}
    for path in by_path.values():
        by_size.setdefault(_file_size(path), []).append(path)
    pairs = []
    digests: dict[Path, bytes] = {}
    for record in second:
        same = by_path.get(os.path.realpath(record.path))
        size = _file_size(record.path)
        if same is None and size > 0 and size in by_size:
            same = next(
                (p for p in by_size[size] if _digest(p, digests) == _digest(record.path, digests)), None
            )
        if same is not None:
            pairs.append((same, record.path))
    return pairs


def _read_headers(
    annotations: Annotations, decode: bool, workers: int | None, track: Track | None
) -> tuple[list[Header | None], list[Problem]]:
    paths = [record.path for record in annotations]
    once = list(dict.fromkeys(paths))  # a list may name an image a hundred thousand times
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        headers: Iterable[Header | DatasetError] = pool.map(partial(_try_header, decode=decode), once)
        of_path = dict(zip(once, track(headers, len(once)) if track else headers, strict=True))
    results = [of_path[path] for path in paths]
    broken = []
    for index, result in enumerate(results):
        if isinstance(result, DatasetError):
            where = f"{annotations[index].where}, image '{result.where}'"
            broken.append(Problem(result.what, where, result.fix, index))
    return [result if isinstance(result, Header) else None for result in results], broken


def _try_header(path: Path, *, decode: bool) -> Header | DatasetError:
    try:
        return read_header(path, decode=decode)
    except DatasetError as error:
        return error


def _upright_boxes(annotations: Annotations, headers: Sequence[Header | None]) -> NDArray[np.float64]:
    boxes = annotations.boxes_xyxy.copy()
    for index, header in enumerate(headers):
        if header is not None and header.swaps_sides:
            place = slice(annotations.first_box[index], annotations.first_box[index + 1])
            boxes[place] = upright(annotations[index], header).boxes_xyxy
    return boxes


def _box_problems(
    annotations: Annotations, boxes_xyxy: NDArray[np.float64], sizes_hw: NDArray[np.int32]
) -> Iterator[Problem]:
    """Problems of boxes in pictures that open: all are tested at once, then the few bad ones told."""
    image_of_box = _image_of_box(annotations)
    height, width = sizes_hw[image_of_box].astype(np.float64).T
    x1, y1, x2, y2 = boxes_xyxy.T
    with np.errstate(invalid="ignore"):
        overhang = np.max([-x1, -y1, x2 - width, y2 - height], axis=0)
        inside_w = np.minimum(x2, width) - np.maximum(x1, 0)
        inside_h = np.minimum(y2, height) - np.maximum(y1, 0)
    label_known = (annotations.labels >= 0) & (annotations.labels < annotations.num_classes)
    # The first kind that holds is told.
    kinds = {
        "not finite": ~np.isfinite(boxes_xyxy).all(axis=1),
        "class": ~label_known,
        "inverted": (x2 < x1) | (y2 < y1),
        "no area": (x2 == x1) | (y2 == y1),
        "outside": (overhang > MAX_OVERHANG) | (inside_w <= 0) | (inside_h <= 0),
    }
    bad = np.any(list(kinds.values()), axis=0) & (height > 0)
    entries = _LazyEntries(annotations)
    for box in np.flatnonzero(bad):
        index = int(image_of_box[box])
        kind = next(name for name, holds in kinds.items() if holds[box])
        place = int(box - annotations.first_box[index])
        record = annotations[index]
        where, entry = entries.where(record, place)
        what = _told(
            kind, boxes_xyxy[box], record, annotations, int(annotations.labels[box]), sizes_hw[index], entry
        )
        yield Problem(what, where, "correct the box, or leave it out", index, place)


def _told(
    kind: str,
    box_xyxy: NDArray[np.float64],
    record: Record,
    annotations: Annotations,
    label: int,
    size_hw: NDArray[np.int32],
    entry: Entry | None,
) -> str:
    box = f"[{', '.join(map(number_text, box_xyxy.tolist()))}]"
    if kind == "class":
        return _told_class(annotations, label, entry)
    if kind == "outside":
        return f"box {box} sticks out of the picture (width {size_hw[1]}, height {size_hw[0]})"
    return {
        "not finite": f"box {box} is not of finite numbers",
        "inverted": f"box {box} is inverted: a maximum is below its minimum",
        "no area": f"box {box} has no area",
    }[kind]


def _told_class(annotations: Annotations, label: int, entry: Entry | None) -> str:
    if entry is not None:
        return f"category_id {entry.get('category_id')} is not among the categories"
    if annotations.format not in ("list", "yolo"):
        return "the class is not among the categories"
    first = 1 if annotations.format == "list" else 0
    last = annotations.num_classes - 1 + first
    given = f"class id {label + first}" if label >= 0 or annotations.format == "list" else "the class id"
    if annotations.num_classes == 1:
        return f"{given} is not {first}, that of the only class"
    return f"{given} is not one of the {annotations.num_classes} classes ({first} to {last})"


class _LazyEntries:
    """Says where a box stands; for COCO with the annotation's id, for which the file is read a second time.

    The ids are not kept in `Annotations` because only messages need them, and most data sets have no problem.
    """

    def __init__(self, annotations: Annotations) -> None:
        self._annotations = annotations
        self._entries: dict[int, list[Entry]] | None = None

    def where(self, record: Record, box: int) -> tuple[str, Entry | None]:
        image = f"image '{record.path.name}'"
        annotations = self._annotations
        if annotations.format == "coco" and annotations.source.is_file():
            self._entries = self._entries or entries_by_image(annotations.source)
            entries = self._entries.get(record.image_id, [])
            if len(entries) == len(record.labels):
                return f"{annotations.source}, annotation {entries[box].get('id')}, {image}", entries[box]
        word = "object" if annotations.format == "voc" else "box"
        return f"{record.where}, {word} {box + 1}, {image}", None


def _warnings(annotations: Annotations, headers: Sequence[Header | None]) -> Iterator[Problem]:
    for note in annotations.notes:
        yield Problem(note, str(annotations.source), "", record=None)
    if len(annotations.labels) and annotations.is_difficult.all():
        what, fix = (
            "all boxes are difficult: evaluation counts none of them",
            "correct 'difficult' or 'ignore'",
        )
        yield Problem(what, str(annotations.source), fix, record=None)
    first_of: dict[Path, int] = {}
    for index, (record, header) in enumerate(zip(annotations, headers, strict=True)):
        first = first_of.setdefault(record.path, index)
        if first != index:
            what = f"picture '{record.path.name}' is listed a second time"
            yield Problem(what, record.where, f"it is also at {annotations[first].where}: merge them", index)
        if header and record.size_hw and sorted(record.size_hw) != sorted(header.raw_size_hw):
            (height, width), (true_height, true_width) = record.size_hw, header.size_hw
            what = (
                f"stated size {width} x {height}, but '{record.path.name}' has {true_width} x {true_height}"
            )
            yield Problem(what, record.where, "make sure that the boxes belong to this picture", index)


def _image_of_box(annotations: Annotations) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(annotations)), np.diff(annotations.first_box))


def _by_name(annotations: Annotations, counts: NDArray[np.int64]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name, count in zip(annotations.class_names, counts.tolist(), strict=True):
        total[name] += count  # two categories of a COCO file may share a name
    return dict(total)


def _file_size(path: Path) -> int:
    return path.stat().st_size if os.path.isfile(path) else -1


def _digest(path: Path, known: dict[Path, bytes]) -> bytes:
    if path not in known:
        known[path] = hashlib.blake2b(path.read_bytes()).digest()
    return known[path]
