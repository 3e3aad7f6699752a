"""Targets, losses and gradients with the rules of each code base, from its own weights and image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fcos.config import TrainConfig
from fcos.model.assign import BACKGROUND, Targets
from fcos.model.build import build_assigner, build_loss
from fcos.weights.published.layouts import LAYOUTS

if TYPE_CHECKING:
    from conftest import Case

NETWORK_HW = (160, 256)
THEIR_BACKGROUND = {"official": 0, "torchvision": -1}  # the others: number of classes


def training_config(case: Case) -> TrainConfig:
    """The settings with what a file cannot say of its training."""
    changes: dict[str, Any] = {}
    if case.folder.name == "mmdet_r50_caffe":
        changes = {"center_sampling": False, "box_loss": "iou"}
    if case.folder.name == "adelaidet_r50_1x_iou":
        changes = {"quality": "iou"}
    return case.config.model_copy(update=changes)


def ground_truth(case: Case, truth: str) -> tuple[list[Tensor], list[Tensor]]:
    losses = json.loads((case.folder / "losses.json").read_text())
    boxes, labels = [], []
    for name in truth.split("+"):
        entry = losses["gt"][name]
        boxes.append(
            torch.tensor(entry["boxes_xyxy_network_input_pixels"], dtype=torch.float32).reshape(-1, 4)
        )
        labels.append(torch.tensor(entry["labels"], dtype=torch.int64) - int(case.rules == "official"))
    return boxes, labels


def assign(case: Case, truth: str) -> Targets:
    return build_assigner(training_config(case))(case.model.grid(NETWORK_HW), *ground_truth(case, truth))


@pytest.mark.parametrize("truth", ["A", "B", "empty"])
def test_targets_are_theirs(case: Case, truth: str) -> None:
    theirs = np.load(case.folder / "targets.npz")
    grid = case.model.grid(NETWORK_HW)
    assert torch.equal(grid.points, torch.from_numpy(theirs["points"]).float())
    if f"{truth}_labels" not in theirs:
        assert (case.rules, truth) == ("official", "empty")  # its code fails without ground truth
        return
    ours = assign(case, truth)
    labels = torch.from_numpy(theirs[f"{truth}_labels"])
    positive = labels != THEIR_BACKGROUND.get(case.rules, 5)
    assert torch.equal(ours.labels[0] != BACKGROUND, positive)
    assert torch.equal(ours.labels[0][positive], labels[positive] - int(case.rules == "official"))
    if positive.any():
        unit = grid.strides[:, None] if case.config.normalize_targets else torch.ones(1)
        distances = torch.from_numpy(theirs[f"{truth}_reg"]) * unit
        assert torch.equal(ours.distances[0][positive], distances[positive])


@pytest.mark.parametrize("truth", ["A", "B", "A+B", "empty"])
def test_losses_and_gradients_are_theirs(case: Case, truth: str) -> None:
    theirs = json.loads((case.folder / "losses.json").read_text())[truth]
    if "error" in theirs:
        assert (case.rules, truth) == ("official", "empty")
        return
    count = len(truth.split("+"))
    targets = assign(case, truth)
    normalizers = targets.normalizers()
    if "normalizer_after_ema" in theirs:  # detectron2 divides by a moving average of the positives
        normalizers[:] = theirs["normalizer_after_ema"]
    images, sizes = case.batch.images.expand(count, -1, -1, -1), case.batch.sizes_hw.expand(count, -1)
    parameters = dict(case.model.named_parameters())
    trained = [name for name in translated(case, theirs["grad_norms"]) if parameters[name].requires_grad]
    output = case.model(images, sizes)
    losses = build_loss(training_config(case))(output, case.model.grid(NETWORK_HW), targets, normalizers)
    found = torch.stack(list(losses.values())).tolist()
    assert found == pytest.approx(list(theirs["losses"].values()), rel=1e-5, abs=1e-5)

    gradients = torch.autograd.grad(sum(losses.values()), [parameters[name] for name in trained])
    norms = dict(translated(case, theirs["grad_norms"]))
    assert len(trained) > 15
    for name, gradient in zip(trained, gradients, strict=True):
        assert gradient.norm().item() == pytest.approx(norms[name], rel=1e-3, abs=1e-5), name


def translated(case: Case, norms: dict[str, float]) -> dict[str, float]:
    """Norms by our names; the scales of the levels, which we keep in one tensor, are left out."""
    layout = next(layout for layout in LAYOUTS if layout.rules == case.rules)
    ours = {layout.translate(name): name for name, _ in case.model.named_parameters()}
    return {ours[name]: norm for name, norm in norms.items() if ".scales." not in name}
