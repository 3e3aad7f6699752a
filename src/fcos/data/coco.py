"""COCO's annotation JSON (cocodataset.org/#format-data): boxes xywh, category ids with gaps, crowd regions.

Labels number the categories in ascending order of their ids; `Annotations.category_ids` maps them back.
Reading goes by whole columns rather than box by box: the 860,001 boxes of train2017 take seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations
from fcos.data.image import read_size
from fcos.data.names import match_names
from fcos.data.pictures import check_root, find_root, folders_near, relative_name
from fcos.data.text import Faults, read_text
from fcos.errors import DatasetError

Entry = dict[str, Any]


def read(source: Path, *, root: Path | None = None, names: Sequence[str] | None = None) -> Annotations:
    """Read a COCO file; `root` is the folder that its ``file_name`` start from (without it, found nearby).

    ``ignore`` (a label of other COCO-like data sets) is kept as `is_difficult`: left out of evaluation, but
    not a crowd region. An annotation with an unknown category keeps the label -1, for `check` to report.
    """
    check_root(root)
    content = load(source)
    images, entries = content["images"], content["annotations"]
    class_names, category_ids, label_of = _classes(source, content, names)
    _check_images(source, images)
    image_index = _image_index(source, images, entries)
    # Stable, so that the boxes of a picture keep the order of the file.
    order = np.argsort(image_index, kind="stable")
    boxes_xywh = _boxes(source, entries)[order]
    labels = np.array([label_of.get(entry["category_id"], -1) for entry in entries], np.int64)[order]
    counts = np.bincount(image_index, minlength=len(images))
    folder = root or find_root(_image_folders(source), (image["file_name"] for image in images))
    return Annotations(
        class_names=class_names,
        category_ids=category_ids,
        source=source,
        format="coco",
        boxes_xyxy=np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1),
        labels=labels,
        is_crowd=np.array([bool(entry.get("iscrowd")) for entry in entries], np.bool_)[order],
        is_difficult=np.array([bool(entry.get("ignore")) for entry in entries], np.bool_)[order],
        areas=_areas(entries, order, boxes_xywh),
        first_box=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        image_ids=np.array([image["id"] for image in images], np.int64),
        sizes_hw=np.array([_stated_size(image) for image in images], np.int32).reshape(-1, 2),
        _paths=np.array([str(folder / image["file_name"]).encode() for image in images], np.bytes_),
        _wheres=np.array([f"{source}, image {image['id']}".encode() for image in images], np.bytes_),
    )


def write(annotations: Annotations, out: Path, *, root: Path | None = None) -> None:
    """Write a COCO file; ``file_name`` is relative to `root` where the pictures are below it.

    Image and category ids, crowd, area and difficult (as ``ignore``) are kept. Sizes that the annotations do
    not state are read from the pictures, and left out where there is no picture.
    """
    content: dict[str, list[Entry]] = {"images": [], "annotations": [], "categories": []}
    for record in annotations:
        image: Entry = {"id": record.image_id, "file_name": relative_name(record.path, root)}
        size_hw = record.size_hw or (read_size(record.path) if record.path.is_file() else None)
        if size_hw is not None:
            image |= {"height": size_hw[0], "width": size_hw[1]}
        content["images"].append(image)
        for box, label, is_crowd, is_difficult, area in zip(
            record.boxes_xyxy.tolist(),
            record.labels.tolist(),
            record.is_crowd.tolist(),
            record.is_difficult.tolist(),
            record.areas.tolist(),
            strict=True,
        ):
            x1, y1, x2, y2 = box
            entry: Entry = {
                "id": len(content["annotations"]) + 1,
                "image_id": record.image_id,
                "category_id": annotations.category_ids[label],
                "bbox": [_number(value) for value in (x1, y1, x2 - x1, y2 - y1)],
                "area": _number(area),
                "iscrowd": int(is_crowd),
                "ignore": int(is_difficult),
            }
            content["annotations"].append(entry)
    for category_id, name in zip(annotations.category_ids, annotations.class_names, strict=True):
        content["categories"].append({"id": category_id, "name": name})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content), encoding="utf-8")


def load(source: Path) -> dict[str, Any]:
    """The content of a COCO file, checked to have the three lists that make one."""
    try:
        content = json.loads(read_text(source))
    except json.JSONDecodeError as error:
        where = f"{source}, line {error.lineno}, column {error.colno}"
        raise DatasetError(f"not JSON: {error.msg}", where=where, fix="correct the file") from error
    parts = ("images", "annotations", "categories")
    missing = [
        part for part in parts if not isinstance(content, dict) or not isinstance(content.get(part), list)
    ]
    if missing:
        raise DatasetError(
            f"not a COCO annotation file: no list {', '.join(map(repr, missing))}",
            where=str(source),
            fix='a COCO file is {"images": [...], "annotations": [...], "categories": [...]}',
        )
    return dict(content)


def entries_by_image(source: Path) -> dict[int, list[Entry]]:
    """Annotations of each image in the order of `Record.boxes_xyxy`, for messages that cite ids."""
    by_image: dict[int, list[Entry]] = {}
    for entry in load(source)["annotations"]:
        by_image.setdefault(entry["image_id"], []).append(entry)
    return by_image


def _classes(
    source: Path, content: dict[str, Any], names: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int]]:
    """Class names, category id of each label, and label of each category id."""
    faults = Faults()
    seen: set[Any] = set()
    for place, category in enumerate(content["categories"]):
        if not isinstance(category.get("id"), int) or not isinstance(category.get("name"), str):
            faults.add(f"{source}, category {place + 1}", "needs a whole number 'id' and a text 'name'")
        elif category["id"] in seen:
            faults.add(f"{source}, category {category['id']}", "id stands twice")
        seen.add(category.get("id"))
    faults.raise_any("categories cannot be used", "correct the categories")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    ids = tuple(category["id"] for category in categories)
    if names is None:
        label_of = {category_id: label for label, category_id in enumerate(ids)}
        return tuple(category["name"] for category in categories), ids, label_of
    # Exporters list categories that no box has; only those in use must be among the given names.
    used = {entry.get("category_id") for entry in content["annotations"]}
    categories = [c for c in categories if c["id"] in used or c["name"] in names]
    labels = match_names([c["name"] for c in categories], names, where=str(source))
    label_of = {category["id"]: label for category, label in zip(categories, labels, strict=True)}
    id_of = {label: category_id for category_id, label in label_of.items()}
    unused = max(ids, default=0) + 1
    category_ids = tuple(id_of.get(label, unused + label) for label in range(len(names)))
    return tuple(names), category_ids, label_of


def _check_images(source: Path, images: list[Entry]) -> None:
    faults = Faults()
    seen: set[Any] = set()
    for place, image in enumerate(images):
        if not isinstance(image.get("id"), int) or not isinstance(image.get("file_name"), str):
            faults.add(f"{source}, image {place + 1}", "needs a whole number 'id' and a text 'file_name'")
        elif image["id"] in seen:
            faults.add(f"{source}, image {image['id']}", "id stands twice")
        seen.add(image.get("id"))
    faults.raise_any("images cannot be used", "correct the images")


def _image_index(source: Path, images: list[Entry], entries: list[Entry]) -> NDArray[np.int64]:
    """Place in `images` of each annotation's image."""
    place_of = {image["id"]: place for place, image in enumerate(images)}
    index = np.array([place_of.get(entry.get("image_id"), -1) for entry in entries], np.int64)
    faults = Faults()
    for place in np.flatnonzero(index < 0):
        entry = entries[place]
        faults.add(
            f"{source}, annotation {entry.get('id')}", f"image {entry.get('image_id')} is not in the file"
        )
    for entry in entries:
        if "category_id" not in entry:
            faults.add(f"{source}, annotation {entry.get('id')}", "no category_id")
    faults.raise_any("annotations cannot be placed", "correct the annotations")
    return index


def _boxes(source: Path, entries: list[Entry]) -> NDArray[np.float64]:
    """`(N, 4)` xywh in the order of the file."""
    try:
        return np.array([entry["bbox"] for entry in entries], np.float64).reshape(len(entries), 4)
    except (KeyError, TypeError, ValueError):
        faults = Faults()
        for entry in entries:
            box = entry.get("bbox")
            if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
                faults.add(f"{source}, annotation {entry.get('id')}", f"bbox is {box!r}")
        faults.raise_any("annotations have no box", "a bbox is [x, y, width, height] in pixels")
        raise


def _areas(
    entries: list[Entry], order: NDArray[np.int64], boxes_xywh: NDArray[np.float64]
) -> NDArray[np.float64]:
    """COCO's ``area`` (of the segment), or the box's where the file has none."""
    stated = np.array([entry.get("area") for entry in entries], np.float64)[order]
    return np.where(np.isnan(stated), boxes_xywh[:, 2] * boxes_xywh[:, 3], stated)


def _stated_size(image: Entry) -> tuple[int, int]:
    """Height, width; -1 where the file has none (or 0, as some tools write)."""
    height, width = image.get("height"), image.get("width")
    return (int(height), int(width)) if height and width else (-1, -1)


def _image_folders(source: Path) -> list[Path]:
    """Where pictures may be: ``annotations/instances_val2017.json`` goes with ``val2017`` beside it."""
    split = source.stem.rsplit("_", 1)[-1]
    bases = [source.parent, source.absolute().parent.parent]
    return folders_near(source.parent) + [b / sub for b in bases for sub in (split, f"images/{split}")]


def _number(value: float) -> float | int:
    """Whole numbers without a point; six decimals, which undoes the rounding of x + width - x."""
    value = round(value, 6)
    return int(value) if value.is_integer() else value
