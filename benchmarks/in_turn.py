"""Things measured in turn, each in a process of its own.

In one process they share the memory allocator, and what one does to it changes the others: torchvision's FCOS
took 1.1 s a picture where a file had been quantised before, 1.5 beside `Detector`, 1.8 beside OpenVINO and
2.0 alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

from fcos.cpu.memory import keep_freed_memory

Run = Callable[[], int]
Make = Callable[[], Run]
PAUSE_S = 0.2  # the threads of the one before go to sleep

_run: Run  # of this process


class Measured(NamedTuple):
    """What one of them did.

    Attributes:
        found: number of detections.
        times: of each round, seconds.
    """

    found: int
    times: list[float]

    @property
    def median_ms(self) -> float:
        """Of the rounds, milliseconds."""
        return statistics.median(self.times) * 1000

    def __str__(self) -> str:
        spread = f"{min(self.times) * 1000:.0f} to {max(self.times) * 1000:.0f}"
        return f"{self.median_ms:7.0f} ms ({spread}), {self.found} detections"


def measure(makes: Mapping[str, Make], rounds: int, *, keep_memory: bool = False) -> dict[str, Measured]:
    """Each of `makes` makes a run in a new process; then the runs are timed in turn.

    Args:
        makes: functions of a module, or `functools.partial` of one: they are sent to the processes.
        rounds: how often; one run before them is not counted.
        keep_memory: the processes keep freed memory, as the `fcos` command does.
    """
    pools = {
        name: ProcessPoolExecutor(1, get_context("spawn"), _start, (make, keep_memory))
        for name, make in makes.items()
    }
    try:
        found = {name: pool.submit(_time).result()[0] for name, pool in pools.items()}
        times: dict[str, list[float]] = {name: [] for name in pools}
        for _ in range(rounds):
            for name, pool in pools.items():
                time.sleep(PAUSE_S)
                times[name].append(pool.submit(_time).result()[1])
    finally:
        for pool in pools.values():
            pool.shutdown()
    return {name: Measured(found[name], values) for name, values in times.items()}


def _start(make: Make, keep_memory: bool) -> None:
    global _run
    if keep_memory:
        keep_freed_memory()
    _run = make()


def _time() -> tuple[int, float]:
    started_at = time.perf_counter()
    found = _run()
    return found, time.perf_counter() - started_at
