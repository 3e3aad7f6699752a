"""The one door to annotations: read any of the four formats, convert between them.

`recognise`, `find_splits` and `read_names` are offered here too, so that callers need no other module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fcos.data import coco, image_list, voc, yolo
from fcos.data.annotations import Annotations
from fcos.data.names import check_names, write_names
from fcos.data.names import read_names as read_names
from fcos.data.pictures import common_root
from fcos.data.recognise import Format, coco_files, list_files
from fcos.data.recognise import recognise as recognise
from fcos.data.splits import Split as Split
from fcos.data.splits import Splits as Splits
from fcos.data.splits import find_splits as find_splits
from fcos.data.splits import split_annotations as split_annotations
from fcos.data.text import Faults
from fcos.errors import DatasetError
from fcos.files import check_writable
from fcos.terminal import counted, is_printable

READERS: dict[Format, Callable[..., Annotations]] = {
    "list": image_list.read,
    "coco": coco.read,
    "voc": voc.read,
    "yolo": yolo.read,
}


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote.

    Attributes:
        annotations: what was read.
        root: folder to give when the result is read again, or None where it holds the pictures itself.
        notes: sentences about what the new format cannot hold.
    """

    annotations: Annotations
    root: Path | None
    notes: tuple[str, ...]


def read_annotations(
    source: Path,
    *,
    root: Path | None = None,
    names: Sequence[str] | None = None,
    format: Literal["auto", "list", "coco", "voc", "yolo"] = "auto",
) -> Annotations:
    """Read annotations of any format.

    Args:
        source: annotation file or data set folder.
        root: folder of the pictures; without it they are looked for near the annotations.
        names: class names without background; sets the order of the labels, and refuses other classes.
        format: to force a format.
    """
    source = Path(source)
    known: Format = recognise(source, root) if format == "auto" else format
    if source.is_dir() and known in ("coco", "list"):
        source = _only_file(source, coco_files(source) if known == "coco" else list_files(source))
    with np.errstate(invalid="ignore"):  # a coordinate "inf" is for `check` to report, not for numpy
        annotations = READERS[known](source, root=root, names=names)
    if len(annotations) == 0:
        raise DatasetError(
            "no pictures in the annotations", where=str(source), fix="give a source that names some"
        )
    return annotations


def convert(
    source: Path,
    to: Format,
    out: Path,
    *,
    root: Path | None = None,
    names: Sequence[str] | None = None,
    format: Literal["auto", "list", "coco", "voc", "yolo"] = "auto",
    copy_images: bool = False,
) -> Converted:
    """Read annotations and write them in another format; no box is left out.

    `out` is a file for list and COCO, whose picture names are then relative to the result's `root`; a folder
    for VOC and YOLO, which hold the pictures themselves, as links or copies.
    """
    _check_out(out, to, copy_images)
    annotations = read_annotations(source, root=root, names=names, format=format)
    _check_boxes(annotations)
    check_names(annotations.class_names, where=str(annotations.source))
    _check_names_can_be_written(annotations)
    pictures_root = common_root(annotations)
    match to:
        case "list":
            write_names(annotations.class_names, names_beside(out))
            image_list.write(annotations, out, root=pictures_root)
        case "coco":
            coco.write(annotations, out, root=pictures_root)
        case "voc":
            voc.write(annotations, out, root=pictures_root, copy_images=copy_images)
        case "yolo":
            yolo.write(annotations, out, root=pictures_root, copy_images=copy_images)
    return Converted(annotations, pictures_root if to in ("list", "coco") else None, _losses(annotations, to))


def names_beside(out: Path) -> Path:
    """The name file that is written with a list: ``train.txt`` -> ``train_names.txt``."""
    return out.with_name(f"{out.stem}_names.txt")


def _only_file(folder: Path, files: list[Path]) -> Path:
    if len(files) == 1:
        return files[0]
    names = ", ".join(str(file.relative_to(folder)) for file in files)
    raise DatasetError(
        f"the folder holds {len(files)} annotation files: {names}"
        if files
        else "no annotation file in the folder",
        where=str(folder),
        fix="give one of the files",
    )


def _check_out(out: Path, to: Format, copy_images: bool) -> None:
    suffix = {"list": ".txt", "coco": ".json"}.get(to)
    if suffix is not None and out.suffix != suffix:
        raise DatasetError(
            f"format {to} is written to a {suffix} file", where=str(out), fix=f"-o NAME{suffix}"
        )
    if suffix is not None and copy_images:
        raise DatasetError(
            f"format {to} refers to pictures where they are", where=str(out), fix="leave --copy-images out"
        )
    for path in (out, names_beside(out)) if to == "list" else (out,):
        if os.path.lexists(path) and not (path.is_dir() and not os.listdir(path)):
            raise DatasetError(
                "the output exists already", where=str(path), fix="remove it, or choose another name"
            )
    check_writable(out)


def _check_boxes(annotations: Annotations) -> None:
    """Refuse boxes that no format can hold: without a class, or without numbers."""
    labels_known = (annotations.labels >= 0) & (annotations.labels < annotations.num_classes)
    usable = labels_known & np.isfinite(annotations.boxes_xyxy).all(axis=1)
    faults = Faults()
    for box in np.flatnonzero(~usable):
        image = int(np.searchsorted(annotations.first_box, box, side="right")) - 1
        record = annotations[image]
        faults.add(f"{record.where}, box {box - annotations.first_box[image] + 1}", f"image '{record.path}'")
    faults.raise_any(
        "box has no known class or no finite numbers",
        "boxes have no known class or no finite numbers",
        "`fcos check` says what is wrong with each; correct them",
    )


def _check_names_can_be_written(annotations: Annotations) -> None:
    """Refuse names that a line of text, or xml, cannot hold."""
    faults = Faults()
    for name in annotations.class_names:
        if not is_printable(name) or name.strip() != name:
            faults.add(str(annotations.source), f"class {name!r}")
    for record in annotations:
        if not is_printable(str(record.path)):
            faults.add(record.where, f"image {str(record.path)!r}")
    faults.raise_any(
        "name holds control characters, or spaces at its ends",
        "names hold control characters, or spaces at their ends",
        "rename the classes and images",
    )


def _losses(annotations: Annotations, to: Format) -> tuple[str, ...]:
    """What the new format cannot say, one sentence each."""
    num_crowd, num_difficult = int(annotations.is_crowd.sum()), int(annotations.is_difficult.sum())
    has_own_ids = annotations.category_ids != tuple(range(1, annotations.num_classes + 1))
    notes = []
    crowds = counted(num_crowd, "crowd region was", "crowd regions were")
    if num_crowd and to == "voc":
        notes.append(f"{crowds} written as difficult: VOC has no crowds")
    if num_crowd and to in ("list", "yolo"):
        notes.append(f"{crowds} written as ordinary boxes: {to} has no crowds")
    if num_difficult and to in ("list", "yolo"):
        boxes = counted(num_difficult, "difficult box was", "difficult boxes were")
        notes.append(f"{boxes} written as ordinary boxes: {to} has no such mark")
    if has_own_ids and to != "coco":
        notes.append(
            f"category ids were renumbered, {'0' if to == 'yolo' else '1'} and up: {to} has no others"
        )
    return tuple(notes)
