"""Convert detections to and from the formats of other tools. Each function is a method of `Detections`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from fcos.errors import FcosError
from fcos.terminal import counted

if TYPE_CHECKING:
    from fcos.predict.detections import Detections


def to_coco(
    self: Detections, image_id: int, category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Entries of a COCO results file.

    Args:
        image_id: the id of this image in the annotation file.
        category_ids: the id of each label in the annotation file; default: 1, 2, ...

    Returns:
        One dict per box: `image_id`, `category_id`, `bbox` (xywh, original pixels), `score`.
    """
    ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
    if len(ids) != len(self.class_names):
        raise ValueError(f"{len(ids)} category_ids for {counted(len(self.class_names), 'class', 'classes')}")
    boxes_xywh = box_convert(self.boxes_xyxy.double(), "xyxy", "xywh").tolist()
    return [
        {"image_id": image_id, "category_id": int(ids[label]), "bbox": box, "score": score}
        for box, score, label in zip(boxes_xywh, self.scores.tolist(), self.labels.tolist(), strict=True)
    ]


def from_coco(
    cls: type[Detections],
    entries: Sequence[Any],
    class_names: Sequence[str],
    category_ids: Sequence[int] | None = None,
    image: Image.Image | None = None,
) -> Detections:
    """From the entries of one image in a COCO results file; the inverse of `to_coco`."""
    ids = list(range(1, len(class_names) + 1) if category_ids is None else category_ids)
    boxes_xywh = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([entry["score"] for entry in entries], dtype=torch.float32)
    labels = _places([entry["category_id"] for entry in entries], ids, "category_ids")
    boxes = box_convert(boxes_xywh, "xywh", "xyxy")
    return cls(boxes, scores, labels, tuple(class_names), image).by_score()


def to_yolo(
    self: Detections, size_hw: tuple[int, int] | None = None, *, with_scores: bool = True
) -> list[str]:
    """Lines of a YOLO label file: label, center x, y, width, height (normalized), score.

    Args:
        size_hw: height, width of the image; default: the size of `image`.
        with_scores: append scores, as Ultralytics' ``save_conf`` does; False for labels to train on.
    """
    from fcos.data.formats.yolo import label_lines  # not needed to predict

    lines = label_lines(
        self.boxes_xyxy.double().cpu().numpy(), self.labels.tolist(), _size_hw(self.image, size_hw)
    )
    if not with_scores:
        return lines
    return [f"{line} {score:.6f}" for line, score in zip(lines, self.scores.tolist(), strict=True)]


def from_yolo(
    cls: type[Detections],
    lines: Sequence[str],
    class_names: Sequence[str],
    size_hw: tuple[int, int] | None = None,
    image: Image.Image | None = None,
) -> Detections:
    """From lines of a YOLO label file; a box without a score has the score 1.

    Args:
        lines: as from `to_yolo`; only boxes, no polygons.
        size_hw: height, width of the image; default: the size of `image`, which is kept in the detections.
    """
    rows = [[*map(float, line.split()), 1.0][:6] for line in lines if line.strip()]
    if any(len(line.split()) not in (0, 5, 6) for line in lines):  # a polygon, keypoints
        raise ValueError("a line of a YOLO label file has 5 numbers, or 6 with the score")
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    height, width = _size_hw(image, size_hw)
    boxes = box_convert(table[:, 1:5], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
    return cls(boxes.float(), table[:, 5].float(), table[:, 0].long(), tuple(class_names), image).by_score()


def to_pandas(self: Detections) -> Any:
    """A `pandas.DataFrame`, one row per box: x1, y1, x2, y2 (original pixels), score, label, class_name.

    Also track_id, if a tracker set it.
    """
    pandas = _needed("pandas")
    table = pandas.DataFrame(self.boxes_xyxy.cpu().numpy(), columns=["x1", "y1", "x2", "y2"])
    table["score"] = self.scores.cpu().numpy()
    table["label"] = self.labels.cpu().numpy()
    table["class_name"] = _names(self)
    if self.track_ids is not None:
        table["track_id"] = self.track_ids.cpu().numpy()
    return table


def from_pandas(
    cls: type[Detections], table: Any, class_names: Sequence[str], image: Image.Image | None = None
) -> Detections:
    """From a table like that of `to_pandas`, in its order; other columns are ignored."""
    tracked = "track_id" in table.columns
    return cls(
        torch.tensor(table[["x1", "y1", "x2", "y2"]].to_numpy("float32")),
        torch.tensor(table["score"].to_numpy("float32")),
        torch.tensor(table["label"].to_numpy("int64")),
        tuple(class_names),
        image,
        track_ids=torch.tensor(table["track_id"].to_numpy("int64")) if tracked else None,
    )


def to_supervision(self: Detections) -> Any:
    """`supervision.Detections`, for its annotators, trackers and zones; class names in ``class_name``."""
    supervision = _needed("supervision")
    return supervision.Detections(
        xyxy=self.boxes_xyxy.cpu().numpy(),
        confidence=self.scores.cpu().numpy(),
        class_id=self.labels.cpu().numpy(),
        tracker_id=None if self.track_ids is None else self.track_ids.cpu().numpy(),
        data={"class_name": np.array(_names(self), dtype=str)},
    )


def from_supervision(
    cls: type[Detections], found: Any, class_names: Sequence[str], image: Image.Image | None = None
) -> Detections:
    """From `supervision.Detections` (of a tracker, for example), in its order; masks are ignored."""
    ids = found.tracker_id
    return cls(
        torch.as_tensor(found.xyxy, dtype=torch.float32).reshape(-1, 4),
        torch.as_tensor(found.confidence, dtype=torch.float32).reshape(-1),
        torch.as_tensor(found.class_id, dtype=torch.int64).reshape(-1),
        tuple(class_names),
        image,
        track_ids=None if ids is None else torch.as_tensor(ids, dtype=torch.int64).reshape(-1),
    )


def to_fiftyone(self: Detections, size_hw: tuple[int, int] | None = None) -> Any:
    """`fiftyone.Detections`, for a field of a sample; `size_hw` as in `to_yolo`, track ids as ``index``."""
    fiftyone = _needed("fiftyone")
    height, width = _size_hw(self.image, size_hw)
    boxes = self.boxes_xyxy.double().cpu() / torch.tensor([width, height, width, height])
    boxes_xywh = box_convert(boxes, "xyxy", "xywh").tolist()
    ids = [-1] * len(self) if self.track_ids is None else self.track_ids.tolist()
    rows = zip(_names(self), boxes_xywh, self.scores.tolist(), ids, strict=True)
    return fiftyone.Detections(
        detections=[
            fiftyone.Detection(
                label=name, bounding_box=box, confidence=score, index=track_id if track_id >= 0 else None
            )
            for name, box, score, track_id in rows
        ]
    )


def from_fiftyone(
    cls: type[Detections],
    found: Any,
    class_names: Sequence[str],
    size_hw: tuple[int, int] | None = None,
    image: Image.Image | None = None,
) -> Detections:
    """From the `fiftyone.Detections` of a sample, in its order; a box without `confidence` has the score 1.

    Their labels must be in `class_names`; masks and attributes are ignored. `size_hw` and `image` are as in
    `from_yolo`.
    """
    rows, (height, width) = found.detections, _size_hw(image, size_hw)
    ids = [row.index for row in rows]
    boxes = torch.tensor([row.bounding_box for row in rows], dtype=torch.float64).reshape(-1, 4)
    boxes = box_convert(boxes, "xywh", "xyxy")
    tracked = any(track_id is not None for track_id in ids)
    return cls(
        (boxes * torch.tensor([width, height, width, height])).float(),
        torch.tensor([1.0 if row.confidence is None else row.confidence for row in rows]),
        _places([row.label for row in rows], class_names, "class_names"),
        tuple(class_names),
        image,
        track_ids=torch.tensor([-1 if each is None else each for each in ids]) if tracked else None,
    )


def _names(detections: Detections) -> list[str]:
    """The class of each box."""
    return [detections.class_names[label] for label in detections.labels.tolist()]


def _places(found: Sequence[Any], known: Sequence[Any], argument: str) -> Tensor:
    """The label of each: its index in the argument `known`."""
    if unknown := list(dict.fromkeys(one for one in found if one not in known)):
        raise FcosError(
            f"{argument} has no {', '.join(map(repr, unknown))}",
            fix=f"remove these detections, or add the missing ones; {argument}: {', '.join(map(str, known))}",
        )
    return torch.tensor([known.index(one) for one in found], dtype=torch.int64)


def _size_hw(image: Image.Image | None, size_hw: tuple[int, int] | None) -> tuple[int, int]:
    if size_hw is not None:
        return size_hw
    if image is None:
        raise ValueError(
            "these detections do not contain their image, and its size is needed\n"
            "  fix: pass size_hw=(height, width)"
        )
    return image.height, image.width


def _needed(package: str) -> Any:
    """A package that only one method needs."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise FcosError(f"this needs {package}", fix=f"pip install {package}") from error
