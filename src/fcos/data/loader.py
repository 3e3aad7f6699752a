"""Data loaders: workers that decode while the network computes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from typing import TypeVar

from torch.utils.data import DataLoader

from fcos.data.batch import Batch, collate, collate_by_size
from fcos.data.dataset import EvalDataset, TrainDataset
from fcos.data.sampler import ShardSampler, StreamSampler

T = TypeVar("T", covariant=True)

PADDING_MULTIPLE = 32  # so that P5 upsamples onto P4; coarser levels round up


def build_loader(
    dataset: TrainDataset | EvalDataset,
    sampler: StreamSampler | ShardSampler,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Batch]:
    """A loader of padded batches in the order of the sampler.

    In evaluation no image is padded further than it would be alone: a batch of several padded sizes comes as
    several.
    """
    by_size = isinstance(dataset, EvalDataset)
    return (SplitLoader if by_size else Loader)(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=partial(
            collate_by_size if by_size else collate, multiple=PADDING_MULTIPLE, shared=num_workers > 0
        ),
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
        persistent_workers=False,
    )


class Loader(DataLoader[T]):
    """Says nothing of more workers than cores: `engine/waiting.py` says it in a line, once."""

    def check_worker_number_rationality(self) -> None:
        """Do nothing."""


class SplitLoader(Loader[Batch]):
    """Gives the batches of each list that its `collate_fn` makes, one by one."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its own class
        for batches in super().__iter__():
            yield from batches


def start_worker(worker_id: int) -> None:
    """Leave the signals to the main process.

    Ctrl-C reaches every process of the terminal, and job schedulers send SIGTERM to all processes of a job:
    the main process decides when to stop, and needs its workers until then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
