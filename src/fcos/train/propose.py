"""Propose settings for the user's data and machine, each with its reason.

The result is a config file that the user can edit. Settings that depend on neither data nor machine are left
to the presets (`presets.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fcos.config.load import preset_default
from fcos.data.annotations import Annotations
from fcos.data.balance import images_per_class
from fcos.data.check import require_boxes
from fcos.data.convert import check_boxes
from fcos.data.formats import Split, Splits, coco, find_splits, read_annotations, split_annotations
from fcos.data.image_files import common_root
from fcos.machine import num_cores
from fcos.terminal import counted
from fcos.train.input_size import FINER_RANGES, FINER_STRIDES, Budget, InputSize, choose_size, training_speed
from fcos.weights.load import EVERYDAY

MANY_IMAGES = 2000  # from this number, flips alone keep a detector from overfitting
SHARE_HELD_OUT = 0.2  # fraction of images, if a folder has no evaluation split
SPLIT_SEED = 0
RARE = 10  # times fewer images than the median class
LR_BACKBONE = 0.3  # of a backbone from a detector; for ImageNet weights the preset's 0.1 is better
MOST_EPOCHS = 3  # times the default number, if there is more time


class Proposal(NamedTuple):
    """A setting, its value and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Hardware:
    """The hardware that training can use.

    Attributes:
        num_gpus: CUDA devices.
        gpu_memory_gb: memory of the smallest GPU.
        bf16_is_faster: whether the GPUs (without GPUs: the CPU) train faster in bfloat16.
    """

    num_cores: int
    num_gpus: int = 0
    gpu_memory_gb: float = 0.0
    bf16_is_faster: bool = False

    def __str__(self) -> str:
        with_memory = f"{counted(self.num_gpus, 'GPU')} with {self.gpu_memory_gb:.0f} GB"
        gpus = with_memory if self.num_gpus else "no GPU"
        return f"{gpus}, {counted(self.num_cores, 'CPU core')}"


def find_hardware() -> Hardware:
    """The hardware of this machine that this process may use."""
    # imported only here, to query the GPUs
    import torch

    from fcos.train.devices import prefers_bf16

    cores = num_cores()
    if not torch.cuda.is_available():
        return Hardware(cores, bf16_is_faster=prefers_bf16("cpu"))
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    memory = min(gpu.total_memory for gpu in gpus) / 2**30
    return Hardware(cores, len(gpus), memory, prefers_bf16("cuda"))


def budget_of(minutes: float, num_images: int, hardware: Hardware) -> Budget:
    """How much training fits into the time on this machine, measured in a few seconds."""
    precision = "bf16" if hardware.bf16_is_faster else "fp32"
    device = "cuda" if hardware.num_gpus else "cpu"
    speed = training_speed(preset_for(hardware), precision, device) * max(1, hardware.num_gpus)
    return Budget(minutes, speed, num_images * usual_epochs(num_images, hardware))


@dataclass(frozen=True)
class FolderData:
    """The data of a folder, and its settings.

    Attributes:
        files: the files of a new split, with their text; empty if the folder has its own splits.
        notes: on files that were used, or ignored.
    """

    train: Annotations
    proposals: list[Proposal]
    files: dict[Path, str]
    notes: tuple[str, ...]


def propose_data(folder: Path, split_folder: Path) -> FolderData:
    """The data of a folder: its own splits, or new ones by image, to be written to `split_folder`."""
    splits = find_splits(folder)
    source, root, names = splits.train.source, splits.train.root, splits.name_file
    train = read_annotations(source, root=root, names=names, format=splits.format)
    require_boxes(train)
    parts = splits
    files: dict[Path, str] = {}
    trained = "the training split of the folder"
    kept = f"; {splits.test.source.name} is kept for the final test" if splits.test else ""
    evaluated = f"its evaluation split{kept}"
    if splits.evaluation is None:
        train, held_out = split_annotations(train, SHARE_HELD_OUT, SPLIT_SEED)
        made = []
        # As COCO, which has class names, and is the only format that keeps crowds, difficult boxes and ids.
        for name, part in (("train.json", train), ("eval.json", held_out)):
            check_boxes(part)
            made.append(Split(split_folder / name, common_root(part)))
            files[made[-1].source] = coco.text_of(part, root=made[-1].root)
        parts = Splits("coco", train=made[0], evaluation=made[1])
        trained = f"the folder has no splits, so it was split: {counted(len(train), 'image')}"
        evaluated = (
            f"{counted(len(held_out), 'image')} chosen at random (seed {SPLIT_SEED}), never trained on"
        )
    assert parts.evaluation is not None
    found = [
        Proposal("root_train", parts.train.root, "folder of the images"),
        Proposal("list_train", parts.train.source, trained),
        Proposal("root_eval", parts.evaluation.root, "folder of the images"),
        Proposal("list_eval", parts.evaluation.source, evaluated),
        Proposal("name_file", parts.name_file, counted(train.num_classes, "class", "classes")),
        Proposal("data_format", parts.format, f"the folder is in {splits.format} format"),
        Proposal("run_folder", f"runs/{folder.resolve().name}", "named after the folder"),
    ]
    given = [proposal for proposal in found if proposal.value is not None]
    return FolderData(train, given, files, (*splits.notes, *train.notes))


def preset_for(hardware: Hardware) -> str:
    """The default preset for this machine."""
    return "fcos_r50" if hardware.num_gpus else "fcos_mobilenetv2"


def propose(train: Annotations, hardware: Hardware, budget: Budget | None = None) -> list[Proposal]:
    """Settings for these training images on this machine, in the order of the config file."""
    preset = preset_for(hardware)
    size = choose_size(train, preset, budget)
    batch = _batch(len(train), preset, hardware, size.short_side * size.view_size)
    return [
        Proposal("model", preset, f"{hardware}: {_WHY_PRESET[preset]}"),
        *_pretrain(preset),
        *_input_size(size),
        _flip(train.class_names),
        _augmentation(len(train)),
        *_balance(train),
        *_length(len(train), hardware, size, budget),
        *batch,
        *_speed(hardware),
    ]


_WHY_PRESET = {"fcos_r50": "the papers' recipe", "fcos_mobilenetv2": "the small model for CPUs"}


def _pretrain(preset: str) -> Iterator[Proposal]:
    if preset == "fcos_mobilenetv2":
        why = "starting from the detector that comes with fcos trains faster than from ImageNet weights"
        yield Proposal("pretrain", EVERYDAY, why)
        yield Proposal(
            "lr_backbone",
            LR_BACKBONE,
            "the backbone is already trained for detection: higher than the 0.1 for ImageNet weights",
        )


def _input_size(size: InputSize) -> Iterator[Proposal]:
    yield Proposal("short_side", size.short_side, size.reason)
    yield Proposal("view_size", size.view_size, size.view_reason)
    if size.finer_level:
        why = "a level of stride 4, for objects too small for stride 8 even in enlarged images"
        yield Proposal("strides", FINER_STRIDES, why)
        yield Proposal("regress_ranges", FINER_RANGES, "for these levels")


# Words in class names whose objects change their meaning when mirrored.
_MIRROR_WORDS = frozenset(
    "left right arrow clockwise counterclockwise text word words letter letters digit digits number numbers "
    "character characters zero one two three four five six seven eight nine".split()
)


def _flip(class_names: tuple[str, ...]) -> Proposal:
    for name in class_names:
        words = re.findall(r"[a-z]+|[0-9]+", name.lower())
        if re.fullmatch(r"[A-Za-z0-9]|[0-9]+", name.strip()) or _MIRROR_WORDS.intersection(words):
            return Proposal("horizontal_flip", False, f'class "{name}" changes its meaning when flipped')
    return Proposal("horizontal_flip", True, "no class name suggests text, digits, left or right")


def _few(number: int) -> str:
    """The reason for a setting for small data sets."""
    return "only " + counted(number, "image")


def _augmentation(num_images: int) -> Proposal:
    if num_images < MANY_IMAGES:
        return Proposal("augmentation", True, f"{_few(num_images)}: vary colors and crops")
    return Proposal("augmentation", False, f"{num_images:,} images are varied enough without it")


def _balance(train: Annotations) -> Iterator[Proposal]:
    """Repeat images of rare classes if the rarest has less than a tenth of the median class's images."""
    counts = images_per_class(train)
    there = np.flatnonzero(counts)
    if not len(there):
        return
    rarest, median = there[counts[there].argmin()], float(np.median(counts[there]))
    if counts[rarest] * RARE < median:
        threshold = float(f"{median / len(train):.2g}")
        yield Proposal(
            "repeat_threshold",
            threshold,
            f'class "{train.class_names[rarest]}" is in {counted(int(counts[rarest]), "image")}, the median '
            f"class in {median:.0f}: repeat images of classes below the median",
        )


def usual_epochs(num_images: int, hardware: Hardware) -> int:
    """Enough epochs for a minimum number of samples; at least the papers' 12."""
    goal = 120_000 if hardware.num_gpus else 6_000
    return int(np.clip(round(goal / max(1, num_images)), 12, 200))


def _length(
    num_images: int, hardware: Hardware, size: InputSize, budget: Budget | None
) -> Iterator[Proposal]:
    """As many epochs as useful, or as the time allows."""
    epochs = usual_epochs(num_images, hardware)
    reason = f"{counted(num_images, 'image')}, {num_images * epochs:,} samples in total"
    if budget is not None:
        affordable = int(budget.num_images(size.short_side * size.view_size) / num_images)
        epochs = max(1, min(affordable, MOST_EPOCHS * epochs))
        reason = f"{counted(num_images, 'image')}, {budget.describe(size, epochs * num_images)}"
    yield Proposal("epochs", epochs, reason)
    if epochs > 50:
        yield Proposal("eval_epochs", round(epochs / 25), "epochs are short: 25 evaluations in total")


def _batch(num_images: int, preset: str, hardware: Hardware, pixels: int) -> Iterator[Proposal]:
    """The preset's batch size, smaller for few images, split over the GPUs (the learning rate follows)."""
    usual: int = preset_default(preset, "nbatch_train")
    wanted = usual if num_images >= 10 * usual else usual // 2
    num_devices = max(1, hardware.num_gpus)
    share = max(1, wanted // num_devices)
    batch = share * num_devices
    why = "the preset's" if batch == usual else f"{_few(num_images)}: more steps per epoch"
    if num_devices > 1:
        why = f"{share} on each of {num_devices} GPUs"
    yield Proposal("nbatch_train", batch, why)
    if hardware.num_gpus:
        # 2 GB per image of 800 x 1333 with ResNet-50 in fp32 (peers report 3.6 to 4 GB for two), plus a
        # margin
        fits = max(1, int((hardware.gpu_memory_gb - 2) / (2.5 * pixels / (800 * 1333))))
        micro = next(size for size in range(min(share, fits), 0, -1) if share % size == 0)
        if micro < share:
            yield Proposal("micro_batch", micro, f"fits into {hardware.gpu_memory_gb:.0f} GB")


def _speed(hardware: Hardware) -> Iterator[Proposal]:
    if hardware.bf16_is_faster:
        measured = "about twice as fast on this GPU", "measured to be faster on this processor"
        yield Proposal("precision", "bf16", measured[0 if hardware.num_gpus else 1])
    workers = max(1, min(4, hardware.num_cores // 4))
    why = "training needs the cores; reading images takes little time"
    if hardware.num_gpus:
        workers = max(1, min(8, hardware.num_cores // hardware.num_gpus))
        why = f"{counted(hardware.num_cores, 'core')} for {counted(hardware.num_gpus, 'GPU')}"
    yield Proposal("num_workers", workers, why)
