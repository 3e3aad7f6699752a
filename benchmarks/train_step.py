"""Time and memory of one training step against torchvision's FCOS at the same input.

    python benchmarks/train_step.py [--model fcos_r50 --height 800 --width 1088 --batch 2 --steps 7]
    python benchmarks/train_step.py --model fcos_mobilenetv2 --height 400 --width 533

Time: both in this process, one step each in turn, median. Memory: peak resident memory of a process of its
own each. A step is assignment, forward, loss, backward, clipping and the optimizer, on the same images and
boxes, padded to a multiple of 32; 80 classes, random weights. Ours is the preset as it is (`--set` changes
settings: precision=bf16 is what `fcos train FOLDER` proposes where the processor is faster in it). The peer
is torchvision's FCOS on the same backbone with frozen batch norm, frozen stem and first stage (block), and
SGD, in float32 as its own reference trains it on CPUs; with `--peer-bf16` under bfloat16 autocast. The
allocator keeps freed memory, as in `fcos train`; that helps the peer too.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from typing import Annotated

import torch
import torchvision
from frame import in_process, in_turn, medians, start
from peers import fcos_mobilenet
from torch.nn import functional as F

from fcos.config import load_config
from fcos.cpu.memory import keep_freed_memory
from fcos.cpu.training import for_training
from fcos.model.build import build_assigner, build_loss, build_model
from fcos.train.optimizer import build_optimizer

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


def padded(size: int) -> int:
    return -(-size // 32) * 32


def our_step(args: argparse.Namespace) -> Callable[[], float]:
    changes = dict(change.split("=", 1) for change in args.set)
    config = load_config({"model": args.model, "pretrain": False, **changes})
    model = for_training(build_model(config, NUM_CLASSES).to(memory_format=torch.channels_last)).train()
    assign, loss, optimizer = build_assigner(config), build_loss(config), build_optimizer(config, model)
    images, boxes, labels = make_input(args)
    height, width = padded(args.height), padded(args.width)
    images = F.pad(images, (0, width - args.width, 0, height - args.height))
    sizes = torch.tensor([[args.height, args.width]] * args.batch)
    grid = model.grid((height, width))

    def step() -> float:
        targets = assign(grid, boxes, labels)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            output = model(images.contiguous(memory_format=torch.channels_last), sizes)
            total = sum(loss(output, grid, targets, targets.normalizers()).values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        optimizer.zero_grad()
        return total.item()

    return step


def make_torchvision(model: str) -> torch.nn.Module:
    """Its FCOS on the backbone of one of our presets."""
    if model == "fcos_mobilenetv2":
        return fcos_mobilenet(NUM_CLASSES, None, _skip_resize=True).train()
    peer: torch.nn.Module = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1, _skip_resize=True
    ).train()
    for module in peer.backbone.modules():  # with weights_backbone=None torchvision leaves batch norm live
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    for name, parameter in peer.backbone.body.named_parameters():
        if name.startswith(("conv1", "layer1")):
            parameter.requires_grad_(False)
    return peer


def torchvision_step(args: argparse.Namespace) -> Callable[[], float]:
    model = make_torchvision(args.model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=1e-4)
    images, boxes, labels = make_input(args)
    targets = [{"boxes": b, "labels": n + 1} for b, n in zip(boxes, labels, strict=True)]

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.peer_bf16):
            total = sum(model([image.float() / 255 for image in images], targets).values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 10)
        optimizer.step()
        optimizer.zero_grad()
        return total.item()

    return step


STEPS = {"fcos": our_step, "torchvision": torchvision_step}


def peak_memory(make: Callable[[argparse.Namespace], Callable[[], float]], args: argparse.Namespace) -> float:
    """GiB of this process after two steps."""
    keep_freed_memory()
    step = make(args)
    step(), step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(
    model: Annotated[str, "fcos_r50 or fcos_mobilenetv2"] = "fcos_r50",
    set: Annotated[list[str], "KEY=VALUE: settings of ours"] = [],  # noqa: B006
    peer_bf16: Annotated[bool, "torchvision under bfloat16 autocast"] = False,
    height: int = 800,
    width: int = 1088,
    batch: int = 2,
    steps: int = 7,
) -> None:
    keep_freed_memory()
    args = argparse.Namespace(**locals())
    memory = {name: in_process(peak_memory, make, args) for name, make in STEPS.items()}
    times = in_turn({name: make(args) for name, make in STEPS.items()}, steps)
    took = medians(times)
    for name in STEPS:
        spread = f"{min(times[name]):.2f} to {max(times[name]):.2f}"
        print(f"{name:12s} {took[name]:6.2f} s a step ({spread})  peak {memory[name]:.2f} GiB")
    print(
        f"ratio        {took['fcos'] / took['torchvision']:6.2f}            "
        f"{memory['fcos'] / memory['torchvision']:.2f}"
    )


if __name__ == "__main__":
    start(main)
