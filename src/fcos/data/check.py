"""Find all problems of a data set before training starts, and summarize it.

*Problems* make an image or a box unusable: training rejects them, or skips exactly those; a data set without
any box is a problem that cannot be skipped. *Warnings* are worth knowing and change nothing. A box that
extends beyond its image by at most `MAX_OVERHANG` pixels is neither: rounding and the 1-based pixels of VOC
do that to correct boxes, and training clips them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations, Record, select
from fcos.data.image import NOT_FOUND, Header, read_header, upright
from fcos.data.image_files import names_in
from fcos.data.registry import DataFormat, format_named
from fcos.data.strips import read_large_header
from fcos.data.summary import Counts, count
from fcos.data.text import number_text, shown
from fcos.errors import DatasetError
from fcos.machine import num_cores
from fcos.terminal import counted

MAX_OVERHANG = 2.0  # pixels
MOST_AT_ONCE = 16  # images decoded at once: containers often see more cores than they may use

Track = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True)
class Problem:
    """One image or box that cannot be used, a warning, or a problem of the whole data set."""

    what: str
    where: str  # file and line, annotation or object
    fix: str
    record: int | None  # index of the image in the annotations; None: all of them
    box: int | None = None  # index of the box in its image; None: the whole image

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`."""

    source: Path
    problems: tuple[Problem, ...]  # unusable images and boxes, in the order of the annotations
    warnings: tuple[Problem, ...]  # worth knowing
    counts: Counts
    boxes_xyxy: NDArray[np.float64] = field(repr=False)  # (N, 4), in the frame of the upright images
    sizes_hw: NDArray[np.int32] = field(repr=False)  # (images, 2) of the upright images, -1 where broken

    @property
    def num_images(self) -> int:
        """Images that cannot be used at all."""
        return sum(problem.box is None and problem.record is not None for problem in self.problems)

    @property
    def num_boxes(self) -> int:
        """Boxes that cannot be used, in images that can."""
        return len({(p.record, p.box) for p in self.problems if p.box is not None})

    @property
    def of_all(self) -> list[Problem]:
        """Problems of the whole data set, which cannot be skipped."""
        return [problem for problem in self.problems if problem.record is None]

    def summary(self) -> str:
        """How many images and boxes cannot be used, in words."""
        if self.of_all:
            return self.of_all[0].what
        counts = ((self.num_images, "image", ""), (self.num_boxes, "box", "boxes"))
        parts = [counted(*count) for count in counts if count[0]]
        return f"{' and '.join(parts)} cannot be used" if parts else "everything can be used"

    def raise_problems(self, *, may_lack_boxes: bool = False) -> None:
        """Raise an error that lists the problems, if there are any; a test set `may_lack_boxes`."""
        only_crowds = self.counts.num_boxes == self.counts.num_crowd
        if self.of_all and not (may_lack_boxes and only_crowds):
            [problem, *_] = self.of_all
            raise DatasetError(problem.what, where=problem.where, fix=problem.fix)
        if len(self.problems) > len(self.of_all):
            fix = 'correct them, or skip them: "skip_invalid": true (fcos eval --skip-invalid)'
            if all(problem.what == NOT_FOUND for problem in self.problems):
                fix = f"give the folder of images (--root; in train.json root_train and root_eval), or {fix}"
            raise DatasetError(
                self.summary(),
                where=shown([str(problem) for problem in self.problems]),
                fix=f"`fcos check {self.source} --json` lists all; {fix}",
            )


def check(
    annotations: Annotations, *, decode: bool = True, on_tiles: bool = False, track: Track | None = None
) -> CheckReport:
    """Check every image and every box.

    Args:
        decode: decode every image; False reads headers only: much faster, but misses truncated files.
        on_tiles: the images are predicted on tiles, so they may be of any size: large ones are read in
            strips.
        track: shows progress: gets an iterable and its length, yields the same.
    """
    read = read_large_header if on_tiles else read_header
    headers, broken = _read_headers(annotations, partial(read, decode=decode), track)
    sizes_hw = np.array([h.size_hw if h else (-1, -1) for h in headers], np.int32).reshape(-1, 2)
    boxes_xyxy = annotations.boxes_xyxy.copy()
    for index, header in enumerate(headers):
        if header is not None and header.swaps_sides:
            place = slice(annotations.first_box[index], annotations.first_box[index + 1])
            boxes_xyxy[place] = upright(annotations[index], header).boxes_xyxy
    problems = [*broken, *_box_problems(annotations, boxes_xyxy, sizes_hw)]
    problems.sort(key=lambda p: (p.record, -1 if p.box is None else p.box))
    return CheckReport(
        source=annotations.source,
        problems=(*lack_of_boxes(annotations), *problems),
        warnings=tuple(_warnings(annotations, headers)),
        counts=count(annotations, sizes_hw),
        boxes_xyxy=boxes_xyxy,
        sizes_hw=sizes_hw,
    )


def valid_part(annotations: Annotations, *, skip_invalid: bool, on_tiles: bool = False) -> Annotations:
    """The usable images and boxes of evaluation data; problems are errors unless `skip_invalid`."""
    report = check(annotations, on_tiles=on_tiles)
    if not skip_invalid:
        report.raise_problems(may_lack_boxes=True)
    return drop_invalid(annotations, report)


def drop_invalid(annotations: Annotations, report: CheckReport) -> Annotations:
    """The annotations without the report's problems (if any); boxes and sizes of the upright images."""
    keep_box = np.ones(len(annotations.labels), bool)
    for problem in report.problems:
        if problem.record is not None and problem.box is not None:
            keep_box[annotations.first_box[problem.record] + problem.box] = False
    unusable = {p.record for p in report.problems if p.box is None and p.record is not None}
    if len(unusable) == len(annotations):
        raise DatasetError(
            "none of the images can be used",
            where=shown([str(problem) for problem in report.problems]),
            fix="correct the folder of images (root_train / root_eval / --root)",
        )
    usable = [index for index in range(len(annotations)) if index not in unusable]
    cleaned = replace(annotations, boxes_xyxy=report.boxes_xyxy, sizes_hw=report.sizes_hw)
    return select(cleaned, usable, keep_box)


def lack_of_boxes(annotations: Annotations) -> list[Problem]:
    """The problem of annotations without a usable box: most likely the boxes were misread."""
    images, boxes = counted(len(annotations), "image"), annotations.boxes_xyxy
    if len(boxes) == 0:
        what = f"{images}, but no boxes (read as format {annotations.format})"
        fix = "put the annotations where the format expects them, or set list_train in a train.json"
    elif annotations.is_crowd.all():
        what, fix = f"{images}, but no boxes other than crowd regions", "correct 'iscrowd' in the annotations"
    elif format_named(annotations.format).in_pixels and _all_in_fractions(boxes):
        what = "every box is smaller than a pixel: the coordinates seem to be normalized to [0, 1]"
        fix = "multiply them by the width and height of the images"
    else:
        return []
    return [Problem(what, str(annotations.source), fix, record=None)]


def require_boxes(annotations: Annotations) -> None:
    """Reject annotations without a box to train or evaluate on."""
    for problem in lack_of_boxes(annotations):
        raise DatasetError(problem.what, where=problem.where, fix=problem.fix)


def _read_headers(
    annotations: Annotations, read: Callable[[Path], Header], track: Track | None
) -> tuple[list[Header | None], list[Problem]]:
    def try_header(path: Path) -> Header | DatasetError:
        try:
            return read(path)
        except DatasetError as error:
            return error

    @cache
    def alike(folder: Path) -> dict[str, str]:
        return {_spelling(name): name for name in names_in(folder)}

    paths = [record.path for record in annotations]
    once = list(dict.fromkeys(paths))  # a list may name an image a hundred thousand times
    with ThreadPoolExecutor(min(num_cores(), MOST_AT_ONCE)) as pool:
        headers: Iterable[Header | DatasetError] = pool.map(try_header, once)
        of_path = dict(zip(once, track(headers, len(once)) if track else headers, strict=True))
    results = [of_path[path] for path in paths]
    broken = []
    for index, result in enumerate(results):
        if isinstance(result, DatasetError):
            where = f"{annotations[index].where}, image '{result.where}'"
            what = result.what
            if what == NOT_FOUND and (other := alike(paths[index].parent).get(_spelling(paths[index].name))):
                what = (
                    f"{NOT_FOUND}, but '{other}' exists, with different letter case or Unicode normalization"
                )
            broken.append(Problem(what, where, result.fix, index))
    return [result if isinstance(result, Header) else None for result in results], broken


def _have_same_boxes(first: Record, second: Record) -> bool:
    """Whether two records have the same boxes and classes, in any order."""
    ours, theirs = (np.column_stack([record.boxes_xyxy, record.labels]) for record in (first, second))
    return np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], equal_nan=True)


def _spelling(name: str) -> str:
    """A name normalized for what file systems and copies change: letter case, and Unicode composition."""
    return unicodedata.normalize("NFC", name).casefold()


def _box_problems(
    annotations: Annotations, boxes_xyxy: NDArray[np.float64], sizes_hw: NDArray[np.int32]
) -> Iterator[Problem]:
    """Problems of boxes in readable images: all are tested at once, then the few bad ones described."""
    image_of = annotations.image_of_box
    height, width = sizes_hw[image_of].astype(np.float64).T
    x1, y1, x2, y2 = boxes_xyxy.T
    with np.errstate(invalid="ignore"):
        overhang = np.max([-x1, -y1, x2 - width, y2 - height], axis=0)
        inside_w = np.minimum(x2, width) - np.maximum(x1, 0)
        inside_h = np.minimum(y2, height) - np.maximum(y1, 0)
    # Only the first kind that applies to a box is reported.
    kinds = {
        "has non-finite coordinates": ~np.isfinite(boxes_xyxy).all(axis=1),
        "class": ~annotations.has_known_class,
        "is inverted: a maximum is below its minimum": (x2 < x1) | (y2 < y1),
        "has no area": (x2 == x1) | (y2 == y1),
        "extends beyond the image": (overhang > MAX_OVERHANG) | (inside_w <= 0) | (inside_h <= 0),
    }
    format = format_named(annotations.format)
    if format.in_pixels and not _all_in_fractions(boxes_xyxy):  # else reported once, for the whole data set
        kinds["seems to be normalized to [0, 1], not in pixels"] = _in_fractions(boxes_xyxy)
    bad = np.flatnonzero(np.any(list(kinds.values()), axis=0) & (height > 0))
    place_of = format.box_places(annotations) if format.box_places and len(bad) else None
    for box in bad:
        index = int(image_of[box])
        kind = next(name for name, holds in kinds.items() if holds[box])
        number = int(box - annotations.first_box[index])
        record = annotations[index]
        where, what = (place_of and place_of(record, number)) or (
            f"{record.where}, {format.box_word} {number + 1}",
            _unknown_class(int(annotations.labels[box]), annotations.num_classes, format),
        )
        if kind != "class":
            what = f"box [{', '.join(map(number_text, boxes_xyxy[box].tolist()))}] {kind}"
        if kind.startswith("extends"):
            what += f" (width {sizes_hw[index][1]}, height {sizes_hw[index][0]})"
        where = f"{where}, image '{record.path.name}'"
        yield Problem(what, where, "correct the box, or remove it", index, number)


def _all_in_fractions(boxes_xyxy: NDArray[np.float64]) -> bool:
    is_within = ((boxes_xyxy >= 0) & (boxes_xyxy <= 1)).all()
    return bool(is_within and _in_fractions(boxes_xyxy).any())  # some may be the whole image: 0, 0, 1, 1


def _in_fractions(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which boxes lie within the first pixel, but not exactly on its corners."""
    is_within = ((boxes_xyxy >= 0) & (boxes_xyxy <= 1)).all(axis=1)
    return np.asarray(is_within & (boxes_xyxy != np.floor(boxes_xyxy)).any(axis=1))


def _unknown_class(label: int, num_classes: int, format: DataFormat) -> str:
    first = format.first_class_id
    if first is None:
        return "the class is not among the categories"
    # A reader may give the label -1 to an unknown id; where ids begin at 1, -1 is also the label of id 0.
    given = f"class id {label + first}" if label + first >= 0 or first else "the class id"
    if num_classes == 1:
        return f"{given} is not {first}, the only class"
    return f"{given} is not one of the {num_classes} classes ({first} to {num_classes - 1 + first})"


def _warnings(annotations: Annotations, headers: Sequence[Header | None]) -> Iterator[Problem]:
    for note in annotations.notes:
        yield Problem(note, str(annotations.source), "", record=None)
    first_like: dict[str, str] = {}
    for name in annotations.class_names:
        other = first_like.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            what = f"classes '{other}' and '{name}' differ only in letter case or spaces, and count as two"
            yield Problem(what, str(annotations.source), "rename one if they are the same", record=None)
    if len(annotations.labels) and annotations.is_difficult.all():
        what = "all boxes are difficult, so evaluation ignores them"
        yield Problem(what, str(annotations.source), "correct 'difficult' or 'ignore'", record=None)
    if repeated := _repeated_boxes(annotations):
        yield Problem(*repeated, "remove all but one of them", record=None)
    first_of: dict[Path, int] = {}
    for index, (record, header) in enumerate(zip(annotations, headers, strict=True)):
        first_index = first_of.setdefault(record.path, index)
        if first_index != index:
            first = annotations[first_index]
            what = f"image '{record.path.name}' is listed twice"
            if not _have_same_boxes(first, record):
                what += ", with different boxes: in each copy, the other's boxes count as background"
            yield Problem(what, record.where, f"merge it with {first.where}", index)
        if header and record.size_hw and sorted(record.size_hw) != sorted(header.raw_size_hw):
            (height, width), (true_height, true_width) = record.size_hw, header.size_hw
            what = f"stated size {width} x {height}, but '{record.path.name}' is {true_width} x {true_height}"
            yield Problem(what, record.where, "make sure that the boxes belong to this image", index)


def _repeated_boxes(annotations: Annotations) -> tuple[str, str] | None:
    """How many boxes are duplicates (same image, class and coordinates), and where the first is."""
    columns = (annotations.image_of_box, annotations.labels, *annotations.boxes_xyxy.T)
    order = np.lexsort(columns[::-1])
    rows = np.column_stack(columns)[order]
    is_repeated = (rows[1:] == rows[:-1]).all(axis=1)
    if not is_repeated.any():
        return None
    box = order[1:][is_repeated].min()
    record = annotations[int(annotations.image_of_box[box])]
    number = counted(int(is_repeated.sum()), "box is", "boxes are")
    what = f"{number} duplicated (same image, class and coordinates), for example in '{record.path.name}'"
    return what, record.where
