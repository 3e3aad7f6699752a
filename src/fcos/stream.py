"""Searching many pictures: reading, network and what is done with the detections run beside each other.

On a CPU each picture has a thread of its own for its whole way, and the network computes in that thread
alone: two cores share the work on one picture less well than they work on two. On a GPU the same threads
read and draw while it computes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from fcos.detections import Detections
from fcos.errors import DatasetError

if TYPE_CHECKING:
    from fcos.api import Detector

Source = TypeVar("Source")
Result = TypeVar("Result")

MOST_THREADS = 4  # of Python, which share one interpreter lock; more cores go to the network in each
THREADS_BESIDE_A_DEVICE = 3


def search(
    detector: Detector,
    sources: Iterable[Source],
    read: Callable[[Source], Tensor],
    then: Callable[[Source, Detections], Result],
    *,
    score_threshold: float | None = None,
    batch_size: int = 1,
) -> Iterator[Result | DatasetError]:
    """What `then` makes of the detections of each source, in order.

    Args:
        detector: searches; by several threads at once where its device allows that.
        sources: taken one by one, a few ahead of what has been given out.
        read: pixels of a source, uint8 RGB `(3, height, width)`; called in threads. Its `DatasetError` takes
            the place of the result.
        then: called in threads.
        score_threshold: as in `Detector.predict`.
        batch_size: pictures of one forward pass.
    """
    side_by_side = detector.searches_side_by_side
    alone, is_ready = threading.Lock(), threading.Event()

    def work(group: list[Source]) -> list[Result | DatasetError]:
        pixels = [_read(read, source) for source in group]
        good = [image for image in pixels if isinstance(image, Tensor)]
        # The first one alone: it makes what is only made when it is needed.
        with nullcontext() if side_by_side and is_ready.is_set() else alone:
            found = iter(detector.predict(good, score_threshold, batch_size=batch_size))
        is_ready.set()
        return [
            then(source, next(found)) if isinstance(image, Tensor) else image
            for source, image in zip(group, pixels, strict=True)
        ]

    num_cores = torch.get_num_threads()
    if side_by_side and detector.device.type == "cpu":
        num_threads = min(num_cores, MOST_THREADS)
        cores_each = max(1, num_cores // num_threads)
    else:
        num_threads, cores_each = THREADS_BESIDE_A_DEVICE, num_cores
    try:
        # The setting belongs to the thread that makes it.
        pool = ThreadPoolExecutor(
            num_threads, "search", initializer=lambda: torch.set_num_threads(cores_each)
        )
        for results in in_order(pool, work, _groups(sources, batch_size), ahead=2 * num_threads):
            yield from results
    finally:
        torch.set_num_threads(num_cores)  # but for MKL, where it belongs to all threads


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Source], Result], sources: Iterable[Source], ahead: int
) -> Iterator[Result]:
    """Results of `work` in the order of `sources`, at most `ahead` more of which are taken and not given out.

    The pool is closed at the end; also where the caller stops early, after the work that has begun.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for source in sources:
            waiting.append(pool.submit(work, source))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _groups(sources: Iterable[Source], size: int) -> Iterator[list[Source]]:
    """Lists of `size` sources; the last may be shorter."""
    iterator = iter(sources)
    while group := list(islice(iterator, size)):
        yield group


def _read(read: Callable[[Source], Tensor], source: Source) -> Tensor | DatasetError:
    try:
        return read(source)
    except DatasetError as error:
        return error
