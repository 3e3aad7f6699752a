"""Data loaders: workers that decode while the network computes."""

from __future__ import annotations

import signal
from functools import partial

from torch.utils.data import DataLoader

from fcos.data.batch import Batch, collate
from fcos.data.dataset import EvalDataset, TrainDataset
from fcos.data.sampler import ShardSampler, StreamSampler

PADDING_MULTIPLE = 32  # so that P5 upsamples onto P4; coarser levels round up


def build_loader(
    dataset: TrainDataset | EvalDataset,
    sampler: StreamSampler | ShardSampler,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Batch]:
    """A loader of padded batches in the order of the sampler."""
    return _Loader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=partial(collate, multiple=PADDING_MULTIPLE),
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        persistent_workers=False,
    )


class _Loader(DataLoader[Batch]):
    def check_worker_number_rationality(self) -> None:
        """Say nothing of more workers than cores: `engine/waiting.py` says it in a line, once."""


def _start_worker(worker_id: int) -> None:
    # Ctrl-C reaches every process of the terminal, and job schedulers send SIGTERM to all processes of a job:
    # the main process decides when to stop, and needs its workers until then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
