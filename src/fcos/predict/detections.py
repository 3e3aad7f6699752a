"""Detections of one image, as returned by `predict`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fcos.errors import FcosError
from fcos.predict import conversions

TENSORS = {  # with the shape of each row, and the dtype
    "boxes_xyxy": ((4,), torch.float32),
    "scores": ((), torch.float32),
    "labels": ((), torch.int64),
    "found_at": ((3,), torch.float32),
    "track_ids": ((), torch.int64),
}
Index = int | slice | Tensor | NDArray[Any] | Sequence[int] | Sequence[bool]


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """Boxes that the detector predicted in one image, best score first.

    Index it like an array: `detections[detections.labels == 2]`, `detections[:10]`; every index, even an
    integer, returns `Detections`. `first + second` joins two of one image, and `==` compares everything but
    the image. In a notebook, it is displayed as the drawn image and a table.

    Attributes:
        boxes_xyxy: `(N, 4)` float32, xyxy, pixels of the upright original image.
        scores: `(N,)` float32 in [0, 1].
        labels: `(N,)` int64, 0-based, index into `class_names`.
        class_names: the classes of the model, without background.
        image: the upright image, if it was kept.
        found_at: `(N, 3)` float32: x, y of the point that predicted each box, pixels of the upright original
            image, and the stride of its level, pixels of the resized image (P3 has stride 8); None: unknown.
        track_ids: `(N,)` int64 from a tracker: an object has the same id in all frames of a video; -1: none
            (yet).
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    image: Image.Image | None = None
    found_at: Tensor | None = None
    track_ids: Tensor | None = None

    def __post_init__(self) -> None:
        num_boxes = len(self.boxes_xyxy)
        for name, (row, dtype) in TENSORS.items():
            tensor, shape = getattr(self, name), (num_boxes, *row)
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
        tensors = {name: getattr(self, name) for name in TENSORS}
        chosen: dict[str, Any] = {
            name: tensor if tensor is None else tensor[index] for name, tensor in tensors.items()
        }
        return replace(self, **chosen)

    def __iter__(self) -> Iterator[Detections]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        return self.class_names == other.class_names and all(
            mine is theirs if mine is None or theirs is None else torch.equal(mine, theirs)
            for mine, theirs in ((getattr(self, name), getattr(other, name)) for name in TENSORS)
        )

    __hash__ = None  # type: ignore[assignment]  # tensors can be changed

    def __add__(self, other: Detections) -> Detections:
        """Combine both, best score first.

        `found_at` and `track_ids` are kept if both have them; the image is that of the first.
        """
        if self.class_names != other.class_names:
            raise ValueError("detections with different class_names cannot be joined")
        parts = {name: (getattr(self, name), getattr(other, name)) for name in TENSORS}
        joined: dict[str, Any] = {
            name: None if first is None or second is None else torch.cat([first, second])
            for name, (first, second) in parts.items()
        }
        image = other.image if self.image is None else self.image
        return replace(self, **joined, image=image).by_score()

    def __repr__(self) -> str:
        counts = Counter(self.class_name(index) for index in range(len(self)))
        classes = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
        best = f", best score {float(self.scores.max()):.2f}" if len(self) else ""
        size = f", image {self.image.width} x {self.image.height}" if self.image is not None else ""
        return f"Detections({classes}{best}{size})"

    def _repr_html_(self) -> str:
        """For notebooks."""
        from fcos.predict.notebook import as_html  # not needed elsewhere

        return as_html(self)

    def class_name(self, index: int) -> str:
        """Name of the class of one detection."""
        return self.class_names[int(self.labels[index])]

    def above(self, threshold: float) -> Detections:
        """The detections with a score of at least `threshold`."""
        return self[self.scores >= threshold]

    def by_score(self) -> Detections:
        """The detections sorted by score, best first; equal scores keep their order."""
        return self[self.scores.argsort(descending=True, stable=True)]

    def filter(
        self,
        *,
        classes: str | int | Iterable[str | int] | None = None,
        min_score: float | int = 0,
        min_area: float | int = 0,
    ) -> Detections:
        """The detections that meet all conditions.

        Args:
            classes: a name or label, or several.
            min_area: minimum area of a box, in square pixels of the original image.
        """
        sides = self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]
        kept = (self.scores >= min_score) & (sides.prod(dim=1) >= min_area)
        if classes is not None:
            wanted = labels_of(classes, self.class_names)
            kept &= torch.isin(self.labels, torch.tensor(wanted, device=self.labels.device))
        return self[kept]

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

    to_coco, from_coco = conversions.to_coco, classmethod(conversions.from_coco)
    to_yolo, from_yolo = conversions.to_yolo, classmethod(conversions.from_yolo)
    to_pandas, from_pandas = conversions.to_pandas, classmethod(conversions.from_pandas)
    to_supervision = conversions.to_supervision
    from_supervision = classmethod(conversions.from_supervision)
    to_fiftyone, from_fiftyone = conversions.to_fiftyone, classmethod(conversions.from_fiftyone)


def labels_of(classes: str | int | Iterable[str | int], class_names: Sequence[str]) -> list[int]:
    """The labels of one or more classes, given by name or label.

    Raises:
        FcosError: a class does not exist.
    """
    wanted = [classes] if isinstance(classes, str | int) else list(classes)
    unknown = [one for one in wanted if one not in class_names and one not in range(len(class_names))]
    if unknown:
        raise FcosError(
            f"the model has no class {', '.join(map(repr, unknown))}",
            fix=f"choose from its classes: {', '.join(class_names)}",
        )
    return [class_names.index(one) if isinstance(one, str) else one for one in wanted]


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
