"""Frozen batch norm, folded into the convolution before it.

With fixed statistics and a fixed affine part, batch norm is a factor and a shift for each channel:
``norm(conv(x, w)) = conv(x, w * factor) + shift``. Computing it that way is the same function with the same
gradients, but saves passes over the feature maps, which is a third of a small backbone's time on a CPU.
The tensors keep their names and places, so weight files do not change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from fcos.cpu.winograd import conv3x3, pays

Pair = tuple[nn.Conv2d, _BatchNorm]

# Exact types: a subclass may do more than we fold.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMS = (nn.BatchNorm2d, BatchNormAct2d)


class FoldedConv2d(nn.Conv2d):
    """A convolution that applies the frozen batch norm behind it."""

    frozen_norm: tuple[_BatchNorm]  # in a tuple, so that it is not registered twice
    pads_same: bool

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution and the norm one after the other."""
        weight, shift = self.folded()
        if self.pads_same:  # TensorFlow's padding depends on the size of the input
            x = pad_same(x, list(self.weight.shape[-2:]), list(self.stride), list(self.dilation))
        elif pays(x, self):
            return conv3x3(x, weight, shift)
        padding = (0, 0) if self.pads_same else self.padding
        with depthwise_in_float32(self, x):
            x = x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)
            return F.conv2d(x, weight, shift, self.stride, padding, self.dilation, self.groups)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias with the norm in them."""
        norm = self.frozen_norm[0]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = (norm.running_var + norm.eps).rsqrt() * norm.weight
        shift = norm.bias - norm.running_mean * factor
        if self.bias is not None:
            shift = shift + self.bias * factor
        return self.weight * factor.reshape(-1, 1, 1, 1), shift

    @torch.no_grad()
    def plain(self) -> nn.Conv2d:
        """The same with the norm in its weights, for when they no longer change."""
        weight, shift = self.folded()
        kind = Conv2dSame if self.pads_same else nn.Conv2d
        shape: dict[str, Any] = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "groups": self.groups,
        }
        shape |= {"padding": self.padding, "dilation": self.dilation}
        conv: nn.Conv2d = kind(self.in_channels, self.out_channels, **shape, device="meta")
        conv.weight, conv.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, shift))
        return conv


def depthwise_in_float32(conv: nn.Conv2d, x: Tensor) -> AbstractContextManager[object]:
    """Where mixed precision is left for a depthwise convolution: in training on a CPU.

    Its bfloat16 backward pass takes four times as long as in float32 there (torch 2.14, EfficientNet-Lite0:
    the whole backward pass takes 219 ms instead of 86), which eats all that bfloat16 gains elsewhere.
    """
    depthwise = conv.groups == conv.in_channels > 1
    if depthwise and x.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
        return torch.autocast("cpu", enabled=False)
    return nullcontext()


class FoldedNorm(nn.BatchNorm2d):
    """A batch norm whose work the convolution before it does; only its activation is left."""

    @property
    def activation(self) -> nn.Module | None:
        """The one that timm puts into its norms, if there is one."""
        return getattr(self, "act", None)

    def forward(self, x: Tensor) -> Tensor:
        """The activation alone."""
        return x if self.activation is None else self.activation(x)


def fold_frozen_norms(network: nn.Module) -> int:
    """Fold every batch norm that directly follows a convolution; returns how many.

    Which follows which is found by running the network, which takes images and returns features, on a small
    image. Nothing is folded in a network that reads the output of such a convolution elsewhere too.
    """
    pairs = _norms_behind_convolutions(network)
    if _used_elsewhere(network, pairs):
        return 0
    for conv, norm in pairs:
        pads_same = isinstance(conv, Conv2dSame)
        conv.__class__ = FoldedConv2d
        conv.frozen_norm, conv.pads_same = (norm,), pads_same  # type: ignore[assignment]
        norm.__class__ = FoldedNorm
    return len(pairs)


def _norms_behind_convolutions(network: nn.Module) -> list[Pair]:
    """Convolutions and norms that run once each, the norm on the untouched output of the convolution."""
    made_by: dict[int, tuple[nn.Conv2d, int]] = {}
    outputs = []  # kept alive, so that ids stay unique
    calls: Counter[nn.Module] = Counter()
    pairs: list[Pair] = []

    def after_conv(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        calls[conv] += 1
        made_by[id(output)] = conv, output._version
        outputs.append(output)

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        calls[norm] += 1
        conv, version = made_by.get(id(inputs[0]), (None, 0))
        # An activation in place, or `+=`, leaves the same tensor with another content.
        if conv is not None and inputs[0]._version == version:
            pairs.append((conv, norm))

    hooks = []
    for module in network.modules():
        if type(module) in CONVOLUTIONS and module.padding_mode == "zeros":
            hooks.append(module.register_forward_hook(after_conv))
        elif type(module) in NORMS and module.affine:
            hooks.append(module.register_forward_pre_hook(before_norm))
    with _running(hooks):
        _run(network)
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]


def _used_elsewhere(network: nn.Module, pairs: list[Pair]) -> bool:
    """Whether anything but its norm reads what one of the convolutions puts out (a shortcut, for example)."""
    hooks = [conv.register_forward_hook(lambda _m, _x, y: torch.full_like(y, torch.nan)) for conv, _ in pairs]
    hooks += [norm.register_forward_hook(lambda _m, _x, y: torch.zeros_like(y)) for _, norm in pairs]
    with _running(hooks):
        return any(bool(feature.isnan().any()) for feature in _run(network))


def _run(network: nn.Module) -> list[Tensor]:
    was_training = network.training
    with torch.no_grad():
        features: list[Tensor] = network.eval()(torch.zeros(1, 3, 64, 64))
    network.train(was_training)
    return features


@contextmanager
def _running(hooks: list[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
