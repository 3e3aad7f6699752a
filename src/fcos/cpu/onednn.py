"""Calls of oneDNN, the library behind PyTorch's convolutions on CPUs, that do more than `F.conv2d`.

`torch.compile` makes the same calls on CPUs. They are not part of PyTorch's public interface: `is_available`
checks for them, and without them convolutions stay plain. `fuse` and `winograd` say what they are worth.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

Activation = tuple[str, list[float]]  # oneDNN's name, its numbers
Shape = tuple[list[int], list[int], list[int], int]  # padding, stride, dilation, groups
NO_ACTIVATION: Activation = ("none", [])


@cache
def is_available() -> bool:
    """Whether this PyTorch has the calls."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    calls = ("_convolution_pointwise", "_convolution_pointwise_")
    return has_onednn and all(hasattr(torch.ops.mkldnn, call) for call in calls)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: Shape,
    activation: Activation = NO_ACTIVATION,
    shortcut: Tensor | None = None,
    *,
    in_place: bool = False,
) -> Tensor:
    """A convolution, the shortcut added, the activation of that, in one pass.

    Args:
        in_place: the shortcut is overwritten with the result.
    """
    name, numbers = activation
    calls, result = torch.ops.mkldnn, shortcut
    if shortcut is None:
        result = calls._convolution_pointwise(x, weight, bias, *shape, name, numbers, "")
    else:
        after = "add", 1.0, None if name == "none" else name, numbers, None
        if in_place:
            calls._convolution_pointwise_.binary(shortcut, x, weight, bias, *shape, *after)
        else:
            result = calls._convolution_pointwise.binary(x, shortcut, weight, bias, *shape, *after)
    assert result is not None
    return result
