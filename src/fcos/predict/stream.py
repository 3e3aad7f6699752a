"""Predicting many images: reading, the network and using the detections overlap.

On a CPU several images are predicted at once, each on its share of the cores: two cores together on one image
are slower than each on its own image. As many threads again read and draw in the meantime, also while a GPU
computes. For many images, processes do the same: they do not share an interpreter lock.
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

from fcos.data.strips import LargeImage
from fcos.data.workers import Loader, end_workers, start_worker
from fcos.errors import DatasetError, FcosError
from fcos.predict.detections import Detections

if TYPE_CHECKING:
    from fcos.predict.pipeline import Pipeline

MOST_PIXELS = 4 * 1920 * 1080  # in memory before they are predicted, without a given batch size

Source = TypeVar("Source")
Result = TypeVar("Result")


def predict_each(
    detector: Pipeline,
    sources: Iterable[Source],
    read: Callable[[Source], Tensor | LargeImage],
    then: Callable[[Source, Detections], Result],
    *,
    score_threshold: float | None = None,
    batch_size: int | None = None,
    num_processes: int = 1,
) -> Iterator[Result | DatasetError]:
    """The results of `then` for the detections of each source, in order.

    Args:
        detector: predicts several images at once if that is faster.
        sources: consumed one by one, a few ahead of the yielded results.
        read: returns the pixels of a source, uint8 RGB `(3, height, width)`, or a file to read strip by
            strip; called in threads. If it raises a `DatasetError`, the error replaces the result.
        then: called in threads.
        score_threshold, batch_size: as in `Detector.predict`.
        num_processes: if more than one, use forks of this process with one core each instead of threads
            (Linux, a network on the CPU). All sources are consumed first, and the results are sent from
            there.
    """
    num_cores = torch.get_num_threads()
    detector = detector.side_by_side()
    at_once = detector.backend.calls_at_once
    cores_each = max(1, num_cores // at_once) if detector.device.type == "cpu" else num_cores
    predicting = threading.BoundedSemaphore(at_once)
    remaining, group_size = iter(sources), batch_size or detector.backend.group_size
    groups = iter(lambda: list(islice(remaining, group_size)), [])
    most_pixels = None if batch_size else MOST_PIXELS

    def work(group: list[Source]) -> list[Result | DatasetError]:
        results: list[Result | DatasetError] = []
        for some in _read_some(read, group, most_pixels):
            good = [image for _, image in some if not isinstance(image, DatasetError)]
            with predicting:
                found = iter(detector.predict_group(good, score_threshold, batch_size))
            results += [
                image if isinstance(image, DatasetError) else then(source, next(found))
                for source, image in some
            ]
        return results

    if num_processes > 1:
        yield from _in_processes(work, list(groups), num_processes)
        return
    try:
        # The setting applies only to the thread that makes it.
        pool = ThreadPoolExecutor(
            2 * at_once, "predict", initializer=lambda: torch.set_num_threads(cores_each)
        )
        for results in in_order(pool, work, groups, ahead=4 * at_once):
            yield from results
    finally:
        torch.set_num_threads(num_cores)  # except in MKL, where it applies to all threads


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Source], Result], sources: Iterable[Source], ahead: int
) -> Iterator[Result]:
    """Results of `work` in the order of `sources`, of which at most `ahead` more are consumed than yielded.

    The pool is closed at the end; if the caller stops early, after the work in progress.
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


def _read_some(
    read: Callable[[Source], Tensor | LargeImage], group: list[Source], most_pixels: int | None
) -> Iterator[list[tuple[Source, Tensor | LargeImage | DatasetError]]]:
    """The images of a group with their sources, in batches that end when they reach `most_pixels`."""
    some: list[tuple[Source, Tensor | LargeImage | DatasetError]] = []
    num_pixels = 0
    for source in group:
        try:
            image: Tensor | LargeImage | DatasetError = read(source)
        except DatasetError as error:
            image = error
        some.append((source, image))
        num_pixels += image[0].numel() if isinstance(image, Tensor) else 0
        if most_pixels and num_pixels >= most_pixels:
            yield some
            some, num_pixels = [], 0
    if some:
        yield some


def _in_processes(
    work: Callable[[list[Source]], list[Result]], groups: list[list[Source]], num_processes: int
) -> Iterator[Result]:
    if not groups:  # a loader with no workers would run in this process
        return

    def results_of(group: list[Source]) -> list[Result] | Exception:
        try:
            return work(group)
        except Exception as error:  # the loader would replace it with another error
            return error

    loader: Loader[list[Result] | Exception] = Loader(
        groups,  # type: ignore[arg-type]  # a list is all that it needs
        batch_size=None,
        num_workers=min(num_processes, len(groups)),
        collate_fn=results_of,  # called in the workers
        worker_init_fn=start_worker,
        multiprocessing_context="fork",
    )
    try:
        for results in loader:
            if isinstance(results, Exception):
                raise results
            yield from results
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise FcosError(
            "a prediction process was killed, probably because it ran out of memory",
            fix=f"use fewer processes: --num-processes {num_processes // 2}",
        ) from error
    finally:
        end_workers(loader.running)
