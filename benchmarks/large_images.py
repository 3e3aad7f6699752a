"""Make large images with small objects: mosaics of a data set's images, with their boxes, as COCO JSON.

    python benchmarks/large_images.py data/raccoon/ImageSets/Main/trainval.txt mosaics/train --number 60
    python benchmarks/large_images.py data/raccoon/ImageSets/Main/test.txt mosaics/test --number 8
    fcos train large.json tile=320
    fcos eval RUN --list mosaics/test.json --root mosaics/test --tile 0

Every image of the data set is used once before any is used twice.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from fcos.data.annotations import Annotations
from fcos.data.formats import read_annotations

GRAY = (114, 114, 114)


def mosaic(
    annotations: Annotations, chosen: list[int], per_side: int, cell: int
) -> tuple[Image.Image, list[Any]]:
    """Images in a grid, each as large as its cell, and their boxes (x, y, width, height, label)."""
    canvas, boxes = Image.new("RGB", (per_side * cell, per_side * cell), GRAY), []
    for place, index in enumerate(chosen):
        record = annotations[index]
        with Image.open(record.path) as file:
            image = file.convert("RGB")
        scale = cell / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        left, top = place % per_side * cell, place // per_side * cell
        canvas.paste(image, (left, top))
        for (x1, y1, x2, y2), label in zip(
            (record.boxes_xyxy * scale).tolist(), record.labels.tolist(), strict=True
        ):
            boxes.append((left + x1, top + y1, x2 - x1, y2 - y1, label))
    return canvas, boxes


def main() -> None:
    """Write `OUT/*.jpg` and `OUT.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--number", type=int, default=8, help="of mosaics")
    parser.add_argument("--per-side", type=int, default=4, help="images along a side")
    parser.add_argument("--cell", type=int, default=320, help="pixels of each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    annotations = read_annotations(arguments.annotations)
    shuffled: list[int] = []
    choose = random.Random(arguments.seed)
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    names = enumerate(annotations.class_names, start=1)
    content["categories"] = [{"id": number, "name": name} for number, name in names]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number in range(1, arguments.number + 1):
        while len(shuffled) < arguments.per_side**2:
            shuffled += choose.sample(range(len(annotations)), len(annotations))
        chosen, shuffled = shuffled[: arguments.per_side**2], shuffled[arguments.per_side**2 :]
        canvas, boxes = mosaic(annotations, chosen, arguments.per_side, arguments.cell)
        canvas.save(arguments.out / f"{number:03d}.jpg", quality=90)
        size = {"width": canvas.width, "height": canvas.height}
        content["images"].append({"id": number, "file_name": f"{number:03d}.jpg", **size})
        for x, y, width, height, label in boxes:
            entry = {"image_id": number, "category_id": label + 1, "bbox": [x, y, width, height]}
            entry |= {"id": len(content["annotations"]) + 1, "area": width * height, "iscrowd": 0}
            content["annotations"].append(entry)
    arguments.out.with_suffix(".json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
