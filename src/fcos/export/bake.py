"""A network made ready for export: the same function, of plain layers.

What is computed at every forward pass so that it can be trained (frozen batch norm), or that depends on the
size of the input (TensorFlow's padding), is computed once.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from fcos.model.frozen_norm import FoldedConv2d, FoldedNorm

Network = TypeVar("Network", bound=nn.Module)


def baked(network: Network) -> Network:
    """A copy in evaluation mode on the CPU, of plain layers, that gives the same.

    Its input must have sides that divide by 32: padding "as TensorFlow" is constant then.
    """
    network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if (plain := _plain(child)) is not None:
                setattr(parent, name, plain)
    return network


def _plain(module: nn.Module) -> nn.Module | None:
    """The plain layer instead of one of ours; None where it is plain already."""
    if isinstance(module, FoldedConv2d):
        return _plain_conv(module, *module.folded(), same=module.pads_same)
    if isinstance(module, FoldedNorm):
        activation: nn.Module | None = getattr(module, "act", None)
        return activation if activation is not None else nn.Identity()
    if isinstance(module, Conv2dSame):
        return _plain_conv(module, module.weight, module.bias, same=True)
    return None


def _plain_conv(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None, *, same: bool) -> nn.Module:
    """A convolution of the same shape; TensorFlow's padding as a layer of its own before it."""
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        0 if same else conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        bias is not None,
    )
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias, requires_grad=False)
    if not same:
        return plain
    shape = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    (top, bottom), (left, right) = (_same_padding(*side) for side in shape)
    if (top, left) == (bottom, right):
        plain.padding = (top, left)
        return plain
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), plain)


def _same_padding(kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's padding before and after, of a side that divides by the stride."""
    total = max(0, (kernel - 1) * dilation + 1 - stride)
    return total // 2, total - total // 2
