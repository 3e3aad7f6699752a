"""Settings to transforms and loaders."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from fcos.config import TrainConfig
from fcos.config.conventions import CONVENTIONS
from fcos.data.annotations import Annotations
from fcos.data.batch import Batch, padded_size
from fcos.data.dataset import EvalDataset, TrainDataset
from fcos.data.loader import PADDING_MULTIPLE, build_loader
from fcos.data.sampler import ShardSampler, StreamSampler
from fcos.data.transforms import EvalTransform, TrainTransform, build_policy


def build_eval_transform(config: TrainConfig) -> EvalTransform:
    """Resizing for evaluation and prediction."""
    conventions = CONVENTIONS[config.rules]
    return EvalTransform(config.short_side, config.view_size, conventions.size, conventions.resize)


def build_train_transform(config: TrainConfig) -> TrainTransform:
    """Resizing and augmentation for training."""
    return TrainTransform(
        config.short_side,
        config.view_size,
        scale_min=config.img_scale_min,
        horizontal_flip=config.horizontal_flip,
        augment=build_policy(config.augmentation),
        min_area=config.boxarea_th,
        size=CONVENTIONS[config.rules].size,
        method=CONVENTIONS[config.rules].resize,
        reduced_decode=config.reduced_decode,
    )


def build_train_loader(
    config: TrainConfig, annotations: Annotations, *, micro_batch: int, rank: int, world: int, start_step: int
) -> DataLoader[Batch]:
    """Endless micro-batches of one device, from an optimizer step on."""
    dataset = TrainDataset(annotations, build_train_transform(config), config.seed, config.nbatch_train)
    is_wide = torch.from_numpy(annotations.sizes_hw[:, 1] > annotations.sizes_hw[:, 0])
    sampler = StreamSampler(is_wide, config.nbatch_train, micro_batch, config.seed, rank, world, start_step)
    return build_loader(dataset, sampler, config.num_workers, torch.cuda.is_available())


def build_eval_loader(
    config: TrainConfig, annotations: Annotations, batch_size: int, *, rank: int = 0, world: int = 1
) -> DataLoader[Batch]:
    """Every image once, over all devices; up to `batch_size` images of one padded size in a forward pass."""
    transform = build_eval_transform(config)
    dataset = EvalDataset(annotations, transform)
    padded_sizes = [
        padded_size([transform.resized_size((height, width))], PADDING_MULTIPLE) if height > 0 else None
        for height, width in annotations.sizes_hw.tolist()
    ]
    sampler = ShardSampler(len(annotations), batch_size, rank, world, kinds=padded_sizes)
    return build_loader(dataset, sampler, config.num_workers, torch.cuda.is_available())
