"""Searching many pictures: reading, network and what is done with the detections run beside each other.

On a CPU several pictures are searched at once, each on its share of the cores: two cores share the work on
one picture less well than they work on two. As many threads again read and draw meanwhile, as they do while a
GPU computes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


def search(
    detector: Detector,
    sources: Iterable[Source],
    read: Callable[[Source], Tensor],
    then: Callable[[Source, Detections], Result],
    *,
    score_threshold: float | None = None,
    batch_size: int | None = None,
) -> Iterator[Result | DatasetError]:
    """What `then` makes of the detections of each source, in order.

    Args:
        detector: searches; several at once where that is faster.
        sources: taken one by one, a few ahead of what has been given out.
        read: pixels of a source, uint8 RGB `(3, height, width)`; called in threads. Its `DatasetError` takes
            the place of the result.
        then: called in threads.
        score_threshold: as in `Detector.predict`.
        batch_size: pictures of one forward pass; None: the usual number.
    """
    num_cores = torch.get_num_threads()
    detector = detector.side_by_side()
    batch_size = batch_size or detector.usual_batch_size
    at_once = detector.calls_at_once
    cores_each = max(1, num_cores // at_once) if detector.device.type == "cpu" else num_cores
    searching = threading.BoundedSemaphore(at_once)

    def work(group: list[Source]) -> list[Result | DatasetError]:
        pixels = [_read(read, source) for source in group]
        good = [image for image in pixels if isinstance(image, Tensor)]
        with searching:
            found = iter(detector.predict(good, score_threshold, batch_size=batch_size))
        return [
            then(source, next(found)) if isinstance(image, Tensor) else image
            for source, image in zip(group, pixels, strict=True)
        ]

    try:
        # The setting belongs to the thread that makes it.
        pool = ThreadPoolExecutor(
            2 * at_once, "search", initializer=lambda: torch.set_num_threads(cores_each)
        )
        for results in in_order(pool, work, _groups(sources, batch_size), ahead=4 * at_once):
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
