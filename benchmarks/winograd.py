"""A 3x3 convolution by Winograd against the direct one: times and errors, forward and both gradients.

    python benchmarks/winograd.py [--threads 2 --rounds 9]

Both in this process, one call each in turn, medians; memory is kept, as in the `fcos` command. The error is
the largest difference from the convolution in float64, as a part of its largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from frame import in_turn, medians, start
from torch import Tensor

from fcos.cpu.memory import keep_freed_memory
from fcos.cpu.winograd import conv3x3, conv3x3_ahead, transform_weight

SHAPES = [(256, 1, 100, 168), (256, 1, 50, 84), (256, 2, 52, 68), (256, 2, 26, 34), (128, 1, 100, 168)]
SHAPES_AHEAD = [(256, 1, 100, 168), (256, 1, 50, 84), (256, 1, 40, 56), (128, 1, 40, 56), (96, 1, 40, 56)]


def direct(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def milliseconds(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    times = in_turn({str(place): call for place, call in enumerate(calls)}, rounds)
    return [seconds * 1000 for seconds in medians(times).values()]


def gradients(result: Tensor, inputs: list[Tensor], back: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(result, inputs, back, retain_graph=True)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach() - exact.detach()).abs().max() / exact.detach().abs().max())


def row(numbers: list[float], kind: str) -> str:
    return " | ".join(format(number, kind) for number in numbers)


def main(threads: int = 2, rounds: int = 9) -> None:
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print("| channels, map | | ms | direct | error | direct |\n|---|---|---|---|---|---|")
    for channels, *size in SHAPES:
        x = torch.randn(size[0], channels, *size[1:]).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)
        back = torch.randn_like(x)
        inputs = [t.requires_grad_() for t in (x, weight.contiguous(memory_format=torch.channels_last))]
        exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
        exact = direct(*exact_inputs)
        wanted = gradients(exact, exact_inputs, back.double())
        results = [convolution(*inputs) for convolution in (conv3x3, direct)]
        shape = f"{channels}, {' x '.join(map(str, size))}"
        forward = milliseconds([partial(conv3x3, *inputs), partial(direct, *inputs)], rounds)
        errors = [error(result, exact) for result in results]
        print(f"| {shape} | forward | {row(forward, '.1f')} | {row(errors, '.1e')} |")
        calls = [partial(gradients, result, inputs, back) for result in results]
        backward = milliseconds(calls, rounds)
        errors = [max(map(error, call(), wanted)) for call in calls]
        print(f"| {shape} | both gradients | {row(backward, '.1f')} | {row(errors, '.1e')} |")

    print("\n| channels, map | weights transformed ahead, ms | direct |\n|---|---|---|")
    for channels, *size in SHAPES_AHEAD:
        x = torch.randn(size[0], channels, *size[1:]).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            both = [partial(conv3x3_ahead, x, transform_weight(weight)), partial(direct, x, weight)]
            times = row(milliseconds(both, rounds), ".2f")
        print(f"| {channels}, {' x '.join(map(str, size))} | {times} |")


if __name__ == "__main__":
    start(main)
