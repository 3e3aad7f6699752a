"""Write in-memory data sets to files, so that the rest of the code treats them like any other.

An item is an image and its target, `{"boxes": xyxy, "labels": ...}`, as for torchvision's detectors. Images
are stored uncompressed (BMP), which is read in a third of the time of a JPEG. Files are named by their
content: the same data is written once, and resuming with other data is detected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import convert_bounding_box_format
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from fcos.data.annotations import Annotations, Record
from fcos.data.arrays import Color
from fcos.data.formats import coco
from fcos.data.image import pixels_of
from fcos.data.names import BACKGROUND, check_names
from fcos.data.text import Faults
from fcos.errors import DatasetError
from fcos.files import written

Names = Sequence[str] | Mapping[int, str]
KEYS = ("boxes", "labels", "iscrowd", "area")
WRITTEN = re.compile(r"memory-[0-9a-f]{32}\.json")
HOW = 'give a list, or a torch Dataset, of (image, {"boxes": [[x1, y1, x2, y2], ...], "labels": [...]})'


def write_items(
    data: Any,
    names: Names | None,
    folder: Path,
    track: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> Path:
    """Write a data set to a folder; returns its annotation file (COCO JSON).

    Args:
        data: a list or torch `Dataset` of (image, target), or a `supervision.DetectionDataset`. Images are as
            in `Detector.predict`; images given as a path are not copied.
        names: class names as a list, or a dict by label; "background" at 0 is not a class; None:
            `data.classes`.
        folder: may contain other data sets.
        track: shows progress: gets an iterable and its length, yields the same items.

    Raises:
        DatasetError: items that are not an image with boxes and labels; the message lists them.
    """
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise DatasetError(f"{type(data).__name__} is not a data set", fix=HOW)
    if len(data) == 0:
        raise DatasetError(f"the data ({type(data).__name__}) is empty", fix=HOW)
    name_of = _names_by_label(names, data)
    category_ids = sorted(name_of)
    records, faults = [], Faults()
    for place, (image, target, color) in enumerate(track(_items(data), len(data))):
        with faults.at(f"item {place}"):
            boxes_xyxy, given_labels = _boxes(target), _labels(target, name_of)
            if len(boxes_xyxy) != len(given_labels):
                raise ValueError(f"{len(boxes_xyxy)} boxes, but {len(given_labels)} labels")
            path, size_hw = _placed(image, color, folder, f"item_{place}")
            records.append(
                Record.make(
                    path,
                    boxes_xyxy,
                    [category_ids.index(label) for label in given_labels],
                    place,
                    is_crowd=_of_boxes(target, "iscrowd", np.bool_, len(boxes_xyxy)),
                    areas=_of_boxes(target, "area", np.float64, len(boxes_xyxy)),
                    size_hw=size_hw,
                )
            )
    faults.raise_any("item", "cannot be used", HOW)
    annotations = Annotations.from_records(
        records,
        [name_of[label] for label in category_ids],
        category_ids=category_ids,
        source=folder,
        format="coco",
    )
    out = folder / f"memory-{_digest(annotations)}.json"
    coco.write(annotations, out, root=folder)
    return out


def content_name(source: Path) -> str:
    """The name of a file written by `write_items`, which identifies its content; "" for other files."""
    return source.name if WRITTEN.fullmatch(source.name) else ""


def _names_by_label(names: Names | None, data: Any) -> dict[int, str]:
    given = names if names is not None else getattr(data, "classes", None)
    if given is None or isinstance(given, str):
        raise DatasetError(
            "the data has no class names",
            where=type(data).__name__,
            fix='pass names=["cat", "dog"], or by label: names={1: "cat", 3: "dog"}',
        )
    name_of = dict(given) if isinstance(given, Mapping) else dict(enumerate(given))
    if str(name_of.get(0)).lower() in BACKGROUND:
        del name_of[0]
    check_names(list(name_of.values()), where="names")
    return name_of


def _items(data: Any) -> Iterator[tuple[Any, Any, Color]]:
    """Image, target and channel order of each item."""
    if not hasattr(data, "image_paths"):
        for place in range(len(data)):
            item = data[place]
            image, target = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
            yield image, target, "rgb"
        return
    in_memory = getattr(data, "_images_in_memory", {})  # of supervision, which reads the others with cv2
    for path in data.image_paths:
        found = data.annotations[path]
        more = {key: found.data[key] for key in KEYS if key in found.data}
        yield in_memory.get(path, path), {"boxes": found.xyxy, "labels": found.class_id, **more}, "bgr"


def _boxes(target: Any) -> NDArray[np.float64]:
    if not isinstance(target, Mapping):
        raise ValueError(f"its target is {type(target).__name__}, not a dict with boxes and labels")
    if "boxes" not in target and set(target) - {
        "image_id"
    }:  # torchvision's CocoDetection without objects has only image_id
        raise ValueError(f'its target has no "boxes", only {", ".join(map(str, target))}')
    boxes = target.get("boxes", [])
    if isinstance(boxes, BoundingBoxes):
        boxes = convert_bounding_box_format(boxes, new_format=BoundingBoxFormat.XYXY)
    values = _array(boxes)
    if values.size == 0:
        return np.zeros((0, 4))
    if values.ndim != 2 or values.shape[1] != 4 or values.dtype.kind not in "iuf":
        raise ValueError(f"boxes have shape {values.shape} and dtype {values.dtype}, not numbers (N, 4)")
    return values.astype(np.float64)


def _labels(target: Mapping[str, Any], name_of: Mapping[int, str]) -> list[int]:
    values = _array(target.get("labels", []))
    if values.size == 0:
        return []
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"labels have shape {values.shape} and dtype {values.dtype}, not integers (N,)")
    for label in values.tolist():
        if label not in name_of:
            raise ValueError(
                f"label {label} has no class name; labels with a name: {', '.join(map(str, name_of))}"
            )
    labels: list[int] = values.tolist()
    return labels


def _of_boxes(target: Mapping[str, Any], key: str, dtype: type, num_boxes: int) -> NDArray[Any] | None:
    if key not in target:
        return None
    values = _array(target[key])
    if values.shape != (num_boxes,):
        raise ValueError(f"{num_boxes} boxes, but {key} has shape {values.shape}")
    return values.astype(dtype)


def _array(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _placed(image: Any, color: Color, folder: Path, stem: str) -> tuple[Path, tuple[int, int] | None]:
    """The path of an image, and its height and width if it was written here."""
    if isinstance(image, str | os.PathLike):
        return Path(image).absolute(), None
    pixels = pixels_of(image, color).permute(1, 2, 0).numpy()
    height, width, _ = pixels.shape
    digest = blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=8).hexdigest()
    path = folder / f"{stem}-{digest}.bmp"
    if not path.exists():
        with written(path) as partial:
            Image.fromarray(pixels).save(partial)
    return path, (height, width)


def _digest(annotations: Annotations) -> str:
    content = blake2b(repr((annotations.class_names, annotations.category_ids)).encode(), digest_size=16)
    for record in annotations:
        content.update(record.path.name.encode("utf-8", "surrogateescape"))
        for column in (record.boxes_xyxy, record.labels, record.is_crowd, record.areas):
            content.update(repr(column.tolist()).encode())
    return content.hexdigest()
