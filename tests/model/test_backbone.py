from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fcos.errors import ConfigError
from fcos.model.backbone import Backbone, check_backbone, pixel_statistics
from fcos.model.frozen_norm import FrozenBatchNorm


def randomize_norms(module: nn.Module, seed: int = 0) -> None:
    """Statistics and affine weights as after training, in place: fresh ones are nearly no norm at all."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            for tensor, mean in (
                (norm.running_mean, 0),
                (norm.running_var, 1),
                (norm.weight, 1),
                (norm.bias, 0),
            ):
                assert tensor is not None
                noise = torch.rand(tensor.shape, generator=generator).to(tensor) - 0.5
                tensor.data.copy_(mean + noise)


def trained_names(backbone: Backbone) -> set[str]:
    """First parts of the names of the trained parameters."""
    return {name.split(".")[1] for name, parameter in backbone.named_parameters() if parameter.requires_grad}


# Features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", [128, 256, 512]),
        ("tf_efficientnet_lite0", [40, 112, 320]),
        ("mobilenetv2_100", [32, 96, 320]),
    ],
)
@pytest.mark.parametrize("size_hw", [(64, 96), (65, 33)])
def test_features_have_strides_8_16_and_32(name: str, channels: list[int], size_hw: tuple[int, int]) -> None:
    backbone = Backbone(name).eval()
    assert backbone.channels == channels
    height, width = size_hw
    shapes = [tuple(feature.shape) for feature in backbone(torch.zeros(2, 3, height, width))]
    assert shapes == [
        (2, c, -(-height // stride), -(-width // stride))
        for c, stride in zip(channels, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv2_100"])
def test_features_at_stride_4_come_first_where_they_are_asked_for(name: str) -> None:
    backbone = Backbone(name, (4, 8, 16, 32)).eval()
    images = torch.rand(1, 3, 64, 96)
    finest, *others = backbone(images)
    assert finest.shape == (1, backbone.channels[0], 16, 24)
    usual = Backbone(name).eval()
    usual.load_state_dict(backbone.state_dict())
    assert all(map(torch.equal, others, usual(images)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_patch16_224", r"no features at stride \[8, 32\], only at \[16, 16, 16\]"),
        ("swin_tiny_patch4_window7_224", "does not take an image of 64 x 64 pixels"),
    ],
)
def test_an_unsuitable_network_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot be used as backbone: .*{reason}") as caught:
        Backbone(name)
    assert "for example resnet50" in caught.value.fix


def test_unknown_backbone_is_answered_with_the_nearest() -> None:
    check_backbone("resnet50")
    with pytest.raises(ConfigError) as caught:
        check_backbone("resnett50", "file train.json, line 3")
    assert caught.value.what == "resnett50 cannot be used as backbone: timm has no network of this name"
    assert caught.value.where == "file train.json, line 3"
    assert "resnet50" in caught.value.fix
    with pytest.raises(ConfigError, match="timm has no network of this name"):
        Backbone("resnet0")


# Frozen stages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "trained"),
    [
        (0, {"conv1", "layer1", "layer2", "layer3", "layer4"}),
        (1, {"layer2", "layer3", "layer4"}),
        (2, {"layer3", "layer4"}),
        (4, set()),
    ],
)
def test_stem_and_first_stages_are_not_trained(stages: int, trained: set[str]) -> None:
    assert trained_names(Backbone("resnet18", freeze_stages=stages)) == trained


def test_stages_of_a_small_network_end_at_their_stride() -> None:
    backbone = Backbone("mobilenetv2_100", freeze_bn=False, freeze_stages=1)
    frozen = {name for name, parameter in backbone.body.named_parameters() if not parameter.requires_grad}
    assert {".".join(name.split(".")[:2]) for name in frozen if name.startswith("blocks")} == {
        "blocks.0",
        "blocks.1",
    }
    assert {"conv_stem.weight", "bn1.weight"} <= frozen


def test_a_stage_may_end_where_no_parameters_are() -> None:
    # Stages of VGG end with an activation.
    backbone = Backbone("vgg11_bn", freeze_stages=1)
    trained = [name for name, parameter in backbone.body.named_parameters() if parameter.requires_grad]
    assert "features_0.weight" not in trained
    assert any(name.startswith("features_") for name in trained)


def test_norms_of_frozen_stages_keep_their_statistics_when_the_others_train() -> None:
    backbone = Backbone("resnet18", freeze_bn=False, freeze_stages=1).train()
    before = copy.deepcopy(backbone.body.state_dict())
    backbone(torch.rand(2, 3, 64, 64))
    moved = {
        key.split(".")[0] for key, value in backbone.body.state_dict().items() if not value.equal(before[key])
    }
    assert moved == {"layer2", "layer3", "layer4"}


def test_frozen_norms_stay_frozen_in_training() -> None:
    backbone = Backbone("mobilenetv2_100", freeze_stages=0).train()
    before = copy.deepcopy(backbone.state_dict())
    features = backbone(torch.rand(2, 3, 64, 64))
    sum(feature.sum() for feature in features).backward()
    assert all(value.equal(before[key]) for key, value in backbone.state_dict().items())
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    assert {type(norm) for norm in norms} == {FrozenBatchNorm}
    assert all(parameter.grad is None for norm in norms for parameter in norm.parameters())
    assert backbone.body.conv_stem.weight.grad is not None
    assert backbone.training


def test_norms_train_if_they_are_told_to() -> None:
    backbone = Backbone("resnet18", freeze_bn=False, freeze_stages=0)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(module.training for module in backbone.modules())
    assert not any(isinstance(module, FrozenBatchNorm) for module in backbone.modules())


# Frozen norms ---------------------------------------------------------------------------------------------


def test_freezing_keeps_the_names_and_places_of_tensors() -> None:
    original = timm.create_model("tf_efficientnet_lite0", features_only=True)
    assert list(Backbone("tf_efficientnet_lite0").body.state_dict()) == list(original.state_dict())


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18", "xception65p"])
def test_features_are_those_of_timm_in_evaluation_mode(name: str) -> None:
    torch.manual_seed(0)
    original = timm.create_model(name, features_only=True).double().eval()
    randomize_norms(original)
    backbone = Backbone(name).double().train()
    backbone.body.load_state_dict(original.state_dict())
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), [original(images)[level] for level in backbone.levels])


# Of published weights -------------------------------------------------------------------------------------


def test_a_resnet_of_another_width_has_the_shapes_asked_for() -> None:
    backbone = Backbone("resnet50", channels=[8, 4, 8, 16, 32])
    assert backbone.channels == [32, 64, 128]
    state = backbone.body.state_dict()
    assert state["conv1.weight"].shape == (8, 3, 7, 7)
    assert state["layer1.0.downsample.0.weight"].shape == (16, 8, 1, 1)
    assert backbone.body.conv1(torch.zeros(1, 3, 64, 96)).shape == (1, 8, 32, 48)
    assert Backbone("resnet18", channels=[8, 4, 8, 16, 32]).channels == [8, 16, 32]


def test_only_the_place_of_the_stride_moves_with_stride_in_1x1() -> None:
    usual, caffe = Backbone("resnet50"), Backbone("resnet50", stride_in_1x1=True)
    assert usual.channels == caffe.channels
    blocks = dict(caffe.body.named_modules())
    assert (blocks["layer2.0.conv1"].stride, blocks["layer2.0.conv2"].stride) == ((2, 2), (1, 1))
    assert (blocks["layer2.1.conv1"].stride, blocks["layer1.0.conv1"].stride) == ((1, 1), (1, 1))
    blocks = dict(usual.body.named_modules())
    assert (blocks["layer2.0.conv1"].stride, blocks["layer2.0.conv2"].stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize("name", ["test_efficientnet", "resnet50d"])
def test_other_networks_cannot_be_of_another_width(name: str) -> None:
    with pytest.raises(ConfigError, match="only a plain ResNet can be of another width"):
        Backbone(name, channels=[8, 4, 8, 16, 32])


@pytest.mark.parametrize("name", ["test_efficientnet", "resnet18"])
def test_stride_in_1x1_needs_bottlenecks(name: str) -> None:
    with pytest.raises(ConfigError, match="stride_in_1x1 needs a ResNet of bottlenecks"):
        Backbone(name, stride_in_1x1=True)


def test_pixel_statistics_are_those_that_timm_knows_of_the_network() -> None:
    assert pixel_statistics("tf_efficientnetv2_s.in21k") == ((127.5,) * 3, (127.5,) * 3)
    for name in ("resnet18", "vgg11"):
        assert pixel_statistics(name)[1] == pytest.approx((58.395, 57.12, 57.375))  # 255 times ImageNet's
