"""Choose the input size for the objects of a data set, and estimate its training time.

A detector with stride 8 detects hardly anything smaller than two of its cells after resizing. Training time
is proportional to the number of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcos.config.load import preset_default
from fcos.data.annotations import Annotations
from fcos.data.image import read_header
from fcos.errors import DatasetError

SMALLEST_BOX = 16.0  # pixels after resizing: two cells of the finest level (stride 8)
FINER_BELOW = 8.0  # pixels, one cell: if boxes are smaller at the largest size, a level of stride 4 is added
FACTORS = (1.0, 1.2, 1.4, 1.6, 2.0)  # of the preset's size: up to 4 times the training time
LARGEST_RATIO = 2.5  # of the sides of an image
READ_SIZES = 200  # images whose size is read from the file if the annotations do not state it
TRAINING_SHARE = 0.9  # of the time; the rest is for evaluation, report and startup
IMAGES_AT_ONCE, TIMED_STEPS = 4, 2  # for measuring the speed
FINER_STRIDES = [4, 8, 16, 32, 64, 128]
FINER_RANGES = [32.0, 64.0, 128.0, 256.0, 512.0]


@dataclass(frozen=True)
class InputSize:
    """The settings `short_side` and `view_size` with their reasons; whether a level of stride 4 is needed."""

    short_side: int
    view_size: int
    reason: str
    view_reason: str
    finer_level: bool = False


@dataclass(frozen=True)
class Budget:
    """How long training may take, and how many images that allows.

    Attributes:
        pixels_per_s: training speed, in pixels of resized images.
        samples: training images needed, counting repeats over epochs.
    """

    minutes: float
    pixels_per_s: float
    samples: int

    def num_images(self, pixels: int) -> float:
        """How many images of this many pixels fit into the time."""
        return TRAINING_SHARE * 60 * self.minutes * self.pixels_per_s / pixels

    def describe(self, size: InputSize, num_samples: int) -> str:
        """How long training takes, and whether the samples are enough."""
        share = num_samples / self.num_images(size.short_side * size.view_size)
        short = "" if num_samples >= self.samples else "; more would help, but does not fit"
        return f"{num_samples:,} samples in about {max(1, round(share * self.minutes))} minutes{short}"


def choose_size(train: Annotations, preset: str, budget: Budget | None = None) -> InputSize:
    """The preset's size; larger if boxes would be too small, smaller if images are small."""
    usual: int = preset_default(preset, "short_side")
    usual_view: int = preset_default(preset, "view_size")
    sizes, box_sides = image_sizes(train)
    if not len(sizes):
        unread = "the preset's; no images could be read"
        return InputSize(usual, usual_view, unread, unread)

    short, long = sizes.min(axis=1), sizes.max(axis=1)
    ratio = float(np.clip(np.percentile(long / short, 90), usual_view / usual, LARGEST_RATIO))
    sharpest = max(64, int(2 * np.median(short)))  # more than twofold enlargement shows no more detail
    candidates = sorted({min(round(usual * factor), sharpest) for factor in FACTORS})
    smallest = float(np.percentile(box_sides, 10)) if len(box_sides) else np.inf
    enough = next((side for side in candidates if smallest * side >= SMALLEST_BOX), candidates[-1])
    fits = [
        side
        for side in candidates
        if budget is None or budget.num_images(round(side**2 * ratio)) >= budget.samples
    ]
    side = min(enough, max(fits, default=candidates[0]))
    seen = smallest * side

    reasons = [f"images are {np.median(long):.0f} x {np.median(short):.0f}"]
    reasons.append(f"90 % of boxes are then larger than {seen:.0f} pixels" if len(box_sides) else "no boxes")
    if side > usual:
        reasons.append(f"{(side / usual) ** 2:.1f} x the training time of {usual}")
    if seen < SMALLEST_BOX:
        larger = next((other for other in candidates if other > side), None)
        if larger is not None:
            reasons.append(f"{larger} would be better, but takes {(larger / side) ** 2:.1f} x the time")
        else:
            reasons.append(
                "larger would show no more detail" if side == sharpest else "larger takes too long"
            )
    finer = side == sharpest and seen < FINER_BELOW
    view = f"longest side, for images of {ratio:.2f} : 1"
    return InputSize(side, round(side * ratio), "; ".join(reasons), view, finer)


def image_sizes(annotations: Annotations) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sizes of images and boxes, of all images or of an evenly spaced sample.

    Returns:
        `(images, 2)` height, width in pixels; `(boxes,)` square root of each box's area, relative to the
        shorter side of its image. Images that cannot be read are skipped.
    """
    known = (annotations.sizes_hw > 0).all(axis=1)
    if known.all():
        indices = np.arange(len(annotations))
    else:
        indices = np.unique(np.linspace(0, len(annotations) - 1, READ_SIZES).astype(int))
    sizes, box_sides = [], []
    for index in indices:
        record = annotations[int(index)]
        try:
            size = record.size_hw or read_header(record.path).size_hw
        except DatasetError:
            continue  # training reports every broken image before it starts
        sizes.append(size)
        sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
        box_sides.append(np.sqrt(np.clip(sides, 0, None).prod(axis=1)) / min(size))
    boxes = np.concatenate(box_sides) if box_sides else np.zeros(0)
    return np.array(sizes, np.float64).reshape(-1, 2), boxes[np.isfinite(boxes)]


def training_speed(preset: str, precision: str, device: str) -> float:
    """Measured training speed on this machine, in pixels of resized images per second.

    Only the network's forward and backward pass, which is nearly all of a training step.
    """
    # imported only here, since they are slow to import
    import time

    import torch

    from fcos.config import load_config
    from fcos.cpu.training import for_training
    from fcos.model.build import build_model

    config = load_config({"model": preset, "pretrain": False, "precision": precision})
    short, view = (-(-side // 32) * 32 for side in (config.short_side or config.view_size, config.view_size))
    model = build_model(config, 1).to(device).to(memory_format=torch.channels_last).train()
    network = for_training(model) if device == "cpu" else model
    shape = (IMAGES_AT_ONCE, 3, short, view)
    images = torch.zeros(shape, dtype=torch.uint8, device=device).contiguous(
        memory_format=torch.channels_last
    )
    sizes = torch.tensor([[short, view]] * IMAGES_AT_ONCE, device=device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    elapsed_s = []
    for _ in range(TIMED_STEPS + 1):  # the first step includes the startup of libraries
        started_at = time.perf_counter()
        with torch.autocast(device, dtype, enabled=precision != "fp32"):
            output = network(images, sizes)
        sum(part.float().mean() for part in output if part is not None).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        elapsed_s.append(time.perf_counter() - started_at)
    return IMAGES_AT_ONCE * short * view / min(elapsed_s[1:])
