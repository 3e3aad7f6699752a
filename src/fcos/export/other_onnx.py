"""Run ONNX files of other projects as their authors do, for `fcos compare`.

Three layouts are supported. Pixels are RGB in [0, 1] in all of them, resized with antialiasing to the input
size in the file.

- DEIM, D-FINE, RT-DETR: inputs ``images`` and ``orig_target_sizes`` (width, height), outputs ``labels``,
  ``boxes`` (xyxy, original pixels), ``scores``. The image is stretched to the input.
- YOLOv8, YOLO11: an output ``(1, 4 + classes, N)``, center and size in input pixels, then scores; no NMS.
- YOLOv10, YOLO26: an output ``(1, N, 6)``, xyxy in input pixels, score and label, after NMS.

For YOLO the image is scaled and padded with gray.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from fcos.data.names import read_names
from fcos.data.transforms import resize
from fcos.errors import WeightsError
from fcos.export.card import ENTRY
from fcos.export.onnx_file import open_session
from fcos.predict.detections import Detections

Layout = Literal["detr", "yolo", "yolo_after_nms"]

SIZE = 640  # input size for files that accept any
GRAY = 114 / 255  # YOLO's padding
MIN_SCORE, NMS_IOU, MAX_DETECTIONS = 0.001, 0.7, 300  # YOLO's, for computing AP


@dataclass(frozen=True, eq=False)
class OtherOnnx:
    """A detector of another project, and the size of its input."""

    session: Any
    layout: Layout
    size_hw: tuple[int, int]
    class_names: tuple[str, ...]
    path: Path

    def predict(self, image: Tensor) -> Detections:
        """All detections in an RGB uint8 image `(3, height, width)`."""
        if self.layout == "detr":
            boxes, scores, labels = self._detr(image)
        else:
            boxes, scores, labels = self._yolo(image)
        if len(labels) and int(labels.max()) >= len(self.class_names):
            raise WeightsError(
                f"{self.path.name} predicted the label {int(labels.max())}, but there are only "
                f"{len(self.class_names)} class names",
                where=str(self.path),
                fix="give the names of its classes, in its order: --other-names FILE",
            )
        height, width = image.shape[1:]
        boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2))
        shown = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        found = Detections(boxes.float(), scores.float(), labels.long(), self.class_names, shown)
        return found[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)].by_score()

    def _run(self, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = [output.name for output in self.session.get_outputs()]
        arrays = self.session.run(outputs, {name: value.numpy() for name, value in feed.items()})
        return {name: torch.from_numpy(array) for name, array in zip(outputs, arrays, strict=True)}

    def _detr(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = image.shape[1:]
        pixels = resize(image, self.size_hw)[None].float() / 255
        found = self._run({"images": pixels, "orig_target_sizes": torch.tensor([[width, height]])})
        return found["boxes"][0], found["scores"][0], found["labels"][0]

    def _yolo(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = image.shape[1:]
        scale = min(self.size_hw[0] / height, self.size_hw[1] / width)
        inner_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
        top, left = ((outer - inner) // 2 for outer, inner in zip(self.size_hw, inner_hw, strict=True))
        pixels = torch.full((1, 3, *self.size_hw), GRAY)
        resized = resize(image, inner_hw)
        pixels[0, :, top : top + inner_hw[0], left : left + inner_hw[1]] = resized.float() / 255
        [output] = self._run({self.session.get_inputs()[0].name: pixels}).values()
        read = _after_nms if self.layout == "yolo_after_nms" else _with_nms
        boxes, scores, labels = read(output[0])
        return (boxes - torch.tensor([left, top] * 2)) / scale, scores, labels


def _after_nms(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = rows[rows[:, 4] > MIN_SCORE]
    return rows[:, :4], rows[:, 4], rows[:, 5]


def _with_nms(columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every class of every location with enough score; NMS per class."""
    labels, places = (columns[4:] > MIN_SCORE).nonzero().T
    scores = columns[4:][labels, places]
    boxes = box_convert(columns[:4].T[places], "cxcywh", "xyxy")
    kept = batched_nms(boxes, scores, labels, NMS_IOU)[:MAX_DETECTIONS]
    return boxes[kept], scores[kept], labels[kept]


def open_other(path: Path, names: Path | None, class_names: tuple[str, ...]) -> OtherOnnx | None:
    """A file of another project; None if `fcos export` wrote it.

    Args:
        names: a name file, for ONNX files without class names.
        class_names: class names of the data, used if there is no name file either.

    Raises:
        WeightsError: it cannot be opened, or its layout is unknown.
    """
    session = open_session(path, torch.get_num_threads())
    metadata = session.get_modelmeta().custom_metadata_map
    if ENTRY in metadata:
        return None
    layout = _layout_of(session, path)
    own = _literal(metadata.get("names", ""))
    if isinstance(own, dict):
        class_names = tuple(str(own[label]) for label in sorted(own))
    elif names is not None:
        class_names = tuple(read_names(names)[0])
    image = next(value for value in session.get_inputs() if value.name != "orig_target_sizes")
    sides = image.shape[2:]
    if not all(isinstance(side, int) for side in sides):
        sides = _literal(metadata.get("imgsz", "")) or (SIZE, SIZE)
    height, width = sides
    return OtherOnnx(session, layout, (height, width), class_names, path)


def _layout_of(session: Any, path: Path) -> Layout:
    inputs = {value.name for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    if inputs == {"images", "orig_target_sizes"} and set(outputs) == {"labels", "boxes", "scores"}:
        return "detr"
    shapes = list(outputs.values())
    if len(inputs) == len(shapes) == 1 and len(shapes[0]) == 3:
        return "yolo_after_nms" if shapes[0][2] == 6 else "yolo"
    described = ", ".join(f"{name} {shape}" for name, shape in outputs.items())
    raise WeightsError(
        f"the layout of {path.name} is unknown: inputs {', '.join(sorted(inputs))}; outputs {described}",
        where=str(path),
        fix="give a file of `fcos export`, or of DEIM, D-FINE, RT-DETR or YOLO (8 to 12, 26), exported with "
        "their defaults",
    )


def _literal(text: str) -> Any:
    """A Python literal, as Ultralytics writes it; None if it is invalid."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
