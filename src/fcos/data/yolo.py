"""YOLO: a txt file a picture, ``class cx cy width height`` a line, as fractions of the upright picture.

Read are: ``data.yaml`` (its ``train`` split; ``data.yaml:val`` for another), darknet's ``obj.data`` and lists
of pictures, folders ``images`` with ``labels`` beside it, and folders with txt files beside pictures. A
picture without a txt file has no boxes. A polygon (segmentation) becomes its bounding box.

Fractions need the size of the picture, so the headers of all pictures are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from fcos.data.annotations import Annotations, Record
from fcos.data.image import read_header, read_size, upright
from fcos.data.names import match_names, read_names
from fcos.data.pictures import (
    PictureFolder,
    check_root,
    folders_near,
    pictures_under,
    place_pictures,
    unique_stems,
)
from fcos.data.text import Faults, read_lines
from fcos.errors import DatasetError
from fcos.files import read_text

NAME_FILES = ("obj.names", "classes.txt", "classes.names")
Pair = tuple[Path, Path]  # picture, its label file (either may be missing)


class Layout(NamedTuple):
    """Which pictures a source means, and its class names if it has any."""

    pairs: list[Pair]
    class_names: list[str] | None


def read(source: Path, *, root: Path | None = None, names: Sequence[str] | None = None) -> Annotations:
    """Read a YOLO data set (any of the forms above); `root` is the folder of pictures, if they are elsewhere.

    Class ids that cannot be stay as labels out of range, and the boxes of a picture that cannot be opened are
    not numbers: `check` reports both.
    """
    check_root(root)
    pairs, file_names = _layout(source, root)
    faults = Faults()
    records = [
        _record(picture, label_file, image_id, faults)
        for image_id, (picture, label_file) in enumerate(pairs, start=1)
    ]
    faults.raise_any(
        "lines cannot be read",
        "a line is: class cx cy width height (or class x1 y1 x2 y2 x3 y3 ... of a polygon)",
    )
    if file_names is None:
        num_classes = max((int(record.labels.max(initial=-1)) + 1 for record in records), default=0)
        file_names = list(names or [f"class_{class_id}" for class_id in range(num_classes)])
    annotations = Annotations.from_records(records, file_names, source=source, format="yolo")
    return annotations if names is None else _renamed(annotations, names)


def write(
    annotations: Annotations,
    out: Path,
    *,
    root: Path | None = None,
    split: str = "train",
    copy_images: bool = False,
) -> None:
    """Write ``data.yaml``, ``images`` (linked, or copied) and ``labels`` into the folder `out`."""
    names = unique_stems(annotations, root)
    pairs = [
        (record.path, out / "images" / split / name) for record, name in zip(annotations, names, strict=True)
    ]
    place_pictures(pairs, copy=copy_images)
    for record, name in zip(annotations, names, strict=True):
        header = read_header(record.path)
        height, width = header.size_hw
        x1, y1, x2, y2 = (upright(record, header).boxes_xyxy / [width, height, width, height]).T
        numbers = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1).tolist()
        lines = [
            " ".join([str(label), *(f"{value:.9f}" for value in box)])
            for label, box in zip(record.labels.tolist(), numbers, strict=True)
        ]
        label_file = (out / "labels" / split / name).with_suffix(".txt")
        label_file.parent.mkdir(parents=True, exist_ok=True)
        label_file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    content = {"path": ".", split: f"images/{split}", "names": dict(enumerate(annotations.class_names))}
    (out / "data.yaml").write_text(
        yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def read_yaml(file: Path) -> dict[str, Any]:
    """The content of a YOLO ``data.yaml``."""
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise DatasetError(f"not YAML: {error}", where=str(file), fix="correct the file") from error
    if not isinstance(content, dict) or "names" not in content:
        raise DatasetError(
            "not a YOLO data file: no 'names'", where=str(file), fix="it needs 'train', 'val' and 'names'"
        )
    return content


def split_source(source: Path) -> tuple[Path, str]:
    """``data.yaml:val`` -> the file and the split; without one, ``train``."""
    file, colon, split = source.name.rpartition(":")
    if colon and file.endswith((".yaml", ".yml")):
        return source.with_name(file), split
    return source, "train"


def label_file(picture: Path) -> Path:
    """Where a picture's labels are: beside it, or in ``labels`` where the picture is in ``images``."""
    parts = list(picture.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
        in_labels = Path(*parts).with_suffix(".txt")
        if in_labels.is_file() or not picture.with_suffix(".txt").is_file():
            return in_labels
    return picture.with_suffix(".txt")


def _layout(source: Path, root: Path | None) -> Layout:
    file, split = split_source(source)
    if file.suffix in (".yaml", ".yml"):
        return _yaml_layout(file, split, root)
    if file.suffix == ".data":
        return _darknet_layout(file, root)
    if source.is_dir():
        yamls = sorted([*source.glob("data.y*ml"), *source.glob("dataset.y*ml")])
        if yamls:
            return _yaml_layout(yamls[0], "train", root)
        if (source / "obj.data").is_file():
            return _darknet_layout(source / "obj.data", root)
        return Layout(_folder_pairs(source, root), _names_near(source))
    return Layout(list_pairs(source, root), _names_near(source.parent))


def _yaml_layout(file: Path, split: str, root: Path | None) -> Layout:
    content = read_yaml(file)
    if not content.get(split):
        there = ", ".join(key for key in ("train", "val", "test") if content.get(key))
        raise DatasetError(f"no split '{split}'", where=str(file), fix=f"its splits are: {there or 'none'}")
    entries = content[split] if isinstance(content[split], list) else [content[split]]
    # Exporters write paths of their own machine or "../train/images": fall back on what is beside the file.
    base = file.parent / str(content.get("path") or ".")
    pairs: list[Pair] = []
    for entry in entries:
        place = _existing(base, str(entry)) or _existing(file.parent, str(entry))
        if place is None:
            raise DatasetError(
                f"'{entry}' (split '{split}') does not exist",
                where=str(file),
                fix="correct 'path' or the split",
            )
        pairs += _folder_pairs(place, root) if place.is_dir() else list_pairs(place, root)
    return Layout(pairs, _yaml_names(file, content))


def _yaml_names(file: Path, content: dict[str, Any]) -> list[str]:
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DatasetError(
                "'names' must number the classes 0, 1, 2, ...", where=str(file), fix="add what misses"
            )
        names = [names[class_id] for class_id in range(len(names))]
    return [str(name) for name in names]


def _darknet_layout(file: Path, root: Path | None) -> Layout:
    """``obj.data``: lines ``key = value``, with paths relative to where darknet was started."""
    entries = [line.partition("=") for _, line in read_lines(file)]
    settings = {key.strip(): value.strip() for key, _, value in entries}
    train = _existing(file.parent, settings.get("train", "train.txt"))
    if train is None:
        raise DatasetError("the 'train' list does not exist", where=str(file), fix="correct 'train = ...'")
    name_file = _existing(file.parent, settings.get("names", "obj.names"))
    names = list(read_names(name_file)[0]) if name_file else _names_near(file.parent)
    return Layout(list_pairs(train, root), names)


def list_pairs(source: Path, root: Path | None, limit: int | None = None) -> list[Pair]:
    """A text file of picture paths; labels near it even where the pictures are elsewhere (`root`)."""
    pairs = []
    finders = [PictureFolder(folder) for folder in ([root] if root else folders_near(source.parent))]
    for _, line in read_lines(source)[:limit]:
        listed = _existing(source.parent, line)
        stem = Path(line).stem
        found = listed or next(filter(None, (finder.find(stem) for finder in finders)), None)
        near_list = _existing(source.parent, str(Path(line).with_suffix(".txt")))
        picture = found or (root or source.parent) / line
        pairs.append((picture, near_list or label_file(picture)))
    return pairs


def _folder_pairs(source: Path, root: Path | None) -> list[Pair]:
    """A folder of pictures, of label files, or of ``images`` and ``labels``."""
    if (source / "images").is_dir() and (source / "labels").is_dir():
        return _folder_pairs(source / "images", root)
    pictures = pictures_under(source)
    if pictures and root is None:
        pairs = [(picture, label_file(picture)) for picture in pictures]
        return pairs + _without_picture(source, pairs)
    labels = sorted(path for path in source.rglob("*.txt") if path.name not in NAME_FILES)
    stems = [label.relative_to(source).with_suffix("").as_posix() for label in labels]
    parts = ["images" if part == "labels" else part for part in source.parts]
    folders = [root] if root else [Path(*parts), *folders_near(source)]
    finders = [PictureFolder(folder) for folder in folders]
    finder = next((f for f in finders if any(map(f.find, stems[:10]))), finders[0])
    return [
        (finder.find(stem) or finder.folder / f"{stem}.jpg", label)
        for stem, label in zip(stems, labels, strict=True)
    ]


def _without_picture(images: Path, pairs: list[Pair]) -> list[Pair]:
    """Label files in ``labels`` whose picture is gone, for `check` to report."""
    if "images" not in images.parts:
        return []
    labels = label_file(images / "any.jpg").parent
    used = {label for _, label in pairs}
    orphans = [
        path for path in sorted(labels.rglob("*.txt")) if path not in used and path.name not in NAME_FILES
    ]
    return [(images / path.relative_to(labels).with_suffix(".jpg"), path) for path in orphans]


def _names_near(folder: Path) -> list[str] | None:
    """Class names from the folder or the two above it."""
    for place in (folder, *list(folder.absolute().parents)[:2]):
        for name in NAME_FILES:
            if (place / name).is_file():
                return list(read_names(place / name)[0])
        for file in sorted([*place.glob("data.y*ml"), *place.glob("dataset.y*ml")]):
            return _yaml_names(file, read_yaml(file))
    return None


def _existing(base: Path, name: str) -> Path | None:
    """``base/name``, dropping leading folders of `name` (of another machine) until it exists."""
    parts = Path(name).parts
    candidates = (base / Path(*parts[start:]) for start in range(len(parts)))
    return next((path for path in candidates if path.exists()), None)


def _record(picture: Path, label_file: Path, image_id: int, faults: Faults) -> Record:
    fractions, labels = _parse(label_file, faults) if label_file.is_file() else ([], [])
    where = str(label_file if label_file.is_file() else picture)
    try:
        size_hw = read_size(picture)
    except DatasetError:
        boxes = np.full((len(labels), 4), np.nan)  # the size is unknown; `check` reports the picture
        return Record.make(picture, boxes, labels, image_id, where=where)
    height, width = size_hw
    boxes = np.array(fractions, np.float64).reshape(-1, 4) * [width, height, width, height]
    return Record.make(picture, boxes, labels, image_id, size_hw=size_hw, where=where)


def _parse(file: Path, faults: Faults) -> tuple[list[NDArray[np.float64]], list[int]]:
    """Boxes xyxy as fractions, and class ids."""
    boxes, labels = [], []
    for number, line in read_lines(file):
        try:
            values = np.array([float(word) for word in line.split()])
            label, box = _class_id(values[0]), _box(values[1:])
        except ValueError as error:
            faults.add(f"{file}, line {number}", str(error))
            continue
        labels.append(label)
        boxes.append(box)
    return boxes, labels


def _class_id(value: float) -> int:
    if not float(value).is_integer():
        raise ValueError(f"class id {value} is not a whole number")
    return int(value)


def _box(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(numbers) == 4:
        centre, half = numbers[:2], numbers[2:] / 2
        return np.concatenate([centre - half, centre + half])
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers after the class, but a box has 4 and a polygon 6, 8, ...")
    points = numbers.reshape(-1, 2)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _renamed(annotations: Annotations, names: Sequence[str]) -> Annotations:
    """Labels in the order of names given from outside."""
    labels = np.array(match_names(annotations.class_names, names, where=str(annotations.source)), np.int64)
    known = (annotations.labels >= 0) & (annotations.labels < len(labels))
    renamed = np.full_like(annotations.labels, -1)
    renamed[known] = labels[annotations.labels[known]]
    ids = tuple(range(1, len(names) + 1))
    return replace(annotations, labels=renamed, class_names=tuple(names), category_ids=ids)
