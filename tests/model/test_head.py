from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead

from fcos.model.head import PRIOR, Head

STRIDES = (8, 16)


def levels(channels: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, *size, generator=generator) for size in ((4, 6), (2, 3))]


def make(num_convs: int = 1, **options: Any) -> Head:
    torch.manual_seed(0)
    return Head(32, 32, 5, num_convs, STRIDES, **options)


def randomise(head: nn.Module) -> None:
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.1)


def test_outputs_are_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = FCOSHead(32, 1, 5, 4)
    randomise(theirs)
    ours = make(4, normalize_targets=False)  # torchvision's head predicts in strides
    ours.classification_tower.load_state_dict(theirs.classification_head.conv.state_dict())
    ours.box_tower.load_state_dict(theirs.regression_head.conv.state_dict())
    ours.logits.load_state_dict(theirs.classification_head.cls_logits.state_dict())
    ours.distances.load_state_dict(theirs.regression_head.bbox_reg.state_dict())
    assert ours.quality is not None
    ours.quality.load_state_dict(theirs.regression_head.bbox_ctrness.state_dict())
    output, expected = ours(levels()), theirs(levels())
    torch.testing.assert_close(output.logits, expected["cls_logits"])
    torch.testing.assert_close(output.distances, expected["bbox_regression"])
    torch.testing.assert_close(output.quality, expected["bbox_ctrness"][..., 0])


def test_points_are_in_the_order_of_the_grid() -> None:
    head = make(0)
    nn.init.zeros_(head.logits.weight)
    nn.init.zeros_(head.logits.bias)
    head.logits.weight.data[:, 0, 1, 1] = 1  # logits are channel 0 of the level
    inputs = [torch.zeros(1, 32, 2, 3), torch.zeros(1, 32, 1, 2)]
    inputs[0][0, 0], inputs[1][0, 0] = torch.tensor([[0.0, 1, 2], [3, 4, 5]]), torch.tensor([[6.0, 7]])
    assert head(inputs).logits[0, :, 0].tolist() == list(range(8))


def test_a_fresh_head_gives_every_class_the_prior_probability() -> None:
    head = make(4)
    scores = head(levels()).logits.sigmoid()
    assert PRIOR == 0.01
    assert scores.mean().item() == pytest.approx(0.01, rel=0.05)
    assert head.logits.bias is not None
    torch.testing.assert_close(head.logits.bias.sigmoid(), torch.full((5,), 0.01))


def test_each_level_has_its_own_scale_and_unit() -> None:
    head = make()
    randomise(head)
    head.scales.data = torch.tensor([1.0, 1.0])
    before = head(levels()).distances
    head.scales.data = torch.tensor([2.0, 3.0])
    after = head(levels()).distances
    torch.testing.assert_close(after[:, :24], before[:, :24] * 2)
    torch.testing.assert_close(after[:, 24:], before[:, 24:] * 3)
    head.units = [1.0, 1.0]
    torch.testing.assert_close(head(levels()).distances[:, 24:], after[:, 24:] / 16)


def test_exp_makes_distances_positive_after_the_scale() -> None:
    relu, exp = make(), make(box_activation="exp")
    randomise(relu)
    exp.load_state_dict(relu.state_dict())
    exp.scales.data = torch.tensor([2.0, 2.0])
    raw = relu.distances(relu.box_tower(levels()[0])).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(exp(levels()).distances[:, :24], (2 * raw).exp() * 8)
    assert (relu(levels()).distances == 0).any()


@pytest.mark.parametrize(
    ("activation", "start", "strides"),
    [("relu", 0.0, 0.0), ("relu", 4.0, 4.0), ("exp", 0.0, 1.0), ("exp", 4.0, 4.0)],
)
def test_a_fresh_head_predicts_the_distances_that_it_is_told(
    activation: Any, start: float, strides: float
) -> None:
    distances = make(4, box_activation=activation, distance_init=start)(levels()).distances
    assert distances[:, :24].mean().item() / 8 == pytest.approx(strides, rel=0.05, abs=0.1)
    assert distances[:, 24:].mean().item() / 16 == pytest.approx(strides, rel=0.05, abs=0.1)


@pytest.mark.parametrize(("tower", "other"), [("box", "classification"), ("classification", "box")])
def test_quality_reads_the_tower_that_it_is_told(tower: Any, other: str) -> None:
    head = make(quality_tower=tower)
    quality = head(levels()).quality
    assert quality is not None
    assert quality.shape == (2, 30)
    quality.sum().backward()
    assert getattr(head, f"{tower}_tower")[0].weight.grad is not None
    assert getattr(head, f"{other}_tower")[0].weight.grad is None


def test_without_quality_branch_there_is_no_quality() -> None:
    head = make(quality_tower=None)
    assert head(levels()).quality is None
    assert not any(name.startswith("quality") for name in head.state_dict())


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"norm": "gn"}, ["Conv2d", "GroupNorm", "ReLU"] * 2),
        ({"norm": "bn"}, ["Conv2d", "BatchNorm2d", "ReLU"] * 2),
        ({"norm": "none"}, ["Conv2d", "ReLU"] * 2),
        ({"conv": "separable"}, ["Conv2d", "Conv2d", "GroupNorm", "ReLU"] * 2),
    ],
)
def test_towers_are_made_of_the_layers_that_are_asked_for(options: Any, kinds: list[str]) -> None:
    head = make(2, **options)
    assert [type(layer).__name__ for layer in head.box_tower] == kinds
    assert [type(layer).__name__ for layer in head.classification_tower] == kinds
    assert head(levels()).logits.shape == (2, 30, 5)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (96, 32), (48, 16), (20, 4)])
def test_groups_divide_a_width_that_32_does_not(channels: int, groups: int) -> None:
    norm = Head(8, channels, 2, 1, STRIDES).box_tower[1]
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


def test_plain_convolutions_start_with_the_papers_deviation_and_depthwise_ones_pass_their_input_on() -> None:
    torch.manual_seed(0)
    assert Head(64, 64, 2, 1, STRIDES).box_tower[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    depthwise, pointwise = Head(64, 64, 2, 1, STRIDES, conv="separable").box_tower[:2]
    assert depthwise.weight.std().item() == pytest.approx((1 / 25) ** 0.5, rel=0.1)
    assert pointwise.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_distances_are_float32_in_half_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = make()(levels())
    assert output.logits.dtype == torch.bfloat16
    assert output.distances.dtype == torch.float32
