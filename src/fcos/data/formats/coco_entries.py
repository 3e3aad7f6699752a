"""Read a COCO file entry by entry: files that `coco_columns` does not accept, and all error messages.

What decides where a box is, whose it is and whether it counts must be certain; a stated size or area that
makes no sense is left unstated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fcos.data import numbers
from fcos.data.annotations import pack_names
from fcos.data.formats.coco_columns import Columns
from fcos.data.names import is_text
from fcos.data.numbers import described, whole_number
from fcos.data.text import Faults
from fcos.errors import DatasetError
from fcos.files import read_text

Entry = dict[str, Any]

LISTS = ("images", "annotations", "categories")


def load(source: Path) -> dict[str, Any]:
    """The content of a COCO file, checked to have the three lists that make one."""
    text = read_text(source)
    try:
        content = json.loads(text, object_pairs_hook=_with_each_list_once)
    except json.JSONDecodeError as error:
        where = f"{source}, line {error.lineno}, column {error.colno}"
        raise DatasetError(f"not JSON: {error.msg}", where=where, fix="correct the file") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; a list in a list in ...
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DatasetError(f"not JSON: {what}", where=str(source), fix="correct the file") from None
    missing = [
        key for key in LISTS if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise DatasetError(
            f"not a COCO annotation file: no list {', '.join(map(repr, missing))}",
            where=str(source),
            fix='a COCO file is {"images": [...], "annotations": [...], "categories": [...]}',
        )
    return dict(content)


def read_entries(source: Path) -> Columns:
    """The columns of any file that can be understood; every fault of one that cannot, at once."""
    content = load(source)
    images, entries = content["images"], content["annotations"]
    image_ids = _image_ids(source, images)
    known = set(image_ids)
    _read_all(
        source, entries, ("cannot be used", "cannot be used", "correct or remove them"), _check_is_object
    )
    box_image_ids, category_ids = _read_all(
        source,
        entries,
        ("cannot be placed", "cannot be placed", "correct the annotations"),
        lambda entry: _known_image(entry, known),
        lambda entry: _whole(entry, "category_id"),  # one that no category has is for `check` to report
    )
    [boxes] = _read_all(
        source, entries, ("has no box", "have no box", "a bbox is [x, y, width, height] in pixels"), _box
    )
    is_crowd, is_difficult = _read_all(
        source,
        entries,
        ("has a flag that is neither 0 nor 1", "have a flag that is neither 0 nor 1", "write 0 or 1"),
        lambda entry: _flag(entry, "iscrowd"),
        lambda entry: _flag(entry, "ignore"),
    )
    return Columns(
        categories=content["categories"],
        image_ids=np.array(image_ids, np.int64),
        names=pack_names([image["file_name"] for image in images], source),
        sizes_hw=np.array([_stated_size(image) for image in images], np.int32).reshape(-1, 2),
        box_image_ids=np.array(box_image_ids, np.int64),
        box_category_ids=np.array(category_ids, np.int64),
        boxes_xywh=np.array(boxes, np.float64).reshape(len(entries), 4),
        areas=np.array([numbers.area(entry.get("area")) for entry in entries], np.float64),
        is_crowd=np.array(is_crowd, np.bool_),
        is_difficult=np.array(is_difficult, np.bool_),
    )


def entries_by_image(source: Path) -> dict[int, list[Entry]]:
    """Annotations of each image in the order of `Record.boxes_xyxy`, for messages that cite ids."""
    by_image: dict[int, list[Entry]] = {}
    for entry in load(source)["annotations"]:
        by_image.setdefault(whole_number(entry["image_id"]), []).append(entry)
    return by_image


def _with_each_list_once(pairs: list[tuple[str, Any]]) -> Entry:
    """An object; the second of two lists of the same name would take the place of the first."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        keys = [key for key, _ in pairs]
        for key in LISTS:
            if keys.count(key) > 1:
                raise ValueError(f"'{key}' appears twice")
    return entry


def _image_ids(source: Path, images: list[Any]) -> list[int]:
    faults = Faults()
    seen: set[int] = set()
    ids = []
    for place, image in enumerate(images, start=1):
        try:
            _check_is_object(image)
            image_id = _whole(image, "id")
            _check_file_name(image.get("file_name"))
        except ValueError as error:
            faults.add(f"{source}, image {place}", str(error))
            continue
        if image_id in seen:
            faults.add(f"{source}, image {image_id}", "id appears twice")
        seen.add(image_id)
        ids.append(image_id)
    faults.raise_any("image cannot be used", "images cannot be used", "correct the images")
    return ids


def _check_file_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"file_name is {described(name)}, not the name of a file")
    if not is_text(name):
        raise ValueError(f"file_name is {described(name)}, which holds half of a surrogate pair")


def _read_all(
    source: Path, entries: list[Any], told: tuple[str, str, str], *readers: Callable[[Any], Any]
) -> list[list[Any]]:
    """What each reader makes of every annotation; all their faults as one error.

    Args:
        source: the file.
        entries: its annotations.
        told: what is wrong with one annotation, with several, and how to fix it.
        readers: an annotation to a value; a ValueError says what is wrong.
    """
    faults = Faults()
    columns: list[list[Any]] = [[] for _ in readers]
    for column, reader in zip(columns, readers, strict=True):
        for place, entry in enumerate(entries, start=1):
            try:
                column.append(reader(entry))
            except ValueError as error:
                faults.add(f"{source}, annotation {_shown_id(entry, place)}", str(error))
    one, many, fix = told
    faults.raise_any(f"annotation {one}", f"annotations {many}", fix)
    return columns


def _check_is_object(entry: Any) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"is {described(entry)}, not an object")


def _known_image(entry: Entry, known: set[int]) -> int:
    """The image of an annotation, which must be in the file."""
    image_id = _whole(entry, "image_id")
    if image_id not in known:
        raise ValueError(f"image {image_id} is not in the file")
    return image_id


def _whole(entry: Entry, key: str) -> int:
    if key not in entry:
        raise ValueError(f"no {key}")
    try:
        return whole_number(entry[key])
    except ValueError as error:
        raise ValueError(f"{key} {error}") from None


def _box(entry: Entry) -> list[float]:
    """xywh, pixels."""
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        kind = " (panoptic segments)" if "segments_info" in entry else ""
        shown = "None" if box is None else _shown_box(box)
        raise ValueError(f"bbox is {shown}{kind}")
    try:
        return [numbers.coordinate(value) for value in box]
    except ValueError as error:
        raise ValueError(f"bbox {error}") from None


def _shown_box(box: Any) -> str:
    if isinstance(box, list) and len(box) < 10 and all(isinstance(value, int | float) for value in box):
        return f"[{', '.join(map(described, box))}]"
    return described(box)


def _flag(entry: Entry, key: str) -> bool:
    try:
        return numbers.flag(entry.get(key))
    except ValueError as error:
        raise ValueError(f"{key} {error}") from None


def _shown_id(entry: Any, place: int) -> str:
    stated = entry.get("id") if isinstance(entry, dict) else None
    if stated is None:
        return f"number {place}"
    return numbers.cut(stated) if isinstance(stated, str) else described(stated)


def _stated_size(image: Entry) -> tuple[int, int]:
    """Height, width; -1 where the file has none (or 0, as some tools write)."""
    height, width = numbers.side(image.get("height")), numbers.side(image.get("width"))
    return (height, width) if height and width else (-1, -1)
