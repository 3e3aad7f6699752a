"""Convert annotations between formats."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fcos.data.annotations import Annotations
from fcos.data.image_files import common_root
from fcos.data.names import check_names
from fcos.data.registry import DataFormat, format_named, read_annotations
from fcos.data.splits import find_name_file
from fcos.data.text import Faults
from fcos.errors import DatasetError
from fcos.files import check_writable
from fcos.terminal import counted, is_printable


@dataclass(frozen=True)
class Converted:
    """The result of `convert`."""

    annotations: Annotations  # that were read
    root: Path | None  # image folder to give when reading the result; None if the result contains the images
    name_file: Path | None  # the class names, if they are in a separate file
    notes: tuple[str, ...]  # on the annotations read, and on losses in the new format


def convert(
    source: Path,
    to: str,
    out: Path,
    *,
    root: Path | None = None,
    names: Sequence[str] | Path | None = None,
    format: str = "auto",
    copy_images: bool = False,
) -> Converted:
    """Read annotations and write them in another format; no box is lost.

    `out` is a file or a folder, depending on the format. Image names in a file are relative to the result's
    `root`; a folder contains the images, as links or copies.
    """
    check_output(to, out, copy_images=copy_images)
    beside = find_name_file(source, root, format) if names is None else None
    annotations = read_annotations(source, root=root, names=beside or names, format=format)
    result = write_annotations(annotations, to, out, copy_images=copy_images)
    named = () if beside is None else (f"the class names are from {beside}",)
    return replace(result, notes=(*named, *annotations.notes, *result.notes))


def write_annotations(
    annotations: Annotations, to: str, out: Path, *, copy_images: bool = False
) -> Converted:
    """Write annotations in a format; call `check_output` first."""
    target = format_named(to)
    check_boxes(annotations)
    check_names(annotations.class_names, where=str(annotations.source))
    _check_names_can_be_written(annotations)
    images_root = common_root(annotations)
    assert target.write is not None
    target.write(annotations, out, root=images_root, copy_images=copy_images)
    root = images_root if target.written_suffix else None
    return Converted(annotations, root, target.names_beside(out), tuple(_losses(annotations, target)))


def check_output(to: str, out: Path, *, copy_images: bool = False) -> None:
    """Reject an output of the wrong kind, or one that exists, before any work is done."""
    target = format_named(to)
    if target.write is None:
        raise DatasetError(
            f"format {to} can only be read, not written", where=str(out), fix="choose another with --to"
        )
    suffix = target.written_suffix
    if suffix and out.suffix != suffix:
        raise DatasetError(
            f"format {target.name} is written to a {suffix} file", where=str(out), fix=f"-o NAME{suffix}"
        )
    if suffix and copy_images:
        raise DatasetError(
            f"format {target.name} refers to images by path and does not copy them",
            where=str(out),
            fix="omit --copy-images",
        )
    for path in filter(None, (out, target.names_beside(out))):
        if os.path.lexists(path) and not (path.is_dir() and not os.listdir(path)):
            raise DatasetError(
                "the output already exists", where=str(path), fix="remove it, or choose another name"
            )
    check_writable(out)


def check_boxes(annotations: Annotations) -> None:
    """Reject boxes that no format can represent: without a class, or not finite."""
    usable = annotations.has_known_class & np.isfinite(annotations.boxes_xyxy).all(axis=1)
    faults = Faults()
    image_of = annotations.image_of_box
    for box in np.flatnonzero(~usable):
        image = int(image_of[box])
        record = annotations[image]
        faults.add(f"{record.where}, box {box - annotations.first_box[image] + 1}", f"image '{record.path}'")
    faults.raise_any(
        "box",
        "without a known class or finite coordinates",
        f"`fcos check {annotations.source}` explains each; correct them",
        things="boxes",
    )


def _check_names_can_be_written(annotations: Annotations) -> None:
    """Reject names that text lines or XML cannot contain, or that would be read as a Windows path."""
    faults = Faults()
    for name in annotations.class_names:
        if not is_printable(name) or name.strip() != name:
            faults.add(str(annotations.source), f"class {name!r}")
    for record in annotations:
        if not is_printable(str(record.path)) or "\\" in record.path.as_posix():
            faults.add(record.where, f"image {str(record.path)!r}")
    faults.raise_any(
        "name",
        "with control characters, backslashes, or leading or trailing spaces",
        "rename the classes and images",
    )


def _losses(annotations: Annotations, target: DataFormat) -> Iterator[str]:
    """What the new format cannot represent, one sentence each."""
    num_crowd, num_difficult = int(annotations.is_crowd.sum()), int(annotations.is_difficult.sum())
    if num_crowd and "crowd" not in target.keeps:
        crowds = counted(num_crowd, "crowd region was", "crowd regions were")
        instead = "difficult" if "difficult" in target.keeps else "ordinary boxes"
        yield f"{crowds} written as {instead}: {target.name} has no crowd flag"
    if num_difficult and "difficult" not in target.keeps:
        boxes = counted(num_difficult, "difficult box was", "difficult boxes were")
        yield f"{boxes} written as ordinary boxes: {target.name} has no difficult flag"
    if "ids" not in target.keeps:
        for what, ids in (("category", annotations.category_ids), ("image", annotations.image_ids.tolist())):
            if list(ids) != list(range(1, len(ids) + 1)):
                yield f"the {what} ids were not kept: {target.name} does not store them"
    if "areas" not in target.keeps:
        sides = annotations.boxes_xyxy[:, 2:] - annotations.boxes_xyxy[:, :2]
        if num_other := int((~np.isclose(annotations.areas, sides.prod(axis=1))).sum()):
            areas = counted(num_other, "area that differs", "areas that differ")
            yield f"{areas} from width times height were not kept: {target.name} does not store areas"
