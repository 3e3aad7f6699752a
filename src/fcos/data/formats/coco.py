"""COCO's annotation JSON (cocodataset.org/#format-data): boxes xywh, category ids with gaps, crowd regions.

Labels are the categories in ascending order of their ids; `Annotations.category_ids` maps them back. Files
are read in columns rather than box by box, and large files are cached as arrays: see `coco_columns` and
`cache`; timings are in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations, Record, unpack_name
from fcos.data.cache import Arrays, cached
from fcos.data.formats.coco_columns import Columns, read_columns
from fcos.data.formats.coco_entries import Entry, load, read_entries, whole
from fcos.data.image import read_header
from fcos.data.image_files import find_root, folders_like, folders_of, names_in, relative_name, some_of
from fcos.data.names import check_name, check_number_of_classes, with_names
from fcos.data.numbers import cut, rotated_note
from fcos.data.registry import DataFormat
from fcos.data.text import Faults
from fcos.files import check_regular, write_text

SPARSE = 8  # ratio of the range of ids to their number, above which a table is not used


def read(source: Path, *, root: Path | None = None, names: Sequence[str] | None = None) -> Annotations:
    """Read a COCO file; each ``file_name`` is relative to `root` (default: a folder found nearby).

    ``ignore`` (a flag of other COCO-like data sets) becomes `is_difficult`: ignored in evaluation, but not a
    crowd region. An annotation with an unknown category gets the label -1, for `check` to report.
    """
    check_regular(source)
    arrays, described = cached(source, {"coco": 5}, lambda: _arrays(source))
    paths = arrays["_paths"]
    some_names = (unpack_name(paths[place]) for place in some_of(range(len(paths))))
    annotations = Annotations(
        class_names=tuple(described["class_names"]),
        category_ids=tuple(described["category_ids"]),
        source=source,
        format="coco",
        _wheres=None,
        notes=tuple(rotated_note(described["num_rotated"])),
        _folder=root or find_root(folders_of(source), some_names),
        **arrays,
    )
    return annotations if names is None else with_names(annotations, names)


def _arrays(source: Path) -> tuple[Arrays, dict[str, Any]]:
    """The data of a file: the arrays of `Annotations`, with boxes ordered by image, and its classes."""
    columns = read_columns(source) or read_entries(source)
    name_of = _category_names(source, columns)
    category_ids = sorted(name_of)
    index = _find(columns.box_image_ids, columns.image_ids)
    places = np.arange(len(columns.image_ids))
    if (index < 0).any() or (_find(columns.image_ids, columns.image_ids) != places).any():
        read_entries(source)  # raises an error on an annotation without image, or a duplicate image id
    boxes, areas = columns.boxes_xywh, columns.areas
    with np.errstate(over="ignore", invalid="ignore"):  # `check` reports such boxes
        if (unstated := np.isnan(areas)).any():
            areas[unstated] = boxes[unstated, 2] * boxes[unstated, 3]
        boxes[:, 2:] += boxes[:, :2]
    labels = _find(columns.box_category_ids, np.array(category_ids, np.int64))
    # The boxes of an image keep the order of the file; distinct keys are faster than a stable sort.
    order = np.argsort(index * len(index) + np.arange(len(index)))
    counts = np.bincount(index, minlength=len(columns.image_ids))
    arrays: Arrays = {
        "boxes_xyxy": boxes[order],
        "labels": labels[order],
        "is_crowd": columns.is_crowd[order],
        "is_difficult": columns.is_difficult[order],
        "areas": areas[order],
        "first_box": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "image_ids": columns.image_ids,
        "sizes_hw": columns.sizes_hw,
        "_paths": columns.names,
    }
    class_names = [name_of[category_id] for category_id in category_ids]
    return arrays, {
        "class_names": class_names,
        "category_ids": category_ids,
        "num_rotated": columns.num_rotated,
    }


def _find(values: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of each value in `among`, which may be in any order; -1 if it is missing."""
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
    return table[np.clip(values, low - 1, high + 1) - low]  # values out of range index the last element, -1


def write(
    annotations: Annotations, out: Path, *, root: Path | None = None, copy_images: bool = False
) -> None:
    """Write a COCO file; see `text_of`."""
    write_text(out, text_of(annotations, root=root))


def text_of(annotations: Annotations, *, root: Path | None = None) -> str:
    """The text of a COCO file; ``file_name`` is relative to `root` if the images are below it.

    Image and category ids, crowd, area and difficult (as ``ignore``) are kept. Sizes that the annotations do
    not state are read from the images, and omitted if there is no image.
    """
    content: dict[str, list[Entry]] = {"images": [], "annotations": [], "categories": []}
    for record in annotations:
        image: Entry = {"id": record.image_id, "file_name": relative_name(record.path, root)}
        size_hw = record.size_hw or (
            read_header(record.path).size_hw if os.path.isfile(record.path) else None
        )
        if size_hw is not None:
            image |= {"height": size_hw[0], "width": size_hw[1]}
        content["images"].append(image)
        columns = (record.boxes_xyxy, record.labels, record.is_crowd, record.is_difficult, record.areas)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for (x1, y1, x2, y2), label, is_crowd, is_difficult, area in rows:
            entry: Entry = {
                "id": len(content["annotations"]) + 1,
                "image_id": record.image_id,
                "category_id": annotations.category_ids[label],
                "bbox": [_number(value) for value in (x1, y1, x2 - x1, y2 - y1)],
                "area": _number(area),
                "segmentation": [],  # CVAT rejects annotations without it
                "iscrowd": int(is_crowd),
                "ignore": int(is_difficult),
            }
            content["annotations"].append(entry)
    for category_id, name in zip(annotations.category_ids, annotations.class_names, strict=True):
        content["categories"].append({"id": category_id, "name": name})
    return json.dumps(content)


def _category_names(source: Path, columns: Columns) -> dict[int, str]:
    """Name by category id. Of categories with the same name, those without boxes are dropped."""
    categories, used = columns.categories, set(np.unique(columns.box_category_ids).tolist())
    check_number_of_classes(len(categories), str(source))
    faults = Faults()
    name_of: dict[int, str] = {}
    for place, category in enumerate(categories, start=1):
        with faults.at(f"{source}, category {place}"):
            category_id = whole(category, "id")
            check_name(category.get("name"))
            if category_id in name_of:
                raise ValueError(f"id {category_id} appears twice")
            name_of[category_id] = category["name"]
    ids_of: dict[str, list[int]] = {}
    for category_id in sorted(name_of, key=lambda category_id: (category_id not in used, category_id)):
        ids_of.setdefault(name_of[category_id], []).append(category_id)
    for name, ids in ids_of.items():
        if len(ids) > 1 and ids[1] in used:
            faults.add(
                f"{source}, category {ids[1]}", f"has the same name as category {ids[0]}: '{cut(name)}'"
            )
    faults.raise_any("category", "cannot be used", "correct them", things="categories")
    return {ids[0]: name for name, ids in ids_of.items()}


def _number(value: float) -> float | int:
    """Integers without a decimal point; six decimals, which undoes the rounding of x + width - x."""
    value = round(value, 6)
    return int(value) if value.is_integer() else value


def _coco_files(folder: Path) -> list[Path]:
    """COCO files in their usual places in a folder, without captions, keypoints and the like."""
    files = [folder / name for name in names_in(folder)]
    files += [place / name for place in folders_like(folder, "annotations") for name in names_in(place)]
    files += [folder / sub / "_annotations.coco.json" for sub in names_in(folder)]
    return [
        file
        for file in files
        if file.suffix.lower() == ".json" and os.path.isfile(file) and looks_like_coco(file)
    ]


def looks_like_coco(file: Path) -> bool:
    """Whether a file seems to be COCO, by its name and the first megabyte: parsing can take a minute."""
    if file.name.startswith(("captions", "person_keypoints", "image_info", "panoptic", "stuff")):
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as text:
        begin = text.read(1_000_000)
    is_whole = len(begin) < 1_000_000
    return begin.lstrip().startswith("{") and ('"images"' in begin or not is_whole)


def _box_places(annotations: Annotations) -> Callable[[Record, int], tuple[str, str] | None]:
    """Locate boxes by the ids of their annotations, for which the file is read again.

    The ids are not stored in `Annotations` because only messages need them, and most data sets have no
    problem.
    """
    if not annotations.source.is_file():
        return lambda record, box: None
    entries: dict[int, list[Entry]] = {}
    for entry in load(annotations.source)["annotations"]:
        entries.setdefault(whole(entry, "image_id"), []).append(entry)

    def place_of(record: Record, box: int) -> tuple[str, str] | None:
        of_image = entries.get(record.image_id, [])
        if len(of_image) != len(record.labels):
            return None
        entry = of_image[box]
        unknown = f"category_id {entry.get('category_id')} is not among the categories"
        return f"{annotations.source}, annotation {entry.get('id')}", unknown

    return place_of


FORMAT = DataFormat(
    name="coco",
    looks_like="COCO JSON",
    suffixes=(".json",),
    read=read,
    folder_signs=((70, lambda folder: bool(_coco_files(folder))),),
    files=_coco_files,
    class_names="all",
    box_places=_box_places,
    write=write,
    written_suffix=".json",
    keeps=frozenset({"crowd", "difficult", "ids", "areas"}),
)
