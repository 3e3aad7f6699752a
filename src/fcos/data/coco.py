"""COCO's annotation JSON (cocodataset.org/#format-data): boxes xywh, category ids with gaps, crowd regions.

Labels number the categories in ascending order of their ids; `Annotations.category_ids` maps them back.
Reading goes by whole columns rather than box by box, and large files are kept as arrays: see `coco_columns`
and `cache`; their times are in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations
from fcos.data.cache import Taken, ToKeep, cached
from fcos.data.coco_columns import Columns, read_columns
from fcos.data.image import read_size
from fcos.data.names import match_names
from fcos.data.pictures import check_root, find_root, folders_of, relative_name
from fcos.data.text import Faults
from fcos.errors import DatasetError
from fcos.files import read_text

Entry = dict[str, Any]

UNKNOWN_ID = -(2**63)
SPARSE = 8  # times as many possible ids as there are ids


def read(source: Path, *, root: Path | None = None, names: Sequence[str] | None = None) -> Annotations:
    """Read a COCO file; `root` is the folder that its ``file_name`` start from (without it, found nearby).

    ``ignore`` (a label of other COCO-like data sets) is kept as `is_difficult`: left out of evaluation, but
    not a crowd region. An annotation with an unknown category keeps the label -1, for `check` to report.
    A large file is kept as arrays too (`fcos.data.cache`), which open at once and share their memory.
    """
    check_root(root)
    arrays, described = cached(source, {"coco": 1, "names": names}, lambda: _arrays(source, names))
    file_names = (bytes(name).decode() for name in arrays["_paths"])
    return Annotations(
        class_names=tuple(described["class_names"]),
        category_ids=tuple(described["category_ids"]),
        source=source,
        format="coco",
        _wheres=None,
        _folder=root or find_root(folders_of(source), file_names),
        **arrays,
    )


def _arrays(source: Path, names: Sequence[str] | None) -> tuple[ToKeep, dict[str, Any]]:
    """What is kept of a file: the arrays of `Annotations`, boxes by picture; and its classes."""
    columns = read_columns(source) or _columns(source)
    class_names, category_ids, label_of = _classes(source, columns, names)
    index = _find(columns.box_image_ids, columns.image_ids)
    places = np.arange(len(columns.image_ids))
    if (index < 0).any() or (_find(columns.image_ids, columns.image_ids) != places).any():
        _columns(source)  # says which annotation has no image, or which id two images have
    boxes, areas = columns.boxes_xywh, columns.areas
    if (unstated := np.isnan(areas)).any():
        areas[unstated] = boxes[unstated, 2] * boxes[unstated, 3]
    boxes[:, 2:] += boxes[:, :2]
    known = np.array(list(label_of), np.int64)
    label_at = np.array([*label_of.values(), -1], np.int64)  # place -1: no such category
    labels = label_at[_find(columns.box_category_ids, known)]
    # The boxes of a picture keep the order of the file; numbers that all differ sort faster than stably.
    order = np.argsort(index * len(index) + np.arange(len(index)))
    counts = np.bincount(index, minlength=len(columns.image_ids))
    arrays: ToKeep = {
        "boxes_xyxy": Taken(boxes, order),
        "labels": Taken(labels, order),
        "is_crowd": Taken(columns.is_crowd, order),
        "is_difficult": Taken(columns.is_difficult, order),
        "areas": Taken(areas, order),
        "first_box": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "image_ids": columns.image_ids,
        "sizes_hw": columns.sizes_hw,
        "_paths": columns.names,
    }
    return arrays, {"class_names": class_names, "category_ids": category_ids}


def _find(values: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each value among others that may be in any order; -1 where it is not there."""
    if not len(among):
        return np.full(len(values), -1)
    low, high = int(among.min()), int(among.max())
    if high - low > SPARSE * (len(among) + len(values)):
        order = np.argsort(among, kind="stable")
        ascending = among[order]
        place = np.minimum(np.searchsorted(ascending, values), len(among) - 1)
        return np.where(ascending[place] == values, order[place], -1)
    table = np.full(high - low + 2, -1)
    table[among - low] = np.arange(len(among))
    return table[np.clip(values, low - 1, high + 1) - low]  # to both sides lies the last element, -1


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


def _columns(source: Path) -> Columns:
    """The columns of any file that can be understood; every fault of one that cannot, at once."""
    content = load(source)
    images, entries = content["images"], content["annotations"]
    _check_images(source, images)
    _check_entries(source, images, entries)
    return Columns(
        categories=content["categories"],
        image_ids=np.array([image["id"] for image in images], np.int64),
        names=np.array([image["file_name"].encode() for image in images], np.bytes_),
        sizes_hw=np.array([_stated_size(image) for image in images], np.int32).reshape(-1, 2),
        box_image_ids=np.array([entry["image_id"] for entry in entries], np.int64),
        box_category_ids=np.array([_whole(entry["category_id"]) for entry in entries], np.int64),
        boxes_xywh=_boxes(source, entries),
        areas=np.array([entry.get("area") for entry in entries], np.float64),
        is_crowd=np.array([bool(entry.get("iscrowd")) for entry in entries], np.bool_),
        is_difficult=np.array([bool(entry.get("ignore")) for entry in entries], np.bool_),
    )


def _classes(
    source: Path, columns: Columns, names: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int]]:
    """Class names, category id of each label, and label of each category id."""
    faults = Faults()
    seen: set[Any] = set()
    for place, category in enumerate(columns.categories):
        if not isinstance(category.get("id"), int) or not isinstance(category.get("name"), str):
            faults.add(f"{source}, category {place + 1}", "needs a whole number 'id' and a text 'name'")
        elif category["id"] in seen:
            faults.add(f"{source}, category {category['id']}", "id stands twice")
        seen.add(category.get("id"))
    faults.raise_any("categories cannot be used", "correct the categories")
    categories = sorted(columns.categories, key=lambda category: category["id"])
    ids = tuple(category["id"] for category in categories)
    if names is None:
        label_of = {category_id: label for label, category_id in enumerate(ids)}
        return tuple(category["name"] for category in categories), ids, label_of
    # Exporters list categories that no box has; only those in use must be among the given names.
    used = set(np.unique(columns.box_category_ids).tolist())
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


def _check_entries(source: Path, images: list[Entry], entries: list[Entry]) -> None:
    known = {image["id"] for image in images}
    faults = Faults()
    for entry in entries:
        where = f"{source}, annotation {entry.get('id')}"
        if entry.get("image_id") not in known:
            faults.add(where, f"image {entry.get('image_id')} is not in the file")
        if "category_id" not in entry:
            faults.add(where, "no category_id")
    faults.raise_any("annotations cannot be placed", "correct the annotations")


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


def _whole(category_id: Any) -> int:
    """A category id, or -1 for what cannot be one: a text, for `check` to report."""
    return int(category_id) if isinstance(category_id, int | float) else UNKNOWN_ID


def _stated_size(image: Entry) -> tuple[int, int]:
    """Height, width; -1 where the file has none (or 0, as some tools write)."""
    height, width = image.get("height"), image.get("width")
    return (int(height), int(width)) if height and width else (-1, -1)


def _number(value: float) -> float | int:
    """Whole numbers without a point; six decimals, which undoes the rounding of x + width - x."""
    value = round(value, 6)
    return int(value) if value.is_integer() else value
