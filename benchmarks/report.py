"""Time and size of `fcos report` for an evaluation of 4,952 images with 80 classes.

    python benchmarks/report.py --data ../shared/data

The objects are those of the list `lists/coco_val2017.txt` there. The images are photographs of
`voc100/images`, brought to the sizes that the boxes need and linked under the names of the list. The
detections are made: as of a mediocre detector, 100 an image, which is the most that there can be. The model
file has random weights: looking at images again takes its time, and what it says means nothing. What is
timed is the command as a user types it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
from frame import start
from PIL import Image

from fcos.config import dump_config, load_config
from fcos.data.annotations import Annotations
from fcos.data.check import check
from fcos.data.formats import read_annotations, read_names
from fcos.data.summary import summarize, write_summaries
from fcos.model.build import build_model
from fcos.weights.load import MODEL_SETTINGS
from fcos.weights.model_file import ModelCard, save_model

STEP = 32  # pixels between the sizes of images
PER_IMAGE = 100


def make_images(annotations: Annotations, photographs: list[Path], folder: Path) -> None:
    """An image of each name that is large enough for its boxes."""
    made: dict[tuple[int, int], Path] = {}
    for index, record in enumerate(annotations):
        needed = record.boxes_xyxy[:, 2:].max(axis=0, initial=320)
        width, height = (int(-(-side // STEP)) * STEP for side in needed)
        if (width, height) not in made:
            made[width, height] = folder / f"{width}x{height}.jpg"
            with Image.open(photographs[index % len(photographs)]) as photograph:
                photograph.convert("RGB").resize((width, height)).save(made[width, height], quality=90)
        (folder / record.path.name).symlink_to(made[width, height])


def make_results(annotations: Annotations) -> list[dict[str, object]]:
    """Entries of a results file: most objects twice, with noise, and background up to the limit."""
    rng = np.random.default_rng(0)
    entries: list[dict[str, object]] = []
    for record in annotations:
        boxes, labels = np.tile(record.boxes_xyxy, (2, 1)), np.tile(record.labels, 2)
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        boxes = boxes + rng.normal(0, 0.07, boxes.shape) * sides
        scores = np.clip(rng.normal(0.5, 0.2, len(boxes)), 0.05, 0.99)
        wrong = rng.random(len(boxes)) < 0.15
        labels = np.where(wrong, rng.integers(0, annotations.num_classes, len(boxes)), labels)
        corner = rng.uniform(0, 300, (PER_IMAGE, 2))
        background = np.concatenate([corner, corner + rng.uniform(10, 200, (PER_IMAGE, 2))], axis=1)
        boxes = np.concatenate([boxes, background])[:PER_IMAGE]
        scores = np.append(scores, 0.05 + 0.5 * rng.beta(1, 6, PER_IMAGE))[:PER_IMAGE]
        labels = np.append(labels, rng.integers(0, annotations.num_classes, PER_IMAGE))[:PER_IMAGE]
        boxes[:, 2:] = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            entries.append(
                {
                    "image_id": record.image_id,
                    "category_id": annotations.category_ids[label],
                    "bbox": [round(value, 3) for value in box],
                    "score": round(score, 6),
                }
            )
    return entries


def make_run(data: Path, folder: Path) -> Path:
    """A run folder as a training leaves it, without curves."""
    names = read_names(data / "lists" / "coco_name.txt")[0]
    source = data / "lists" / "coco_val2017.txt"
    annotations = read_annotations(source, names=names, format="list")
    (folder / "images").mkdir()
    make_images(annotations, sorted((data / "voc100" / "images").glob("*.jpg")), folder / "images")

    run = folder / "run"
    run.mkdir()
    config = load_config(
        {
            "model": "fcos_mobilenetv2",
            "pretrain": False,
            **{"list_train": str(source), "root_train": str(folder / "images")},
            **{"list_eval": str(source), "root_eval": str(folder / "images")},
            "name_file": str(data / "lists" / "coco_name.txt"),
        }
    )
    dump_config(config, run / "config.json")
    (run / "metrics.jsonl").touch()
    read = read_annotations(source, root=folder / "images", names=names, format="list")
    card = summarize(read, check(read, decode=False))
    write_summaries({"training": card, "evaluation": card}, run)
    (run / "results.json").write_text(json.dumps(make_results(annotations)))
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key in MODEL_SETTINGS}
    model_card = ModelCard(settings, annotations.class_names, annotations.category_ids)
    save_model(run / "best.safetensors", build_model(config, len(names)).state_dict(), model_card)
    return run


def main(
    data: Path = Path("../shared/data"), keep: Annotated[Path | None, "copy the page here"] = None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(data.resolve(), Path(folder))
        command = [sys.executable, "-m", "fcos", "report", str(run), "--device", "cpu"]
        started_at = time.perf_counter()
        subprocess.run(command, check=True)
        elapsed_s = time.perf_counter() - started_at
        page = (run / "report.html").read_bytes()
        if keep:
            keep.write_bytes(page)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = used.ru_utime + used.ru_stime
    print(
        f"{elapsed_s:.1f} s ({processor_s:.1f} s of processor time), {len(page) / 2**20:.1f} MB, "
        f"peak {used.ru_maxrss / 2**20:.1f} GiB"
    )


if __name__ == "__main__":
    start(main)
