"""Build data loaders from settings; the order of the data is a function of (seed, position) only.

Training is one endless stream of positions; position p is image ``epoch_order(seed, p // n)[p % n]``.
Step s uses positions ``[s * batch, (s + 1) * batch)``, for any number of devices and micro-batches.
Resuming means starting at another position. (Framework samplers pad the last batch by repeating images, count
epochs from 0 after a restart, or divide an incomplete accumulation window by the wrong number; none of that
can happen here.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import count

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.utils.data import DataLoader

from fcos.config import TrainConfig
from fcos.config.conventions import CONVENTIONS
from fcos.data.annotations import Annotations
from fcos.data.augmentation import build_policy
from fcos.data.balance import epoch_length, repeated
from fcos.data.batch import Batch, EvalDataset, TrainDataset, collate, stream_seed
from fcos.data.mixing import Mixing
from fcos.data.transforms import EvalTransform, TrainTransform, same_padded_size
from fcos.data.workers import Loader, start_worker

Places = list[tuple[int, int]]  # of a batch: image index, position in the stream
PADDING_MULTIPLE = 32  # so that P5 upsampled has the size of P4; coarser levels round up


def build_eval_transform(config: TrainConfig) -> EvalTransform:
    """Resizing for evaluation and prediction."""
    conventions = CONVENTIONS[config.rules]
    return EvalTransform(config.short_side, config.view_size, conventions.size, conventions.resize)


def build_train_transform(config: TrainConfig) -> TrainTransform:
    """Resizing and augmentation for training."""
    return TrainTransform(
        build_eval_transform(config),
        scale_min=config.img_scale_min,
        horizontal_flip=config.horizontal_flip,
        augment=build_policy(config.augmentation),
        min_area=config.boxarea_th,
        reduced_decode=config.reduced_decode,
        tile=config.tile,
    )


def last_mixed_step(config: TrainConfig, total_steps: int) -> int:
    """The first step at which images are no longer mixed."""
    return int(config.mix_until * total_steps)


def build_train_loader(
    config: TrainConfig,
    annotations: Annotations,
    *,
    micro_batch: int,
    rank: int,
    world: int,
    start_step: int,
    total_steps: int,
    factors: Float64[Tensor, " images"] | None = None,
) -> DataLoader[Batch]:
    """Endless micro-batches for one device, starting at an optimizer step; `factors` of `repeat_factors`."""
    mixing = Mixing(
        config.mosaic,
        config.mixup,
        config.copy_paste,
        until=last_mixed_step(config, total_steps) * config.nbatch_train,
        min_area=config.boxarea_th,
    )
    dataset = TrainDataset(
        annotations, build_train_transform(config), config.seed, config.nbatch_train, mixing
    )
    is_wide = torch.from_numpy(annotations.sizes_hw[:, 1] > annotations.sizes_hw[:, 0])
    batches = training_stream(
        is_wide, config.nbatch_train, micro_batch, config.seed, rank, world, start_step, factors
    )
    return build_loader(dataset, batches, config.num_workers)


def build_eval_loader(
    config: TrainConfig, annotations: Annotations, batch_size: int, *, rank: int = 0, world: int = 1
) -> DataLoader[Batch]:
    """Every image once, over all devices; up to `batch_size` images in a forward pass.

    Images of a batch have the same padded size, since more padding would change the detections; their sizes
    are known from `check`.
    """
    transform = build_eval_transform(config)
    sizes_hw = [transform.resized_size((height, width)) for height, width in annotations.sizes_hw.tolist()]
    batches = shard(same_padded_size(sizes_hw, PADDING_MULTIPLE), batch_size, rank, world)
    return build_loader(EvalDataset(annotations, transform), batches, config.num_workers)


def build_loader(
    dataset: TrainDataset | EvalDataset, batches: Iterable[Places], num_workers: int
) -> DataLoader[Batch]:
    """A loader of padded batches."""
    return Loader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=partial(collate, multiple=PADDING_MULTIPLE, shared=num_workers > 0),
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
    )


def training_stream(
    is_wide: Bool[Tensor, " images"],
    batch_size: int,
    micro_batch: int,
    seed: int,
    rank: int,
    world: int,
    start_step: int = 0,
    factors: Float64[Tensor, " images"] | None = None,
) -> Iterator[Places]:
    """Endless micro-batches for one device.

    Args:
        is_wide: which images of the training set are wider than high; images of a step are all wide or all
            high if possible, since they are padded to one size.
        batch_size: images per optimizer step over all devices.
        micro_batch: images per forward pass on one device.
        factors: how often each image is used in an epoch (`balance.py`); None: once.
    """
    num_images = len(is_wide) if factors is None else epoch_length(factors)
    share = batch_size // world
    order_of = lru_cache(maxsize=1)(partial(epoch_order, is_wide, batch_size, seed, factors=factors))
    for first in count(start_step * batch_size + rank * share, batch_size):
        for start in range(first, first + share, micro_batch):
            positions = range(start, start + micro_batch)
            yield [(int(order_of(p // num_images)[p % num_images]), p) for p in positions]


def epoch_order(
    is_wide: Bool[Tensor, " images"],
    batch_size: int,
    seed: int,
    epoch: int,
    factors: Float64[Tensor, " images"] | None = None,
) -> Int64[Tensor, " places"]:
    """One pass over the data: steps of landscape and of portrait images, in random order.

    A permutation; with `factors`, images are repeated accordingly. Only the step that the previous pass
    began, and the remainder at the end, mix the two.
    """
    random = torch.Generator().manual_seed(stream_seed(seed, epoch))
    order = torch.randperm(len(is_wide), generator=random)
    if factors is not None:
        order = repeated(order, factors, random)
    begun = -epoch * len(order) % batch_size
    rest = order[begun:]
    steps, left = [], []
    for alike in (rest[is_wide[rest]], rest[~is_wide[rest]]):
        num_whole = len(alike) // batch_size * batch_size
        steps.append(alike[:num_whole].reshape(-1, batch_size))
        left.append(alike[num_whole:])
    whole = torch.cat(steps)
    whole = whole[torch.randperm(len(whole), generator=random)]
    return torch.cat([order[:begun], whole.flatten(), *left])


def shard(groups: Sequence[list[int]], batch_size: int, rank: int = 0, world: int = 1) -> list[Places]:
    """Batches of one device: every image exactly once over all devices.

    Whole batches are distributed, so their images, and therefore rounding, are the same on any number of
    devices.

    Args:
        groups: indices of images that may share a batch.
    """
    batches = [
        group[first : first + batch_size] for group in groups for first in range(0, len(group), batch_size)
    ]
    return [[(index, index) for index in batch] for batch in sorted(batches)[rank::world]]
