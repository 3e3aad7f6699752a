"""Train the detector that comes with the package, pack it, and measure it.

    python benchmarks/everyday.py train --voc07 DIR --more DIR --out everyday   on train, measured on val
    python benchmarks/everyday.py train --voc07 DIR --out all --list trainval --start everyday/large   no gain
    python benchmarks/everyday.py pack everyday/more -o src/fcos/weights/everyday.safetensors
    python benchmarks/everyday.py measure everyday --voc07 DIR --coco-mini DIR

`train` runs the stages below, each from the weights of the one before (the first from ImageNet's); a stage
that was stopped resumes, one that is done is kept. Stage `more` runs where there are `--more` images. With
`--start`, only stage `large` runs, from those weights. `pack` stores the weights in half precision, and
renames the classes and their ids to COCO's, which users' data more often have. `measure` prints AP on VOC07's
val and on COCO's 20 classes of the same objects.

Each DIR holds JPEGImages, Annotations and ImageSets/Main, with train.txt (VOC07 with val.txt too): the images
are not part of this repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcos import Detector
from fcos.cli.compare import open_candidates
from fcos.data.annotations import Annotations, select
from fcos.data.check import check, drop_invalid
from fcos.data.formats import read_annotations
from fcos.data.names import with_classes_of
from fcos.report.tradeoff import measure_candidates
from fcos.weights.load import EVERYDAY
from fcos.weights.model_file import read_model, save_model
from fcos.weights.published.coco import COCO_IDS, COCO_NAMES

ALL = {
    "model": "fcos_mobilenetv2",
    "class_loss": "qfl",
    "class_target": "iou",
    "quality": "none",
    "augmentation": "standard",
    "ema_decay": 0.998,
    "precision": "bf16",
    "num_workers": 1,
    "data_format": "voc",
}
STAGES: dict[str, dict[str, Any]] = {
    # small images first: a third of the time of large ones, and most of what there is to learn
    "small": {"epochs": 20, "eval_epochs": 4, "short_side": 192, "view_size": 320},
    "large": {"epochs": 5, "eval_epochs": 5, "short_side": 320, "view_size": 532, "lr_base": 0.0005},
    "more": {"epochs": 6, "eval_epochs": 2, "short_side": 320, "view_size": 532, "lr_base": 0.0005},
}
SHORT_SIDE, VIEW_SIZE = 320, 532  # of the file
COCO_NAME = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def train(args: argparse.Namespace) -> None:
    """Each stage in a process of its own."""
    start = str(args.start) if args.start else True
    names = ["large"] if args.start else ["small", "large", *(["more"] if args.more else [])]
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        run = args.out / name
        data = with_more(args.voc07, args.more, args.out / "voc") if name == "more" else args.voc07
        lists, images = data / "ImageSets" / "Main", data / "JPEGImages"
        settings = ALL | STAGES[name] | {"pretrain": start, "run_folder": str(run.absolute())}
        settings |= {"list_train": str(lists / f"{args.list}.txt"), "root_train": str(images)}
        settings |= {"list_eval": str(lists / "val.txt"), "root_eval": str(images)}
        config = args.out / f"{name}.json"
        config.write_text(json.dumps(settings, indent=1))
        resume = ["load=true"] if (run / "last.ckpt").exists() else []
        subprocess.run([sys.executable, "-m", "fcos", "train", str(config), *resume], check=True)
        start = str(run.absolute())


def with_more(voc07: Path, more: Path, out: Path) -> Path:
    """VOC07, and more images to learn from, in one folder of links."""
    for part in ("JPEGImages", "Annotations"):
        (out / part).mkdir(parents=True, exist_ok=True)
        for file in (*(voc07 / part).iterdir(), *(more / part).iterdir()):
            if not (out / part / file.name).exists():
                (out / part / file.name).symlink_to(file.absolute())
    lists = out / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    own, other = (folder / "ImageSets" / "Main" for folder in (voc07, more))
    (lists / "train.txt").write_text((own / "train.txt").read_text() + (other / "train.txt").read_text())
    shutil.copy(own / "val.txt", lists)
    return out


def pack(args: argparse.Namespace) -> None:
    """The best weights of a run, in half precision, with COCO's names."""
    source = args.run / "best.safetensors"
    card, tensors = read_model(source)
    names = tuple(COCO_NAME.get(name, name) for name in card.class_names)
    ids = tuple(COCO_IDS[COCO_NAMES.index(name)] for name in names)
    # not the mean and std of the pixels, which half precision would change
    half = {
        key: value.half() if value.is_floating_point() and not key.startswith("pixel_") else value
        for key, value in tensors.items()
    }
    settings = card.settings | {"short_side": SHORT_SIDE, "view_size": VIEW_SIZE}
    card = dataclasses.replace(card, class_names=names, category_ids=ids, settings=settings)
    save_model(args.output, half, card)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB")


def everyday_objects(annotations: Annotations, class_names: tuple[str, ...]) -> Annotations:
    """The annotations with these classes alone; all images stay."""
    names = [COCO_NAME.get(name, name) for name in annotations.class_names]
    kept = np.array([name in class_names for name in names])
    chosen = select(annotations, range(len(annotations)), kept[annotations.labels])
    new = np.cumsum(kept) - 1
    renamed = dataclasses.replace(
        chosen,
        class_names=tuple(name for name, keep in zip(names, kept, strict=True) if keep),
        category_ids=tuple(i for i, keep in zip(annotations.category_ids, kept, strict=True) if keep),
        labels=new[chosen.labels],
    )
    return with_classes_of(renamed, class_names)


def measure(args: argparse.Namespace) -> None:
    """AP and latency of models on both sets: run folders, files, ONNX files of COCO's 80 classes."""
    torch.set_num_threads(args.threads)
    val = args.voc07 / "ImageSets" / "Main" / "val.txt"
    class_names = Detector.load(EVERYDAY, "cpu").class_names
    sets = {"VOC07 val": read_annotations(val, root=args.voc07 / "JPEGImages", format="voc")}
    for part in ("val2017", "train2017"):  # nothing here was trained on either
        coco = args.coco_mini / "annotations" / f"instances_{part}.json"
        sets[f"COCO {part}"] = read_annotations(coco, root=args.coco_mini / part, format="coco")
    print("| model | images | AP | AP50 | AP75 | AP small | ms |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        coco_names = Path(folder) / "coco.txt"  # of a teacher's file, which does not name its classes
        coco_names.write_text("".join(f"{name}\n" for name in COCO_NAMES))
        for name, read in sets.items():
            annotations = everyday_objects(drop_invalid(read, check(read)), class_names)
            for row in measure_candidates(
                open_candidates(args.models, annotations, coco_names, "cpu"), annotations
            ):
                numbers = row.metrics
                scores = numbers.map_mean, numbers.map_50, numbers.map_75, numbers.stats[3]
                cells = [row.candidate.name, name, *(f"{score:.3f}" for score in scores)]
                print("| " + " | ".join(cells) + f" | {row.latency_ms:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    trained = commands.add_parser("train", help="run the stages that are not done")
    trained.add_argument("--out", type=Path, required=True)
    trained.add_argument("--list", default="train", help="train (the shipped file), or trainval")
    trained.add_argument("--more", type=Path, help="a VOC folder of other images, for a last stage")
    trained.add_argument("--start", type=Path, help="run only stage large, from these weights")
    packed = commands.add_parser("pack", help="write the file that ships")
    packed.add_argument("run", type=Path)
    packed.add_argument("-o", "--output", type=Path, required=True)
    measured = commands.add_parser("measure", help="AP on VOC07's val and on COCO")
    measured.add_argument("models", nargs="+")
    measured.add_argument("--coco-mini", type=Path, required=True)
    measured.add_argument("--threads", type=int, default=2)
    for command, function in ((trained, train), (packed, pack), (measured, measure)):
        command.set_defaults(function=function)
        if function is not pack:
            command.add_argument("--voc07", type=Path, required=True)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
