"""Predictions as annotations, to correct or to train on: `fcos predict --save-labels`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcos.data.annotations import Annotations, Record
from fcos.data.convert import check_output, write_annotations
from fcos.data.image_files import unique_stems
from fcos.data.names import is_no_class
from fcos.data.registry import format_named
from fcos.errors import DatasetError
from fcos.predict.sources import Source


def labels_path(out: Path, format: str) -> Path:
    """The path of the annotations: ``labels_coco.json``, ``labels_list.txt``, or a folder."""
    return out / f"labels_{format}{format_named(format).written_suffix}"


def check_labels(sources: Sequence[Source], format: str, out: Path) -> None:
    """Check before predicting that labels can be written.

    Raises:
        DatasetError: a source is not an image file, labels already exist, or images have names that the
            format cannot represent.
    """
    other = next((source for source in sources if source.path is None or source.kind != "image"), None)
    if other is not None:
        raise DatasetError(
            "labels can only be saved for image files",
            where=other.where,
            fix="omit this source, or --save-labels",
        )
    check_output(format, labels_path(out, format))
    if not format_named(format).written_suffix:
        paths = [Path(source.where) for source in sources]
        records = [Record.make(path, [], [], image_id=0, where=str(path)) for path in paths]
        unique_stems(Annotations.from_records(records, (), source=out, format=format))


def save_labels(
    class_names: Sequence[str],
    category_ids: Sequence[int],
    outcomes: Sequence[Mapping[str, Any]],
    format: str,
    out: Path,
) -> dict[str, str | None]:
    """Write the detections of images as annotations of all classes of the model.

    Args:
        outcomes: entries of `detections.json` for images that could be read; one without detections becomes
            an image without boxes.
        out: the output folder.

    Returns:
        Their entry in `detections.json`.
    """
    path = labels_path(out, format)
    labels = [label for label, name in enumerate(class_names) if not is_no_class(name)]
    records = [
        Record.make(
            Path(about["path"]),
            [entry["box_xyxy"] for entry in about["detections"]],
            [labels.index(entry["label"]) for entry in about["detections"]],
            image_id,
            size_hw=(about["height"], about["width"]),
            where=about["path"],
        )
        for image_id, about in enumerate(outcomes, start=1)
    ]
    annotations = Annotations.from_records(
        records,
        [class_names[label] for label in labels],
        category_ids=[category_ids[label] for label in labels],
        source=path,
        format=format,
    )
    written = write_annotations(annotations, format, path)
    root, name_file = (None if place is None else str(place) for place in (written.root, written.name_file))
    return {"format": format, "path": str(path), "root": root, "name_file": name_file}
