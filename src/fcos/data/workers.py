"""Data loaders whose workers decode while the network computes, and shutting those workers down."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader

from fcos.errors import FcosError, TrainingError

T = TypeVar("T", covariant=True)
Item = TypeVar("Item")
SECONDS_TO_END = 3.0  # for a worker to finish its image
_running: WeakSet[Any] = WeakSet()  # iterators over loaders with workers


class Loader(DataLoader[T]):
    """A DataLoader that does not warn about more workers than cores: `train/throughput.py` does, once.

    Attributes:
        running: the iterator of the last pass.
    """

    running: Any = None

    def check_worker_number_rationality(self) -> None:
        """Do nothing."""

    def __iter__(self) -> Any:
        """PyTorch's iterator, which is also kept, so that its workers end with this process at the latest."""
        self.running = super().__iter__()
        if self.num_workers:
            _running.add(self.running)
        return self.running


@contextmanager
def loading(loader: Iterable[Item]) -> Iterator[Iterator[Item]]:
    """The batches of a loader, whose workers end with the block, even after an error.

    Raises:
        FcosError: an error of a worker, as it would be without workers.
        TrainingError: a worker was killed.
    """
    try:
        yield iter(loader)
    except FcosError as error:
        if (plain := _as_said(error)) is error:
            raise
        raise plain from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _lost_worker(error) from error
    finally:
        end_workers(getattr(loader, "running", None))


def end_workers(running: Any) -> None:
    """End the workers of an iterator over a loader, if it has any.

    Workers ignore SIGTERM, with which Python stops them at exit, before it waits for them without a timeout.
    And a worker that was killed may have held the lock of the queue, for which the others then wait.
    """
    workers: list[BaseProcess] = list(getattr(running, "_workers", ()))
    if not workers:
        return
    if running._worker_pids_set:  # else PyTorch reports their end as an error
        torch._C._remove_worker_pids(id(running))
        running._worker_pids_set = False
    killer = threading.Timer(SECONDS_TO_END, _kill, [workers])
    killer.daemon = True
    killer.start()
    try:
        running._shutdown_workers()
    finally:
        killer.cancel()
        _kill(workers)


def _kill(workers: list[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


@atexit.register  # runs before multiprocessing's own, which was registered earlier
def _end_all() -> None:
    for running in list(_running):
        end_workers(running)


def _as_said(error: FcosError) -> FcosError:
    """An error without the worker's traceback that PyTorch adds to its message."""
    kind = type(error)
    _, is_of_worker, said = error.what.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")
    if not is_of_worker or "in DataLoader worker process" not in error.what:
        return error
    what, _, rest = said.strip().partition("\n  in: ")
    where, _, fix = rest.partition("\n  fix: ")
    if not rest:
        what, _, fix = what.partition("\n  fix: ")
    return kind(what, where=where, fix=fix)


def _lost_worker(error: RuntimeError) -> TrainingError:
    """One error for PyTorch's various messages that a worker has died."""
    out_of_shared = "shared memory" in str(error) or "Bus error" in str(error)
    return TrainingError(
        "a data loader process was killed",
        where="num_workers",
        fix="shared memory is full: use fewer num_workers, or a larger /dev/shm (docker run --shm-size 8g)"
        if out_of_shared
        else "it probably ran out of memory: use fewer num_workers, or 0",
    )


def start_worker(worker_id: int) -> None:
    """Leave signals to the main process.

    Ctrl-C reaches every process of the terminal, and job schedulers send SIGTERM to all processes of a job:
    the main process decides when to stop, and needs its workers until then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
