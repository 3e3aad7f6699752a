"""Opening a COCO annotation file of full size: time and memory against pycocotools and torchvision.

    python benchmarks/annotations.py [--times 1 10] [--rounds 3] [--polygons 0]

Makes a file of 118,287 images and 860,001 boxes (times 1, 10, ...) with the box counts, sizes, places and
classes of COCO val2017, and measures in processes of their own, in turn, medians over the rounds: seconds to
open, to the first batch of 16 decoded images from 8 workers, and memory: of the main process after opening,
and of main process and 8 workers together after they read all annotations once, as PSS (a page that N
processes share counts 1/N in each), beside that of the same processes before opening. pycocotools has no
second opening: it reads the file each time. The images are those of coco_mini, over and over.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from frame import in_process, medians, start
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NUM_IMAGES, NUM_BOXES = 118_287, 860_001
NUM_WORKERS, BATCH_SIZE = 8, 16
MIB = 2**20


def make_file(path: Path, times: int, polygon_points: int) -> None:
    """Images of val2017 in turn, until the numbers of images and boxes are reached exactly."""
    rng = np.random.default_rng(0)
    names = sorted(image.name for image in (SHARED / "coco_mini" / "train2017").glob("*.jpg"))
    lines = (SHARED / "lists" / "coco_val2017.txt").read_text().splitlines()
    boxes_of = [np.array(line.split()[1:], float).reshape(-1, 5) for line in lines]
    num_images, num_boxes = NUM_IMAGES * times, NUM_BOXES * times
    chosen = rng.integers(0, len(lines), num_images)
    counts = np.array([len(boxes) for boxes in boxes_of])[chosen]
    while (excess := int(counts.sum()) - num_boxes) != 0:  # a few images lose or gain a box
        places = rng.choice(np.flatnonzero(counts > 0), min(abs(excess), num_images // 4), replace=False)
        counts[places] -= np.sign(excess)
    with path.open("w") as file:
        file.write('{"info": {"description": "benchmark"}, "licenses": [], "images": [')
        for i in range(num_images):
            image = {"id": i * 5 + 9, "file_name": names[i % len(names)], "height": 480, "width": 640}
            image |= {"license": 3, "date_captured": "2013-11-14 11:18:45"}
            file.write(json.dumps(image) + (", " if i + 1 < num_images else ""))
        file.write('], "annotations": [')
        ends_of = [[end_of_entry(box) for box in boxes] for boxes in boxes_of]
        usual = [end_of_entry(np.array([9, 9, 99, 99, 1]))]
        done = 0
        for i in rng.permutation(num_images).tolist():  # COCO's file is not in the order of its images
            ends = ends_of[chosen[i]] or usual
            for j in range(counts[i]):
                done += 1
                polygon = ""
                if polygon_points:
                    numbers = rng.uniform(0, 640, 2 * polygon_points).round(2).tolist()
                    polygon = f'"segmentation": [{numbers}], '
                comma = ", " if done < num_boxes else ""
                start = f'{{"id": {done}, "image_id": {i * 5 + 9}, {polygon}'
                file.write(f"{start}{ends[j % len(ends)]}{comma}")
        assert done == num_boxes
        categories = [{"id": i, "name": f"class {i}", "supercategory": "thing"} for i in range(1, 81)]
        file.write('], "categories": ' + json.dumps(categories) + "}")


def end_of_entry(box: NDArray[np.float64]) -> str:
    """What an annotation of a box (y1, x1, y2, x2, class) says behind its ids."""
    y1, x1, y2, x2, label = box.tolist()
    bbox = [x1, y1, x2 - x1, y2 - y1]
    entry = {"category_id": int(label), "bbox": bbox, "area": bbox[2] * bbox[3] * 0.6, "iscrowd": 0}
    return json.dumps(entry).removeprefix("{")


def memory(pids: list[int], key: str = "Pss") -> float:
    """MiB of processes together."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{key}:"):
                total += int(line.split()[1])
    return total / 1024


def peak() -> float:
    """MiB, largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(who: str, file: Path) -> dict[str, float]:
    """One opening, one first batch, one pass over all annotations, in this process."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    torch.set_num_threads(1)
    root = SHARED / "coco_mini" / "train2017"
    images: Dataset[Any]
    annotations: Any
    open_file: Callable[[], tuple[Dataset[Any], Dataset[Any]]]

    class Mapped(Dataset[Any]):
        def __init__(self, source: Any, get: Callable[[Any, int], Any]) -> None:
            self.source, self.get = source, get

        def __len__(self) -> int:
            return len(self.source)

        def __getitem__(self, index: int) -> Any:
            return self.get(self.source, index)

    if who.startswith("fcos"):
        from fcos.data.batch import read_sample
        from fcos.data.formats import read_annotations

        def open_file() -> tuple[Dataset[Any], Dataset[Any]]:
            records = read_annotations(file, root=root)
            return Mapped(records, lambda r, i: read_sample(r[i])), Mapped(records, lambda r, i: boxes(r[i]))

        def boxes(record: Any) -> int:
            return int(torch.from_numpy(record.boxes_xyxy[~record.is_crowd]).float().shape[0])

    else:
        from torchvision.datasets import CocoDetection
        from torchvision.transforms.functional import pil_to_tensor

        class WithoutImages(CocoDetection):
            def _load_image(self, id: int) -> Any:
                return None

        def count(dataset: Any, index: int) -> int:
            entries = dataset[index][1]
            return int(torch.tensor([entry["bbox"] for entry in entries]).shape[0])

        def open_file() -> tuple[Dataset[Any], Dataset[Any]]:
            dataset = CocoDetection(root, str(file), transform=pil_to_tensor)
            bare = WithoutImages.__new__(WithoutImages)
            bare.__dict__ = dataset.__dict__ | {"transforms": None}
            return dataset, Mapped(bare, count)

    before = memory([os.getpid()])
    started_at, processor_at = time.perf_counter(), time.process_time()
    images, annotations = open_file()
    open_s, processor_s = time.perf_counter() - started_at, time.process_time() - processor_at
    main_mib, peak_mib = memory([os.getpid()]), peak()
    order = torch.randperm(len(annotations), generator=torch.Generator().manual_seed(0)).tolist()

    def loader(dataset: Dataset[Any], batch_size: int) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size,
            sampler=order,
            num_workers=NUM_WORKERS,
            collate_fn=list,
            persistent_workers=True,
            multiprocessing_context="fork",
        )

    started_at = time.perf_counter()
    next(iter(loader(images, BATCH_SIZE)))
    first_batch_s = open_s + time.perf_counter() - started_at
    passes = loader(annotations, 256)
    num_boxes = sum(sum(batch) for batch in passes)
    workers = [worker.pid for worker in passes._iterator._workers]
    together = [os.getpid(), *workers]
    return {
        "open_s": open_s,
        "open_processor_s": processor_s,
        "first_batch_s": first_batch_s,
        "imports_mib": before,
        "main_mib": main_mib,
        "peak_mib": peak_mib,
        "together_mib": memory(together),
        "workers_own_mib": memory(workers, "Private_Dirty"),
        "boxes": num_boxes,
    }


def run(who: str, file: Path, cache: Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    if who == "fcos, first":
        for old in cache.glob("*"):
            old.unlink()
    os.environ |= {"FCOS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    result: dict[str, float] = in_process(measure, who, file)
    return result


def main(
    times: Annotated[list[int], "sizes, in times of COCO's"] = [1, 10],  # noqa: B006
    rounds: int = 3,
    polygons: Annotated[int, "points of each made-up polygon (COCO: 24)"] = 0,
    peer_up_to: Annotated[int, "largest size that pycocotools opens too"] = 1,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for size in times:
            file, cache = Path(folder) / f"instances_{size}.json", Path(folder) / "cache"
            make_file(file, size, polygons)
            mib = file.stat().st_size / MIB
            print(f"\n{NUM_IMAGES * size:,} images, {NUM_BOXES * size:,} boxes, {mib:.0f} MiB", flush=True)
            peers = ["fcos, first", "fcos, from cache"] + ["torchvision"] * (size <= peer_up_to)
            results: dict[str, list[dict[str, float]]] = {who: [] for who in peers}
            for _ in range(rounds):
                for who in peers:
                    results[who].append(run(who, file, cache))
            for who, measured in results.items():
                m = medians({key: [one[key] for one in measured] for key in measured[0]})
                assert m["boxes"] == NUM_BOXES * size
                print(
                    f"{who:18} open {m['open_s']:7.3f} s ({m['open_processor_s']:.3f} of processor time), "
                    f"first batch {m['first_batch_s']:7.3f} s; MiB: imports {m['imports_mib']:.0f}, main "
                    f"{m['main_mib']:.0f} (peak {m['peak_mib']:.0f}), with {NUM_WORKERS} workers "
                    f"{m['together_mib']:.0f}, of that the workers' own {m['workers_own_mib']:.0f}"
                )


if __name__ == "__main__":
    start(main)
