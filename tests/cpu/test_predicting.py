from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fcos.config import load_config
from fcos.cpu.first_layers import OneByOne
from fcos.cpu.fuse import FusedConv2d, fuse_convolutions, fuse_layers
from fcos.cpu.predicting import for_predicting
from fcos.model.build import build_model
from fcos.model.fcos import FCOS
from fcos.model.frozen_norm import FrozenBatchNorm

from ..model.test_backbone import randomize_norms


def make(**settings: Any) -> FCOS:
    config = load_config({"model": "fcos_r18", "list_train": "none", **settings})
    torch.manual_seed(0)
    model = build_model(config, 3).eval()
    randomize_norms(model)
    nn.init.normal_(model.head.distances.weight, std=0.1)
    return model


def predictions(model: FCOS, size_hw: tuple[int, int] = (96, 64)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *size_hw), generator=generator, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return [part for part in model(images, torch.tensor([size_hw] * 2)) if part is not None]


def fused_convolutions(module: nn.Module) -> list[FusedConv2d]:
    return [part for part in module.modules() if isinstance(part, FusedConv2d)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"backbone": "resnet50"},
        {"model": "fcos_lite0"},
        {"model": "fcos_mobilenetv2"},
        {"head_norm": "none", "box_activation": "exp", "quality": "none"},
        {"head_norm": "bn", "head_conv": "separable", "quality_tower": "classification"},
        {"freeze_bn": False},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "r18",
)
def test_predictions_are_those_of_the_network(settings: dict[str, Any]) -> None:
    model = make(**settings)
    fast = for_predicting(model)
    for size_hw in ((96, 64), (64, 160)):
        for wanted, found in zip(predictions(model, size_hw), predictions(fast, size_hw), strict=True):
            tolerance = 2e-5 * max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backbone", ["resnet50", "tf_efficientnet_lite0", "mobilenetv2_100"])
def test_no_norm_and_no_separate_activation_is_left_in_the_backbone(backbone: str) -> None:
    body = for_predicting(make(backbone=backbone)).backbone.body
    left = {type(module).__name__ for module in body.modules() if not list(module.children())}
    assert left <= {"FusedConv2d", "MaxPool2d"}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "tf_efficientnet_lite0", "mobilenetv2_100"])
def test_first_layers_see_one_image_and_the_others_the_batch(backbone: str) -> None:
    body = for_predicting(make(backbone=backbone)).backbone.body
    (first,) = [part for part in body.modules() if isinstance(part, OneByOne)]
    in_first = set(fused_convolutions(first))
    sizes: dict[bool, set[int]] = {True: set(), False: set()}
    for conv in fused_convolutions(body):
        conv.register_forward_pre_hook(
            lambda conv, inputs: sizes[conv in in_first].add(len(inputs[0]))  # type: ignore[func-returns-value]
        )
    images = torch.rand(3, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        together = body(images)
        assert sizes == {True: {1}, False: {3}}
        assert first(images).shape[2:] == (8, 12)
        for i in range(3):
            for feature, alone in zip(together, body(images[i : i + 1]), strict=True):
                if feature is not None:
                    torch.testing.assert_close(feature[i : i + 1], alone)


class TwoPaths(nn.Module):
    """Two maps lead to the coarser levels: there is no place to put images together."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Conv2d(3, 4, 8, stride=8) for _ in range(2))
        self.left2, self.right2 = (nn.Conv2d(4, 4, 2, stride=2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        left, right = self.left(x), self.right(x)
        return [self.left2(left), self.right2(right)]


def test_a_network_of_two_paths_stays_in_one_part() -> None:
    network = TwoPaths().eval()
    fused = fuse_convolutions(network, [0, 1])
    assert fused is not network
    assert not any(isinstance(part, OneByOne) for part in fused.modules())


def test_a_shortcut_is_overwritten_unless_it_is_a_feature_that_is_put_out() -> None:
    body = for_predicting(make()).backbone.body
    assert sum(conv.in_place for conv in fused_convolutions(body)) == 7  # the first shortcut is a pooling's
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        features = [[feature.clone() for feature in body(images) if feature is not None] for _ in range(2)]
        assert all(torch.equal(first, second) for first, second in zip(*features, strict=True))


def test_the_network_itself_stays_as_it_was() -> None:
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for_predicting(model)
    assert any(isinstance(module, FrozenBatchNorm) for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Doubtful(nn.Module):
    """What is added is also read later, and an activation changes it in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        shortcut = self.first(x)
        later = self.act(shortcut)
        total = self.second(x) + shortcut
        return [total, self.third(later) + total]


class Branching(Doubtful):
    """Takes another way for every image: fx cannot follow it."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return super().forward(x) if x.sum() > 0 else [self.first(x)]


def test_what_is_read_again_is_not_overwritten() -> None:
    torch.manual_seed(0)
    network = Doubtful().eval()
    fused = fuse_convolutions(network, [0, 1])
    assert fused is not network
    x = torch.rand(2, 3, 9, 7).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for wanted, found in zip(network(x), fused(x), strict=True):
            torch.testing.assert_close(found, wanted)
    in_place = {name: conv.in_place for name, conv in fused.named_modules() if isinstance(conv, FusedConv2d)}
    assert in_place["second"] is False


def test_a_network_that_cannot_be_followed_stays_as_it_is() -> None:
    network = Branching().eval()
    assert fuse_convolutions(network, [0, 1]) is network


def test_activations_of_a_sequence_are_taken_in() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 4, 1), nn.Tanh()).eval()
    x = torch.randn(1, 3, 8, 8) * 9
    with torch.inference_mode():
        wanted = layers(x)
        fuse_layers(layers)
        torch.testing.assert_close(layers(x), wanted)
    assert [type(layer).__name__ for layer in layers] == ["FusedConv2d", "Identity", "FusedConv2d", "Tanh"]
