"""The annotations of a data set in memory, independent of their file format.

All readers return `Annotations`, and everything else uses it. Boxes are kept in a few arrays, not in an
object per box: a million boxes stay small, and forked loader workers share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcos.data.numbers import cut
from fcos.errors import DatasetError

MAX_NAME_BYTES = 4096  # of a path; operating systems reject longer ones
BOX_COLUMNS = ("boxes_xyxy", "labels", "is_crowd", "is_difficult", "areas")  # an element or row per box
MAX_NAMES_BYTES = 2**30  # of all names together, each padded to the longest


@dataclass(frozen=True)
class Record:
    """One image with its boxes.

    Attributes:
        path: the image file.
        boxes_xyxy: `(N, 4)` float64, xyxy, pixels of the upright (EXIF applied) original image.
        labels: `(N,)` int64, 0-based and contiguous.
        image_id: the id in results (COCO: the id in the file; other formats: 1, 2, ...).
        is_crowd: `(N,)` bool, COCO's `iscrowd`; never a training target.
        is_difficult: `(N,)` bool, Pascal VOC's `difficult`; a training target, ignored in evaluation.
        areas: `(N,)` float64, square pixels; COCO's `area` (of the segment), elsewhere width * height.
        size_hw: height, width of the upright image as stated in the annotation file, or None.
        where: file (and line, or annotation) that this record was read from, for messages.
    """

    path: Path
    boxes_xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    image_id: int
    is_crowd: NDArray[np.bool_]
    is_difficult: NDArray[np.bool_]
    areas: NDArray[np.float64]
    size_hw: tuple[int, int] | None = None
    where: str = ""

    @staticmethod
    def make(
        path: Path,
        boxes_xyxy: Sequence[Sequence[float | int]] | NDArray[np.float64],
        labels: Sequence[int] | NDArray[np.int64],
        image_id: int,
        *,
        is_crowd: Sequence[bool] | NDArray[np.bool_] | None = None,
        is_difficult: Sequence[bool] | NDArray[np.bool_] | None = None,
        areas: Sequence[float] | NDArray[np.float64] | None = None,
        size_hw: tuple[int, int] | None = None,
        where: str = "",
    ) -> Record:
        """A record from lists, with defaults for fields that a format does not have."""
        boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
        num_boxes = len(boxes)
        box_areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        unmarked = np.zeros(num_boxes, bool)
        return Record(
            path=Path(path),
            boxes_xyxy=boxes,
            labels=np.asarray(labels, dtype=np.int64).reshape(num_boxes),
            image_id=image_id,
            is_crowd=unmarked if is_crowd is None else np.asarray(is_crowd, bool),
            is_difficult=unmarked if is_difficult is None else np.asarray(is_difficult, bool),
            areas=box_areas if areas is None else np.asarray(areas, dtype=np.float64),
            size_hw=size_hw,
            where=where,
        )


@dataclass(frozen=True)
class Annotations(Sequence[Record]):
    """A whole data set: a sequence of `Record`, stored as arrays.

    Attributes:
        class_names: name of each label, without background.
        category_ids: each label's id in the file (COCO's ids have gaps); 1, 2, ... in other formats.
        source: the file or folder that was read.
        format: name of the format that it was read from.
        notes: for `check` to report, such as images without annotations.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    source: Path
    format: str
    boxes_xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    is_difficult: NDArray[np.bool_]
    areas: NDArray[np.float64]
    first_box: NDArray[np.int64]  # (images + 1,): boxes of image i are first_box[i] : first_box[i + 1]
    image_ids: NDArray[np.int64]
    sizes_hw: NDArray[np.int32]  # (images, 2), -1 where unknown
    _paths: NDArray[Any] = field(repr=False)  # utf-8, fixed width: no Python object per image
    _wheres: NDArray[Any] | None = field(repr=False)  # None: derived from the source and the image id
    _folder: Path = field(default=Path(), repr=False)  # that the paths are relative to
    notes: tuple[str, ...] = ()

    @staticmethod
    def from_records(
        records: Iterable[Record],
        class_names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
        source: Path,
        format: str,
        notes: Sequence[str] = (),
    ) -> Annotations:
        """Pack records into arrays; order is kept."""
        records = list(records)
        ids = tuple(range(1, len(class_names) + 1)) if category_ids is None else tuple(category_ids)
        nothing = Record.make(Path(), [], [], 0)
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(record, name) for record in (nothing, *records)])
            for name in BOX_COLUMNS
        }
        counts = [len(record.labels) for record in records]
        return Annotations(
            class_names=tuple(class_names),
            category_ids=ids,
            source=Path(source),
            format=format,
            **columns,
            first_box=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            image_ids=np.array([record.image_id for record in records], np.int64),
            sizes_hw=np.array([record.size_hw or (-1, -1) for record in records], np.int32).reshape(-1, 2),
            _paths=pack_names([str(record.path) for record in records], source),
            _wheres=pack_names([record.where for record in records], source),
            notes=tuple(notes),
        )

    @property
    def is_counted(self) -> NDArray[np.bool_]:
        """`(boxes,)` whether evaluation expects a box to be detected: neither crowd nor difficult."""
        return ~self.is_crowd & ~self.is_difficult

    @property
    def has_known_class(self) -> NDArray[np.bool_]:
        """`(boxes,)` whether a label is a valid class; `check` reports the others."""
        return (self.labels >= 0) & (self.labels < self.num_classes)

    @property
    def image_of_box(self) -> NDArray[np.int64]:
        """`(boxes,)` the index of each box's image."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_box))

    @property
    def num_classes(self) -> int:
        """Number of classes, without background."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        boxes = slice(int(self.first_box[index]), int(self.first_box[index + 1]))
        height, width = (int(side) for side in self.sizes_hw[index])
        where = f"{self.source}, image {self.image_ids[index]}"
        if self._wheres is not None:
            where = unpack_name(self._wheres[index])
        return Record(
            path=self._folder / unpack_name(self._paths[index]),
            boxes_xyxy=self.boxes_xyxy[boxes],
            labels=self.labels[boxes],
            image_id=int(self.image_ids[index]),
            is_crowd=self.is_crowd[boxes],
            is_difficult=self.is_difficult[boxes],
            areas=self.areas[boxes],
            size_hw=None if height < 0 else (height, width),
            where=where,
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))


def select(
    annotations: Annotations, indices: Sequence[int], keep_box: NDArray[np.bool_] | None = None
) -> Annotations:
    """The images at these indices, in this order, with all their boxes or only those in `keep_box`."""
    chosen = np.asarray(indices, np.int64)
    first, last = annotations.first_box[chosen], annotations.first_box[chosen + 1]
    counts = last - first
    first_box = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    boxes = np.arange(first_box[-1]) + np.repeat(first - first_box[:-1], counts)
    if keep_box is not None:
        kept = keep_box[boxes]
        first_box, boxes = np.concatenate([[0], np.cumsum(kept)])[first_box], boxes[kept]
    return replace(
        annotations,
        **{name: getattr(annotations, name)[boxes] for name in BOX_COLUMNS},
        first_box=first_box,
        image_ids=annotations.image_ids[chosen],
        sizes_hw=annotations.sizes_hw[chosen],
        _paths=annotations._paths[chosen],
        _wheres=None if annotations._wheres is None else annotations._wheres[chosen],
    )


def pack_names(names: Sequence[str], source: Path) -> NDArray[Any]:
    """File names in a fixed-width array; bytes that are not UTF-8 (old file systems) are kept.

    Raises:
        DatasetError: a name is not a path, or is very long (all names are padded to the longest).
    """
    packed = []
    for place, name in enumerate(names, start=1):
        try:
            packed.append(name.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:  # a lone surrogate
            packed.append(b"\0")
        if b"\0" in packed[-1] or len(packed[-1]) > MAX_NAME_BYTES:
            raise DatasetError(
                f"the name of image {place}, '{cut(name)}', is not a valid file name",
                where=str(source),
                fix="correct the file name",
            )
    if max(map(len, packed), default=0) * len(packed) > MAX_NAMES_BYTES:
        raise DatasetError("the names of the images are too long", where=str(source), fix="shorten them")
    return np.array(packed, np.bytes_)


def unpack_name(name: Any) -> str:
    """One name of such an array."""
    return bytes(name).decode("utf-8", "surrogateescape")
