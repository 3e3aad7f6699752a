"""The first steps of a training of `fcos_r50`, beside torchvision's FCOS from the same weights.

    python benchmarks/first_steps.py --images data/coco_mini/train2017 \
        --annotations data/coco_mini/annotations/instances_train2017.json

Both see the same images in the same order and learn with SGD; ours follows torchvision's conventions
(`rules=torchvision`). What is left is rounding, which grows from step to step in any training. How fast, a
third one shows: torchvision's again, from weights that were multiplied by 1 + 1e-7 x noise (a float32 has
steps of 1.2e-7). Losses are printed side by side, with the largest relative difference of both to
torchvision's. The weights are random; the last norm of every residual branch starts small, since frozen batch
norm cannot tame a random network.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
from frame import start

from fcos.config import TrainConfig, load_config
from fcos.data.batch import Batch
from fcos.data.formats import read_annotations
from fcos.data.loader import build_train_loader
from fcos.model.build import build_assigner, build_loss, build_model
from fcos.train.optimizer import build_optimizer
from fcos.weights.published.read import read_published

NUM_OUTPUTS = 81  # torchvision's first is the background, and is trained like a class that never comes
NUM_FROZEN = 2  # stem and first stage


def make_torchvision() -> torch.nn.Module:
    """torchvision's network with frozen batch norm and a frozen stem and first stage."""
    torch.manual_seed(0)
    model = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_OUTPUTS, _skip_resize=True
    ).train()
    body = model.backbone.body
    for name, module in body.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval().requires_grad_(False)
            if name.endswith("bn3"):
                torch.nn.init.constant_(module.weight, 0.2)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not name.startswith(("conv1", "layer1")))
    return model


def torchvision_losses(
    model: torch.nn.Module, batches: list[Batch], config: TrainConfig
) -> Iterator[list[float]]:
    """Class, box and quality loss of every step."""
    optimizer = build_optimizer(config, model)
    for batch in batches:
        images = [
            image[:, :height, :width].float() / 255
            for image, (height, width) in zip(batch.images, batch.sizes_hw.tolist(), strict=True)
        ]
        targets = [{"boxes": truth.boxes_xyxy, "labels": truth.labels + 1} for truth in batch.ground_truth]
        losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield [losses[key].item() for key in ("classification", "bbox_regression", "bbox_ctrness")]


def our_losses(weights: Path, batches: list[Batch], config: TrainConfig) -> Iterator[list[float]]:
    """The same of ours."""
    model = build_model(config, NUM_OUTPUTS)
    state = model.state_dict()
    model.load_state_dict(state | read_published(weights).tensors_for(state))
    model.train().head.scales.requires_grad_(False)  # torchvision has none
    assign, loss, optimizer = build_assigner(config), build_loss(config), build_optimizer(config, model)
    for batch in batches:
        grid = model.grid((batch.images.shape[2], batch.images.shape[3]))
        truths = batch.ground_truth
        targets = assign(grid, [t.boxes_xyxy for t in truths], [t.labels + 1 for t in truths])
        losses = loss(model(batch.images, batch.sizes_hw), grid, targets, targets.normalizers())
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield [part.item() for part in losses.values()]


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose weights are off by about one step of a float32."""
    generator = torch.Generator().manual_seed(1)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-7 * torch.randn(parameter.shape, generator=generator))
    return model


def difference(losses: list[float], wanted: list[float]) -> float:
    """The largest relative one."""
    return max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(losses, wanted, strict=True))


def main(images: Path, annotations: Path, steps: int = 20, short_side: int = 256) -> None:
    # torchvision knows no weight decay without that of norms and biases: none for both.
    config = load_config(
        {"model": "fcos_r50", "rules": "torchvision", "nbatch_train": 2, "lr_base": 0.001, "num_workers": 0,
         "short_side": short_side, "view_size": short_side * 2, "weight_decay": 0.0}
    )  # fmt: skip
    train_set = read_annotations(annotations, root=images)
    loader = iter(
        build_train_loader(config, train_set, micro_batch=2, rank=0, world=1, start_step=0, total_steps=1)
    )
    batches = [next(loader) for _ in range(steps)]

    peer = make_torchvision()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "fcos_resnet50_fpn.pth"
        torch.save(peer.state_dict(), weights)
        ours = our_losses(weights, batches, config)
        noisy = torchvision_losses(shaken(peer), batches, config)
        theirs = torchvision_losses(peer, batches, config)
        losses = ("class", "box", "quality")
        heads = [f"{who}: {loss}" for who in ("torchvision", "fcos") for loss in losses]
        print(f"| step | {' | '.join(heads)} | fcos differs by | torchvision with noise by |")
        print("|---" * 9 + "|")
        worst = [0.0, 0.0]
        for step, (wanted, mine, shaken_ones) in enumerate(zip(theirs, ours, noisy, strict=True), start=1):
            off = [difference(mine, wanted), difference(shaken_ones, wanted)]
            worst = [max(pair) for pair in zip(worst, off, strict=True)]
            numbers = " | ".join(f"{value:.5f}" for value in (*wanted, *mine))
            print(f"| {step} | {numbers} | {off[0]:.1e} | {off[1]:.1e} |", flush=True)
    print(f"largest relative difference: fcos {worst[0]:.1e}, torchvision with noise {worst[1]:.1e}")


if __name__ == "__main__":
    start(main)
