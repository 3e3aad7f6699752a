"""A network made ready for export: the same function, of plain layers.

What is computed at every forward pass so that it can be trained (frozen batch norm), or that depends on the
size of the input (TensorFlow's padding), is computed once.
"""

from __future__ import annotations

from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from fcos.cpu.fold import folded
from fcos.model.fcos import FCOS


def baked(model: FCOS) -> FCOS:
    """A copy in evaluation mode on the CPU, of plain layers, that gives the same.

    Its input must have sides that divide by 32: padding "as TensorFlow" is constant then.
    """
    network = folded(model).cpu()
    for name, module in list(network.named_modules()):
        if isinstance(module, Conv2dSame):
            network.set_submodule(name, _padded(module))
    return network


def _padded(conv: Conv2dSame) -> nn.Module:
    """A convolution with TensorFlow's padding, as a layer of its own where the two sides differ."""
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        0,
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
    )
    plain.weight, plain.bias = conv.weight, conv.bias
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
