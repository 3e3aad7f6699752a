"""YOLO: one txt file per image, with lines ``class cx cy width height``, normalized to the upright image.

Sources: ``data.yaml`` (its ``train`` split; ``data.yaml:val`` for another), darknet's ``obj.data`` and lists
of images, a folder with ``images`` and ``labels``, and a folder with txt files next to images. An image
without a txt file has no boxes. A polygon (segmentation, rotated box) becomes its bounding box; of keypoint
labels (``kpt_shape`` in data.yaml) only the box is read.

Normalized boxes need the size of the image, so the headers of all images are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from fcos.data.annotations import Annotations, Record
from fcos.data.formats.yolo_description import YAML_SUFFIXES, find_description, read_description
from fcos.data.formats.yolo_layout import LabelFiles, Pair, find_layout, is_label_file, list_pairs
from fcos.data.image import read_header, upright
from fcos.data.image_files import IMAGE_SUFFIXES, folders_like, is_image, names_in, place_images, unique_stems
from fcos.data.names import BACKGROUND, numbered_names, with_names
from fcos.data.numbers import EXACT, number
from fcos.data.registry import DataFormat
from fcos.data.splits import Split, Splits, arranged, pick, with_note
from fcos.data.text import Faults, read_lines
from fcos.errors import DatasetError
from fcos.files import data_below, written
from fcos.terminal import counted

NOT_POSE = 8  # numbers after the class: four corners of a rotated box
MAX_SIDE_OF_FRACTIONS = 2
POSE_TOLERANCE = 0.02  # of the image


def read(source: Path, *, root: Path | None = None, names: Sequence[str] | None = None) -> Annotations:
    """Read a YOLO data set (any of the forms above); `root` is the folder of images, if they are elsewhere.

    Invalid class ids stay as labels out of range, and the boxes of an image that cannot be opened are NaN:
    `check` reports both.
    """
    pairs, description = find_layout(source, root)
    rows = _Rows(description.num_keypoint_values)
    records = [_record(pair, image_id, rows) for image_id, pair in enumerate(pairs, start=1)]
    rows.raise_faults(source)
    file_names = description.class_names
    if file_names is None:
        file_names = list(names or numbered_names(records, 0, str(source)))
    notes = list(description.notes)
    if without := [pair.image.name for pair in pairs if pair.label_file is None]:
        number = counted(
            len(without), "image without a label file counts", "images without a label file count"
        )
        notes.append(f"{number} as background, for example '{without[0]}'")
    annotations = Annotations.from_records(records, file_names, source=source, format="yolo", notes=notes)
    if names is None:
        return annotations
    if description.class_names and {*names[:1]} & {*BACKGROUND} - {*description.class_names}:
        names = names[1:]  # the first line of a name file for other formats
    return replace(with_names(annotations, names), category_ids=tuple(range(1, len(names) + 1)))


def write(
    annotations: Annotations, out: Path, *, root: Path | None = None, copy_images: bool = False
) -> None:
    """Write ``data.yaml``, ``images`` (linked, or copied) and ``labels`` into the folder `out`."""
    names = unique_stems(
        annotations, root, without="images"
    )  # readers replace the last such folder in a path
    with written(out) as folder:
        place_images(annotations, names, folder / "images" / "train", copy=copy_images)
        for record, name in zip(annotations, names, strict=True):
            label_file = (folder / "labels" / "train" / name).with_suffix(".txt")
            label_file.parent.mkdir(parents=True, exist_ok=True)
            label_file.write_text("".join(line + "\n" for line in _lines(record)), encoding="utf-8")
        content = {"path": ".", "train": "images/train", "names": dict(enumerate(annotations.class_names))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(text, encoding="utf-8")


def _lines(record: Record) -> list[str]:
    header = read_header(record.path)
    return label_lines(upright(record, header).boxes_xyxy, record.labels.tolist(), header.size_hw)


def label_lines(
    boxes_xyxy: NDArray[np.float64], labels: Sequence[int], size_hw: tuple[int, int]
) -> list[str]:
    """Lines of a label file for `(N, 4)` boxes in pixels of the upright image."""
    height, width = size_hw
    x1, y1, x2, y2 = (boxes_xyxy / [width, height, width, height]).T
    numbers = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1).tolist()
    return [
        " ".join([str(label), *(f"{value:.9f}" for value in box)])
        for label, box in zip(labels, numbers, strict=True)
    ]


@dataclass
class _Rows:
    """Reads the rows of label files, and collects their problems."""

    num_keypoint_values: int | None  # after the box, as stated in data.yaml
    faults: Faults = field(default_factory=Faults)
    may_be_pose: list[bool] = field(default_factory=list)  # whether polygons could be boxes with keypoints
    may_be_tracked: list[bool] = field(default_factory=list)  # or boxes with a score and a track id
    may_be_pixels: list[bool] = field(default_factory=list)  # whether boxes are larger than any image

    def read(self, file: Path) -> tuple[list[Sequence[float]], list[int]]:
        """Boxes (xyxy, normalized) and class ids."""
        boxes, labels = [], []
        lines: list[tuple[int, str]] = []
        with self.faults.at(str(file)):
            lines = read_lines(file)
        for line_number, line in lines:
            with self.faults.at(f"{file}, line {line_number}"):
                class_id, *values = map(number, line.split())
                if not class_id.is_integer() or abs(class_id) > EXACT:
                    raise ValueError(f"class id {class_id:g} is not an integer")
                x1, y1, x2, y2 = box = self._box(values)
                self.may_be_pixels.append(min(x2 - x1, y2 - y1) > MAX_SIDE_OF_FRACTIONS)
                boxes.append(box)
                labels.append(int(class_id))
        return boxes, labels

    def raise_faults(self, source: Path) -> None:
        """Reject rows that cannot be read, and ambiguous rows."""
        self.faults.raise_any(
            "label",
            "cannot be read",
            "the format of a line is: class cx cy width height (polygons: class x1 y1 x2 y2 x3 y3 ...), "
            "separated by spaces",
        )
        if self.may_be_pixels and all(self.may_be_pixels):
            raise DatasetError(
                "the coordinates seem to be in pixels, but YOLO boxes are normalized to [0, 1]",
                where=str(source),
                fix="divide the coordinates by the width and height of each image",
            )
        if self.may_be_tracked and all(self.may_be_tracked):
            raise DatasetError(
                "the rows may be boxes of a tracker (class cx cy width height score track) or triangles",
                where=str(source),
                fix="if they are boxes, remove the last two numbers of each row; if they are triangles, "
                "convert them to boxes: class cx cy width height",
            )
        if self.may_be_pose and all(self.may_be_pose):
            raise DatasetError(
                "the rows may be boxes with keypoints or polygons",
                where=str(source),
                fix="if they are keypoints, state their number and size in data.yaml, for example "
                "kpt_shape: [17, 3]; if they are polygons, convert them to boxes: class cx cy width height",
            )

    def _box(self, values: list[float]) -> Sequence[float]:
        count = len(values)
        if count in (4, 4 + (self.num_keypoint_values or 0)):
            x, y, width, height = values[:4]
            return x - width / 2, y - height / 2, x + width / 2, y + height / 2
        others = "a polygon 6, 8, ...; remove the scores of predictions"
        if self.num_keypoint_values:
            others = f"or {4 + self.num_keypoint_values} with the keypoints of data.yaml"
        if self.num_keypoint_values or count < 6 or count % 2:
            raise ValueError(f"{counted(count, 'number')} after the class, but a box has 4, {others}")
        numbers = np.array(values)
        self.may_be_pose.append(_may_be_pose(numbers))
        self.may_be_tracked.append(_may_be_tracked(numbers))
        points = numbers.reshape(-1, 2)
        return (*points.min(axis=0), *points.max(axis=0))


def _is_box_in_image(numbers: NDArray[np.float64]) -> bool:
    """Whether the first four numbers can be a box in the image."""
    center, half = numbers[:2], numbers[2:4] / 2
    return bool(
        (half > 0).all()
        and (center - half >= -POSE_TOLERANCE).all()
        and (center + half <= 1 + POSE_TOLERANCE).all()
    )


def _may_be_tracked(numbers: NDArray[np.float64]) -> bool:
    """Whether the numbers can be a box, a score and an integer track id; rarely true of every triangle."""
    if len(numbers) != 6 or not _is_box_in_image(numbers):
        return False
    score, track = numbers[4:].tolist()
    return 0 <= score <= 1 and float(track).is_integer()


def _may_be_pose(numbers: NDArray[np.float64]) -> bool:
    """Whether the first four numbers can be a box in the image, and the others points in it.

    Points are x, y, or x, y and visibility (0, 1, 2); 0, 0 is a point that was not labeled. This is rarely
    true of a polygon, and almost never of all polygons in a data set.
    """
    if len(numbers) == NOT_POSE:
        return False
    center, half = numbers[:2], numbers[2:4] / 2
    low, high = center - half - POSE_TOLERANCE, center + half + POSE_TOLERANCE
    if not _is_box_in_image(numbers):
        return False
    for size in (2, 3):
        if len(numbers[4:]) % size:
            continue
        points = numbers[4:].reshape(-1, size)
        labeled = points[(points[:, :2] != 0).any(axis=1), :2]
        seen = points[:, 2:]
        if np.isin(seen, (0, 1, 2)).all() and ((labeled >= low) & (labeled <= high)).all():
            return True
    return False


def _record(pair: Pair, image_id: int, rows: _Rows) -> Record:
    image, label_file = pair
    fractions, labels = rows.read(label_file) if label_file is not None else ([], [])
    size_hw = None
    with suppress(DatasetError):  # an image that cannot be opened, for `check` to report
        size_hw = read_header(image).size_hw
    height, width = size_hw or (np.nan, np.nan)
    boxes = np.array(fractions, np.float64).reshape(-1, 4) * [width, height, width, height]
    return Record.make(image, boxes, labels, image_id, size_hw=size_hw, where=str(label_file or image))


def _has_label_files(folder: Path) -> bool:
    labels = LabelFiles()
    some_images = islice(data_below(folder, *IMAGE_SUFFIXES), 20)
    some_texts = islice(data_below(folder, ".txt"), 20)
    return any(map(is_label_file, [*filter(None, map(labels.of, some_images)), *some_texts]))


def _refuse_labels(file: Path, root: Path | None, lines: list[str]) -> bool:
    if is_label_file(file):
        raise DatasetError(
            "these are the YOLO labels of one image", where=str(file), fix="give the folder, or data.yaml"
        )
    return False


def _lists_images(file: Path, root: Path | None, lines: list[str]) -> bool:
    """Whether a file contains only names of images, of which some have labels."""
    return all(map(is_image, lines)) and any(pair.label_file for pair in list_pairs(file, root, limit=20))


def _splits(folder: Path) -> Splits:
    if (file := find_description(folder)) is not None:
        there = read_description(file).splits
        keys = [key if key in there else None for key in ("train", "val", "test")]
        return arranged("yolo", [file.with_name(f"{file.name}:{key}") if key else None for key in keys])
    lists = {Path(name).stem: folder / name for name in names_in(folder) if name.lower().endswith(".txt")}
    sources = pick({name: file for name, file in lists.items() if _is_image_list(file)}, folder)
    if sources[0] is not None:
        return arranged("yolo", sources)
    named = {sub.name: sub for images in folders_like(folder, "images") for sub in _subfolders(images)}
    for sub in _subfolders(folder):
        images = folders_like(sub, "images")
        if images or any(map(is_image, names_in(sub))):
            named.setdefault(sub.name, images[0] if images else sub)
    sources = pick(named, folder)
    found = arranged("yolo", sources, whole=Split(folder))
    unused: list[Path] = []
    if sources[0] is not None:
        below = data_below(folder, *IMAGE_SUFFIXES)
        unused = [path for path in below if not any(map(path.is_relative_to, filter(None, sources)))]
    return with_note(found, sources, unused, folder, "image belongs", "images belong")


def _is_image_list(file: Path) -> bool:
    try:
        lines = read_lines(file)
    except DatasetError:
        return False
    return bool(lines) and all(is_image(line) for _, line in lines)


def _subfolders(folder: Path) -> list[Path]:
    return [folder / name for name in names_in(folder) if (folder / name).is_dir()]


FORMAT = DataFormat(
    name="yolo",
    looks_like="YOLO (data.yaml, obj.data, or txt files beside images)",
    suffixes=(*YAML_SUFFIXES, ".data", ".txt", ""),
    read=read,
    folder_signs=(
        (90, lambda folder: find_description(folder) is not None),
        (60, lambda folder: bool(folders_like(folder, "images") and folders_like(folder, "labels"))),
        (30, _has_label_files),
    ),
    text_signs=((70, _refuse_labels), (60, _lists_images)),
    splits=_splits,
    first_class_id=0,
    in_pixels=False,
    write=write,
)
