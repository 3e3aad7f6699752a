"""Time an image in the network, of batches of 1, 2 and 4 images of one size, on one and on two cores.

    python benchmarks/batch_sizes.py --model runs/train [--rounds 4]

The sizes are the network's input; pixels are random. In turn, the smallest of the rounds; memory is kept, as
in the `fcos` command.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from frame import start

from fcos import Detector
from fcos.cpu.memory import keep_freed_memory
from fcos.cpu.predicting import for_predicting
from fcos.model.fcos import FCOS

SIZES_HW = [(224, 320), (320, 448), (480, 640), (800, 1088)]
BATCHES = (1, 2, 4)


@torch.inference_mode()
def milliseconds(network: FCOS, size_hw: tuple[int, int], rounds: int) -> list[float]:
    """An image, for each size of batch."""
    best = [float("inf")] * len(BATCHES)
    for _ in range(rounds):
        for place, number in enumerate(BATCHES):
            images = torch.randint(0, 255, (number, 3, *size_hw), dtype=torch.uint8)
            images = images.contiguous(memory_format=torch.channels_last)
            started_at = time.perf_counter()
            network(images, torch.tensor([size_hw] * number))
            best[place] = min(best[place], (time.perf_counter() - started_at) / number * 1000)
    return best


def main(model: Path, rounds: int = 4) -> None:
    keep_freed_memory()
    network = for_predicting(Detector.load(model, device="cpu").model)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for size_hw in SIZES_HW:
            times = milliseconds(network, size_hw, rounds)
            shown = ", ".join(f"{number}: {ms:.1f}" for number, ms in zip(BATCHES, times, strict=True))
            print(f"{threads} threads, {size_hw[0]} x {size_hw[1]}: {shown} ms an image", flush=True)


if __name__ == "__main__":
    start(main)
