"""The order of the data: a function of (seed, position) only.

A training is one endless stream of positions; position p is image ``permutation(seed, p // n)[p % n]``.
Step s takes positions ``[s * batch, (s + 1) * batch)``, however many devices and micro-batches share them.
To resume is to start at another position. (Framework samplers pad the last batch by repeating images, count
epochs from 0 after a restart, or divide an incomplete window by the wrong number; none of that can happen
here.)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class StreamSampler(Sampler[list[tuple[int, int]]]):
    """Micro-batches of one device, without end: lists of (image index, position).

    Args:
        num_images: in the training set.
        batch_size: images of one optimizer step over all devices.
        micro_batch: images of one forward pass on one device.
        seed: of the order.
        rank: of this device.
        world: number of devices.
        start_step: first optimizer step.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        micro_batch: int,
        seed: int,
        rank: int,
        world: int,
        start_step: int = 0,
    ) -> None:
        self.num_images, self.batch_size, self.micro_batch = num_images, batch_size, micro_batch
        self.seed, self.rank, self.world, self.start_step = seed, rank, world, start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world
        step, epoch, order = self.start_step, -1, torch.empty(0)
        while True:
            first = step * self.batch_size + self.rank * share
            micro: list[tuple[int, int]] = []
            for position in range(first, first + share):
                if position // self.num_images != epoch:
                    epoch = position // self.num_images
                    order = epoch_order(self.num_images, self.seed, epoch)
                micro.append((int(order[position % self.num_images]), position))
                if len(micro) == self.micro_batch:
                    yield micro
                    micro = []
            step += 1


def epoch_order(num_images: int, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of one pass over the data."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(stream_seed(seed, epoch)))


def stream_seed(seed: int, position: int) -> int:
    """A seed for (seed, position); mixed, so that neighbours have nothing in common."""
    mixed = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    return (mixed ^ (mixed >> 31)) % 2**63


class ShardSampler(Sampler[list[tuple[int, int]]]):
    """Every image exactly once over all devices: batches of (image index, position) of one device.

    Whole batches are dealt out, so that their images, and with them padding and rounding, are the same on
    any number of devices.
    """

    def __init__(self, num_images: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.num_images, self.batch_size = num_images, batch_size
        self.mine = range(rank * batch_size, num_images, world * batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in self.mine:
            last = min(first + self.batch_size, self.num_images)
            yield [(index, index) for index in range(first, last)]

    def __len__(self) -> int:
        return len(self.mine)
