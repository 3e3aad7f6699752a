"""Detections of one image: what `predict` returns."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fcos.errors import FcosError
from fcos.terminal import counted

Index = int | slice | Tensor | NDArray[Any] | Sequence[int] | Sequence[bool]


@dataclass(frozen=True, eq=False, repr=False)  # tensors have no single truth value to compare by
class Detections:
    """Boxes that the detector predicted in one image, best score first.

    Index it like an array: `detections[detections.labels == 2]`, `detections[:10]`; every index, even an
    integer, returns `Detections`.

    Attributes:
        boxes_xyxy: `(N, 4)` float32, xyxy, pixels of the upright original image.
        scores: `(N,)` float32 in [0, 1].
        labels: `(N,)` int64, 0-based, index into `class_names`.
        class_names: the classes of the model, without background.
        image: the upright image, if it was kept.
        found_at: `(N, 3)` float32: x, y of the point that predicted each, pixels of the upright original
            image, and the stride of its level, pixels of the resized one (P3 has stride 8); None: unknown.
        track_ids: `(N,)` int64 from a tracker: the same object of a video has the same one in all its frames;
            -1: none (yet).
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    image: Image.Image | None = field(default=None)
    found_at: Tensor | None = field(default=None)
    track_ids: Tensor | None = field(default=None)

    def __post_init__(self) -> None:
        num_boxes = len(self.boxes_xyxy)
        for name, shape, dtype in (
            ("boxes_xyxy", (num_boxes, 4), torch.float32),
            ("scores", (num_boxes,), torch.float32),
            ("labels", (num_boxes,), torch.int64),
            ("found_at", (num_boxes, 3), torch.float32),
            ("track_ids", (num_boxes,), torch.int64),
        ):
            tensor = getattr(self, name)
            if tensor is None and name in ("found_at", "track_ids"):
                continue
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise ValueError(
                    f"Detections.{name} is {tuple(tensor.shape)} {tensor.dtype}, expected {shape} {dtype}"
                )
        if num_boxes and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise ValueError(
                f"Detections.labels are in [{self.labels.min()}, {self.labels.max()}], "
                f"but there are {len(self.class_names)} class_names"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Index) -> Detections:
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"detection {index} of {len(self)}")
            index = [index]
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.scores.device)
            if index.numel() == 0 and index.dtype != torch.bool:
                index = index.long()  # an empty list becomes a float tensor, which cannot index
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[index],
            scores=self.scores[index],
            labels=self.labels[index],
            found_at=None if self.found_at is None else self.found_at[index],
            track_ids=None if self.track_ids is None else self.track_ids[index],
        )

    def __iter__(self) -> Iterator[Detections]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        counts = Counter(self.class_name(index) for index in range(len(self)))
        classes = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
        best = f", best score {float(self.scores.max()):.2f}" if len(self) else ""
        size = f", image {self.image.width} x {self.image.height}" if self.image is not None else ""
        return f"Detections({classes}{best}{size})"

    def class_name(self, index: int) -> str:
        """Name of the class of one detection."""
        return self.class_names[int(self.labels[index])]

    def above(self, threshold: float) -> Detections:
        """The detections with a score of at least `threshold`."""
        return self[self.scores >= threshold]

    def draw(self, score_threshold: float | None = None) -> Image.Image:
        """A copy of the image with the boxes (of at least `score_threshold`) drawn on it."""
        if self.image is None:
            raise ValueError(
                "these detections do not contain their image\n"
                "  fix: dataclasses.replace(detections, image=image).draw()"
            )
        from fcos.predict.draw import draw_boxes  # imports matplotlib, so only when drawing

        shown = self if score_threshold is None else self.above(score_threshold)
        return draw_boxes(
            self.image,
            shown.boxes_xyxy,
            shown.labels,
            self.class_names,
            scores=shown.scores,
            track_ids=shown.track_ids,
        )

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Entries of a COCO results file.

        Args:
            image_id: the id of this image in the annotation file.
            category_ids: the id of each label in the annotation file; default: 1, 2, ...

        Returns:
            One dict per box: `image_id`, `category_id`, `bbox` (xywh, original pixels), `score`.
        """
        ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
        if len(ids) != len(self.class_names):
            raise ValueError(
                f"{len(ids)} category_ids for {counted(len(self.class_names), 'class', 'classes')}"
            )
        boxes_xywh = self.boxes_xyxy.double().cpu().numpy().copy()
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
        return [
            {"image_id": image_id, "category_id": int(ids[label]), "bbox": box, "score": score}
            for box, score, label in zip(
                boxes_xywh.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True
            )
        ]

    @classmethod
    def from_coco(
        cls,
        entries: Sequence[Mapping[str, Any]],
        class_names: Sequence[str],
        category_ids: Sequence[int] | None = None,
        image: Image.Image | None = None,
    ) -> Detections:
        """From the entries of one image in a COCO results file; the inverse of `to_coco`."""
        ids = list(range(1, len(class_names) + 1) if category_ids is None else category_ids)
        boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32).reshape(-1, 4)
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        scores = torch.tensor([entry["score"] for entry in entries], dtype=torch.float32)
        labels = torch.tensor([ids.index(entry["category_id"]) for entry in entries], dtype=torch.int64)
        order = scores.argsort(descending=True, stable=True)
        return cls(boxes[order], scores[order], labels[order], tuple(class_names), image)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`, one row per box: x1, y1, x2, y2 (original pixels), score, label, class_name.

        Also track_id, if a tracker set it.
        """
        pandas = _needed("pandas")
        table = pandas.DataFrame(self.boxes_xyxy.cpu().numpy(), columns=["x1", "y1", "x2", "y2"])
        table["score"] = self.scores.cpu().numpy()
        table["label"] = self.labels.cpu().numpy()
        table["class_name"] = [self.class_name(index) for index in range(len(self))]
        if self.track_ids is not None:
            table["track_id"] = self.track_ids.cpu().numpy()
        return table

    @classmethod
    def from_pandas(
        cls, table: Any, class_names: Sequence[str], image: Image.Image | None = None
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

    def to_supervision(self) -> Any:
        """`supervision.Detections`, for its annotators, trackers and zones; names under ``class_name``."""
        supervision = _needed("supervision")
        return supervision.Detections(
            xyxy=self.boxes_xyxy.cpu().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            tracker_id=None if self.track_ids is None else self.track_ids.cpu().numpy(),
            data={"class_name": np.array([self.class_name(index) for index in range(len(self))], dtype=str)},
        )

    @classmethod
    def from_supervision(
        cls, found: Any, class_names: Sequence[str], image: Image.Image | None = None
    ) -> Detections:
        """From `supervision.Detections` (a tracker's, for example), in its order; masks are ignored."""
        ids = found.tracker_id
        return cls(
            torch.as_tensor(found.xyxy, dtype=torch.float32).reshape(-1, 4),
            torch.as_tensor(found.confidence, dtype=torch.float32).reshape(-1),
            torch.as_tensor(found.class_id, dtype=torch.int64).reshape(-1),
            tuple(class_names),
            image,
            track_ids=None if ids is None else torch.as_tensor(ids, dtype=torch.int64).reshape(-1),
        )


def as_dicts(detections: Detections) -> list[dict[str, Any]]:
    """Detections in the format of `detections.json`, boxes to a hundredth of a pixel."""
    table = zip(
        detections.boxes_xyxy.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
    )
    entries: list[dict[str, Any]] = [
        {
            "box_xyxy": [round(side, 2) for side in box],
            "score": round(score, 4),
            "label": label,
            "class_name": detections.class_names[label],
        }
        for box, score, label in table
    ]
    if detections.track_ids is not None:
        for entry, track_id in zip(entries, detections.track_ids.tolist(), strict=True):
            entry["track_id"] = track_id if track_id >= 0 else None
    return entries


def _needed(package: str) -> Any:
    """A package that only one method needs."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise FcosError(f"this needs {package}", fix=f"pip install {package}") from error
