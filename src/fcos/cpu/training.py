"""`for_training`: the network, optimized for training on a CPU."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from itertools import chain

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from fcos.cpu.fold import folded_weights, is_plain_convolution, norms_behind_convolutions
from fcos.cpu.normalize import RowwiseFCOS
from fcos.cpu.winograd import conv3x3, pays
from fcos.model.fcos import FCOS, GroupNorm
from fcos.model.frozen_norm import FrozenBatchNorm


def for_training(model: FCOS) -> FCOS:
    """A twin that trains faster on a CPU: its parameters and buffers are those of `model`, names included.

    Frozen norms are part of the convolutions (`fold`), large convolutions use Winograd (`winograd`), and
    what is slow in bfloat16 runs in float32.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, shared)
    twin.__class__ = RowwiseFCOS
    norms = dict(norms_behind_convolutions(twin.backbone.body))
    for module in twin.modules():
        if is_plain_convolution(module):
            pads_same, module.__class__ = isinstance(module, Conv2dSame), TrainedConv2d
            assert isinstance(module, TrainedConv2d)
            module.pads_same, module.norm = pads_same, (norms[module],) if module in norms else ()
        elif isinstance(module, GroupNorm):
            module.__class__ = Float32GroupNorm
    for norm in norms.values():
        norm.__class__ = FoldedNorm
    return twin


WIDTH_TO_ONE = 3  # widest input of which stride 2 leaves one cell, with kernels of 2 (of 3 and 5: 2)


class TrainedConv2d(nn.Conv2d):
    """A convolution with the frozen norm that follows it, if there is one."""

    norm: tuple[FrozenBatchNorm, ...]  # one or none; as a child it would give its tensors a second name
    pads_same: bool

    def forward(self, input: Tensor) -> Tensor:
        """The result of the convolution, or of the norm."""
        weight, bias = folded_weights(self, *self.norm) if self.norm else (self.weight, self.bias)
        if self.pads_same:  # TensorFlow's padding depends on the size of the input
            input = pad_same(input, list(self.kernel_size), list(self.stride), list(self.dilation))
        elif pays(input, self):
            return conv3x3(input, weight, bias)
        in_float32 = self._needs_float32(input)
        with torch.autocast("cpu", enabled=False) if in_float32 else nullcontext():
            result: Tensor = self._conv_forward(input.float() if in_float32 else input, weight, bias)
        return result

    def _needs_float32(self, input: Tensor) -> bool:
        """Whether bfloat16 would be slow or wrong (torch 2.14).

        The backward pass of a depthwise convolution takes four times as long as in float32 (all of
        EfficientNet-Lite0 219 instead of 86 ms). With stride 2 and an output that is one cell wide (P6, P7 of
        images of up to 128 pixels), a part of the output or of the weight gradient is never set: it is
        whatever was in that memory, NaN or 1e34.
        """
        if not torch.is_autocast_enabled("cpu"):
            return False
        is_depthwise = self.groups == self.in_channels > 1
        is_one_wide = self.stride == (2, 2) and input.shape[3] <= WIDTH_TO_ONE
        return is_one_wide or (is_depthwise and torch.is_grad_enabled())


class FoldedNorm(FrozenBatchNorm):
    """A norm that the convolution before it applies."""

    def forward(self, input: Tensor) -> Tensor:
        """What follows the norm."""
        result: Tensor = self.activation(input)
        return result


class Float32GroupNorm(GroupNorm):
    """Computes in float32 where autocast has bfloat16.

    Worth: 0.89 of a training step (`fcos_mobilenetv2`, bf16, 8 images of 192 x 320). With 3 channels in a
    group, PyTorch (2.14) takes 9 ms forward and 8 ms backward in bfloat16 for 8 maps of 24 x 40, and 1.7 and
    2.5 ms in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The result in float32."""
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float() if input.dtype == torch.bfloat16 else input)
