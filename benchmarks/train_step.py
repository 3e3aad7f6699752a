"""Time and memory of one training step of `fcos_r50` against torchvision's FCOS at the same input.

    python benchmarks/train_step.py [--height 800 --width 1088 --batch 2 --steps 7]

Time: both in this process, one step each in turn, median. Memory: peak resident memory of a process of its
own each. A step is assignment, forward, loss, backward, clipping and SGD, on the same pictures and boxes;
both with frozen batch norm, frozen stem and first stage, 80 classes, random weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torchvision

from fcos.build import build_assigner, build_loss, build_model, build_optimizer
from fcos.config import load_config

NUM_CLASSES = 80


def make_input(args: argparse.Namespace) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """uint8 images, and 8 boxes with labels each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (args.batch, 3, args.height, args.width), generator=generator, dtype=torch.uint8
    )
    limits = torch.tensor([args.width, args.height])
    boxes, labels = [], []
    for _ in range(args.batch):
        corner = torch.rand(8, 2, generator=generator) * limits * 0.7
        size = (0.02 + 0.28 * torch.rand(8, 2, generator=generator)) * limits
        boxes.append(torch.cat([corner, corner + size], dim=1))
        labels.append(torch.randint(0, NUM_CLASSES, (8,), generator=generator))
    return images, boxes, labels


def our_step(args: argparse.Namespace) -> Callable[[], float]:
    config = load_config({"model": "fcos_r50", "pretrain": False})
    model = build_model(config, NUM_CLASSES).to(memory_format=torch.channels_last).train()
    assign, loss, optimizer = build_assigner(config), build_loss(config), build_optimizer(config, model)
    images, boxes, labels = make_input(args)
    sizes = torch.tensor([[args.height, args.width]] * args.batch)
    grid = model.grid((args.height, args.width))

    def step() -> float:
        targets = assign(grid, boxes, labels)
        output = model(images.contiguous(memory_format=torch.channels_last), sizes)
        total = loss(output, grid, targets, targets.normalizers()).total()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        optimizer.zero_grad()
        return total.item()

    return step


def torchvision_step(args: argparse.Namespace) -> Callable[[], float]:
    model = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1, trainable_backbone_layers=3,
        _skip_resize=True,
    ).train()  # fmt: skip
    for module in model.backbone.modules():  # with weights_backbone=None torchvision leaves batch norm live
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    for name, parameter in model.backbone.body.named_parameters():
        if name.startswith(("conv1", "layer1")):
            parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=1e-4)
    images, boxes, labels = make_input(args)
    targets = [{"boxes": b, "labels": n + 1} for b, n in zip(boxes, labels, strict=True)]

    def step() -> float:
        total = sum(model([image.float() / 255 for image in images], targets).values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 10)
        optimizer.step()
        optimizer.zero_grad()
        return total.item()

    return step


STEPS = {"fcos": our_step, "torchvision": torchvision_step}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1088)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument(
        "--memory-of", choices=STEPS, help="only: run two steps of one, print its peak memory"
    )
    args = parser.parse_args()
    if args.memory_of:
        step = STEPS[args.memory_of](args)
        step(), step()
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))
        return

    memory = {
        name: json.loads(
            subprocess.run(
                [sys.executable, *sys.argv, "--memory-of", name], capture_output=True, check=True
            ).stdout
        )
        for name in STEPS
    }
    steps = {name: make(args) for name, make in STEPS.items()}
    times: dict[str, list[float]] = {name: [] for name in STEPS}
    for round_number in range(args.steps + 1):
        for name, step in steps.items():
            started_at = time.perf_counter()
            step()
            if round_number:  # the first is warm-up
                times[name].append(time.perf_counter() - started_at)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name in STEPS:
        spread = f"{min(times[name]):.2f} to {max(times[name]):.2f}"
        print(f"{name:12s} {medians[name]:6.2f} s a step ({spread})  peak {memory[name]:.2f} GiB")
    print(
        f"ratio        {medians['fcos'] / medians['torchvision']:6.2f}            "
        f"{memory['fcos'] / memory['torchvision']:.2f}"
    )


if __name__ == "__main__":
    main()
