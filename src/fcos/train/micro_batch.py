"""`micro_batch: "auto"`: the largest micro-batch that fits into the memory of a GPU, found by trial.

The batch of an optimizer step stays `nbatch_train`: only its split into forward passes changes. The result is
stored in the checkpoint, so a resumed run rounds as before.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from fcos.config import TrainConfig
from fcos.data.annotations import Annotations
from fcos.data.batch import Batch, GroundTruth
from fcos.data.loader import PADDING_MULTIPLE, build_eval_transform
from fcos.data.transforms import padded_size
from fcos.errors import TrainingError
from fcos.model.build import build_model
from fcos.predict.stop import StopSignal
from fcos.train.devices import fabric_of_one
from fcos.train.loop import Trainer
from fcos.weights.model_file import ModelCard

HEADROOM = 0.1  # of GPU memory, for fragmentation, other libraries and other processes
STEPS = 2  # the optimizer state is allocated at the end of the first


def find_micro_batch(
    config: TrainConfig,
    fabric: Fabric,
    train_set: Annotations,
    share: int,
    checkpoint: dict[str, Any] | None = None,
) -> int:
    """Images per forward pass; the same on every device.

    Args:
        share: images per optimizer step on each device.
        checkpoint: of a resumed run; its micro-batch is kept if it divides the share.
    """
    former = (checkpoint or {}).get("micro_batch")
    if former and share % former == 0:
        return int(former)
    found = share
    if fabric.device.type == "cuda" and fabric.is_global_zero:
        free, total = torch.cuda.mem_get_info(fabric.device)
        limit = free - HEADROOM * total
        found = largest_that_fits(share, lambda size: peak_memory(config, fabric, train_set, size) <= limit)
    return int(fabric.broadcast(found))


def largest_that_fits(share: int, fits: Callable[[int], bool]) -> int:
    """The largest divisor of the share that fits; running out of memory means that it does not fit.

    Raises:
        TrainingError: not even one image fits.
    """
    for size in range(share, 0, -1):
        if share % size == 0:
            try:
                if fits(size):
                    return size
            except torch.OutOfMemoryError:
                continue
    raise TrainingError(
        "a micro-batch of one image does not fit into GPU memory",
        where='"micro_batch": "auto"',
        fix="use activation_checkpointing=true, precision=bf16, or a smaller view_size and short_side",
    )


def peak_memory(config: TrainConfig, fabric: Fabric, train_set: Annotations, micro_batch: int) -> int:
    """Bytes of GPU memory that training steps need with the largest images and most boxes of the data.

    A separate trainer takes real steps, only on this device: if one of several devices ran out of memory, the
    others would wait for it.
    """
    gc.collect()  # frees the previous trial
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(fabric.device)
    before = torch.cuda.memory_reserved(fabric.device)
    take_steps(config, fabric, train_set, micro_batch)
    return torch.cuda.max_memory_reserved(fabric.device) - before


def take_steps(config: TrainConfig, fabric: Fabric, train_set: Annotations, micro_batch: int) -> None:
    """Take training steps of up to two micro-batches each, with separate weights, which are discarded."""
    accumulation = min(2, config.nbatch_train // fabric.world_size // micro_batch)
    card = ModelCard({}, train_set.class_names, train_set.category_ids)
    model = build_model(config, train_set.num_classes)
    alone = fabric_of_one(fabric.device, config.precision)
    batch = largest_batch(config, train_set, micro_batch)
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            alone, config, model, train_set, None, Path(folder), micro_batch, accumulation, card
        )
        trainer.network.train()
        for step in range(STEPS):
            window = [batch.to(alone.device, trainer.memory_format) for _ in range(accumulation)]
            trainer.take_step(window, step, StopSignal())
            if trainer.ema:
                trainer.ema.update(trainer.model, step)


def largest_batch(config: TrainConfig, train_set: Annotations, micro_batch: int) -> Batch:
    """A batch of the images with most boxes, at a size that fits every image of the data."""
    sizes_hw = train_set.sizes_hw if config.tile is None else train_set.sizes_hw.clip(max=config.tile)
    transform = build_eval_transform(config)
    resized = [transform.resized_size((h, w)) for h, w in sizes_hw.tolist()]
    height, width = padded_size(resized, PADDING_MULTIPLE)  # a step may mix landscape and portrait images
    order = np.resize(np.argsort(-np.diff(train_set.first_box), kind="stable"), micro_batch)
    records = [train_set[int(index)] for index in order]
    originals_hw = train_set.sizes_hw[order]
    scales = np.tile([width, height], 2) / np.tile(originals_hw[:, ::-1], 2)
    truths = [
        GroundTruth(torch.from_numpy(record.boxes_xyxy * scale).float(), torch.from_numpy(record.labels))
        for record, scale in zip(records, scales, strict=True)
    ]
    random = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randint(0, 256, (micro_batch, 3, height, width), dtype=torch.uint8, generator=random),
        sizes_hw=torch.tensor([[height, width]] * micro_batch),
        ground_truth=tuple(truths),
        image_ids=tuple(record.image_id for record in records),
        original_sizes_hw=torch.from_numpy(originals_hw).long(),
        positions=tuple(range(micro_batch)),
    )
