"""Where the time of `predict` and of a training step goes, beside the floor, as a table.

    python benchmarks/where_time_goes.py --image street.jpg [--model fcos_r50 --rounds 7]

The floor of a part is the floating-point operations of its direct convolutions over the ceiling: what one
large 3x3 convolution (256 to 256 channels at 100 x 168) reaches on this machine in the same process. (By
Winograd large convolutions take fewer: a part may lie below its floor.) The backward pass counts twice the
forward pass of what is trained. Weights are random; the image is resized as the preset says, the training
step takes `--batch` images of `--height` x `--width`. Medians; with 2 threads.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from frame import medians, start
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train_step import NUM_CLASSES, make_input, padded

from fcos.config import load_config
from fcos.cpu import winograd
from fcos.cpu.memory import keep_freed_memory
from fcos.cpu.predicting import for_predicting
from fcos.cpu.training import for_training
from fcos.data.batch import GroundTruth, Sample, collate
from fcos.data.image import read_image
from fcos.data.loader import PADDING_MULTIPLE, build_eval_transform
from fcos.model.build import build_assigner, build_loss, build_model, build_postprocess
from fcos.train.optimizer import build_optimizer

T = TypeVar("T")
Times = dict[str, list[float]]


def timed(times: Times, name: str, call: Callable[[], T]) -> T:
    started_at = time.perf_counter()
    result = call()
    times.setdefault(name, []).append(time.perf_counter() - started_at)
    return result


@torch.inference_mode()
def ceiling() -> float:
    """FLOP/s of a large convolution, the best of many."""
    x = torch.randn(1, 256, 100, 168).contiguous(memory_format=torch.channels_last)
    conv = torch.nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last)
    times: Times = {}
    for _ in range(15):
        timed(times, "conv", lambda: conv(x))
    return 2 * 9 * 256 * 256 * 100 * 168 / min(times["conv"])


def flops(call: Callable[[], Any]) -> int:
    """Of direct convolutions."""
    with patch.object(winograd, "MIN_TILES", math.inf), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def print_table(title: str, times: Times, floors: dict[str, float]) -> None:
    print(f"\n| {title} | ms | share | floor, ms |\n|---|---|---|---|")
    took = {name: s * 1000 for name, s in medians({n: t[1:] for n, t in times.items()}).items()}
    total = sum(took.values())
    for name, value in took.items():
        floor = f"{floors[name] * 1000:.0f}" if name in floors else ""
        print(f"| {name} | {value:.1f} | {value / total:.1%} | {floor} |")
    print(f"| together | {total:.0f} | | {sum(floors.values()) * 1000:.0f} |")


@torch.inference_mode()
def predict(args: argparse.Namespace, per_second: float) -> None:
    config = load_config({"model": args.model, "pretrain": False})
    model = build_model(config, NUM_CLASSES).eval().to(memory_format=torch.channels_last)
    fast, transform, postprocess = (
        for_predicting(model),
        build_eval_transform(config),
        build_postprocess(config),
    )
    nothing = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    times: Times = {}
    for _ in range(args.rounds + 1):
        image = timed(times, "decode", lambda: read_image(args.image))
        resized = timed(times, "resize", lambda p=image: transform(p))  # type: ignore[misc]
        size = (image.shape[1], image.shape[2])

        def to_batch(resized: Tensor = resized, size: tuple[int, int] = size) -> Any:
            batch = collate([Sample(resized, nothing, 0, size, 0)], PADDING_MULTIPLE)
            return batch.to(torch.device("cpu"), torch.channels_last)

        batch = timed(times, "pad", to_batch)
        pixels = timed(times, "normalize", lambda b=batch: fast.normalize(b.images, b.sizes_hw))  # type: ignore[misc]
        features = timed(times, "backbone", lambda x=pixels: fast.backbone(x))  # type: ignore[misc]
        levels = timed(times, "pyramid", lambda f=features: fast.pyramid(f))  # type: ignore[misc]
        output = timed(times, "head", lambda v=levels: fast.head(v))  # type: ignore[misc]
        grid = fast.grid((batch.images.shape[2], batch.images.shape[3]))
        arguments = output, grid, batch.sizes_hw, batch.original_sizes_hw
        timed(times, "threshold, NMS", lambda a=arguments: postprocess(*a))  # type: ignore[misc]
    floors = {
        "backbone": flops(lambda: model.backbone(pixels)) / per_second,
        "pyramid": flops(lambda: model.pyramid(features)) / per_second,
        "head": flops(lambda: model.head(levels)) / per_second,
    }
    print_table(f"predict, {args.model}, {' x '.join(map(str, batch.images.shape[2:]))}", times, floors)


def train(args: argparse.Namespace, per_second: float) -> None:
    config = load_config({"model": args.model, "pretrain": False})
    model = for_training(build_model(config, NUM_CLASSES).to(memory_format=torch.channels_last)).train()
    assign, loss, optimizer = build_assigner(config), build_loss(config), build_optimizer(config, model)
    images, boxes, labels = make_input(args)
    height, width = padded(args.height), padded(args.width)
    images = torch.nn.functional.pad(images, (0, width - args.width, 0, height - args.height))
    images = images.contiguous(memory_format=torch.channels_last)
    sizes = torch.tensor([[args.height, args.width]] * args.batch)
    times: Times = {}

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(args.rounds + 1):
        grid = model.grid((height, width))
        targets = timed(times, "targets", lambda g=grid: assign(g, boxes, labels))  # type: ignore[misc]
        pixels = timed(times, "normalize", lambda: model.normalize(images, sizes))
        features = timed(times, "backbone, forward", lambda x=pixels: model.backbone(x))  # type: ignore[misc]
        levels = timed(times, "pyramid, forward", lambda f=features: model.pyramid(f))  # type: ignore[misc]
        output = timed(times, "head, forward", lambda v=levels: model.head(v))  # type: ignore[misc]
        arguments = output, grid, targets, targets.normalizers()
        total = timed(times, "losses", lambda a=arguments: sum(loss(*a).values()))  # type: ignore[misc]
        timed(times, "backward", total.backward)
        timed(times, "clip, optimizer", update)
    to_logits = flops(lambda: model.head(model.pyramid(model.backbone(pixels))).logits.sum().backward())
    forward = {
        "backbone, forward": flops(lambda: model.backbone(pixels)) / per_second,
        "pyramid, forward": flops(lambda: model.pyramid(features)) / per_second,
        "head, forward": flops(lambda: model.head(levels)) / per_second,
    }
    # The logits alone are backpropagated above: the box tower costs what the class tower does.
    head_logits = flops(lambda: [model.head.logits(model.head.classification_tower(v)) for v in levels])
    both_towers = (to_logits / per_second - sum(forward.values())) + 2 * (
        forward["head, forward"] - head_logits / per_second
    )
    print_table(
        f"training step, {args.model}, {args.batch} x {height} x {width}",
        times,
        {**forward, "backward": both_towers},
    )


def main(
    image: Path, model: str = "fcos_r50", height: int = 400, width: int = 533, batch: int = 2, rounds: int = 7
) -> None:
    args = argparse.Namespace(**locals())
    torch.set_num_threads(2)
    keep_freed_memory()
    per_second = ceiling()
    print(f"ceiling: {per_second / 1e9:.0f} GFLOP/s")
    predict(args, per_second)
    train(args, per_second)


if __name__ == "__main__":
    start(main)
