from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fcos.config import load_config
from fcos.cpu.fold import folded, folded_weights, norms_behind_convolutions
from fcos.model.backbone import Backbone
from fcos.model.build import build_model
from fcos.model.frozen_norm import FrozenBatchNorm, freeze_norms

from ..model.test_backbone import randomize_norms


def test_weights_with_a_norm_by_hand() -> None:
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0).requires_grad_(False)
    conv.load_state_dict({"weight": torch.tensor([[[[5.0]]]]), "bias": torch.tensor([7.0])})
    state = {"weight": [3.0], "bias": [1.0], "running_mean": [10.0], "running_var": [4.0]}
    norm.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=False)
    freeze_norms(norm)
    assert isinstance(norm, FrozenBatchNorm)
    weight, bias = folded_weights(conv, norm)
    assert weight.item() == 5 * 3 / 2
    assert bias.item() == 3 / 2 * (7 - 10) + 1


@pytest.mark.parametrize("freeze_bn", [True, False])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "tf_efficientnet_lite0", "mobilenetv2_100"])
def test_no_norm_is_left_in_the_backbone_and_the_features_stay(backbone: str, freeze_bn: bool) -> None:
    config = load_config({"backbone": backbone, "freeze_bn": freeze_bn, "pretrain": False})
    model = build_model(config, 3).double().eval()
    randomize_norms(model)
    before = copy.deepcopy(model.state_dict())
    network = folded(model)
    kinds = {type(module).__name__ for module in network.backbone.modules()}
    assert not [kind for kind in kinds if "Norm" in kind]
    assert not any(parameter.requires_grad for parameter in network.parameters())
    images = torch.rand(1, 3, 70, 50, dtype=torch.float64)  # padding as in TensorFlow depends on the size
    with torch.no_grad():
        torch.testing.assert_close(network.backbone(images), model.backbone(images), rtol=1e-8, atol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Toy(nn.Module):
    """A convolution and a norm, wired in one way or another."""

    def __init__(self, wiring: str) -> None:
        super().__init__()
        self.wiring = wiring
        mode = "reflect" if wiring == "reflect" else "zeros"
        self.conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode=mode)
        self.norm = nn.BatchNorm2d(3, affine=wiring != "not affine")
        self.norm.requires_grad_(wiring == "trained")
        freeze_norms(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        if self.wiring == "activation in place":
            y.relu_()
        if self.wiring == "depends on values" and x.sum() < 0:
            return [x]
        if self.wiring == "norm twice":
            return [self.norm(y), self.norm(x)]
        if self.wiring == "convolution twice":
            return [self.norm(y), self.conv(x)]
        if self.wiring == "shortcut":
            return [self.norm(y) + y]
        return [self.norm(y)]


@pytest.mark.parametrize(
    ("wiring", "number"),
    [
        ("one after the other", 1),
        ("shortcut", 0),
        ("activation in place", 0),
        ("norm twice", 0),
        ("convolution twice", 0),
        ("reflect", 0),
        ("not affine", 0),
        ("trained", 0),
        ("depends on values", 1),
    ],
)
def test_only_a_norm_right_behind_a_convolution_is_folded(wiring: str, number: int) -> None:
    assert len(norms_behind_convolutions(Toy(wiring))) == number


def test_a_network_whose_shortcuts_start_before_the_norm_keeps_its_norms() -> None:
    # Pre-activation: the output of a convolution goes into a norm and into a shortcut.
    assert norms_behind_convolutions(Backbone("xception65p").body) == []


@pytest.mark.parametrize("name", ["regnety_002", "hgnetv2_b0", "efficientvit_b0", "mobilenetv3_small_050"])
def test_norms_of_backbones_of_every_make_are_found(name: str) -> None:
    body = Backbone(name).body
    norms = sum(isinstance(module, FrozenBatchNorm) for module in body.modules())
    assert len(norms_behind_convolutions(body)) > 0.6 * norms > 0


def test_running_the_network_does_not_count_as_a_batch() -> None:
    backbone = Backbone("mobilenetv2_100", freeze_bn=False).train()
    norms_behind_convolutions(backbone.body)
    counts = {n for name, n in backbone.state_dict().items() if name.endswith("num_batches_tracked")}
    assert {int(count) for count in counts} == {0}
    assert backbone.body.training


def test_norms_are_found_in_inference_mode_too() -> None:
    """Whose tensors count no versions, by which a tensor that was changed in place is known."""
    model = build_model(load_config({"model": "fcos_mobilenetv2", "pretrain": False}), 1)
    as_usual = len(norms_behind_convolutions(model.backbone.body))
    with torch.inference_mode():
        assert len(norms_behind_convolutions(model.backbone.body)) == as_usual > 0
