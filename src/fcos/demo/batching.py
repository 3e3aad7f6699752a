"""Batch the images of concurrent requests, without waiting for a batch to fill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fcos.detector import Detector
from fcos.model.postprocess import ImageDetections
from fcos.predict.pipeline import Prepared

Pass = tuple[list[ImageDetections], float]  # detections of each image, and seconds
Answer = asyncio.Future[tuple[ImageDetections, float]]


class Batches:
    """Runs one forward pass after the other, each on the images that are waiting when it starts.

    Args:
        detector: runs in its own thread.
        batch_size: maximum images per pass, of any size; None: as `Detector.predict` chooses.
        on_pass: called after each pass with its number of images and seconds.
    """

    def __init__(
        self, detector: Detector, batch_size: int | None, on_pass: Callable[[int, float], None]
    ) -> None:
        self._detector, self._batch_size, self._on_pass = detector, batch_size, on_pass
        self.most = batch_size or detector.backend.group_size
        self._thread = ThreadPoolExecutor(1, "network")
        self._is_busy = False
        self._waiting: list[tuple[Prepared, Answer]] = []

    async def detect(self, image: Prepared) -> tuple[ImageDetections, float]:
        """Detections of an image, and the seconds of its pass."""
        answer: Answer = asyncio.get_running_loop().create_future()
        self._waiting.append((image, answer))
        self._begin()
        return await answer

    def _begin(self) -> None:
        """Unless the network is busy, start a pass with the oldest image and others of its padded size."""
        self._waiting = [(image, answer) for image, answer in self._waiting if not answer.done()]
        if self._is_busy or not self._waiting:
            return
        group = self._detector.passes([image for image, _ in self._waiting], self._batch_size)[0][: self.most]
        images, answers = zip(*(self._waiting[index] for index in group), strict=True)
        self._waiting = [one for index, one in enumerate(self._waiting) if index not in group]
        self._is_busy = True
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._run, images)
        running.add_done_callback(partial(self._end, answers))

    def _run(self, images: tuple[Prepared, ...]) -> Pass:
        started_at = time.perf_counter()
        return self._detector.detect(images), time.perf_counter() - started_at

    def _end(self, answers: tuple[Answer, ...], running: asyncio.Future[Pass]) -> None:
        self._is_busy = False
        error = running.exception()
        found, seconds = ([], 0.0) if error else running.result()
        if not error:
            self._on_pass(len(answers), seconds)
        for index, answer in enumerate(answers):
            if answer.done():  # cancelled: no client is waiting for it
                continue
            if error:
                answer.set_exception(error)
            else:
                answer.set_result((found[index], seconds))
        self._begin()
