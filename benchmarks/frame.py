"""What the benchmarks share: options from a function's arguments, calls timed in turn, own processes.

In one process detectors share the memory allocator, and what one does to it changes the others: torchvision's
FCOS took 1.1 s an image where a file had been quantized before, 1.5 beside `Detector`, 1.8 beside OpenVINO
and 2.0 alone. So those are measured in a process each (`measure`).
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from fcos.cpu.memory import keep_freed_memory

Run = Callable[[], int]
Make = Callable[[], Run]
PAUSE_S = 0.2  # the threads of the one before go to sleep

_run: Run  # of this process


def start(main: Callable[..., None]) -> None:
    """Call `main` with what the command line says.

    Its arguments are the options: `short_side: int = 800` is --short-side, without a default it is required,
    a bool is a flag, a list takes several values. The help is that of `Annotated[int, "help"]`, and the
    docstring of the script.
    """
    parser = argparse.ArgumentParser(
        description=sys.modules[main.__module__].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, main)
    main(**vars(parser.parse_args()))


def add_options(parser: argparse.ArgumentParser, main: Callable[..., None]) -> None:
    """Add those of `main`, as `start` says."""
    hints = get_type_hints(main, include_extras=True)
    for name, parameter in inspect.signature(main).parameters.items():
        hint, (*_, text) = hints[name], ("",)
        if hasattr(hint, "__metadata__"):
            hint, text = hint.__origin__, hint.__metadata__[0]
        if type(None) in get_args(hint):  # `int | None`
            hint = get_args(hint)[0]
        is_list = get_origin(hint) is list
        kind = get_args(hint)[0] if is_list else hint
        how: dict[str, Any] = {"help": text, "default": parameter.default}
        if parameter.default is parameter.empty:
            how = {"help": text, "required": True}
        how |= {"action": "store_true"} if kind is bool else {"type": kind, "nargs": "*" if is_list else None}
        parser.add_argument(f"--{name.replace('_', '-')}", **how)


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each call in this process, one call each in turn, so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            started_at = clock()
            call()
            if number >= warm_up:
                times[name].append(clock() - started_at)
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def in_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def save_random(path: Path, settings: dict[str, Any], **card: Any) -> Path:
    """A model file of a small network with random weights for cats and dogs."""
    import torch

    from fcos.config import load_config
    from fcos.model.build import build_model
    from fcos.weights.load import model_settings
    from fcos.weights.model_file import ModelCard, save_model

    usual = {"model": "fcos_r18", "head_convs": 1, "strides": [8, 16, 32], "regress_ranges": [64, 128]}
    config = load_config(usual | {"list_train": "none"} | settings)
    torch.manual_seed(0)
    state = build_model(config, 2).state_dict()
    save_model(path, state, ModelCard(model_settings(config), ("cat", "dog"), (1, 2), **card))
    return path


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
