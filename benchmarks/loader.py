"""Images a second and core, from JPEG files to a padded batch: ours against torchvision's references.

    python benchmarks/loader.py --images ../shared/data/coco_mini/train2017 [--rounds 7]

Theirs is that of torchvision's detection references (`DetectionPresetTrain`, Pillow, transforms v2) and of
`GeneralizedRCNNTransform`: color changes and mirror, to a float tensor, normalize, resize, pad. Ours ends
with bytes, since the network normalizes; the last column counts our normalisation too. Both change colors
alike (brightness, contrast, saturation, 0.7 of the images) or not at all, and mirror half.

Small images are photographs of 640 x 480 of that folder, large ones 4000 x 3000 mosaics of them, as sharp
as a photograph can be (4 MB at quality 90). One thread; processor time, so that other work on the machine
disturbs little; both in this process, one batch each in turn, median.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from frame import in_turn, medians, start
from PIL import Image
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from fcos.config import load_config
from fcos.data.annotations import Annotations, Record
from fcos.data.batch import Batch, TrainDataset, collate
from fcos.data.loader import build_train_transform
from fcos.model.build import build_model

SMALL, LARGE = (640, 480), (4000, 3000)
Call = Callable[[], object]
SIZES = {"320 / 532": (320, 532), "800 / 1333": (800, 1333)}
BOXES = [[20, 30, 220, 330], [300, 100, 420, 180], [10, 10, 40, 40], [200, 200, 600, 470]]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def find_small(folder: Path, count: int) -> list[Path]:
    """Color photographs of 640 x 480."""
    found = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            if image.size == SMALL and image.mode == "RGB":
                found.append(path)
    return found[:count]


def make_large(photographs: list[Path], folder: Path, count: int) -> list[Path]:
    """Mosaics of photographs."""
    made = []
    for number in range(count):
        mosaic, index = Image.new("RGB", LARGE), number
        for top in range(0, LARGE[1], SMALL[1]):
            for left in range(0, LARGE[0], SMALL[0]):
                with Image.open(photographs[index % len(photographs)]) as photograph:
                    mosaic.paste(photograph, (left, top))
                index += 1
        made.append(folder / f"{number}.jpg")
        mosaic.save(made[-1], quality=90)
    return made


def theirs(paths: list[Path], short_side: int, longest_side: int, color: bool) -> Callable[[], object]:
    """A batch as torchvision's references and detectors make it."""
    jitter = v2.RandomApply([v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.4)], p=0.7)
    transform = v2.Compose(
        [
            *([jitter] if color else []),
            v2.RandomHorizontalFlip(0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.ConvertBoundingBoxFormat(tv_tensors.BoundingBoxFormat.XYXY),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )
    into_batch = GeneralizedRCNNTransform(short_side, longest_side, MEAN, STD)
    labels = torch.zeros(len(BOXES), dtype=torch.int64)

    def load(path: Path) -> tuple[torch.Tensor, dict[str, Any]]:
        image = Image.open(path).convert("RGB")
        size_hw = (image.height, image.width)
        boxes = tv_tensors.BoundingBoxes(BOXES, format="XYXY", canvas_size=size_hw, dtype=torch.float)
        sample: tuple[torch.Tensor, dict[str, Any]] = transform(image, {"boxes": boxes, "labels": labels})
        return sample

    def run() -> object:
        samples = [load(path) for path in paths]
        return into_batch([image for image, _ in samples], [target for _, target in samples])

    return run


def ours(paths: list[Path], short_side: int, longest_side: int, color: bool) -> Callable[[], Batch]:
    """A batch as our loader makes it; another part of the stream at each call."""
    labels = [0] * len(BOXES)
    records = [Record.make(path, BOXES, labels, number) for number, path in enumerate(paths, 1)]
    annotations = Annotations.from_records(records, ["thing"], source=Path("made"), format="list")
    config = load_config(
        {"short_side": short_side, "view_size": longest_side, "augmentation": "color" if color else False}
    )
    dataset = TrainDataset(annotations, build_train_transform(config), seed=0, batch_size=len(paths))
    first = 0

    def run() -> Batch:
        nonlocal first
        samples = [dataset[index, first + index] for index in range(len(paths))]
        first += len(paths)
        return collate(samples, multiple=32)

    return run


def main(images: Annotated[Path, "folder with 640 x 480 photographs"], rounds: int = 7) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(load_config({"model": "fcos_lite0", "pretrain": False}), 1)

    with tempfile.TemporaryDirectory() as folder:
        photographs = find_small(images, 16)
        sources = {
            "640 x 480": photographs[:8],
            "4000 x 3000": make_large(photographs, Path(folder), 4),
        }
        print("images     to          augmentation  torchvision   fcos        ratio  normalized too")
        for name, paths in sources.items():
            for size, (short_side, longest_side) in SIZES.items():
                for color in (False, True):
                    peer = theirs(paths, short_side, longest_side, color)
                    mine = ours(paths, short_side, longest_side, color)
                    batch = mine()
                    normalize = partial(model.normalize, batch.images, batch.sizes_hw)
                    calls: dict[str, Call] = {"peer": peer, "mine": mine, "normalize": normalize}
                    took = medians(in_turn(calls, rounds, clock=time.process_time))
                    rates = {key: len(paths) / seconds for key, seconds in took.items()}
                    whole = took["mine"] + took["normalize"]
                    print(
                        f"{name:12s} {size:11s} {'flip, color' if color else 'flip':12s}  "
                        f"{rates['peer']:6.1f} img/s  {rates['mine']:6.1f} img/s  "
                        f"{took['peer'] / took['mine']:5.2f}  {took['peer'] / whole:5.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    start(main)
