"""Read a COCO file entry by entry: files that `coco_columns` does not accept, and all error messages.

A box's position, image and flags must be valid; an invalid size or area is treated as missing.
"""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np

from fcos.data import numbers
from fcos.data.annotations import pack_names
from fcos.data.formats.coco_columns import Columns
from fcos.data.image_files import slashed
from fcos.data.numbers import described, named
from fcos.data.text import Faults
from fcos.errors import DatasetError
from fcos.files import read_text

Entry = dict[str, Any]

LISTS = ("images", "annotations", "categories")
BOX = np.dtype("i8, i8, 4f8, f8, ?, ?")
BOX.names = ("image_id", "category_id", "xywh", "area", "iscrowd", "ignore")


def load(source: Path) -> dict[str, Any]:
    """The content of a COCO file, checked to have the three required lists."""
    text = read_text(source)
    try:
        content = json.loads(text, object_pairs_hook=_with_each_list_once)
    except (ValueError, RecursionError) as error:  # ValueError: also a number with thousands of digits
        where, what = str(source), str(error)
        if isinstance(error, json.JSONDecodeError):
            where, what = f"{source}, line {error.lineno}, column {error.colno}", error.msg
        if isinstance(error, RecursionError):
            what = "nested too deeply"
        raise DatasetError(f"not JSON: {what}", where=where, fix="correct the file") from None
    missing = [
        key for key in LISTS if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise DatasetError(
            f"not a COCO annotation file: missing {', '.join(map(repr, missing))}",
            where=str(source),
            fix='a COCO file is {"images": [...], "annotations": [...], "categories": [...]}',
        )
    return dict(content)


def read_entries(source: Path) -> Columns:
    """The columns of any usable file; for an unusable one, an error that lists all faults."""
    content = load(source)
    images, faults = content["images"], Faults()
    image_ids: dict[int, None] = {}
    for place, image in enumerate(images, start=1):
        with faults.at(f"{source}, image {place}"):
            image_id = whole(image, "id")
            if image_id in image_ids:
                raise ValueError(f"id {image_id} appears twice")
            image_ids[image_id] = None
            name = image.get("file_name")
            if not isinstance(name, str) or not name:
                raise ValueError(f"file_name is {described(name)}, not a file name")
    faults.raise_any("image", "cannot be used", "correct the images")
    rows = []
    for place, entry in enumerate(content["annotations"], start=1):
        try:
            rows.append(_read_box(entry, image_ids))
        except ValueError as error:
            faults.add(f"{source}, annotation {_shown_id(entry, place)}", str(error))
    faults.raise_any("annotation", "cannot be used", "correct or remove them")
    boxes = np.array(rows, BOX)
    return Columns(
        categories=content["categories"],
        image_ids=np.array(list(image_ids), np.int64),
        names=pack_names([slashed(image["file_name"]) for image in images], source),
        sizes_hw=np.array([_stated_size(image) for image in images], np.int32).reshape(-1, 2),
        box_image_ids=boxes["image_id"],
        box_category_ids=boxes["category_id"],
        boxes_xywh=boxes["xywh"],
        areas=boxes["area"],
        is_crowd=boxes["iscrowd"],
        is_difficult=boxes["ignore"],
        num_rotated=sum(_rotation(entry) != 0 for entry in content["annotations"]),
    )


def _with_each_list_once(pairs: list[tuple[str, Any]]) -> Entry:
    """A JSON object; rejects a duplicate list, which would replace the first."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        keys = [key for key, _ in pairs]
        for key in LISTS:
            if keys.count(key) > 1:
                raise ValueError(f"'{key}' appears twice")
    return entry


def whole(entry: Any, key: str) -> int:
    """An id of an image, annotation or category."""
    if not isinstance(entry, dict):
        raise ValueError(f"is {described(entry)}, not an object")
    if key not in entry:
        raise ValueError(f"no {key}")
    return named(key, numbers.whole_number, entry[key])


def _read_box(entry: Any, image_ids: Container[int]) -> tuple[Any, ...]:
    """A row of `BOX`."""
    image_id = whole(entry, "image_id")
    bbox, is_crowd, is_difficult = entry.get("bbox"), entry.get("iscrowd"), entry.get("ignore")
    if image_id not in image_ids:
        raise ValueError(f"image {image_id} is not in the file")
    return (
        image_id,
        whole(entry, "category_id"),  # `check` reports unknown categories
        _upright(named("bbox", _xywh, bbox), _rotation(entry)),
        numbers.area(entry.get("area")),
        is_crowd is not None and named("iscrowd", numbers.flag, is_crowd),
        is_difficult is not None and named("ignore", numbers.flag, is_difficult),
    )


def _xywh(box: Any) -> list[float]:
    if box is None:
        raise ValueError("is null; segmentations are not read: compute [x, y, width, height] from them")
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"is {described(box)}, not [x, y, width, height] in pixels")
    return [numbers.coordinate(value) for value in box]


def _rotation(entry: Entry) -> float:
    """Degrees about the center of the box, as CVAT writes them."""
    attributes = entry.get("attributes")
    stated = attributes.get("rotation") if isinstance(attributes, dict) else None
    return 0.0 if stated is None else named("rotation", numbers.coordinate, stated)


def _upright(xywh: list[float], degrees: float) -> list[float]:
    if degrees == 0:
        return xywh
    x, y, width, height = xywh
    x1, y1, x2, y2 = numbers.upright_around([x, y, x + width, y + height], degrees)
    return [x1, y1, x2 - x1, y2 - y1]


def _shown_id(entry: Any, place: int) -> str:
    stated = entry.get("id") if isinstance(entry, dict) else None
    if stated is None:
        return f"number {place}"
    return numbers.cut(stated) if isinstance(stated, str) else described(stated)


def _stated_size(image: Entry) -> tuple[int, int]:
    """Height, width; -1 if the file does not state them (or states 0, as some tools do)."""
    height, width = numbers.side(image.get("height")), numbers.side(image.get("width"))
    return (height, width) if height and width else (-1, -1)
