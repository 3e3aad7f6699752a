"""Time of an evaluation beyond the network at COCO's size: `fcos eval` against pycocotools.

    python benchmarks/evaluation.py --data ../shared/data [--rounds 7 --peer-rounds 3]

495,200 detections, 100 on each of 4,952 images, 80 classes; the objects are those of the list
`lists/coco_val2017.txt` there, the detections are made (`benchmarks/report.py`): as of a mediocre detector.

Ours begins with what the network leaves, a list of tensors an image, and ends with the printed numbers and
results.json on the disk; memory is kept, as in the command. pycocotools begins with the entries of a results
file in memory: loadRes, evaluate, accumulate, summarize. Both in this process, in turn, median; the twelve
numbers must agree.

Then what an evaluation in training adds to the forward passes: the numbers and the best threshold,
results.json and a model file of `fcos_r50` on the disk. (The loader runs beside the network.)
"""

from __future__ import annotations

import contextlib
import gc
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from frame import in_turn, medians, start
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fcos.cli.eval import show
from fcos.config import load_config
from fcos.cpu.memory import keep_freed_memory
from fcos.data.annotations import Annotations
from fcos.data.formats import read_annotations, read_names
from fcos.metrics.coco import coco_ground_truth, evaluate_detections, measure, result_array
from fcos.metrics.rows import Rows, result_rows, results_json
from fcos.model.build import build_model
from fcos.model.postprocess import ImageDetections
from fcos.weights.load import MODEL_SETTINGS
from fcos.weights.model_file import ModelCard, save_model
from report import make_results

TRAIN_IMAGES = 118_287
IMAGES_PER_S = 400  # an assumption: what eight of the fastest GPUs may reach; on fewer an epoch is longer

Found = list[tuple[int, ImageDetections]]


def as_found(annotations: Annotations, rows: Rows) -> Found:
    """Rows of results as the network leaves them: tensors of each image."""
    label_of = {category_id: label for label, category_id in enumerate(annotations.category_ids)}
    found = []
    for image_id in annotations.image_ids.tolist():
        of_image = rows[rows["image_id"] == image_id]
        boxes = torch.from_numpy(of_image["bbox"].copy()).float()
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([label_of[category_id] for category_id in of_image["category_id"].tolist()])
        found.append(
            (image_id, ImageDetections(boxes, torch.from_numpy(of_image["score"].copy()).float(), labels))
        )
    return found


def save_r50(folder: Path) -> Callable[[], None]:
    """Writes a model file of `fcos_r50`, as an evaluation in training does."""
    config = load_config({"model": "fcos_r50", "pretrain": False, "list_train": "none"})
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key in MODEL_SETTINGS}
    names = tuple(f"class {number}" for number in range(1, 81))
    card = ModelCard(settings, names, tuple(range(1, 81)))
    state = build_model(config, len(names)).state_dict()
    return lambda: save_model(folder / "best.safetensors", state, card)


def main(
    data: Annotated[Path, "folder with lists/"],
    rounds: int = 7,
    peer_rounds: Annotated[int, "pycocotools takes a minute or more"] = 3,
) -> None:
    keep_freed_memory()
    names = read_names(data / "lists" / "coco_name.txt")[0]
    annotations = read_annotations(data / "lists" / "coco_val2017.txt", names=names, format="list")
    found = as_found(annotations, result_array(annotations, make_results(annotations)))
    rows = result_rows(found, annotations)
    truth = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = coco_ground_truth(annotations)
        truth.createIndex()
    columns = (rows[key].tolist() for key in ("image_id", "category_id", "bbox", "score"))
    entries = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(*columns, strict=True)
    ]
    theirs: list[float] = []

    def run_theirs() -> None:
        evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in entries]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        theirs[:] = evaluation.stats.tolist()

    with tempfile.TemporaryDirectory() as folder:
        save = save_r50(Path(folder))

        def in_training() -> None:
            rows = result_rows(found, annotations)
            measure(annotations, rows)
            (Path(folder) / "results.json").write_bytes(results_json(rows))
            save()

        gc.freeze()  # what one keeps here is no work for the garbage collector of the other
        peer = {"pycocotools": run_theirs}
        ours = {
            "fcos eval": lambda: show(annotations, result_rows(found, annotations), Path(folder)),
            "in training": in_training,
        }
        with contextlib.redirect_stdout(io.StringIO()):
            times = in_turn(peer | ours, min(rounds, peer_rounds), warm_up=0)
            for name, more in in_turn(ours, max(0, rounds - peer_rounds), warm_up=0).items():
                times[name] += more
    stats = evaluate_detections(annotations, rows).stats
    assert np.allclose(stats, theirs, atol=1e-9), (stats, theirs)

    print(f"{len(annotations)} images, {len(annotations.labels)} objects, {len(rows)} detections")
    took = medians(times)
    for name, values in times.items():
        spread = f"{min(values):.2f} to {max(values):.2f}, {len(values)} rounds"
        print(f"{name:12s} {took[name]:7.2f} s ({spread})")
    print(f"pycocotools / fcos eval: {took['pycocotools'] / took['fcos eval']:.0f}")
    epoch_s = TRAIN_IMAGES / IMAGES_PER_S
    print(
        f"in training beyond the forward passes: {took['in training'] / epoch_s:.2%} of an epoch of "
        f"{TRAIN_IMAGES} images at {IMAGES_PER_S} a second ({epoch_s / 60:.0f} min)"
    )


if __name__ == "__main__":
    start(main)
