"""The backbone: a timm network that returns features at strides 8, 16, 32 (C3, C4, C5), or from 4 on (C2)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fcos.errors import ConfigError
from fcos.model.frozen_norm import freeze_norms

STRIDES = (8, 16, 32)

# The TPU code that trained these used (x - 127) / 128; ImageNet's mean and std cost 7 to 9 points of top-1.
# (timm has 127.5 and 127.5 on record. Its own "efficientnet_lite0" was trained with ImageNet's.)
TPU_EFFICIENTNET_LITE = "tf_efficientnet_lite"
TPU_STATISTICS = ((127.0,) * 3, (128.0,) * 3)


class Backbone(nn.Module):
    """A timm network cut to the features at some strides.

    Args:
        name: timm model name.
        strides: of the features, finest first.
        freeze_bn: batch norm keeps its statistics and its affine weights (training the affine part of a
            converted backbone cost a peer more than 1 AP).
        freeze_stages: the stem and the first N stages (stage 1 ends at stride 4) are not trained, and their
            batch norm keeps its statistics; 0: all are.
        channels: widths of the stem and the four stages of a ResNet (of bottlenecks the inner one), where
            they are not 64, 64, 128, 256, 512.
        stride_in_1x1: bottlenecks step in their first convolution, as in Caffe, not in the 3x3.

    Raises:
        ConfigError: the network has no such features, or not for images of every size.
    """

    def __init__(
        self,
        name: str,
        strides: Sequence[int] = STRIDES,
        *,
        freeze_bn: bool = True,
        freeze_stages: int = 1,
        channels: Sequence[int] | None = None,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        self.body = _create_body(name, strides, channels)
        if stride_in_1x1:
            _step_in_1x1(self.body, name)
        info: Any = self.body.feature_info
        self.levels = [info.reduction().index(stride) for stride in strides]
        self.channels: list[int] = [info.channels()[level] for level in self.levels]
        _check_features(self, name, strides)
        if freeze_stages:
            _freeze_up_to(self.body, info.reduction().index(2 ** (freeze_stages + 1)))
        if freeze_bn:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.requires_grad_(False)
        freeze_norms(self.body)
        self.train()

    def forward(self, images: Tensor) -> list[Tensor]:
        """C3, C4, C5 (with strides from 4 on: C2, C3, C4, C5) of normalized images."""
        features = self.body(images)
        return [features[level] for level in self.levels]


def check_backbone(name: str, where: str = 'setting "backbone"') -> None:
    """Reject anything but a timm architecture: "hf-hub:..." goes online, "local-dir:..." reads other files.

    Raises:
        ConfigError: timm has no such network; it suggests the closest names.
    """
    if re.fullmatch(r"[\w.]+", name, re.ASCII) and timm.is_model(name):
        return
    closest = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5) or ["resnet50"]
    raise ConfigError(
        f"{name} cannot be used as backbone: timm has no network of this name",
        where=where,
        fix=f"the closest names are {', '.join(closest)}; timm.list_models() lists all",
    )


def _create_body(name: str, strides: Sequence[int], channels: Sequence[int] | None) -> nn.Module:
    check_backbone(name)
    widths: dict[str, Any] = {} if channels is None else {"channels": tuple(channels[1:])}
    try:
        body: nn.Module = timm.create_model(name, pretrained=False, features_only=True, **widths)
        if channels is not None:
            _narrow_stem(body, channels[0])
    except TypeError as error:
        if channels is None:
            raise
        raise _unsuitable(name, "only a plain ResNet can be of another width") from error
    except (RuntimeError, AttributeError, AssertionError) as error:  # timm's errors vary between networks
        raise _unsuitable(name, f"timm says: {error}") from error
    info: Any = body.feature_info
    there = info.reduction()
    if missing := [stride for stride in strides if stride not in there]:
        raise _unsuitable(name, f"no features at stride {missing}, only at {there}")
    return body


def _narrow_stem(body: Any, width: int) -> None:
    """Give a ResNet a stem of another width, which timm does not support."""
    first: Any = body.layer1[0]
    if not isinstance(body.conv1, nn.Conv2d):
        raise TypeError("a stem of several convolutions")
    body.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    body.bn1 = nn.BatchNorm2d(width)
    body.layer1[0].conv1 = _with_inputs(first.conv1, width)
    outputs = first.conv3.out_channels if isinstance(first, Bottleneck) else first.conv2.out_channels
    if first.downsample is not None:
        first.downsample[0] = _with_inputs(first.downsample[0], width)
    elif width != outputs:  # timm left it out, for its stem of 64
        conv = nn.Conv2d(width, outputs, 1, bias=False)
        first.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _with_inputs(conv: nn.Conv2d, width: int) -> nn.Conv2d:
    size, padding = conv.kernel_size, conv.padding
    return nn.Conv2d(width, conv.out_channels, size, conv.stride, padding, bias=False)  # type: ignore[arg-type]


def _step_in_1x1(body: nn.Module, name: str) -> None:
    blocks: list[Any] = [block for block in body.modules() if isinstance(block, Bottleneck)]
    if not blocks:
        raise _unsuitable(name, "stride_in_1x1 needs a ResNet of bottlenecks")
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def _check_features(backbone: Backbone, name: str, strides: Sequence[int]) -> None:
    """Reject networks with a fixed image size, another memory layout, or no padding."""
    wanted = [
        (1, width, 64 // stride, 64 // stride)
        for width, stride in zip(backbone.channels, strides, strict=True)
    ]
    try:
        with torch.no_grad():
            shapes = [tuple(feature.shape) for feature in backbone.eval()(torch.zeros(1, 3, 64, 64))]
    except (RuntimeError, AssertionError) as error:
        raise _unsuitable(name, f"it does not take an image of 64 x 64 pixels ({error})") from error
    if shapes != wanted:
        raise _unsuitable(name, f"its features of an image of 64 x 64 pixels are {shapes}, not {wanted}")


def _freeze_up_to(body: nn.Module, level: int) -> None:
    """Freeze the layers that the features of a level depend on: the stem and the stages up to it."""
    feature = body.eval()(torch.zeros(1, 3, 64, 64))[level]
    parameters = list(body.parameters())
    used = torch.autograd.grad(feature.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, used, strict=True):
        if gradient is not None:
            parameter.requires_grad_(False)


def _unsuitable(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{name} cannot be used as backbone: {reason}",
        where='setting "backbone"',
        fix="choose a convolutional timm model with features at strides 8, 16, 32, for example resnet50",
    )


def pixel_statistics(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the pixels (RGB, in 0..255) that a timm backbone's ImageNet weights expect."""
    if backbone.startswith(TPU_EFFICIENTNET_LITE):
        return TPU_STATISTICS
    known = timm.models.get_pretrained_cfg(backbone)
    mean = known.mean if known else timm.data.IMAGENET_DEFAULT_MEAN
    std = known.std if known else timm.data.IMAGENET_DEFAULT_STD
    return tuple(255 * value for value in mean), tuple(255 * value for value in std)
